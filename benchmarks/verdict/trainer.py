"""Trains all candidates of one seed and one target at once: they share every batch, so it is drawn once."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.verdict.method import VERDICT
from benchmarks.verdict.plan import Candidate
from disam_jax.dg.data import keys
from disam_jax.dg.methods import Method
from disam_jax.dg.models.network import Network
from disam_jax.dg.runners.in_memory import draw
from disam_jax.dg.training.averaging import average_points, swad_counts
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.evaluation import by_domain_and_split, evaluate
from disam_jax.dg.training.step import Arrays, RunSpec, RunState, start, train_step

# Candidates in one program; more of them were no faster on two cores.
AT_ONCE = 64
# Candidates differ in their state and their hyperparameters alone.
SPEC_AXES = RunSpec(None, None, None, 0)


class Fixed(NamedTuple):
    """What is fixed in a compiled program."""

    network: Network
    config: TrainConfig
    method: Method = VERDICT


class Measured(NamedTuple):
    """Accuracy and mean loss of K candidates on the training and the validation split of each domain, [K, 2, D]."""

    accuracy: Any
    losses: Any


def measure(params: Any, state: Any, spec: RunSpec, arrays: Arrays, fixed: Fixed) -> Measured:
    """What is measured of K candidates."""

    def one(params: Any, state: Any) -> Measured:
        values = evaluate(params, state, spec, arrays, network=fixed.network, block=fixed.config.block)
        of = lambda name: by_domain_and_split(values[name], spec, arrays)
        return Measured(of("accuracy"), of("losses"))

    return jax.vmap(one)(params, state)


measured = jax.jit(measure, static_argnames="fixed")


@functools.partial(jax.jit, static_argnames="fixed")
def trained(spec: RunSpec, arrays: Arrays, fixed: Fixed) -> tuple[Measured, Any]:
    """K runs from the first step to the last.

    Args:
        spec: Seed and target of all of them, and their hyperparameters [K].
        arrays: Data set.
        fixed: Network and configuration.

    Returns:
        What was measured after each of P segments, [P, K, ...], and the mean weights of each segment, [P, K, ...].
    """
    network, config, method = fixed
    sources = len(arrays.counts) - 1
    begin = functools.partial(start, network=network, method=method, config=config, num_sources=sources)
    states = jax.vmap(begin, (SPEC_AXES,))(spec)

    def step(states: RunState, number: jax.Array) -> tuple[RunState, None]:
        inputs, labels = draw(spec, number, arrays, config.per_domain)
        one = functools.partial(train_step, network=network, method=method, config=config)
        return jax.vmap(one, (0, SPEC_AXES, None, None, None))(states, spec, number, inputs, labels), None

    def segment(states: RunState, first: jax.Array) -> tuple[RunState, tuple[Measured, Any]]:
        states, _ = jax.lax.scan(step, states, first + jnp.arange(config.segment, dtype=jnp.int32))
        return states, (measure(states.params, states.state, spec, arrays, fixed), states.average)

    _, found = jax.lax.scan(segment, states, jnp.arange(0, config.steps, config.segment, dtype=jnp.int32))
    return found


class Curves(NamedTuple):
    """What was measured of K candidates: after P segments, [K, P, 2, D], and of SWAD's weights, [K, 2, D]."""

    accuracy: np.ndarray
    losses: np.ndarray
    swad_accuracy: np.ndarray
    swad_losses: np.ndarray


def train(candidates: Sequence[Candidate], seed: int, place: int, target: int, arrays: Arrays, fixed: Fixed) -> Curves:
    """Trains and measures the candidates of one seed and one target.

    Args:
        candidates: K candidates.
        seed: Seed of the runs.
        place: Its place among the splits in `arrays`.
        target: Held-out domain.
        arrays: Data set.
        fixed: Network and configuration, with `averaging="swad"`.

    Returns:
        Curves.
    """
    size = min(AT_ONCE, len(candidates))
    chunks = []
    for first in range(0, len(candidates), size):
        chunk = list(candidates[first : first + size])
        # Filled up, so that one program serves all chunks.
        filled = chunk + [chunk[-1]] * (size - len(chunk))
        hparams = {
            name: jnp.asarray([each.hparams[name] for each in filled], jnp.float32) for name in filled[0].hparams
        }
        spec = RunSpec(keys.run_key(jnp.int32(seed), jnp.int32(target)), jnp.int32(place), jnp.int32(target), hparams)
        points, averages = trained(spec, arrays, fixed)
        losses = np.asarray(points.losses, np.float64)
        validation = np.delete(losses[:, :, 1], target, -1).mean(-1)  # [P, K]
        counts = np.stack([swad_counts(each) for each in validation.T])
        segments = [jax.tree.map(lambda leaf, p=p: leaf[p], averages) for p in range(len(losses))]
        params, state = average_points(segments, counts)
        swad = measured(params, state, spec, arrays, fixed)
        kept = slice(len(chunk))
        chunks.append(
            Curves(
                np.moveaxis(np.asarray(points.accuracy), 0, 1)[kept],
                np.moveaxis(losses, 0, 1)[kept],
                np.asarray(swad.accuracy)[kept],
                np.asarray(swad.losses)[kept],
            )
        )
    return Curves(*(np.concatenate(each) for each in zip(*chunks, strict=True)))
