"""Damaged checkpoints: an error in one line, or exactly what an independent reader reads."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from fuzz import cases, damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save, save_file

from disam_jax.dg.errors import InputError
from disam_jax.dg.pretrained import from_pretrained
from disam_jax.dg.pretrained.files import INDEX, Tensors, read_checkpoint
from disam_jax.dg.pretrained.load import recipe_of
from disam_jax.dg.pretrained.tiny import write_tiny_vit
from disam_jax.dg.pretrained.vit_keys import vit_config

pytestmark = pytest.mark.slow

CASES = cases(2500)
TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.weight": np.ones((2, 1, 2), np.float16),
    "c": np.arange(3).astype(ml_dtypes.bfloat16),
    "d": np.int64(7).reshape(1),
    "e": np.zeros((0, 2)),
}
PARTS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
# Values under any key: of every type, large, nested, and near to right ones.
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 40)
    | st.sampled_from([2**31, 2**63, 2**64, 10**30, 1e300])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["gelu", "quick_gelu", "relu", "vit", "F32", "BF16", "../x.safetensors", *PARTS.values()]),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=4), values, max_size=3),
    max_leaves=8,
)

fuzzed = settings(
    max_examples=CASES,
    deadline=10_000,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    for key, name in PARTS.items():
        save_file({key: np.float32([ord(key)])}, folder / name)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return write_tiny_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def config_text(vit):
    return (vit / "config.json").read_bytes()


def refused_or(read, path, check):
    """Reads, and checks what was read, or that the error names the path in one line."""
    try:
        found = read()
    except InputError as error:
        message = str(error)
    else:
        check(found)
        return
    assert str(path) in message
    assert message.isprintable()
    assert len(message) < 5000


def changed(data, value):
    """A JSON value with one of its parts replaced, at any depth, or one more key."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 3)):
        key = data.draw(st.sampled_from(sorted(value)) | st.text(max_size=4))
        return {**value, key: changed(data, value.get(key))}
    if isinstance(value, list) and value and data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(value) - 1))
        return [*value[:place], changed(data, value[place]), *value[place + 1 :]]
    return data.draw(VALUES)


# safetensors


def check_tensors(path):
    """The format has no checksum: the same bytes must be read as the format's own library reads them."""

    def check(found):
        with safe_open(path, framework="numpy") as expected:
            assert found.keys() == set(expected.keys())
            for key, tensor in found.items():
                assert tuple(expected.get_slice(key).get_shape()) == tensor.shape
                if tensor.dtype != ml_dtypes.bfloat16:
                    assert expected.get_tensor(key).dtype == tensor.dtype
                    assert expected.get_tensor(key).tobytes() == tensor.tobytes()
                else:
                    assert expected.get_slice(key).get_dtype() == "BF16"

    return check


def test_the_file_is_read_as_it_is(folder):
    path = folder / "valid.safetensors"
    path.write_bytes(save(TENSORS, {"format": "pt"}))
    check_tensors(path)(Tensors([path]))


@fuzzed
@given(damaged(save(TENSORS, {"format": "pt"})))
def test_damaged_safetensors(folder, content):
    path = folder / "model.safetensors"
    path.write_bytes(content)
    refused_or(lambda: dict(Tensors([path])), path, check_tensors(path))


@fuzzed
@given(st.data())
def test_safetensors_with_a_wrong_header(folder, data):
    content = save(TENSORS, {"format": "pt"})
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(changed(data, json.loads(content[8 : 8 + length]))).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    refused_or(lambda: dict(Tensors([path])), path, check_tensors(path))


# config.json

# Keys, the attributes of `ViTConfig` that they set, and transformers' defaults.
SIZES = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "hidden",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "num_channels": "channels",
    "hidden_act": "activation",
    "qkv_bias": "qkv_bias",
}
DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "hidden_act": "gelu",
    "qkv_bias": True,
}

# The networks that are made are few: all that one depends on is in its configuration.
MOST_MADE = 20


@pytest.fixture(scope="module")
def made():
    return set()


def check_config(path, made):
    """Every size is what the file says under its key, and the network has it or is refused for its tensors."""

    def check(config):
        entries = json.loads(path.read_bytes())
        assert entries["model_type"] == "vit"
        for key, name in SIZES.items():
            value = entries.get(key, DEFAULTS[key])
            if key in ("image_size", "patch_size") and isinstance(value, list):
                value, *others = value
                assert others == [value]
            assert (type(value), value) == (type(DEFAULTS[key]), getattr(config, name))
        if config not in made and len(made) < MOST_MADE:
            made.add(config)
            refused_or(lambda: from_pretrained(path.parent), path.parent, is_whole)

    def is_whole(module):
        shapes = [module.patch.kernel.shape, module.blocks[1].mlp.fc1.kernel.shape, module.head.kernel.shape]
        assert shapes == [(192, 16), (16, 32), (16, 7)]
        assert (module.config.eps, module.config.activation) == (
            module.norm_out.epsilon,
            module.blocks[0].mlp.activation,
        )

    return check


def read_config(vit):
    checkpoint = read_checkpoint(vit)
    recipe_of(checkpoint)
    return vit_config(checkpoint.config, checkpoint.where)


@fuzzed
@given(st.data())
def test_damaged_config(vit, config_text, made, data):
    path = vit / "config.json"
    path.write_bytes(data.draw(damaged(config_text)))
    refused_or(lambda: read_config(vit), vit, check_config(path, made))


@fuzzed
@given(st.data())
def test_config_with_a_wrong_value(vit, config_text, made, data):
    path = vit / "config.json"
    path.write_text(json.dumps(changed(data, json.loads(config_text))))
    refused_or(lambda: read_config(vit), vit, check_config(path, made))


# model.safetensors.index.json


def check_parts(path):
    def check(checkpoint):
        assert json.loads(path.read_bytes())["weight_map"] == PARTS
        assert {key: float(tensor[0]) for key, tensor in checkpoint.tensors.items()} == {"a": 97, "b": 98}

    return check


INDEX_TEXT = json.dumps({"metadata": {"total_size": 8}, "weight_map": PARTS}, indent=2).encode()


@fuzzed
@given(damaged(INDEX_TEXT))
def test_damaged_index(parts, content):
    path = parts / INDEX
    path.write_bytes(content)
    refused_or(lambda: read_checkpoint(parts), parts, check_parts(path))


@fuzzed
@given(st.data())
def test_index_with_a_wrong_value(parts, data):
    path = parts / INDEX
    path.write_text(json.dumps(changed(data, json.loads(INDEX_TEXT))))
    refused_or(lambda: read_checkpoint(parts), parts, check_parts(path))
