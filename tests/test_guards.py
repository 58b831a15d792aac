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
from support import rest, slow

import disam_jax
import disam_jax.nnx
from disam_jax import _gradient, variants

pytestmark = pytest.mark.dealt

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
    "part": disam_jax.subset_value_and_grad,
    "nnx": disam_jax.nnx.value_and_grad,
    "nnx part": disam_jax.nnx.subset_value_and_grad,
}
TRANSFORMATIONS = {"disam": disam_jax.disam, "sam": disam_jax.sam}
DEFAULTS = {
    "rho": 0.05,
    "lam": 0.1,
    "variant": None,
    "adaptive": False,
    "penalty": "variance",
    "descent_lam": 0.0,
    "domain_gradients": "joint",
    "mask": None,
    "axis_name": None,
    "eps": 1e-12,
    "has_aux": False,
    "with_info": False,
    "argnums": 0,
    "ascent_loss_fn": None,
    "refresh_every": 1,
    "begin": None,
    "num_domains": None,
    "allow_eval": False,
    "fraction": 0.25,
    "axis": 1,
}


def defaults_of(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


OF_A_STEP = {"variant", "adaptive", "penalty", "descent_lam", "domain_gradients", "mask", "axis_name", "eps"}
HANDED_ON = ("accumulated", "part", "nnx", "nnx part")


@pytest.mark.parametrize("name", [*GRADIENTS, *TRANSFORMATIONS])
def test_every_function_has_the_same_defaults(name):
    found = defaults_of({**GRADIENTS, **TRANSFORMATIONS}[name])
    # The other forms hand their options on to the configuration of `value_and_grad`.
    assert OF_A_STEP.isdisjoint(found) if name in HANDED_ON else set(found) >= OF_A_STEP
    assert "rho" in found
    known = {key: value for key, value in found.items() if key in DEFAULTS}
    assert known == {key: DEFAULTS[key] for key in known}


def test_the_options_that_are_handed_on_have_the_defaults_of_value_and_grad():
    assert set(_gradient.StepOptions.__annotations__) == OF_A_STEP
    assert defaults_of(_gradient.make_step_config) == {name: DEFAULTS[name] for name in OF_A_STEP}


@pytest.mark.parametrize("name", HANDED_ON)
def test_an_option_that_does_not_exist_is_named(name):
    own = GRADIENTS[name].__name__
    with pytest.raises(
        TypeError, match=f"{own} got an unexpected keyword argument 'adaptve'.*it takes variant, adaptive"
    ):
        GRADIENTS[name](losses, adaptve=True)


def test_the_defaults_of_what_cuts_a_batch_agree():
    cuts = (disam_jax.ascent_subset, disam_jax.split_examples, disam_jax.subset_value_and_grad)
    assert [defaults_of(cut)["axis"] for cut in cuts] == [1, 1, 1]
    assert defaults_of(disam_jax.domain_weights) == {"penalty": "variance"}
    assert [defaults_of(make) for make in (variants.gsam, variants.sagm)] == [{"reference": "ascent"}] * 2


OPTIONS = {
    "variant": variants.gsam(0.5),
    "adaptive": True,
    "penalty": "std",
    "descent_lam": -0.5,
    "mask": {"a": True, "b": False},
    "eps": 0.25,
}


@pytest.mark.parametrize("option", [*OPTIONS, "refresh_every", "begin", "num_domains", "axis_name"])
def test_sam_hands_every_option_on(option):
    value = {**OPTIONS, "refresh_every": 3, "begin": 2, "num_domains": 3, "axis_name": "devices"}[option]

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
    if name in ("nnx", "nnx part"):
        of_module = lambda m, x: losses({"a": m.a[...], "b": m.b[...]}, x)
        if "mask" in options:
            options["mask"] = disam_jax.nnx.nnx.State(options["mask"])
        if name == "nnx part":
            options["fraction"] = 1.0
        return as_module(GRADIENTS[name](of_module, RHO, LAM, **options))
    return GRADIENTS[name](losses, RHO, LAM, **options)


@functools.cache
def step_of_value_and_grad(option=None):
    options = {option: OPTIONS[option]} if option else {}
    return jax.jit(by_each("value_and_grad", **options))(W, BATCH)


@pytest.mark.dealt
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", HANDED_ON)
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
    fn = disam_jax.value_and_grad(lambda w: scales * jnp.sum((w - 1) ** 2), 0.1, 0.5, variant=variant, eps=0.0)
    grads, derivative = jax.jit(lambda w: (fn(w)[1], jax.jacrev(lambda w: fn(w)[1])(w)))(jnp.ones(2))
    np.testing.assert_array_equal(grads, jnp.zeros(2))
    assert np.isfinite(derivative).all()


# --- dtypes -----------------------------------------------------------------------------------------------------------

HALF = {jnp.bfloat16: 0.1, jnp.float16: 1e-2}  # as in test_against_reference.py
QUICK = {("value_and_grad", jnp.bfloat16): (), ("accumulated", jnp.float16): (pytest.mark.slow, pytest.mark.rest)}
NUMBERS = [
    np.float64(0.5),
    np.float32(0.5),
    jnp.float32(0.5),
    jnp.float16(0.5),
    jnp.bfloat16(0.5),
]


@pytest.mark.parametrize(
    "number", [NUMBERS[0], *rest(*NUMBERS[1:-1]), NUMBERS[-1]], ids=lambda x: f"{type(x).__module__}-{x.dtype}"
)
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
        pytest.param(form, dtype, marks=QUICK.get((form, dtype), pytest.mark.slow))
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
    "descent_lam": (float("inf"), ValueError),
    "domain_gradients": ("normalized", ValueError),
    "eps": (-1.0, ValueError),
    "penalty": ("var", ValueError),
    "variant": (variants.gsam, TypeError),
    "ascent_loss_fn": (0.25, TypeError),
}


