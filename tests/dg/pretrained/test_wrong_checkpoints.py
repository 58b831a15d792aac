"""Checkpoints that are wrong in any way are refused in one line that names the file, at once and unread."""

import json
import os
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from odd_files import ODD, without_rights
from safetensors.numpy import save, save_file
from support import slow

from disam_jax.dg.errors import InputError
from disam_jax.dg.pretrained import from_pretrained
from disam_jax.dg.pretrained.files import INDEX, Tensors, read_checkpoint

DATA = Path(__file__).parent / "data"
A = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
B = {"b": np.ones(2, np.float32)}
F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.fixture(params=["clip-openai", "vit-classifier", "resnet-transformers-basic"])
def folder(request, tmp_path):
    """A copy of a checkpoint, to be spoiled."""
    return copy_of(request.param, tmp_path)


def copy_of(name, tmp_path):
    for file in ("config.json", "model.safetensors"):
        shutil.copy(DATA / name / file, tmp_path)
    return tmp_path


def refused(call, *names):
    """The message of the error, which must come at once, in one line, and name the file and the key."""
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        call()
    # Milliseconds, where nothing else runs.
    assert time.monotonic() - start < 10
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 6000
    assert [str(name) for name in names if str(name) not in text] == []
    return text


def with_header(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


HEADERS = {
    "no object": ([], b""),
    "a number": (b"3", b""),
    "empty": (b"", b""),
    "no JSON": (b"{'a'", b""),
    "no UTF-8": (b'{"\xff": 1}', b""),
    "a byte order mark": (b"\xef\xbb\xbf{}", b""),
    "space before": (b" {}", b""),
    "NaN": (b'{"__metadata__": NaN}', b""),
    "nested": (b'{"a":' + b"[" * 100_000, b""),
    "nested and closed": (b'{"a":' + b"[" * 900 + b"]" * 900 + b"}", b""),
    "quotes": (b'{"a": "' + b'\\"' * 200_000, b""),
    "a key twice": (b'{"a":%s,"a":%s}' % ((json.dumps(F32).encode(),) * 2), bytes(8)),
    "metadata no object": ({"__metadata__": [1]}, b""),
    "metadata no strings": ({"__metadata__": {"a": 1}}, b""),
    "tensor no object": ({"a": 5}, b""),
    "tensor empty": ({"a": {}}, b""),
    "no dtype": ({"a": {**F32, "dtype": None}}, bytes(8)),
    "dtype unknown": ({"a": {**F32, "dtype": "F33"}}, bytes(8)),
    "dtype a list": ({"a": {**F32, "dtype": ["F32"]}}, bytes(8)),
    "shape a number": ({"a": {**F32, "shape": 2}}, bytes(8)),
    "shape negative": ({"a": {**F32, "shape": [-1, -2]}}, bytes(8)),
    "shape a float": ({"a": {**F32, "shape": [2.0]}}, bytes(8)),
    "shape a bool": ({"a": {**F32, "shape": [True, 2]}}, bytes(8)),
    "shape a string": ({"a": {**F32, "shape": "2"}}, bytes(8)),
    "shape absurd": ({"a": {**F32, "shape": [2**62, 2**62]}}, bytes(8)),
    "shape overflowing to the right number": ({"a": {**F32, "shape": [2**63 + 1, 2]}}, bytes(8)),
    "many dimensions": ({"a": {**F32, "shape": [9] * 200_000}}, bytes(8)),
    "shape too small": ({"a": {**F32, "shape": [1]}}, bytes(8)),
    "offsets one": ({"a": {**F32, "data_offsets": [0]}}, bytes(8)),
    "offsets negative": ({"a": {**F32, "data_offsets": [-8, 0]}}, bytes(8)),
    "offsets turned": ({"a": {**F32, "data_offsets": [8, 0]}}, bytes(8)),
    "offsets bools": ({"a": {**F32, "shape": [], "dtype": "U8", "data_offsets": [False, True]}}, bytes(1)),
    "offsets floats": ({"a": {**F32, "data_offsets": [0.0, 8.0]}}, bytes(8)),
    "out of the file": ({"a": {**F32, "data_offsets": [8, 16]}}, bytes(8)),
    "a gap before": ({"a": {**F32, "data_offsets": [4, 12]}}, bytes(12)),
    "a gap behind": ({"a": F32}, bytes(12)),
    "a gap between": ({"a": F32, "b": {**F32, "data_offsets": [9, 17]}}, bytes(17)),
    "overlapping": ({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, bytes(12)),
    "the same bytes": ({"a": F32, "b": F32}, bytes(8)),
    "bytes without a tensor": ({}, bytes(8)),
    "a tensor without bytes": ({"a": F32}, b""),
    "name not printable": ({"a\n\x1b\ud800": {**F32, "dtype": "\u2028"}}, bytes(8)),
}


@pytest.mark.parametrize("header", HEADERS)
def test_headers_that_cannot_be(tmp_path, header):
    path = with_header(tmp_path / "model.safetensors", *HEADERS[header])
    assert "is not a safetensors file or a truncated one (" in refused(lambda: read_checkpoint(tmp_path), path)


@pytest.mark.parametrize("length", [3, 2**24 + 1, 100_000_001, 2**63, 2**64 - 1])
@pytest.mark.parametrize("size", [8, 64])
def test_the_length_of_a_header_is_checked_before_it_is_read(tmp_path, length, size):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + bytes(size - 8))
    refused(lambda: read_checkpoint(path), path)


def test_a_large_file_is_not_read_for_a_header_that_claims_it(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**40 - 8))
        file.truncate(2**40)
    refused(lambda: read_checkpoint(path), path, "1,099,511,627,776")


