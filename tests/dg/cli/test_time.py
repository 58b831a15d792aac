"""Respect for the user's time: nothing is compiled twice, no alarm is shown, and the plan is told beforehand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from synthetic_results import write_results

from disam_jax.dg.cli import compiled
from disam_jax.dg.cli import main as cli
from disam_jax.dg.methods import METHODS
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.results import Run
from disam_jax.dg.sweep import beforehand
from disam_jax.dg.training.config import TrainConfig

ROOT = Path(__file__).parents[3]
SMALL = ["compare", "--method", "erm", "--seeds", "2", "--steps", "2", "--target", "clean", "noise"]


def in_a_process(code, **more):
    """What a new process prints, without the folder of compiled programs that the tests share."""
    shared = ("JAX_COMPILATION_CACHE_DIR", "TF_CPP_MIN_LOG_LEVEL")
    kept = {key: value for key, value in os.environ.items() if key not in shared and not key.startswith("JAX_PERSIST")}
    environment = {**kept, "PYTHONPATH": str(ROOT), **more}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done


# Trains one chunk and is interrupted, or trains the rest; prints what was compiled and was not kept from before.
SWEEP = """
import json, os, sys
import jax.monitoring
from disam_jax.dg.cli import main
from disam_jax.dg.runners.in_memory import InMemoryRunner

compiled, train, trained = [], InMemoryRunner.train, []
jax.monitoring.register_event_listener(lambda name, **_: compiled.append(name) if "cache_miss" in name else None)

def once(self, *arguments):
    trained.append(1)
    if os.environ["MOST"] == str(len(trained) - 1):
        raise KeyboardInterrupt
    return train(self, *arguments)

InMemoryRunner.train = once
status = main.main(json.loads(os.environ["COMMAND"]))
print("\\n" + json.dumps([status, len(compiled)]))
"""


@pytest.mark.slow
def test_a_sweep_that_goes_on_compiles_nothing_twice(tmp_path):
    command = [*SMALL, "--runs-at-once", "2", "--out", str(tmp_path / "out")]
    given = {"COMMAND": json.dumps(command), "XDG_CACHE_HOME": str(tmp_path)}
    first = in_a_process(SWEEP, MOST="1", **given)
    status, programs = json.loads(first.stdout.splitlines()[-1])
    assert status == 130
    assert programs > 0
    (folder,) = (tmp_path / "disam-jax" / "programs").iterdir()
    assert sum(path.name.endswith("-cache") for path in folder.iterdir()) >= programs
    second = in_a_process(SWEEP, MOST="-1", **given)
    assert json.loads(second.stdout.splitlines()[-1]) == [0, 0]


@pytest.fixture
def no_folder_of_programs(monkeypatch):
    """As in a process of a user: jax keeps nothing. What is set is undone."""
    names = ["jax_compilation_cache_dir", "jax_enable_compilation_cache", *map(str.lower, compiled.EVERYTHING)]
    before = {name: getattr(jax.config, name) for name in names}
    for name in (compiled.FOLDER, "JAX_ENABLE_COMPILATION_CACHE", *compiled.EVERYTHING):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.usefixtures("no_folder_of_programs")
def test_programs_are_kept_in_the_cache_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = []
    compiled.keep_programs(True, said.append)
    assert said == []
    folder = Path(jax.config.jax_compilation_cache_dir)
    assert folder.parent == tmp_path / "disam-jax" / "programs"
    # Workers on this machine inherit it.
    assert os.environ[compiled.FOLDER] == str(folder)
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("no_folder_of_programs")
def test_a_folder_of_programs_that_cannot_be_written_is_a_line_and_no_end(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said = []
    compiled.keep_programs(True, said.append)
    assert len(said) == 1
    assert str(tmp_path / "file") in said[0]
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.usefixtures("no_folder_of_programs")
def test_the_folder_that_jax_was_given_wins_and_the_option_turns_it_off(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    compiled.keep_programs(True, pytest.fail)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    assert not (tmp_path / "other").exists()
    compiled.keep_programs(False, pytest.fail)
    assert not jax.config.jax_enable_compilation_cache


# XLA computes what does not depend on arguments when it compiles, here for longer than its alarm waits.
FOLDED = """
import jax, jax.numpy as jnp
from disam_jax.dg.cli import main
if {silent}:
    main.silence_alarms()
