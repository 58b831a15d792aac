"""Legacy torch checkpoints without torch: honest files are read, hostile and damaged ones refused, and nothing runs."""

import os
import pickle
import struct
import time

import numpy as np
import pytest
from fuzz import cases, damaged
from hypothesis import HealthCheck, given, settings

from disam_jax.dg.errors import InputError
from disam_jax.dg.pretrained.legacy_pickle import MAGIC, PROTOCOL, LegacyTensors

STORAGES = {"f": b"ctorch\nFloatStorage\n", "q": b"ctorch\nLongStorage\n"}
ORDERED_DICT = b"ccollections\nOrderedDict\n"
EMPTY = ORDERED_DICT + b")R"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<i", len(encoded)) + encoded


def whole(number):
    return b"J" + struct.pack("<i", number)


def sizes(numbers):
    return b"(" + b"".join(map(whole, numbers)) + b"t"


def storage(kind, key, numel):
    return b"(" + text("storage") + STORAGES[kind] + text(key) + text("cpu") + whole(numel) + b"Nt" + b"Q"


def tensor(stored, offset, shape, stride, hooks=EMPTY):
    return REBUILD + b"(" + stored + whole(offset) + sizes(shape) + sizes(stride) + b"\x89" + hooks + b"tR"


def strides(shape):
    return [int(np.prod(shape[place + 1 :])) for place in range(len(shape))]


def file_of(tree, keys, data, magic=MAGIC, version=PROTOCOL, little=True, tail=b""):
    """The bytes of a file: `tree` is what lies between the protocol and the end of the fourth pickle."""
    head = [pickle.dumps(each, 2) for each in (magic, version, {"little_endian": little})]
    return b"".join([*head, b"\x80\x02" + tree + b".", pickle.dumps(keys, 2), *data, tail])


def numbers(array):
    return struct.pack("<q", array.size) + array.tobytes()


WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
COUNT = np.array(7, np.int64)


def state_dict(*items):
    body = b"".join(text(key) + value for key, value in items)
    return EMPTY + b"(" + body + b"u"


def encoded(tree, keys, arrays, **options):
    return file_of(tree, keys, [numbers(each) for each in arrays], **options)


def good(metadata=True):
    weight = tensor(storage("f", "10", 6), 0, (2, 3), strides((2, 3)))
    count = tensor(storage("q", "11", 1), 0, (), ())
    build = b"}" + text("_metadata") + EMPTY + b"sb" if metadata else b""
    return encoded(state_dict(("fc.weight", weight), ("n", count)) + build, ["10", "11"], [WEIGHT, COUNT])


def read(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    return LegacyTensors(path)


@pytest.mark.parametrize("metadata", [True, False])
def test_a_state_dict_is_read(tmp_path, metadata):
    found = read(tmp_path, good(metadata))
    assert list(found) == ["fc.weight", "n"]
    np.testing.assert_array_equal(found["fc.weight"], WEIGHT)
    assert found["fc.weight"].dtype == np.float32
    assert (found["n"], found["n"].dtype) == (7, np.int64)


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 2, 3)])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 4, 5), (1, 1, 1, 6), (2, 3, 1, 1)])
def test_tensors_may_lie_in_memory_in_any_order_of_their_axes(tmp_path, axes, shape):
    """As `permute` leaves them, which is how these checkpoints were converted from another layout."""
    memory = np.arange(np.prod(shape), dtype=np.float32).reshape([shape[axis] for axis in axes])
    want = memory.transpose(np.argsort(axes))
    stride = [step // 4 for step in want.strides]
    tree = state_dict(("w", tensor(storage("f", "1", memory.size), 0, shape, stride)))
    np.testing.assert_array_equal(read(tmp_path, encoded(tree, ["1"], [memory]))["w"], want)


def test_two_tensors_may_share_a_storage(tmp_path):
    stored = storage("f", "1", 6)
    tree = state_dict(("a", tensor(stored, 0, (2,), (1,))), ("b", tensor(stored, 2, (4,), (1,))))
    found = read(tmp_path, encoded(tree, ["1"], [WEIGHT]))
    assert (found["a"].tolist(), found["b"].tolist()) == ([0, 1], [2, 3, 4, 5])


def one(value):
    """A file with one tensor, of another description."""
    return encoded(state_dict(("w", value)), ["1"], [WEIGHT])


CALL_OF_SYSTEM = b"cos\nsystem\n(" + text("touch touched") + b"tR"
DOUBLING = b"(lp0\n" + b"".join(b"(g%d\ng%d\nlp%d\n" % (n, n, n + 1) for n in range(60))

HOSTILE = {
    "a call of os.system": CALL_OF_SYSTEM,
    "a call of a builtin": b"cbuiltins\neval\n(" + text("1") + b"tR",
    "a name hidden in a longer one": b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n)R",
    "a name from the stack": text("os") + text("system") + b"\x93(" + text("touch touched") + b"tR",
    "an instance": b"(cos\nsystem\n" + text("touch touched") + b"o",
    "an old instance": b"(" + text("touch touched") + b"ios\nsystem\n",
    "a new object": b"ccollections\nOrderedDict\n)\x81",
    "an extension": b"\x82\x01",
    "an escape in a name": b"ctorch\nFloat\\Storage\n)R",
    "an escape in an old instance": b"(i\\q\n\\q\n",
    "an instruction that there is not": b"\xff",
    "a persistent name as text": b"Pstorage\n",
    "the state of an object": EMPTY + b"}" + text("__class__") + text("x") + b"sb",
    "the state of a name": ORDERED_DICT + b"}" + text("_metadata") + EMPTY + b"sb",
    "items in the constructor": ORDERED_DICT + b"((" + text("a") + whole(1) + b"tttR",
    "a call of a storage": STORAGES["f"] + b")R",
    "a call of text": text("os.system") + b")R",
    "values that double": DOUBLING,
    "a value that was not kept": b"h\x05",
    "a mark that nobody set": b"t",
    "nothing on the stack": b"R",
    "a mark among the arguments": b"(R",
    "values left behind": EMPTY + EMPTY,
    "a list": b"]",
    "a number": whole(3),
    "a dictionary of numbers": state_dict(("a", whole(3))),
    "a key that is a number": EMPTY + b"(" + whole(1) + whole(2) + b"u",
    "a key that is a tuple of itself": EMPTY + b"()" + whole(2) + b"u",
    "half an item": EMPTY + b"(" + text("a") + b"u",
    "items of a list": b"](" + text("a") + whole(1) + b"u",
    "one key twice": state_dict(("a", whole(1)), ("a", whole(1))),
    "protocol 4": b"\x80\x04" + EMPTY,
}


