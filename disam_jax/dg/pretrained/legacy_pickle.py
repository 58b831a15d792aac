"""Tensors of a legacy torch checkpoint (`.pth` of torch < 1.6), read without torch and without running a pickle.

Such a file is five pickles (a magic number, a version, the machine's sizes, the tensors' places, the storages' keys)
and then the numbers of each storage. A pickle is a program: loading it calls whatever it names. Here it is only read,
by a small machine that knows the instructions a state dict is made of, and four names, and that builds dictionaries,
tuples and descriptions of tensors. Every other instruction or name is refused, and nothing is ever called.
"""

import io
import math
import pickletools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from disam_jax.dg.errors import InputError
from disam_jax.dg.pretrained.tensors import Entry, Tensors
from disam_jax.dg.reading import brief, reason, regular_file, shown

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
# The pickles of a network with a thousand layers take a megabyte.
MOST_PICKLE_BYTES = 2**24
MOST_INSTRUCTIONS = 1_000_000
MOST_DIMENSIONS = 64

_ORDERED_DICT, _REBUILD = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
# The types of storages, with the names that safetensors has for them.
_STORAGES = {"torch FloatStorage": ("F32", 4), "torch LongStorage": ("I64", 8)}
_GLOBALS = (_ORDERED_DICT, _REBUILD, *_STORAGES)


class LegacyTensors(Tensors):
    """The tensors of a legacy torch checkpoint, by key; read one at a time, whenever one is asked for.

    Args:
        file: Path of a file that `torch.save(model.state_dict(), file)` of an old torch wrote.

    Raises:
        InputError: If it cannot be read, is no such file, or does anything else than hold tensors.
    """

    def __init__(self, file: Path):
        self.entries = read_legacy_entries(file)


