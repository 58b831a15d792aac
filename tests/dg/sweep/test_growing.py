"""Sweeps that grow: runs that exist are kept, and the tables are those of a sweep that had everything at once."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from synthetic_results import make_plan, write_results

from disam_jax.dg.cli import main as cli
from disam_jax.dg.cli.status import status_lines
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import find_methods
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.report.summary import summarise
from disam_jax.dg.report.write import text_files
from disam_jax.dg.runners.in_memory import InMemoryRunner
from disam_jax.dg.sweep import hparams, results_file
from disam_jax.dg.sweep import run as sweep
from disam_jax.dg.sweep.model_selection import CRITERIA
from disam_jax.dg.training.config import TrainConfig

CONFIG = TrainConfig(
    steps=6, learning_rate=0.1, rho=0.3, lam=0.5, hidden=5, per_domain=3, standardise=True, evaluations=2, block=10
)
NETWORK = make_network("mlp", (4,), 3, hidden=(5,))


@pytest.fixture(autouse=True)
def _flops(monkeypatch):
    monkeypatch.setattr(InMemoryRunner, "flops", lambda self, run: 1.0)


def run(data, out, methods=("sam",), seeds=(0, 1), targets=(0, 1), candidates=1, grid=None):
    found = find_methods(methods)
    chosen = {
        name: hparams.grid_candidates(method, CONFIG, grid)
        if grid
        else hparams.random_candidates(method, CONFIG, candidates, 0)
        for name, method in found.items()
    }
    plan = sweep.Plan(chosen, targets, seeds)
    return sweep.run_sweep(data, NETWORK, CONFIG, found, plan, out, runs_at_once=3)[0]


def tables(results):
    summaries = {each: summarise(results, each) for each in CRITERIA}
    return text_files(results, summaries, "validation")


GROWTHS = {
    "more seeds": ({}, {"seeds": (0, 1, 2, 7)}),
    "seeds before and between": ({"seeds": (1, 3)}, {"seeds": (0, 1, 2, 3)}),
    "more methods, others first": ({}, {"methods": ("erm", "sam", "disam")}),
    "more targets, others first": ({"targets": (1, 2)}, {"targets": (0, 1, 2)}),
    "more candidates": ({"candidates": 2}, {"candidates": 3}),
    "values of a grid between": ({"grid": {"rho": (0.1,)}}, {"grid": {"rho": (0.05, 0.1, 0.2)}}),
    "a second axis of a grid": (
        {"methods": ("disam",), "grid": {"lam": (2.0,)}},
        {"methods": ("disam",), "grid": {"rho": (0.1, 0.3), "lam": (1.0, 2.0)}},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), GROWTHS.values(), ids=GROWTHS)
def test_a_sweep_that_grows_ends_with_the_bytes_of_one_that_had_everything(toy, tmp_path, monkeypatch, first, then):
    before = len(run(toy, tmp_path / "grown", **first).runs)
    old = (tmp_path / "grown" / results_file.FILE).read_bytes()
    trained, train = [], InMemoryRunner.train
    keep = lambda self, runs, *more: trained.extend(map(str, runs)) or train(self, runs, *more)
    with monkeypatch.context() as patch:
        patch.setattr(InMemoryRunner, "train", keep)
        grown = run(toy, tmp_path / "grown", **then)
    assert len({*trained}) == len(grown.runs) - before
    assert (tmp_path / "grown" / results_file.FILE).read_bytes().startswith(old)
    whole = run(toy, tmp_path / "whole", **then)
    assert tables(grown) == tables(whole)
    # And as they are read again.
    assert tables(results_file.load_results(tmp_path / "grown")) == tables(whole)


def test_a_smaller_command_is_refused_and_says_what_to_write(toy, tmp_path):
    write_results(tmp_path, seeds=(0, 1, 2, 5))
    before = (tmp_path / results_file.FILE).read_bytes()
    with pytest.raises(InputError) as error, results_file.open_store(tmp_path, make_plan(seeds=(3, 5))[0]):
        pass
    assert "--seeds lacks 0..2 of the seeds that are there: write --seeds 0..3 5" in str(error.value)
    assert (tmp_path / results_file.FILE).read_bytes() == before


def grown_file(out, **options):
    """A file with the header and the runs of a smaller sweep, and behind them those of a larger one."""
    write_results(out, **options)
    small = (out / results_file.FILE).read_bytes()
    header, plan = make_plan(seeds=3, **options)
    with results_file.open_store(out, header) as store:
        for name in plan.candidates:
            missing = [each for each in plan.runs_of(name) if not store.has(each)]
            old = next(iter(store.records.values()))
            arrays = {key: np.array([old[key]] * len(missing), float) for key in results_file.MEASURED}
            store.chunk(name, missing, arrays, 3.0)
    return small, header, plan


def test_only_what_is_missing_is_written_behind_what_is_there(tmp_path):
    small, _, plan = grown_file(tmp_path)
    content = (tmp_path / results_file.FILE).read_bytes()
    assert content.startswith(small)
    kinds = [next(iter(json.loads(line))) for line in content[len(small) :].splitlines()]
    assert kinds == ["header", "chunk", "chunk"]
    assert results_file.load_results(tmp_path).runs == tuple(plan.runs)


def test_opening_a_folder_for_more_changes_nothing_before_there_is_a_run(tmp_path):
    write_results(tmp_path)
    before = (tmp_path / results_file.FILE).read_bytes()
    with results_file.open_store(tmp_path, make_plan(seeds=4)[0]):
        pass
    assert (tmp_path / results_file.FILE).read_bytes() == before


@pytest.mark.parametrize("times", [2, 3])
def test_a_file_that_grew_twice_over_is_kept_once(tmp_path, times):
    _, header, plan = grown_file(tmp_path)
    path = tmp_path / results_file.FILE
    path.write_bytes(path.read_bytes() * times)
    assert results_file.load_results(tmp_path).runs == tuple(plan.runs)
    with results_file.open_store(tmp_path, header) as store:
        assert all(map(store.has, plan.runs))


def test_a_header_behind_that_has_other_runs_is_named(tmp_path):
    write_results(tmp_path / "one", seeds=(0, 1))
    write_results(tmp_path / "two", seeds=(1, 2))
    path = tmp_path / "one" / results_file.FILE
    with path.open("ab") as file:
        file.write((tmp_path / "two" / results_file.FILE).read_bytes())
    with pytest.raises(InputError, match="line 8: a second header, of another sweep: --seeds lacks 2"):
        results_file.load_results(tmp_path / "one")


# Versions of jax.


def test_runs_of_another_version_of_jax_are_kept_apart(tmp_path, monkeypatch):
    write_results(tmp_path, leave=1)
    first = jax.__version__
    monkeypatch.setattr(jax, "__version__", "99.0.0")
    header, plan = make_plan()
    with results_file.open_store(tmp_path, header) as store:
        missing = [run for run in plan.runs if not store.has(run)]
        old = next(iter(store.records.values()))
        store.chunk("SAM", missing, {key: np.array([old[key]] * len(missing), float) for key in results_file.MEASURED})
    written = results_file.read_written(tmp_path)
    assert {written.versions[run[:4]] for run in missing} == {"99.0.0"}
    assert {written.versions[run[:4]] for run in plan.runs if run not in missing} == {first}
    results = results_file.load_results(tmp_path)
    assert results.header["version"]["jax"] == f"{first}, 99.0.0"
    assert f"{first}: 9 runs, 99.0.0: 3 runs" in results.header["notes"][-1]


def test_a_report_by_another_version_of_jax_is_of_the_one_that_trained(tmp_path, monkeypatch):
    write_results(tmp_path)
    before = tables(results_file.load_results(tmp_path))
    monkeypatch.setattr(jax, "__version__", "99.0.0")
    header, plan = make_plan()
    with results_file.open_store(tmp_path, header) as store:
        assert tables(store.results(plan.runs)) == before
    assert tables(results_file.load_results(tmp_path)) == before


def test_another_version_of_disam_jax_is_refused(tmp_path):
    write_results(tmp_path)
    header = make_plan()[0]
    other = {**header, "version": {**header["version"], "disam_jax": "99"}}
    with pytest.raises(InputError, match=r"version.disam_jax is .* there and \"99\" here"):  # noqa: SIM117
        with results_file.open_store(tmp_path, other):
            pass


# How far it is.


def test_status_counts_what_is_done_missing_and_diverged(tmp_path, capsys):
    write_results(tmp_path, leave=1)
    header, plan = make_plan(seeds=3)
    with results_file.open_store(tmp_path, header) as store:
        missing = [run for run in plan.runs_of("ERM") if not store.has(run)]
        old = next(iter(store.records.values()))
        arrays = {key: np.array([old[key]] * len(missing), float) for key in results_file.MEASURED}
        # The runs of a chunk have several targets, on which the losses at w + e are not measured.
        arrays["perturbed_losses"][:] = 1.0
        arrays["perturbed_losses"][np.arange(3), :, [run.target for run in missing]] = np.nan
        arrays["losses"][1, -1, 0, 0] = np.nan
        store.chunk("ERM", missing, arrays, 6.0)
    assert cli.main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "toy: 12 of 18 runs done, 6 missing, 1 diverged",
        "  ERM: 9 of 9 runs done, 0 missing, 1 diverged",
        "  SAM: 3 of 9 runs done, 6 missing, 0 diverged",
        # Three runs took six seconds.
        "about 12 s left in one process, without compilation; the same command goes on",
    ]


def test_status_of_a_folder_that_is_done_or_has_no_run(tmp_path, capsys):
    write_results(tmp_path / "done")
    assert len(status_lines(results_file.read_written(tmp_path / "done"))) == 3
    with results_file.open_store(tmp_path / "begun", make_plan()[0]):
        pass
    assert cli.main(["status", str(tmp_path / "begun")]) == 0
    assert "0 of 12 runs done, 12 missing" in capsys.readouterr().out
    assert cli.main(["status", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_status_leaves_a_file_alone_that_another_process_writes(tmp_path):
    write_results(tmp_path)
    with results_file.open_store(tmp_path, make_plan()[0]):
        command = [sys.executable, "-c", "import sys; from disam_jax.dg.cli.main import main; sys.exit(main())"]
        done = subprocess.run([*command, "status", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("toy: 12 of 12 runs done")
