"""One training run: how it starts and what a step does.

A run is one seed with one target, the domain that is held out, of one method with its hyperparameters. Initial weights,
split, batches, augmentation and dropout are drawn from keys made of seed and target (and the step) alone, so that
methods and hyperparameters differ in nothing else.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from disam_jax.dg.data import augment, keys
from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.splits import Split, validates
from disam_jax.dg.methods import Hyper, Memory, Method, Outputs
from disam_jax.dg.models.network import Network, Params, State
from disam_jax.dg.training.averaging import moving_average
from disam_jax.dg.training.config import TrainConfig, make_optimizer


class Arrays(NamedTuple):
    """A data set on the device, with its splits; S seeds, D domains, N examples.

    Attributes:
        inputs: [N, ...].
        labels: int32 [N].
        domain_ids: int32 [N].
        starts: int32 [D].
        counts: int32 [D].
        order: int32 [S, N], see `Split`.
        train_counts: int32 [D], the same for every seed.
        in_validation: bool [S, N].
        shift: float32 [S, D, ...], subtracted from the inputs if domain d is the target; None for images.
        scale: float32 [S, D, ...], by which they are then divided.
    """

    inputs: jax.Array
    labels: jax.Array
    domain_ids: jax.Array
    starts: jax.Array
    counts: jax.Array
    order: jax.Array
    train_counts: jax.Array
    in_validation: jax.Array
    shift: jax.Array | None
    scale: jax.Array | None


class RunSpec(NamedTuple):
    """What distinguishes a run from the others of its method; leaves [R, ...] for R runs, [...] inside one.

    Attributes:
        key: random key of (seed, target).
        place: int32 [], of the seed among the splits.
        target: int32 [], the held-out domain.
        hyper: the hyperparameters, float32 [] each.
    """

    key: jax.Array
    place: jax.Array
    target: jax.Array
    hyper: Hyper


class RunState(NamedTuple):
    """What a run carries from step to step; leaves [R, ...] for R runs, [...] inside one.

    Attributes:
        params: of the network.
        state: of the network: running statistics.
        optimizer: its state.
        memory: the method's.
        average: of (params, state) over the steps so far, or None.
    """

    params: Params
    state: State
    optimizer: Any
    memory: Memory
    average: Any


def make_arrays(data: Domains, splits: tuple[Split, ...], standardise: bool) -> Arrays:
    """Puts a data set on the device.

    Mean and standard deviation are those of the source domains' training splits: nothing of the held-out domain or of
    a validation split enters. A feature that is constant there is only centred.

    Args:
        data: the data set.
        splits: one for each seed.
        standardise: False leaves the inputs as they are.

    Returns:
        Arrays.
    """
    order = np.stack([split.order for split in splits])
    train_counts = splits[0].train_counts
    domains = len(data.counts)
    in_validation = np.stack([validates(each, data) for each in splits])
    shift = scale = None
    if standardise:
        shift = np.empty((len(splits), domains, *data.inputs.shape[1:]), np.float32)
        scale = np.empty_like(shift)
        for place, mask in enumerate(in_validation):
            for target in range(domains):
                seen = data.inputs[~mask & (data.domain_ids != target)].astype(np.float64)
                deviation = seen.std(0)
                shift[place, target] = seen.mean(0)
                scale[place, target] = np.where(deviation > 1e-6, deviation, 1.0)
        shift, scale = jnp.asarray(shift), jnp.asarray(scale)
    integers = (data.labels, data.domain_ids, data.starts, data.counts, order, train_counts)
    labels, domain_ids, starts, counts, order, train_counts = (jnp.asarray(x, jnp.int32) for x in integers)
    return Arrays(
        jnp.asarray(data.inputs),
        labels,
        domain_ids,
        starts,
        counts,
        order,
        train_counts,
        jnp.asarray(in_validation),
        shift,
        scale,
    )


def sources_of(target: jax.Array, num_domains: int) -> jax.Array:
    """All domains but the target, int32 [D - 1].

    Example:
        >>> sources_of(jnp.int32(1), 3).tolist()
        [0, 2]
    """
    first = jnp.arange(num_domains - 1, dtype=jnp.int32)
    return first + (first >= target).astype(jnp.int32)


def standardised(inputs: jax.Array, spec: RunSpec, arrays: Arrays) -> jax.Array:
    """Inputs [n, ...] as the network of a run gets them."""
    if arrays.shift is None or arrays.scale is None:
        return inputs
    return (inputs - arrays.shift[spec.place, spec.target][None]) / arrays.scale[spec.place, spec.target][None]


def start(spec: RunSpec, network: Network, method: Method, setting: TrainConfig, num_sources: int) -> RunState:
    """A run before its first step; weights are those of its seed and target, whatever the method."""
    params, state = network.init(keys.init_key(spec.key))
    return RunState(
        params,
        state,
        make_optimizer(setting, spec.hyper).init(params),
        method.memory(num_sources),
        None if setting.averaging == "none" else (params, state),
    )


def example_losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy in nats, float32 [N]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def train_step(
    run: RunState,
    spec: RunSpec,
    step: jax.Array,
    inputs: jax.Array,
    labels: jax.Array,
    *,
    network: Network,
    method: Method,
    setting: TrainConfig,
) -> RunState:
    """One optimizer step of one run.

    Args:
        run: before it.
        spec: of the run.
        step: int32 [], counted from 0.
        inputs: [M, n, ...], n examples of each source domain; images as uint8, not augmented.
        labels: int32 [M, n].
        network: that is trained.
        method: that makes the gradient.
        setting: what all runs share.

    Returns:
        The run after it.
    """
    key = keys.step_key(spec.key, step)
    number, size = labels.shape
    # One batch for the network, whose batch normalisation then sees the mixture of the domains.
    flat = inputs.reshape(number * size, *inputs.shape[2:])
    if setting.augment:
        flat = augment.augment(keys.augmentation_key(key), flat, augment.Augmentation())

    def forward(params: Params) -> Outputs:
        output = network.apply(params, run.state, flat, keys.dropout_key(key), True)
        losses = example_losses(output.logits, labels.reshape(-1))
        return Outputs(losses.reshape(number, size).mean(1), output.features.reshape(number, size, -1), output.state)

    grads, state, memory = method.gradient(run.params, forward, spec.hyper, run.memory)
    updates, optimizer = make_optimizer(setting, spec.hyper).update(grads, run.optimizer, run.params)
    params = optax.apply_updates(run.params, updates)
    average = run.average
    if setting.averaging == "ema":
        average = moving_average(average, (params, state), step, setting.ema_decay)
    elif setting.averaging == "swad":
        average = moving_average(average, (params, state), step % setting.segment, 1.0)
    return RunState(params, state, optimizer, memory, average)
