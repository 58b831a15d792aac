"""Networks behind the seam: forward passes against numpy, dropout, modes, many at once, inputs, names, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import slow

import disam_jax
from disam_jax.dg.errors import InputError
from disam_jax.dg.models.adapter import from_nnx
from disam_jax.dg.models.conv import platform_convolution, product_convolution
from disam_jax.dg.models.convnet import ConvNet
from disam_jax.dg.models.inputs import images, to_float, vectors
from disam_jax.dg.models.mlp import MLP
from disam_jax.dg.models.norm import make_norm
from disam_jax.dg.models.registry import MODELS, make_network

pytestmark = pytest.mark.dealt

KEY, OTHER = jax.random.key(1), jax.random.key(2)
IMAGE = (8, 6, 3)
LAYOUT = ("NHWC", "HWIO", "NHWC")
CASES = [
    ("mlp", (7,), {"hidden": (6, 5)}),
    ("mlp", IMAGE, {"hidden": (5,)}),
    ("linear", (7,), {}),
    ("linear", IMAGE, {}),
    ("conv", IMAGE, {"widths": (4, 5)}),
    ("conv", IMAGE, {"widths": (4, 5), "norm": "batch"}),
    ("conv", IMAGE, {"widths": (4, 8), "norm": "group"}),
    ("conv", (8, 6, 1), {"widths": (4,)}),
]
FEATURES = [5, 5, 7, 144, 5, 5, 8, 4]


def pixels(shape, n=5, seed=0):
    return np.random.default_rng(seed).random((n, *shape)).astype(np.float32)


def started(name, shape, **options):
    """A network with parameters and statistics that are nowhere 0 or 1, where mistakes would not show."""
    network = make_network(name, shape, 4, **options)
    params, state = jax.eval_shape(network.init, KEY)
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda w: jnp.asarray(rng.normal(0.1, 0.5, w.shape), jnp.float32), params)
    return network, params, jax.tree.map(lambda s: jnp.asarray(rng.uniform(0.5, 1.5, s.shape), jnp.float32), state)


def applied(network):
    return jax.jit(network.apply, static_argnums=4)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def convolved(x, kernel, stride, pad):
    """One output after the other, in float64."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    size = kernel.shape[0]
    rows, columns = ((length - size) // stride + 1 for length in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size, :]
            out[:, i, j] = np.einsum("nhwc,hwcd->nd", patch, np.asarray(kernel, np.float64))
    return out


def normalised(x):
    return (x - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])


@pytest.mark.parametrize("number", [0, 3, 5, *slow(1, 2, 4, 6, 7)])
def test_shapes_dtypes_and_a_state_that_keeps_its_form(number):
    (name, shape, options), width = CASES[number], FEATURES[number]
    network, params, state = started(name, shape, dropout=0.3, **options)
    x = jnp.asarray(pixels(shape))
    for train in (True, False):
        out = applied(network)(params, state, x, KEY, train)
        assert (out.logits.shape, out.features.shape) == ((5, 4), (5, width))
        assert out.logits.dtype == out.features.dtype == jnp.float32
        assert jax.tree.structure(out.state) == jax.tree.structure(state)
        assert jax.tree.map(jnp.shape, out.state) == jax.tree.map(jnp.shape, state)
        # The last layer alone makes the same logits of the features.
        np.testing.assert_allclose(jax.jit(network.head)(params, state, out.features), out.logits, rtol=1e-5, atol=1e-6)
    equal(out.state, state)
    assert all(type(leaf) is not nnx.Variable for leaf in jax.tree.leaves((params, state)))


def test_mlp_against_numpy():
    network, params, state = started("mlp", (7,), hidden=(6, 5))
    x = pixels((7,))
    out = applied(network)(params, state, jnp.asarray(x), KEY, True)
    for place in (0, 1):
        layer = params["hidden"][place]
        x = np.maximum(x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0.0)
    np.testing.assert_allclose(out.features, x, rtol=1e-5)
    np.testing.assert_allclose(
        out.logits, x @ np.asarray(params["fc"]["kernel"]) + np.asarray(params["fc"]["bias"]), rtol=1e-5
    )
    assert state == {}


def test_linear_head_against_numpy():
    network, params, state = started("linear", (3, 2))
    x = pixels((3, 2))
    out = applied(network)(params, state, jnp.asarray(x), KEY, True)
    np.testing.assert_array_equal(out.features, x.reshape(5, 6))
    expected = x.reshape(5, 6) @ np.asarray(params["fc"]["kernel"]) + np.asarray(params["fc"]["bias"])
    np.testing.assert_allclose(out.logits, expected, rtol=1e-5)


