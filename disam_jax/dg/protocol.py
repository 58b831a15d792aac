"""Leave-one-domain-out for ERM, SAM and DISAM, all runs of a method in one compiled program.

A run is one seed with one target: the domain that is held out. Training uses the other domains, the
sources. Initial weights and batches are drawn from keys made of (seed, target) and (seed, target,
step) alone, so that the methods differ in nothing but their gradient.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

import disam_jax
from disam_jax.dg import models
from disam_jax.dg.domains import Domains


@dataclass(frozen=True)
class Training:
    """What all methods share.

    Attributes:
        steps: number of optimizer steps.
        learning_rate: of stochastic gradient descent.
        momentum: of the same.
        hidden: units in the one hidden layer.
        per_domain: examples of each source domain in a batch.
        standardise: whether inputs are standardised feature by feature, by the mean and standard
            deviation over the source domains.
        penalty: of the ascent objective, see `disam_jax.disam`.
        evaluations: how many times the runs are measured, evenly spaced over training, besides once
            before it.
    """

    steps: int
    learning_rate: float
    momentum: float = 0.9
    hidden: int = 64
    per_domain: int = 16
    standardise: bool = False
    penalty: str = "variance"
    evaluations: int = 20

    @property
    def chunk(self) -> int:
        """Steps between two measurements."""
        return -(-self.steps // self.evaluations)

    @property
    def measured_at(self) -> tuple[int, ...]:
        """The steps after which the runs are measured, from 0 to `steps`."""
        return (*range(0, self.steps, self.chunk), self.steps)


class Defaults(NamedTuple):
    """The setting of a data set.

    Attributes:
        training: what the methods share.
        rho: SAM's and DISAM's.
        lam: DISAM's, for each penalty.
    """

    training: Training
    rho: float
    lam: Mapping[str, float]


# With the standard deviation, lam must stay below 1 / sqrt(M - 1) for M sources lest a domain's weight
# turn negative.
LAM = MappingProxyType({"variance": 1.0, "weighted_variance": 1.0, "std": 0.4})
DIGITS = Defaults(Training(steps=400, learning_rate=0.1), rho=0.1, lam=LAM)
FOLDER = Defaults(Training(steps=2000, learning_rate=0.03, standardise=True), rho=0.5, lam=LAM)


@dataclass(frozen=True)
class Method:
    """A way to compute the gradient.

    Attributes:
        name: as in the tables.
        perturbed: whether the gradient is taken at w + e; if not, it is the plain one.
        rho: length of e. For the plain gradient, that of the e with which w + e is measured.
        lam: weight of the penalty in the ascent objective.
    """

    name: str
    perturbed: bool
    rho: float
    lam: float


def three_methods(rho: float, lam: float) -> tuple[Method, Method, Method]:
    """ERM, SAM and DISAM; ERM is measured at SAM's perturbed weights.

    Example:
        >>> [method.name for method in three_methods(0.1, 1.0)]
        ['ERM', 'SAM', 'DISAM']
    """
    return (
        Method("ERM", False, rho, 0.0),
        Method("SAM", True, rho, 0.0),
        Method("DISAM", True, rho, lam),
    )


class History(NamedTuple):
    """What is measured of S x T runs at P points of training, on all examples of every domain.

    Attributes:
        steps: int [P].
        accuracy: float32 [P, S, T, D], fraction of right answers at w.
        losses: float32 [P, S, T, D], mean cross-entropy at w, in nats.
        perturbed_losses: float32 [P, S, T, D], the same at w + e; 0 for the held-out domain.
        held_out: bool [T, D], which domain each target is.
    """

    steps: np.ndarray
    accuracy: np.ndarray
    losses: np.ndarray
    perturbed_losses: np.ndarray
    held_out: np.ndarray


class Runs(NamedTuple):
    """Weights and optimizer state; leaves [T, S, ...] for all runs, [...] inside one."""

    params: models.Layers
    optimizer: optax.OptState


class Data(NamedTuple):
    """The arrays of `Domains` on the device."""

    inputs: jax.Array
    labels: jax.Array
    domain_ids: jax.Array
    starts: jax.Array
    counts: jax.Array


class Targets(NamedTuple):
    """One entry for each held-out domain.

    Attributes:
        index: int32 [T], the held-out domain.
        sources: int32 [T, D - 1], the other ones.
        shift: float32 [T, F], subtracted from the inputs.
        scale: float32 [T, F], by which they are then divided.
    """

    index: jax.Array
    sources: jax.Array
    shift: jax.Array
    scale: jax.Array


class Measurement(NamedTuple):
    """What `History` holds, of one run at one point: float32 [D] each."""

    accuracy: jax.Array
    losses: jax.Array
    perturbed_losses: jax.Array


def make_targets(data: Domains, targets: Sequence[int], standardise: bool) -> Targets:
    """Sources of each target, and how its inputs are standardised.

    Mean and standard deviation are those of the source examples: nothing of the held-out domain
    enters. A feature that is constant over the sources is only centred.

    Args:
        data: the data set.
        targets: T indices of domains.
        standardise: False leaves the inputs as they are.

    Returns:
        Targets.
    """
    sources = np.array([np.delete(np.arange(len(data.counts)), t) for t in targets], np.int32)
    width = data.inputs.shape[1]
    shift = np.zeros((len(targets), width), np.float32)
    scale = np.ones((len(targets), width), np.float32)
    if standardise:
        for place, target in enumerate(targets):
            seen = data.inputs[data.domain_ids != target].astype(np.float64)
            deviation = seen.std(0)
            shift[place] = seen.mean(0)
            scale[place] = np.where(deviation > 1e-6, deviation, 1.0)
    return Targets(jnp.asarray(targets, jnp.int32), jnp.asarray(sources), jnp.asarray(shift), jnp.asarray(scale))


def draw_batch(key: jax.Array, data: Data, sources: jax.Array, per_domain: int) -> jax.Array:
    """Rows of a batch: as many from each source, drawn with replacement.

    Args:
        key: random key.
        data: the data set.
        sources: int32 [M].
        per_domain: n.

    Returns:
        int32 [M, n].
    """
    counts = data.counts[sources][:, None]
    within = jax.random.randint(key, (len(sources), per_domain), 0, counts, jnp.int32)
    return data.starts[sources][:, None] + within


def batch_loss(params: models.Layers, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Mean cross-entropy of inputs [n, F] and labels [n]: the loss of one domain's batch."""
    return _example_losses(params, *batch).mean()