def test_headers_that_the_format_allows(tmp_path):
    header = {
        "__metadata__": {"format": "pt"},
        "second": {**F32, "data_offsets": [2, 10]},
        "first": {"dtype": "BF16", "shape": [], "data_offsets": [0, 2]},
        "none": {"dtype": "F64", "shape": [3, 0], "data_offsets": [2, 2]},
    }
    text = json.dumps(header).encode() + b"   "
    data = b"\x80\x3f" + np.float32([1, 2]).tobytes()
    tensors = Tensors([with_header(tmp_path / "x.safetensors", text, data)])
    assert {key: (array.dtype.name, array.shape) for key, array in tensors.items()} == {
        "second": ("float32", (2,)),
        "first": ("bfloat16", ()),
        "none": ("float64", (3, 0)),
    }
    assert tensors["first"] == 1
    assert tensors["second"].tolist() == [1, 2]
    assert Tensors([with_header(tmp_path / "x.safetensors", {})]).entries == {}


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    save_file(A, tmp_path / "x.safetensors")
    tensors = Tensors([tmp_path / "x.safetensors"])
    os.truncate(tmp_path / "x.safetensors", 80)
    refused(lambda: tensors["a"], "x.safetensors: cannot read a: ")


# What is no file, under any name that is read.


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "preprocessor_config.json", INDEX, "x.safetensors"]
)
def test_only_regular_files_are_opened(tmp_path, name, make):
    if not name.endswith(".safetensors"):
        save_file(A, tmp_path / ("part.safetensors" if name == INDEX else "model.safetensors"))
    ODD[make](tmp_path / name)
    refused(lambda: read_checkpoint(tmp_path), tmp_path / name)
    if name.endswith(".safetensors") and make != "folder":
        refused(lambda: read_checkpoint(tmp_path / name), tmp_path / name)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_files_without_permission(tmp_path, name):
    save_file(A, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).chmod(0)
    with without_rights():
        refused(lambda: read_checkpoint(tmp_path), tmp_path, "Permission denied")


