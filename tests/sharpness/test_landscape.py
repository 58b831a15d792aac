"""Directions and landscapes against closed forms and invariances; measures that were interrupted go on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import IDS, NAMES, quadratic_loss

from disam_jax import sharpness

KEY = jax.random.key(5)
PARAMS = {
    "conv": np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32),
    "dense": np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32),
    "bias": np.arange(1.0, 4.0, dtype=np.float32),
    "scale": np.float32(2.0),
}


@pytest.mark.slow
@pytest.mark.parametrize(("vectors", "bias", "scale"), [("zero", 0, 0), ("norm", np.sqrt(14), 2)])
def test_filters_have_the_norms_of_the_weights(vectors, bias, scale):
    one, other = sharpness.random_directions(PARAMS, KEY, vectors=vectors)
    for d in (one, other):
        for name in ("conv", "dense"):
            axes = tuple(range(d[name].ndim - 1))
            norms = [np.sqrt((np.asarray(x) ** 2).sum(axes)) for x in (d[name], PARAMS[name])]
            np.testing.assert_allclose(*norms, rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(d["bias"]), bias, rtol=1e-5)
        np.testing.assert_allclose(abs(d["scale"]), scale, rtol=1e-5)
    assert not np.allclose(one["dense"], other["dense"])


def test_directions_depend_on_the_key_alone():
    again = sharpness.random_directions(PARAMS, KEY)
    for a, b in zip(jax.tree.leaves(sharpness.random_directions(PARAMS, KEY)), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(sharpness.random_directions(PARAMS, jax.random.key(6))[0]["dense"], again[0]["dense"])


def pruned(**change):
    return PARAMS | {"dense": PARAMS["dense"] * np.array([1, 0, 1], np.float32)} | change


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        (pruned(), {}, r"params\['dense'\] has 1 of 3 filters of norm zero"),
        (PARAMS | {"bias": np.zeros(3, np.float32)}, {"vectors": "norm"}, r"params\['bias'\] has 1 of 1 filters"),
        ({"bias": PARAMS["bias"]}, {}, "the direction is empty"),
        ({"dense": np.zeros((2, 2), np.float32)}, {"allow_zero_filters": True}, "the direction is empty"),
        ({}, {}, "params has no arrays"),
        (PARAMS, {"vectors": "layer"}, "vectors must be one of 'zero', 'norm', got 'layer'"),
        (PARAMS, {"number": 0}, "number must be at least 1"),
    ],
)
def test_directions_that_lead_nowhere_are_refused(params, options, message):
    with pytest.raises(ValueError, match=message):
        sharpness.random_directions(params, KEY, **options)


def test_zero_filters_stay_where_they_are_if_allowed():
    (d,) = sharpness.random_directions(pruned(), KEY, 1, allow_zero_filters=True)
    np.testing.assert_array_equal(np.abs(np.asarray(d["dense"])).max(0) > 0, [True, False, True])


def test_a_plane_is_the_closed_form(known, surface, w):
    directions = [np.eye(5, dtype=np.float32)[0], np.array([0, 1, -1, 0, 2], np.float32)]
    out = sharpness.loss_landscape(surface, w, directions, extent=(-0.5, 1.5), points=3)
    np.testing.assert_allclose(out.x, [-0.5, 0.5, 1.5])
    exact = [[known.losses(w + x * directions[0] + y * directions[1]) for x in out.x] for y in out.y]
    np.testing.assert_allclose(out.losses, exact, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(out.mixture, np.asarray(exact)[..., :2].mean(-1), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(out.centre, known.losses(w), rtol=1e-5)


@pytest.mark.slow
def test_far_losses_that_are_not_finite_stay(nans_allowed):
    x = np.array([0.0, 1.0], np.float32)
    surface = sharpness.loss_surface(lambda w, x: -jnp.log(1 - x * w), x, [0, 1], held_out=1)
    out = sharpness.loss_landscape(surface, np.float32(0), [np.float32(1)], extent=2.0, points=5)
    np.testing.assert_array_equal(np.isfinite(out.losses), [[True, w < 1] for w in out.x])
    np.testing.assert_array_equal(out.mixture, 0)  # the domain without a share has no part in it


def relu_loss(params, batch):
    hidden = jax.nn.relu(batch["x"] @ params["in"])
    return jnp.square((hidden @ params["out"])[:, 0] - batch["y"])


@pytest.mark.slow
def test_filter_normalised_landscapes_ignore_how_relu_layers_are_scaled():
    rng = np.random.default_rng(2)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = {"in": draw(3, 6), "out": draw(6, 1)}
    surface = sharpness.loss_surface(relu_loss, {"x": draw(20, 3), "y": draw(20)}, np.arange(20) % 2)

    def landscapes(params):
        plain = jax.tree.map(lambda x: jax.random.normal(KEY, x.shape), params)
        for directions in (sharpness.random_directions(params, KEY), [plain]):
            yield sharpness.loss_landscape(surface, params, directions, points=4).losses

    scaled = {"in": 4 * params["in"], "out": params["out"] / 4}
    (a, plain_a), (b, plain_b) = landscapes(params), landscapes(scaled)
    np.testing.assert_allclose(a, b, rtol=1e-4)
    assert not np.allclose(plain_a, plain_b, rtol=0.1)


@pytest.mark.parametrize(
    ("directions", "options", "message"),
    [
        (lambda w: [0 * w], {}, r"directions\[0\] is empty: it is zero everywhere"),
        (lambda w: [w, w * np.nan], {}, r"directions\[1\] is not finite"),
        (lambda w: [w, -2 * w], {}, "the two directions are parallel"),
        (lambda w: [w[:3]], {}, r"directions\[0\] has shape \(3,\), but params has \(5,\)"),
        (lambda w: [{"w": w}], {}, r"directions\[0\] must have the structure of params"),
        (lambda w: [w, w, w], {}, "one or two trees"),
        (lambda w: [w], {"points": 1}, "points must be at least 2"),
        (lambda w: [w], {"extent": -1.0}, "extent must be a positive number"),
    ],
)
def test_bad_directions_and_grids_are_named(surface, w, directions, options, message, nans_allowed):
    with pytest.raises(ValueError, match=message):
        sharpness.loss_landscape(surface, w, directions(w), **options)


class StoppedError(Exception):
    pass


def stop_after(number):
    def progress(what, done, total):
        if done == number:
            raise StoppedError

    return progress


MEASURES = {
    "landscape": lambda s, w, **o: sharpness.loss_landscape(s, w, [w, w[::-1]], points=4, **o).losses,
    "worst": lambda s, w, **o: sharpness.domain_sharpness(s, w, rho=0.3, steps=2, **o).values,
    "average": lambda s, w, **o: sharpness.average_sharpness(s, w, 0.1, key=KEY, samples=4, **o).samples,
    "trace": lambda s, w, **o: sharpness.hessian_trace(s, w, key=KEY, samples=4, **o).samples,
    "eigenvalues": lambda s, w, **o: sharpness.top_hessian_eigenvalues(s, w, key=KEY, vectors=True, **o).vectors,
}


@pytest.mark.parametrize(
    "measure", [name if name == "landscape" else pytest.param(name, marks=pytest.mark.slow) for name in MEASURES]
)
def test_an_interrupted_measure_goes_on_from_its_file(surface, w, tmp_path, measure):
    call, out, seen = MEASURES[measure], tmp_path / "new" / "part.npz", []
    with pytest.raises(StoppedError):
        call(surface, w, out=out, progress=stop_after(2))
    resumed = call(surface, w, out=out, progress=lambda *step: seen.append(step[1:]))
    assert seen == [(2, 4), (3, 4), (4, 4)]
    np.testing.assert_array_equal(resumed, call(surface, w))
    seen.clear()
    call(surface, w, out=out, progress=lambda *step: seen.append(step[1:]))
    assert seen == [(4, 4)]
    assert [path.name for path in out.parent.iterdir()] == ["part.npz"]


@pytest.mark.slow
def test_more_draws_go_on_from_fewer(surface, w, tmp_path):
    out = tmp_path / "draws.npz"
    call = lambda samples, **o: sharpness.average_sharpness(surface, w, 0.1, key=KEY, samples=samples, **o).samples
    few = call(2, out=out)
    more = call(3, out=out)
    np.testing.assert_array_equal(more[:2], few)
    np.testing.assert_array_equal(more, call(3))
    np.testing.assert_array_equal(call(2, out=out), few)


@pytest.mark.slow
def test_a_file_of_something_else_is_refused(known, surface, w, tmp_path):
    out = tmp_path / "line.npz"
    call = lambda s=surface, w=w, **o: sharpness.loss_landscape(s, w, [np.ones_like(w)], points=3, out=out, **o)
    call()
    with pytest.raises(ValueError, match="holds another measure than this loss landscape: of other parameters"):
        call(w=w + 1)
    with pytest.raises(ValueError, match="holds another measure"):
        call(extent=2.0)
    fewer = jax.tree.map(lambda x: x + 1, known.data)
    with pytest.raises(ValueError, match="holds another measure"):
        call(sharpness.loss_surface(quadratic_loss, fewer, IDS, names=NAMES, held_out=2))
    other = sharpness.loss_surface(lambda w, b: 2 * quadratic_loss(w, b), known.data, IDS, names=NAMES, held_out=2)
    with pytest.raises(ValueError, match="was measured with another loss_fn"):
        call(other)
    call(sharpness.loss_surface(quadratic_loss, known.data, IDS, names=NAMES, held_out=2, block=3))
    for content in (b"", b"not a zip", out.read_bytes()[:-40]):
        out.write_bytes(content)
        with pytest.raises(ValueError, match=r"line.npz holds no measure of disam_jax.sharpness: delete it"):
            call()
