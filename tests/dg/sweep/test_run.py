"""Sweeps: paired runs in chunks, on disk as they come, whole after any interruption."""

import contextlib
import dataclasses
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from timeless import timeless

from disam_jax.dg.data.splits import split
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import find_methods
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.report.metrics import metrics_table
from disam_jax.dg.report.summary import summarise
from disam_jax.dg.results import TRAIN, VALIDATION
from disam_jax.dg.runners import devices, memory
from disam_jax.dg.runners import in_memory as program
from disam_jax.dg.sweep import hparams, results_file
from disam_jax.dg.sweep import run as sweep
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.metrics import METRICS, Metric
from disam_jax.dg.training.step import example_losses, make_arrays

CONFIG = TrainConfig(
    steps=7, learning_rate=0.1, rho=0.3, lam=0.5, hidden=5, per_domain=3, standardise=True, evaluations=3, block=10
)
NETWORK = make_network("mlp", (4,), 3, hidden=(5,))
FIELDS = results_file.MEASURED
FLOPS = program.InMemoryRunner.flops


def plan_of(methods, config=CONFIG, seeds=2, targets=(0, 1, 2), candidates=1):
    found = find_methods(methods)
    chosen = {name: hparams.random_candidates(method, config, candidates, 0) for name, method in found.items()}
    return found, sweep.Plan(chosen, targets, tuple(range(seeds)))


def run(data, out, methods=("erm", "sam", "disam"), config=CONFIG, on_progress=None, **options):
    keys = ("seeds", "targets", "candidates")
    found, plan = plan_of(methods, config, **{key: options.pop(key) for key in keys if key in options})
    return sweep.run_sweep(data, NETWORK, config, found, plan, out, on_progress=on_progress, **options)[0]