@pytest.mark.parametrize(
    "name",
    ["x" * 256, "x" * 5000, "owner/" + "x" * 300, "a\0b", "\ud800", "no/such/file", "config.json/x", "a\nb"],
)
def test_names_that_cannot_be(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text("{}")
    for call in (read_checkpoint, from_pretrained):
        refused(lambda call=call: call(name))
        refused(lambda call=call: call(f"{name}.safetensors"))


# Indexes and parts.


def sharded(folder, weight_map):
    save_file(A, folder / "model-00001-of-00002.safetensors")
    save_file(B, folder / "model-00002-of-00002.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


PARTS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "../checkpoint/model-00002-of-00002.safetensors",
        "sub/../../outside.safetensors",
        "/etc/passwd",
        "{outside}",
        "..\\outside.safetensors",
        "C:\\outside.safetensors",
        "link.safetensors",
        "sub/outside.safetensors",
        "pipe.safetensors",
        "folder.safetensors",
        "zero.safetensors",
        INDEX,
        "config.json",
        ".",
        "..",
        "",
        "a\0b.safetensors",
        "x" * 300 + ".safetensors",
        "nowhere.safetensors",
        None,
        5,
        ["model-00001-of-00002.safetensors"],
        {},
    ],
    ids=lambda name: str(name)[:30].replace("\0", "0"),
)
def test_an_index_names_files_of_its_own_folder_only(tmp_path, name):
    outside, folder = tmp_path / "outside.safetensors", tmp_path / "checkpoint"
    folder.mkdir()
    save_file(B, outside)
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "sub").symlink_to(tmp_path)
    (folder / "zero.safetensors").symlink_to("/dev/zero")
    (folder / "folder.safetensors").mkdir()
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "config.json").write_text("{}")
    sharded(folder, PARTS | {"b": name.format(outside=outside) if isinstance(name, str) else name})
    refused(lambda: read_checkpoint(folder), folder)


def test_an_index_may_name_a_folder_inside(tmp_path):
    (tmp_path / "parts").mkdir()
    save_file(B, tmp_path / "parts" / "b.safetensors")
    assert sorted(read_checkpoint(sharded(tmp_path, PARTS | {"b": "parts/b.safetensors"})).tensors) == ["a", "b"]


@pytest.mark.parametrize(
    ("weight_map", "name"),
    [
        (PARTS | {"c": PARTS["a"]}, PARTS["a"]),
        ({"a": PARTS["b"], "b": PARTS["a"]}, PARTS["b"]),
        ({"a": PARTS["a"]} | {"more": PARTS["b"]}, PARTS["b"]),
        # A line got lost, but the names of the parts tell how many there are.
        ({"a": PARTS["a"]}, INDEX),
    ],
)
def test_an_index_and_its_parts_say_the_same(tmp_path, weight_map, name):
    sharded(tmp_path, weight_map)
    refused(lambda: read_checkpoint(tmp_path), tmp_path / name)


def test_a_tensor_that_the_index_does_not_name(tmp_path):
    save_file(A | B, tmp_path / "x.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))
    refused(lambda: read_checkpoint(tmp_path), tmp_path / "x.safetensors", "holds b, but")


@pytest.mark.parametrize("content", [{}, {"weight_map": None}, {"weight_map": []}, {"weight_map": "a"}, []])
def test_an_index_without_a_map(tmp_path, content):
    (tmp_path / INDEX).write_text(json.dumps(content))
    refused(lambda: read_checkpoint(tmp_path), tmp_path / INDEX)


@pytest.mark.parametrize("missing", [(), (PARTS["a"],), (PARTS["b"],)])
def test_parts_without_their_index(tmp_path, missing):
    sharded(tmp_path, PARTS)
    (tmp_path / INDEX).unlink()
    for name in missing:
        (tmp_path / name).unlink()
    refused(lambda: read_checkpoint(tmp_path), tmp_path, "parts of one checkpoint: get model.safetensors.index.json")


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "pytorch_model.fp16-2-of-10.safetensors"])
def test_one_part_is_no_checkpoint(tmp_path, name, index):
    save_file(A, tmp_path / name)
    if index:
        (tmp_path / INDEX).write_text("{}")
    refused(lambda: read_checkpoint(tmp_path / name), name, "parts of one checkpoint: get model.safetensors.index.json")


