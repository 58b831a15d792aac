"""ResNets: torchvision's sizes, blocks against numpy, BatchNorm live, evaluating and frozen, a whole step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import slow

import disam_jax
from disam_jax.dg.models.adapter import from_nnx
from disam_jax.dg.models.inputs import images
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.models.resnet import BasicBlock, Bottleneck, ResNet

KEY = jax.random.key(1)
BLOCKS = [BasicBlock, Bottleneck]
MODES = ["train", "eval", "frozen"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(str(entry.key) for entry in path): leaf.shape for path, leaf in leaves}


@functools.cache
def shapes(name):
    """Of the parameters and of the running statistics."""
    return jax.eval_shape(make_network(name, (224, 224, 3), 1000).init, KEY)


@pytest.mark.parametrize(
    ("name", "num_params", "num_statistics", "features"),
    # torchvision's counts; its BatchNorm layers have 4800 and 26560 channels.
    [
        ("resnet18", 11_689_512, 2 * 4_800, 512),
        pytest.param("resnet50", 25_557_032, 2 * 26_560, 2048, marks=pytest.mark.slow),
    ],
)
def test_as_many_parameters_as_torchvision(name, num_params, num_statistics, features):
    params, state = shapes(name)
    assert count(params) == num_params
    assert count(state) == num_statistics
    assert params["fc"]["kernel"].shape == (features, 1000)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "resnet18",
            {
                "conv1.kernel": (7, 7, 3, 64),
                "layer1.0.conv1.kernel": (3, 3, 64, 64),
                "layer2.0.downsample.0.kernel": (1, 1, 64, 128),
                "layer2.0.downsample.1.scale": (128,),
                "layer4.1.bn2.bias": (512,),
            },
        ),
        pytest.param(
            "resnet50",
            {
                "layer1.0.downsample.0.kernel": (1, 1, 64, 256),
                "layer3.5.conv3.kernel": (1, 1, 256, 1024),
                "layer4.0.conv2.kernel": (3, 3, 512, 512),
                "fc.bias": (1000,),
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_names_as_torchvision(name, expected):
    params, state = shapes(name)
    found = paths(params)
    assert {key: found[key] for key in expected} == expected
    assert not any(key.startswith("layer1.1.downsample") for key in found)
    assert paths(state)["bn1.mean"] == paths(state)["bn1.var"] == (64,)


def convolved(x, kernel, stride):
    """One output after the other, in float64."""
    kernel = np.asarray(kernel, np.float64)
    size, pad = len(kernel), len(kernel) // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = ((length - size) // stride + 1 for length in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size, :]
            out[:, i, j] = np.einsum("nhwc,hwcd->nd", patch, kernel)
    return out


def pooled(x):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    rows, columns = ((length - 3) // 2 + 1 for length in x.shape[1:3])
    places = [[x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2)) for j in range(columns)] for i in range(rows)]
    return np.moveaxis(np.array(places), 2, 0)


class Reference:
    """A ResNet's forward pass in plain numpy, collecting the running statistics as they should become."""

    def __init__(self, params, state, mode):
        self.params, self.state, self.mode = params, jax.tree.map(np.array, state), mode

    def norm(self, x, at):
        params, state = self.params, self.state
        for name in at:
            params, state = params[name], state[name]
        mean, var = state["mean"], state["var"]
        if self.mode == "train":
            mean, var = x.mean((0, 1, 2)), ((x - x.mean((0, 1, 2))) ** 2).mean((0, 1, 2))
            state["mean"] = 0.9 * state["mean"] + 0.1 * mean
            state["var"] = 0.9 * state["var"] + 0.1 * var
        return (x - mean) / np.sqrt(var + 1e-5) * np.asarray(params["scale"]) + np.asarray(params["bias"])

    def unit(self, x, at, number, stride):
        kernel = self.params
        for name in (*at, f"conv{number}"):
            kernel = kernel[name]
        return self.norm(convolved(x, kernel["kernel"], stride), (*at, f"bn{number}"))

    def block(self, x, at, strides):
        y = x
        for number, stride in enumerate(strides, 1):
            y = self.unit(np.maximum(y, 0.0), at, number, stride)
        params = self.params[at[0]][at[1]]
        if "downsample" in params:
            x = convolved(x, params["downsample"][0]["kernel"], max(strides))
            x = self.norm(x, (*at, "downsample", 1))
        return np.maximum(y + x, 0.0)

    def __call__(self, x, stages, block, small_input):
        x = np.maximum(self.unit(x, (), 1, 1 if small_input else 2), 0.0)
        x = x if small_input else pooled(x)
        for stage, blocks in enumerate(stages):
            for number in range(blocks):
                stride = 2 if stage > 0 and number == 0 else 1
                strides = (stride, 1) if block is BasicBlock else (1, stride, 1)
                x = self.block(x, (f"layer{stage + 1}", number), strides)
        features = x.mean((1, 2))
        return features, features @ np.asarray(self.params["fc"]["kernel"]) + np.asarray(self.params["fc"]["bias"])


