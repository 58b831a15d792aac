"""One training run: how it starts and what a step does.

A run is one seed with one target, the domain that is held out, of one method with its hyperparameters. Initial weights,
split, batches, augmentation and dropout are drawn from keys made of seed and target (and the step) alone, so that
methods and hyperparameters differ in nothing else.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from disam_jax.dg.data import augment, keys
from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.load import CachedFeatures
from disam_jax.dg.data.splits import Split, validates
from disam_jax.dg.methods import Batch, HParams, Method, MethodError, MethodState, Outputs, Start, method_gradient
from disam_jax.dg.methods.base import initial_state
from disam_jax.dg.methods.subset import on_subset, unperturbed
from disam_jax.dg.models.network import Network, Params, State
from disam_jax.dg.training.averaging import SWAD, moving_average
from disam_jax.dg.training.config import TrainConfig, make_optimizer


class Arrays(NamedTuple):
    """A data set on the device, with its splits; S seeds, D domains, N examples.

    Attributes:
        inputs: [N, ...].
        labels: int32 [N].
        domain_ids: Domain of each example, int32 [N].
        starts: First row of each domain, int32 [D].
        counts: Number of examples of each domain, int32 [D].
        order: Rows with those of the training split first in each domain, int32 [S, N], see `Split`.
        train_counts: Size of each training split, int32 [D], the same for every seed.
        in_validation: Whether an example is in the validation split, bool [S, N].
        shift: float32 [S, D, ...], subtracted from the inputs if domain d is the target; None for images.
        scale: float32 [S, D, ...], by which they are then divided.
        views: K arrays like the inputs, of augmented images; a step draws one of them for each example.
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
    views: tuple[jax.Array, ...] = ()


class RunSpec(NamedTuple):
    """What distinguishes a run from the others of its method; leaves [R, ...] for R runs, [...] inside one.

    Attributes:
        key: Random key of (seed, target).
        place: Place of the seed among the splits, int32 [].
        target: Held-out domain, int32 [].
        hparams: Values of the hyperparameters, float32 [] each.
    """

    key: jax.Array
    place: jax.Array
    target: jax.Array
    hparams: HParams


class RunState(NamedTuple):
    """What a run carries from step to step; leaves [R, ...] for R runs, [...] inside one.

    Attributes:
        params: Parameters of the network.
        state: Running statistics of the network.
        optimizer: State of the optimizer.
        method_state: State of the method.
        average: Average of (params, state) over the steps so far, or None.
    """

    params: Params
    state: State
    optimizer: Any
    method_state: MethodState
    average: Any