@pytest.fixture(scope="module", autouse=True)
def _flops():
    """Compiled from a program of its own, which only one test looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program.InMemoryRunner, "flops", lambda self, run: 1.0)
        yield


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    return {"out": tmp_path_factory.mktemp("sweep")}


@pytest.fixture
def whole(computed, toy):
    """The sweep that most tests look at; computed inside a test, since jax is strict only there."""
    if "results" not in computed:
        computed["shown"] = []
        show = lambda *what: computed["shown"].append(what)
        computed["results"] = run(toy, computed["out"], on_progress=show, runs_at_once=4)
    return computed["results"]


def of(results, method, target, seed):
    return next(
        place for place, each in enumerate(results.runs) if each[:3] == (method, target, seed) and not each.candidate
    )


@pytest.mark.slow
def test_everything_is_measured_at_every_point(whole, toy):
    assert whole.methods == ("ERM", "SAM", "DISAM")
    assert whole.steps.tolist() == [0, 3, 6, 7]
    assert len(whole.runs) == 18
    assert whole.losses.shape == whole.accuracy.shape == (18, 4, 2, 3)
    assert whole.probe_losses.shape == whole.perturbed_losses.shape == (18, 4, 3)
    assert whole.sharpness.shape == (18, 3)
    assert np.isfinite(whole.losses).all()
    target = np.array([each.target for each in whole.runs])
    is_target = np.broadcast_to(target[:, None, None] == np.arange(3)[None, None], whole.perturbed_losses.shape)
    np.testing.assert_array_equal(np.isnan(whole.perturbed_losses), is_target)


def test_progress_rises_to_the_total(whole, computed):
    done = [each[1] for each in computed["shown"]]
    assert done == sorted(done)
    assert {each[2] for each in computed["shown"]} == {18}
    assert done[-1] == 18
    assert {
        name for name in ("ERM", "SAM", "DISAM") if any(f"training {name}," in each[0] for each in computed["shown"])
    }


@pytest.mark.parametrize(
    ("steps", "evaluations", "points"),
    [(4, 2, (0, 2, 4)), (5, 2, (0, 3, 5)), (1, 20, (0, 1)), (3, 20, (0, 1, 2, 3)), (400, 20, tuple(range(0, 401, 20)))],
)
def test_measured_at(steps, evaluations, points):
    assert TrainConfig(steps=steps, evaluations=evaluations).measured_at == points


def test_all_methods_start_from_the_same_weights_and_different_seeds_do_not(whole):
    starts = {
        name: np.array([whole.losses[of(whole, name, t, s), 0] for t in range(3) for s in range(2)])
        for name in whole.methods
    }
    for each in starts.values():
        np.testing.assert_array_equal(each, starts["ERM"])
    assert len(np.unique(starts["ERM"][..., 0, 0])) == 6
    last = lambda name: np.array([whole.losses[of(whole, name, t, 0), -1] for t in range(3)])
    assert np.abs(last("SAM") - last("ERM")).max() > 1e-3
    assert np.abs(last("SAM") - last("DISAM")).max() > 1e-4


@pytest.mark.slow
def test_methods_see_the_same_batches(toy, tmp_path):
    """With rho 0 the sharpness-aware ones are ERM, run for run."""
    results = run(toy, tmp_path, config=dataclasses.replace(CONFIG, rho=0.0), targets=(1,))
    one, two, three = (results.losses[[of(results, name, 1, s) for s in range(2)]] for name in results.methods)
    np.testing.assert_allclose(two, one, rtol=2e-6)
    np.testing.assert_allclose(three, one, rtol=2e-6)


@pytest.mark.slow
def test_one_run_of_a_sweep_is_the_run_alone(whole, toy, tmp_path):
    """Neither the other runs, nor their number, nor the chunks make a difference."""
    alone = run(toy, tmp_path, methods=["disam"], seeds=2, targets=(1,), runs_at_once=1)
    among = of(whole, "DISAM", 1, 1)
    for field in FIELDS:
        np.testing.assert_allclose(getattr(alone, field)[1], getattr(whole, field)[among], rtol=2e-5, atol=1e-6)


@pytest.mark.slow
def test_runs_are_spread_over_the_devices(toy, tmp_path, whole):
    assert jax.device_count() == 8
    assert isinstance(devices.over_runs(16), jax.sharding.NamedSharding)
    results = run(toy, tmp_path, methods=["disam"], seeds=4, runs_at_once=8)
    assert results.header["methods"]["DISAM"]["runs_at_once"] == 1
    for target in range(3):
        for seed in range(2):
            mine, its = of(results, "DISAM", target, seed), of(whole, "DISAM", target, seed)
            # Its splits and keys are those of the seed, however many others there are.
            np.testing.assert_allclose(results.losses[mine], whole.losses[its], rtol=2e-5, atol=1e-6)


@pytest.mark.slow
def test_nothing_of_the_held_out_domain_is_used(whole, toy, tmp_path):
    inputs, labels = toy.inputs.copy(), toy.labels.copy()
    inputs[toy.domain_ids == 1] = 50.0 * np.random.default_rng(0).normal(size=(11, 4))
    labels[toy.domain_ids == 1] = 0
    other = dataclasses.replace(toy, inputs=inputs, labels=labels)
    again = run(other, tmp_path, methods=["disam"], targets=(1,), runs_at_once=4)
    before = whole.losses[[of(whole, "DISAM", 1, seed) for seed in range(2)]]
    np.testing.assert_allclose(again.losses[..., [0, 2]], before[..., [0, 2]], rtol=2e-6)
    assert (np.abs(again.losses[..., 1] - before[..., 1]) > 0.1).all()


@pytest.mark.slow
def test_training_sees_only_the_training_split(whole, toy, tmp_path):
    """Other inputs in a source's validation split change what is measured there and nothing else."""
    of_seed = split(toy, 0, CONFIG.holdout)
    rows = np.concatenate(
        [of_seed.order[s + n : s + c] for s, n, c in zip(toy.starts, of_seed.train_counts, toy.counts, strict=True)]
    )
    inputs = toy.inputs.copy()
    inputs[rows] += 30.0
    again = run(dataclasses.replace(toy, inputs=inputs), tmp_path, methods=["sam"], seeds=1, targets=(1,))
    before = of(whole, "SAM", 1, 0)
    np.testing.assert_allclose(again.losses[0, :, TRAIN], whole.losses[before, :, TRAIN], rtol=2e-5)
    assert (np.abs(again.losses[0, :, VALIDATION] - whole.losses[before, :, VALIDATION]) > 1e-2).all()


@pytest.mark.slow
def test_the_program_scans_over_steps_and_is_compiled_once(toy, tmp_path, monkeypatch):
    chex.clear_trace_counter()
    monkeypatch.setattr(program, "segment", chex.assert_max_traces(program.segment, n=1))
    run(toy, tmp_path, methods=["disam"], seeds=3, targets=(0,), runs_at_once=1)