@pytest.mark.parametrize("argument", WRONG)
@pytest.mark.parametrize("name", GRADIENTS)
def test_a_wrong_option_is_refused_before_any_parameter_is_seen(name, argument):
    if name in ("part", "nnx part") and argument == "ascent_loss_fn":
        pytest.skip("not an argument of subset_value_and_grad")
    value, kind = WRONG[argument]
    with pytest.raises(kind, match=argument):
        GRADIENTS[name](losses, **{argument: value})


@pytest.mark.parametrize("argnums", [-1, True, "0", 0.0, None, (0, -1)])
def test_nnx_refuses_what_is_no_position(argnums):
    with pytest.raises(TypeError, match="argnums"):
        disam_jax.nnx.value_and_grad(losses, argnums=argnums)


@pytest.mark.parametrize("argument", ["rho", "lam", "descent_lam"])
@pytest.mark.parametrize("name", GRADIENTS)
def test_a_schedule_needs_a_count_of_steps(name, argument):
    fn = lambda: GRADIENTS[name](losses, **{argument: optax.constant_schedule(0.1)})
    with pytest.raises(TypeError, match=argument):
        fn()


# --- arguments that are refused or taken, at the edge between the two -------------------------------------------------


def step_with(**options):
    return lambda: disam_jax.value_and_grad(losses, RHO, LAM, **options)(W, BATCH)


def updates_with(make=lambda: disam_jax.disam(RHO, LAM), grads=None, **extra):
    def call():
        tx = make()
        return tx.update(grads, tx.init(W), W, **extra)

    return call


