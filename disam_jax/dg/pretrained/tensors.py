"""The tensors of safetensors files: the header is checked as a whole, the numbers are read when they are asked for.

Files are written here too, by the letter of the format.

The format: https://github.com/huggingface/safetensors#format
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple, TypeGuard

import ml_dtypes
import numpy as np

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import MOST_JSON_BYTES, brief, open_regular, parse_json, reason, shown

_METADATA = "__metadata__"
# numpy's own limit.
_MOST_DIMENSIONS = 64

_DTYPES: Mapping[str, Any] = MappingProxyType(
    {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F32": np.float32,
        "F64": np.float64,
    }
)
# The other types of the format, with their bits: a file may hold them, but no variable is filled from them.
_UNSUPPORTED: Mapping[str, int] = MappingProxyType(
    {
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "F8_E4M3": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2": 8,
        "F8_E5M2FNUZ": 8,
        "F8_E8M0": 8,
        "C64": 64,
    }
)


class Entry(NamedTuple):
    """Where a tensor is.

    Attributes:
        file: Its file.
        dtype: Name of its type in the format.
        shape: Its shape.
        start: Place of its first byte in the file.
        size: Number of its bytes.
        axes: Its axes in the order in which they lie in memory; None where that is their own order.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int
    axes: tuple[int, ...] | None = None


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of one or several safetensors files, by key; read one at a time, whenever one is asked for.

    bfloat16 comes as `ml_dtypes.bfloat16`, as everywhere in jax.

    Args:
        files: Files, which together hold each key once.

    Attributes:
        entries: Where each tensor is, by key.

    Raises:
        InputError: If a file cannot be read, is not a safetensors file or is truncated, or if two files hold one key.
    """

    def __init__(self, files: Sequence[Path]):
        self.entries: dict[str, Entry] = {}
        for file in files:
            for key, entry in read_entries(file).items():
                if key in self.entries:
                    raise InputError(
                        f"{shown(file)}: holds {shown(key)}, and so does {shown(self.entries[key].file.name)}; "
                        "remove one of them"
                    )
                self.entries[key] = entry

    def __getitem__(self, key: str) -> np.ndarray:
        """The tensor, in memory of its own."""
        entry = self.entries[key]
        try:
            return _read(entry)
        except (OSError, EOFError, ValueError, OverflowError, MemoryError) as error:
            raise InputError(f"{shown(entry.file)}: cannot read {shown(key)}: {reason(error)}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def shapes(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors, which are not read for that.

    Args:
        tensors: `Tensors`, or arrays by key.

    Returns:
        Shapes by key.

    Example:
        >>> shapes({"a": np.ones((2, 3))})
        {'a': (2, 3)}
    """
    if isinstance(tensors, Tensors):
        return {key: entry.shape for key, entry in tensors.entries.items()}
    return {key: np.shape(tensor) for key, tensor in tensors.items()}


def read_entries(file: Path) -> dict[str, Entry]:
    """Reads the header of a safetensors file and checks it against the size of the file.

    Args:
        file: Path of the file.

    Returns:
        Where each tensor is, by key.

    Raises:
        InputError: If it cannot be read or is no whole safetensors file: the tensors must fill the bytes behind the
            header, without gaps, and each must have the bytes that its type and its shape take.
    """
    with open_regular(file) as (content, size):
        try:
            return _entries(file, content, size)
        except ValueError as error:
            raise InputError(
                f"{shown(file)}: is not a safetensors file or a truncated one ({error}); get it anew"
            ) from error