def tiny(block, stages=(1,), small_input=False, **options):
    network = from_nnx(
        lambda rngs: ResNet(stages, block, 3, width=4, small_input=small_input, rngs=rngs, **options), images
    )
    params, state = jax.eval_shape(network.init, KEY)
    # Nowhere scale 1, bias 0, mean 0 or variance 1, where mistakes would not show.
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda w: jnp.asarray(rng.normal(0.1, 0.5, w.shape), jnp.float32), params)
    return network, params, jax.tree.map(lambda s: jnp.asarray(rng.uniform(0.5, 1.5, s.shape), jnp.float32), state)


def applied(network):
    return jax.jit(network.apply, static_argnums=4)


def pictures(n=4, size=16):
    return np.random.default_rng(0).random((n, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "case",
    [
        (BasicBlock, (1, 1), "train", False),
        *slow((BasicBlock, (1,), "eval", True)),
        *slow((Bottleneck, (2,), "frozen", True)),
        *slow(*((block, (1, 2), mode, small) for block in BLOCKS for mode in MODES for small in (False, True))),
    ],
)
def test_against_numpy(case):
    block, stages, mode, small_input = case
    network, params, state = tiny(block, stages, small_input, frozen_norm=mode == "frozen")
    x = pictures(size=8 if small_input else 16)
    out = applied(network)(params, state, jnp.asarray(x), KEY, mode != "eval")
    reference = Reference(params, state, mode)
    normalised = (x - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    features, logits = reference(normalised, stages, block, small_input)
    np.testing.assert_allclose(out.features, features, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(out.logits, logits, rtol=1e-3, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), out.state, reference.state)
    if mode == "train":
        moved = jax.tree.map(lambda a, b: bool(np.all(np.asarray(a) != np.asarray(b))), out.state, state)
        assert all(jax.tree.leaves(moved))
    else:
        jax.tree.map(np.testing.assert_array_equal, out.state, state)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, *slow(False)])
def test_scale_and_bias_are_trained_live_or_frozen(frozen):
    network, params, state = tiny(BasicBlock, (1,), frozen_norm=frozen)
    x = jnp.asarray(pictures())

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(
            network.apply(params, state, x, KEY, True).logits, jnp.arange(4, dtype=jnp.int32) % 3
        ).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    for layer in (gradient["bn1"], gradient["layer1"][0]["bn2"]):
        assert np.any(np.asarray(layer["scale"]) != 0.0)
        assert np.any(np.asarray(layer["bias"]) != 0.0)
    # One step down the gradient lowers the loss by as much as it says.
    norm = optax.tree.norm(gradient)
    below = jax.jit(loss)(jax.tree.map(lambda w, g: w - 1e-3 / norm * g, params, gradient))
    np.testing.assert_allclose(value - below, 1e-3 * norm, rtol=0.05)


@pytest.mark.slow
def test_frozen_differs_from_live_in_training_only():
    live, params, state = tiny(BasicBlock, (1,))
    frozen, *_ = tiny(BasicBlock, (1,), frozen_norm=True)
    x = jnp.asarray(pictures())
    evaluated = applied(live)(params, state, x, KEY, False).logits
    np.testing.assert_array_equal(applied(frozen)(params, state, x, KEY, True).logits, evaluated)
    assert not np.allclose(applied(live)(params, state, x, KEY, True).logits, evaluated, atol=1e-3)


