"""What the mutants of the core pointed out: defaults, options handed on, dtypes, and the places where something is 0.

`python -m tests.mutation` makes small faults; each test here notices some that no other test of the default run did.
"""

import functools
import inspect

import forms
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from support import slow

import disam_jax
import disam_jax.nnx
from disam_jax import variants

RHO, LAM = 0.3, 0.7
BATCH = (
    np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32) + np.arange(3, dtype=np.float32)[:, None, None]
)
W = {"a": jnp.array([0.3, -0.2]), "b": jnp.array([0.5, 0.1])}


def loss(w, x):
    return jnp.mean(jnp.tanh(x @ w["a"]) ** 2 + (x @ w["b"]) ** 2)


def losses(w, x=BATCH):
    return disam_jax.per_domain(loss)(w, x)


# --- defaults and options ---------------------------------------------------------------------------------------------

GRADIENTS = {
    "value_and_grad": disam_jax.value_and_grad,
    "accumulated": disam_jax.accumulated_value_and_grad,
    "part": disam_jax.part_value_and_grad,
    "nnx": disam_jax.nnx.value_and_grad,
}
TRANSFORMATIONS = {"disam": disam_jax.disam, "sam": disam_jax.sam}
DEFAULTS = {
    "rho": 0.05,
    "lam": 0.1,
    "variant": None,
    "adaptive": False,
    "penalty": "variance",
    "mask": None,
    "axis_name": None,
    "eps": 1e-12,
    "has_aux": False,
    "with_info": False,
    "argnums": 0,
    "ascent_loss_fn": None,
    "refresh_every": 1,
    "num_domains": None,
    "allow_eval": False,
}


def defaults_of(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


@pytest.mark.parametrize("name", [*GRADIENTS, *TRANSFORMATIONS])
def test_every_function_has_the_same_defaults(name):
    found = defaults_of({**GRADIENTS, **TRANSFORMATIONS}[name])
    shared = {"rho", "variant", "adaptive", "penalty", "mask", "axis_name", "eps"}
    assert shared <= set(found)
    known = {key: value for key, value in found.items() if key in DEFAULTS}
    assert known == {key: DEFAULTS[key] for key in known}


def test_the_defaults_of_what_cuts_a_batch_agree():
    cuts = (disam_jax.ascent_part, disam_jax.part_and_rest, disam_jax.part_value_and_grad)
    assert [defaults_of(cut)["axis"] for cut in cuts] == [1, 1, 1]
    assert defaults_of(disam_jax.domain_weights) == {"penalty": "variance"}
    assert [defaults_of(make) for make in (variants.gsam, variants.sagm)] == [{"reference": "ascent"}] * 2


OPTIONS = {
    "variant": variants.gsam(0.5),
    "adaptive": True,
    "penalty": "std",
    "mask": {"a": True, "b": False},
    "eps": 0.25,
}


@pytest.mark.parametrize("option", [*OPTIONS, "refresh_every", "num_domains", "axis_name"])
def test_sam_hands_every_option_on(option):
    value = {**OPTIONS, "refresh_every": 3, "num_domains": 3, "axis_name": "devices"}[option]

    def program(make, **options):
        def step(w, x):
            tx = make(**options)
            return tx.update(None, tx.init(w), w, domain_loss_fn=lambda w: losses(w, x))

        return str(jax.make_jaxpr(step, axis_env=[("devices", 2)])(W, BATCH))

    disam_without_lam = lambda **options: disam_jax.disam(RHO, 0.0, **options)
    sam = lambda **options: disam_jax.sam(RHO, **options)
    assert program(sam, **{option: value}) == program(disam_without_lam, **{option: value}) != program(sam)


def as_module(fn):
    """The NNX form, called as the others are."""

    class Holder(disam_jax.nnx.nnx.Module):
        def __init__(self, w):
            self.a, self.b = (disam_jax.nnx.nnx.Param(w[name]) for name in "ab")

    def call(w, x):
        value, grads = fn(Holder(w), x)
        return value, {name: grads[name][...] for name in "ab"}

    return call


def by_each(name, **options):
    if name == "accumulated":
        return GRADIENTS[name](loss, RHO, LAM, **options)
    if name == "part":
        return GRADIENTS[name](losses, RHO, LAM, fraction=1.0, **options)
    if name == "nnx":
        of_module = lambda m, x: losses({"a": m.a[...], "b": m.b[...]}, x)
        if "mask" in options:
            options["mask"] = disam_jax.nnx.nnx.State(options["mask"])
        return as_module(GRADIENTS[name](of_module, RHO, LAM, **options))
    return GRADIENTS[name](losses, RHO, LAM, **options)


@functools.cache
def step_of_value_and_grad(option=None):
    options = {option: OPTIONS[option]} if option else {}
    return jax.jit(by_each("value_and_grad", **options))(W, BATCH)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["accumulated", "part", "nnx"])