STACKED = {"a": jnp.ones((3, 2)), "b": jnp.ones((3, 2))}
SECOND_FORM = {"domain_losses": jnp.ones(3), "grad_fn": jax.grad(lambda w: jnp.mean(losses(w)))}
IDS = np.array([0, 0, 1, 1])
REFUSED = {
    "rho is a flag": (lambda: disam_jax.disam(True), TypeError, "rho"),
    "lam is a flag": (lambda: disam_jax.disam(0.1, False), TypeError, "lam"),
    "eps is a flag": (lambda: disam_jax.disam(eps=True), TypeError, "eps"),
    "eps is text": (lambda: disam_jax.disam(eps="x"), TypeError, "eps"),
    "eps is a vector": (lambda: disam_jax.disam(eps=jnp.ones(2)), ValueError, "eps"),
    "no argnums": (step_with(argnums=()), ValueError, "argnums"),
    "one of argnums beyond": (step_with(argnums=(0, 2)), ValueError, "argnums"),
    "argnums beyond": (step_with(argnums=2), ValueError, "argnums"),
    "argnums before": (step_with(argnums=-3), ValueError, "argnums"),
    "a triple for aux": (
        lambda: disam_jax.value_and_grad(lambda w: (losses(w), 1, 2), has_aux=True)(W),
        TypeError,
        "has_aux",
    ),
    "a list for aux": (
        lambda: disam_jax.value_and_grad(lambda w: [losses(w), 1], has_aux=True)(W),
        TypeError,
        "has_aux",
    ),
    "losses and weights for aux": (
        lambda: disam_jax.value_and_grad(lambda w: disam_jax.DomainLosses(losses(w)), has_aux=True)(W),
        TypeError,
        "has_aux",
    ),
    "accumulated: a triple for aux": (
        lambda: disam_jax.accumulated_value_and_grad(lambda w, x: (loss(w, x), 1, 2), has_aux=True)(W, BATCH),
        TypeError,
        "has_aux",
    ),
    "accumulated: a list for aux": (
        lambda: disam_jax.accumulated_value_and_grad(lambda w, x: [loss(w, x), 1], has_aux=True)(W, BATCH),
        TypeError,
        "has_aux",
    ),
    "accumulated: no arrays": (
        lambda: disam_jax.accumulated_value_and_grad(lambda w, x: jnp.sum(w["a"]))(W, {}),
        ValueError,
        "no arrays",
    ),
    "accumulated: a scalar in the batch": (
        lambda: disam_jax.accumulated_value_and_grad(loss)(W, {"x": BATCH, "t": 1.0}),
        ValueError,
        r"batch\['t'\]",
    ),
    "accumulated: unequal domains": (
        lambda: disam_jax.accumulated_value_and_grad(loss)(W, {"x": BATCH, "t": BATCH[:2]}),
        ValueError,
        r"batch\['t'\]",
    ),
    "stacked gradients of another structure": (
        updates_with(grads={"a": STACKED["a"]}, **SECOND_FORM),
        ValueError,
        "structure of params",
    ),
    "ascent_loss_fn in the second form": (
        updates_with(grads=STACKED, ascent_loss_fn=losses, **SECOND_FORM),
        TypeError,
        "ascent_loss_fn",
    ),
    "a mask around disam that hides some parameters": (
        updates_with(lambda: optax.masked(disam_jax.disam(), {"a": True, "b": False}), W, domain_loss_fn=losses),
        TypeError,
        "mask",
    ),
    "another number of domains": (
        updates_with(lambda: disam_jax.disam(num_domains=2), domain_loss_fn=losses),
        ValueError,
        "num_domains=3",
    ),
    "refresh_every is an array of floats": (
        lambda: disam_jax.disam(refresh_every=jnp.float32(2)),
        TypeError,
        "refresh",
    ),
    "refresh_every is a flag": (lambda: disam_jax.disam(refresh_every=True), TypeError, "refresh_every"),
    "num_domains is a flag": (lambda: disam_jax.disam(num_domains=True), TypeError, "num_domains"),
    "num_domains is zero": (lambda: disam_jax.disam(num_domains=0), TypeError, "num_domains"),
    "no losses": (lambda: disam_jax.value_and_grad(lambda w: None)(W), TypeError, "NoneType"),
    "no domain": (lambda: disam_jax.domain_weights(jnp.ones(0), 0.1), ValueError, "empty"),
    "negative ids": (lambda: disam_jax.mean_by_domain(jnp.ones(2), np.array([0, -1]), 2), ValueError, "domain_ids"),
    "groups without an axis": (lambda: disam_jax.group_by_domain({"x": 1.0}, IDS, 2), ValueError, r"batch\['x'\]"),
    **{
        f"fraction is {fraction!r}": (
            lambda fraction=fraction: disam_jax.ascent_subset(BATCH, fraction),
            kind,
            "fraction",
        )
        for kind, fractions in ((TypeError, (True, "0.5", None)), (ValueError, (0.0, -0.5, 1.5, float("nan"))))
        for fraction in fractions
    },
    **{
        f"axis is {axis}": (lambda axis=axis: disam_jax.ascent_subset(BATCH, 0.5, axis=axis), ValueError, "axis")
        for axis in (-1, 3)
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    call, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words):
        call()


def test_what_is_taken():
    for make in (variants.gsam, variants.sagm):  # not negative: 0 is SAM's perturbation and half of it
        assert isinstance(make(0.0), variants.Variant)
    disam_jax.disam(0.0, 0.0, eps=0.0)
    # The least of parts is one example.
    np.testing.assert_array_equal(disam_jax.ascent_subset(np.arange(6).reshape(2, 3), 1e-12), [[0], [3]])
    # A single number is the loss of one domain.
    np.testing.assert_array_equal(disam_jax.domain_weights(0.5, 0.3), [1.0])


def test_argnums_count_from_the_end_too():
    swapped = lambda x, w: losses(w, x)
    got = jax.jit(disam_jax.value_and_grad(swapped, RHO, LAM, argnums=-1))(BATCH, W)
    jax.tree.map(np.testing.assert_array_equal, got, step_of_value_and_grad())


def test_a_domain_that_has_just_enough_examples_is_not_drawn_with_replacement():
    rng = np.random.default_rng(0)
    x, ids = np.arange(45), np.repeat([0, 1, 2], [20, 24, 1])
    drawn = disam_jax.group_by_domain(x, ids, 3, per_domain=20, replace=True, rng=rng)
    np.testing.assert_array_equal(np.sort(drawn[0]), np.arange(20))
    assert len(set(drawn[1].tolist())) == 20
    np.testing.assert_array_equal(drawn[2], [44] * 20)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, *rest(1.0, 1e3)])
