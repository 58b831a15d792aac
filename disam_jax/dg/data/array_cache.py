"""Arrays that take long to compute, kept on disk under everything that they depend on and mapped into memory.

An array is a .npy file with a .json file beside it, which says what the array depends on. It is written under another
name and renamed when it is whole, its .json last: what a killed run leaves is never believed.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import exists, read_json, reason, regular_file, shown

# Without it, two processes may compute the same array twice.
try:
    import fcntl
except ImportError:
    fcntl = None

PARTIAL = ".partial"


class Wanted(NamedTuple):
    """An array that is looked for in a folder, or is to be put there.

    Attributes:
        name: What it is called in file names.
        origin: Everything that its values depend on, as JSON values.
        shape: Its shape.
        dtype: Name of its type.
    """

    name: str
    origin: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """What its values take, in memory and on disk.

        Example:
            >>> Wanted("toy", {}, (2, 3), "float16").bytes
            12
        """
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def record(self) -> dict[str, Any]:
        """The content of the .json file."""
        origin = json.loads(json.dumps(dict(self.origin)))
        return {"origin": origin, "shape": list(self.shape), "dtype": self.dtype, "bytes": self.bytes}

    @property
    def key(self) -> str:
        """SHA-256 of all this.

        Example:
            >>> Wanted("toy", {"seed": 0}, (2,), "float32").key == Wanted("toy", {"seed": 1}, (2,), "float32").key
            False
        """
        return hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()

    def path(self, folder: Path) -> Path:
        """Where it is kept."""
        return folder / f"{self.name}-{self.key[:16]}.npy"


class RowsOnDisk:
    """Some rows of an array that is mapped into memory, which are read when they are asked for.

    Args:
        array: [N, ...].
        rows: int [K].

    Example:
        >>> some = RowsOnDisk(np.array([[0.0], [1.0], [2.0]]), np.array([2, 0]))
        >>> some.shape, some[np.array([0, 0, 1])].tolist()
        ((2, 1), [[2.0], [2.0], [0.0]])
    """

    def __init__(self, array: np.ndarray, rows: np.ndarray):
        self.array, self.rows = array, rows
        self.shape, self.dtype, self.ndim = (len(rows), *array.shape[1:]), array.dtype, array.ndim

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: np.ndarray) -> np.ndarray:
        return self.array[self.rows[chosen]]


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder for such arrays where none is given: `disam-jax` in the user's folder for caches.

    Args:
        environment: Environment variables, of which XDG_CACHE_HOME is used.

    Returns:
        Path; it need not exist.

    Example:
        >>> cache_folder({"XDG_CACHE_HOME": "/scratch"}).as_posix()
        '/scratch/disam-jax'
    """
    given = environment.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "disam-jax"


def stored(folder: Path, wanted: Wanted, say: Callable[[str], None] = lambda _: None) -> np.ndarray | None:
    """An array of the folder, if it is there, whole, and of what is wanted.

    Args:
        folder: Folder, which need not exist.
        wanted: Array to look for.
        say: Called with a line where something is there that is not believed.

    Returns:
        The array, mapped into memory and read-only, or None.

    Example:
        >>> stored(Path("nowhere"), Wanted("toy", {}, (2,), "float32"))
    """
    path = wanted.path(folder)
    if not exists(path):
        return None
    try:
        if read_json(path.with_suffix(".json")) != {"key": wanted.key, **wanted.record}:
            raise InputError("its .json is of another array")
        # The values are at the end, after a header of a few bytes.
        if not 0 < regular_file(path) - wanted.bytes <= 2**16:
            raise InputError("it is not whole")
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if (found.shape, found.dtype.name) != (wanted.shape, wanted.dtype):
            raise InputError(f"it is {found.dtype.name} {list(found.shape)}")
    except (InputError, OSError, ValueError) as error:
        say(f"{shown(path)} is not used, {reason(error)}: it is computed anew")
        return None
    return found