window = lambda: jax.lax.reduce_window(jnp.ones((120, 120)), 0.0, jax.lax.add, (1, 120), (1, 1), "SAME").sum()
jax.jit(window).lower().compile()
"""


@pytest.mark.slow
def test_alarms_of_xla_do_not_reach_the_user():
    assert "slow_operation_alarm" in in_a_process(FOLDED.format(silent=False)).stderr
    assert in_a_process(FOLDED.format(silent=True)).stderr == ""


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dry(capsys, *arguments):
    assert cli.main([*arguments, "--dry-run"]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["compare", "sweep"])
def test_a_dry_run_says_what_would_run_and_writes_nothing(tmp_path, capsys, command):
    out = tmp_path / "out"
    options = ["--method", "erm", "sam", "--seeds", "3", "--candidates", "2", "--target", "clean", "noise"]
    said = dry(capsys, command, *options, "--out", str(out))
    assert "digits: 2 methods x 2 candidates x 2 targets x 3 seeds = 24 runs in 2 programs, of ERM, SAM" in said
    assert said.endswith("dry run: nothing was trained or written")
    assert not out.exists()


def test_a_dry_run_refuses_what_the_run_would_refuse(tmp_path, capsys):
    write_results(tmp_path / "out")
    before = files(tmp_path)
    assert cli.main(["compare", "--dry-run", "--seeds", "2", "--out", str(tmp_path / "out")]) == 2
    assert "holds results of something else" in capsys.readouterr().err
    assert cli.main(["compare", "--dry-run", "--per-domain", "1", "--method", "coral", "--out", str(tmp_path)]) == 2
    assert "--per-domain must be at least 2 for CORAL" in capsys.readouterr().err
    said = dry(capsys, "compare", "--seeds", "2", "--overwrite", "--out", str(tmp_path / "out"))
    assert "--overwrite would move what" in said
    assert files(tmp_path) == before


@pytest.mark.slow
def test_a_dry_run_counts_what_is_there_and_every_run_was_logged(tmp_path, capsys):
    pytest.importorskip("tensorboardX", reason='pip install -e ".[tensorboard]"')
    out = tmp_path / "out"
    assert cli.main([*SMALL, "--log", "tensorboard", "--out", str(out)]) == 0
    names = sorted(path.name for path in (out / "tensorboard").iterdir())
    assert names == [f"ERM-{target}-seed{seed}-candidate0" for target in ("0-clean", "4-noise") for seed in (0, 1)]
    before = files(out)
    capsys.readouterr()
    assert "= 4 runs, of ERM; targets clean, noise; 4 are finished dry run" in dry(capsys, *SMALL, "--out", str(out))
    more = [*SMALL, "--seeds", "3", "--method", "erm", "sam"]
    assert "= 12 runs, of ERM, SAM; targets clean, noise; 4 are finished, 8 are left, in 2 programs" in dry(
        capsys, *more, "--out", str(out)
    )
    assert files(out) == before


@pytest.mark.parametrize(("hidden", "large"), [((4,), False), ((1000, 1000), True)])
def test_what_a_large_network_takes_on_a_cpu_is_told_beforehand(toy, hidden, large):
    network = make_network("mlp", (4,), 3, hidden=hidden)
    config = TrainConfig(steps=10, evaluations=1, per_domain=2)
    methods = {"ERM": METHODS["ERM"], "SAM": METHODS["SAM"]}
    runs = [Run(name, 0, seed, 0, {}) for name in methods for seed in (0, 1)]
    line = beforehand.beforehand(toy, network, config, methods, runs)
    assert (line is not None) == large
    if large:
        assert line.startswith("a network of 1 million numbers on a CPU: about ")
        assert " for all 4, since " in line
    assert beforehand.beforehand(toy, network, config, methods, []) is None