def test_the_scale_of_the_weights_does_not_matter(scale):
    counts = jnp.array([1.0, 2.0, 0.0, 5.0])
    values = jnp.array([0.1, 0.5, 9.0, 0.3])
    for penalty in ("variance", "weighted_variance", "std"):
        weights = lambda a: disam_jax.domain_weights(disam_jax.DomainLosses(values, a), 0.3, penalty=penalty)
        np.testing.assert_allclose(weights(scale * counts), weights(counts), rtol=1e-6)

    def updates(a):
        given = disam_jax.DomainLosses(values[:3], a[:3])
        tx = disam_jax.disam(RHO, LAM, variant=variants.sagm(0.1))
        options = {"domain_losses": given, "grad_fn": SECOND_FORM["grad_fn"]}
        return tx.update(STACKED, tx.init(W), W, **options)[0]

    got, want = jax.jit(lambda: (updates(scale * counts), updates(counts)))()
    assert problems.relative_error(got, want) < 1e-6


@pytest.mark.usefixtures("nans_allowed")
def test_an_absent_domain_has_weight_zero_beside_a_loss_that_is_not_finite():
    losses = disam_jax.DomainLosses(jnp.array([jnp.inf, 1.0, 2.0]), jnp.array([1, 1, 0]))
    assert disam_jax.domain_weights(losses, 0.5)[2] == 0


@pytest.mark.parametrize("penalty", ["std", "variance"])
def test_the_derivative_of_equal_losses_beside_an_absent_domain_is_finite(penalty):
    weights = lambda values: disam_jax.domain_weights(
        disam_jax.DomainLosses(values, jnp.array([1, 1, 0])), 0.5, penalty=penalty
    )
    assert np.isfinite(jax.jit(jax.jacrev(weights))(jnp.array([0.5, 0.5, 7.0]))).all()


@pytest.mark.parametrize("level", [1e3, -1e3])
def test_close_losses_far_from_zero_keep_their_digits_beside_an_absent_domain(level):
    values, weights = np.float32(level) + np.array([0, 0.25, 0.5, 0], np.float32), jnp.array([1, 1, 1, 0])
    near = disam_jax.DomainLosses(jnp.array([0, 0.25, 0.5, 0]), weights)
    got = disam_jax.domain_weights(disam_jax.DomainLosses(jnp.asarray(values), weights), 0.5)
    np.testing.assert_allclose(got, disam_jax.domain_weights(near, 0.5), rtol=2e-7)


def test_eps_is_added_to_the_norm():
    problem = problems.make_problem(seed=3, features=2, hidden=2, per_domain=2)
    fn = disam_jax.value_and_grad(disam_jax.per_domain(problems.loss), RHO, LAM, eps=0.5)
    want = problems.reference(problem).step(problems.flatten(problem.params), RHO, LAM, eps=0.5)
    assert problems.relative_error(jax.jit(fn)(problem.params, problem.batch)[1], want["gradient"]) < 2e-5


def test_the_sum_of_stacked_gradients_is_in_full_precision_on_every_device():
    tx = disam_jax.disam(RHO, LAM)
    program = jax.make_jaxpr(lambda g: tx.update(g, tx.init(W), W, **SECOND_FORM))(STACKED)
    products = [line for line in str(program).split("dot_general")[1:] if "f32[2]" in line]
    assert sum("HIGHEST" in line.split("\n\n")[0] for line in products) >= 2


