"""Reading files that others wrote: every failure is one line that names the file, and nothing hangs."""

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from disam_jax.dg.errors import InputError

# Above what any configuration, index or vocabulary takes; parsed, it is still far below the memory of a machine.
MOST_JSON_BYTES = 2**24
MOST_JSON_LEVELS = 64

# A string, or the rest of the text if it is not closed. The quantifier is possessive, so the search is linear.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_NO_BRACKET = re.compile(r"[^][{}]+")


def shown(text: object) -> str:
    r"""A path or a name from a file, fit to print in one line.

    Args:
        text: Path or string, which may hold line breaks or bytes that are not UTF-8.

    Returns:
        The text with every character that cannot be printed escaped.

    Example:
        >>> print(shown("café\n"), shown(os.fsdecode(b"caf\xe9")))
        café\n caf\udce9
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text))


def brief(value: object, most: int = 80) -> str:
    """A value from a file for a message: its `repr`, cut if it is long.

    Args:
        value: Any value.
        most: Number of characters to keep.

    Returns:
        One line.

    Example:
        >>> brief("gelu"), brief([0] * 1000, most=9)
        ("'gelu'", '[0, 0, 0,...')
    """
    text = repr(value)
    return shown(text) if len(text) <= most else f"{shown(text[:most])}..."


def reason(error: Exception) -> str:
    """What an error of a library or of the system says, in one line.

    Args:
        error: Error that was raised.

    Returns:
        Its message, or the name of its type if it has none.

    Example:
        >>> reason(FileNotFoundError(2, "No such file or directory", "x")), reason(EOFError())
        ('No such file or directory', 'EOFError')
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shown(" ".join(text.split())) or type(error).__name__


def exists(path: Path) -> bool:
    """Whether something is there under this name, be it a broken link or of a kind that cannot be read.

    Args:
        path: Path to look at.

    Returns:
        Whether it is there.

    Raises:
        InputError: If that cannot be told: the name is too long or impossible, or its folder may not be searched.

    Example:
        >>> exists(Path(".")), exists(Path("nothing here"))
        (True, False)
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return True


def is_folder(path: Path) -> bool:
    """Whether this is a folder.

    Args:
        path: Path to look at.

    Returns:
        Whether it is a folder or a link to one.

    Raises:
        InputError: As for `exists`.

    Example:
        >>> is_folder(Path(".")), is_folder(Path("nothing here"))
        (True, False)
    """
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def regular_file(path: Path) -> int:
    """Makes sure, without opening it, that a path leads to a regular file.

    To open a pipe would wait for someone to write, and to read a device may never end.

    Args:
        path: Path of the file, or of a link to it.

    Returns:
        Size of the file in bytes.

    Raises:
        InputError: If nothing is there, it may not be looked at, the name cannot be that of a file, or it is a folder,
            a pipe, a socket or a device.

    Example:
        >>> regular_file(Path("."))
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: cannot read .: it is a folder, not a file
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"cannot read {shown(path)}: it is {_kind(found.st_mode)}, not a file")
    return found.st_size


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Opens a regular file to read it.

    Args:
        path: Path of the file.

    Yields:
        The file, and its size in bytes.

    Raises:
        InputError: If it is not a regular file, or cannot be opened or read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "four")
        ...     _ = path.write_bytes(b"1234")
        ...     with open_regular(path) as (file, size):
        ...         file.read(), size
        (b'1234', 4)
    """
    size = regular_file(path)
    try:
        with path.open("rb") as file:
            yield file, size
    except OSError as error:
        raise InputError(f"cannot read {shown(path)}: {reason(error)}") from error


def read_bytes(path: Path, most: int = MOST_JSON_BYTES) -> bytes:
    """The content of a regular file.

    Args:
        path: Path of the file.
        most: Largest size in bytes; it is checked before the file is read.

    Returns:
        The content.

    Raises:
        InputError: If it is not a regular file, is larger, or cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "x").write_bytes(b"12345")
        ...     read_bytes(Path(folder, "x"))
        b'12345'
    """
    size = regular_file(path)
    if size > most:
        raise InputError(f"cannot read {shown(path)}: it has {size:,} bytes, more than {most:,}")
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise _unreadable(path, error) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, see `parse_json`.

    Args:
        path: Path of the file.

    Returns:
        The object.

    Raises:
        InputError: If it cannot be read or holds no JSON object.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "config.json").write_text('{"model_type": "vit"}')
        ...     read_json(Path(folder, "config.json"))
        {'model_type': 'vit'}
    """
    try:
        return parse_json(read_bytes(path))
    except ValueError as error:
        raise InputError(f"{shown(path)}: {error}; get it anew") from error


def parse_json(content: bytes) -> dict[str, Any]:
    """A JSON object from bytes, by the standard's letter: no NaN, no key twice.

    Args:
        content: JSON in UTF-8.

    Returns:
        The object.

    Raises:
        ValueError: If it is not JSON, is nested in more than `MOST_JSON_LEVELS` levels, or is no object; in one line.

    Example:
        >>> parse_json(b'{"a": [1, 2.5, null]}')
        {'a': [1, 2.5, None]}
        >>> parse_json(b'{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ...
        ValueError: is not JSON (the key 'a' appears twice)
    """
    try:
        text = content.decode("utf-8")
        _check_levels(text)
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except ValueError as error:
        raise ValueError(f"is not JSON ({reason(error)})") from error
    if not isinstance(value, dict):
        raise ValueError(f"holds a {type(value).__name__}, but must hold an object {{...}}")
    return value


def _unreadable(path: Path, error: OSError | ValueError) -> InputError:
    """The error to raise; a ValueError comes from a name with a zero byte, or one that the system cannot encode."""
    lost = isinstance(error, FileNotFoundError) and os.path.islink(path)
    return InputError(f"cannot read {shown(path)}: {'it is a link to nothing' if lost else reason(error)}")


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def _check_levels(text: str) -> None:
    """The parser is recursive, and how deep it can go depends on the version of Python."""
    level = 0
    for bracket in _NO_BRACKET.sub("", _STRING.sub("", text)):
        level += 1 if bracket in "[{" else -1
        if level > MOST_JSON_LEVELS:
            raise ValueError(f"nested in more than {MOST_JSON_LEVELS} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {brief(twice)} appears twice")
    return entries


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}")
