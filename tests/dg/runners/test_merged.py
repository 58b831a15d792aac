"""Merged batches: a fixed number of examples of all source domains, shuffled in each epoch, for some epochs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from support import save_image
from timeless import timeless

from disam_jax.dg.cli import checks
from disam_jax.dg.cli.options import Compare
from disam_jax.dg.data import batches, sampling
from disam_jax.dg.data.folder import list_images, load_images
from disam_jax.dg.data.load import stream_images
from disam_jax.dg.data.splits import seeded_split, split
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import METHODS, find_methods
from disam_jax.dg.models.network import Network, Output
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.runners import in_memory
from disam_jax.dg.runners.checkpoints import Checkpoints
from disam_jax.dg.runners.make import merged_tables
from disam_jax.dg.sweep import hparams
from disam_jax.dg.sweep import run as sweep
from disam_jax.dg.training.config import TrainConfig, make_config, make_optimizer, with_steps
from disam_jax.dg.training.step import RunSpec, start, train_step

SIZES = (5, 11, 8)
SIZE = 8
CONFIG = TrainConfig(
    steps=7, learning_rate=0.1, rho=0.3, lam=0.5, hidden=5, evaluations=3, block=10, batches="merged", batch_size=4
)


# Which examples.


@pytest.mark.parametrize("target", [0, 1, 2])
def test_an_epoch_deals_out_every_example_of_the_sources_at_most_once(target):
    of_split = seeded_split(SIZES, 3)
    sources = tuple(domain for domain in range(3) if domain != target)
    plan = sampling.Plan(np.array(SIZES), of_split, sources, 5, target, 16, 40, "merged", 4)
    starts = np.cumsum(SIZES) - SIZES
    members = {row for d in sources for row in of_split.order[starts[d] :][: of_split.train_counts[d]].tolist()}
    each = len(members) // 4
    rows = plan.rows()
    assert rows.shape == (40, 4)
    assert rows.dtype == np.int32
    epochs = [rows[first : first + each].ravel() for first in range(0, 40 // each * each, each)]
    assert {len(set(epoch.tolist())) for epoch in epochs} == {4 * each}
    assert set(rows.ravel().tolist()) == members
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs), "every epoch is shuffled anew"
    left_out = {tuple(sorted(members - set(epoch.tolist()))) for epoch in epochs}
    assert len(left_out) > 1 or len(members) % 4 == 0, "other examples are left over"
    places = plan.domains(rows)
    assert places.dtype == np.int32
    assert (np.array(sources)[places] == np.searchsorted(np.cumsum(SIZES), rows, side="right")).all()
    assert len({tuple(np.bincount(row, minlength=2)) for row in places}) > 1, "unequal numbers of each domain"
    # A function of seed, target and step: a shorter run is the beginning of a longer one.
    shorter = dataclasses.replace(plan, steps=9)
    np.testing.assert_array_equal(shorter.rows(), rows[:9])
    assert (dataclasses.replace(plan, seed=6).rows() != rows).any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": None}, "batch_size is for the form merged, got None with merged"),
        ({"form": "grouped"}, "batch_size is for the form merged, got 4 with grouped"),
        ({"batch_size": 0}, "batch_size must be in 1..11, the number of training examples of the sources, got 0"),
        ({"batch_size": 12}, "batch_size must be in 1..11, the number of training examples of the sources, got 12"),
    ],
)
def test_a_plan_that_does_not_fit_is_named(changes, said):
    given = {"form": "merged", "batch_size": 4, **changes}
    with pytest.raises(ValueError, match=said):
        sampling.Plan(np.array(SIZES), seeded_split(SIZES, 3), (0, 2), 5, 1, 16, 40, **given)


def test_batches_from_memory_have_the_rows_of_the_sweep_and_go_on_from_any_step(toy):
    of_split = split(toy, 0)
    make = lambda **more: batches.MemoryBatches(toy, of_split, (0, 2), 0, 1, 16, 7, "merged", 4, **more)
    stream = make()
    found = list(stream)
    table = merged_tables(toy, CONFIG, [of_split], [0])
    assert table.shape == (1, 3, 7, 4)
    for rows, batch in zip(table[0, 1], found, strict=True):
        np.testing.assert_array_equal(batch.x, toy.inputs[rows])
        np.testing.assert_array_equal(batch.y, toy.labels[rows])
        np.testing.assert_array_equal(np.array([0, 2])[batch.domain], toy.domain_ids[rows])
    again = make()
    again.set_state({**stream.get_state(), "step": 5})
    np.testing.assert_array_equal(next(again).x, found[5].x)
    grouped = batches.MemoryBatches(toy, of_split, (0, 2), 0, 1, 4, 7, "flat")
    with pytest.raises(InputError, match="the state belongs to other batches"):
        grouped.set_state(stream.get_state())


# What a step does.


def network_of(problem):
    def apply(params, state, x, key, train):
        features = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"][None])
        return Output(features @ params["out"]["w"] + params["out"]["b"][None], features, {})

    return Network(lambda key: (problem.params, {}), apply)


@functools.cache
def program(name):
    """The gradient of a step, for any domains of the examples."""
    problem = problems.make_problem(seed=3, num_domains=9, per_domain=1)
    x, y = problem.batch["x"][:, 0], problem.batch["y"][:, 0]
    fixed = {"network": network_of(problem), "method": METHODS[name], "config": TrainConfig(momentum=0.5)}
    values = {"rho": 0.3, "lam": 0.7, "learning_rate": 0.1, "weight_decay": 0.0}
    names = ("learning_rate", "weight_decay", *METHODS[name].hparams)
    given = {each: jnp.float32(values[each]) for each in names}
    spec = RunSpec(jax.random.key(0), jnp.int32(0), jnp.int32(3), given)

    @jax.jit
    def gradient(domains):
        run = start(spec, **fixed, num_sources=3)
        # What momentum has gathered in one step is the gradient.
        after = train_step(run, spec, jnp.int32(0), x, y, domains, **fixed, num_sources=3)
        return optax.tree.get(after.optimizer, "trace")

    return problem, gradient


# As many of each, unequally many, and none of one.
@pytest.mark.parametrize("domains", ["012012012", "200100020", "022202222"])
@pytest.mark.parametrize(
    ("name", "penalty"),
    [
        ("ERM", None),
        pytest.param("SAM", None, marks=pytest.mark.slow),
        ("DISAM", "variance"),
        pytest.param("DISAM-std", "std", marks=pytest.mark.slow),
    ],
)
def test_domain_losses_are_means_over_the_examples_that_there_are(name, penalty, domains):
    domains = np.array(list(domains), np.int32)
    problem, gradient = program(name)
    plain, w = problems.reference(problem), problems.flatten(problem.params)
    member = np.arange(3)[:, None] == domains[None]
    counts = member.sum(1)
    of_domains = member / np.maximum(counts, 1)[:, None]
    reference = problems.Reference(
        lambda w: of_domains @ plain.losses_at(w), lambda w: of_domains @ plain.gradients_at(w), weights=counts
    )
    wanted = plain.gradients_at(w).mean(0)
    if name != "ERM":
        options = {} if penalty is None else {"penalty": penalty}
        wanted = reference.step(w, 0.3, 0.0 if penalty is None else 0.7, **options)["gradient"]
    found = problems.flatten(gradient(jnp.asarray(domains)))
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)


def test_the_schedule_of_a_run_that_ends_earlier_goes_to_its_end():
    config = TrainConfig(steps=9, schedule="cosine", momentum=0.0)
    given = {"learning_rate": 1.0, "weight_decay": 0.0}
    optimizer = make_optimizer(config, given, jnp.int32(6))
    state, rates = optimizer.init(jnp.zeros(1)), []
    for _ in range(6):
        updates, state = optimizer.update(jnp.ones(1), state, jnp.zeros(1))
        rates.append(-float(updates[0]))
    np.testing.assert_allclose(rates, [0.5 * (1 + np.cos(np.pi * step / 6)) for step in range(6)], atol=1e-6)


# A sweep.


@pytest.fixture(autouse=True)
def _flops(monkeypatch):
    """Compiled from a program of its own, which no test here looks at."""
    monkeypatch.setattr(in_memory.InMemoryRunner, "flops", lambda self, run: 1.0)


def run(data, out, config, methods=("erm", "disam"), network=None, targets=(0, 2), seeds=(0, 1), **options):
    network = network or make_network("mlp", (4,), 3, hidden=(5,))
    found = find_methods(methods)
    chosen = {name: hparams.random_candidates(method, config, 1, 0) for name, method in found.items()}
    plan = sweep.Plan(chosen, targets, seeds)
    return sweep.run_sweep(data, network, config, found, plan, out, **options)[0]


def by_run(results):
    return dict(zip([run[:4] for run in results.runs], results.losses, strict=True))


@pytest.mark.slow
def test_a_run_trains_for_its_epochs_and_then_stands_still(toy, tmp_path):
    # Without domain a 16 examples train, without c 13: two epochs are 8 and 6 steps of batches of 4.
    config = with_steps(dataclasses.replace(CONFIG, epochs=2, averaging="ema"), toy)
    assert config.steps == 8
    both = by_run(run(toy, tmp_path / "both", config))
    by_steps = dataclasses.replace(CONFIG, steps=6, epochs=None, averaging="ema", eval_every=3)
    shorter = by_run(run(toy, tmp_path / "shorter", by_steps, targets=(2,)))
    assert {name[1] for name in both} == {0, 2}
    for name, losses in both.items():
        # Measured after 0, 3, 6 and 8 steps.
        assert np.abs(losses[3] - losses[2]).max() > 1e-3 if name[1] == 0 else (losses[3] == losses[2]).all()
        if name in shorter:
            np.testing.assert_allclose(losses[:3], shorter[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_folder_with_merged_batches_grows_and_is_kept_apart_from_others(toy, tmp_path):
    one = run(toy, tmp_path / "one", CONFIG, seeds=(0, 1, 2), runs_at_once=2)
    run(toy, tmp_path / "grown", CONFIG, seeds=(0, 1), methods=("erm",), runs_at_once=2)
    grown = by_run(run(toy, tmp_path / "grown", CONFIG, seeds=(0, 1, 2), runs_at_once=2))
    assert len(one.runs) == 12
    for name, losses in by_run(one).items():
        np.testing.assert_array_equal(losses, grown[name])
    for changes in ({"batch_size": 5}, {"batches": "grouped", "batch_size": None}):
        with pytest.raises(InputError, match="holds"):
            run(toy, tmp_path / "one", dataclasses.replace(CONFIG, **changes), seeds=(0, 1, 2), runs_at_once=2)


def apply(params, state, x, key, train):
    features = (x.astype(jnp.float32) / 255 - 0.5).reshape(len(x), -1)
    return Output(features @ params["kernel"], features, state)


LINEAR = Network(lambda key: ({"kernel": jnp.sin(jnp.arange(SIZE**2 * 3 * 2.0)).reshape(-1, 2) / 9}, {}), apply)


class KilledError(Exception):
    """The process would be gone."""


@pytest.mark.slow
def test_images_from_files_are_trained_on_as_from_memory_and_go_on_from_a_checkpoint(tmp_path, monkeypatch):
    for d, domain in enumerate("abc"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pictures" / domain / name
            folder.mkdir(parents=True)
            for k in range(4 + d):
                save_image(folder / f"{k}.png", seed=100 * d + 10 * (name == "dog") + k)
    listing = list_images(tmp_path / "pictures")
    data = stream_images(listing, SIZE)
    config = with_steps(dataclasses.replace(CONFIG, model="conv", epochs=2), data)
    assert config.steps == 8
    options = {"network": LINEAR, "methods": ("disam",), "runs_at_once": 1}
    streamed = run(data, tmp_path / "streamed", config, **options)
    whole = run(load_images(listing, SIZE), tmp_path / "memory", config, **options)
    assert streamed.runs == whole.runs
    np.testing.assert_allclose(streamed.losses, whole.losses, rtol=2e-5, atol=2e-6)
    last = whole.losses[:, -1].reshape(len(whole.runs), -1)
    assert min(np.abs(last[i] - last[j]).max() for i in range(len(last)) for j in range(i)) > 1e-4

    save = Checkpoints.save

    def save_and_end(self, at):
        save(self, at)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_end)
        with pytest.raises(KilledError):
            run(data, tmp_path / "parts", config, checkpoint_every=2, **options)
    run(data, tmp_path / "parts", config, checkpoint_every=2, **options)
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "streamed")


# What makes no sense.


@pytest.mark.parametrize(
    ("changes", "methods", "said"),
    [
        ({}, ["coral"], "--batches merged is not for CORAL, which needs as many examples of each domain in a batch"),
        ({}, ["erm", "mixup", "irm"], "--batches merged is not for Mixup, IRM, which need as many"),
        ({"epochs": 2}, ["erm"], r"2 epochs of this data are 8 steps, got 7: write with_steps\(config, data\)"),
        ({"epochs": 2, "steps": 8, "averaging": "swad"}, ["erm"], "but 2 --epochs are 4 to 8, by the held-out domain"),
        ({"batch_size": 14}, ["erm"], "batch_size does not fit the data, got 14"),
        ({"batch_size": None}, ["erm"], "batch_size does not fit the data, got None"),
        ({"batches": "grouped"}, ["erm"], "--batch-size is for merged batches: write --batches merged too"),
        ({"fraction": 0.5}, ["disam"], "--fraction and --begin are for --batches grouped"),
        ({"batches": "other"}, ["erm"], "--batches must be one of grouped, merged, got other"),
    ],
)
def test_what_merged_batches_are_not_for_is_refused_before_training(toy, tmp_path, changes, methods, said):
    with pytest.raises(InputError, match=said):
        run(toy, tmp_path / "out", dataclasses.replace(CONFIG, **changes), methods=methods)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"epochs": 3}, "--epochs is for merged batches: write --batches merged too, or --steps"),
        ({"batches": "merged", "epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"batches": "merged", "batch_size": 0}, "--batch-size must be at least 1, got 0"),
        (
            {"batches": "merged", "batch_size": 12},
            "--batch-size must be at most 11, the number of examples to train on without b, got 12",
        ),
    ],
)
def test_a_configuration_that_makes_no_sense_is_named(toy, values, said):
    with pytest.raises(InputError, match=said):
        make_config(toy, "mlp", **values)


def test_a_merged_batch_has_as_many_examples_as_a_grouped_one_by_default(toy):
    config = make_config(toy, "mlp", batches="merged", per_domain=5)
    assert (config.batch_size, config.record()["batches"]) == (10, "merged")
    # A sweep with grouped batches goes on as it began.
    assert not {"batches", "batch_size", "epochs"} & make_config(toy, "mlp").record().keys()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 5}, "--epochs and --steps exclude each other"),
        ({"open_class": True}, "--open-class trains on some: write --steps"),
    ],
)
def test_epochs_are_all_that_says_how_long(options, said):
    with pytest.raises(InputError, match=said):
        checks.check_epochs(Compare(batches="merged", epochs=3, **options))
