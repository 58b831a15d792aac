"""Checkpoints within a run: a run that goes on from one is, bit by bit, the run that was left alone."""

import dataclasses
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from timeless import timeless

from disam_jax.dg.data.folder import list_images, load_images
from disam_jax.dg.data.load import stream_images
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import find_methods
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.results import Run
from disam_jax.dg.runners import checkpoints, stacks
from disam_jax.dg.runners.checkpoints import Checkpoints, Halfway
from disam_jax.dg.sweep import hparams
from disam_jax.dg.sweep import run as sweep
from disam_jax.dg.sweep.results_folder import LOGITS
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.evaluation import Metrics
from disam_jax.dg.training.step import RunState

SIZE = 8
CONFIG = TrainConfig(model="conv", steps=10, schedule="cosine", per_domain=2, eval_every=4, block=10, probe=3)


@pytest.fixture(scope="module")
def listing(tmp_path_factory):
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("data") / "pictures"
    for domain in "abc":
        for c, name in enumerate(("cat", "dog")):
            folder = root / domain / name
            folder.mkdir(parents=True)
            for k in range(6):
                Image.fromarray(rng.integers(0, 160 + 80 * c, (SIZE, SIZE, 3), np.uint8)).save(folder / f"{k}.png")
    return list_images(root)


class KilledError(Exception):
    pass


# As its configuration says, so that its models can be kept.
KEPT = make_network("conv", (SIZE, SIZE, 3), 2, norm="batch")


def run(data, out, config, every=None, lines=None):
    found = find_methods(["sam"])
    plan = sweep.Plan({"SAM": hparams.random_candidates(found["SAM"], config, 2, 0)}, (1,), (0,))
    options = {"checkpoint_every": every, "on_line": lambda line: lines is None or lines.append(line)}
    return sweep.run_sweep(data, KEPT, config, found, plan, out, runs_at_once=2, save="best", **options)[0]


def interrupted(data, out, config, monkeypatch, saves):
    """A sweep that ends after so many checkpoints, which is when the process would be killed."""
    save, made = Checkpoints.save, []

    def save_and_end(self, at):
        save(self, at)
        made.append(at.step)
        if len(made) == saves:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_end)
        with pytest.raises(KilledError):
            run(data, out, config, every=2)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "averaging", "steps"),
    [("streamed", "none", [2, 4, 6, 8]), ("memory", "none", [4, 8]), ("memory", "swad", [4, 8])],
)
def test_a_run_goes_on_from_its_last_checkpoint_with_what_it_kept(
    listing, tmp_path, monkeypatch, kind, averaging, steps
):
    # Two stacks in a segment of four steps.
    monkeypatch.setattr(stacks, "STACK_BYTES", 2 * 2 * CONFIG.per_domain * SIZE**2 * 3)
    config = dataclasses.replace(CONFIG, averaging=averaging, keep_logits=True, norm="batch")
    data = stream_images(listing, SIZE) if kind == "streamed" else load_images(listing, SIZE)
    run(data, tmp_path / "whole", config)
    assert interrupted(data, tmp_path / "parts", config, monkeypatch, len(steps)) == steps
    restored = []
    latest = Checkpoints.latest
    monkeypatch.setattr(Checkpoints, "latest", lambda self, like: restored.append(latest(self, like)) or restored[-1])
    lines = []
    run(data, tmp_path / "parts", config, every=2, lines=lines)
    assert restored[0].step == steps[-1]
    assert not any("checkpoint" in line for line in lines)
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")
    assert not (tmp_path / "parts" / checkpoints.FOLDER).exists()
    kept = [path for folder in ("models", LOGITS) for path in (tmp_path / "whole" / folder).iterdir()]
    assert {path.suffix for path in kept} == {".safetensors", ".json", ".npz"}
    for path in kept:
        assert (tmp_path / "parts" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_a_process_that_is_killed_within_a_run_ends_with_the_same_bytes(listing, tmp_path):
    shutil.copytree(Path(listing.root), tmp_path / "pictures")
    command = [sys.executable, "-m", "disam_jax.dg.cli", "compare", "--data", "pictures", "--model", "conv", "--stream"]
    command += ["--image-size", "16", "--method", "erm", "--target", "a", "--seeds", "2", "--steps", "60"]
    command += ["--eval-every", "3", "--per-domain", "2"]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

    def start(out, *options):
        output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, "--out", out, *options], cwd=tmp_path, env=environment, **output)

    def saved():
        return {int(each.stem) for each in (tmp_path / "killed" / checkpoints.FOLDER).glob("*/*.json")}

    whole = start("whole")
    before = 0
    for step in (12, 30):
        child, seen = start("killed", "--checkpoint-every", "3"), set()
        while max(seen, default=0) < step:
            assert child.poll() is None, child.stderr.read()
            seen |= saved()
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        # It went on where the one before it was, and did not begin anew.
        assert min(seen) >= before - 3
        before = max(saved())
    child = start("killed", "--checkpoint-every", "3")
    assert "checkpoint" not in child.communicate()[1]
    whole.communicate()
    assert child.returncode == whole.returncode == 0
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "killed")
    different = {"record.json", "results.jsonl", "cost.md", "cost.csv", "cost.tex"}
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {path.name for path in (tmp_path / "killed").iterdir()}
    for name in names - different:
        one, other = ((tmp_path / each / name).read_bytes() for each in ("whole", "killed"))
        assert one == other.replace(b"--out killed --checkpoint-every 3", b"--out whole"), name


