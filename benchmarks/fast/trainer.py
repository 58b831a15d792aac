"""Trains runs of one seed and one target at once, which differ in numbers alone: they share weights and batches.

Here every run takes both passes of a DISAM step over the whole batch, and weighs examples: what a way costs is counted
elsewhere, from compiled programs. `tests/benchmarks/test_fast.py` holds a step to `disam_jax.subset_value_and_grad`.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.fast.plan import Setting
from benchmarks.verdict.method import over, penalised_weights
from disam_jax.dg.data import keys
from disam_jax.dg.models.network import Network
from disam_jax.dg.results import TRAIN, VALIDATION
from disam_jax.dg.runners.in_memory import draw
from disam_jax.dg.training.evaluation import by_domain_and_split, evaluate
from disam_jax.dg.training.step import Arrays, RunSpec, example_losses

# Runs in one program.
AT_ONCE = 64
FIELDS = ("accuracy", "validation_loss", "validation_accuracy", "spread", "worst_loss", "mean_loss", "cosine")
Numbers = Mapping[str, jax.Array]


class Fixed(NamedTuple):
    """What is fixed in a compiled program."""

    network: Network
    setting: Setting


def optimizer_of(setting: Setting) -> optax.GradientTransformation:
    """The optimizer, without its rate."""
    return optax.trace(0.9) if setting.optimizer == "sgd" else optax.scale_by_adam()


def factor(step: jax.Array, steps: int, numbers: Numbers) -> jax.Array:
    """What the schedule multiplies the learning rate with.

    Example:
        >>> at = lambda step: factor(jnp.int32(step), 10, {"decay": jnp.float32(0.4), "cosine": jnp.float32(0.0)})
        >>> at(0).item(), at(6).item(), at(8).item()
        (1.0, 1.0, 0.5)
    """
    left = (steps - step) / steps
    linear = jnp.where(numbers["decay"] > 0.0, jnp.minimum(over(left, numbers["decay"]), 1.0), 1.0)
    return jnp.where(numbers["cosine"] > 0.0, 0.5 * (1.0 - jnp.cos(jnp.pi * left)), linear)


def gradient(params: Any, losses: Any, step: jax.Array, numbers: Numbers, before: Any) -> tuple[Any, Any, jax.Array]:
    """f grad mean L_part(w + e) + (1 - f) grad mean L_rest(w) from step `begin` on, with e of the part; before, e = 0.

    Args:
        params: Parameters w.
        losses: Losses of the examples at some parameters, params -> float [M, n].
        step: Number of the step, int32 [].
        numbers: Those of `plan.numbers`.
        before: Direction that the step before found.

    Returns:
        The gradient; the direction of e, of length 1, which with `numbers["before"]` is that at w + e, for the next
        step; and the cosine between the direction of the step before and that of this batch at w.
    """
    domains, examples = jax.eval_shape(losses, params).shape
    fraction = numbers["kept"] / examples

    def part_and_rest(params: Any) -> tuple[jax.Array, jax.Array]:
        """Losses of the part, [M], and (1 - f) times the mean loss of the rest."""
        found = losses(params)
        inside = (jnp.arange(examples, dtype=jnp.float32) < numbers["kept"]).astype(found.dtype)[None]
        return (found * inside).sum(1) / numbers["kept"], (found * (1.0 - inside)).sum() / found.size

    (part, _), pull = jax.vjp(part_and_rest, params)
    weights = lambda part: penalised_weights(part, numbers["variance"], numbers["std"])
    (ascent,) = pull((weights(part), jnp.zeros(())))
    (rest,) = pull((jnp.zeros(domains), jnp.ones(())))
    direction = unit(ascent)
    whole = jax.tree.map(lambda g, h: fraction * g + h, ascent, rest)
    longer = jnp.where(numbers["whole"] > 0.0, over(optax.tree.norm(ascent), optax.tree.norm(whole)), 1.0)
    scale = jnp.where(step.astype(jnp.float32) >= numbers["begin"], numbers["rho"] * longer, 0.0)
    one_of = lambda yes, no: jax.tree.map(lambda a, b: jnp.where(numbers["before"] > 0.0, a, b), yes, no)
    there = jax.tree.map(lambda w, d: w + scale * d, params, one_of(before, direction))
    (part_there, _), pull = jax.vjp(part_and_rest, there)
    (perturbed,) = pull((jnp.full(domains, 1.0 / domains), jnp.zeros(())))
    (following,) = pull((weights(part_there), jnp.zeros(())))
    result = jax.tree.map(lambda g, h: fraction * g + h, perturbed, rest)
    return result, one_of(unit(following), direction), optax.tree.vdot(before, direction)


def unit(tree: Any) -> Any:
    """A tree of length 1 in its direction, or 0."""
    return optax.tree.scale(over(jnp.ones(()), optax.tree.norm(tree)), tree)


class Run(NamedTuple):
    """What a run carries from step to step: parameters, the optimizer's state, the last direction, sum of cosines."""

    params: Any
    moments: Any
    direction: Any
    cosines: jax.Array