def test_every_gradient_function_hands_every_option_on(name, option):
    with jax.numpy_dtype_promotion("standard"):
        got = jax.jit(by_each(name, **{option: OPTIONS[option]}))(W, BATCH)
        want, plain = step_of_value_and_grad(option), step_of_value_and_grad()
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    assert problems.relative_error(got[1], want[1]) < 1e-5
    assert problems.relative_error(plain[1], want[1]) > 1e-3  # so the option changes something


# --- zeros ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("num_domains", [1, 3])
def test_the_norm_of_no_gradient_is_zero(num_domains, adaptive):
    flat = lambda w: jnp.stack([jnp.sum((w - 1) ** 2)] * num_domains)
    (_, info), grads = disam_jax.value_and_grad(flat, 0.1, 0.5, adaptive=adaptive, with_info=True)(jnp.ones(3))
    assert info.ascent_norm == 0
    np.testing.assert_array_equal(grads, jnp.zeros(3))


@pytest.mark.parametrize("variant", [variants.gsam(0.5), variants.gsam(0.5, "clean"), *slow(variants.sagm(0.5))])
def test_the_derivative_of_a_step_at_a_minimum_is_finite(variant):
    scales = jnp.array([1.0, 3.0])
    fn = disam_jax.value_and_grad(lambda w: scales * jnp.sum((w - 1) ** 2), 0.1, 0.5, variant=variant)
    grads, derivative = jax.jit(lambda w: (fn(w)[1], jax.jacrev(lambda w: fn(w)[1])(w)))(jnp.ones(2))
    np.testing.assert_array_equal(grads, jnp.zeros(2))
    assert np.isfinite(derivative).all()


# --- dtypes -----------------------------------------------------------------------------------------------------------

HALF = {jnp.bfloat16: 0.1, jnp.float16: 1e-2}  # as in test_against_reference.py
QUICK = [("value_and_grad", jnp.bfloat16), ("accumulated", jnp.float16)]
NUMBERS = [
    np.float64(0.5),
    np.float32(0.5),
    jnp.float32(0.5),
    jnp.float16(0.5),
    jnp.bfloat16(0.5),
]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda x: f"{type(x).__module__}-{x.dtype}")
def test_rho_lam_eps_and_alpha_are_numbers_of_any_dtype(number):
    def results(rho, lam, eps, alpha):
        stepped = disam_jax.value_and_grad(losses, rho, lam, eps=eps, variant=variants.gsam(alpha))(W, BATCH)
        return stepped, disam_jax.value_and_grad(losses, variant=variants.sagm(alpha))(W, BATCH)

    got, want = (jax.jit(lambda x=x: results(x, x, x, x))() for x in (number, 0.5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)
    for penalty in ("variance", "std"):
        got, want = (
            disam_jax.domain_weights(jnp.array([0.2, 0.5, 0.8]), lam, penalty=penalty) for lam in (number, 0.5)
        )
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("make", [variants.gsam, variants.sagm])
def test_alpha_may_be_traced(make):
    step = lambda alpha: disam_jax.value_and_grad(losses, RHO, LAM, variant=make(alpha))(W, BATCH)[1]
    assert problems.relative_error(jax.jit(step)(0.3), step(0.3)) < 1e-6


@pytest.mark.parametrize("variant", ["asam", *slow("sagm_adaptive")])
@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        pytest.param(form, dtype, marks=() if (form, dtype) in QUICK else pytest.mark.slow)
        for form in ("value_and_grad", "accumulated", "transform_stacked")
        for dtype in HALF
    ],
)
def test_adaptive_in_half_precision_against_the_reference(form, dtype, variant):
    kind, options = forms.VARIANTS[variant]
    problem = problems.make_problem(seed=1, dtype=dtype)
    got = jax.jit(lambda p: forms.FORMS[form](p, 0.5, 0.4, **options))(problem)
    want = problems.reference(problem).step(problems.flatten(problem.params), 0.5, 0.4, adaptive=True, variant=kind)
    assert all(g.dtype == dtype for g in jax.tree.leaves(got["gradient"]))
    assert problems.relative_error(got["gradient"], want["gradient"]) < HALF[dtype]
    np.testing.assert_allclose(got["ascent_norm"], want["ascent_norm"], rtol=HALF[dtype])


@pytest.mark.parametrize("dtype", HALF)
def test_the_gradients_of_many_domains_are_summed_in_float32(dtype):
    # In half precision a sum of ones stays at 256 or 2048. SAGM hands over both passes' gradients, each half.
    num_domains = 4096
    fn = disam_jax.accumulated_value_and_grad(lambda w, x: jnp.sum(w * x), 0.0, 0.0, variant=variants.sagm(0.0))
    _, grads = jax.jit(fn)(jnp.ones(2, dtype), jnp.ones((num_domains, 2), dtype))
    assert grads.dtype == dtype
    np.testing.assert_array_equal(np.asarray(grads, np.float32), np.ones(2, np.float32))


