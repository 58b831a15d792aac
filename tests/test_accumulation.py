"""Gradient accumulation: the exact forms, and the approximate one, side by side on the same data.

Exact        ``accumulated_value_and_grad``: one domain at a time; one perturbation and one set of domain weights, those
             of the whole batch. A domain that does not fit either goes through a scan inside the loss.
Approximate  ``chain(disam, MultiSteps(tx, k).gradient_transformation())``: k micro-batches, each a part of every
             domain, with its own perturbation and its own domain weights; the optimizer gets the mean gradient.

SAM needs one perturbation for the whole batch, so the second is not the first in small steps, except at rho = 0. It
costs the memory of one micro-batch and comes as close as the micro-batches are alike.
"""

import functools

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

RHO, LAM = 0.5, 1.0
K = 4  # micro-batches
MEAN = 1e-7  # optax.MultiSteps takes its mean of float64 gradients with weights in float32
PROBLEM = problems.make_problem(seed=90, num_domains=3, per_domain=16)
OPTIONS = {
    "sam": (None, {}),
    "gsam": (("gsam", 0.3, "ascent"), {"variant": variants.gsam(0.3)}),
    "sagm": (("sagm", 0.05, "clean"), {"variant": variants.sagm(0.05, reference="clean")}),
}


@pytest.fixture(autouse=True)
def _float64(x64):
    """So that "to rounding" is 1e-12, and a difference is one of the method."""


def params():
    return jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), PROBLEM.params)


def micro_batches(unlike):
    """K batches [M, n / K, ...] and their union [M, n, ...].

    ``unlike`` = 1: the K parts of the batch of PROBLEM. ``unlike`` = 0: K times the same. Between, the inputs go along
    the line from one to the other, and their mean over the micro-batches stays. The labels are those of the first part.
    """
    x, y = np.asarray(PROBLEM.batch["x"], np.float64), np.asarray(PROBLEM.batch["y"])
    x = x.reshape(x.shape[0], K, -1, x.shape[-1])
    y = y.reshape(y.shape[0], K, -1)[:, :1].repeat(K, axis=1)
    mean = x.mean(axis=1, keepdims=True)
    x = mean + unlike * (x - mean)
    whole = {"x": jnp.asarray(x.reshape(*x.shape[:1], -1, x.shape[-1])), "y": jnp.asarray(y.reshape(y.shape[0], -1))}
    return [{"x": jnp.asarray(x[:, i]), "y": jnp.asarray(y[:, i])} for i in range(K)], whole


# rho and lam are traced: one program for each form and variant, whatever they are.


@functools.partial(jax.jit, static_argnames="variant")
def _in_one_go(params, batch, rho, lam, variant):
    fn = disam_jax.value_and_grad(disam_jax.per_domain(problems.loss), rho, lam, **OPTIONS[variant][1])
    return fn(params, batch)


@functools.partial(jax.jit, static_argnames="variant")
def _by_domain(params, batch, rho, lam, variant):
    return disam_jax.accumulated_value_and_grad(problems.loss, rho, lam, **OPTIONS[variant][1])(params, batch)


def in_one_go(batch, rho, lam, variant="sam"):
    return _in_one_go(params(), batch, np.float64(rho), np.float64(lam), variant)


def reference_gradient(batch, rho, lam, variant):
    reference = problems.reference(problems.Problem(PROBLEM.params, batch))
    return reference.step(problems.flatten(PROBLEM.params), rho, lam, variant=variant)["gradient"]


@functools.partial(jax.jit, static_argnames="variant")
def _by_multi_steps(params, batches, rho, lam, variant):
    tx = optax.chain(
        disam_jax.disam(rho, lam, **OPTIONS[variant][1]),
        optax.MultiSteps(optax.sgd(1.0), K).gradient_transformation(),
    )

    def micro_step(state, batch):
        f = lambda p: disam_jax.per_domain(problems.loss)(p, batch)
        updates, state = tx.update(None, state, params, domain_loss_fn=f)
        return state, updates

    _, updates = jax.lax.scan(micro_step, tx.init(params), batches)
    return updates


def through_multi_steps(batches, rho, lam, variant="sam"):
    """The gradient that the optimizer gets after K micro-steps; the first K - 1 must not move the parameters."""
    with jax.numpy_dtype_promotion("standard"):
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
        updates = _by_multi_steps(params(), stacked, np.float64(rho), np.float64(lam), variant)
    assert not problems.flatten(jax.tree.map(lambda u: u[:-1], updates)).any()
    return jax.tree.map(lambda u: -u[-1], updates)