@pytest.mark.slow
def test_the_steps_are_one_scan(toy):
    found, plan = plan_of(["disam"])
    splits = tuple(split(toy, seed, 0.2) for seed in plan.seeds)
    arrays = make_arrays(toy, splits, True)
    it = program.InMemoryRunner(NETWORK, found["DISAM"], CONFIG, arrays, plan.seeds, probe=4)
    specs = it.specs(plan.runs[:2])
    segment = functools.partial(it._segment, fixed=it._fixed)
    jaxpr = jax.make_jaxpr(segment)(it._start(specs, it.shared, fixed=it._fixed), specs, jnp.int32(0), it.shared)
    lengths = [
        each.params["length"]
        for equation in jaxpr.eqns
        for each in equation.params.get("jaxpr", jaxpr).eqns
        if each.primitive.name == "scan"
    ]
    assert CONFIG.segment in lengths


@pytest.mark.slow
def test_flops_of_the_methods(toy):
    """A perturbed step costs two plain ones."""
    found, plan = plan_of(["erm", "sam", "disam"])
    arrays = make_arrays(toy, tuple(split(toy, seed, 0.2) for seed in plan.seeds), True)
    config = dataclasses.replace(CONFIG, per_domain=64)
    flops = {}
    for name, method in found.items():
        # Wide enough that products outweigh what is done once for each weight.
        wide = make_network("mlp", (4,), 3, hidden=(256, 256))
        it = program.InMemoryRunner(wide, method, config, arrays, plan.seeds, probe=4)
        flops[name] = FLOPS(it, plan.runs_of(name)[0])
    assert flops["SAM"] == pytest.approx(2.0 * flops["ERM"], rel=0.05)
    assert flops["DISAM"] == pytest.approx(flops["SAM"], rel=0.01)


# Interruptions.


class StoppedError(Exception):
    pass


def interrupt_after(number):
    """Stops a sweep when the first runs of the chunk after `number` runs are trained."""

    def show(what, done, total):
        if done > number:
            raise StoppedError

    return show


def test_goes_on_where_it_was_interrupted(whole, computed, toy, tmp_path, monkeypatch):
    with pytest.raises(StoppedError):
        run(toy, tmp_path, runs_at_once=4, on_progress=interrupt_after(8.2))
    there = (tmp_path / results_file.FILE).read_text().splitlines()
    finished = [json.loads(line)["chunk"] for line in there if "chunk" in json.loads(line)]
    assert finished == [["ERM", 0], ["ERM", 1], ["SAM", 0]][: len(finished)]
    assert finished
    # What a kill in the middle of writing leaves.
    with (tmp_path / results_file.FILE).open("a") as file:
        file.write('{"chunk":["SAM",0],"runs":[{"meth')
    trained, train = [], program.InMemoryRunner.train
    monkeypatch.setattr(
        program.InMemoryRunner, "train", lambda self, runs, *args: trained.append(len(runs)) or train(self, runs, *args)
    )
    results = run(toy, tmp_path, runs_at_once=4)
    assert len(trained) == 6 - len(finished)
    assert timeless(tmp_path) == timeless(computed["out"])
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(results, field), getattr(whole, field))


@pytest.mark.slow
def test_a_further_metric_is_measured_stored_and_reported(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS._read(), "twice", Metric(lambda logits, y: 2.0 * example_losses(logits, y), "two", 1))
    results = run(toy, tmp_path, methods=["erm"], targets=(0,), seeds=2)
    assert results.header["metrics"] == ["twice"]
    np.testing.assert_allclose(results.metrics["twice"], 2.0 * results.losses, rtol=1e-5)
    read = results_file.load_results(tmp_path)
    np.testing.assert_array_equal(read.metrics["twice"], results.metrics["twice"])
    table = metrics_table(read, summarise(read, "last"))
    assert table.columns == ("method", "twice, held-out", "twice, sources")
    held_out, sources = (cell.values[""] for cell in table.rows[0][1:])
    np.testing.assert_allclose(held_out, 2.0 * read.losses[:, -1, TRAIN, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(sources, 2.0 * read.losses[:, -1, VALIDATION, 1:].mean(), rtol=1e-5)
    monkeypatch.delitem(METRICS._read(), "twice")
    with pytest.raises(InputError, match="metrics is"):
        run(toy, tmp_path, methods=["erm"], targets=(0,), seeds=2)


def test_nothing_is_trained_again(whole, computed, toy, monkeypatch):
    before = (computed["out"] / results_file.FILE).read_bytes()
    monkeypatch.setattr(program.InMemoryRunner, "train", None)
    results = run(toy, computed["out"], runs_at_once=4)
    assert (computed["out"] / results_file.FILE).read_bytes() == before
    np.testing.assert_array_equal(results.losses, whole.losses)


def test_results_read_back(whole, computed):
    read = results_file.load_results(computed["out"])
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(read, field), getattr(whole, field))
    assert read.runs == whole.runs
    assert read.header == whole.header


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda header: {**header, "version": {**header["version"], "disam_jax": "0.0.1"}}, "version.disam_jax"),
        (lambda header: {**header, "data": {**header["data"], "fingerprint": "0"}}, "data.fingerprint"),
        (
            lambda header: {**header, "setting": {**header["setting"], "steps": 8}},
            "setting.steps is 8 there and 7 here",
        ),
        (lambda header: {**header, "schema": 1}, "schema is 1"),
        (lambda header: {}, "schema"),
    ],
)
def test_results_of_something_else_are_refused_and_kept(whole, computed, toy, tmp_path, change, named):
    lines = (computed["out"] / results_file.FILE).read_text().splitlines()
    header = json.loads(lines[0])["header"]
    content = "\n".join([json.dumps({"header": change(header)}), *lines[1:]]) + "\n"
    (tmp_path / results_file.FILE).write_text(content)
    with pytest.raises(InputError, match=named):
        run(toy, tmp_path, runs_at_once=4)
    assert (tmp_path / results_file.FILE).read_text() == content


