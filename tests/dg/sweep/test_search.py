"""Batch size and dropout in the search: what is drawn, and that a run is the one that its values alone would make."""

import dataclasses

import numpy as np
import pytest

from disam_jax.dg.cli import main as cli
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import METHODS, find_methods
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.results import Run
from disam_jax.dg.runners.in_memory import InMemoryRunner
from disam_jax.dg.runners.varied import VariedRunner
from disam_jax.dg.sweep import run as sweep
from disam_jax.dg.sweep.hparams import SEARCHED, random_candidates
from disam_jax.dg.training.config import TrainConfig

CONFIG = TrainConfig(steps=4, hidden=5, per_domain=3, standardise=True, evaluations=2, block=10)
RESNET = TrainConfig(model="resnet18", optimizer="adam")
BOTH = ("per_domain", "dropout")


@pytest.mark.parametrize(("config", "least", "most"), [(CONFIG, 8, 511), (RESNET, 8, 45)])
def test_batch_size_and_dropout_are_drawn_from_domainbeds_ranges(config, least, most):
    candidates = random_candidates(METHODS["SAM"], config, 200, seed=0, search=BOTH)
    assert (candidates[0]["per_domain"], candidates[0]["dropout"]) == (config.per_domain, config.dropout)
    sizes = np.array([each["per_domain"] for each in candidates[1:]])
    assert (sizes == sizes.astype(int)).all()
    assert (sizes.min(), sizes.max()) == (pytest.approx(least, abs=1), pytest.approx(most, rel=0.05))
    values, numbers = np.unique([each["dropout"] for each in candidates[1:]], return_counts=True)
    assert values == pytest.approx([0.0, 0.1, 0.5])
    assert (numbers > 40).all()
    # What else is drawn does not change.
    plain = random_candidates(METHODS["SAM"], config, 200, seed=0)
    assert [{name: each[name] for name in plain[0]} for each in candidates] == plain


@pytest.mark.parametrize("search", [("dropout",), ("per_domain",)])
def test_what_is_not_searched_keeps_its_value(search):
    (fixed,) = {*SEARCHED} - {*search}
    candidates = random_candidates(METHODS["ERM"], CONFIG, 9, seed=0, search=search)
    assert {each[fixed] for each in candidates} == {getattr(CONFIG, fixed)}
    assert len({each[search[0]] for each in candidates}) > 1


def trained(data, out, config, plan):
    network = make_network("mlp", (4,), 3, hidden=(5,), dropout=config.dropout)
    return sweep.run_sweep(data, network, config, find_methods(["erm"]), plan, out, runs_at_once=2)[0]


@pytest.mark.slow
def test_a_run_is_that_of_its_batch_size_and_dropout_alone(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(InMemoryRunner, "flops", lambda self, run: 1.0)
    rates = {"learning_rate": 0.1, "weight_decay": 0.0}
    fixed = [{"per_domain": 3.0, "dropout": 0.0}, {"per_domain": 5.0, "dropout": 0.5}]
    varied = trained(toy, tmp_path, CONFIG, sweep.Plan({"ERM": [{**rates, **each} for each in fixed]}, (0,), (0, 1)))
    own = dataclasses.replace(CONFIG, per_domain=5, dropout=0.5)
    alone = trained(toy, tmp_path / "alone", own, sweep.Plan({"ERM": [rates]}, (0,), (0, 1)))
    assert [run.candidate for run in varied.runs] == [0, 0, 1, 1]
    np.testing.assert_allclose(varied.losses[2:], alone.losses, rtol=2e-6)
    assert np.abs(varied.losses[:2, -1] - alone.losses[:, -1]).max() > 1e-3


class Recorded:
    """A runner that notes what it is asked."""

    def __init__(self, name, log):
        self.name, self.log, self.per_device = name, log, None

    def chunks(self, runs, size):
        return [list(runs[first : first + size]) for first in range(0, len(runs), size)]

    def runs_at_once(self, runs, most, budget):
        self.log.append((self.name, len(runs)))
        return most

    def compile(self, runs):
        self.log.append((self.name, self.per_device))


def test_the_runs_of_one_program_go_together_and_the_largest_batch_decides_how_many():
    log, made = [], []
    runner = VariedRunner(lambda *pair: made.append(pair) or Recorded(pair, log))
    pairs = [(8, 0.0), (16, 0.5), (8, 0.0), (16, 0.5), (8, 0.5), (16, 0.5)]
    runs = [Run("ERM", 0, 0, place, {"per_domain": n, "dropout": p}) for place, (n, p) in enumerate(pairs)]
    assert [[run.candidate for run in chunk] for chunk in runner.chunks(runs, 2)] == [[0, 2], [1, 3], [5], [4]]
    assert runner.runs_at_once(runs, 7, 100) == 7
    runner.per_device = 7
    runner.compile(runs[:1])
    assert log == [((16, 0.5), 3), ((8, 0.0), 7)]
    with pytest.raises(ValueError, match="must have batch size and dropout in common"):
        runner.train(runs)
    assert sorted(made) == [(8, 0.0), (8, 0.5), (16, 0.5)]


@pytest.mark.parametrize(
    ("method", "fixed", "said"),
    [
        ("ERM", {"per_domain": 3.0, "dropout": 0.5}, "--search dropout: --model mlp has no dropout here, leave it out"),
        ("CORAL", {"per_domain": 1.0, "dropout": 0.0}, "--per-domain must be at least 2 for CORAL, got 1"),
    ],
)
def test_what_a_drawn_value_cannot_be_is_said_before_anything_is_trained(toy, method, fixed, said):
    network = make_network("mlp", (4,), 3, hidden=(5,))._replace(with_dropout=None)
    plan = sweep.Plan({method: [fixed]}, (0,), (0, 1))
    with pytest.raises(InputError, match=said):
        sweep.prepare_sweep(toy, network, CONFIG, find_methods([method]), plan)


def test_a_search_is_not_for_a_cluster(tmp_path, capsys):
    command = ["compare", "--candidates", "2", "--search", "dropout", "--workers", "2", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 2
    assert "--search is for runs in this process, and --workers trains elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--grid", "rho=0.1,0.2"]])
def test_a_search_needs_draws(tmp_path, capsys, more):
    assert cli.main(["compare", "--search", "dropout", *more, "--out", str(tmp_path / "out")]) == 2
    assert "--search is for random draws: write --candidates 2 or more, without --grid" in capsys.readouterr().err