CASES = [(RHO, LAM), (RHO, 0.0), (0.0, LAM), (0.0, 0.0)]


# --- exact ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rho", "lam"), CASES)
@pytest.mark.parametrize("variant", ["gsam", *rest(*(name for name in OPTIONS if name != "gsam"))])
def test_one_domain_at_a_time_is_the_whole_batch(variant, rho, lam):
    _, whole = micro_batches(unlike=1.0)
    loss, grads = _by_domain(params(), whole, np.float64(rho), np.float64(lam), variant)
    want_loss, want = in_one_go(whole, rho, lam, variant)
    assert problems.relative_error(grads, want) < 1e-12
    np.testing.assert_allclose(loss, want_loss, rtol=1e-12)
    assert problems.relative_error(grads, reference_gradient(whole, rho, lam, OPTIONS[variant][0])) < 1e-9


@pytest.mark.slow
@pytest.mark.rest
def test_a_domain_that_does_not_fit_goes_through_a_scan_inside_the_loss():
    """Still exact: the mean of a domain is a sum over its parts, whose activations need not be there together."""
    _, whole = micro_batches(unlike=1.0)
    split = jax.tree.map(lambda x: x.reshape(x.shape[0], K, -1, *x.shape[2:]), whole)  # [M, K, n / K, ...]

    def loss(params, parts):
        one_part = jax.checkpoint(lambda part: problems.loss(params, part))
        return jnp.mean(jax.lax.map(one_part, parts))

    got = jax.jit(disam_jax.accumulated_value_and_grad(loss, RHO, LAM))(params(), split)
    want = in_one_go(whole, RHO, LAM)
    assert problems.relative_error(got, want) < 1e-12


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("num_domains", [1, *slow(2)])
def test_without_jit_the_numbers_are_the_same(num_domains):
    batch = jax.tree.map(lambda x: x[:num_domains, :4], micro_batches(unlike=1.0)[1])
    with_aux = lambda p, b: (problems.loss(p, b), {"x": b["x"], "number": 3})
    fn = disam_jax.accumulated_value_and_grad(with_aux, RHO, LAM, has_aux=True, with_info=True)
    want = jax.jit(fn)(params(), batch)
    with jax.disable_jit():
        got = fn(params(), batch)
    assert problems.relative_error(got, want) < 1e-12
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)


# --- approximate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rho", "lam"), CASES)
@pytest.mark.parametrize("variant", OPTIONS)
def test_multi_steps_is_the_mean_of_the_gradients_of_the_micro_batches(variant, rho, lam):
    batches, _ = micro_batches(unlike=1.0)
    got = through_multi_steps(batches, rho, lam, variant)
    want = np.mean([reference_gradient(batch, rho, lam, OPTIONS[variant][0]) for batch in batches], axis=0)
    assert problems.relative_error(got, want) < MEAN


@pytest.mark.parametrize("lam", [LAM, 0.0])
def test_multi_steps_is_not_the_gradient_of_the_whole_batch(lam):
    """With lam = 0 too: the perturbation of SAM is not linear in the gradient, because of the norm and of w + e."""
    batches, whole = micro_batches(unlike=1.0)
    got, (_, want) = through_multi_steps(batches, RHO, lam), in_one_go(whole, RHO, lam)
    assert 0.05 < problems.relative_error(got, want) < 1.0


@pytest.mark.parametrize("lam", [LAM, 0.0])
def test_multi_steps_without_a_perturbation_is_exact(lam):
    batches, whole = micro_batches(unlike=1.0)
    got, (_, want) = through_multi_steps(batches, 0.0, lam), in_one_go(whole, 0.0, lam)
    assert problems.relative_error(got, want) < MEAN


@pytest.mark.parametrize("variant", OPTIONS)
def test_identical_micro_batches_make_multi_steps_exact(variant):
    batches, whole = micro_batches(unlike=0.0)
    got, (_, want) = through_multi_steps(batches, RHO, LAM, variant), in_one_go(whole, RHO, LAM, variant)
    assert problems.relative_error(got, want) < MEAN


@pytest.mark.parametrize("lam", [LAM, 0.0])
def test_the_error_of_multi_steps_falls_with_the_square_of_how_unlike_the_micro_batches_are(lam):
    """Their mean stays, so what is of first order in the difference cancels in the mean of the gradients."""
    errors = []
    for unlike in (0.04, 0.02, 0.01):
        batches, whole = micro_batches(unlike)
        errors.append(problems.relative_error(through_multi_steps(batches, RHO, lam), in_one_go(whole, RHO, lam)[1]))
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 4, rtol=0.1)