def _example_losses(params: models.Layers, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    logits = models.apply_mlp(params, inputs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def run_keys(num_seeds: int, targets: jax.Array) -> jax.Array:
    """A random key for each run, made of its seed and its target alone.

    Args:
        num_seeds: S; the seeds are 0 to S - 1.
        targets: int32 [T], indices of domains.

    Returns:
        Keys [T, S].
    """

    def one(seed: jax.Array, target: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), target)

    seeds = jnp.arange(num_seeds, dtype=jnp.int32)
    return jax.vmap(jax.vmap(one, in_axes=(0, None)), in_axes=(None, 0))(seeds, targets)


def _optimizer(training: Training) -> optax.GradientTransformation:
    return optax.sgd(training.learning_rate, training.momentum)


def start(key: jax.Array, sizes: Sequence[int], training: Training) -> Runs:
    """Initial weights and optimizer state of one run, the same for every method."""
    # Steps count from zero, so that no batch is drawn from this key.
    params = models.init_mlp(jax.random.fold_in(key, 2**32 - 1), sizes)
    return Runs(params, _optimizer(training).init(params))


def train_step(
    run: Runs,
    key: jax.Array,
    target: Targets,
    step: jax.Array,
    rho: jax.Array,
    lam: jax.Array,
    data: Data,
    *,
    training: Training,
    perturbed: bool,
) -> Runs:
    """One optimizer step of one run."""
    rows = draw_batch(jax.random.fold_in(key, step), data, target.sources, training.per_domain)
    inputs = (data.inputs[rows] - target.shift[None, None]) / target.scale[None, None]
    batch = (inputs, data.labels[rows])
    domain_losses = disam_jax.per_domain(batch_loss)
    if perturbed:
        gradient = disam_jax.value_and_grad(domain_losses, rho, lam, penalty=training.penalty)
    else:
        gradient = jax.value_and_grad(lambda params, batch: domain_losses(params, batch).mean())
    _, grads = gradient(run.params, batch)
    updates, optimizer = _optimizer(training).update(grads, run.optimizer, run.params)
    params = cast(models.Layers, optax.apply_updates(run.params, updates))
    return Runs(params, optimizer)


def measure(
    params: models.Layers,
    target: Targets,
    rho: jax.Array,
    lam: jax.Array,
    data: Data,
    *,
    penalty: str,
) -> Measurement:
    """Accuracy and losses of one run on all examples of every domain.

    The perturbation e is that of the full source data; the held-out domain is absent from it.
    """
    inputs = (data.inputs - target.shift[None]) / target.scale[None]
    num_domains = len(data.counts)
    is_source = (jnp.arange(num_domains) != target.index).astype(jnp.float32)

    def domain_means(values: jax.Array) -> jax.Array:
        return disam_jax.mean_by_domain(values, data.domain_ids, num_domains).values

    def domain_losses(params: models.Layers):
        losses = domain_means(_example_losses(params, inputs, data.labels))
        # The weights count a domain once, as the batches do, whatever its size.
        return disam_jax.DomainLosses(losses, is_source)

    (_, info), _ = disam_jax.value_and_grad(domain_losses, rho, lam, penalty=penalty, with_info=True)(params)
    right = models.apply_mlp(params, inputs).argmax(-1) == data.labels
    return Measurement(
        domain_means(right.astype(jnp.float32)),
        domain_losses(params).values,
        info.perturbed_domain_losses,
    )


def advance(
    runs: Runs,
    keys: jax.Array,
    targets: Targets,
    first: jax.Array,
    rho: jax.Array,
    lam: jax.Array,
    data: Data,
    *,
    training: Training,
    perturbed: bool,
) -> tuple[Runs, Measurement]:
    """Measures all runs, then trains each for up to a chunk of steps.

    Args:
        runs: leaves [T, S, ...].
        keys: random keys [T, S], one for each run, the same at every call.
        targets: T of them.
        first: int32 [], the number of steps already made.
        rho: float32 [].
        lam: float32 [].
        data: the data set.
        training: what all methods share; static.
        perturbed: whether the gradient is taken at w + e; static.

    Returns:
        The runs after `min(training.chunk, training.steps - first)` more steps, and what was
        measured before these, leaves [T, S, D].
    """
    one_measure = functools.partial(measure, penalty=training.penalty)
    over_seeds = jax.vmap(one_measure, in_axes=(0, None, None, None, None))
    over_runs = jax.vmap(over_seeds, in_axes=(0, 0, None, None, None))
    measured = over_runs(runs.params, targets, rho, lam, data)

    one_step = functools.partial(train_step, training=training, perturbed=perturbed)
    over_seeds = jax.vmap(one_step, in_axes=(0, 0, None, None, None, None, None))
    all_steps = jax.vmap(over_seeds, in_axes=(0, 0, 0, None, None, None, None))

    def body(runs: Runs, step: jax.Array) -> tuple[Runs, None]:
        # The last chunk may reach past the end of training; skipping there keeps its length, and
        # with it the compiled program, the same for all chunks.
        return jax.lax.cond(
            step < training.steps,
            lambda runs: all_steps(runs, keys, targets, step, rho, lam, data),
            lambda runs: runs,
            runs,
        ), None

    runs, _ = jax.lax.scan(body, runs, first + jnp.arange(training.chunk, dtype=jnp.int32))
    return runs, measured


def compare(
    data: Domains,
    training: Training,
    methods: Sequence[Method],
    num_seeds: int,
    targets: Sequence[int] | None = None,
    on_progress: Callable[[str, int], None] | None = None,
) -> dict[str, History]:
    """Trains every method from the same initial weights on the same batches.

    Args:
        data: the data set, at least two domains.
        training: what all methods share.
        methods: what they differ in.
        num_seeds: seeds 0..num_seeds-1 are used.
        targets: indices of the domains to hold out, one after the other; all by default.
        on_progress: called with a method's name and the number of steps its runs have made.

    Returns:
        A history for each method's name.
    """
    targets = range(len(data.domain_names)) if targets is None else targets
    held_out = np.asarray(targets)[:, None] == np.arange(len(data.domain_names))[None, :]
    arrays = Data(*map(jnp.asarray, (data.inputs, data.labels, data.domain_ids, data.starts, data.counts)))
    holding_out = make_targets(data, targets, training.standardise)
    keys = run_keys(num_seeds, holding_out.index)
    sizes = (data.inputs.shape[1], training.hidden, len(data.class_names))
    one_start = functools.partial(start, sizes=sizes, training=training)
    initial = jax.vmap(jax.vmap(one_start))(keys)
    program = jax.jit(advance, static_argnames=("training", "perturbed"))

    histories = {}
    for method in methods:
        runs, points = initial, []
        for first in training.measured_at:
            runs, measured = program(
                runs,
                keys,
                holding_out,
                jnp.int32(first),
                jnp.float32(method.rho),
                jnp.float32(method.lam),
                arrays,
                training=training,
                perturbed=method.perturbed,
            )
            points.append(jax.device_get(measured))
            if on_progress is not None:
                on_progress(method.name, first)
        # From [P, T, S, D] to [P, S, T, D].
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves).swapaxes(1, 2), *points)
        histories[method.name] = History(
            steps=np.array(training.measured_at),
            accuracy=stacked.accuracy,
            losses=stacked.losses,
            perturbed_losses=stacked.perturbed_losses,
            held_out=held_out,
        )
    return histories