@pytest.mark.parametrize("tree", HOSTILE.values(), ids=HOSTILE)
def test_a_pickle_that_does_more_than_hold_tensors_is_refused_and_does_nothing(tmp_path, monkeypatch, tree):
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    for content in (encoded(tree, [], []), good().replace(b"X\x01\x00\x00\x00n", tree)):
        with pytest.raises(InputError, match=r"model.pth: is not a checkpoint in torch's legacy format") as error:
            read(tmp_path, content)
        assert "\n" not in str(error.value)
    assert time.monotonic() - began < 5
    assert not os.path.exists("touched")


WEIGHT_OF = lambda *args, **options: tensor(storage("f", "1", 6), *args, **options)
WRONG = {
    "another magic number": (encoded(state_dict(), [], [], magic=MAGIC + 1), "magic"),
    "another version": (encoded(state_dict(), [], [], version=1002), "version"),
    "a big-endian machine": (encoded(state_dict(), [], [], little=False), "little-endian"),
    "bytes behind the end": (good() + b"\0", "end at byte"),
    "a storage cut short": (good()[:-1], "should hold"),
    "a storage without numbers": (encoded(state_dict(("w", WEIGHT_OF(0, (6,), (1,)))), ["1"], []), "should hold"),
    "a storage of another length": (encoded(state_dict(("w", WEIGHT_OF(0, (6,), (1,)))), ["1"], [WEIGHT[0]]), "hold"),
    "a storage that is not listed": (encoded(state_dict(("w", WEIGHT_OF(0, (6,), (1,)))), [], [WEIGHT]), "list of"),
    "a storage that nobody uses": (encoded(state_dict(), ["1"], [WEIGHT]), "list of"),
    "a storage listed twice": (
        encoded(state_dict(("w", WEIGHT_OF(0, (6,), (1,)))), ["1", "1"], [WEIGHT, WEIGHT]),
        "list of",
    ),
    "keys that are numbers": (encoded(state_dict(), [1], []), "list of storages"),
    "a storage of two types": (
        encoded(
            state_dict(("a", WEIGHT_OF(0, (6,), (1,))), ("b", tensor(storage("q", "1", 6), 0, (6,), (1,)))),
            ["1"],
            [WEIGHT],
        ),
        "two sizes or types",
    ),
    "a tensor beyond its storage": (one(WEIGHT_OF(1, (6,), (1,))), "beyond its storage"),
    "a tensor larger than its storage": (one(WEIGHT_OF(0, (2**20, 2**20), (2**20, 1))), "beyond its storage"),
    "numbers that overlap": (one(WEIGHT_OF(0, (2, 2), (1, 1))), "does not fill"),
    "numbers with gaps": (one(WEIGHT_OF(0, (3,), (2,))), "does not fill"),
    "a stride of zero": (one(WEIGHT_OF(0, (3,), (0,))), "does not fill"),
    "a negative offset": (one(WEIGHT_OF(-1, (2,), (1,))), "cannot be"),
    "a negative size": (one(WEIGHT_OF(0, (-2,), (1,))), "cannot be"),
    "fewer strides than sizes": (one(WEIGHT_OF(0, (2, 3), (1,))), "cannot be"),
    "65 axes": (one(WEIGHT_OF(0, (1,) * 65, (1,) * 65)), "cannot be"),
    "hooks": (one(WEIGHT_OF(0, (6,), (1,), hooks=EMPTY + b"(" + text("a") + whole(1) + b"u")), "cannot be"),
    "a view of a storage": (one(tensor(storage("f", "1", 6).replace(b"NtQ", b")tQ"), 0, (6,), (1,))), "cannot be"),
    "another type of storage": (
        one(tensor(storage("f", "1", 6).replace(b"FloatStorage", b"HalfStorage"), 0, (6,), (1,))),
        "HalfStorage",
    ),
}


@pytest.mark.parametrize(("content", "why"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, content, why):
    with pytest.raises(InputError, match=r"model\.pth") as error:
        read(tmp_path, content)
    assert why in str(error.value)
    assert "\n" not in str(error.value)


def test_what_torch_writes_today_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a checkpoint in torch's legacy format"):
        read(tmp_path, b"PK\x03\x04" + bytes(100))


@pytest.mark.slow
@given(content=damaged(good()))
@settings(max_examples=cases(1000), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_read_alike_or_refused(tmp_path, content):
    """Bytes of the numbers may be any: then keys and sizes are still those of the honest file."""
    try:
        found = read(tmp_path, content)
    except InputError as error:
        message = str(error)
    else:
        message = ""
        assert sum(found[key].nbytes for key in found) <= 32
    assert "\n" not in message
