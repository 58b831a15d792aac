"""The tokenizer against ids that two other implementations made (make_token_ids.py), and its errors."""

import importlib.util
import json
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from odd_files import ODD

from disam_jax.dg.errors import InputError
from disam_jax.dg.pretrained import tokenizer as module
from disam_jax.dg.pretrained.tokenizer import byte_characters, class_prompts, load_tokenizer

pytest.importorskip("tokenizers", reason="text needs tokenizers")

KNOWN = json.loads((pathlib.Path(__file__).parent / "data" / "token_ids.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def openai():
    if importlib.util.find_spec("clip") is None:
        pytest.skip("OpenAI's vocabulary comes with openai-clip")
    return load_tokenizer()


def test_a_text_as_openai_documents_it(openai):
    ids = openai.tokenize(["a photo of a cat"], 10)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, [[49406, 320, 1125, 539, 320, 2368, 49407, 0, 0, 0]])
    assert (openai.start, openai.end, openai.vocab_size) == (49406, 49407, 49408)


@pytest.mark.parametrize("text", KNOWN)
def test_the_same_ids_as_two_other_implementations(openai, text):
    assert openai.words(text) == KNOWN[text]
    row = openai.tokenize([text], 77)[0]
    assert row[0] == 49406
    assert row[1 : len(KNOWN[text]) + 2].tolist() == [*KNOWN[text], 49407]
    assert not row[len(KNOWN[text]) + 2 :].any()


def test_an_accent_of_its_own_is_part_of_its_letter(openai):
    assert openai.words("cafe\u0301") == openai.words("caf\u00e9")


def test_bytes_in_the_order_of_the_vocabulary():
    # UTF-8 of every character that stands for itself, and a bijection.
    characters = byte_characters()
    assert len(set(characters)) == 256
    assert characters[:3] == ["!", '"', "#"]
    assert not any(each.isspace() for each in characters)


def test_reading_the_vocabulary_does_not_import_its_package(openai):
    # That would import torch.
    assert not {"clip", "torch"} & set(sys.modules)


# A vocabulary of ten tokens: a, b and c inside of a word, the same at its end, one merge, and the two special ones.
VOCABULARY = {"a": 0, "b": 1, "c": 2, "a</w>": 3, "b</w>": 4, "c</w>": 5, "ab</w>": 6, "ca": 7}
SPECIAL = {"<|startoftext|>": 8, "<|endoftext|>": 9}


def small_files(folder, vocabulary=None):
    (folder / "vocab.json").write_text(json.dumps(vocabulary or VOCABULARY | SPECIAL))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\nc a\n")
    return folder


def test_a_folder_has_its_own_vocabulary(tmp_path):
    tokenizer = load_tokenizer(small_files(tmp_path))
    # "cab": c a b</w> becomes c ab</w> by the first merge; "ca" has no c followed by an inner a.
    np.testing.assert_array_equal(
        tokenizer.tokenize(["cab CA", "B"], 7), [[8, 2, 6, 2, 3, 9, 0], [8, 4, 9, 0, 0, 0, 0]]
    )
    tokenizer.check(10, 9)
    tokenizer.check(10, 2)


def test_tokenizer_json_comes_first_and_its_own_cutting_is_off(tmp_path):
    small_files(tmp_path)
    pipeline = load_tokenizer(tmp_path).pipeline
    pipeline.add_special_tokens(list(SPECIAL))
    pipeline.enable_truncation(2)
    pipeline.enable_padding(length=20)
    pipeline.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.json").write_text("not read")
    tokenizer = load_tokenizer(tmp_path)
    np.testing.assert_array_equal(tokenizer.tokenize(["a b c"], 6), [[8, 3, 4, 5, 9, 0]])


def test_a_folder_without_a_vocabulary_has_openais(openai, tmp_path):
    assert load_tokenizer(tmp_path).vocab_size == 49408


@pytest.mark.parametrize(
    ("vocab_size", "eos", "says"),
    [(12, 9, "10 tokens, but the model has 12"), (10, 8, "is token 9, but the model's eos_token_id is 8")],
)
def test_a_vocabulary_of_another_model(tmp_path, vocab_size, eos, says):
    with pytest.raises(InputError, match=says) as raised:
        load_tokenizer(small_files(tmp_path)).check(vocab_size, eos)
    assert "vocab.json" in str(raised.value)


def test_a_vocabulary_that_is_not_clips(tmp_path):
    with pytest.raises(InputError, match=r"vocab\.json: the vocabulary has no <\|startoftext\|>"):
        load_tokenizer(small_files(tmp_path, VOCABULARY))


@pytest.mark.parametrize(("name", "text"), [("tokenizer.json", '{"version": "1.0", "mod'), ("vocab.json", '{"a": ')])
def test_a_broken_file_is_named(tmp_path, name, text):
    (small_files(tmp_path) / name).write_text(text)
    with pytest.raises(InputError, match=name):
        load_tokenizer(tmp_path)


def saved_whole(folder):
    """The vocabulary as tokenizer.json."""
    pipeline = load_tokenizer(small_files(folder)).pipeline
    pipeline.save(str(folder / "tokenizer.json"))
    return json.loads((folder / "tokenizer.json").read_text())


def refused(folder, *names):
    with pytest.raises(InputError) as raised:
        load_tokenizer(folder)
    text = str(raised.value)
    assert text.isprintable()
    assert len(text) < 1000
    assert [name for name in names if name not in text] == []


def make_large(path):
    path.touch()
    os.truncate(path, 2**40)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt"])
@pytest.mark.parametrize(
    "make",
    [
        *ODD.values(),
        lambda path: path.symlink_to("../outside"),
        lambda path: path.write_bytes(b"\xff\xfe\xff"),
        lambda path: path.write_bytes(b"[" * 100_000),
        lambda path: path.write_bytes(b'{"a": ' * 5000),
        lambda path: path.write_bytes(b'{"a": 1, "a": 2}'),
        lambda path: path.write_bytes(b'"a"'),
        make_large,
    ],
    ids=[*ODD, "outside", "bytes", "lists", "objects", "twice", "string", "large"],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, make):
    (tmp_path / "outside").write_text("{}")
    folder = tmp_path / "folder"
    folder.mkdir()
    small_files(folder)
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    refused(folder, str(folder / name))


@pytest.mark.parametrize("number", [-1, 10, 2**40, 2**70, 1.0, True, None, "3", [3], 4, 10**400])
def test_ids_that_cannot_be(tmp_path, number):
    # 4 is another token's.
    refused(small_files(tmp_path, VOCABULARY | SPECIAL | {"c": number}), "vocab.json")


def test_a_token_that_is_no_text(tmp_path):
    refused(small_files(tmp_path, VOCABULARY | SPECIAL | {"\ud800": 10}), "vocab.json", "ud800")


@pytest.mark.parametrize("line", ["a", "a b</w> c", "a  b</w>", "x y", "b c", " ", "a\tb</w>", "a" * 10**5])
def test_merges_that_cannot_be(tmp_path, line):
    small_files(tmp_path)
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\na b</w>\n{line}\n")
    refused(tmp_path, "merges.txt", "line 3")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("model"),
        lambda content: content.update(model=5),
        lambda content: content["model"].update(type="none"),
        lambda content: content["model"]["vocab"].update(c=-1),
        lambda content: content["model"]["vocab"].update(c=4),
        lambda content: content["model"]["vocab"].update(c=40),
        lambda content: content["model"]["vocab"].update(c=2**40),
        lambda content: content["model"]["vocab"].pop("<|endoftext|>"),
        lambda content: content["model"].update(merges=[["x", "y"]]),
        lambda content: content["model"].update(merges=[["a"]]),
        lambda content: content.update(pre_tokenizer={"type": "none"}),
    ],
)
def test_a_tokenizer_json_that_cannot_be(tmp_path, change):
    content = saved_whole(tmp_path)
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    refused(tmp_path, "tokenizer.json")