def read_legacy_entries(file: Path) -> dict[str, Entry]:
    """Reads the pickles of a legacy torch checkpoint and checks them against the size of the file.

    Args:
        file: Path of the file.

    Returns:
        Where each tensor is, by key.

    Raises:
        InputError: If it cannot be read, is damaged or cut, has bytes behind its last storage, holds anything but a
            dictionary of dense float32 and int64 tensors, or has an instruction or a name that such a dictionary
            does not need.
    """
    size = regular_file(file)
    try:
        with file.open("rb") as content:
            return _entries(file, content.read(MOST_PICKLE_BYTES), content, size)
    except OSError as error:
        raise InputError(f"cannot read {shown(file)}: {reason(error)}") from error
    except (ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise InputError(
            f"{shown(file)}: is not a checkpoint in torch's legacy format, or is damaged ({shown(error)}); get it anew"
        ) from error


def _entries(file: Path, head: bytes, content: Any, size: int) -> dict[str, Entry]:
    pickles = io.BytesIO(head)
    if _unpickled(pickles) != MAGIC:
        raise ValueError("it does not start with the format's magic number")
    if _unpickled(pickles) != PROTOCOL:
        raise ValueError(f"its version is not {PROTOCOL}")
    machine = _unpickled(pickles)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("it was not written by a little-endian machine")
    tensors, keys = _unpickled(pickles), _unpickled(pickles)
    if not isinstance(tensors, dict) or not all(isinstance(each, _Tensor) for each in tensors.values()):
        raise ValueError("it holds something else than a dictionary of tensors")
    starts = _storages(tensors, keys, pickles.tell(), content, size)
    return {key: _entry(file, key, tensor, starts[tensor.storage.key]) for key, tensor in tensors.items()}


def _storages(tensors: Mapping[str, "_Tensor"], keys: Any, place: int, content: Any, size: int) -> dict[str, int]:
    """Where the numbers of each storage start; every one must have as many as its tensors say."""
    storages = {}
    for tensor in tensors.values():
        if storages.setdefault(tensor.storage.key, tensor.storage) != tensor.storage:
            raise ValueError(f"the storage {brief(tensor.storage.key)} has two sizes or types")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its list of storages holds something else than keys")
    if len(set(keys)) != len(keys) or set(keys) != set(storages):
        raise ValueError("its list of storages is not that of its tensors")
    starts = {}
    for key in keys:
        content.seek(place)
        number, (_, width) = int.from_bytes(content.read(8), "little"), _STORAGES[storages[key].kind]
        if number != storages[key].numel or place + 8 + width * number > size:
            raise ValueError(f"the storage {brief(key)} should hold {storages[key].numel:,} numbers and does not")
        starts[key], place = place + 8, place + 8 + width * number
    if place != size:
        raise ValueError(f"its storages end at byte {place:,}, the file has {size:,}")
    return starts


def _entry(file: Path, key: str, tensor: "_Tensor", start: int) -> Entry:
    dtype, width = _STORAGES[tensor.storage.kind]
    count, expected = math.prod(tensor.shape), 1
    if tensor.offset + count > tensor.storage.numel:
        raise ValueError(f"{shown(key)} reaches beyond its storage")
    # Axes of length 1 may have any stride.
    axes = sorted(range(len(tensor.shape)), key=lambda axis: (-tensor.stride[axis], axis))
    axes = [axis for axis in axes if tensor.shape[axis] == 1] + [axis for axis in axes if tensor.shape[axis] != 1]
    for axis in reversed(axes):
        if tensor.shape[axis] != 1 and tensor.stride[axis] != expected and count:
            raise ValueError(f"{shown(key)} does not fill the memory that it spans")
        expected *= tensor.shape[axis]
    return Entry(file, dtype, tensor.shape, start + width * tensor.offset, width * count, tuple(axes))


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    key: str
    kind: str
    numel: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Mark:
    """Where a list of items starts on the stack."""


_MARK = _Mark()
_KNOWN = frozenset(
    [
        "PROTO",
        "STOP",
        "MARK",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINUNICODE",
        "EMPTY_DICT",
        "EMPTY_LIST",
        "EMPTY_TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "TUPLE",
        "SETITEM",
        "SETITEMS",
        "APPEND",
        "APPENDS",
        "BINPUT",
        "LONG_BINPUT",
        "BINGET",
        "LONG_BINGET",
        "GLOBAL",
        "REDUCE",
        "BINPERSID",
        "BUILD",
    ]
)
_OPCODES = {each.code.encode("latin-1"): each for each in pickletools.opcodes if each.name in _KNOWN}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE")
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _instructions(pickles: io.BytesIO) -> Iterator[tuple[str, Any]]:
    """Name and argument of one instruction after another; the argument of an unknown one is not even read."""
    while byte := pickles.read(1):
        known = _OPCODES.get(byte)
        if known is None:
            raise ValueError(f"a pickle has the instruction {byte!r}, which no state dict needs")
        if known.name == "GLOBAL":
            # As pickle reads it: two lines, without the escapes that `pickletools` would look for.
            yield known.name, " ".join(pickles.readline()[:-1].decode("ascii") for _ in range(2))
        else:
            yield known.name, known.arg.reader(pickles) if known.arg else None


def _unpickled(pickles: io.BytesIO) -> Any:
    """What one pickle builds, of the few things that it may. Messages name types only: a value can be endless."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def items() -> list[Any]:
        """What lies above the last mark, which goes away with it."""
        place = next((place for place in reversed(range(len(stack))) if stack[place] is _MARK), None)
        if place is None:
            raise ValueError("a pickle closes a list that it did not open")
        found = stack[place + 1 :]
        del stack[place:]
        return found

    def pop(count: int) -> list[Any]:
        if count > len(stack) or any(value is _MARK for value in stack[len(stack) - count :]):
            raise ValueError("a pickle takes more values than it has")
        found = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return found

    for number, (instruction, argument) in enumerate(_instructions(pickles)):
        if number > MOST_INSTRUCTIONS:
            raise ValueError(f"a pickle has more than {MOST_INSTRUCTIONS:,} instructions")
        match instruction:
            case "PROTO":
                if argument != 2 or number:
                    raise ValueError("a pickle is not of protocol 2")
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(_CONSTANTS[instruction])
            case name if name in _VALUES:
                stack.append(argument)
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case name if name in _TUPLES:
                stack.append(tuple(pop(_TUPLES[name])))
            case "TUPLE":
                stack.append(tuple(items()))
            case "SETITEM" | "SETITEMS":
                added = pop(2) if instruction == "SETITEM" else items()
                (target,) = pop(1)
                _add_to_dict(target, added)
                stack.append(target)
            case "APPEND" | "APPENDS":
                added = pop(1) if instruction == "APPEND" else items()
                (target,) = pop(1)
                if not isinstance(target, list):
                    raise ValueError(f"a pickle appends to a {_kind(target)}")
                target.extend(added)
                stack.append(target)
            case "BINPUT" | "LONG_BINPUT":
                (memo[argument],) = pop(1)
                stack.append(memo[argument])
            case "BINGET" | "LONG_BINGET":
                if argument not in memo:
                    raise ValueError("a pickle asks for a value that it did not keep")
                stack.append(memo[argument])
            case "GLOBAL":
                if argument not in _GLOBALS:
                    raise ValueError(f"a pickle names {brief(argument)}, which no state dict needs")
                stack.append(_Global(argument))
            case "REDUCE":
                stack.append(_rebuilt(*pop(2)))
            case "BINPERSID":
                stack.append(_storage(*pop(1)))
            case "BUILD":
                # torch notes the versions of modules on the dictionary; they are of no use here.
                target, state = pop(2)
                if not isinstance(target, dict) or not isinstance(state, dict) or set(state) != {"_metadata"}:
                    raise ValueError(f"a pickle changes the state of a {_kind(target)}")
                stack.append(target)
            case "STOP":
                (result,) = pop(1)
                if stack:
                    raise ValueError("a pickle leaves values behind")
                return result
    raise ValueError("a pickle has no end")


def _add_to_dict(target: Any, added: list[Any]) -> None:
    if not isinstance(target, dict) or len(added) % 2:
        raise ValueError(f"a pickle sets items of a {_kind(target)}")
    for key, value in zip(added[::2], added[1::2], strict=True):
        if not isinstance(key, str):
            raise ValueError(f"a pickle has a key that is a {_kind(key)}")
        if key in target:
            raise ValueError(f"a pickle has the key {brief(key)} twice")
        target[key] = value


def _rebuilt(function: Any, arguments: Any) -> Any:
    """What the two calls of a state dict would give; the names are compared, never called."""
    if function == _Global(_ORDERED_DICT) and arguments == ():
        return {}
    if function != _Global(_REBUILD) or not isinstance(arguments, tuple) or len(arguments) != 6:
        raise ValueError(f"a pickle calls a {_kind(function)} in a way that no state dict needs")
    storage, offset, shape, stride, requires_grad, hooks = arguments
    if not (
        isinstance(storage, _Storage)
        and _is_size(offset)
        and _are_sizes(shape)
        and _are_sizes(stride)
        and len(shape) == len(stride)
        and isinstance(requires_grad, bool)
        and hooks == {}
    ):
        raise ValueError("a pickle describes a tensor that cannot be")
    return _Tensor(storage, offset, shape, stride)


def _storage(description: Any) -> _Storage:
    if not isinstance(description, tuple) or len(description) != 6:
        raise ValueError(f"a pickle describes a storage by a {_kind(description)}")
    word, kind, key, location, numel, view = description
    if not (
        word == "storage"
        and isinstance(kind, _Global)
        and kind.name in _STORAGES
        and isinstance(key, str)
        and isinstance(location, str)
        and _is_size(numel)
        and view is None
    ):
        raise ValueError("a pickle describes a storage that cannot be")
    return _Storage(key, kind.name, numel)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_sizes(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= MOST_DIMENSIONS and all(map(_is_size, values))


def _kind(value: Any) -> str:
    return value.name if isinstance(value, _Global) else type(value).__name__.strip("_").lower()
