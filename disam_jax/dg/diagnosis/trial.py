"""A short plain trial of each held-out target, and the signals at its end.

A trial is the beginning of the benchmark's run of ERM with the same seed and target: the same split, initial weights,
batches, augmentation and dropout. Nothing of the target enters.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import disam_jax
from disam_jax.dg.data import keys
from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.load import CachedFeatures, StreamedImages
from disam_jax.dg.data.splits import Split, split
from disam_jax.dg.diagnosis.signals import HALVES, Examples, Signals, measure_signals
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import METHODS, Method, variant_methods
from disam_jax.dg.methods.sharpness_aware import FAMILIES
from disam_jax.dg.models.network import Network
from disam_jax.dg.progress import OnProgress
from disam_jax.dg.report.statistics import Estimate, estimate
from disam_jax.dg.results import Run
from disam_jax.dg.runners.in_memory import draw
from disam_jax.dg.runners.stacks import stack_length, stacks
from disam_jax.dg.runners.streaming import OVER_RUNS, advance, batches_of, read_rows, with_weights
from disam_jax.dg.sweep.hparams import default_hparams
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.step import Arrays, RunSpec, RunState, make_arrays, standardised, start

# A trial takes this share of the steps of a run, and no more steps than that.
SHARE = 0.1
MOST_STEPS = 50
# Below that, a domain has no two halves, or differs from no other one.
LEAST_SOURCES = 2


def trial_steps(config: TrainConfig) -> int:
    """Number of steps of a trial: a tenth of those of a run, rounded up, but at most 50.

    Example:
        >>> trial_steps(TrainConfig(steps=400)), trial_steps(TrainConfig(steps=2000)), trial_steps(TrainConfig(steps=3))
        (40, 50, 1)
    """
    return min(MOST_STEPS, math.ceil(SHARE * config.steps))


def arms() -> dict[str, Method]:
    """The methods whose gain over SAM the signals are about: SAM's with the domain-inspired perturbation.

    Example:
        >>> list(arms())
        ['DISAM', 'DISAM-std']
    """
    return {name: METHODS[name] for name in variant_methods("SAM", FAMILIES["SAM"]) if METHODS[name].base == "SAM"}


def find_arm(name: str) -> str:
    """The name of an arm as it is written.

    Raises:
        InputError: If the signals are not about a method of that name.

    Example:
        >>> find_arm("disam-std")
        'DISAM-std'
    """
    for arm in arms():
        if arm.lower() == name.lower():
            return arm
    raise InputError(
        f"--method {name} has no signals: they tell whether DISAM gains over SAM; write {' or '.join(arms())}"
    )


def arm_weights(arm: str, config: TrainConfig) -> Callable[[jax.Array], jax.Array]:
    """The domain weights of an arm's ascent with its default hyperparameters, as a function of the domain losses [M].

    Example:
        >>> arm_weights("DISAM-std", TrainConfig())(jnp.array([1.0, 1.0])).tolist()
        [0.5, 0.5]
    """
    method = arms()[arm]
    hparams = default_hparams(method, config)
    penalty = method.ascent({name: jnp.float32(value) for name, value in hparams.items()})["penalty"]
    return functools.partial(disam_jax.domain_weights, lam=hparams["lam"], penalty=penalty)


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Signals of T targets.

    Attributes:
        targets: Names of the held-out domains.
        seeds: S seeds.
        steps: Number of steps of a trial.
        signals: Values by name, float64 [S, T].
    """

    targets: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    signals: Mapping[str, np.ndarray]

    def estimates(self) -> dict[str, Estimate]:
        """Mean over the seeds and its standard error, by name, [T] each.

        Example:
            >>> diagnosis = Diagnosis(("photo",), (0, 1), 40, {"loss_spread": np.array([[1.0], [3.0]])})
            >>> diagnosis.estimates()["loss_spread"]
            Estimate(mean=array([2.]), error=array([1.]))
        """
        return {name: estimate(values) for name, values in self.signals.items()}


def check_domains(data: Domains, splits: Sequence[Split], targets: Sequence[int]) -> None:
    """Checks that there are domains to compare, with examples for two halves of each.

    Args:
        data: Data set.
        splits: Its splits.
        targets: Indices of the held-out domains.

    Raises:
        InputError: If there are not.

    Example:
        >>> from disam_jax.dg.data.splits import whole
        >>> from disam_jax.dg.testing import toy
        >>> check_domains(toy(), [whole(toy())], [0])
    """
    number = len(data.domain_names)
    if number - 1 < LEAST_SOURCES:
        raise InputError(
            f"{data.name} has {number} domains, so that a held-out one leaves {number - 1} to train on: the signals "
            f"compare source domains and need at least {LEAST_SOURCES}"
        )
    for each in splits:
        for place, (name, count) in enumerate(zip(data.domain_names, each.train_counts, strict=True)):
            if count < HALVES and any(target != place for target in targets):
                raise InputError(
                    f"domain {name} has {count} training example: the noise of a gradient is measured between two "
                    f"halves of them, so at least {HALVES} are needed"
                )