def differences(folder: Path, wanted: Wanted) -> dict[str, list[str]]:
    """In what the arrays of the same name in the folder differ from the one that is wanted.

    Args:
        folder: Folder, which need not exist.
        wanted: Array to look for.

    Returns:
        For the file name of each, the names of the entries of `origin` that differ, or "shape" and "dtype".

    Example:
        >>> differences(Path("nowhere"), Wanted("toy", {}, (2,), "float32"))
        {}
    """
    found = {}
    for path in sorted(folder.glob(f"{wanted.name}-*.json")):
        with contextlib.suppress(InputError):
            record = read_json(path)
            flat = lambda record: {**record["origin"], "shape": record["shape"], "dtype": record["dtype"]}
            if isinstance(record.get("origin"), dict) and {"shape", "dtype"} <= record.keys():
                here, there = flat(wanted.record), flat(record)
                found[path.with_suffix(".npy").name] = sorted(
                    name for name in here.keys() | there.keys() if here.get(name) != there.get(name)
                )
    return {name: different for name, different in found.items() if different}


def keep(
    folder: Path, wanted: Wanted, blocks: Callable[[], Iterable[np.ndarray]], say: Callable[[str], None]
) -> np.ndarray:
    """Computes an array and keeps it. Where another process is at it already, waits for that one.

    Args:
        folder: Folder, made if need be.
        wanted: Array to compute.
        blocks: Function to the rows of the array, some at a time.
        say: Called with a line where there is something to tell.

    Returns:
        The array, mapped into memory and read-only.

    Raises:
        InputError: If the disk is full, or the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> wanted = Wanted("toy", {"seed": 0}, (3, 2), "float16")
        >>> with tempfile.TemporaryDirectory() as name:
        ...     array = keep(Path(name), wanted, lambda: [np.ones((2, 2)), np.zeros((1, 2))], print)
        ...     array.tolist(), stored(Path(name), wanted).dtype.name
        ([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]], 'float16')
    """
    path = wanted.path(folder)
    partial = path.with_suffix(PARTIAL if fcntl is not None else f".{os.getpid()}{PARTIAL}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)
        with _locked(partial, say) as (file, waited):
            found = stored(folder, wanted, say) if waited else None
            if found is not None:
                return found
            free = shutil.disk_usage(folder).free
            if wanted.bytes > free:
                raise InputError(
                    f"{shown(path)} takes {in_words(wanted.bytes)} and {in_words(free)} are free there: make room, or "
                    "give another folder with --cache DIR"
                )
            _write(file, wanted, blocks())
            path.with_suffix(".json").unlink(missing_ok=True)
            os.replace(partial, path)
            record = path.with_suffix(".json.new")
            record.write_text(json.dumps({"key": wanted.key, **wanted.record}))
            os.replace(record, path.with_suffix(".json"))
    except OSError as error:
        raise InputError(
            f"cannot write {shown(path)}: {reason(error)}; give another folder with --cache DIR"
        ) from error
    found = stored(folder, wanted, say)
    assert found is not None
    return found


def _write(file: BinaryIO, wanted: Wanted, blocks: Iterable[np.ndarray]) -> None:
    file.truncate(0)
    header = {"descr": np.dtype(wanted.dtype).str, "fortran_order": False, "shape": wanted.shape}
    np.lib.format.write_array_header_1_0(file, header)
    rows = 0
    for block in blocks:
        assert block.shape[1:] == wanted.shape[1:]
        rows += len(block)
        file.write(np.ascontiguousarray(block, wanted.dtype).data)
    assert rows == wanted.shape[0]
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Iterator[tuple[BinaryIO, bool]]:
    """A file that this process alone writes, and whether another one had it before. It is gone afterwards."""
    waited = False
    while True:
        file = path.open("a+b")
        try:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    say(f"another process computes {shown(path.with_suffix('.npy'))}: waiting for it")
                    waited = True
                    fcntl.flock(file, fcntl.LOCK_EX)
            # Another process may have renamed or removed it before it was locked.
            if _is_at(file, path):
                try:
                    yield file, waited
                finally:
                    # Renamed, if all went well.
                    if _is_at(file, path):
                        path.unlink()
                return
        finally:
            file.close()


def _is_at(file: BinaryIO, path: Path) -> bool:
    return exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path))


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process left, and nothing of a process that still writes.

    Args:
        folder: Folder, which must exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     Path(name, "toy-0123.partial").touch()
        ...     remove_unfinished(Path(name))
        ...     list(Path(name).iterdir())
        []
    """
    if fcntl is None:
        return
    for path in folder.glob(f"*{PARTIAL}"):
        with contextlib.suppress(OSError), path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def in_words(number: int) -> str:
    """A number of bytes in words.

    Example:
        >>> in_words(3 * 2**29), in_words(5 * 2**20), in_words(700)
        ('1.5 GiB', '5.0 MiB', '700 bytes')
    """
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"