# --- axes, ascent_loss_fn, mixed dtypes -------------------------------------------------------------------------------


def of_half(w, x):
    return losses(w, x[:, :2])


FIRST_FORMS = {
    "transformation": lambda x, axis_name: disam_jax.disam(RHO, LAM, axis_name=axis_name).update(
        None,
        disam_jax.disam(RHO, LAM).init(W),
        W,
        domain_loss_fn=lambda w: losses(w, x),
        ascent_loss_fn=lambda w: of_half(w, x),
    )[0],
    "value_and_grad": lambda x, axis_name: disam_jax.value_and_grad(
        losses, RHO, LAM, ascent_loss_fn=of_half, axis_name=axis_name
    )(W, x)[1],
    "accumulated": lambda x, axis_name: disam_jax.accumulated_value_and_grad(
        loss, RHO, LAM, ascent_loss_fn=lambda w, x: loss(w, x[:2]), axis_name=axis_name
    )(W, x)[1],
}


@pytest.mark.parametrize("form", [next(iter(FIRST_FORMS)), *rest(*list(FIRST_FORMS)[1:])])
def test_the_ascent_sees_its_own_loss_and_all_of_the_mapped_axis(form):
    """The batch in two halves on two devices; the first half of each is the half of the examples that are first."""
    batch = np.random.default_rng(2).normal(np.arange(3)[:, None, None], size=(3, 8, 2)).astype(np.float32)
    halves = jnp.stack([batch[:, ::2], batch[:, 1::2]])
    first = lambda w: losses(w, batch[:, :4])
    whole = disam_jax.value_and_grad(lambda w: losses(w, batch), RHO, LAM, ascent_loss_fn=first)
    want = jax.jit(lambda: whole(W)[1])()
    by_device = jax.jit(jax.vmap(lambda x: FIRST_FORMS[form](x, "devices"), axis_name="devices"))(halves)
    for device in range(2):
        assert problems.relative_error(jax.tree.map(lambda g: g[device], by_device), want) < 1e-5
    alone = jax.jit(lambda: FIRST_FORMS[form](jnp.asarray(batch), None))()
    assert problems.relative_error(alone, want) > 1e-3  # with the first two of all examples in its ascent


@pytest.mark.parametrize("form", ["value_and_grad", "accumulated"])
def test_losses_may_be_wider_than_the_parameters(form, x64):
    wide = lambda w, x: loss(jax.tree.map(lambda leaf: leaf.astype(jnp.float64), w), x.astype(jnp.float64))
    if form == "accumulated":
        fn = disam_jax.accumulated_value_and_grad(wide, RHO, LAM, variant=variants.gsam(0.5), adaptive=True)
    else:
        fn = disam_jax.value_and_grad(disam_jax.per_domain(wide), RHO, LAM, variant=variants.gsam(0.5), adaptive=True)
    params = {"a": W["a"].astype(jnp.float32), "b": W["b"].astype(jnp.bfloat16)}
    value, grads = jax.jit(fn)(params, jnp.asarray(BATCH))
    assert value.dtype == jnp.float64
    assert {name: leaf.dtype for name, leaf in grads.items()} == {"a": jnp.float32, "b": jnp.bfloat16}
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    options = {"variant": variants.gsam(0.5), "adaptive": True}
    want = jax.jit(disam_jax.value_and_grad(disam_jax.per_domain(wide), RHO, LAM, **options))(whole, BATCH)[1]
    assert problems.relative_error(grads, want) < 1e-2


def test_shares_below_one_on_a_mapped_axis_are_shares_of_the_whole():
    """Weights need not be counts: half of each domain on each of two devices, in weights that sum to one."""
    halves = BATCH.reshape(3, 2, 2, 2).swapaxes(0, 1)
    shares = jnp.array([0.1, 0.3, 0.6], jnp.float32)

    def step(x):
        shared = lambda w: disam_jax.DomainLosses(losses(w, x), shares / 2)
        return disam_jax.value_and_grad(shared, RHO, LAM, axis_name="devices")(W)

    whole = disam_jax.value_and_grad(lambda w: disam_jax.DomainLosses(losses(w), shares), RHO, LAM)(W)
    of_each = jax.jit(jax.vmap(step, axis_name="devices"))(halves)
    assert problems.relative_error(jax.tree.map(lambda x: x[0], of_each), whole) < 1e-6