def test_convnet_against_loops():
    network, params, state = started("conv", (9, 6, 3), widths=(4, 5))
    x = pixels((9, 6, 3))
    out = applied(network)(params, state, jnp.asarray(x), KEY, True)
    x = normalised(x)
    for place in (0, 1):
        layer = params["convs"][place]
        x = np.maximum(convolved(x, layer["kernel"], stride=2, pad=1) + np.asarray(layer["bias"]), 0.0)
    np.testing.assert_allclose(out.features, x.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(
        out.logits, x.mean((1, 2)) @ np.asarray(params["fc"]["kernel"]) + np.asarray(params["fc"]["bias"]), rtol=1e-5
    )


@pytest.mark.parametrize("convolve", [product_convolution, platform_convolution])
@pytest.mark.parametrize("form", [(3, 2, 1), *slow((3, 1, 1), (1, 2, 0), (7, 2, 3))])
def test_convolution_and_its_gradient(convolve, form):
    size, stride, pad = form
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 8, 3)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 3, 4)).astype(np.float32)

    def as_nnx_calls(x, kernel):
        return convolve(x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=LAYOUT)

    out, pullback = jax.vjp(jax.jit(as_nnx_calls), jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(out, convolved(x, kernel, stride, pad), rtol=1e-4, atol=1e-4)
    # Both are linear in each argument: <y, conv(x, k)> is <x, its pullback to x> and <k, its pullback to k>.
    y = rng.normal(size=out.shape).astype(np.float32)
    inner = np.vdot(y, convolved(x, kernel, stride, pad))
    for argument, gradient in zip((x, kernel), pullback(jnp.asarray(y)), strict=True):
        probe = rng.normal(size=argument.shape).astype(np.float32)
        moved = convolved(probe, kernel, stride, pad) if argument is x else convolved(x, probe, stride, pad)
        np.testing.assert_allclose(np.vdot(gradient, argument), inner, rtol=1e-4)
        np.testing.assert_allclose(np.vdot(gradient, probe), np.vdot(y, moved), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("platform", "own"), [("cpu", False), ("cuda", True)])
def test_an_accelerator_has_its_own_convolution(platform, own):
    def convolve(x, kernel):
        return platform_convolution(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=LAYOUT)

    traced = jax.jit(convolve).trace(jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4)))
    lowered = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in lowered) is own
    assert traced.jaxpr.out_avals[0].shape == (2, 4, 4, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "path", "std"),
    [
        (lambda: make_network("mlp", (400,), 300, hidden=(300,)), ("hidden", 0), (2 / 400) ** 0.5),
        (lambda: make_network("mlp", (400,), 300, hidden=(300,)), ("fc",), (2 / 300) ** 0.5),
        (lambda: make_network("conv", (4, 4, 3), 9, widths=(64, 96)), ("convs", 1), (2 / (9 * 64)) ** 0.5),
        (lambda: make_network("linear", (400,), 300), ("fc",), (1 / 3 / 400) ** 0.5),
    ],
    ids=["mlp-hidden", "mlp-out", "conv", "head"],
)
def test_initial_weights(network, path, std):
    layer, _ = jax.jit(network().init)(KEY)
    for name in path:
        layer = layer[name]
    np.testing.assert_allclose(np.std(layer["kernel"]), std, rtol=0.02)
    assert abs(np.mean(layer["kernel"])) < 0.02 * std
    assert not np.any(layer["bias"])


@pytest.mark.parametrize(
    "case",
    [("mlp", (7,), {"hidden": (64, 64)}), *slow(("linear", (400,), {}), ("conv", IMAGE, {"widths": (64,)}))],
)
def test_dropout_follows_the_key_and_the_mode(case):
    name, shape, options = case
    network, params, state = started(name, shape, dropout=0.5, **options)
    apply = applied(network)
    x = jnp.asarray(pixels(shape))
    first, again, other = (apply(params, state, x, key, True).features for key in (KEY, KEY, OTHER))
    np.testing.assert_array_equal(first, again)
    assert np.any(np.asarray(first) != np.asarray(other))
    still = [apply(params, state, x, key, False) for key in (KEY, OTHER)]
    equal(*still)
    plain, *_ = started(name, shape, dropout=0.0, **options)
    equal(still[0], applied(plain)(params, state, x, KEY, True))


def test_dropout_keeps_the_expected_part_and_the_mean():
    network, params, state = started("linear", (1000,), dropout=0.3)
    features = network.apply(params, state, jnp.ones((50, 1000)), KEY, True).features
    # 50000 draws: the standard error is 0.002.
    np.testing.assert_allclose(np.mean(np.asarray(features) > 0), 0.7, atol=0.01)
    np.testing.assert_allclose(np.max(features), 1 / 0.7, rtol=1e-6)