# --- stacked gradients over a mapped axis -----------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[[3, 1, 4], [1, 5, 9]], [[3, 0, 4], [0, 5, 0]]])
def test_stacked_gradients_of_unequal_parts_are_those_of_the_whole_batch(counts):
    """Two devices with other numbers of examples of each domain: every mean is over the examples of both."""
    counts = np.array(counts, np.float32)
    total = counts.sum(0)
    centers = np.random.default_rng(1).normal(size=(2, 3, 2)).astype(np.float32)
    w = jnp.array([0.3, -0.4])
    tx = disam_jax.disam(RHO, LAM, variant=variants.gsam(0.5), axis_name="devices")

    def each(w, center):  # the mean loss of each domain on one device
        return jnp.sum((w[None] - center) ** 2, axis=-1)

    def step(center, count):
        mean = lambda w: jnp.sum(count * each(w, center)) / jnp.maximum(jnp.sum(count), 1)
        stacked = jax.jacrev(each)(w, center)
        given = disam_jax.DomainLosses(each(w, center), count)
        return tx.update(stacked, tx.init(w), w, domain_losses=given, grad_fn=jax.grad(mean))[0]

    got = jax.jit(jax.vmap(step, axis_name="devices"))(jnp.asarray(centers), jnp.asarray(counts))

    def whole(w):
        values = jnp.sum(counts * jax.vmap(each, (None, 0))(w, centers), axis=0) / np.maximum(total, 1)
        return disam_jax.DomainLosses(values, jnp.asarray(total))

    want = jax.jit(disam_jax.value_and_grad(whole, RHO, LAM, variant=variants.gsam(0.5)))(w)[1]
    for device in got:
        np.testing.assert_allclose(device, want, rtol=1e-5)


# --- refresh_every ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [2, *slow(np.int64(2), jnp.int32(2))])
def test_the_perturbation_is_computed_at_every_second_step_and_used_at_the_next(every):
    tx, fresh = disam_jax.disam(RHO, LAM, refresh_every=every), disam_jax.disam(RHO, LAM)
    step = jax.jit(lambda state, w: tx.update(None, state, w, domain_loss_fn=losses))
    mean_gradient = jax.jit(jax.grad(lambda w: jnp.mean(losses(w))))
    whole = jax.jit(lambda w: fresh.update(None, fresh.init(w), w, domain_loss_fn=losses)[0])
    other = jax.tree.map(lambda x: 2 * x + 0.1, W)
    state = tx.init(W)
    for number, w in enumerate([W, other, other, W]):
        updates, state = step(state, w)
        if number % 2 == 0:
            want = whole(w)
            held = state.perturbation
        else:
            want = mean_gradient(jax.tree.map(jnp.add, w, held))
        jax.tree.map(np.testing.assert_array_equal, state.perturbation, held)
        assert problems.relative_error(updates, want) < 1e-5
        assert state.count == number + 1


def test_nothing_is_held_where_every_step_computes_its_perturbation():
    for every in (1, np.int64(1)):
        assert disam_jax.disam(refresh_every=every).init(W).perturbation is None
    held = disam_jax.disam(refresh_every=jnp.int32(1)).init(W).perturbation
    jax.tree.map(np.testing.assert_array_equal, held, jax.tree.map(jnp.zeros_like, W))


def test_a_fresh_state_is_zeros_in_the_widest_dtype():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.float32)}
    state = disam_jax.disam(num_domains=3).init(params)
    for name in ("loss", "loss_variance", "ascent_norm"):
        np.testing.assert_array_equal(getattr(state, name), jnp.zeros((), jnp.float32), strict=True)
    for name in ("domain_losses", "domain_weights", "perturbed_domain_losses"):
        np.testing.assert_array_equal(getattr(state, name), jnp.zeros(3, jnp.float32), strict=True)
    np.testing.assert_array_equal(state.count, jnp.zeros((), jnp.int32), strict=True)


# --- bad input, found when the function is made -----------------------------------------------------------------------

WRONG = {
    "rho": (-0.1, ValueError),
    "lam": (float("nan"), ValueError),
    "eps": (-1.0, ValueError),
    "penalty": ("var", ValueError),
    "variant": (variants.gsam, TypeError),
    "ascent_loss_fn": (0.25, TypeError),
}


@pytest.mark.parametrize("argument", WRONG)
@pytest.mark.parametrize("name", ["value_and_grad", "accumulated", "part", "nnx"])
def test_a_wrong_option_is_refused_before_any_parameter_is_seen(name, argument):
    if name == "part" and argument == "ascent_loss_fn":
        pytest.skip("not an argument of part_value_and_grad")
    value, kind = WRONG[argument]
    with pytest.raises(kind, match=argument):
        GRADIENTS[name](losses, **{argument: value})


@pytest.mark.parametrize("argnums", [-1, True, "0", 0.0, None, (0, -1)])
def test_nnx_refuses_what_is_no_position(argnums):
    with pytest.raises(TypeError, match="argnums"):
        disam_jax.nnx.value_and_grad(losses, argnums=argnums)


@pytest.mark.parametrize("argument", ["rho", "lam"])
@pytest.mark.parametrize("name", ["value_and_grad", "accumulated", "part", "nnx"])
def test_a_schedule_needs_a_count_of_steps(name, argument):
    fn = lambda: GRADIENTS[name](losses, **{argument: optax.constant_schedule(0.1)})
    with pytest.raises(TypeError, match=argument):
        fn()
