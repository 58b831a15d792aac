"""Steps made of each domain's own gradient: ``domain_gradients="normalised"`` and ``"own"``.

The formulas are in ``test_against_reference.py``, costs in ``test_cost.py``, wrong values in ``test_bad_input.py``.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from support import rest, slow

import disam_jax
from disam_jax import variants

pytestmark = pytest.mark.dealt

PROBLEM = problems.make_problem(seed=50, num_domains=3)
OF_DOMAINS = ("normalised", "own")


def accumulated(params, batch, rho=0.3, lam=0.4, loss=problems.loss, **options):
    return disam_jax.accumulated_value_and_grad(loss, rho, lam, **options)(params, batch)


def stacked(params, batch, rho=0.3, lam=0.4, weights=None, axis_name=None, of_domain_1=None, **options):
    tx = disam_jax.disam(rho, lam, domain_gradients="normalised", axis_name=axis_name, **options)
    losses = disam_jax.per_domain(problems.loss)
    values, grads = disam_jax.per_domain_value_and_grad(problems.loss)(params, batch)
    if of_domain_1 is not None:
        grads = jax.tree.map(lambda g: g.at[1].set(of_domain_1), grads)
    shares = jnp.full(len(values), 1 / len(values)) if weights is None else weights / weights.sum()
    return tx.update(
        grads,
        tx.init(params),
        params,
        domain_losses=disam_jax.DomainLosses(values, weights),
        grad_fn=jax.grad(lambda p: jnp.sum(shares * losses(p, batch))),
    )[0]


@functools.partial(jax.jit, static_argnames=("domain_gradients", "lam"))
def step(params, batch, rho=0.3, lam=0.4, domain_gradients="joint"):
    return accumulated(params, batch, rho, lam, domain_gradients=domain_gradients)[1]


def test_own_perturbations_of_equal_radii_are_the_sam_steps_of_each_domain_alone():
    alone = jax.jit(lambda one: disam_jax.value_and_grad(lambda p: problems.loss(p, one), 0.3, 0.0)(PROBLEM.params)[1])
    each = [alone(jax.tree.map(lambda x, i=i: x[i], PROBLEM.batch)) for i in range(3)]
    want = jax.tree.map(lambda *grads: sum(grads) / 3, *each)
    assert problems.relative_error(step(PROBLEM.params, PROBLEM.batch, lam=0.0, domain_gradients="own"), want) < 1e-5


@pytest.mark.parametrize("lam", [0.0, 0.7])
def test_own_perturbations_need_no_other_domain_but_for_their_radii(lam):
    """Domains that share no parameter are each perturbed by their own radius."""
    params = {f"w{i}": jnp.array([1.0, -2.0]) * (i + 1) for i in range(3)}
    batch = {"which": jnp.arange(3), "scale": jnp.array([0.5, 1.0, 1.5])}
    loss = lambda p, one: (
        one["scale"]
        * jnp.sum(jnp.where(jnp.arange(3) == one["which"], jnp.stack([jnp.sum(w**2) for w in p.values()]), 0))
    )
    got = jax.jit(lambda: accumulated(params, batch, 0.1, lam, loss, penalty="std", domain_gradients="own")[1])()
    losses = np.array([s * 5 * (i + 1) ** 2 for i, s in enumerate([0.5, 1.0, 1.5])])
    radii = 3 * problems.reference_weights(losses, np.full(3, 1 / 3), lam, "std")
    for i, scale in enumerate([0.5, 1.0, 1.5]):
        w = np.array([1.0, -2.0]) * (i + 1)
        want = 2 * scale * (w + 0.1 * radii[i] * w / np.linalg.norm(w)) / 3
        np.testing.assert_allclose(got[f"w{i}"], want, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.rest
def test_a_loss_times_a_number_does_not_change_the_normalised_ascent():
    """With equal shares the perturbation depends on directions alone, where SAM's follows the largest gradient."""
    scaled = lambda p, one: one["times"] * problems.loss(p, one)
    times = lambda *values: {**PROBLEM.batch, "times": jnp.array(values)}

    def perturbed_losses(batch, domain_gradients):
        fn = disam_jax.accumulated_value_and_grad(scaled, 0.3, 0.0, with_info=True, domain_gradients=domain_gradients)
        (_, info), _ = fn(PROBLEM.params, batch)
        return info.perturbed_domain_losses / batch["times"]

    run = jax.jit(perturbed_losses, static_argnames="domain_gradients")
    once, ten_times = (
        [run(times(1.0, factor, 1.0), domain_gradients=kind) for kind in ("normalised", "joint")]
        for factor in (1.0, 10.0)
    )
    np.testing.assert_allclose(ten_times[0], once[0], rtol=1e-5)
    assert np.abs(ten_times[1] - once[1]).max() > 1e-2


@pytest.mark.parametrize("domain_gradients", OF_DOMAINS)
def test_one_domain_is_sam(domain_gradients):
    one = jax.tree.map(lambda x: x[:1], PROBLEM.batch)
    got, want = step(PROBLEM.params, one, domain_gradients=domain_gradients), step(PROBLEM.params, one, lam=0.0)
    assert problems.relative_error(got, want) < 1e-5


