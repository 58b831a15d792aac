"""The domain weights: the gradient of (mean - lam * penalty), checked by autodiff; bounds and invariances."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from support import enable_x64

import disam_jax

pytestmark = pytest.mark.dealt

PENALTIES = ("variance", "weighted_variance", "std")


# Random numbers of a few sizes: a program for each size and penalty serves every example of each test.
weights_of = jax.jit(disam_jax.domain_weights, static_argnames="penalty")


@functools.partial(jax.jit, static_argnames="penalty")
@jax.grad
def slope(losses, shares, lam, penalty):
    return objective(losses, shares, lam, penalty)


def objective(losses, shares, lam, penalty):
    """mean - lam * penalty, written as its definition."""
    mean = jnp.sum(shares * losses)
    if penalty == "weighted_variance":
        return mean - lam * jnp.sum(shares * (losses - mean) ** 2)
    return mean - lam * (jnp.var(losses) if penalty == "variance" else jnp.std(losses))


@st.composite
def losses_and_weights(draw, min_domains=1, absent=True):
    m = draw(st.sampled_from([m for m in (1, 2, 5) if m >= min_domains]))
    values = draw(st.lists(st.floats(-5, 5, width=32), min_size=m, max_size=m))
    weights = draw(st.lists(st.integers(0 if absent else 1, 20), min_size=m, max_size=m))
    hypothesis.assume(sum(weights) > 0)
    return np.array(values), np.array(weights)


@pytest.mark.parametrize("penalty", PENALTIES)
@hypothesis.given(losses_and_weights(min_domains=2, absent=False), st.floats(-3, 3))
def test_weights_are_the_gradient_of_the_objective(penalty, drawn, lam):
    values, counts = drawn
    hypothesis.assume(np.std(values) > 1e-3)
    with enable_x64(True):
        shares = jnp.asarray(counts / counts.sum())
        values = jnp.asarray(values, jnp.float64)
        got = weights_of(disam_jax.DomainLosses(values, shares), lam, penalty=penalty)
        want = slope(values, shares, lam, penalty)
        np.testing.assert_allclose(got, want, atol=1e-9)


@pytest.mark.parametrize("penalty", PENALTIES)
@hypothesis.given(losses_and_weights(), st.floats(-3, 3))
def test_weights_match_numpy_sum_to_one_and_ignore_absent_domains(penalty, drawn, lam):
    values, counts = drawn
    present = counts > 0
    hypothesis.assume(np.std(values[present]) > 1e-3 or np.ptp(values[present]) == 0)
    with enable_x64(True), jax.debug_nans(False):
        losses = disam_jax.DomainLosses(jnp.asarray(np.where(present, values, np.nan)), jnp.asarray(counts))
        got = np.asarray(weights_of(losses, lam, penalty=penalty))
        only = disam_jax.DomainLosses(jnp.asarray(values[present]), jnp.asarray(counts[present]))
        kept = weights_of(only, lam, penalty=penalty)
    np.testing.assert_allclose(got, problems.reference_weights(values, counts / counts.sum(), lam, penalty), atol=1e-9)
    np.testing.assert_allclose(got.sum(), 1, atol=1e-9)
    np.testing.assert_allclose(got[present], kept, rtol=1e-9, atol=1e-12)
    assert (got[~present] == 0).all()


@hypothesis.given(losses_and_weights(min_domains=2), st.floats(1e-30, 1e30), st.floats(-1e3, 1e3))
def test_std_does_not_change_when_all_losses_are_scaled_or_shifted(drawn, scale, shift):
    values, counts = drawn
    hypothesis.assume(np.std(values[counts > 0]) > 1e-2)
    with enable_x64(True):
        weights = lambda v: weights_of(
            disam_jax.DomainLosses(jnp.asarray(v, jnp.float64), jnp.asarray(counts)), 0.7, penalty="std"
        )
        np.testing.assert_allclose(weights(values * scale), weights(values), rtol=1e-9)
        np.testing.assert_allclose(weights(values + shift), weights(values), rtol=1e-8)


@hypothesis.given(losses_and_weights(min_domains=2, absent=False), st.floats(0.0, 0.999))
def test_std_weights_are_positive_under_the_bound(drawn, fraction):
    values, _ = drawn
    lam = fraction / np.sqrt(len(values) - 1)
    weights = weights_of(jnp.asarray(values, jnp.float32), np.float32(lam), penalty="std")
    assert (np.asarray(weights) > 0).all()


def test_std_bound_is_sharp():
    # One domain above all others: at the bound its weight is 0, beyond it is negative.
    losses = jnp.array([1.0, 0.0, 0.0, 0.0])
    at = disam_jax.domain_weights(losses, 1 / np.sqrt(3), penalty="std")
    beyond = disam_jax.domain_weights(losses, 1.1 / np.sqrt(3), penalty="std")
    assert abs(at[0]) < 1e-6
    assert beyond[0] < -0.01


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("value", [0.1, 1e-30, 3.3, 1e30])
@pytest.mark.parametrize("num_domains", [1, 3, 5, 7])
def test_equal_losses_give_exactly_the_shares(penalty, value, num_domains):
    # A mean of equal numbers is not that number in floating point; the std would divide noise by noise.
    losses = jnp.asarray(np.full(num_domains, value, np.float32))
    weights = weights_of(losses, 0.9, penalty=penalty)
    np.testing.assert_array_equal(weights, np.full(num_domains, np.float32(1) / np.float32(num_domains)))


@pytest.mark.parametrize("derivative", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_weights_of_equal_losses_have_finite_derivatives(penalty, derivative):
    of = lambda losses: disam_jax.domain_weights(losses, 0.5, penalty=penalty)
    assert np.isfinite(jax.jit(derivative(of))(jnp.ones(3))).all()


@pytest.mark.parametrize("penalty", PENALTIES)
def test_one_domain_has_weight_one_for_every_lam(penalty):
    for lam in (0.0, 0.1, 5.0, -1.0):
        assert disam_jax.domain_weights(jnp.float32(0.7), lam, penalty=penalty).tolist() == [1.0]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_nothing_present_gives_zero_weights(penalty):
    losses = disam_jax.DomainLosses(jnp.array([1.0, 2.0]), jnp.zeros(2))
    assert disam_jax.domain_weights(losses, 0.5, penalty=penalty).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [0.0], [1.0, 2.0, 4.0]])
def test_derivative_of_the_weights_is_finite(penalty, values):
    losses = jnp.array(values)
    jacobian = jax.jit(jax.jacfwd(lambda v: disam_jax.domain_weights(v, 0.5, penalty=penalty)))(losses)
    assert np.isfinite(jacobian).all()


@pytest.mark.usefixtures("nans_allowed")
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_surfaces(penalty, bad):
    weights = disam_jax.domain_weights(jnp.array([0.1, bad, 0.3]), 0.5, penalty=penalty)
    assert not np.isfinite(weights).all()


def test_losses_in_half_precision_are_weighted_in_float32():
    losses = jnp.array([0.5, 0.25, 1.0], jnp.bfloat16)
    weights = disam_jax.domain_weights(losses, 0.1)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, disam_jax.domain_weights(losses.astype(jnp.float32), 0.1), rtol=0)


def test_the_paper_example_weakens_the_domain_above_average():
    weights = disam_jax.domain_weights(jnp.array([0.2, 0.5, 0.8]), 0.1)
    assert weights[0] > 1 / 3 > weights[2]
    np.testing.assert_allclose(weights[1], 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("values", [[0.5], [1.0, 1.0], [1.0, 2.0, 4.0], [0.0, 0.0]])
@pytest.mark.parametrize("absent", [[], [0], [0, 1, 2]])
def test_no_number_on_the_way_is_infinite(penalty, values, absent):
    """``jax_debug_infs`` sees each operation where jit is off, so an inf that is not in the result shows there."""
    weights = np.ones(len(values))
    weights[[i for i in absent if i < len(values)]] = 0
    losses = disam_jax.DomainLosses(jnp.array(values), weights)
    want = weights_of(losses, 0.4, penalty=penalty)
    with jax.debug_infs(True), jax.disable_jit():
        got = disam_jax.domain_weights(losses, 0.4, penalty=penalty)
    np.testing.assert_allclose(got, want, rtol=1e-6)