@pytest.mark.slow
def test_results_of_something_else_are_replaced_if_asked(toy, tmp_path):
    run(toy, tmp_path, methods=["erm"], targets=(0,))
    results = run(toy, tmp_path, methods=["erm"], targets=(1,), overwrite=True)
    assert {each.target for each in results.runs} == {1}
    assert {each.target for each in results_file.load_results(tmp_path).runs} == {1}


@pytest.mark.slow
def test_a_command_typed_otherwise_is_the_same_sweep(toy, tmp_path):
    run(toy, tmp_path, methods=["erm"], targets=(0,), command="disam-jax sweep")
    run(toy, tmp_path, methods=["erm"], targets=(0,), command="disam-jax sweep --target a")


@pytest.mark.parametrize("content", ["no json\n", "[]\n", '{"other": 1}\n'])
def test_a_file_that_is_none_of_ours(toy, tmp_path, content):
    (tmp_path / results_file.FILE).write_text(content)
    with pytest.raises(InputError, match=results_file.FILE):
        run(toy, tmp_path, methods=["erm"])
    with pytest.raises(InputError, match=results_file.FILE):
        results_file.load_results(tmp_path)
    assert (tmp_path / results_file.FILE).read_text() == content


def test_a_second_process_is_refused(toy, tmp_path):
    with (
        results_file.open_store(tmp_path, {"schema": results_file.SCHEMA}),
        pytest.raises(InputError, match="another process"),
    ):
        run(toy, tmp_path, methods=["erm"])


