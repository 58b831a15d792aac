"""DISAM on a part of each domain's examples, the plain gradient on the rest: float64 by hand, cost, and its limits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from problems import Problem, example_losses, flatten, loss, make_problem, reference, relative_error
from support import slow

import disam_jax
from disam_jax import variants

pytestmark = pytest.mark.dealt

RHO, LAM = 0.3, 0.7
LOSSES = disam_jax.per_domain(loss)


@pytest.mark.slow
@pytest.mark.rest
@given(n=st.integers(1, 40), fraction=st.floats(0.01, 1), axis=st.sampled_from([0, 1]))
def test_every_example_is_on_one_side(n, fraction, axis):
    batch = numbered(n, axis)
    part, rest = disam_jax.split_examples(batch, fraction, axis=axis)
    of_one = disam_jax.ascent_subset(batch, fraction, axis=axis)
    for name in batch:
        np.testing.assert_array_equal(part[name], of_one[name])
        assert isinstance(rest[name], np.ndarray)
        assert rest[name].ndim == batch[name].ndim
    both = np.concatenate([part["x"], rest["x"]], axis)
    np.testing.assert_array_equal(np.sort(both, axis), np.sort(batch["x"], axis))


@pytest.mark.parametrize(
    ("n", "fraction", "axis"),
    [(7, 0.25, 0), *(pytest.param(*more, marks=pytest.mark.slow) for more in [(12, 0.4, 1), (1, 0.25, 1)])],
)
def test_arrays_of_jax_are_taken_apart_as_those_of_numpy(n, fraction, axis):
    batch = numbered(n, axis)
    got = disam_jax.split_examples(jax.tree.map(jnp.asarray, batch), fraction, axis=axis)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(got))
    chex.assert_trees_all_equal(got, disam_jax.split_examples(batch, fraction, axis=axis))


def numbered(n, axis):
    shape = (n, 2) if axis == 0 else (2, n)
    return {"x": np.arange(2 * n, dtype=np.int32).reshape(shape), "y": np.ones((*shape, 3), np.float32)}


def expected(problem, fraction, options):
    """``f grad L_part(w + e) + (1 - f) grad L_rest(w)`` in float64 numpy."""
    part, rest = (Problem(problem.params, side) for side in disam_jax.split_examples(problem.batch, fraction))
    share = part.batch["y"].shape[1] / problem.batch["y"].shape[1]
    w = flatten(problem.params)
    found = reference(part).step(w, RHO, LAM, **options)
    rest = reference(rest)
    found["gradient"] = share * found["gradient"] + (1 - share) * rest.gradients_at(w).mean(0)
    found["part_loss"] = found["loss"]
    found["loss"] = share * found["loss"] + (1 - share) * rest.losses_at(w).mean()
    return found


def flat_losses(params, batch):
    return disam_jax.mean_by_domain(example_losses(params, batch), batch["domain"], 3)


@pytest.mark.parametrize("form", ["grouped", *slow("flat")])
@pytest.mark.parametrize("fraction", [0.25, *slow(0.5, 0.4)])
@pytest.mark.parametrize(
    ("plain", "options"),
    [
        ({}, {}),
        pytest.param(
            {"adaptive": True, "penalty": "std"}, {"adaptive": True, "penalty": "std"}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"variant": ("gsam", 0.3, "clean")}, {"variant": variants.gsam(0.3, "clean")}, marks=pytest.mark.slow
        ),
    ],
    ids=["sam", "asam-std", "gsam"],
)
def test_the_part_is_perturbed_and_the_rest_is_not(form, fraction, plain, options):
    problem = make_problem(seed=4)
    call = {"fraction": fraction, "with_info": True, **options}
    if form == "grouped":
        fn, batch = disam_jax.subset_value_and_grad(LOSSES, RHO, LAM, **call), problem.batch
    elif fraction == 0.4:
        pytest.skip("equal strides through the flat batch are equal strides through each domain only if they fit")
    else:
        fn, batch = disam_jax.subset_value_and_grad(flat_losses, RHO, LAM, axis=0, **call), problem.flat
    (value, info), grads = jax.jit(fn)(problem.params, batch)
    want = expected(problem, fraction, plain)
    assert relative_error(grads, want["gradient"]) < 3e-6
    np.testing.assert_allclose(value, want["loss"], rtol=2e-6)
    np.testing.assert_allclose(info.loss, want["part_loss"], rtol=2e-6)
    np.testing.assert_allclose(info.domain_weights, want["domain_weights"], rtol=2e-5)
    # The whole step is another one, so the comparison above has something to tell.
    whole = jax.jit(disam_jax.value_and_grad(LOSSES, RHO, LAM, **options))(problem.params, problem.batch)[1]
    assert relative_error(whole, want["gradient"]) > 1e-3


def test_rho_zero_is_the_plain_gradient():
    problem = make_problem(seed=5)
    value, grads = jax.jit(disam_jax.subset_value_and_grad(LOSSES, 0.0, LAM))(problem.params, problem.batch)
    plain, want = jax.jit(jax.value_and_grad(lambda p: LOSSES(p, problem.batch).mean()))(problem.params)
    assert relative_error(grads, want) < 1e-6
    np.testing.assert_allclose(value, plain, rtol=1e-6)


@pytest.mark.parametrize(("per_domain", "fraction"), [(8, 1.0), (1, 0.25)])
def test_where_there_is_no_rest_no_bit_changes(per_domain, fraction):
    problem = make_problem(seed=6, per_domain=per_domain)
    with_aux = lambda p, batch: (LOSSES(p, batch), jnp.float32(len(batch)))
    whole = disam_jax.value_and_grad(with_aux, RHO, LAM, has_aux=True)
    part = disam_jax.subset_value_and_grad(with_aux, RHO, LAM, fraction=fraction, has_aux=True)
    (value, (aux, of_rest)), grads = jax.jit(part)(problem.params, problem.batch)
    (want_value, want_aux), want = jax.jit(whole)(problem.params, problem.batch)
    jax.tree.map(np.testing.assert_array_equal, (grads, value, aux), (want, want_value, want_aux))
    assert of_rest is None


def test_aux_is_that_of_both_sides_at_w():
    problem = make_problem(seed=7)

    def with_aux(scale, batch, params):
        return LOSSES(jax.tree.map(lambda w: scale * w, params), batch), {
            "n": jnp.float32(batch["y"].shape[1]),
            "s": scale,
        }

    fn = disam_jax.subset_value_and_grad(with_aux, RHO, LAM, has_aux=True, with_info=True, argnums=0)
    (_, ((part, rest), info)), grads = jax.jit(fn)(jnp.float32(1.0), problem.batch, problem.params)
    assert (part, rest) == ({"n": 2, "s": 1}, {"n": 6, "s": 1})
    assert info.domain_losses.shape == (3,)
    assert grads.shape == ()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_gradients_have_the_dtypes_of_the_parameters(dtype):
    problem = make_problem(seed=8, dtype=dtype)
    _, grads = jax.eval_shape(disam_jax.subset_value_and_grad(LOSSES, RHO, LAM), problem.params, problem.batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(dtype)}


@pytest.mark.slow
def test_a_sweep_over_rho_and_an_axis_of_devices():
    problem = make_problem(seed=9)
    one = lambda rho: disam_jax.subset_value_and_grad(LOSSES, rho, LAM)(problem.params, problem.batch)[1]
    swept = jax.jit(jax.vmap(one))(jnp.array([0.1, RHO]))
    assert relative_error(jax.tree.map(lambda g: g[1], swept), jax.jit(one)(RHO)) < 1e-6

    # Two devices with every other pair of examples: each takes the first of its four, together the two of the whole.
    halves = jax.tree.map(lambda x: x.reshape(3, 2, 4, *x.shape[2:]).swapaxes(0, 1), problem.batch)
    fn = disam_jax.subset_value_and_grad(LOSSES, RHO, LAM, axis_name="device")
    value, grads = jax.jit(jax.vmap(fn, (None, 0), axis_name="device"))(problem.params, halves)
    want_value, want = jax.jit(disam_jax.subset_value_and_grad(LOSSES, RHO, LAM))(problem.params, problem.batch)
    for device in range(2):
        assert relative_error(jax.tree.map(lambda g, d=device: g[d], grads), want) < 2e-6
        np.testing.assert_allclose(value[device], want_value, rtol=1e-6)


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_a_step_costs_one_and_the_fraction(fraction):
    w = {"in": np.zeros((64, 512), np.float32), "out": np.zeros((512, 512), np.float32)}
    batch = np.zeros((4, 64, 64), np.float32)
    losses = disam_jax.per_domain(lambda w, x: jnp.mean((jnp.tanh(x @ w["in"]) @ w["out"]) ** 2))
    flops = lambda fn: jax.jit(fn).lower(w, batch).compile().cost_analysis()["flops"]
    plain = flops(jax.value_and_grad(lambda w, x: losses(w, x).mean()))
    got = flops(disam_jax.subset_value_and_grad(losses, RHO, LAM, fraction=fraction)) / plain
    # The perturbation and the sum of two gradients are a few operations for each parameter, next to 64 * 4 examples.
    assert 0.99 + fraction < got < 1.02 + fraction


@pytest.mark.parametrize("begin", [None, *slow(500)])
def test_no_example_moves_between_devices(begin):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    losses = disam_jax.per_domain(lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2))
    # 8 devices with 8 examples of each of 3 domains.
    batch = jax.device_put(np.zeros((3, 64, 5), np.float32), NamedSharding(mesh, PartitionSpec(None, "data")))
    w = jax.device_put(np.zeros((5, 2), np.float32), NamedSharding(mesh, PartitionSpec()))
    fn = jax.jit(disam_jax.subset_value_and_grad(losses, RHO, LAM, begin=begin))
    text = fn.lower(w, batch, step=jnp.int32(0)).compile().as_text()
    assert "all-reduce" in text
    assert not any(name in text for name in ("all-gather", "collective-permute", "all-to-all"))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda p, b: disam_jax.subset_value_and_grad(LOSSES, fraction=0)(p, b),
            ValueError,
            r"fraction must be in \(0, 1]",
        ),
        (lambda p, b: disam_jax.subset_value_and_grad(LOSSES, fraction=None)(p, b), TypeError, "static number"),
        (lambda p, b: disam_jax.subset_value_and_grad(LOSSES, axis=2)(p, b), ValueError, "examples on axis 2"),
        (lambda p, b: disam_jax.subset_value_and_grad(LOSSES, rho=-1.0), ValueError, "rho must not be negative"),
        (lambda p, b: disam_jax.subset_value_and_grad(LOSSES)(p), TypeError, "subset_value_and_grad: batch is missing"),
        (
            lambda p, b: disam_jax.subset_value_and_grad(LOSSES)(),
            ValueError,
            "argnums=0 must name positional arguments",
        ),
    ],
)
def test_a_wrong_call_is_named(call, error, words):
    problem = make_problem()
    with pytest.raises(error, match=words):
        jax.eval_shape(call, problem.params, problem.batch)


def test_a_loss_that_is_not_finite_in_the_rest_surfaces(nans_allowed):
    problem = make_problem(seed=10)
    batch = {**problem.batch, "x": problem.batch["x"].at[1, 1].set(jnp.nan)}  # example 1 is in the rest
    value, grads = jax.jit(disam_jax.subset_value_and_grad(LOSSES, RHO, LAM))(problem.params, batch)
    assert jnp.isnan(value)
    assert np.isnan(flatten(grads)).any()
