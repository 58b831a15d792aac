"""from_pretrained: which architecture, what is wrong with a checkpoint, and widths of the stored numbers."""

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from support import slow

from disam_jax.dg.errors import InputError
from disam_jax.dg.models.resnet import ResNet
from disam_jax.dg.pretrained import from_pretrained

DATA = Path(__file__).parent / "data"
HUGGING_FACE = DATA / "resnet-transformers-basic"
BARE = DATA / "resnet-torchvision-bottleneck" / "weights.safetensors"
WEIGHT = "resnet.encoder.stages.1.layers.0.layer.0.convolution.weight"


@pytest.fixture
def folder(tmp_path):
    """A copy of a checkpoint, to be spoiled."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(HUGGING_FACE / name, tmp_path)
    return tmp_path


def change_config(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def leaves(module):
    return nnx.to_pure_dict(nnx.state(module, (nnx.Param, nnx.BatchStat)))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, *slow(np.float16, np.float64)])
def test_stored_widths(folder, dtype):
    def cast(tensors):
        for key, tensor in tensors.items():
            if tensor.dtype == np.float32:
                tensors[key] = tensor.astype(dtype)

    change_tensors(folder, cast)
    loaded, whole = leaves(from_pretrained(folder)), leaves(from_pretrained(HUGGING_FACE))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(loaded))
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype).astype(np.float32), whole)
    jax.tree.map(np.testing.assert_array_equal, loaded, rounded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(WEIGHT), "no tensor for: layer2.0.conv1.kernel"),
        (lambda t: t.update({"resnet.more.weight": np.ones(2)}), "unexpected keys: resnet.more.weight"),
        (
            lambda t: t.update({WEIGHT: t[WEIGHT][:-1]}),
            r"misshapen: \S+ float32\[7, 4, 3, 3\] makes \[3, 3, 4, 7\] where layer2.0.conv1.kernel is \[3, 3, 4, 8\]",
        ),
        (
            lambda t: t.update({WEIGHT.removeprefix("resnet."): t[WEIGHT]}),
            rf"two keys for one variable: {WEIGHT.removeprefix('resnet.')} and {WEIGHT} for layer2.0.conv1.kernel",
        ),
        (lambda t: t.pop("classifier.1.bias"), "no tensor for: fc.bias"),
    ],
)
def test_tensors_that_do_not_fit(folder, change, message):
    change_tensors(folder, change)
    with pytest.raises(InputError, match=f"{folder} does not fit ResNet: {message}$"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("entries", "model", "message"),
    [
        ({"model_type": "bert"}, None, "is a checkpoint of bert; give one of clip, vit, resnet"),
        ({"model_type": "bert"}, "resnet", "is a checkpoint of bert; give one of resnet"),
        ({}, "vit", "is a checkpoint of resnet; give one of vit"),
        ({}, "resnet18", "is not resnet18 but a ResNet of BasicBlock"),
        ({"model_type": None, "architecture": "resnet50d"}, None, "is a checkpoint of resnet50d; give one of"),
        ({"model_type": None}, None, "config.json: has neither model_type nor architecture; write model="),
        ({"model_type": ["vit"]}, None, r"is a checkpoint of \['vit'\]"),
    ],
)
def test_another_architecture(folder, entries, model, message):
    change_config(folder, **entries)
    with pytest.raises(InputError, match=message):
        from_pretrained(folder, model=model)


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("model.safetensors", None, "config.json: no such file, so the architecture is unknown; .* model='resnet'"),
        ("model.safetensors", "vit", "config.json: no such file, but it tells the sizes of a vit"),
        (".", "clip", "config.json: no such file, but it tells the sizes of a clip"),
        (".", "resnet", "no config.json beside it, which tells the sizes of a ResNet"),
    ],
)
def test_no_config(folder, name, model, message):
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=message):
        from_pretrained(folder / name, model=model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet20"}, "unknown model 'resnet20'; write one of clip, vit, resnet, efficientnet, resnet18"),
        ({"num_classes": 3}, r"num_classes=3 makes a new head; write rngs=nnx.Rngs\(seed\)"),
        ({"num_classes": 0, "rngs": nnx.Rngs(0)}, "num_classes is 0; write a whole number above zero"),
        ({"width": 8}, "model resnet has no option 'width'; it has dropout, frozen_norm"),
        ({"revision": "main"}, "revision is 'main', but this is a path"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        from_pretrained(HUGGING_FACE, **options)


def test_a_bare_file_and_options():
    module = from_pretrained(BARE, model="resnet", dropout=0.25, frozen_norm=True)
    assert isinstance(module, ResNet)
    assert module.dropout.rate == 0.25
    assert type(module.bn1).__name__ == "FrozenBatchNorm"
