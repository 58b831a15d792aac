"""Two real processes on this machine, under jax.distributed: the numbers of one."""

import pathlib
import socket
import subprocess
import sys

import pytest

WORKER = pathlib.Path(__file__).parent / "support" / "two_processes.py"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one():
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(i), port], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for i in range(2)
    ]
    try:
        outputs = [p.communicate(timeout=120)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    for i, (p, out) in enumerate(zip(processes, outputs, strict=True)):
        assert p.returncode == 0, out
        assert f"process {i}: 2 processes, 4 devices, same numbers" in out