def read_metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says of itself.

    Args:
        file: Path of the file.

    Returns:
        Strings by key.

    Raises:
        InputError: If the file cannot be read or its header is none of a safetensors file.
    """
    with open_regular(file) as (content, size):
        try:
            return _header(content, size)[0]
        except ValueError as error:
            raise InputError(
                f"{shown(file)}: is not a safetensors file or a truncated one ({error}); get it anew"
            ) from error


def write_tensors(file: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file.

    Args:
        file: Path of the file.
        tensors: Arrays by key.
        metadata: Strings by key.

    Raises:
        OSError: If the system refuses.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "x.safetensors")
        ...     write_tensors(path, {"kernel": np.ones((2, 3), np.float32)}, {"writer": "me"})
        ...     Tensors([path])["kernel"].sum(), read_metadata(path)
        (np.float32(6.0), {'writer': 'me'})
    """
    names = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    end = 0
    for key, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[key] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    # The numbers begin at a multiple of eight bytes.
    text += b" " * (-len(text) % 8)
    with file.open("wb") as content:
        content.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            content.write(bytes_of(tensor))


def bytes_of(tensor: np.ndarray) -> memoryview:
    """The bytes of an array as they lie in a file, row by row.

    Example:
        >>> len(bytes_of(np.ones((2, 3), np.float32)))
        24
    """
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data


def _header(content: BinaryIO, size: int) -> tuple[dict[str, str], dict[str, Any], int]:
    """Metadata, entries as they are written, and the place of the first number."""
    length = int.from_bytes(content.read(8), "little")
    if size < 8 or length > min(size - 8, MOST_JSON_BYTES):
        raise ValueError(
            f"its header would take {length:,} of its {size:,} bytes, at most {MOST_JSON_BYTES:,} are read"
        )
    text = content.read(length)
    if not text.startswith(b"{"):
        raise ValueError("its header does not start with {")
    try:
        header = parse_json(text)
    except ValueError as error:
        raise ValueError(f"its header {error}") from error
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{_METADATA} must hold strings by key, got {brief(metadata)}")
    return metadata, header, 8 + length


def _entries(file: Path, content: BinaryIO, size: int) -> dict[str, Entry]:
    _, header, end = _header(content, size)
    entries = {key: _entry(file, key, value, end) for key, value in header.items()}
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].size)):
        if entry.start != end:
            raise ValueError(f"{shown(key)} starts at byte {entry.start:,}, where {end:,} is the next free one")
        end += entry.size
    if end != size:
        raise ValueError(f"its tensors end at byte {end:,}, the file has {size:,}")
    return entries


def _entry(file: Path, key: str, value: Any, offset: int) -> Entry:
    if not isinstance(value, dict):
        raise ValueError(f"{shown(key)} must be an object {{...}}, got {brief(value)}")
    dtype, shape, offsets = (value.get(name) for name in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not (dtype in _DTYPES or dtype in _UNSUPPORTED):
        raise ValueError(f"the dtype of {shown(key)} must be one of {', '.join(_DTYPES)}, got {brief(dtype)}")
    if not _whole_numbers(shape) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(
            f"the shape of {shown(key)} must be at most {_MOST_DIMENSIONS} whole numbers, got {brief(shape)}"
        )
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise ValueError(f"the data_offsets of {shown(key)} must be two whole numbers, got {brief(offsets)}")
    start, end = offsets
    bits = _UNSUPPORTED.get(dtype) or 8 * np.dtype(_DTYPES[dtype]).itemsize
    if 8 * (end - start) != bits * math.prod(shape):
        raise ValueError(
            f"{shown(key)} is {dtype} of shape {brief(shape)}, which does not take the bytes {brief(offsets)}"
        )
    return Entry(file, dtype, tuple(shape), offset + start, end - start)


def _whole_numbers(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _read(entry: Entry) -> np.ndarray:
    if entry.dtype not in _DTYPES:
        raise ValueError(f"the dtype {entry.dtype} is not supported, only {', '.join(_DTYPES)} are")
    with entry.file.open("rb") as content:
        content.seek(entry.start)
        numbers = bytearray(entry.size)
        if content.readinto(numbers) != entry.size:
            raise EOFError("the file has become shorter")
    flat = np.frombuffer(numbers, _DTYPES[entry.dtype])
    if entry.axes is None:
        return flat.reshape(entry.shape)
    return flat.reshape([entry.shape[axis] for axis in entry.axes]).transpose(np.argsort(entry.axes))