@pytest.mark.slow
def test_dropout_is_before_the_last_layer():
    network, params, state = tiny(BasicBlock, (1,), frozen_norm=True, dropout=0.5)
    x = jnp.asarray(pictures())
    apply = applied(network)
    whole = np.asarray(apply(params, state, x, KEY, False).features)
    dropped = apply(params, state, x, KEY, True)
    features = np.asarray(dropped.features)
    kept = features != 0.0
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(features[kept], 2.0 * whole[kept], rtol=1e-5)
    fc = params["fc"]
    np.testing.assert_allclose(
        dropped.logits, features @ np.asarray(fc["kernel"]) + np.asarray(fc["bias"]), rtol=1e-4, atol=1e-5
    )
    jax.tree.map(np.testing.assert_array_equal, apply(params, state, x, KEY, True), dropped)


@pytest.mark.slow
def test_initial_weights():
    network = from_nnx(lambda rngs: ResNet((1,), BasicBlock, 500, rngs=rngs), images)
    params, state = jax.jit(network.init)(KEY)
    for layer, fan_out in ((params["conv1"], 49 * 64), (params["layer1"][0]["conv2"], 9 * 64)):
        np.testing.assert_allclose(np.std(layer["kernel"]), (2 / fan_out) ** 0.5, rtol=0.03)
    np.testing.assert_allclose(np.max(np.abs(params["fc"]["kernel"])), 1 / 8, rtol=1e-3)
    assert np.all(np.asarray(params["bn1"]["scale"]) == 1.0)
    assert np.all(np.asarray(state["bn1"]["var"]) == 1.0)


@pytest.mark.slow
def test_runs_side_by_side():
    network, *_ = tiny(BasicBlock)
    keys = jax.random.split(jax.random.key(0), 3)
    params, state = jax.vmap(network.init)(keys)
    x = jnp.asarray(pictures())
    together = jax.jit(jax.vmap(lambda p, s, k: network.apply(p, s, x, k, True)))(params, state, keys)
    for run in range(3):
        p, s, one = jax.tree.map(lambda leaf, run=run: leaf[run], (params, state, together))
        alone = network.apply(p, s, x, keys[run], True)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, alone)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False])
def test_a_step_of_resnet18(frozen):
    network = make_network("resnet18", (32, 32, 3), 4, dropout=0.1, frozen_norm=frozen, small_input=True)
    params, state = network.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 256, (12, 32, 32, 3), np.uint8))
    labels = jnp.arange(12, dtype=jnp.int32) % 4
    domains = jnp.arange(12, dtype=jnp.int32) // 4

    def loss(params, state, key):
        out = network.apply(params, state, x, key, True)
        losses = optax.softmax_cross_entropy_with_integer_labels(out.logits, labels)
        return disam_jax.mean_by_domain(losses, domains, 3), out.state

    step = jax.jit(disam_jax.value_and_grad(loss, has_aux=True))
    (value, moved), gradient = step(params, state, KEY)
    assert np.isfinite(value)
    assert all(bool(jnp.any(leaf != 0.0)) for leaf in jax.tree.leaves(gradient))
    # The statistics are those of the pass at w alone.
    expected = applied(network)(params, state, x, KEY, True).state
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), moved, expected)
    unchanged = jax.tree.map(lambda a, b: bool(np.all(np.asarray(a) == np.asarray(b))), moved, state)
    assert all(jax.tree.leaves(unchanged)) is frozen


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18"])
def test_evaluates_one_by_one_as_all_at_once(name):
    network = make_network(name, (32, 32, 3), 4)
    params, state = network.init(jax.random.key(0))
    apply = jax.jit(lambda x: network.apply(params, state, x, KEY, False).logits)
    x = jnp.asarray(pictures(4, 32))
    np.testing.assert_allclose(apply(x)[1:2], apply(x[1:2]), rtol=1e-3, atol=1e-4)