@pytest.mark.parametrize("number", [2**40, 10**20], ids=["beyond int32", "beyond int64"])
def test_a_python_integer_of_any_size_that_a_float_holds_is_a_number(number):
    got = disam_jax.domain_weights(jnp.array([1.0, 2.0]), number)
    np.testing.assert_allclose(got, disam_jax.domain_weights(jnp.array([1.0, 2.0]), float(number)), rtol=1e-6)


def test_groups_are_numpy_arrays_whatever_the_batch_is_made_of():
    grouped = disam_jax.group_by_domain({"x": jnp.arange(4.0)}, np.array([0, 1, 0, 1]), 2)
    assert type(grouped["x"]) is np.ndarray
    np.testing.assert_array_equal(grouped["x"], [[0, 2], [1, 3]])


@pytest.mark.parametrize("traced", [False, True])
def test_the_largest_float_is_a_weight_like_others(traced):
    weights = np.array([np.finfo(np.float32).max, 0], np.float32)
    of = lambda weights: disam_jax.domain_weights(disam_jax.DomainLosses(jnp.array([1.0, 2.0]), weights), 0.5)
    assert np.isfinite((jax.jit(of) if traced else of)(weights)).all()


@pytest.mark.parametrize("traced", [False, True])
def test_the_largest_float_is_a_rho_like_others(traced):
    of = lambda rho: disam_jax.value_and_grad(jnp.tanh, rho, 0.1, eps=0.0)(jnp.float32(1.0))[1]
    assert (jax.jit(of) if traced else of)(jnp.finfo(jnp.float32).max) == 0


def test_a_variant_may_return_plain_numbers():
    halt = variants.Variant(scale=lambda rho, norm: rho / norm, combine=lambda base, perturbed: 0.0)
    _, gradient = disam_jax.value_and_grad(lambda w: w**2, 0.1, variant=halt)(jnp.float32(2.0))
    assert gradient == 0
    assert gradient.dtype == jnp.float32


# A value that a device is still computing ---------------------------------------------------------------------------


def still_computed(value):
    """A scalar that is ready in half a second or so; JAX hands it out before."""
    slow = lambda x: jax.lax.fori_loop(0, 4_000, lambda _, y: y + 0.0 * jnp.sin(y), jnp.full(40_000, x)).max()
    x = jnp.float32(value)
    found = jax.jit(slow).lower(x).compile()(x)
    if found.is_ready():
        pytest.skip("the device was faster than the test")
    return found


def one_update(rho=0.1, lam=0.1):
    tx, w = disam_jax.disam(rho, lam, num_domains=2), jnp.ones(2)
    return tx.update(None, tx.init(w), w, domain_loss_fn=lambda w: w**2)[0]


USES = {
    "lam": lambda number: disam_jax.domain_weights(jnp.array([1.0, 2.0]), number),
    "weights": lambda number: disam_jax.domain_weights(
        disam_jax.DomainLosses(jnp.array([1.0, 2.0]), jnp.stack([number] * 2)), 0.1
    ),
    "scheduled rho": lambda number: one_update(rho=lambda step: number),
    "scheduled lam": lambda number: one_update(lam=lambda step: number),
}


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.usefixtures("nans_allowed")
@pytest.mark.parametrize("name", USES)
def test_no_call_waits_for_a_device_to_check_a_number(name):
    wrong = still_computed(jnp.inf)
    got = USES[name](wrong)
    assert not np.isfinite(got).all()
    with pytest.raises(ValueError, match="finite"):
        USES[name](jax.block_until_ready(wrong))


@pytest.mark.parametrize("entry", ["domain_losses", "scale"])
def test_a_traced_number_keeps_float32_where_float64_is_on(x64, entry):
    w, weights = jnp.ones(2, jnp.float32), jnp.array([1.0, 2.0], jnp.float32)
    losses = lambda w, weights: disam_jax.DomainLosses(jnp.stack([w[0] ** 2, w[1] ** 4]), weights)
    if entry == "domain_losses":
        step = lambda w, weights, rho: disam_jax.value_and_grad(losses, 0.1, 0.1)(w, weights)
    else:
        step = lambda w, weights, rho: disam_jax.value_and_grad(losses, rho, 0.1)(w, weights)
    value, grads = jax.jit(step)(w, weights, jnp.float32(0.1))
    assert value.dtype == grads.dtype == jnp.float32