def update(run: Run, step: jax.Array, inputs: jax.Array, labels: jax.Array, numbers: Numbers, fixed: Fixed) -> Run:
    """One optimizer step of one run, for networks without running statistics."""

    def losses(params: Any) -> jax.Array:
        flat = inputs.reshape(labels.size, *inputs.shape[2:])
        output = fixed.network.apply(params, {}, flat, jax.random.key(0), True)
        return example_losses(output.logits, labels.reshape(-1)).reshape(labels.shape)

    grads, direction, cosine = gradient(run.params, losses, step, numbers, run.direction)
    updates, moments = optimizer_of(fixed.setting).update(grads, run.moments)
    rate = numbers["learning_rate"] * factor(step, fixed.setting.steps, numbers)
    params = jax.tree.map(lambda w, u: w - rate * u, run.params, updates)
    return Run(params, moments, direction, run.cosines + cosine)


@functools.partial(jax.jit, static_argnames="fixed")
def trained(spec: RunSpec, arrays: Arrays, numbers: Numbers, fixed: Fixed) -> tuple[jax.Array, jax.Array, jax.Array]:
    """K runs from the first step to the last.

    Args:
        spec: Seed and target of all runs.
        arrays: Data set.
        numbers: What distinguishes them, [K] each.
        fixed: Network and setting.

    Returns:
        Accuracy and mean loss after the last step, on both splits of each domain, [K, 2, D] each, and the mean over the
        steps of the cosine between a step's direction and that before it, [K].
    """
    params, _ = fixed.network.init(keys.init_key(spec.key))
    begin = Run(params, optimizer_of(fixed.setting).init(params), optax.tree.zeros_like(params), jnp.zeros(()))
    number = len(numbers["rho"])
    runs = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], number, 0), begin)

    def step(runs: Run, place: jax.Array) -> tuple[Run, None]:
        inputs, labels = draw(spec, place, arrays, fixed.setting.per_domain)
        one = lambda run, numbers: update(run, place, inputs, labels, numbers, fixed)
        return jax.vmap(one)(runs, numbers), None

    runs, _ = jax.lax.scan(step, runs, jnp.arange(fixed.setting.steps, dtype=jnp.int32))

    def measured(params: Any) -> tuple[jax.Array, jax.Array]:
        values = evaluate(params, {}, spec, arrays, network=fixed.network, block=1024)
        of = lambda name: by_domain_and_split(values[name], spec, arrays)
        return of("accuracy"), of("losses")

    return *jax.vmap(measured)(runs.params), runs.cosines / fixed.setting.steps


def summarised(accuracy: np.ndarray, losses: np.ndarray, cosine: np.ndarray, target: int) -> np.ndarray:
    """What is kept of K runs, float32 [K, len(FIELDS)]; NaN for one that diverged.

    Accuracy is that on the target's training split, in percent, as in DomainBed. The validation loss and accuracy are
    means over the sources' validation splits; spread (standard deviation), largest and mean loss are of the sources'
    training splits, in nats. The cosine is that of directions of neighbouring steps.

    Args:
        accuracy: [K, 2, D].
        losses: [K, 2, D].
        cosine: [K].
        target: Held-out domain.
    """
    sources = lambda values, split: np.delete(np.asarray(values, np.float64)[:, split], target, -1)
    training = sources(losses, TRAIN)
    found = np.stack(
        [
            100.0 * accuracy[:, TRAIN, target],
            sources(losses, VALIDATION).mean(-1),
            100.0 * sources(accuracy, VALIDATION).mean(-1),
            training.std(-1),
            training.max(-1),
            training.mean(-1),
            cosine,
        ],
        -1,
    ).astype(np.float32)
    found[~np.isfinite(losses).all((1, 2))] = np.nan
    return found


def train(runs: list[dict[str, float]], seed: int, place: int, target: int, arrays: Arrays, fixed: Fixed) -> np.ndarray:
    """Trains and measures the runs of one seed and one target, float32 [K, len(FIELDS)].

    Args:
        runs: Numbers of the K runs.
        seed: Their seed.
        place: Its place among the splits in `arrays`.
        target: Held-out domain.
        arrays: Data set.
        fixed: Network and setting.
    """
    size = min(AT_ONCE, len(runs))
    spec = RunSpec(keys.run_key(jnp.int32(seed), jnp.int32(target)), jnp.int32(place), jnp.int32(target), {})
    chunks = []
    for first in range(0, len(runs), size):
        chunk = runs[first : first + size]
        # Filled up, so that one program serves all chunks.
        filled = chunk + [chunk[-1]] * (size - len(chunk))
        numbers = {name: jnp.asarray([each[name] for each in filled], jnp.float32) for name in filled[0]}
        found = map(np.asarray, trained(spec, arrays, numbers, fixed))
        chunks.append(summarised(*found, target)[: len(chunk)])
    return np.concatenate(chunks)
