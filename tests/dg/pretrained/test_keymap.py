"""Every tensor and every variable accounted for, or one error that lists what is not and nothing changed."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from support import slow

from disam_jax.dg.errors import InputError
from disam_jax.dg.pretrained.keymap import Rule, conv_kernel, fill, linear_kernel


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.data([nnx.Linear(3, 2, rngs=rngs), nnx.Linear(2, 4, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)


RULES = [
    Rule(r"fc(\d)\.weight", r"layers.\1.kernel", linear_kernel),
    Rule(r"fc(\d)\.bias", r"layers.\1.bias"),
    Rule(r"other\.fc(\d)\.bias", r"layers.\1.bias"),
    Rule(r"norm\.(scale|bias|mean|var)", r"norm.\1"),
    Rule(r"norm\.count", None),
    Rule(r"extra\.(\d+)", r"extra.\1"),
]
SHAPES = {"fc0.weight": (2, 3), "fc0.bias": (2,), "fc1.weight": (4, 2), "fc1.bias": (4,)} | {
    f"norm.{name}": (4,) for name in ("scale", "bias", "mean", "var")
}


def tensors(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {key: rng.normal(size=shape).astype(dtype) for key, shape in SHAPES.items()} | {"norm.count": np.int64(3)}


def made(abstract=True):
    return nnx.eval_shape(lambda: Net(nnx.Rngs(0))) if abstract else Net(nnx.Rngs(0))


def values(module):
    state = nnx.state(module, (nnx.Param, nnx.BatchStat))
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_values_and_dtypes(stored, dtype):
    module, given = made(), tensors(stored)
    fill(module, given, RULES, "file", dtype)
    found = values(module)
    for name in ("mean", "var"):
        assert found[f"norm.{name}"].dtype == jnp.float32
        np.testing.assert_array_equal(found[f"norm.{name}"], given[f"norm.{name}"].astype(np.float32))
    for key, path in {"fc1.bias": "layers.1.bias", "norm.scale": "norm.scale"}.items():
        assert found[path].dtype == dtype
        np.testing.assert_array_equal(found[path], given[key].astype(dtype))
    np.testing.assert_array_equal(found["layers.0.kernel"], given["fc0.weight"].T.astype(dtype))
    assert len(found) == len(SHAPES)


def test_later_changes_of_the_tensors_are_not_seen():
    module, given = made(), tensors()
    before = given["fc0.bias"].copy()
    fill(module, given, RULES, "file")
    given["fc0.bias"][:] = 9.0
    np.testing.assert_array_equal(module.layers[0].bias[...], before)


@pytest.mark.parametrize(
    ("add", "drop", "messages"),
    [
        ({}, ["fc1.bias"], ["no tensor for: layers.1.bias"]),
        ({"fc0.beta": np.ones(1)}, [], ["unexpected keys: fc0.beta"]),
        # A rule matches, but the module has no such variable.
        ({"fc7.bias": np.ones(2, np.float32)}, [], ["unexpected keys: fc7.bias"]),
        (
            {"other.fc0.bias": np.ones(2, np.float32)},
            [],
            ["two keys for one variable: fc0.bias and other.fc0.bias for"],
        ),
        (
            {"fc0.weight": np.ones((5, 3), np.float16)},
            [],
            ["misshapen: fc0.weight float16[5, 3] makes [3, 5] where layers.0.kernel is [3, 2]"],
        ),
        (
            {"fc0.weight": np.ones(3, np.float32)},
            [],
            ["misshapen: fc0.weight float32[3] cannot be brought into layers.0.kernel [3, 2]"],
        ),
        ({"norm.mean": np.ones(4, np.int64)}, [], ["misshapen: norm.mean int64[4] is not floating point"]),
        (
            {"fc0.beta": np.ones(1), "norm.var": np.ones(5, np.float32)},
            ["fc0.bias", "fc1.bias"],
            [
                "no tensor for: layers.0.bias, layers.1.bias",
                "unexpected keys: fc0.beta",
                "misshapen: norm.var float32[5]",
            ],
        ),
        (
            {f"extra.{n}": np.ones(1) for n in range(11)},
            [],
            ["unexpected keys: extra.0, ", "extra.7, and 3 more"],
        ),
    ],
)
@pytest.mark.parametrize("abstract", [False, *slow(True)])
def test_one_error_lists_all_and_nothing_is_changed(abstract, add, drop, messages):
    module = made(abstract)
    before = None if abstract else values(module)
    given = {key: tensor for key, tensor in (tensors() | add).items() if key not in drop}
    with pytest.raises(InputError) as caught:
        fill(module, given, RULES, "DIR/model.safetensors")
    text = str(caught.value)
    assert text.startswith("DIR/model.safetensors does not fit Net: ")
    assert "\n" not in text
    assert [message for message in messages if message not in text] == []
    # Each kind of fault once, and none that is not there.
    kinds = ("no tensor for:", "unexpected keys:", "two keys for one variable:", "misshapen:")
    assert [kind in text for kind in kinds] == [any(m.startswith(kind) for m in messages) for kind in kinds]
    if before is not None:
        assert all(np.array_equal(before[path], leaf) for path, leaf in values(module).items())


def test_the_first_rule_decides():
    module, given = made(), tensors() | {"fc0.more": np.ones(1)}
    fill(module, given, [Rule(r"fc0\.more", None), *RULES, Rule(r".*", "layers.0.bias")], "file")
    np.testing.assert_array_equal(module.layers[0].bias[...], given["fc0.bias"])


def test_each_tensor_is_read_once():
    asked = []

    class Noted(dict):
        def __getitem__(self, key):
            asked.append(key)
            return super().__getitem__(key)

    fill(made(), Noted(tensors()), RULES, "file")
    assert sorted(asked) == sorted(SHAPES)


def test_dtype_must_be_floating_point():
    with pytest.raises(TypeError, match=r"dtype must be floating point, got .*int32"):
        fill(made(), tensors(), RULES, "file", jnp.int32)


def test_layouts():
    kernel = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert all(conv_kernel(kernel)[h, w, i, o] == kernel[o, i, h, w] for o, i, h, w in np.ndindex(*kernel.shape))
    np.testing.assert_array_equal(linear_kernel(kernel[0, 0]), kernel[0, 0].T)