def diagnose(
    data: Domains,
    network: Network,
    config: TrainConfig,
    arm: str,
    targets: Sequence[int],
    seeds: Sequence[int],
    on_progress: OnProgress | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Trains a trial of each target and seed, and measures its signals.

    Args:
        data: Data set of at least three domains; `StreamedImages` are read as they are needed.
        network: Network to train.
        config: How a whole run is trained.
        arm: Method whose gain over SAM is in question, a key of `arms()`.
        targets: Indices of the domains to hold out.
        seeds: Seeds.
        on_progress: Called as the trials are finished.
        on_line: Called with a line of text before the first one, which says what will be run.

    Returns:
        Diagnosis.

    Raises:
        InputError: If there are too few domains or examples, or a trial diverges.

    Example:
        >>> from disam_jax.dg.models.registry import make_network
        >>> from disam_jax.dg.testing import toy
        >>> data = toy()
        >>> network = make_network("linear", data.inputs.shape[1:], len(data.class_names))
        >>> found = diagnose(data, network, TrainConfig(steps=20, per_domain=2), "DISAM-std", targets=[2], seeds=[0, 1])
        >>> found.targets, found.steps, found.signals["loss_spread"].shape
        (('cartoon',), 2, (2, 1))
    """
    splits = [split(data, seed, config.holdout) for seed in seeds]
    check_domains(data, splits, targets)
    if on_line is not None:
        on_line(start_line(data, config, targets, len(seeds)))
    trials = _Trials(data, network, config, arm, seeds, splits)
    found = np.empty((len(seeds), len(targets), len(Signals._fields)))
    done, total = 0, found.shape[0] * found.shape[1]
    for place, seed in enumerate(seeds):
        for column, target in enumerate(targets):
            if on_progress is not None:
                on_progress(f"trial of {data.domain_names[target]}, seed {seed}", done, total)
            found[place, column] = trials.measure(seed, target)
            done += 1
    if on_progress is not None:
        on_progress("trials", done, total)
    return Diagnosis(
        tuple(data.domain_names[target] for target in targets),
        tuple(seeds),
        trials.config.steps,
        {name: found[..., number] for number, name in enumerate(Signals._fields)},
    )


def start_line(data: Domains, config: TrainConfig, targets: Sequence[int], seeds: int) -> str:
    """What will be run, in a line.

    Example:
        >>> from disam_jax.dg.testing import toy
        >>> start_line(toy(), TrainConfig(steps=400), targets=[0, 2], seeds=3)
        'toy: 6 trials of 40 plain steps, 240 steps in all; held out: photo, cartoon; 3 seeds'
    """
    steps, trials = trial_steps(config), len(targets) * seeds
    return (
        f"{data.name}: {trials} trials of {steps} plain steps, {trials * steps} steps in all; held out: "
        f"{', '.join(data.domain_names[target] for target in targets)}; {seeds} seeds"
    )


class _Trials:
    """Trains and measures the trials of a data set, one after the other, each in the same compiled program.

    Args:
        data: Data set.
        network: Network to train.
        config: How a whole run is trained.
        arm: Method whose domain weights are looked at.
        seeds: Seeds.
        splits: Splits of the data, one for each seed.
    """

    def __init__(
        self,
        data: Domains,
        network: Network,
        config: TrainConfig,
        arm: str,
        seeds: Sequence[int],
        splits: Sequence[Split],
    ):
        self.data, self.weights = data, network.weights
        self.config = replace(config, steps=trial_steps(config), evaluations=1, averaging="none")
        self.seeds, self.splits = tuple(seeds), tuple(splits)
        erm = METHODS["ERM"]
        self.hparams = default_hparams(erm, config)
        sources = len(data.counts) - 1
        self.length = stack_length(
            self.config.steps,
            sources * config.per_domain * math.prod(data.inputs.shape[1:]) * data.inputs.dtype.itemsize,
        )
        begin = functools.partial(start, method=erm, config=self.config, num_sources=sources)
        self._start = jax.jit(with_weights(network, begin, (OVER_RUNS,)))
        self._advance = jax.jit(functools.partial(advance, network=network, method=erm, config=self.config))

        def measure(own: Any, states: RunState, examples: Examples) -> Signals:
            (params, state) = jax.tree.map(lambda leaf: leaf[0], (states.params, states.state))
            return measure_signals(
                params,
                state,
                examples,
                network=network.given(own),
                rho=config.rho,
                domain_weights=arm_weights(arm, config),
            )

        self._measure = jax.jit(measure)
        if isinstance(data, StreamedImages) or (isinstance(data, CachedFeatures) and data.streamed):
            self.source: _OnDisk | _InMemory = _OnDisk(data, self.config)
        else:
            self.source = _InMemory(data, self.config, self.splits)

    def measure(self, seed: int, target: int) -> np.ndarray:
        """The signals of a trial, float64 [K].

        Raises:
            InputError: If one is not finite.
        """
        place = self.seeds.index(seed)
        # A single run, but with the axis of runs of `advance`.
        hparams = {name: jnp.full(1, value, jnp.float32) for name, value in self.hparams.items()}
        specs = RunSpec(keys.run_key(seed, target), jnp.int32(place), jnp.int32(target), hparams)
        states = self._start(self.weights, specs)
        run = Run("ERM", target, seed, 0, self.hparams)
        steps = self.config.steps
        for step, stack in self.source.stacks(run, specs, self.splits[place], self.length):
            states = self._advance(self.weights, states, specs, jnp.int32(step), jnp.int32(steps), *stack)
        rows = probe_rows(self.data, self.splits[place], target, self.config.probe)
        take = lambda rows: (jnp.asarray(self.source.take(specs, rows)), jnp.asarray(self.data.labels[rows], jnp.int32))
        signals = self._measure(self.weights, states, Examples(*take(rows[0]), *take(rows[1])))
        values = np.asarray(jax.device_get(signals), np.float64)
        if not np.isfinite(values).all():
            wrong = [name for name, value in zip(Signals._fields, values, strict=True) if not np.isfinite(value)]
            raise InputError(
                f"after {steps} steps without {self.data.domain_names[target]}, seed {seed}, {', '.join(wrong)} cannot "
                "be computed, because a loss is not finite or a gradient is zero: take a smaller --learning-rate"
            )
        return values


def probe_rows(data: Domains, split: Split, target: int, probe: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the source domains on which signals are measured, as many of each domain.

    Args:
        data: Data set.
        split: Its split.
        target: Index of the held-out domain.
        probe: Largest number of examples of each domain.

    Returns:
        Rows of training examples, int [M, 2, h], and of validation examples, int [M, v].

    Example:
        >>> from disam_jax.dg.data.splits import seeded_split
        >>> from disam_jax.dg.testing import toy
        >>> data = toy()
        >>> training, validation = probe_rows(data, seeded_split(data.counts, seed=0), target=0, probe=256)
        >>> training.shape, validation.shape
        ((2, 2, 3), (2, 1))
    """
    sources = np.delete(np.arange(len(data.counts)), target)
    starts, train = data.starts[sources], split.train_counts[sources]
    half = min(probe, int(train.min())) // HALVES
    held = min(probe, int((data.counts[sources] - train).min()))
    training = split.order[starts[:, None] + np.arange(HALVES * half)]
    validation = split.order[(starts + train)[:, None] + np.arange(held)]
    return training.reshape(len(sources), HALVES, half), validation


class _InMemory:
    """Examples of a data set that is on the device.

    Args:
        data: Data set.
        config: Configuration of the trials.
        splits: Splits of the data, one for each seed.
    """

    def __init__(self, data: Domains, config: TrainConfig, splits: tuple[Split, ...]):
        self.arrays = make_arrays(data, splits, config.standardise)
        self.config = config
        self._draw = jax.jit(functools.partial(_draw_steps, per_domain=config.per_domain), static_argnames="number")
        self._take = jax.jit(_take_rows)

    def stacks(
        self, run: Run, specs: RunSpec, split: Split, length: int
    ) -> Iterator[tuple[int, tuple[jax.Array, jax.Array]]]:
        """The batches of a trial, see `runners.stacks`."""
        del run, split
        for first in range(0, self.config.steps, length):
            yield first, self._draw(specs, jnp.int32(first), self.arrays, number=length)

    def take(self, specs: RunSpec, rows: np.ndarray) -> jax.Array:
        """Inputs [*rows.shape, ...] as the network gets them."""
        return self._take(specs, jnp.asarray(rows, jnp.int32), self.arrays)


def _draw_steps(
    spec: RunSpec, first: jax.Array, arrays: Arrays, number: int, per_domain: int
) -> tuple[jax.Array, jax.Array]:
    """Inputs [K, M, n, ...] and labels [K, M, n] of the batches of K steps of a run."""
    steps = first + jnp.arange(number, dtype=jnp.int32)
    return jax.vmap(lambda step: draw(spec, step, arrays, per_domain))(steps)


def _take_rows(spec: RunSpec, rows: jax.Array, arrays: Arrays) -> jax.Array:
    """Inputs [*rows.shape, ...] as the network of a run gets them."""
    inputs = standardised(arrays.inputs[rows.reshape(-1)], spec, arrays)
    return inputs.reshape(*rows.shape, *inputs.shape[1:])


class _OnDisk:
    """Examples of a data set that stays in its files.

    Args:
        data: Images, or activations on disk.
        config: Configuration of the trials.
    """

    def __init__(self, data: StreamedImages | CachedFeatures, config: TrainConfig):
        self.data, self.config = data, config
        self.threads = os.cpu_count() or 1

    def stacks(
        self, run: Run, specs: RunSpec, split: Split, length: int
    ) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        """The batches of a trial, see `runners.stacks`."""
        del specs
        with batches_of(run, self.data, split, self.config, self.threads, length) as stream:
            yield from stacks(stream, 0, self.config.steps, length)

    def take(self, specs: RunSpec, rows: np.ndarray) -> np.ndarray:
        """Inputs [*rows.shape, ...] as the network gets them."""
        del specs
        return read_rows(rows, self.data, self.config.block, self.threads)