# What is not used.

STATES = RunState({"w": np.float32([[1, 2]])}, {}, (np.int32(3), None), (), None)


def kept(folder, lines, **changes):
    key = {"setting": {"steps": 10, "rho": 0.1}, "runs": [[0, 1, 0]], **changes}
    return Checkpoints(folder / "SAM", key, 2, lines.append)


def halfway(step):
    rng = np.random.default_rng(step)
    states = STATES._replace(params={"w": rng.normal(size=(1, 2)).astype(np.float32)})
    # Of the streaming runner, in double precision, with a number that is not finite.
    points = [
        Metrics(*rng.normal(size=(4, 1, 2)) / 0.0, None, {}),
        Metrics(*rng.normal(size=(5, 1, 2)), {"m": np.ones(1)}),
    ]
    return Halfway(step, states, points, [], {})


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves_with_path(other), strict=True):
        assert a[0] == b[0]
        assert np.asarray(a[1]).dtype == np.asarray(b[1]).dtype
        np.testing.assert_array_equal(a[1], b[1])


@pytest.fixture
def saved(tmp_path):
    """Checkpoints after 2, 4 and 6 steps, of which the last two are kept."""
    lines = []
    there = kept(tmp_path, lines)
    for step in (2, 4, 6):
        assert there.due(step)
        with np.errstate(divide="ignore"):
            there.save(halfway(step))
        assert not there.due(step + 1)
    assert lines == []
    return tmp_path


def test_what_is_restored_is_what_was_saved(saved):
    lines = []
    with np.errstate(divide="ignore"):
        assert_same(kept(saved, lines).latest(STATES), halfway(6))
    assert lines == []
    assert {path.name for path in (saved / "SAM").iterdir()} == {"4", "6", "4.json", "6.json"}


def cut(folder):
    file = max((path for path in (folder / "6").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])


def lose(folder):
    shutil.rmtree(folder / "6" / "default")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "is damaged"),
        (lose, "is damaged"),
        (lambda folder: (folder / "6.json").unlink(), "was not finished"),
        (lambda folder: (folder / "6.json").write_text('{"key": '), "was not finished"),
        (lambda folder: (folder / "6.json").write_text("{}"), "is damaged"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_told_and_the_one_before_it_is_used(saved, damage, words):
    damage(saved / "SAM")
    lines = []
    again = kept(saved, lines)
    with np.errstate(divide="ignore"):
        assert_same(again.latest(STATES), halfway(4))
        assert lines == [f"the checkpoint {saved}/SAM/6 {words}: it is removed and not used"]
        again.save(halfway(6))
        assert_same(kept(saved, lines).latest(STATES), halfway(6))


def test_a_checkpoint_that_a_kill_left_half_written_is_in_nobodys_way(saved):
    (saved / "SAM" / "8.orbax-checkpoint-tmp").mkdir()
    lines = []
    again = kept(saved, lines)
    with np.errstate(divide="ignore"):
        assert_same(again.latest(STATES), halfway(6))
        again.save(halfway(8))
    assert lines == []


@pytest.mark.parametrize(
    ("changes", "states", "words"),
    [
        ({"setting": {"steps": 20, "rho": 0.1}}, STATES, "is of another setting.steps"),
        ({"runs": [[0, 2, 0]]}, STATES, "is of another runs"),
        ({"metrics": ["m"]}, STATES, "is of another metrics"),
        ({}, STATES._replace(params={"w": np.zeros((3, 2), np.float32)}), "is of another network or method"),
        ({}, STATES._replace(method_state=np.zeros(1)), "is of another network or method"),
    ],
)
def test_a_checkpoint_of_other_runs_is_told_and_not_used(saved, changes, states, words):
    lines = []
    assert kept(saved, lines, **changes).latest(states) is None
    assert lines == [f"the checkpoint {saved}/SAM/{step} {words}: it is removed and not used" for step in (6, 4)]


# What Orbax had begun is let go of when its event loop is closed already.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_is_full_is_told_and_what_is_there_is_kept(saved, capfd):
    large = STATES._replace(params={"w": np.random.default_rng(0).normal(size=(1, 1 << 18)).astype(np.float32)})
    lines, (soft, hard) = [], resource.getrlimit(resource.RLIMIT_FSIZE)
    there, handler = kept(saved, lines), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        with pytest.raises(InputError, match=r"cannot write a checkpoint to .*/SAM: File too large; what"):
            there.save(Halfway(8, large, [], [], {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    with np.errstate(divide="ignore"):
        assert_same(kept(saved, lines).latest(STATES), halfway(6))
    assert lines == []
    assert "Traceback" not in capfd.readouterr().err


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / checkpoints.FOLDER).write_text("")
    header = {"version": {}, "data": {}, "setting": {}}
    with pytest.raises(InputError, match=r"cannot keep checkpoints in .*checkpoints/SAM-"):
        checkpoints.checkpoints_of(tmp_path, header, [Run("SAM", 0, 0, 0, {})], 5, "none", print)