@pytest.mark.parametrize("name", ["model-00001-of-00001.safetensors", "of-one.safetensors", "a-1-of-b.safetensors"])
def test_files_that_are_whole(tmp_path, name):
    save_file(A, tmp_path / name)
    assert list(read_checkpoint(tmp_path).tensors) == ["a"]
    assert list(read_checkpoint(tmp_path / name).tensors) == ["a"]


# Links.


def in_the_cache(cache, content):
    """A repository as `huggingface_hub` stores it: files by their hash, and a snapshot of links to them."""
    repository = cache / "models--owner--name"
    snapshot = repository / "snapshots" / "c0ffee"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, (name, data) in enumerate(content.items()):
        (repository / "blobs" / f"{number:040x}").write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{number:040x}")
    return snapshot


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("linked", [False, True])
def test_a_snapshot_of_the_hub_is_a_folder_of_links(tmp_path, parts, linked):
    weights = {PARTS["a"]: save(A), PARTS["b"]: save(B)} if parts else {"model.safetensors": save(A | B)}
    index = {INDEX: json.dumps({"weight_map": PARTS}).encode()} if parts else {}
    folder = in_the_cache(tmp_path, {**weights, **index, "config.json": b'{"model_type": "vit"}'})
    if linked:
        folder = tmp_path / "mine"
        folder.symlink_to("models--owner--name/snapshots/c0ffee")
    paths = [folder] if parts else [folder, folder / "model.safetensors"]
    for path in paths:
        checkpoint = read_checkpoint(path)
        assert checkpoint.config == {"model_type": "vit"}
        assert {key: array.tolist() for key, array in checkpoint.tensors.items()} == {
            "a": [[0, 1, 2], [3, 4, 5]],
            "b": [1, 1],
        }


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json", INDEX])
@pytest.mark.parametrize("cached", [False, True])
def test_links_out_of_the_folder_are_not_followed(tmp_path, name, cached):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.write_bytes(save(A) if name == "model.safetensors" else b'{"secret": 1}')
    if cached:
        folder = in_the_cache(tmp_path, {"x.safetensors": save(A)})
    else:
        folder.mkdir()
        save_file(A, folder / "x.safetensors")
    (folder / name).symlink_to(outside)
    text = refused(lambda: read_checkpoint(folder), folder / name, "leads out of its folder")
    assert "secret" not in text


def test_links_inside_of_the_folder_are_followed(tmp_path):
    (tmp_path / "data").mkdir()
    save_file(A, tmp_path / "data" / "x")
    (tmp_path / "model.safetensors").symlink_to("data/x")
    assert list(read_checkpoint(tmp_path).tensors) == ["a"]


def test_a_file_that_the_user_names_may_be_a_link(tmp_path):
    save_file(A, tmp_path / "x.safetensors")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "y.safetensors").symlink_to("../x.safetensors")
    assert list(read_checkpoint(tmp_path / "sub" / "y.safetensors").tensors) == ["a"]


# config.json and preprocessor_config.json.

JSON = {
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a":' * 50_000,
    "nested and closed": b'{"a":' * 500 + b"1" + b"}" * 500,
    "quotes": b'{"a": "' + b'\\"' * 500_000,
    "backslashes": b'{"a": "' + b"\\" * 500_001,
    "empty": b"",
    "zeros": bytes(100),
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "latin-1": b'{"a": "\xe9"}',
    "a key twice": b'{"hidden_size": 16, "hidden_size": 32}',
    "NaN": b'{"layer_norm_eps": NaN}',
    "infinity": b'{"layer_norm_eps": -Infinity}',
    "many digits": b'{"hidden_size": ' + b"9" * 5000 + b"}",
    "null": b"null",
    "a string": b'"vit"',
    "two": b"{} {}",
}


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", INDEX])
@pytest.mark.parametrize("content", JSON)
def test_json_that_cannot_be(tmp_path, name, content):
    save_file(A, tmp_path / ("x.safetensors" if name == INDEX else "model.safetensors"))
    (tmp_path / name).write_bytes(JSON[content])
    refused(lambda: read_checkpoint(tmp_path), tmp_path / name)


