"""A run that is killed and continued from its last checkpoint is bitwise the run that was left alone."""

import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

WORKER = pathlib.Path(__file__).parent / "support" / "checkpoint_worker.py"
STEPS = 9

pytestmark = pytest.mark.skipif(importlib.util.find_spec("orbax") is None, reason="needs orbax-checkpoint")


class Worker:
    """A process that trains, one step for each line that it is sent."""

    def __init__(self, directory, file):
        self.said = []
        self.log = pathlib.Path(f"{file}.log")
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(WORKER), str(directory), str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        self.limit = threading.Timer(120, self.process.kill)

    def __enter__(self):
        self.limit.start()
        return self

    def __exit__(self, *_):
        self.limit.cancel()
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def go(self, steps, command="go"):
        self.process.stdin.write(f"{command}\n" * steps)
        self.process.stdin.flush()

    def wait_for(self, words):
        while not any(line.startswith(words) for line in self.said):
            line = self.process.stdout.readline()
            assert line, f"ended without {words!r}, after {self.said}: {self.log.read_text()}"
            self.said.append(line.strip())

    def finish(self):
        self.process.stdin.close()
        self.wait_for("done")
        assert self.process.wait(timeout=60) == 0

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL
        self.said += [line.strip() for line in self.process.stdout]
        assert "done" not in self.said

    @property
    def steps(self):
        """What the run was at each step: {step: digest of parameters and state, position of the iterator}."""
        return {int(words[1]): tuple(words[2:]) for words in map(str.split, self.said) if words[0] == "step"}

    @property
    def restored(self):
        return [int(words[1]) for words in map(str.split, self.said) if words[0] == "restored"]


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    at = tmp_path_factory.mktemp("left alone")
    with Worker(at / "checkpoints", at / "end.npz") as worker:
        worker.go(STEPS)
        worker.finish()
    assert list(worker.steps) == list(range(1, STEPS + 1))
    assert len(set(worker.steps.values())) == STEPS
    return worker.steps, at / "end.npz"


@pytest.mark.slow
def test_killed_and_continued_is_bitwise_the_run_that_was_left_alone(left_alone, tmp_path):
    """Killed twice: with a step behind the last checkpoint lost, and while a checkpoint was being written.

    Step 4 lies between two refreshes of ``refresh_every=3`` (at the first, fourth and seventh step): the perturbation
    that the checkpoint holds is used by the next step.
    """
    steps, end = left_alone
    arguments = tmp_path / "checkpoints", tmp_path / "end.npz"
    with Worker(*arguments) as first:
        first.go(5, "and wait")
        first.wait_for("step 5")
        first.kill()
    assert "saved 4" in first.said
    assert first.restored == []

    with Worker(*arguments) as second:
        second.go(2)
        second.wait_for("saving 6")
        second.kill()
    assert second.restored == [4]

    with Worker(*arguments) as third:
        third.wait_for("restored")
        (step,) = third.restored
        assert step in (4, 6)  # whether the last checkpoint was complete is up to the race
        third.go(STEPS - step)
        third.finish()

    for worker in (first, second, third):
        assert worker.steps.items() <= steps.items()
    with np.load(end) as want, np.load(arguments[1]) as got:
        assert set(got) == set(want)
        for name in want:
            assert got[name].dtype == want[name].dtype
            assert got[name].tobytes() == want[name].tobytes(), name