def make_arrays(data: Domains, splits: tuple[Split, ...], standardise: bool) -> Arrays:
    """Puts a data set on the device.

    Mean and standard deviation are those of the source domains' training splits: nothing of the held-out domain or of
    a validation split enters. A feature that is constant there is only centred.

    Args:
        data: Data set.
        splits: Splits, one for each seed.
        standardise: Whether to compute shift and scale; without them, inputs are used as they are.

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
        tuple(jnp.asarray(view) for view in data.views) if isinstance(data, CachedFeatures) else (),
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


def start(
    spec: RunSpec,
    network: Network,
    method: Method,
    config: TrainConfig,
    num_sources: int,
    example: jax.ShapeDtypeStruct | None = None,
) -> RunState:
    """A run before its first step. Its weights depend on seed and target alone, not on the method.

    Args:
        spec: Seed, target and hyperparameters of the run.
        network: Network to train.
        method: Method whose state is made.
        config: Configuration that all runs share.
        num_sources: Number of source domains.
        example: Shape and dtype of one input; a method with an `init` needs it.

    Returns:
        The run.
    """
    params, state = network.init(keys.init_key(spec.key))

    def known() -> Start:
        if example is None:
            raise ValueError("start must get the shape of an example for a method with an init, got None")
        inputs = jax.ShapeDtypeStruct((2, *example.shape), example.dtype)
        apply = lambda inputs: network.apply(params, state, inputs, spec.key, True)
        output = jax.eval_shape(apply, inputs)
        sizes = output.features.shape[-1], output.logits.shape[-1]
        return Start(num_sources, params, *sizes, keys.start_key(spec.key))

    return RunState(
        params,
        state,
        make_optimizer(config, spec.hparams).init(params),
        initial_state(method, known, num_sources),
        None if config.averaging == "none" else (params, state),
    )


def restarted(state: Any, initial: Any) -> Any:
    """The state of an optimizer that is made new. The schedule of the learning rate keeps its place.

    Args:
        state: State of the optimizer.
        initial: State that it starts with.

    Returns:
        The initial state, with the steps that schedules have counted.

    Example:
        >>> optimizer = optax.chain(optax.trace(0.9), optax.scale_by_schedule(lambda step: 0.5**step))
        >>> initial = optimizer.init(jnp.zeros(1))
        >>> _, state = optimizer.update(jnp.ones(1), initial)
        >>> trace, schedule = restarted(state, initial)
        >>> trace.trace.tolist(), int(schedule.count)
        ([0.0], 1)
    """
    is_schedule = lambda node: isinstance(node, optax.ScaleByScheduleState)
    keep = lambda now, new: now if is_schedule(now) else new
    return jax.tree.map(keep, state, initial, is_leaf=is_schedule)


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
    config: TrainConfig,
) -> RunState:
    """One optimizer step of one run.

    Args:
        run: Run before the step.
        spec: Seed, target and hyperparameters of the run.
        step: Number of the step, counted from 0, int32 [].
        inputs: n examples of each source domain, [M, n, ...]; images as uint8, not augmented.
        labels: int32 [M, n].
        network: Network to train.
        method: Method that computes the gradient.
        config: Configuration that all runs share.

    Returns:
        The run after the step.

    Raises:
        MethodError: If the method breaks its contract, see `method_gradient`.
    """
    key = keys.step_key(spec.key, step)
    if config.augments_images:
        flat = inputs.reshape(labels.size, *inputs.shape[2:])
        inputs = augment.augment(keys.augmentation_key(key), flat, augment.Augmentation()).reshape(inputs.shape)
    batch = Batch(inputs, labels, keys.method_key(key), step)

    def forward(params: Params, x: jax.Array | None = None, y: jax.Array | None = None) -> Outputs:
        x, y = batch.x if x is None else x, batch.y if y is None else y
        if x.shape[:2] != y.shape:
            raise MethodError(
                f"forward must get inputs {[*y.shape, '...']} for labels {list(y.shape)}, got {list(x.shape)}: give "
                "it the labels of these inputs, forward(params, x, y)"
            )
        # One batch for the network, whose batch normalisation then sees the mixture of the domains.
        output = network.apply(params, run.state, x.reshape(y.size, *x.shape[2:]), keys.dropout_key(key), True)
        losses = example_losses(output.logits, y.reshape(-1)).reshape(y.shape)
        by_domain = lambda values: values.reshape(*y.shape, -1)
        flat_head = network.head

        def head(features: jax.Array) -> jax.Array:
            assert flat_head is not None
            return by_domain(flat_head(params, run.state, features.reshape(y.size, -1)))

        return Outputs(
            losses.mean(1),
            by_domain(output.logits),
            by_domain(output.features),
            output.state,
            None if flat_head is None else head,
        )

    given = run.params, batch, forward, spec.hparams, run.method_state
    if config.perturbs_all or "rho" not in method.hparams:
        grads, state, method_state = method_gradient(method, *given)
    else:
        when = {"step": step, "begin": config.begin_step, "fraction": config.fraction}
        grads, state, method_state = on_subset(method, unperturbed(method), *given, **when)
    descend, before = make_optimizer(config, spec.hparams), run.optimizer
    if method.restart is not None:
        now = step.astype(jnp.float32) == method.restart(spec.hparams)
        before = jax.tree.map(functools.partial(jnp.where, now), restarted(before, descend.init(run.params)), before)
    updates, optimizer = descend.update(grads, before, run.params)
    params = optax.apply_updates(run.params, updates)
    average = run.average
    if config.averaging == "ema":
        average = moving_average(average, (params, state), step, config.ema_decay)
    elif config.averaging in SWAD:
        average = moving_average(average, (params, state), step % config.segment, 1.0)
    return RunState(params, state, optimizer, method_state, average)
