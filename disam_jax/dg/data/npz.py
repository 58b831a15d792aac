"""Reading npz files: what the headers declare is checked against the file before memory is taken, and never pickle.

The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import contextlib
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import brief, open_regular, reason, shown

# Arrays that take more than both are refused: no data that is worth compressing shrinks so far.
MOST_RATIO = 100
FREE_BYTES = 2**28

_SINGLE = b"\x93NUMPY"
_ZIPS = (b"PK\x03\x04", b"PK\x05\x06")
_CHUNK = 2**20
# numpy's own limit.
_MOST_HEADER = 10_000

# What zipfile and zlib raise for files that are no whole zip archives.
_FAULTS = (
    EOFError,
    NotImplementedError,
    OverflowError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)

_NUMBER = r"(?:0|[1-9][0-9]*)L?"
_FIELD = re.compile(
    rf"""(?P<quote>['"])(?P<name>descr|fortran_order|shape)(?P=quote)\s*:\s*
    (?P<value>'[^'\\]*'|"[^"\\]*"|True|False|\(\s*\)|\(\s*{_NUMBER}\s*,(?:\s*{_NUMBER}\s*,)*\s*(?:{_NUMBER}\s*)?\))
    \s*(?:,\s*|(?=\}}))""",
    re.VERBOSE | re.ASCII,
)
_DESCR = re.compile(r"[<>|=]?(?:\?|[biufcSUVmM][0-9]+(?:\[[0-9a-zA-Z]*\])?)", re.ASCII)


class Header(NamedTuple):
    """What an npy file says of its array.

    Attributes:
        dtype: Type of the elements.
        shape: Shape of the array.
        fortran: Whether the first index varies fastest.
        length: Number of bytes before the elements.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    length: int

    @property
    def nbytes(self) -> int:
        """Number of bytes that the elements take."""
        return math.prod(self.shape) * self.dtype.itemsize