def test_files_of_a_snapshot_of_the_hub_are_links(tmp_path):
    snapshot = tmp_path / "models--o--n" / "snapshots" / "c0ffee"
    blobs = tmp_path / "models--o--n" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in list(small_files(blobs).iterdir()):
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert load_tokenizer(snapshot).vocab_size == 10


def test_a_text_that_is_none(tmp_path):
    with pytest.raises(InputError, match=r"'a \\udce9': is not text"):
        load_tokenizer(small_files(tmp_path)).words("a \udce9")


@pytest.mark.parametrize(("missing", "says"), [("tokenizers", "pip install tokenizers"), ("clip", "openai-clip")])
def test_a_missing_package_is_named(monkeypatch, tmp_path, missing, says):
    find = importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(InputError, match=says):
        load_tokenizer(tmp_path)


def test_too_many_tokens_are_counted_not_cut(tmp_path):
    tokenizer = load_tokenizer(small_files(tmp_path))
    assert tokenizer.tokenize(["a b c"], 5).shape == (1, 5)
    with pytest.raises(InputError, match="'a b c' has 5 tokens with start and end, the model's context is 4"):
        tokenizer.tokenize(["a", "a b c"], 4)


@pytest.mark.parametrize("text", ["a <|endoftext|> b", "<|STARTOFTEXT|>"])
def test_special_tokens_inside_of_a_text(tmp_path, text):
    with pytest.raises(InputError, match="leave them out"):
        load_tokenizer(small_files(tmp_path)).words(text)


def test_prompts_of_classes():
    assert class_prompts(["dog", "alarm_clock", " T-shirt "], "a {} in oil") == [
        "a dog in oil",
        "a alarm clock in oil",
        "a T-shirt in oil",
    ]


@pytest.mark.parametrize(
    ("names", "template", "says"),
    [
        (["dog", "_ "], "{}", "class 1 has the name '_ '"),
        (["hot_dog", "cat", "Hot dog"], "{}", "classes 'hot_dog', 'Hot dog' have the same name"),
        (["dog"], "a photo", "the template 'a photo' must have one {}"),
        (["dog"], "{} and {}", "must have one {}"),
    ],
)
def test_names_that_cannot_be_prompts(names, template, says):
    with pytest.raises(InputError, match=says):
        class_prompts(names, template)


@pytest.mark.slow
@pytest.mark.parametrize("eos", [29, 2])
def test_what_follows_the_end_token_changes_nothing(clip, eos):
    """With zeros (OpenAI), the end token again (Hugging Face) or anything else after it, the encoding is the same."""
    clip.text.eos_token_id = eos
    encode = nnx.jit(lambda text, ids: text(ids))
    text = np.array([[28, 3, 4, 29]] * 2, np.int32)
    rest = np.random.default_rng(0).integers(0, 29, (2, 5)).astype(np.int32)
    padded = [np.concatenate([text, filling], 1) for filling in (np.zeros_like(rest), np.full_like(rest, 29), rest)]
    first, *others = (np.asarray(encode(clip.text, jnp.asarray(ids))) for ids in padded)
    assert np.abs(first).max() > 0.1
    for other in others:
        np.testing.assert_array_equal(other, first)
    short = np.asarray(jax.jit(lambda: clip.text(jnp.asarray(text)))())
    np.testing.assert_allclose(short, first, rtol=1e-5, atol=1e-6)