@pytest.mark.parametrize("domain_gradients", OF_DOMAINS)
def test_rho_zero_is_the_plain_gradient(domain_gradients):
    got = step(PROBLEM.params, PROBLEM.batch, 0.0, domain_gradients=domain_gradients)
    want = jax.jit(jax.grad(lambda p: jnp.mean(disam_jax.per_domain(problems.loss)(p, PROBLEM.batch))))(PROBLEM.params)
    assert problems.relative_error(got, want) < 1e-6


@pytest.mark.parametrize("domain_gradients", OF_DOMAINS)
@pytest.mark.parametrize("eps", [*rest(1e-12), 0.0])
def test_a_domain_without_a_gradient_is_not_perturbed_and_leaves_no_nan(domain_gradients, eps):
    loss = lambda w, one: one["on"] * jnp.sum((w - one["x"]) ** 2) + one["x"][0]
    batch = {"on": jnp.array([1.0, 0.0, 2.0]), "x": jnp.array([[0.0, 0.0], [3.0, 1.0], [2.0, 1.0]])}

    def gradient(w):
        return accumulated(w, batch, 0.1, 0.3, loss, eps=eps, domain_gradients=domain_gradients, penalty="std")[1]

    values, derivative = jax.jit(lambda w: (gradient(w), jax.jacrev(gradient)(w)))(jnp.array([1.0, 1.0]))
    assert np.isfinite(values).all()
    assert np.isfinite(derivative).all()
    none = jax.jit(
        lambda w: accumulated(
            w,
            batch,
            0.1,
            0.3,
            lambda w, one: 0.0 * jnp.sum(w) + one["x"][0],
            eps=eps,
            domain_gradients=domain_gradients,
        )[1]
    )(jnp.ones(2))
    np.testing.assert_array_equal(none, jnp.zeros(2))


@pytest.mark.usefixtures("nans_allowed")
def test_the_stacked_gradient_of_an_absent_domain_is_never_read():
    weights = jnp.array([1.0, 0.0, 2.0])

    @jax.jit
    def run(value):
        return stacked(PROBLEM.params, PROBLEM.batch, weights=weights, of_domain_1=value)

    chex.assert_trees_all_equal(run(jnp.nan), run(0.0))
    assert np.isfinite(problems.flatten(run(jnp.nan))).all()
    present = jax.tree.map(lambda x: x[::2], PROBLEM.batch)
    part = jax.jit(lambda: stacked(PROBLEM.params, present, weights=weights[::2]))()
    assert problems.relative_error(run(0.0), part) < 1e-5


@pytest.mark.usefixtures("nans_allowed")
@pytest.mark.parametrize("domain_gradients", OF_DOMAINS)
def test_a_domain_that_is_not_finite_surfaces(domain_gradients):
    offset = jnp.zeros((3, 8)).at[1, 0].set(np.nan)
    got = step(PROBLEM.params, {**PROBLEM.batch, "offset": offset}, domain_gradients=domain_gradients)
    assert not np.isfinite(problems.flatten(got)).any()


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("make", ["normalised", "own", "stacked"])
def test_a_mapped_axis_gives_the_numbers_of_the_whole_batch(make):
    """Each domain's examples on two devices: the length of its gradient is that over both."""
    options = {"variant": variants.gsam(0.3, "clean")}

    def of(batch, axis_name):
        if make == "stacked":
            return stacked(PROBLEM.params, batch, axis_name=axis_name, **options)
        options_ = {**options, "domain_gradients": make, "axis_name": axis_name}
        return accumulated(PROBLEM.params, batch, **options_)[1]

    halves = jax.tree.map(lambda x: jnp.stack([x[:, :4], x[:, 4:]]), PROBLEM.batch)
    by_device = jax.jit(jax.vmap(lambda x: of(x, "devices"), axis_name="devices"))(halves)
    want = jax.jit(lambda: of(PROBLEM.batch, None))()
    for device in range(2):
        assert problems.relative_error(jax.tree.map(lambda g, d=device: g[d], by_device), want) < 2e-5


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("domain_gradients", OF_DOMAINS)
def test_a_traced_zero_and_a_number_are_the_same_step(domain_gradients):
    traced = jax.jit(
        lambda lam: accumulated(PROBLEM.params, PROBLEM.batch, 0.3, lam, domain_gradients=domain_gradients)[1]
    )(jnp.float32(0))
    want = step(PROBLEM.params, PROBLEM.batch, lam=0.0, domain_gradients=domain_gradients)
    assert problems.relative_error(traced, want) < 1e-5


