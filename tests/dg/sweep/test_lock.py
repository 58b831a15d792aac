"""One writer for a folder, on file systems with flock and without."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from synthetic_results import make_plan, write_results

from disam_jax.dg.errors import InputError
from disam_jax.dg.sweep import lock, results_file

LOCK = f"{results_file.FILE}.lock"
REFUSALS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]

WRITER = """
import sys, time
from pathlib import Path
from disam_jax.dg.sweep import lock
with lock.lock_file(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def no_flock(monkeypatch):
    """As on Lustre without its option flock, and on NFS without its lock service."""

    def refuse(number):
        def flock(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(lock.fcntl, "flock", flock)

    refuse(errno.ENOLCK)
    return refuse


@pytest.mark.parametrize("number", REFUSALS, ids=os.strerror)
def test_a_file_system_without_flock_gets_a_lock_file(tmp_path, no_flock, number):
    no_flock(number)
    write_results(tmp_path)
    header, _ = make_plan()
    with results_file.open_store(tmp_path, header) as store:
        assert len(store.records) == 12
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
        with pytest.raises(InputError) as error, results_file.open_store(tmp_path, header):
            pass
        assert f"process {os.getpid()} on {socket.gethostname()}" in str(error.value)
        assert str(error.value).endswith("wait for it, or give another --out")
        assert "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["report.json", results_file.FILE]


@pytest.mark.usefixtures("no_flock")
def test_results_are_moved_aside_under_a_lock_file(tmp_path):
    write_results(tmp_path)
    with results_file.open_store(tmp_path, make_plan(steps=6)[0], overwrite=True) as store:
        assert store.aside == tmp_path / "earlier-1"
    assert sorted(os.listdir(tmp_path)) == ["earlier-1", "report.json", results_file.FILE]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EWOULDBLOCK, "another process is writing to"),
        (errno.EIO, "cannot lock .*: Input/output error; put --out"),
    ],
)
def test_a_lock_that_cannot_be_had_says_why(tmp_path, no_flock, number, said):
    no_flock(number)
    with pytest.raises(InputError, match=said), results_file.open_store(tmp_path, make_plan()[0]):
        pass


def owned(path, **owner):
    path.write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid(), "id": "0", **owner}))


def dead_process():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.parametrize(
    ("owner", "seconds", "free"),
    [
        (dict, 0, False),
        (lambda: {"process": dead_process()}, 0, True),
        (lambda: {"host": "elsewhere", "process": dead_process()}, 0, False),
        (lambda: {"host": "elsewhere"}, lock.STALE_SECONDS - 30, False),
        (lambda: {"host": "elsewhere"}, lock.STALE_SECONDS + 30, True),
    ],
    ids=["alive", "dead here", "elsewhere", "elsewhere, silent for a while", "elsewhere, silent for long"],
)
def test_a_lock_file_that_was_left_is_told_from_one_that_is_held(tmp_path, owner, seconds, free):
    path = tmp_path / LOCK
    owned(path, **owner())
    then = time.time() - seconds
    os.utime(path, (then, then))
    if free:
        with lock.lock_file(tmp_path / results_file.FILE):
            assert json.loads(path.read_text())["process"] == os.getpid()
        assert os.listdir(tmp_path) == []
    else:
        before = path.read_text()
        with pytest.raises(InputError, match="taken for dead"), lock.lock_file(tmp_path / results_file.FILE):
            pass
        assert path.read_text() == before
        assert os.listdir(tmp_path) == [LOCK]


def test_a_lock_file_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / LOCK).write_text("mine")
    with pytest.raises(InputError, match="is not from disam-jax"), lock.lock_file(tmp_path / results_file.FILE):
        pass
    assert (tmp_path / LOCK).read_text() == "mine"


def test_the_owner_touches_its_lock_file(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "EVERY_SECONDS", 0.01)
    with lock.lock_file(tmp_path / results_file.FILE):
        os.utime(tmp_path / LOCK, (0, 0))
        for _ in range(500):
            if os.stat(tmp_path / LOCK).st_mtime > 0:
                return
            time.sleep(0.01)
    pytest.fail("never touched")


@pytest.mark.slow
def test_the_lock_file_of_a_killed_process_is_taken_over(tmp_path):
    path = tmp_path / results_file.FILE
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=f"process {child.pid} on"), lock.lock_file(path):
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
        with lock.lock_file(path):
            pass
    assert os.listdir(tmp_path) == []


def test_a_folder_that_takes_no_lock_file_says_so(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(InputError) as error, lock.lock_file(tmp_path / results_file.FILE):
        pass
    assert "the file system has no flock" in str(error.value)
    assert "Read-only file system; put --out on another disk" in str(error.value)
    assert os.listdir(tmp_path) == []
