"""Folders for what is being written, so that it appears whole or not at all and a kill leaves nothing behind."""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such lock.
    fcntl = None

UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def unfinished_folder(out: Path) -> Iterator[Path]:
    """A folder for files that are being written, locked for as long as this process is at it.

    It lies inside `out`, so that moving its files there is one step of the file system.

    Args:
        out: Folder, which must exist.

    Yields:
        A new folder; it is removed at the end, with what is still in it.

    Raises:
        OSError: If the system refuses.

    Example:
        >>> with tempfile.TemporaryDirectory() as out:
        ...     with unfinished_folder(Path(out)) as folder:
        ...         _ = Path(folder, "table.md").write_text("whole")
        ...         _ = os.replace(Path(folder, "table.md"), Path(out, "table.md"))
        ...     os.listdir(out)
        ['table.md']
    """
    while True:
        folder = Path(tempfile.mkdtemp(dir=out, prefix=UNFINISHED))
        with _lock(folder):
            # Another process may have taken it for a left-over before it was locked.
            if folder.exists():
                try:
                    yield folder
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
                return


def remove_unfinished(out: Path) -> None:
    """Removes what a process left that was killed while it wrote files, and nothing of a process that still writes.

    Args:
        out: Folder, which must exist.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, ".unfinished-1").mkdir()
        ...     remove_unfinished(Path(folder))
        ...     list(Path(folder).iterdir())
        []
    """
    for folder in out.glob(f"{UNFINISHED}*"):
        if not stat.S_ISDIR(folder.lstat().st_mode):
            continue
        with _lock(folder) as left_over:
            if left_over:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Whether the folder could be locked; the lock ends with the context, or with the process however it ends."""
    if fcntl is None:
        yield False
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
