"""Reading checkpoints: where they are looked for, all widths of numbers, parts, and files that are damaged."""

import json
import shutil
import sys
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from disam_jax.dg.errors import InputError
from disam_jax.dg.pretrained.files import HUB_PATTERNS, INDEX, Tensors, read_checkpoint

A = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
B = {"b": np.ones(2, np.float32)}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64, np.int64])
def test_tensors_keep_values_and_dtype(tmp_path, dtype):
    save_file({"a": A["a"].astype(dtype)}, tmp_path / "x.safetensors")
    tensors = Tensors([tmp_path / "x.safetensors"])
    assert list(tensors) == ["a"]
    assert tensors["a"].dtype == dtype
    np.testing.assert_array_equal(tensors["a"].astype(np.float64), A["a"])


def test_a_folder_a_file_and_a_file_of_another_name(tmp_path):
    save_file(A, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    for path in (tmp_path, str(tmp_path), tmp_path / "weights.safetensors"):
        checkpoint = read_checkpoint(path)
        assert checkpoint.where == str(path)
        assert checkpoint.config == {"model_type": "vit"}
        assert checkpoint.preprocessor == {"image_mean": [0.5]}
        np.testing.assert_array_equal(checkpoint.tensors["a"], A["a"])
    # The usual name goes before others.
    save_file(B, tmp_path / "model.safetensors")
    assert list(read_checkpoint(tmp_path).tensors) == ["b"]


def sharded(folder, weight_map):
    save_file(A, folder / "model-00001-of-00002.safetensors")
    save_file(B, folder / "model-00002-of-00002.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_parts_are_joined(tmp_path):
    sharded(tmp_path, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.config is None
    assert sorted(checkpoint.tensors) == ["a", "b"]
    np.testing.assert_array_equal(checkpoint.tensors["b"], B["b"])


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model-00003-of-00003.safetensors"}, "model-00003-of-00003.safetensors: no such file, but"),
        ({}, "index.json: has no weight_map"),
        (["a"], "index.json: has no weight_map"),
    ],
)
def test_parts_that_are_not_there(tmp_path, weight_map, message):
    sharded(tmp_path, weight_map)
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path)


def test_a_key_in_two_parts(tmp_path):
    for name in ("1", "2"):
        save_file(A, tmp_path / f"{name}.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    with pytest.raises(InputError, match=r"2.safetensors: holds a, and so does 1.safetensors"):
        read_checkpoint(tmp_path)


whole = save({**A, **B})


@pytest.mark.parametrize(
    "content",
    [whole[:-1], whole[:20], whole[:4], b"", b"<html>not found</html>" * 9, whole + b"more", b"\x00" * 64],
    ids=["last byte", "header", "length", "empty", "page", "longer", "zeros"],
)
def test_no_whole_safetensors_file(tmp_path, content):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"model.safetensors: is not a safetensors file or a truncated one \(.+\);"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(b'{"a": ', "is not JSON"), (b"\xff\xfe", "is not JSON"), (b"[1]", "holds a list, but must hold an object")],
)
def test_no_json(tmp_path, name, content, message):
    save_file(A, tmp_path / "model.safetensors")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"/{name}: {message}"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no .safetensors file; give"),
        (["pytorch_model.bin"], r"holds pytorch_model.bin and no .safetensors file; pickle is never read; convert"),
        (["x.pth"], r"torch.load\('x.pth', weights_only=True\)"),
        (["1.safetensors", "2.safetensors"], "holds 1.safetensors, 2.safetensors; give the one file"),
    ],
)
def test_folders_without_one_checkpoint(tmp_path, names, message):
    for name in names:
        (tmp_path / name).write_bytes(whole)
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("model.pt", "model.pt: is not a .safetensors file; pickle is never read"), (INDEX, "give its folder")],
)
def test_files_that_are_no_checkpoint(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / name)


def test_a_tensor_that_numpy_has_no_type_for(tmp_path):
    header = b'{"a":{"dtype":"F8_E8M0","shape":[2],"data_offsets":[0,2]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\x00\x00")
    checkpoint = read_checkpoint(tmp_path)
    with pytest.raises(InputError, match=r"model.safetensors: cannot read a: "):
        checkpoint.tensors["a"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for huggingface_hub: copies what is asked for from a folder, and has one repository."""
    source, calls = tmp_path / "remote", []
    source.mkdir()
    for name in ("model.safetensors", "config.json", "merges.txt", "pytorch_model.bin", "readme.md"):
        (source / name).write_bytes(whole if name == "model.safetensors" else b"{}")

    def snapshot_download(repo_id, *, revision=None, allow_patterns):
        calls.append((repo_id, revision))
        if repo_id != "owner/name":
            raise OSError("401 Client Error.\nRepository not found")
        target = tmp_path / "cache"
        target.mkdir(exist_ok=True)
        for file in source.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                shutil.copy(file, target)
        return str(target)

    module = types.ModuleType("huggingface_hub")
    monkeypatch.setattr(module, "snapshot_download", snapshot_download, raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.chdir(tmp_path)
    return calls


def test_a_repository_is_downloaded_without_pickle(hub):
    checkpoint = read_checkpoint("owner/name", revision="v1")
    assert hub == [("owner/name", "v1")]
    names = sorted(file.name for file in Path(checkpoint.where).iterdir())
    assert names == ["config.json", "merges.txt", "model.safetensors"]
    assert all(not pattern.endswith((".bin", "*")) for pattern in HUB_PATTERNS)
    np.testing.assert_array_equal(checkpoint.tensors["a"], A["a"])


def test_a_path_goes_before_a_repository(hub):
    folder = Path("owner/name")
    folder.mkdir(parents=True)
    save_file(B, folder / "model.safetensors")
    assert list(read_checkpoint("owner/name").tensors) == ["b"]
    assert hub == []
    with pytest.raises(InputError, match="owner/name: revision is 'v1', but this is a path"):
        read_checkpoint("owner/name", revision="v1")


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("owner/other", None, "owner/other: cannot download it: 401 Client Error. Repository not found"),
        ("owner/other", "v1", "owner/other: cannot download it at revision v1: 401"),
        ("./owner/name", None, "no such file or folder; write a path, or owner/name"),
        ("name", None, "no such file or folder"),
        ("a/b/c", None, "no such file or folder"),
        ("weights/resnet18.safetensors", None, "no such file or folder"),
        ("/nowhere/model.safetensors", None, "no such file or folder"),
    ],
)
def test_no_such_repository(hub, name, revision, message):
    with pytest.raises(InputError, match=message):
        # As text: pathlib drops the ./
        read_checkpoint(name, revision)


def test_a_repository_without_huggingface_hub(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"owner/name: no such file or folder; .* pip install huggingface_hub"):
        read_checkpoint("owner/name")
