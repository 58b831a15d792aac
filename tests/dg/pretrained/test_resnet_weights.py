"""ResNets with loaded weights against torch: transformers' and torchvision's layouts, evaluating and training."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from support import slow

from disam_jax.dg.errors import InputError
from disam_jax.dg.models.inputs import images
from disam_jax.dg.models.resnet import BasicBlock, Bottleneck, ResNet
from disam_jax.dg.pretrained import from_pretrained
from disam_jax.dg.pretrained.files import Checkpoint
from disam_jax.dg.pretrained.resnet_keys import NAMED, resnet_recipe, sizes_by_config

DATA = Path(__file__).parent / "data"
KEY = jax.random.key(0)
TORCHVISION = ("resnet-torchvision-basic", "resnet-torchvision-bottleneck")
TRANSFORMERS = ("resnet-transformers-basic", "resnet-transformers-bottleneck")
BACKBONE = "resnet-transformers-backbone"


def load(name, **options):
    return from_pretrained(DATA / name, model="resnet" if name in TORCHVISION else None, **options)


def expected(name):
    with np.load(DATA / name / "expected.npz") as file:
        return dict(file)


def weights(name):
    (file,) = (DATA / name).glob("*.safetensors")
    return load_file(file)


def outputs(module, inputs, train):
    module.train() if train else module.eval()
    graph, params, state = nnx.split(module, nnx.Param, ...)

    # Runs once: what is not optimised is compiled in less time.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(params, state, inputs):
        model = nnx.merge(graph, params, state)
        features = model.features(images(inputs))
        logits = None if model.fc is None else model.fc(features)
        return logits, features, model.bn1.mean[...], model.bn1.var[...]

    return run(params, state, jnp.asarray(inputs))


def leaves(module):
    state = nnx.state(module, (nnx.Param, nnx.BatchStat))
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["resnet-torchvision-bottleneck", *slow(TORCHVISION[0], TRANSFORMERS[0], TRANSFORMERS[1])]
)
def test_evaluates_as_torch(name):
    known = expected(name)
    logits, features, *_ = outputs(load(name), known["images"], train=False)
    close(logits, known["logits"])
    close(features, known["features"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet-transformers-basic", *slow(TORCHVISION[0], TORCHVISION[1], TRANSFORMERS[1])])
def test_trains_as_torch(name):
    known, module = expected(name), load(name)
    before = np.asarray(module.bn1.var[...], np.float64)
    logits, features, mean, var = outputs(module, known["images"], train=True)
    close(logits, known["train_logits"])
    close(features, known["train_features"])
    close(mean, known["train_mean"])
    # torch's running variance takes in the unbiased variance of the batch, Flax's the biased one.
    count = known["train_count"]
    close(var, 0.9 * before + (known["train_var"] - 0.9 * before) * (count - 1) / count)


@pytest.mark.slow
def test_frozen_norm_trains_as_torch_evaluates():
    known = expected(TRANSFORMERS[0])
    module = load(TRANSFORMERS[0], frozen_norm=True)
    logits, *_, mean, _ = outputs(module, known["images"], train=True)
    close(logits, known["logits"])
    np.testing.assert_array_equal(mean, module.bn1.mean[...])


@pytest.mark.slow
def test_the_checkpoints_show_another_eps():
    known, module = expected(TRANSFORMERS[0]), load(TRANSFORMERS[0])
    for _, layer in nnx.iter_graph(module):
        if isinstance(layer, nnx.BatchNorm):
            assert layer.epsilon == 1e-5
            assert layer.momentum == 0.9
            layer.epsilon = 1e-6
    _, features, *_ = outputs(module, known["images"], train=False)
    assert np.max(np.abs(features - known["features"])) > 1e-5


@pytest.mark.slow
def test_a_backbone_has_features_and_no_logits():
    known, module = expected(BACKBONE), load(BACKBONE)
    logits, features, *_ = outputs(module, known["images"], train=False)
    assert logits is None
    close(features, known["features"])
    with pytest.raises(ValueError, match="this ResNet has no last layer"):
        module(jnp.zeros((1, 32, 32, 3), jnp.float32), KEY)


@pytest.mark.slow
def test_every_variable_is_a_tensor_of_the_file():
    for name in (*TORCHVISION, *TRANSFORMERS, BACKBONE):
        found = [np.sort(leaf, axis=None) for leaf in leaves(load(name)).values()]
        stored = [np.sort(v, axis=None) for k, v in weights(name).items() if not k.endswith("num_batches_tracked")]
        assert sorted(map(bytes, found)) == sorted(map(bytes, stored))


def test_prefix_is_optional(tmp_path):
    name = TRANSFORMERS[0]
    shutil.copy(DATA / name / "config.json", tmp_path)
    tensors = {key.removeprefix("resnet."): tensor for key, tensor in weights(name).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, leaves(from_pretrained(tmp_path)), leaves(load(name)))


@pytest.mark.slow
def test_timm_says_its_architecture(tmp_path):
    file = DATA / TORCHVISION[0] / "weights.safetensors"
    shutil.copy(file, tmp_path / "model.safetensors")
    config = {"architecture": "resnet18", "num_classes": 7, "pretrained_cfg": {"mean": [0.485, 0.456, 0.406]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    jax.tree.map(np.testing.assert_array_equal, leaves(from_pretrained(tmp_path)), leaves(load(TORCHVISION[0])))


@pytest.mark.slow
@pytest.mark.parametrize("name", [TORCHVISION[1], *slow(TRANSFORMERS[1])])
def test_new_head(name):
    kept = load(name)
    module = load(name, num_classes=3, rngs=nnx.Rngs(1))
    again = load(name, num_classes=3, rngs=nnx.Rngs(1))
    other = load(name, num_classes=3, rngs=nnx.Rngs(2))
    kernel = np.asarray(module.fc.kernel[...])
    bound = 1.0 / np.sqrt(len(kernel))
    assert kernel.shape == (kept.fc.kernel.shape[0], 3)
    assert 0.8 * bound < np.max(np.abs(kernel)) <= bound
    np.testing.assert_array_equal(kernel, again.fc.kernel[...])
    assert np.all(kernel != np.asarray(other.fc.kernel[...]))
    mine, theirs = leaves(module), leaves(kept)
    assert mine.keys() == theirs.keys()
    for key in mine.keys() - {"fc.kernel", "fc.bias"}:
        np.testing.assert_array_equal(mine[key], theirs[key])


@pytest.mark.slow
def test_a_backbone_gets_a_head():
    module = load(BACKBONE, num_classes=3, rngs=nnx.Rngs(1))
    assert module.fc.kernel.shape == (expected(BACKBONE)["features"].shape[1], 3)


@pytest.mark.slow
def test_parameters_in_bfloat16_statistics_in_float32():
    module = load(TORCHVISION[1], num_classes=3, rngs=nnx.Rngs(1), dtype=jnp.bfloat16)
    whole = leaves(load(TORCHVISION[1]))
    for path, leaf in leaves(module).items():
        statistic = path.endswith((".mean", ".var"))
        assert leaf.dtype == (np.float32 if statistic else jnp.bfloat16), path
        if not path.startswith("fc."):
            np.testing.assert_array_equal(leaf, whole[path].astype(leaf.dtype))


@pytest.mark.parametrize("name", slow(*NAMED))
def test_names_are_networks_of_torchvision(name):
    stages, block = NAMED[name]
    module = nnx.eval_shape(lambda: ResNet(stages, block, 1000, rngs=nnx.Rngs(0)))
    count = sum(int(np.prod(leaf.shape)) for _, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param)))
    # torchvision's documentation of the weights, num_params.
    assert (
        count
        == {
            "resnet18": 11_689_512,
            "resnet34": 21_797_672,
            "resnet50": 25_557_032,
            "resnet101": 44_549_160,
            "resnet152": 60_192_808,
        }[name]
    )


CONFIG = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"downsample_in_bottleneck": True}, "downsample_in_bottleneck is True, but only ResNets without it"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', but only relu"),
        ({"layer_type": "wide"}, "layer_type is 'wide', must be one of basic, bottleneck"),
        ({"hidden_sizes": [8, 24]}, r"hidden_sizes is \[8, 24\], but only \[8, 16\] is supported"),
        ({"depths": [1, 0]}, r"depths is \[1, 0\], must be whole numbers above zero"),
        ({"depths": 3}, "depths is 3, must be whole numbers"),
        ({"num_channels": True}, r"num_channels is \[True\]"),
    ],
)
def test_config_that_cannot_be(change, message):
    with pytest.raises(InputError, match=f"folder: config.json: {message}"):
        sizes_by_config(Checkpoint("folder", {**CONFIG, **change}, None, {}))


def test_left_out_entries_are_those_of_resnet50():
    sizes = sizes_by_config(Checkpoint("folder", {"model_type": "resnet"}, None, {}))
    assert sizes == ((3, 4, 6, 3), Bottleneck, 64, 3)
    assert sizes_by_config(Checkpoint("folder", CONFIG, None, {})).block is BasicBlock


@pytest.mark.parametrize(
    ("config", "preprocessor", "message"),
    [
        (None, {"image_mean": [0.5, 0.5, 0.5]}, r"preprocessor_config.json: image_mean is \[0.5, 0.5, 0.5\]"),
        (None, {"image_std": [0.5]}, r"preprocessor_config.json: image_std is \[0.5\]"),
        ({"pretrained_cfg": {"std": [0.5, 0.5, 0.5]}}, None, r"config.json: pretrained_cfg: std is \[0.5, 0.5, 0.5\]"),
    ],
)
def test_images_normalised_in_another_way(config, preprocessor, message):
    checkpoint = Checkpoint("folder", config, preprocessor, weights(TORCHVISION[0]))
    with pytest.raises(InputError, match=f"folder: {message}, but ResNets see images normalised by"):
        resnet_recipe(checkpoint, None)


@pytest.mark.parametrize(
    ("tensors", "name", "message"),
    [
        (
            {"a.weight": np.zeros(3)},
            None,
            "folder: has no conv1.weight, so it is not a ResNet; its keys are a.weight, ...",
        ),
        ({"conv1.weight": np.zeros((4, 3, 7, 7))}, None, "folder: has no layer1.0.conv1.weight"),
        ({"conv1.weight": np.zeros((4, 3))}, None, r"folder: conv1.weight is \[4, 3\], must have 4 dimensions"),
        (TORCHVISION[0], "resnet18", r"is not resnet18 but a ResNet of BasicBlock \(1, 1, 1, 1\), width 4"),
        (TRANSFORMERS[0], None, "folder: no config.json beside it, which tells the sizes of a ResNet"),
    ],
)
def test_tensors_of_something_else(tensors, name, message):
    tensors = weights(tensors) if isinstance(tensors, str) else tensors
    with pytest.raises(InputError, match=message):
        resnet_recipe(Checkpoint("folder", None, None, tensors), None, name)