@pytest.mark.parametrize("domain_gradients", OF_DOMAINS)
def test_a_mask_leaves_parameters_out_of_the_perturbation_and_of_the_norm(domain_gradients, x64):
    problem = problems.make_problem(seed=51, dtype=jnp.float64)
    mask = {"hidden": True, "out": {"w": False, "b": True}}
    got = jax.jit(lambda p, b: accumulated(p, b, mask=mask, domain_gradients=domain_gradients)[1])(
        problem.params, problem.batch
    )
    every = {**mask, "hidden": {"w": True, "b": True}}
    keep = problems.flatten(jax.tree.map(lambda m, w: np.full(w.shape, m), every, problem.params))
    reference, w = problems.reference(problem), problems.flatten(problem.params)
    jac = keep * reference.gradients_at(w)
    b = reference.domain_weights(reference.losses_at(w), 0.4, "variance")
    units = jac / np.linalg.norm(jac, axis=1)[:, None]
    if domain_gradients == "own":
        each = w + 0.3 * 3 * b[:, None] * units
        want = np.mean([reference.gradients_at(at)[i] for i, at in enumerate(each)], axis=0)
    else:
        g = b @ units
        want = reference.gradients_at(w + 0.3 * g / np.linalg.norm(g)).mean(0)
    assert problems.relative_error(got, want) < 1e-11


@pytest.mark.parametrize("dtype", [jnp.bfloat16, *slow(jnp.float16)])
@pytest.mark.parametrize("domain_gradients", OF_DOMAINS)
def test_half_precision_is_summed_in_float32(domain_gradients, dtype):
    problem = problems.make_problem(seed=1, dtype=dtype)
    got = step(problem.params, problem.batch, domain_gradients=domain_gradients)
    reference, w = problems.reference(problem), problems.flatten(problem.params)
    want = reference.step(w, 0.3, 0.4, domain_gradients=domain_gradients)
    assert all(g.dtype == dtype for g in jax.tree.leaves(got))
    assert problems.relative_error(got, want["gradient"]) < (0.1 if dtype == jnp.bfloat16 else 1e-2)


@pytest.mark.parametrize("domain_gradients", OF_DOMAINS)
def test_aux_and_info_are_those_of_w_and_the_ascent_may_have_its_own_loss(domain_gradients):
    loss = lambda p, one: (problems.loss(p, one), {"b": p["out"]["b"], "mean": jnp.mean(one["x"])})
    half = lambda p, one: loss(p, jax.tree.map(lambda x: x[:4], one))
    fn = disam_jax.accumulated_value_and_grad(
        loss, 0.3, 0.4, ascent_loss_fn=half, has_aux=True, with_info=True, domain_gradients=domain_gradients
    )
    (value, (aux, info)), grads = jax.jit(fn)(PROBLEM.params, PROBLEM.batch)
    of_half = jax.tree.map(lambda x: x[:, :4], PROBLEM.batch)
    np.testing.assert_array_equal(aux["b"], np.tile(PROBLEM.params["out"]["b"], (3, 1)))
    np.testing.assert_allclose(aux["mean"], np.mean(of_half["x"], axis=(1, 2)), rtol=1e-5)
    at_w = problems.reference(problems.Problem(PROBLEM.params, of_half))
    whole, w = problems.reference(PROBLEM), problems.flatten(PROBLEM.params)
    want = at_w.step(w, 0.3, 0.4, domain_gradients=domain_gradients)
    for name in ("loss", "domain_losses", "domain_weights", "ascent_norm"):
        np.testing.assert_allclose(getattr(info, name), want[name], rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(value, want["loss"], rtol=1e-5)
    if domain_gradients == "normalised":
        at = w + want["perturbation"]
        np.testing.assert_allclose(info.perturbed_domain_losses, whole.losses_at(at), rtol=1e-4)
        assert problems.relative_error(grads, whole.gradients_at(at).mean(0)) < 1e-4


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("domain_gradients", ["joint", *OF_DOMAINS])
def test_without_a_loop_the_numbers_are_the_same(domain_gradients):
    options = {"domain_gradients": domain_gradients, "descent_lam": 0.3}
    run = lambda unroll: jax.jit(lambda: accumulated(PROBLEM.params, PROBLEM.batch, unroll=unroll, **options))
    loops = lambda unroll: run(unroll).lower().as_text().count("stablehlo.while")
    assert loops(True) == 0 < loops(1)
    assert problems.relative_error(run(True)(), run(1)()) < 1e-6


def test_sam_hands_it_on():
    mean = lambda p: jnp.mean(disam_jax.per_domain(problems.loss)(p, PROBLEM.batch))

    def program(tx):
        def update(params, values, grads):
            given = {"domain_losses": values, "grad_fn": jax.grad(mean)}
            return tx.update(grads, tx.init(params), params, **given)

        rows = jax.tree.map(lambda w: jnp.stack([w] * 3), PROBLEM.params)
        return str(jax.make_jaxpr(update)(PROBLEM.params, jnp.ones(3), rows))

    got = program(disam_jax.sam(0.3, domain_gradients="normalised"))
    assert got == program(disam_jax.disam(0.3, 0.0, domain_gradients="normalised")) != program(disam_jax.sam(0.3))
