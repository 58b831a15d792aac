"""One writer for a file: by flock where the file system has it, by a file that says who writes where it has not.

NFS without its lock service and Lustre without the option flock refuse flock. There a file FILE.lock is made, which is
atomic on them too. Its owner touches it as long as it lives, so that one that a killed process left can be told.
"""

import contextlib
import errno
import json
import os
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import reason, shown

try:
    import fcntl
except ImportError:  # Windows has no such lock.
    fcntl = None

# How often the owner touches the file, and when it is taken for dead: clocks of other machines are not asked.
EVERY_SECONDS = 15.0
STALE_SECONDS = 180.0
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


def busy(path: Path, who: str = "another process") -> InputError:
    """The error of a second writer."""
    return InputError(f"{who} is writing to {shown(path)}: wait for it, or give another --out")


def flock(file: Any, path: Path) -> bool:
    """Locks an open file for this process, however it ends.

    Args:
        file: Open file.
        path: Its path, for the error.

    Returns:
        Whether it is locked; False where the file system has no such locks.

    Raises:
        InputError: If another process has it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            raise busy(path) from error
        if error.errno in UNSUPPORTED:
            return False
        raise InputError(f"cannot lock {shown(path)}: {reason(error)}; put --out on another disk") from error
    return True


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Holds the file `path`.lock, in the place of a lock of the system.

    Args:
        path: Path of what is written.

    Raises:
        InputError: If another process has it, or it cannot be made.
    """
    lock = path.with_name(f"{path.name}.lock")
    mine = {"host": socket.gethostname(), "process": os.getpid(), "id": uuid.uuid4().hex}
    content = json.dumps(mine).encode()
    try:
        while not _made(lock, content):
            _check_stale(lock, path)
    except OSError as error:
        raise InputError(
            f"cannot lock {shown(path)}: the file system has no flock, and {shown(lock)} cannot be made: "
            f"{reason(error)}; put --out on another disk"
        ) from error
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(EVERY_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(lock)

    keeper = threading.Thread(target=touch, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        with contextlib.suppress(OSError):
            if lock.read_bytes() == content:
                lock.unlink()


def _made(lock: Path, content: bytes) -> bool:
    """Makes the file, whole, unless it is there: a hard link is atomic on NFS of any version."""
    handle, name = tempfile.mkstemp(dir=lock.parent, prefix=f".{lock.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        try:
            os.link(name, lock)
        except FileExistsError:
            return False
        return True
    finally:
        os.unlink(name)


def _check_stale(lock: Path, path: Path) -> None:
    """Removes a lock whose owner is dead.

    Raises:
        InputError: If it may be alive.
    """
    try:
        content = lock.read_bytes()
        touched = lock.stat().st_mtime
    except FileNotFoundError:
        return
    try:
        owner = json.loads(content)
        host, process = str(owner["host"]), int(owner["process"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{shown(lock)} is not from disam-jax: give another --out, or move that file") from error
    here = host == socket.gethostname()
    if (here and not _lives(process)) or _now(lock.parent) - touched > STALE_SECONDS:
        aside = lock.with_name(f".{lock.name}-{uuid.uuid4().hex}")
        try:
            os.rename(lock, aside)
        except FileNotFoundError:
            return
        # Another process may have taken it over since it was read.
        if aside.read_bytes() != content:
            with contextlib.suppress(FileExistsError):
                os.link(aside, lock)
        aside.unlink()
        return
    raise busy(
        path,
        f"process {process} on {shown(host)}, which has {shown(lock.name)} (a lock file, since the file system has no "
        f"flock, and taken for dead {STALE_SECONDS:.0f} s after it was last touched),",
    )


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _now(folder: Path) -> float:
    """The time by the clock of the file system, which is that of its server."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
        return os.stat(file.name).st_mtime