def test_large_json_is_not_read(tmp_path):
    save_file(A, tmp_path / "model.safetensors")
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)
    refused(lambda: read_checkpoint(tmp_path), tmp_path / "config.json", "1,099,511,627,776 bytes")


def test_nesting_up_to_the_limit_and_brackets_in_strings_are_fine(tmp_path):
    save_file(A, tmp_path / "model.safetensors")
    config = {"a": "[" * 1000 + '\\"{', "b": [{}, {}] * 100}
    for _ in range(60):
        config = {"c": config}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_checkpoint(tmp_path).config == config


# Entries that `Settings` and its like read, and values that none of them may have.
WRONG = [
    None,
    True,
    [],
    {},
    "",
    "12",
    "gelu\n",
    [12],
    [[1, 2], [3]],
    -1,
    0,
    1.5,
    1e999,
    10**30,
    -(10**400),
    "x" * 10**5,
]
WHOLE = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size"]
ENTRIES = {
    "clip-openai": [
        *((part, key) for part in ("text_config", "vision_config") for key in (*WHOLE[:4], "hidden_act")),
        *(("vision_config", key) for key in (*WHOLE[4:], "num_channels", "layer_norm_eps")),
        *(("text_config", key) for key in ("vocab_size", "max_position_embeddings", "eos_token_id")),
        (None, "projection_dim"),
    ],
    "vit-classifier": [(None, key) for key in (*WHOLE, "hidden_act", "num_channels", "qkv_bias", "layer_norm_eps")],
    "resnet-transformers-basic": [
        (None, key) for key in ("depths", "hidden_sizes", "embedding_size", "num_channels", "layer_type", "hidden_act")
    ],
}
# What may be: true for a flag, any number above zero for an epsilon, any token.
RIGHT = {"qkv_bias": ["True"], "layer_norm_eps": ["1.5", str(10**30)], "eos_token_id": ["0", "12"]}


def change_config(folder, part, key, value):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    # As transformers does, the older entries go before.
    for name in [None] if part is None else [name for name in (part, f"{part}_dict") if config.get(name)]:
        (config if name is None else config[name])[key] = value
    path.write_text(json.dumps(config).replace("Infinity", "1e999"))


@pytest.mark.parametrize(
    ("name", "part", "key"), [(name, *entry) for name, entries in ENTRIES.items() for entry in entries]
)
def test_values_that_cannot_be_are_named(tmp_path, name, part, key):
    copy_of(name, tmp_path)
    for value in WRONG:
        if repr(value)[:50] in RIGHT.get(key, []):
            continue
        change_config(tmp_path, part, key, value)
        text = refused(lambda: from_pretrained(tmp_path), tmp_path, "config.json", key)
        assert len(text) < 600


@pytest.mark.parametrize(
    ("name", "part", "key", "value"),
    [
        ("clip-openai", None, "text_config", 0),
        ("clip-openai", None, "vision_config", []),
        ("clip-openai", None, "text_config", "wide"),
        ("vit-classifier", None, "architectures", 5),
        ("vit-classifier", None, "architectures", "ViTForImageClassification"),
        ("vit-classifier", None, "architectures", [["ViT"]]),
        ("resnet-transformers-basic", None, "downsample_in_bottleneck", 1),
        ("resnet-transformers-basic", None, "pretrained_cfg", [1]),
        ("resnet-transformers-basic", None, "depths", [1] * 100_000),
        ("resnet-transformers-basic", None, "hidden_sizes", [1] * 100_000),
    ],
)
def test_parts_of_a_configuration_that_cannot_be(tmp_path, name, part, key, value):
    change_config(copy_of(name, tmp_path), part, key, value)
    refused(lambda: from_pretrained(tmp_path), "config.json", key)


