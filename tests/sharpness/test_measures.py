"""Each measure against closed forms of quadratics, dense Hessians, and the invariances that it claims."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree
from quadratics import IDS, NAMES, quadratic_loss
from support import slow

import disam_jax
from disam_jax import sharpness
from disam_jax.sharpness._statistics import student

SHARES = np.array([0.5, 0.5, 0.0])
KEY = jax.random.key(3)


def units(values):
    """Of the domains, then of the mixture."""
    return np.concatenate([values, np.tensordot(SHARES, values, 1)[None]])


def worst_rise(gradient, hessian, rho):
    """max of g.e + e^T H e / 2 over ||e|| <= rho, when the maximum lies on the sphere: (mu - H) e = g, ||e|| = rho."""
    values, vectors = np.linalg.eigh(hessian)
    g = vectors.T @ gradient
    low, high = values[-1], values[-1] + np.linalg.norm(g) / rho
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if np.linalg.norm(g / (mu - values)) > rho else (low, mu)
    e = g / (high - values)
    assert np.isclose(np.linalg.norm(e), rho)
    return g @ e + values @ e**2 / 2


@pytest.mark.parametrize("adaptive", [False, *slow(True)])
def test_one_step_is_the_closed_form(known, surface, w, adaptive):
    out = sharpness.domain_sharpness(surface, w, rho=0.3, adaptive=adaptive)
    stretch = np.abs(w) if adaptive else np.ones_like(w)
    rises = []
    for g, h in zip(units(known.gradients(w)), units(known.hessian), strict=True):
        e = 0.3 * stretch**2 * g / np.linalg.norm(stretch * g)
        rises.append(g @ e + e @ h @ e / 2)
    np.testing.assert_allclose([*out.values, out.mixture], rises, rtol=2e-5)
    np.testing.assert_allclose(out.losses, known.losses(w), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("adaptive", [False, True])
def test_several_steps_reach_the_maximum_in_the_ball(known, surface, w, adaptive):
    out = sharpness.domain_sharpness(surface, w, rho=0.3, steps=200, adaptive=adaptive)
    t = np.abs(w).astype(np.float64) if adaptive else np.ones(len(w))
    exact = [
        worst_rise(t * g, t[:, None] * h * t, 0.3)
        for g, h in zip(units(known.gradients(w)), units(known.hessian), strict=True)
    ]
    np.testing.assert_allclose([*out.values, out.mixture], exact, rtol=1e-4)


@pytest.mark.slow
def test_more_steps_never_give_less(surface, w):
    rises = [sharpness.domain_sharpness(surface, w, rho=0.5, steps=n).values for n in (1, 2, 3)]
    assert (np.diff(rises, axis=0) >= 0).all()
    assert (rises[-1] > rises[0]).any()


@pytest.mark.slow
def test_a_random_start_leaves_a_stationary_point():
    data = np.array([[4.0, 1.0], [1.0, 9.0]], np.float32)
    surface = sharpness.loss_surface(lambda w, h: jnp.sum(h * w[None] ** 2, 1) / 2, data, [0, 1])
    still = sharpness.domain_sharpness(surface, np.zeros(2, np.float32), rho=0.1, steps=50)
    np.testing.assert_array_equal(still.values, 0)
    out = sharpness.domain_sharpness(surface, np.zeros(2, np.float32), rho=0.1, steps=50, key=KEY)
    np.testing.assert_allclose(out.values, [4 * 0.01 / 2, 9 * 0.01 / 2], rtol=1e-5)


@pytest.mark.slow
def test_the_mixture_is_perturbed_as_sam_does(known, surface, w):
    sources = known.data["g"].dtype.type(SHARES)
    whole = lambda w: disam_jax.DomainLosses(sharpness.domain_losses(surface, w).values, sources)
    means = [jnp.asarray(x, jnp.float32) for x in (known.offset, known.slope, known.hessian)]
    domain_loss_fn = lambda w: disam_jax.DomainLosses(means[0] + means[1] @ w + (means[2] @ w) @ w / 2, sources)
    (_, info), _ = disam_jax.value_and_grad(domain_loss_fn, rho=0.3, lam=0.0, with_info=True)(jnp.asarray(w))
    np.testing.assert_allclose(whole(w).values, domain_loss_fn(jnp.asarray(w)).values, rtol=1e-5)
    out = sharpness.domain_sharpness(surface, w, rho=0.3)
    np.testing.assert_allclose(out.mixture, SHARES @ np.asarray(info.domain_sharpness), rtol=1e-4)


@pytest.mark.parametrize("adaptive", [*slow(False), True])
def test_average_case_is_half_sigma_squared_times_the_trace(known, surface, w, adaptive):
    out = sharpness.average_sharpness(surface, w, 0.2, key=KEY, samples=60, adaptive=adaptive, confidence=0.9999)
    stretch = np.abs(w) if adaptive else np.ones_like(w)
    exact = 0.02 * np.einsum("dii,i->d", known.hessian, stretch**2)
    assert (out.values.low < exact).all()
    assert (exact < out.values.high).all()
    assert out.mixture.low < SHARES @ exact < out.mixture.high
    # The spread is that of a quadratic form in normal numbers, so no draw is used twice.
    h = stretch[:, None] * known.hessian * stretch
    np.testing.assert_allclose(out.samples.std(0), 0.02 * np.sqrt(2 * (h**2).sum((1, 2))), rtol=0.35)
    np.testing.assert_allclose(out.samples.mean(0), out.values.mean)


def test_interval_is_students_t():
    x = np.random.default_rng(0).normal(size=(7, 3))
    out = student(x, 0.9)
    low, high = scipy.stats.t.interval(0.9, 6, x.mean(0), scipy.stats.sem(x))
    np.testing.assert_allclose([out.low, out.high], [low, high], rtol=1e-7)


@pytest.mark.slow
def test_eigenvalues_are_those_of_the_dense_hessian(known, surface, w):
    out = sharpness.top_hessian_eigenvalues(surface, w, k=3, key=KEY, vectors=True)
    exact = np.linalg.eigvalsh(units(known.hessian))[:, ::-1][:, :3]
    np.testing.assert_allclose(np.concatenate([out.values, out.mixture[None]]), exact, atol=1e-4)
    assert (out.errors < 1e-3).all()
    for unit, h in enumerate(units(known.hessian)):
        vectors = np.asarray(out.vectors[unit], np.float64)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(3), atol=1e-4)
        np.testing.assert_allclose(vectors @ h, exact[unit][:, None] * vectors, atol=2e-3)


@pytest.mark.slow
def test_few_products_give_bounds_that_hold(known, surface, w):
    out = sharpness.top_hessian_eigenvalues(surface, w, k=2, key=KEY, num_matvecs=3)
    exact = np.linalg.eigvalsh(known.hessian)
    nearest = np.abs(exact[:, None, :] - out.values[:, :, None]).min(-1)
    assert (nearest <= out.errors + 1e-4).all()
    assert (out.values[:, 0] <= exact[:, -1] + 1e-4).all()
    assert (out.errors > 1e-3).any()


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, 7.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_eigenvalues_of_a_space_that_is_exhausted_at_once(scale, dtype, x64):
    surface = sharpness.loss_surface(lambda w, x: x * jnp.sum(w**2) / 2, np.array([scale], dtype), [0])
    out = sharpness.top_hessian_eigenvalues(surface, np.ones(4, dtype), k=4, key=KEY)
    # What is left to orthogonalise is rounding errors alone, in which half of the digits are lost.
    np.testing.assert_allclose(out.values[0], [scale] * 4, atol=np.sqrt(np.finfo(dtype).eps))


def test_trace(known, surface, w):
    out = sharpness.hessian_trace(surface, w, key=KEY, samples=60, confidence=0.9999)
    exact = np.trace(known.hessian, axis1=1, axis2=2)
    assert (out.values.low < exact).all()
    assert (exact < out.values.high).all()
    assert out.mixture.low < SHARES @ exact < out.mixture.high
    off = known.hessian * (1 - np.eye(5))
    np.testing.assert_allclose(out.samples.std(0), np.sqrt(2 * (off**2).sum((1, 2))), rtol=0.35)


def test_gradient_similarity(known, surface, w):
    g = units(known.gradients(w))
    out = sharpness.gradient_similarity(surface, w)
    norms = np.linalg.norm(g, axis=1)
    cosines = g @ g.T / norms[:, None] / norms
    np.testing.assert_allclose(out.cosines, cosines[:3, :3], atol=1e-5)
    np.testing.assert_allclose(out.mixture_cosines, cosines[:3, 3], atol=1e-5)
    np.testing.assert_allclose([*out.norms, out.mixture_norm], norms, rtol=1e-5)


@pytest.mark.slow
def test_a_zero_gradient_has_no_direction():
    surface = sharpness.loss_surface(lambda w, x: x * w, np.array([0.0, 2.0], np.float32), [0, 1])
    out = sharpness.gradient_similarity(surface, np.float32(1))
    np.testing.assert_array_equal(out.cosines, [[np.nan, np.nan], [np.nan, 1]])
    np.testing.assert_array_equal(out.norms, [0, 2])


def network_loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["in"] + params["bias"][None])
    return jnp.square((hidden @ params["out"])[:, 0] - batch["y"])


@pytest.mark.slow
def test_a_network_against_its_dense_hessian():
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = {"in": draw(3, 4), "bias": draw(4), "out": draw(4, 1)}
    data, ids = {"x": draw(21, 3), "y": draw(21)}, np.arange(21) % 3
    surface = sharpness.loss_surface(network_loss, data, ids, block=4)
    flat, unravel = ravel_pytree(params)
    parts = jax.tree.map(lambda x: np.stack([x[ids == d] for d in range(3)]), data)
    hessian = lambda part: jax.hessian(lambda v: jnp.mean(network_loss(unravel(v), part)))(flat)
    dense = np.asarray(jax.jit(jax.vmap(hessian))(parts), np.float64)
    dense = np.concatenate([dense, dense.mean(0)[None]])
    out = sharpness.top_hessian_eigenvalues(surface, params, k=4, key=KEY, vectors=True)
    exact = np.linalg.eigvalsh(dense)[:, ::-1][:, :4]
    np.testing.assert_allclose(np.concatenate([out.values, out.mixture[None]]), exact, atol=2e-5 * exact.max())
    first = jax.tree.map(lambda v: v[0, 0], out.vectors)
    v = np.asarray(ravel_pytree(first)[0])
    np.testing.assert_allclose(dense[0] @ v, exact[0, 0] * v, atol=1e-4 * exact.max())
    trace = sharpness.hessian_trace(surface, params, key=KEY, samples=100, confidence=0.9999)
    low, high = (np.append(x, y) for x, y in zip(trace.values[1:], trace.mixture[1:], strict=True))
    assert ((low < np.trace(dense, axis1=1, axis2=2)) & (np.trace(dense, axis1=1, axis2=2) < high)).all()


def relu_loss(params, batch):
    hidden = jax.nn.relu(batch["x"] @ params["in"] + params["bias"][None])
    return jnp.square((hidden @ params["out"])[:, 0] - batch["y"])


@pytest.mark.slow
@pytest.mark.parametrize("adaptive", [True, False])
def test_only_adaptive_sharpness_ignores_how_relu_layers_are_scaled(adaptive):
    rng = np.random.default_rng(2)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = {"in": draw(3, 6), "bias": draw(6), "out": draw(6, 1)}
    scaled = {"in": 4 * params["in"], "bias": 4 * params["bias"], "out": params["out"] / 4}
    surface = sharpness.loss_surface(relu_loss, {"x": draw(20, 3), "y": draw(20)}, np.arange(20) % 2)
    for measure in (
        lambda p: sharpness.domain_sharpness(surface, p, rho=0.1, adaptive=adaptive).values,
        lambda p: sharpness.domain_sharpness(surface, p, rho=0.1, adaptive=adaptive, steps=5).values,
        lambda p: sharpness.average_sharpness(surface, p, 0.1, key=KEY, samples=8, adaptive=adaptive).values.mean,
    ):
        assert np.allclose(measure(params), measure(scaled), rtol=1e-3) == adaptive


@pytest.mark.slow
def test_the_same_key_gives_the_same_bits_and_another_one_others(surface, w):
    for measure in (
        lambda key: sharpness.average_sharpness(surface, w, 0.1, key=key, samples=3).samples,
        lambda key: sharpness.hessian_trace(surface, w, key=key, samples=3).samples,
        lambda key: sharpness.top_hessian_eigenvalues(surface, w, key=key, num_matvecs=3).values,
    ):
        np.testing.assert_array_equal(measure(KEY), measure(KEY))
        assert (measure(KEY) != measure(jax.random.key(4))).any()


@pytest.mark.slow
def test_the_block_does_not_matter(known, surface, w):
    other = sharpness.loss_surface(quadratic_loss, known.data, IDS, names=NAMES, held_out="sketch", block=4)
    for measure in (
        lambda s: sharpness.domain_sharpness(s, w, rho=0.3, steps=2).values,
        lambda s: sharpness.gradient_similarity(s, w).norms,
        lambda s: sharpness.hessian_trace(s, w, key=KEY, samples=2).samples,
    ):
        np.testing.assert_allclose(measure(surface), measure(other), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_smallest_rises_keep_their_digits():
    # The loss is 500 and rises by 1e-5: the difference of two float32 losses would be 0.
    surface = sharpness.loss_surface(lambda w, x: 1000 * x + w * (1 - x), np.arange(2, dtype=np.float32), [0, 0])
    out = sharpness.domain_sharpness(surface, np.float32(0), rho=2e-5)
    np.testing.assert_allclose(out.values, 1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_rise_that_is_not_finite_is_named(nans_allowed):
    data = np.array([0.0, 1.0], np.float32)
    surface = sharpness.loss_surface(lambda w, x: -jnp.log(1 - x * w), data, [0, 1], names=("art", "photo"))
    with pytest.raises(ValueError, match=r"the rise of photo is nan, the mixture is nan within rho=2: write a smaller"):
        sharpness.domain_sharpness(surface, np.float32(0.5), rho=2.0)
    with pytest.raises(ValueError, match=r"the rise of photo is nan under noise of sigma=3"):
        sharpness.average_sharpness(surface, np.float32(0.5), 3.0, key=KEY)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, w: sharpness.domain_sharpness(s, w, rho=0.0), "rho must be a positive length, got 0.0"),
        (lambda s, w: sharpness.domain_sharpness(s, w, steps=0), "steps must be at least 1"),
        (lambda s, w: sharpness.domain_sharpness(s, w, step_size=-1.0), "step_size must be positive"),
        (lambda s, w: sharpness.average_sharpness(s, w, -1.0, key=KEY), "sigma must be a positive"),
        (lambda s, w: sharpness.average_sharpness(s, w, key=KEY, samples=1), "samples must be at least 2"),
        (lambda s, w: sharpness.hessian_trace(s, w, key=KEY, confidence=95), "confidence must lie between"),
        (lambda s, w: sharpness.top_hessian_eigenvalues(s, w, k=6, key=KEY), "k=6 and num_matvecs=5: write 1 <= k"),
        (lambda s, w: sharpness.top_hessian_eigenvalues(s, w, key=KEY, num_matvecs=9), "<= 5, the number of param"),
    ],
)
def test_bad_options_are_named(surface, w, call, message):
    with pytest.raises(ValueError, match=message):
        call(surface, w)