@pytest.mark.slow
def test_the_layers_of_an_mlp_drop_different_units():
    network = from_nnx(lambda rngs: MLP(8, (64, 64), 3, dropout=0.5, rngs=rngs))
    ones = {"kernel": jnp.zeros((8, 64)), "bias": jnp.ones(64)}
    copy = {"kernel": jnp.eye(64), "bias": jnp.zeros(64)}
    params, state = network.init(KEY)
    params["hidden"] = {0: ones, 1: copy}
    kept = np.mean(np.asarray(network.apply(params, state, jnp.ones((64, 8)), KEY, True).features) > 0)
    # One mask used twice would keep a half.
    np.testing.assert_allclose(kept, 0.25, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("case", [(CASES[0], 0.0), *slow((CASES[0], 0.3), (CASES[5], 0.3), (CASES[6], 0.0))])
def test_three_runs_side_by_side_are_three_runs(case):
    (name, shape, options), dropout = case
    network = make_network(name, shape, 4, dropout=dropout, **options)
    keys = jax.random.split(jax.random.key(0), 3)
    xs = jnp.asarray(np.stack([pixels(shape, seed=seed) for seed in range(3)]))
    labels = jnp.arange(5, dtype=jnp.int32) % 4

    def trained(key, x):
        params, state = network.init(key)

        def step(carry, key):
            def loss(params):
                out = network.apply(params, carry[1], x, key, True)
                losses = optax.softmax_cross_entropy_with_integer_labels(out.logits, labels)
                return disam_jax.mean_by_domain(losses, labels % 2, 2), out.state

            (value, state), gradient = disam_jax.value_and_grad(loss, has_aux=True)(carry[0])
            return (jax.tree.map(lambda w, g: w - 0.1 * g, carry[0], gradient), state), value

        return jax.lax.scan(step, (params, state), jax.random.split(key, 4))

    together = jax.jit(jax.vmap(trained))(keys, xs)
    one_run = jax.jit(trained)
    alone = [one_run(key, x) for key, x in zip(keys, xs, strict=True)]
    assert dropout or np.all(np.asarray(together[1])[:, -1] < np.asarray(together[1])[:, 0])
    for run, one in enumerate(alone):
        part = jax.tree.map(lambda leaf: leaf[run], together)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), part, one)


def test_inputs_are_scaled_and_normalised():
    raw = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    np.testing.assert_allclose(images(jnp.asarray(raw)), normalised(raw / 255.0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(images(jnp.asarray(raw / 255.0, jnp.float32)), normalised(raw / 255.0), atol=1e-6)
    np.testing.assert_allclose(images(jnp.asarray(raw[..., :1])), raw[..., :1] / 255.0, rtol=1e-6)
    np.testing.assert_allclose(vectors(jnp.asarray(raw)), raw.reshape(2, 60) / 255.0, rtol=1e-6)
    numbers = jnp.asarray([[-3.0, 400.0]])
    np.testing.assert_array_equal(vectors(numbers), numbers)
    with pytest.raises(TypeError, match=r"uint8 or floating point, got int32\[1, 2\]"):
        to_float(jnp.ones((1, 2), jnp.int32))


@pytest.mark.parametrize("case", [CASES[5], *slow(CASES[1], CASES[3])])
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.bfloat16])
def test_other_dtypes_are_the_float32_that_they_stand_for(case, dtype):
    name, shape, options = case
    network, params, state = started(name, shape, **options)
    x = jnp.asarray(pixels(shape) * (255 if dtype == jnp.uint8 else 1)).astype(dtype)
    meant = x.astype(jnp.float32) / (255.0 if dtype == jnp.uint8 else 1.0)
    out, same = (applied(network)(params, state, inputs, KEY, True) for inputs in (x, meant))
    assert out.logits.dtype == out.features.dtype == jnp.float32
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), out, same)


