"""Half precision: three recipes, each against the float64 reference; and norms at the ends of what a dtype can hold.

1. bfloat16 parameters: nothing to do. Losses, norms and weights are float32 by themselves.
2. float32 parameters, bfloat16 compute: cast inside the loss function. Better than 1: see the perturbation below.
3. float32 parameters, float16 compute: cast inside the loss function, and scale the loss in the backward pass ONLY::

       losses_at = lambda p: scale_backward(domain_losses(cast(scale_backward(p, 1 / s), jnp.float16), batch), s)

   Every cotangent between the two marks is s times too large, which keeps it in the range of float16; what comes out at
   the parameters is the gradient itself, divided in float32. Neither the losses nor the gradients that disam sees are
   scaled, so lam, alpha, eps and everything that is reported keep their meaning, and there is nothing left to unscale.

   The usual way, losses times s and gradients divided by s after disam, is right only with lam / s (but lam with
   ``penalty="std"``) and SAGM's alpha / s, since both have units.

A step whose gradient is not finite is left out by ``optax.apply_if_finite`` after disam.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from support import rest, slow

import disam_jax
from disam_jax import variants

pytestmark = pytest.mark.dealt

RHO, LAM = 0.1, 0.5
PROBLEM = problems.make_problem(seed=100, per_domain=16)
M = PROBLEM.num_domains
VARIANTS = {
    "sam": (None, {}),
    "asam": (None, {"adaptive": True}),
    "gsam": (("gsam", 0.3, "ascent"), {"variant": variants.gsam(0.3)}),
    "sagm": (("sagm", 0.05, "ascent"), {"variant": variants.sagm(0.05)}),
    "sagm_clean": (("sagm", 0.05, "clean"), {"variant": variants.sagm(0.05, reference="clean")}),
}
ROUNDING = {jnp.bfloat16: 2e-2, jnp.float16: 4e-3}  # of a gradient through a network with one hidden layer


# --- the recipes ------------------------------------------------------------------------------------------------------


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def example_losses(params, batch, dtype):
    """The network in the given dtype; the loss, as is usual, in float32."""
    logits = problems.logits(cast(params, dtype), batch["x"].astype(dtype))
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["y"])


@jax.custom_vjp
def scale_backward(tree, factor):
    """The tree itself; its cotangent is multiplied by the factor."""
    del factor
    return tree


scale_backward.defvjp(
    lambda tree, factor: (tree, factor),
    lambda factor, cotangent: (jax.tree.map(lambda c: c * factor.astype(c.dtype), cotangent), jnp.zeros_like(factor)),
)


def with_loss_scale(loss_fn, scale):
    """``loss_fn(params, batch)``, float32 in and out; in its backward pass the loss is scale times as large."""
    scale = jnp.asarray(scale, jnp.float32)
    return lambda params, batch: scale_backward(loss_fn(scale_backward(params, 1 / scale), batch), scale)


def losses_in(dtype, unit=1.0):
    """params, grouped batch -> [M]; a unit for the losses makes their gradients as small as a test needs them."""
    one_domain = lambda params, batch: unit * jnp.mean(example_losses(params, batch, dtype))
    return one_domain, disam_jax.per_domain(one_domain)


def reference(params=PROBLEM.params, unit=1.0):
    exact = problems.reference(problems.Problem(params, PROBLEM.batch))
    return problems.Reference(lambda w: unit * exact.losses_at(w), lambda w: unit * exact.gradients_at(w))


def reference_step(lam, variant, params=PROBLEM.params, unit=1.0, **options):
    formula, more = VARIANTS[variant]
    adaptive = more.get("adaptive", False)
    w = problems.flatten(params)
    return reference(params, unit).step(w, RHO, lam, variant=formula, adaptive=adaptive, **options)


@functools.partial(jax.jit, static_argnames=("form", "dtype", "variant"))
def _gradient(form, dtype, variant, params, lam, scale, unit):
    one_domain, grouped = (with_loss_scale(f, scale) for f in losses_in(dtype, unit))
    options = VARIANTS[variant][1]
    if form == "transform":
        tx = disam_jax.disam(RHO, lam, num_domains=M, **options)
        return tx.update(None, tx.init(params), params, domain_loss_fn=lambda p: grouped(p, PROBLEM.batch))
    if form == "value_and_grad":
        fn = disam_jax.value_and_grad(grouped, RHO, lam, with_info=True, **options)
    else:
        fn = disam_jax.accumulated_value_and_grad(one_domain, RHO, lam, with_info=True, **options)
    (_, info), grads = fn(params, PROBLEM.batch)
    return grads, info


def gradient(form, dtype, lam, variant, scale=1.0, unit=1.0, params=PROBLEM.params):
    """One DISAM gradient with its numbers; one program for every lam, scale and unit."""
    return _gradient(form, dtype, variant, params, np.float32(lam), np.float32(scale), np.float32(unit))


FORMS = ("transform", "value_and_grad", "accumulated")
FAST = [("transform", "sam"), ("transform", "gsam"), ("accumulated", "sagm_clean")]
CASES = [pytest.param(f, v, marks=() if (f, v) in FAST else pytest.mark.slow) for f in FORMS for v in VARIANTS]


@pytest.mark.parametrize(("form", "variant"), CASES)
def test_bfloat16_parameters(form, variant):
    params = cast(PROBLEM.params, jnp.bfloat16)
    grads, numbers = gradient(form, jnp.bfloat16, LAM, variant, params=params)
    want = reference_step(LAM, variant, params=params)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(numbers)} <= {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}
    assert problems.relative_error(grads, want["gradient"]) < ROUNDING[jnp.bfloat16]
    np.testing.assert_allclose(numbers.domain_weights, want["domain_weights"], atol=5e-3)


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize(("form", "variant"), CASES)
def test_float32_parameters_and_bfloat16_compute(form, variant):
    grads, numbers = gradient(form, jnp.bfloat16, LAM, variant)
    want = reference_step(LAM, variant)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}
    assert problems.relative_error(grads, want["gradient"]) < ROUNDING[jnp.bfloat16]
    np.testing.assert_allclose(numbers.domain_weights, want["domain_weights"], atol=5e-3)


@pytest.mark.parametrize("scale", [1.0, 2.0**12])
@pytest.mark.parametrize(("form", "variant"), CASES)
def test_float16_compute_with_a_loss_scale(form, variant, scale):
    """Every variant, without a word about the scale outside of the loss: its own lam and alpha, its own numbers."""
    grads, numbers = gradient(form, jnp.float16, LAM, variant, scale)
    want = reference_step(LAM, variant)
    assert problems.relative_error(grads, want["gradient"]) < ROUNDING[jnp.float16]
    np.testing.assert_allclose(numbers.ascent_norm, want["ascent_norm"], rtol=4e-3)
    np.testing.assert_allclose(numbers.loss, want["loss"], rtol=4e-3)
    np.testing.assert_allclose(numbers.domain_weights, want["domain_weights"], atol=2e-3)


@pytest.mark.parametrize(("form", "variant"), CASES)
def test_the_loss_scale_changes_not_one_bit_where_nothing_over_or_underflows(form, variant):
    """A power of two, in float32: whatever is unscaled twice, or not at all, or added to something unscaled shows."""
    plain, plain_numbers = gradient(form, jnp.float32, LAM, variant, 1.0)
    scaled, numbers = gradient(form, jnp.float32, LAM, variant, 2.0**15)
    chex.assert_trees_all_equal((scaled, numbers), (plain, plain_numbers))


@pytest.mark.parametrize(("form", "variant"), [case for case in CASES if "gsam" not in case.values])
def test_small_float16_gradients_vanish_without_a_loss_scale_and_are_right_with_one(form, variant):
    unit = 1e-9  # the gradient of the loss is that small; the smallest positive float16 is 6e-8
    want = reference_step(LAM / unit, variant, unit=unit)
    assert 1e-10 < np.abs(want["gradient"]).max() < 1e-8
    vanished, _ = gradient(form, jnp.float16, LAM / unit, variant, 1.0, unit)
    assert not problems.flatten(vanished).any()
    grads, numbers = gradient(form, jnp.float16, LAM / unit, variant, 2.0**30, unit)
    assert problems.relative_error(grads, want["gradient"]) < ROUNDING[jnp.float16]
    np.testing.assert_allclose(numbers.ascent_norm, want["ascent_norm"], rtol=4e-3)


@functools.partial(jax.jit, static_argnames=("variant", "penalty"))
def _scaled_losses(scale, lam, alpha, variant, penalty):
    _, grouped = losses_in(jnp.float32)
    formula, options = VARIANTS[variant]
    if formula and formula[0] == "sagm":
        options = {"variant": variants.sagm(alpha, reference=formula[2])}
    tx = optax.chain(disam_jax.disam(RHO, lam, penalty=penalty, **options), optax.scale(1 / scale))
    f = lambda p: scale * grouped(p, PROBLEM.batch)
    return tx.update(None, tx.init(PROBLEM.params), PROBLEM.params, domain_loss_fn=f)[0]


def scaled_losses_then_unscaled(scale, lam, variant, alpha=0.05, penalty="variance"):
    """The way of plain training: the losses times s, and the gradient divided by s once it comes out of disam."""
    return _scaled_losses(np.float32(scale), np.float32(lam), np.float32(alpha), variant, penalty)


SOME = ["sam", "gsam", "sagm_clean", *slow("asam", "sagm")]


@pytest.mark.parametrize("variant", SOME)
def test_losses_that_are_scaled_outside_need_lam_and_alpha_divided_by_the_scale(variant):
    s, alpha = 2.0**10, 0.05
    want = reference_step(LAM, variant)["gradient"]
    assert problems.relative_error(scaled_losses_then_unscaled(s, LAM / s, variant, alpha / s), want) < 1e-4
    assert problems.relative_error(scaled_losses_then_unscaled(s, LAM, variant, alpha / s), want) > 1e-2
    if variant.startswith("sagm"):
        assert problems.relative_error(scaled_losses_then_unscaled(s, LAM / s, variant, alpha), want) > 1e-2


@pytest.mark.parametrize("variant", SOME)
def test_losses_that_are_scaled_outside_keep_the_lam_of_a_penalty_without_units(variant):
    s, alpha = 2.0**10, 0.05
    got = scaled_losses_then_unscaled(s, LAM, variant, alpha / s, penalty="std")
    want = reference_step(LAM, variant, penalty="std")["gradient"]
    assert problems.relative_error(got, want) < 1e-4


# --- a scale that finds itself ----------------------------------------------------------------------------------------


class Training:
    """Float16 compute with a dynamic loss scale: halved after a step that is not finite, doubled after good ones."""

    def __init__(self, unit=1.0, doubled_after=4, learning_rate=0.1, **options):
        self.tx = optax.chain(
            disam_jax.disam(RHO, LAM / unit, num_domains=M, **options),
            # The limit is when it gives up and lets them through: more than the halvings from any first scale.
            optax.apply_if_finite(optax.sgd(learning_rate / unit, momentum=0.9), max_consecutive_errors=100),
        )
        _, self.losses_at = losses_in(jnp.float16, unit)
        self.doubled_after = doubled_after

    @functools.partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=1)
    def step(self, params, state, scale, good_steps):
        f = lambda p: with_loss_scale(self.losses_at, scale)(p, PROBLEM.batch)
        updates, state = self.tx.update(None, state, params, domain_loss_fn=f)
        finite = optax.tree.get(state, "last_finite")
        good_steps = jnp.where(finite, good_steps + 1, 0)
        double = good_steps == self.doubled_after
        scale = jnp.where(finite, jnp.where(double, 2 * scale, scale), scale / 2)
        return optax.apply_updates(params, updates), state, scale, jnp.where(double, 0, good_steps)

    def run(self, steps, scale):
        chex.clear_trace_counter()
        carry = (PROBLEM.params, self.tx.init(PROBLEM.params), jnp.float32(scale), jnp.int32(0))
        for _ in range(steps):
            params, state, scale, _ = carry
            carry = self.step(*carry)
            yield {
                "before": params,
                "after": carry[0],
                "scale": float(scale),
                "finite": bool(optax.tree.get(carry[1], "last_finite")),
                "momentum": (optax.tree.get(state, "trace"), optax.tree.get(carry[1], "trace")),
            }


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.usefixtures("nans_allowed")
def test_a_dynamic_scale_halves_on_overflow_and_recovers():
    training = Training(unit=1e-9)
    with jax.numpy_dtype_promotion("standard"):
        steps = list(training.run(30, scale=2.0**50))
    scales, finite = [s["scale"] for s in steps], [s["finite"] for s in steps]
    first = finite.index(True)
    assert first >= 3
    assert scales[: first + 1] == [2.0 ** (50 - i) for i in range(first + 1)]
    # Found from above, it grows after four good steps, overflows, and comes back.
    assert False in finite[first:]
    assert finite.count(True) > 15
    for s, following in zip(steps, scales[1:], strict=False):
        assert np.isfinite(problems.flatten(s["after"])).all()
        if not s["finite"]:
            assert following == s["scale"] / 2
            chex.assert_trees_all_equal(s["after"], s["before"])
            chex.assert_trees_all_equal(*s["momentum"])
    # Exactly the run in float64 that takes the good steps only.
    w, momentum, exact = problems.flatten(PROBLEM.params), 0.0, reference()
    for _ in range(finite.count(True)):
        momentum = 0.9 * momentum + exact.step(w, RHO, LAM)["gradient"]
        w = w - 0.1 * momentum
    moved = np.linalg.norm(w - problems.flatten(PROBLEM.params))
    assert np.linalg.norm(problems.flatten(steps[-1]["after"]) - w) < 1e-2 * moved


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.usefixtures("nans_allowed")
def test_a_perturbation_that_overflowed_is_held_until_the_next_refresh():
    """With refresh_every=k one overflow in the ascent costs up to k steps; all of them are left out."""
    training = Training(refresh_every=3, doubled_after=1000)
    with jax.numpy_dtype_promotion("standard"):
        steps = list(training.run(30, scale=2.0**30))
    finite = [s["finite"] for s in steps]
    first = finite.index(True)
    assert first % 3 == 0
    assert first > 0
    assert all(finite[first:])
    assert np.isfinite(problems.flatten(steps[-1]["after"])).all()


# --- training ---------------------------------------------------------------------------------------------------------

RECIPES = {
    "bfloat16 parameters": (jnp.bfloat16, jnp.bfloat16, 1.0),
    "bfloat16 compute": (jnp.float32, jnp.bfloat16, 1.0),
    "float16 compute, loss scale": (jnp.float32, jnp.float16, 2.0**12),
}


@functools.cache
@functools.cache
def train(param_dtype, dtype, scale, steps=40):
    tx = optax.chain(disam_jax.disam(RHO, LAM), optax.adamw(2e-2))
    losses_at = with_loss_scale(losses_in(dtype)[1], scale)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(None, state, params, domain_loss_fn=lambda p: losses_at(p, PROBLEM.batch))
        return (optax.apply_updates(params, updates), state), optax.tree.get(state, "loss")

    params = cast(PROBLEM.params, param_dtype)
    with jax.numpy_dtype_promotion("standard"):
        return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps)[1])(params)


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("recipe", [*rest(*list(RECIPES)[:-1]), list(RECIPES)[-1]])
def test_each_recipe_trains_as_float32_does(recipe):
    want = train(jnp.float32, jnp.float32, 1.0)
    got = train(*RECIPES[recipe])
    assert want[-1] < 0.7 * want[0]
    np.testing.assert_allclose(got, want, rtol=3e-2)


@pytest.mark.parametrize(("param_dtype", "arrives"), [(jnp.bfloat16, 0.0), (jnp.float32, 1.0)])
def test_a_small_perturbation_arrives_on_average_from_float32_parameters_only(param_dtype, arrives):
    """In bfloat16, w + e is w where e is less than half a unit in the last place of w, for w of 0.5 to 1 that is 2e-3.

    Float32 parameters lie anywhere between two bfloat16 numbers, so a part of them crosses over, and the sum is right.
    """
    w = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.0, 16384), param_dtype)
    # The gradient of this loss is what the network computes with.
    loss = lambda p: jnp.sum(p.astype(jnp.bfloat16).astype(jnp.float32) ** 2) / 2
    clean, perturbed = (np.asarray(disam_jax.value_and_grad(loss, rho, 0.0)(w)[1], np.float64) for rho in (0.0, 0.05))
    e = 0.05 * clean / np.linalg.norm(clean)
    assert np.abs(e).max() < 1e-3
    np.testing.assert_allclose((perturbed - clean) @ e / (e @ e), arrives, atol=0.1)


# --- your own variant -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("form", FORMS)
def test_your_own_variant_sees_float32_and_its_result_has_the_dtypes_of_the_parameters(form, dtype):
    params = cast(PROBLEM.params, dtype)

    @jax.jit
    def step(strength):
        def combine(base, perturbed):
            assert {leaf.dtype for leaf in jax.tree.leaves((base, perturbed))} == {jnp.dtype(jnp.float32)}
            return jax.tree.map(lambda g, h: h + strength * g, base, perturbed)

        half = variants.Variant(lambda rho, norm: strength * rho / norm, combine)
        one_domain, grouped = losses_in(dtype)
        if form == "transform":
            tx = disam_jax.disam(RHO, LAM, variant=half)
            return tx.update(None, tx.init(params), params, domain_loss_fn=lambda p: grouped(p, PROBLEM.batch))[0]
        if form == "accumulated":
            return disam_jax.accumulated_value_and_grad(one_domain, RHO, LAM, variant=half)(params, PROBLEM.batch)[1]
        return disam_jax.value_and_grad(grouped, RHO, LAM, variant=half)(params, PROBLEM.batch)[1]

    got = step(jnp.float32(0.5))
    assert {g.dtype for g in jax.tree.leaves(got)} == {jnp.dtype(dtype)}
    exact, w = reference(params), problems.flatten(params)
    g = exact.domain_weights(exact.losses_at(w), LAM, "variance") @ exact.gradients_at(w)
    h = exact.gradients_at(w + 0.5 * RHO * g / np.linalg.norm(g)).mean(axis=0)
    assert problems.relative_error(got, h + 0.5 * g) < ROUNDING.get(dtype, 1e-5)


def test_a_gradient_that_is_handed_through_is_not_rounded_again():
    """Of bfloat16 parameters, SAM hands over the bits of the second pass; no float32 copy is in the program."""
    w = jnp.linspace(0.1, 1.0, 1000, dtype=jnp.bfloat16)
    step = lambda w: disam_jax.value_and_grad(lambda w: jnp.mean((w * w).astype(jnp.float32)), 0.0)(w)[1]
    plain = lambda w: jax.grad(lambda w: jnp.mean((w * w).astype(jnp.float32)))(w)
    np.testing.assert_array_equal(step(w), plain(w))
    assert jax.make_jaxpr(step)(w).jaxpr.outvars[0].aval.dtype == jnp.bfloat16


# --- norms ------------------------------------------------------------------------------------------------------------

N = 4096  # of equal entries: the norm is 64 times one of them
SIZES = {jnp.float16: [6e4, 6e-8], jnp.bfloat16: [1e15, 1e-15], jnp.float32: [1e15, 1e-15]}


@pytest.mark.parametrize(("dtype", "size"), [(dtype, size) for dtype, sizes in SIZES.items() for size in sizes])
@pytest.mark.parametrize("variant", ["sam", *slow("asam")])
def test_norms_at_the_ends_of_the_range(variant, dtype, size):
    w, gradient = jnp.full(N, 0.5, dtype), jnp.full(N, size, dtype)
    tx = disam_jax.disam(1.0, 0.0, refresh_every=jnp.ones((), jnp.int32), eps=0.0, **VARIANTS[variant][1])
    updates, state = tx.update(
        gradient[None], tx.init(w), w, domain_losses=jnp.ones(1, jnp.float32), grad_fn=lambda p: gradient
    )
    np.testing.assert_array_equal(updates, gradient)
    np.testing.assert_allclose(state.ascent_norm, 64 * np.float64(gradient[0]), rtol=1e-5)
    # rho / sqrt(n) in each entry; ASAM stretches it by |w|.
    want = 1 / 64 * (0.5 if variant == "asam" else 1.0)
    np.testing.assert_allclose(np.float32(state.perturbation), want, rtol=1e-2)


@pytest.mark.usefixtures("nans_allowed")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_gradients_whose_squares_leave_the_range_of_float32_never_pass_for_something_else(dtype):
    w = jnp.full(N, 0.5, dtype)

    def step(size):
        gradient = jnp.full(N, size, dtype)
        tx = disam_jax.disam(1.0, 0.0, refresh_every=jnp.ones((), jnp.int32))
        losses, state = jnp.ones(1, jnp.float32), tx.init(w)
        return tx.update(gradient[None], state, w, domain_losses=losses, grad_fn=lambda p: gradient + 0 * p)

    # Too large: nan in the update, which apply_if_finite leaves out; not a step without a perturbation.
    updates, _ = step(1e30)
    assert np.isnan(np.float32(updates)).all()
    # Too small: as a gradient of zero.
    updates, state = step(1e-30)
    np.testing.assert_array_equal(np.float32(state.perturbation), 0)
    assert np.isfinite(np.float32(updates)).all()


@pytest.mark.parametrize("unit", [1e6, 1e-3, 1e-6, 1e-9])
def test_gsam_takes_away_the_same_part_of_small_gradients(unit):
    """GSAM has no unit: of a loss that is u times as large, u times the gradient (and lam / u)."""
    grads, _ = gradient("transform", jnp.float32, LAM / unit, "gsam", unit=unit)
    want = reference_step(LAM / unit, "gsam", unit=unit)["gradient"]
    assert problems.relative_error(grads, want) < 1e-3