@pytest.fixture
def file_limit():
    """Files of this process may not grow beyond a size: what a full disk is to a program that writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.slow
def test_a_disk_that_is_full_keeps_what_was_finished(whole, computed, toy, tmp_path, file_limit):
    complete = (computed["out"] / results_file.FILE).read_bytes()
    lines = complete.splitlines(keepends=True)
    before = b"".join(lines[:4])  # the header, the program of ERM, its two chunks
    (tmp_path / results_file.FILE).write_bytes(before)
    file_limit(len(before) + 300)
    with pytest.raises(InputError, match="goes on from there"):
        run(toy, tmp_path, runs_at_once=4)
    file_limit(resource.RLIM_INFINITY)
    kept = (tmp_path / results_file.FILE).read_bytes()
    assert kept.startswith(before)
    assert complete.startswith(kept)
    run(toy, tmp_path, runs_at_once=4)
    assert timeless(tmp_path) == timeless(computed["out"])


def test_no_results(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        results_file.load_results(tmp_path)
    with results_file.open_store(tmp_path, {"schema": results_file.SCHEMA}):
        pass
    with pytest.raises(InputError, match="no finished run"):
        results_file.load_results(tmp_path)


@pytest.mark.slow
def test_the_complete_part(toy, tmp_path):
    with pytest.raises(StoppedError):
        run(toy, tmp_path, runs_at_once=4, on_progress=interrupt_after(8.2))
    part = results_file.complete_part(results_file.load_results(tmp_path))
    assert part.methods == ("ERM",)
    assert len(part.runs) == 6


# Memory, divergence, tuning.


@pytest.mark.slow
def test_fewer_runs_go_into_a_program_that_may_take_less_memory(toy, tmp_path, whole):
    found, plan = plan_of(["disam"], seeds=4)
    arrays = make_arrays(toy, tuple(split(toy, seed, 0.2) for seed in plan.seeds), True)
    it = program.InMemoryRunner(NETWORK, found["DISAM"], CONFIG, arrays, plan.seeds, probe=4)
    needed = {number: memory.program_bytes(it.compile(plan.runs[:number])) for number in (1, 3)}
    assert needed[1] < needed[3]
    assert it.runs_at_once(plan.runs, 3, needed[3]) == 3
    assert it.runs_at_once(plan.runs, 3, needed[3] - 1) in (1, 2)
    with pytest.raises(InputError, match="--memory"):
        it.runs_at_once(plan.runs, 3, needed[1] - 1)


@pytest.mark.parametrize(
    ("total", "most", "size"), [(10, 4, 4), (10, 5, 5), (9, 4, 3), (1, 7, 1), (17, 16, 16), (100, 64, 56), (8, 8, 8)]
)
def test_parts_are_even_and_fill_the_devices(total, most, size):
    assert memory.evenly(total, most) == size


@pytest.mark.slow
@pytest.mark.usefixtures("nans_allowed")
def test_a_run_that_diverges_is_a_row_with_nan(toy, tmp_path):
    config = dataclasses.replace(CONFIG, learning_rate=1e30)
    results = run(toy, tmp_path, methods=["erm", "sam"], config=config)
    assert len(results.runs) == 12
    assert np.isnan(results.losses[:, -1]).any((-2, -1)).all()
    assert np.isfinite(results.losses[:, 0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("averaging", ["ema", "swad", "swad-released"])
def test_averages_are_what_is_measured(whole, toy, tmp_path, averaging):
    config = dataclasses.replace(CONFIG, averaging=averaging)
    results = run(toy, tmp_path, methods=["sam"], config=config, targets=(0,), seeds=2)
    plain = whole.losses[[of(whole, "SAM", 0, seed) for seed in range(2)]]
    np.testing.assert_allclose(results.losses[:, 0], plain[:, 0], rtol=2e-6)
    # SWAD's weights are known only at the end.
    same = results.losses[:, 1:-1] - plain[:, 1:-1]
    assert (np.abs(same).max() < 1e-5) == (averaging != "ema")
    assert np.abs(results.losses[:, -1] - plain[:, -1]).max() > 1e-4


@pytest.mark.slow
def test_candidates_are_runs_of_their_own(toy, tmp_path):
    results = run(toy, tmp_path, methods=["erm", "sam"], candidates=3, targets=(0,), seeds=1)
    assert [each.candidate for each in results.runs] == [0, 1, 2] * 2
    rates = [each.hparams["learning_rate"] for each in results.runs]
    assert rates[:3] == rates[3:]
    assert len(set(rates)) == 3
    assert len(np.unique(results.losses[:3, -1, 0, 1])) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "--steps"),
        ({"rho": -1.0}, "--rho"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
        ({"holdout": 1.0}, "--holdout"),
        ({"averaging": "mean"}, "--averaging must be one of none, ema, swad, swad-released"),
        ({"optimizer": "lion"}, "--optimizer"),
    ],
)
def test_settings_that_make_no_sense(toy, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        run(toy, tmp_path / "out", config=dataclasses.replace(CONFIG, **change))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_domain_with_fewer_examples_than_the_batch_is_named(toy, tmp_path):
    results = run(toy, tmp_path, methods=["erm"], targets=(1,), config=dataclasses.replace(CONFIG, per_domain=6))
    assert [note[:36] for note in results.header["notes"]] == ["Domain a has 4 training examples, fe"]


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "disam_jax.dg.cli",
        "sweep",
        "--method",
        "erm,disam",
        "--seeds",
        "2",
        "--target",
        "noise",
        "--steps",
    ]
    command += ["40", "--candidates", "3", "--evaluations", "4", "--runs-at-once", "2", "--out"]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    began = time.monotonic()
    subprocess.run([*command, "whole"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    taken = time.monotonic() - began
    rng = np.random.default_rng(0)
    for _ in range(2):
        child = subprocess.Popen([*command, "killed"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=float(rng.uniform(0.4, 0.9)) * taken)
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run([*command, "killed"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    different = {"record.json", "cost.md", "cost.csv", "cost.tex"}
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {path.name for path in (tmp_path / "killed").iterdir()}
    for name in names - different:
        if name == results_file.FILE:
            assert timeless(tmp_path / "whole") == timeless(tmp_path / "killed")
            continue
        # The command line, which names the folder, is in some of them.
        one, other = ((tmp_path / each / name).read_bytes() for each in ("whole", "killed"))
        assert one == other.replace(b"--out killed", b"--out whole"), name