class Normalising(nnx.Module):
    def __init__(self, norm, rngs):
        self.norm = make_norm(norm, 16, rngs)

    def __call__(self, x, key):
        return self.norm(x), x


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_norms_against_numpy(norm):
    network = from_nnx(lambda rngs: Normalising(norm, rngs))
    x = np.random.default_rng(0).normal(3.0, 2.0, (6, 4, 4, 16)).astype(np.float32)
    out = applied(network)(*jax.jit(network.init)(KEY), jnp.asarray(x), KEY, True).logits
    if norm == "batch":
        expected = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    elif norm == "frozen":
        expected = x / np.sqrt(1 + 1e-5)
    else:
        groups = x.reshape(6, 4, 4, 8, 2)
        mean, var = (f(groups, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
        expected = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    assert make_norm("none", 16, nnx.Rngs(0))(x) is x
    with pytest.raises(ValueError, match="norm must be one of none, batch, frozen, group, got 'layer'"):
        make_norm("layer", 16, nnx.Rngs(0))


@pytest.mark.slow
def test_frozen_norm_of_the_conv_is_the_frozen_layer():
    x = jnp.asarray(pixels(IMAGE))
    network, params, state = started("conv", IMAGE, norm="batch", frozen_norm=True)
    direct = from_nnx(lambda rngs: ConvNet(4, norm="frozen", rngs=rngs), images)
    out = applied(network)(params, state, x, KEY, True)
    equal(out, applied(direct)(params, state, x, KEY, True))
    equal(out.state, state)
    assert state


def test_init_follows_the_key():
    network = make_network("mlp", (7,), 4)
    init = jax.jit(network.init)
    equal(init(KEY), init(KEY))
    first, other = (init(key)[0]["fc"]["kernel"] for key in (KEY, OTHER))
    assert np.all(np.asarray(first) != np.asarray(other))


class Counting(nnx.Module):
    """Counts its training calls, to show that any variable that is no parameter is state."""

    def __init__(self, rngs):
        self.fc = nnx.Linear(3, 2, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.deterministic = False

    def __call__(self, x, key):
        if not self.deterministic:
            self.calls[...] = self.calls[...] + 1
        return self.fc(x).astype(jnp.bfloat16), x


def test_a_users_own_module():
    network = from_nnx(Counting)
    params, state = network.init(KEY)
    assert set(params) == {"fc"}
    assert set(state) == {"calls"}
    for train, calls in ((True, 1), (False, 0)):
        out = network.apply(params, state, jnp.ones((4, 3)), KEY, train)
        assert out.logits.dtype == jnp.float32
        assert int(out.state["calls"]) == calls
    assert int(state["calls"]) == 0
    pretrained = network._replace(init=lambda key: (jax.tree.map(jnp.zeros_like, params), state))
    out = pretrained.apply(*pretrained.init(KEY), jnp.ones((4, 3)), KEY, True)
    assert not np.any(np.asarray(out.logits, np.float32))


class Random(nnx.Module):
    def __init__(self, rngs):
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, key):
        return self.drop(x), x


def test_a_module_with_its_own_random_state_is_refused():
    with pytest.raises(ValueError, match=r"random state in drop\.rngs.*dropout\(x, rngs=key\)"):
        from_nnx(Random)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("vgg", IMAGE, {}, "unknown model 'vgg'; write one of mlp, linear, conv, resnet18, resnet50"),
        ("conv", (7,), {}, r"model conv needs images \[H, W, C\].*shape \[7\]; write one of mlp, linear"),
        ("resnet18", (7, 7), {}, r"model resnet18 needs images.*shape \[7, 7\]"),
        ("mlp", (7,), {"dropout": 1.0}, "dropout is 1.0; write a number from 0 to less than 1"),
        ("mlp", (7,), {"dropout": -0.1}, "dropout is -0.1"),
        ("mlp", (7,), {"frozen_norm": True}, "model mlp has no BatchNorm"),
        ("conv", IMAGE, {"frozen_norm": True}, "frozen_norm needs BatchNorm, but norm is 'none'; write norm='batch'"),
        ("conv", IMAGE, {"norm": "layer"}, "norm is 'layer'; write one of none, batch, frozen, group"),
        ("conv", IMAGE, {"widths": ()}, r"widths is \(\); write positive integers"),
        ("mlp", (7,), {"hidden": (8, 0)}, r"hidden is \(8, 0\); write positive integers"),
        ("mlp", (7,), {"widths": (8,)}, "model mlp has no option 'widths'; it has hidden"),
        ("conv", IMAGE, {"small_input": True}, "model conv has no option 'small_input'; it has widths, norm"),
        ("linear", (7,), {"hidden": (8,)}, "model linear has no option 'hidden'; it has none of its own"),
    ],
)
def test_errors_name_what_to_write(name, shape, options, message):
    with pytest.raises(InputError, match=message) as error:
        make_network(name, shape, 4, **options)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_every_name_makes_a_network():
    for name in [name for name, model in MODELS.items() if model.make is not None]:  # shapes only: nothing is compiled
        network = make_network(name, (32, 32, 3), 4)
        params, state = jax.eval_shape(network.init, KEY)
        x = jax.ShapeDtypeStruct((5, 32, 32, 3), jnp.uint8)
        out = jax.eval_shape(lambda p, s, x, network=network: network.apply(p, s, x, KEY, True), params, state, x)
        assert out.logits.shape == (5, 4)
        assert MODELS[name].summary