class Npz:
    """An npz file, its arrays not yet in memory.

    Args:
        path: Path of the file, for messages.
        file: The file, opened.
        size: Number of its bytes.

    Attributes:
        headers: What the file says of its arrays, by name.

    Raises:
        InputError: If it is no whole npz file, holds an array twice, or one that is compressed too much, encrypted, of
            Python objects, structured, or not of the size that its header declares.
    """

    def __init__(self, path: Path, file: IO[bytes], size: int):
        self.where = shown(path)
        start = file.read(len(_SINGLE))
        if start == _SINGLE:
            raise InputError(
                f"cannot read {self.where}: a single array; write np.savez(file, x=..., y=..., domain=...)"
            )
        if not start.startswith(_ZIPS):
            raise InputError(f"cannot read {self.where}: not a complete npz file (it does not start like one)")
        try:
            self._archive = zipfile.ZipFile(file)
        except _FAULTS as error:
            raise InputError(f"cannot read {self.where}: not a complete npz file ({reason(error)})") from error
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in self._archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in self._members:
                raise InputError(f"cannot read {self.where}: it holds {shown(name)} twice")
            self._members[name] = member
        total = sum(member.file_size for member in self._members.values())
        if total > max(FREE_BYTES, MOST_RATIO * size):
            raise InputError(
                f"cannot read {self.where}: its {size:,} bytes stand for {total:,}, more than {MOST_RATIO} times as "
                "many; if that is meant, write the file with np.savez, which does not compress"
            )
        self._size = size
        self.headers = {name: self._header(name) for name in self._members}

    def _header(self, name: str) -> Header:
        member = self._members[name]
        if member.flag_bits & 0x41:
            raise self._unreadable(name, "it is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._unreadable(name, f"its compression {member.compress_type} is none that np.savez writes")
        if member.compress_size > self._size:
            raise self._unreadable(name, "it is longer than the file")
        try:
            with self._archive.open(member) as content:
                header = read_header(content)
        except _FAULTS as error:
            raise self._unreadable(name, reason(error)) from error
        if header.dtype.hasobject:
            raise InputError(f"{self.where}: {shown(name)} holds Python objects; save numbers or strings")
        if header.length + header.nbytes != member.file_size:
            raise self._unreadable(
                name,
                f"{header.dtype} of shape {brief(list(header.shape))} takes {header.nbytes:,} bytes, but it has "
                f"{member.file_size - header.length:,}",
            )
        return header

    def read(self, name: str) -> np.ndarray:
        """Reads an array.

        Args:
            name: One of `headers`.

        Returns:
            The array, in memory of its own.

        Raises:
            InputError: If it is damaged or its text is not Unicode.
        """
        header = self.headers[name]
        elements = bytearray(header.nbytes)
        try:
            with self._archive.open(self._members[name]) as content:
                content.read(header.length)
                for place in range(0, header.nbytes, _CHUNK):
                    elements[place : place + _CHUNK] = _exactly(content, min(_CHUNK, header.nbytes - place))
                # The checksum is compared at the end.
                content.read()
            array = np.frombuffer(elements, header.dtype).reshape(header.shape, order="F" if header.fortran else "C")
        except _FAULTS as error:
            raise self._unreadable(name, reason(error)) from error
        if not _is_valid(array):
            raise self._unreadable(name, f"it holds bytes that are no {'text' if header.dtype.kind == 'U' else 'bool'}")
        return array

    def _unreadable(self, name: str, why: str) -> InputError:
        return InputError(f"cannot read {shown(name)} of {self.where}: {why}")


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """Opens an npz file and checks all that it says of its arrays.

    Args:
        path: Path of the file.

    Yields:
        Npz, to be read while the file is open.

    Raises:
        InputError: If it cannot be read or is no npz file, see `Npz`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(Path(folder, "x.npz"), x=np.zeros((2, 3)))
        ...     with open_npz(Path(folder, "x.npz")) as npz:
        ...         npz.headers["x"].shape, npz.read("x").sum()
        ((2, 3), np.float64(0.0))
    """
    with open_regular(path) as (file, size):
        yield Npz(path, file, size)


def read_header(content: IO[bytes]) -> Header:
    """Reads the header of an npy file.

    Args:
        content: The file at its start; it is left at its first element.

    Returns:
        Header.

    Raises:
        ValueError: If it is not a npy file of a plain array of numbers, strings or objects.
        EOFError: If it ends before.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> np.save(file, np.zeros((2, 3), np.float16))
        >>> _ = file.seek(0)
        >>> read_header(file)
        Header(dtype=dtype('float16'), shape=(2, 3), fortran=False, length=128)
    """
    start = _exactly(content, 8)
    if not start.startswith(_SINGLE):
        raise ValueError("it is not a npy file")
    version = (start[6], start[7])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"it is an npy file of the unknown version {version[0]}.{version[1]}")
    count = _exactly(content, 2 if version == (1, 0) else 4)
    length = int.from_bytes(count, "little")
    if length > _MOST_HEADER:
        raise ValueError(f"its header would take {length:,} bytes, at most {_MOST_HEADER:,} are read")
    dtype, shape, fortran = _parse(_exactly(content, length).decode("latin-1"))
    return Header(dtype, shape, fortran, len(start) + len(count) + length)


def _exactly(content: IO[bytes], count: int) -> bytes:
    found = content.read(count)
    if len(found) < count:
        raise EOFError("it is cut off")
    return found


def _parse(header: str) -> tuple[np.dtype, tuple[int, ...], bool]:
    """The header is a literal of Python, of which only the form for plain arrays is read."""
    fields = {match["name"]: match["value"] for match in _FIELD.finditer(header)}
    whole = _FIELD.sub("", header).split() in (["{}"], ["{", "}"])
    descr, fortran, shape = (fields.get(name, "") for name in ("descr", "fortran_order", "shape"))
    if not whole or descr[:1] not in ("'", '"') or fortran not in ("True", "False") or shape[:1] != "(":
        raise ValueError(f"its header is not that of an array of numbers or strings: {brief(header.strip())}")
    return _dtype(descr[1:-1]), tuple(map(int, re.findall("[0-9]+", shape))), fortran == "True"


def _dtype(descr: str) -> np.dtype:
    if descr == "|O":
        return np.dtype(object)
    try:
        dtype = np.dtype(descr) if _DESCR.fullmatch(descr) else None
    except (TypeError, ValueError, OverflowError):
        dtype = None
    if dtype is None or dtype.itemsize == 0:
        raise ValueError(f"its type {brief(descr)} is not that of numbers or strings")
    return dtype


def _is_valid(array: np.ndarray) -> bool:
    """Whether the bytes of bools and of strings are such: numpy itself looks at that when it is too late."""
    if array.dtype.kind == "b":
        return bool((array.view(np.uint8) <= 1).all())
    if array.dtype.kind == "U" and array.size:
        codes = array.reshape(-1, order="A").view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
        return not ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes <= 0xDFFF))).any()
    return True