@pytest.mark.parametrize("value", [["vit"], {"vit": 1}, 5, True, "vit\n", "v" * 10**6, [[[]]]])
@pytest.mark.parametrize("key", ["model_type", "architecture"])
def test_architectures_that_cannot_be(folder, key, value):
    change_config(folder, None, "model_type", None)
    change_config(folder, None, key, value)
    assert "is a checkpoint of" in refused(lambda: from_pretrained(folder), folder)


@pytest.mark.parametrize("value", [3, 13, 10**6, 10**9, 2**31 - 1])
def test_blocks_are_counted_before_any_is_made(folder, value):
    resnet = folder.name.startswith("resnet") or "depths" in (folder / "config.json").read_text()
    if resnet:
        depths = json.loads((folder / "config.json").read_text())["depths"]
        change_config(folder, None, "depths", [value + max(depths), *depths[1:]])
        refused(lambda: from_pretrained(folder), folder, "config.json: depths is")
    else:
        part = "text_config" if "text_config" in (folder / "config.json").read_text() else None
        change_config(folder, part, "num_hidden_layers", value)
        refused(lambda: from_pretrained(folder), folder, "config.json", f"num_hidden_layers is {value}", "blocks in")


@pytest.mark.parametrize("key", ["hidden_size", *slow("intermediate_size", "image_size", "patch_size")])
def test_sizes_are_compared_with_the_tensors_before_memory_is_taken(tmp_path, key):
    copy_of("vit-classifier", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change_config(tmp_path, None, key, config[key] * 2**10)
    if key == "patch_size":
        change_config(tmp_path, None, "image_size", config["image_size"] * 2**10)
    assert "does not fit ViT: misshapen: " in refused(lambda: from_pretrained(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("image_mean", value) for value in ([1], "abc", [1, 2, "3"], [[1, 2], [3]], [1, 2, True], [1e999, 1, 1], 5, {})]
    + [("image_std", value) for value in ([0, 1, 1], [-1, 1, 1], [1e-60, 1, 1], [10**400, 1, 1])],
)
@pytest.mark.parametrize("name", ["vit-classifier", "resnet-transformers-basic"])
def test_preprocessing_that_cannot_be(tmp_path, name, key, value):
    text = json.dumps({key: value}).replace("Infinity", "1e999")
    (copy_of(name, tmp_path) / "preprocessor_config.json").write_text(text)
    refused(lambda: from_pretrained(tmp_path), "preprocessor_config.json", key)


@pytest.mark.parametrize("shape", [(0, 3, 7, 7), (0,), (), (2**40, 0, 7, 7), (1,) * 64])
@pytest.mark.parametrize("key", ["conv1.weight", "fc.weight"])
def test_tensors_that_tell_no_sizes(tmp_path, key, shape):
    tensors = dict(read_checkpoint(DATA / "resnet-torchvision-bottleneck" / "weights.safetensors").tensors)
    save_file(tensors | {key: np.zeros(shape, np.float32)}, tmp_path / "x.safetensors")
    refused(lambda: from_pretrained(tmp_path / "x.safetensors", model="resnet"), f"x.safetensors: {key} is [")


def test_a_resnet_of_many_stages_is_refused(tmp_path):
    tensors = dict(read_checkpoint(DATA / "resnet-torchvision-bottleneck" / "weights.safetensors").tensors)
    more = {f"layer{stage}.0.conv1.weight": np.ones((1, 1, 1, 1), np.float32) for stage in range(1, 100)}
    save_file(tensors | more, tmp_path / "x.safetensors")
    refused(lambda: from_pretrained(tmp_path / "x.safetensors", model="resnet"), "x.safetensors: has 99 stages")


def test_names_of_tensors_are_shown_in_one_line(tmp_path):
    copy_of("vit-classifier", tmp_path)
    tensors = dict(read_checkpoint(tmp_path).tensors)
    save_file(tensors | {"a\nb\x1b[31m": np.ones(1), "y" * 10**5: np.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"unexpected keys: a\\nb\\x1b\[31m, y") as caught:
        from_pretrained(tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
