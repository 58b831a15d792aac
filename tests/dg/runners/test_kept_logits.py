"""Logits are kept at every point that a selection can choose, and are those of the network, whatever runs it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disam_jax.dg.data.load import CachedFeatures
from disam_jax.dg.methods import find_methods
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.results import Results, Run, six_digits
from disam_jax.dg.runners.in_memory import InMemoryRunner
from disam_jax.dg.runners.kept_logits import Examples, forget, kept_of, on_host
from disam_jax.dg.sweep import hparams, results_file
from disam_jax.dg.sweep import run as sweep
from disam_jax.dg.sweep.logits_files import read_logits
from disam_jax.dg.sweep.model_selection import CRITERIA, select
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.evaluation import Metrics, kept_logits

# Which points.


def points_of(accuracy, losses, logits):
    """What a runner measures along training, [R, P, ...] each."""
    examples = Examples(np.zeros(logits.shape[2], np.int32), np.zeros(logits.shape[2], bool))
    runs = [Run("ERM", 1, 0, candidate, {}) for candidate in range(len(accuracy))]
    points = []
    for p in range(accuracy.shape[1]):
        measured = Metrics(accuracy[:, p], losses[:, p], None, None, None, {}, logits[:, p])
        points.append(on_host(measured, runs, lambda run: examples))
        forget(points, runs)
    return points, runs, examples


@pytest.mark.parametrize("seed", range(20))
def test_the_points_that_any_selection_chooses_are_kept(seed):
    rng = np.random.default_rng(seed)
    candidates, steps, domains = 3, 6, 4
    # Few values, so that many points tie, some only in the digits that are stored.
    accuracy = np.float32(rng.integers(0, 3, (candidates, steps, 2, domains)) / 2)
    accuracy += np.float32(rng.choice([0.0, 1e-7], accuracy.shape))
    losses = rng.uniform(0.0, 1.0, accuracy.shape)
    losses[rng.uniform(size=accuracy.shape) < 0.05] = np.nan
    logits = np.arange(candidates * steps, dtype=np.float16).reshape(candidates, steps, 1, 1)
    points, runs, examples = points_of(accuracy, losses, logits)
    kept = [kept_of(points, place, run, examples) for place, run in enumerate(runs)]
    # As they are read again.
    stored, losses = (results_file._array(six_digits(values)) for values in (accuracy, losses))
    rest = np.ones((candidates, steps, domains))
    results = Results({"methods": ["ERM"]}, tuple(runs), np.arange(steps), stored, losses, rest, rest, rest[:, 0])
    for criterion in CRITERIA:
        (run,), (point,) = (each.reshape(-1) for each in select(results, criterion))
        assert point in kept[run].points
    for place, each in enumerate(kept):
        assert len(each.points) <= 2
        assert each.logits[:, 0, 0].tolist() == [place * steps + point for point in each.points]


def test_no_more_than_two_points_of_a_run_are_in_memory_at_any_time():
    rng = np.random.default_rng(0)
    accuracy = rng.uniform(size=(2, 8, 2, 3))
    points, runs, _ = points_of(accuracy, np.ones_like(accuracy), np.zeros((2, 8, 5, 3), np.float16))
    for place in range(len(runs)):
        assert sum(str(place) in point.logits for point in points) <= 2
    # Not a part of an array of several runs, which would stay.
    assert points[-1].logits["0"].base is None


def test_the_last_point_can_be_measured_again():
    accuracy = np.tile(np.linspace(0.1, 0.9, 5)[None, :, None, None], (1, 1, 2, 3))
    logits = np.arange(5, dtype=np.float16).reshape(1, 5, 1, 1)
    points, runs, examples = points_of(accuracy, np.ones_like(accuracy), logits)
    worse = Metrics(accuracy[:, 0], np.ones((1, 2, 3)), None, None, None, {}, {"0": np.full((1, 1), 9, np.float16)})
    points[-1] = worse
    kept = kept_of(points, 0, runs[0], examples)
    assert kept.points.tolist() == [3, 4]
    assert kept.logits.ravel().tolist() == [3.0, 9.0]


# What is kept.


def test_half_precision_keeps_the_answer_of_every_example():
    rng = np.random.default_rng(0)
    logits = np.float32(rng.normal(0, 10, (500, 4)) * 10.0 ** rng.integers(-3, 5, (500, 1)))
    # The next number of single precision decides.
    logits[:200, 1] = np.nextafter(logits[:200].max(-1), np.float32(np.inf))
    kept = np.asarray(kept_logits(jnp.asarray(logits)))
    assert kept.dtype == np.float16
    assert np.isfinite(kept).all()
    assert (kept.argmax(-1) == logits.argmax(-1)).all()
    assert (kept.max(-1) == 0).all()


def test_logits_that_are_not_finite_stay_so(nans_allowed):
    logits = jnp.array([[jnp.nan, 0.0], [jnp.inf, 0.0], [0.0, -jnp.inf]])
    kept = np.asarray(kept_logits(logits))
    assert np.isnan(kept[:2]).any(-1).all()
    assert kept[2].tolist() == [0.0, -65504.0]


CONFIG = TrainConfig(
    model="mlp", steps=6, learning_rate=0.3, rho=0.3, hidden=5, per_domain=3, evaluations=3, block=10, keep_logits=True
)
NETWORK = make_network("mlp", (4,), 3, hidden=(5,))


def run(data, out, config=CONFIG, runs_at_once=3):
    found = find_methods(("sam",))
    chosen = {name: hparams.random_candidates(method, config, 2, 0) for name, method in found.items()}
    plan = sweep.Plan(chosen, (0, 2), (0, 1))
    results, _ = sweep.run_sweep(data, NETWORK, config, found, plan, out, runs_at_once=runs_at_once)
    kept = read_logits(out, results_file.read_written(out).chunk_of, results, range(len(results.runs)))
    return results, dict(kept)


def counted(counts):
    return lambda self, run: counts.append(run) or 1.0


@pytest.mark.slow
@pytest.mark.parametrize("averaging", ["none", "swad"])
def test_both_runners_keep_the_logits_of_the_accuracy_that_they_report(toy, tmp_path, monkeypatch, averaging):
    monkeypatch.setattr(InMemoryRunner, "flops", lambda self, run: 1.0)
    config = dataclasses.replace(CONFIG, averaging=averaging)
    # Reading compares with the accuracy, of either split at every point.
    results, kept = run(toy, tmp_path / "memory", config)
    activations = CachedFeatures.of(toy, np.asarray(toy.inputs, np.float32), origin="toy")
    streamed, on_disk = run(dataclasses.replace(activations, streamed=True), tmp_path / "disk", config, runs_at_once=2)
    assert streamed.runs == results.runs
    for index, one in enumerate(results.runs):
        here, there = kept[index], on_disk[index]
        assert here.logits.shape == (len(here.points), toy.counts[one.target], 3)
        np.testing.assert_array_equal(here.points, there.points)
        np.testing.assert_allclose(here.logits, there.logits, rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(here.labels, np.asarray(toy.labels)[toy.domain_ids == one.target])
        np.testing.assert_array_equal(here.labels, there.labels)
        np.testing.assert_array_equal(here.validation, there.validation)
        # The losses that were measured are those of these logits, to the digits of half precision.
        for place, point in enumerate(here.points):
            log_p = here.logits[place].astype(float)
            log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
            loss = -log_p[np.arange(len(log_p)), here.labels][here.validation].mean()
            assert loss == pytest.approx(results.losses[index, point, 1, one.target], rel=2e-3)
    assert len({each.logits[-1].tobytes() for each in kept.values()}) == len(kept)


@pytest.mark.slow
def test_a_sweep_that_keeps_no_logits_has_the_record_and_the_program_without_them(toy, tmp_path):
    off = dataclasses.replace(CONFIG, keep_logits=False)
    assert "keep_logits" not in off.record()
    assert CONFIG.record()["keep_logits"] is True
    assert {key: each for key, each in CONFIG.record().items() if key != "keep_logits"} == off.record()
    methods = find_methods(("sam",))
    plan = sweep.Plan({"SAM": hparams.random_candidates(methods["SAM"], off, 1, 0)}, (0,), (0, 1))
    for config, half in ((off, False), (CONFIG, True)):
        runner = sweep.prepare_sweep(toy, NETWORK, config, methods, plan).make_runner("SAM")
        runs = plan.runs
        specs, shared = runner.specs(runs), runner.shared_for(len(runs))
        states = jax.eval_shape(functools.partial(runner._start, fixed=runner._fixed), specs, shared)
        text = runner._segment.lower(states, specs, jnp.int32(0), shared, fixed=runner._fixed).as_text()
        assert ("f16" in text) is half
