"""Draws that each seed has for itself: what is drawn, and that such a sweep is stored, grows and merges like others."""

import json

import pytest
from synthetic_results import make_plan, write_results

from disam_jax.dg.cli import main as cli
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import METHODS
from disam_jax.dg.sweep import results_file
from disam_jax.dg.sweep.hparams import candidates_by_seed
from disam_jax.dg.sweep.merge import merge
from disam_jax.dg.sweep.shards import Shard
from disam_jax.dg.training.config import TrainConfig

SEEDS = (0, 1, 5)


def test_each_seed_has_draws_of_its_own_that_methods_share():
    erm, sam = (candidates_by_seed(METHODS[name], TrainConfig(), 4, SEEDS) for name in ("ERM", "SAM"))
    assert sam.named == [sam.by_seed[0][0], {"draw": 1.0}, {"draw": 2.0}, {"draw": 3.0}]
    assert sam.by_seed.keys() == {*SEEDS}
    rates = lambda drawn: [[each["learning_rate"] for each in drawn.by_seed[seed]] for seed in SEEDS]
    assert rates(erm) == rates(sam)
    assert len({first for first, *_ in rates(sam)}) == 1
    assert len({rate for _, *drawn in rates(sam) for rate in drawn}) == 3 * len(SEEDS)
    # Another seed does not change them.
    assert candidates_by_seed(METHODS["SAM"], TrainConfig(), 4, (5, 9)).by_seed[5] == sam.by_seed[5]


def hparams_of(results):
    return {run[:4]: dict(run.hparams) for run in results.runs}


def test_the_runs_of_a_results_file_have_the_draws_of_their_seed_also_after_it_grew(tmp_path):
    _, first = write_results(tmp_path, seeds=(1, 5), candidates=2, by_seed=True)
    assert hparams_of(results_file.load_results(tmp_path)) == {run[:4]: dict(run.hparams) for run in first.runs}
    write_results(tmp_path / "more", seeds=SEEDS, candidates=3, by_seed=True)
    header, plan = make_plan(seeds=SEEDS, candidates=3, by_seed=True)
    assert {run[:4]: run.hparams for run in plan.runs if run.seed != 0 and run.candidate < 2} == {
        run[:4]: run.hparams for run in first.runs
    }
    with results_file.open_store(tmp_path, header) as store:
        assert [store.has(run) for run in plan.runs] == [run.seed != 0 and run.candidate < 2 for run in plan.runs]


def test_shards_of_draws_by_seed_merge_to_the_whole(tmp_path):
    for place in range(2):
        write_results(tmp_path / str(place), candidates=2, by_seed=True, shard=Shard(place, 2), by_run=True)
    merged = merge([tmp_path / "0", tmp_path / "1"], tmp_path / "all")
    _, plan = make_plan(candidates=2, by_seed=True)
    assert hparams_of(merged) == {run[:4]: dict(run.hparams) for run in plan.runs}


@pytest.mark.parametrize("change", [lambda hyper: hyper.pop("rho"), lambda hyper: hyper.update(lam=1.0)])
def test_a_run_with_other_hyperparameters_than_its_method_has_is_refused(tmp_path, change):
    write_results(tmp_path, methods=("sam",), candidates=2, by_seed=True)
    file = tmp_path / results_file.FILE
    *before, last = file.read_text().splitlines()
    value = json.loads(last)
    del value[results_file.CHECKSUM]
    change(value["runs"][-1]["hyper"])
    file.write_text("\n".join([*before, json.dumps(value), ""]))
    with pytest.raises(InputError, match="hyper has other names than candidate 0 of SAM"):
        results_file.load_results(tmp_path)


@pytest.mark.parametrize("more", [[], ["--grid", "rho=0.1,0.2"]])
def test_draws_by_seed_need_draws(tmp_path, capsys, more):
    assert cli.main(["compare", "--draws", "by-seed", *more, "--out", str(tmp_path / "out")]) == 2
    assert (
        "--draws by-seed is for random draws: write --candidates 2 or more, without --grid" in capsys.readouterr().err
    )
