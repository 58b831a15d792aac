"""Trains and evaluates many runs of one method in a single compiled program, with the data set on the device."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from disam_jax.dg.data import keys, sampling
from disam_jax.dg.methods import Method
from disam_jax.dg.models.network import Network
from disam_jax.dg.results import Run
from disam_jax.dg.runners.base import flops_of, found, in_order, naming, swad_weights, weights
from disam_jax.dg.runners.checkpoints import Checkpoints, Halfway
from disam_jax.dg.runners.devices import devices_of, everywhere, groups, over_runs, put_once, split_batches
from disam_jax.dg.runners.keep import Keeper
from disam_jax.dg.runners.kept_logits import Examples, forget, on_host
from disam_jax.dg.runners.memory import fitting, program_bytes
from disam_jax.dg.training.averaging import SWAD
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.evaluation import Metrics, domain_sharpness, measure
from disam_jax.dg.training.metrics import METRICS, Metric
from disam_jax.dg.training.step import Arrays, RunSpec, RunState, sources_of, standardised, start, train_step


class Shared(NamedTuple):
    """What all runs share.

    Attributes:
        arrays: Data set.
        weights: Weights of the network that no run trains.
        new: Examples of new classes, or None.
        new_weights: Weights of the network that classifies these.
    """

    arrays: Arrays
    weights: Any = ()
    new: Arrays | None = None
    new_weights: Any = ()


class Networks(NamedTuple):
    """The network to train, and the one that classifies new classes with its parameters, if there are any."""

    trained: Network
    new: Network | None = None

    def given(self, shared: Shared) -> "Networks":
        """With the weights of a program's arguments."""
        return Networks(self.trained.given(shared.weights), self.new and self.new.given(shared.new_weights))

    def without_weights(self) -> "Networks":
        """The functions alone, which can be compared and hashed."""
        bare = lambda network: network and network._replace(weights=(), with_dropout=None)
        return Networks(bare(self.trained), bare(self.new))


class Fixed(NamedTuple):
    """What is fixed in a compiled program; it can be hashed.

    Attributes:
        networks: Networks to train and to measure, without their weights.
        method: Method that computes the gradients.
        config: Configuration that all runs share.
        probe: Number of examples of each domain on which w + e is measured.
        metrics: What is measured of every example, by name: `METRICS` when the program was made.
        kept: Number of rows of logits of the target, see `evaluate_and_keep`.
    """

    networks: Networks
    method: Method
    config: TrainConfig
    probe: int
    metrics: tuple[tuple[str, Metric], ...]
    kept: int = 0


class InMemoryRunner:
    """Trains and measures R runs of one method at once. Meets `runners.base.Runner`.

    Args:
        network: Network to train.
        method: Method that computes the gradients.
        config: Configuration that all runs share.
        arrays: Data set.
        seeds: S seeds, in the order of the splits in `arrays`.
        probe: Number of examples of each domain on which w + e is measured.
        new_network: Network that classifies new classes with the trained parameters, if there are any.
        new: Their examples.
    """

    def __init__(
        self,
        network: Network,
        method: Method,
        config: TrainConfig,
        arrays: Arrays,
        seeds: Sequence[int],
        probe: int,
        new_network: Network | None = None,
        new: Arrays | None = None,
    ):
        self.config, self.seeds = config, tuple(seeds)
        self.per_device: int | None = None
        # Of which XLA counts the operations on all devices.
        self._whole = Networks(network, new_network)
        networks = self._whole
        if config.data_parallel:
            networks = Networks(split_batches(network), new_network and split_batches(new_network))
        self.shared = Shared(arrays, network.weights, new, new_network.weights if new_network else ())
        kept = int(arrays.counts.max()) if config.keep_logits else 0
        self._fixed = Fixed(networks.without_weights(), method, config, probe, tuple(METRICS.items()), kept)
        # Static arguments, and not closures over them: a second runner of the same method finds what jax has traced.
        jit = functools.partial(jax.jit, static_argnames="fixed")
        self._start, self._measure, self._sharpness = jit(start_all), jit(measure_all), jit(sharpness_all)
        # The states must come out as they go in, for the next segment.
        placed: dict[str, Any] = {"out_shardings": everywhere()} if config.data_parallel else {}
        self._segment = jit(segment, donate_argnums=0, **placed)
        # Of the examples whose logits are kept.
        self._on_host: Any = jax.device_get((arrays.labels, arrays.domain_ids, arrays.in_validation)) if kept else ()
        self._compiled: dict[int, Any] = {}
        self._placed: dict[Any, Shared] = {}

    def specs(self, runs: Sequence[Run]) -> RunSpec:
        """The runs as arrays [R], spread over the devices if they can be dealt evenly."""
        seeds = jnp.asarray([run.seed for run in runs], jnp.int32)
        targets = jnp.asarray([run.target for run in runs], jnp.int32)
        specs = RunSpec(
            key=jax.vmap(keys.run_key)(seeds, targets),
            place=jnp.asarray([self.seeds.index(run.seed) for run in runs], jnp.int32),
            target=targets,
            hparams={name: jnp.asarray([run.hparams[name] for run in runs], jnp.float32) for name in runs[0].hparams},
        )
        return jax.device_put(specs, self.place(len(runs)))

    def place(self, number: int) -> NamedSharding:
        """Where arrays of R runs lie."""
        return everywhere() if self.config.data_parallel else over_runs(number, self.per_device)

    def shared_for(self, number: int) -> Shared:
        """What R runs share, on every device that has some of them."""
        where = NamedSharding(self.place(number).mesh, PartitionSpec())
        if where not in self._placed:
            self._placed[where] = put_once(self.shared, where)
        return self._placed[where]

    def chunks(self, runs: Sequence[Run], size: int) -> list[list[Run]]:
        """See `Runner`: any runs go together."""
        return in_order(runs, size)

    def compile(self, runs: Sequence[Run]) -> Any:
        """The program for as many runs; it is compiled once."""
        number = len(runs)
        if number not in self._compiled:
            specs, shared = self.specs(runs), self.shared_for(number)
            states = jax.device_put(self._start(specs, shared, fixed=self._fixed), self.place(number))
            with naming(runs):
                lowered = self._segment.lower(states, specs, jnp.int32(0), shared, fixed=self._fixed)
                self._compiled[number] = lowered.compile()
        return self._compiled[number]

    def runs_at_once(self, runs: Sequence[Run], most: int, budget: int) -> int:
        """See `Runner`: however many runs there are, so that a sweep that grows keeps its program."""
        used = lambda number: program_bytes(self.compile([runs[0]] * number))
        number = fitting(most, most, budget, used, groups(self.config))
        return number if self.config.data_parallel else number // devices_of(self.place(number))

    def flops(self, run: Run) -> float | None:
        """Floating-point operations of one training step of one run, as XLA counts them; None where it does not."""
        specs, shared = self.specs([run]), self.shared_for(1)
        states = jax.eval_shape(functools.partial(start_all, fixed=self._fixed), specs, shared)
        with naming([run]):
            fixed = self._fixed._replace(networks=self._whole.without_weights())
            step = jax.jit(functools.partial(step_all, fixed=fixed))
            return flops_of(step, states, specs, jnp.int32(0), shared)

    def train(
        self,
        runs: Sequence[Run],
        on_segment: Callable[[], None] | None = None,
        checkpoints: Checkpoints | None = None,
        save: str = "none",
    ) -> dict[str, Any]:
        """See `Runner`."""
        specs, compiled, shared = self.specs(runs), self.compile(runs), self.shared_for(len(runs))
        states = jax.device_put(self._start(specs, shared, fixed=self._fixed), self.place(len(runs)))
        points: list[Metrics] = []
        averages: list[Any] = []
        keeper = Keeper(save, runs, self.config)
        if checkpoints is not None and (found_there := checkpoints.latest(states)) is not None:
            _, states, points, averages, kept = found_there
            keeper.resume(kept, weights(states, self.config))
            states = jax.device_put(states, self.place(len(runs)))
        for place, first in list(enumerate(self.config.measured_at))[len(points) :]:
            keeper.before(weights(states, self.config))
            states, measured = compiled(states, specs, jnp.int32(first), shared)
            points.append(on_host(measured, runs, self._examples))
            forget(points, runs)
            keeper.after(place, points[-1])
            if self.config.averaging in SWAD and first < self.config.steps:
                averages.append(jax.device_get(states.average))
            last = min(first + self.config.segment, self.config.steps)
            if checkpoints is not None and checkpoints.due(last):
                checkpoints.save(Halfway(last, states, points, averages, keeper.so_far()))
            if on_segment is not None:
                on_segment()
        params, state = weights(states, self.config)
        if averages:
            params, state = swad_weights(averages, points, [run.target for run in runs], self.config)
            measured = self._measure(params, state, specs, shared, fixed=self._fixed)
            points[-1] = on_host(measured, runs, self._examples)
        sharpness = self._sharpness(params, state, specs, shared, fixed=self._fixed)
        kept = keeper.kept(params, state, functools.partial(standardisation, specs, shared.arrays))
        return {**found(points, jax.device_get(sharpness), runs, self._examples), **kept}

    def _examples(self, run: Run) -> Examples:
        """The examples of a run's target."""
        labels, domain_ids, in_validation = self._on_host
        of_target = domain_ids == run.target
        return Examples(labels[of_target], in_validation[self.seeds.index(run.seed)][of_target])


def standardisation(specs: RunSpec, arrays: Arrays) -> dict[str, Any]:
    """What the features of R runs are standardised by: shift and scale, float32 [R, ...]; nothing if they are not."""
    if arrays.shift is None or arrays.scale is None:
        return {}
    rows = (jax.device_get(specs.place), jax.device_get(specs.target))
    return {"shift": jax.device_get(arrays.shift)[rows], "scale": jax.device_get(arrays.scale)[rows]}


def draw(spec: RunSpec, step: jax.Array, arrays: Arrays, per_domain: int) -> tuple[jax.Array, jax.Array]:
    """Inputs [M, n, ...] and labels [M, n] of the batch of a step of one run."""
    sources = sources_of(spec.target, len(arrays.counts))
    rows = sampling.step_rows(
        spec.key, step, arrays.order[spec.place], arrays.train_counts, arrays.starts, sources, per_domain
    )
    flat = rows.reshape(-1)
    if arrays.views:
        chosen = sampling.step_views(spec.key, step, len(flat), len(arrays.views))
        inputs = take_views(arrays.views, flat, chosen)
    else:
        inputs = standardised(arrays.inputs[flat], spec, arrays)
    return inputs.reshape(*rows.shape, *inputs.shape[1:]), arrays.labels[rows]


def take_views(views: tuple[jax.Array, ...], rows: jax.Array, chosen: jax.Array) -> jax.Array:
    """Of each row one of its views.

    Args:
        views: K arrays [N, ...].
        rows: int32 [B].
        chosen: Number of the view, int32 [B], 0..K - 1.

    Returns:
        [B, ...].

    Example:
        >>> views = (jnp.array([[0.0], [1.0]]), jnp.array([[10.0], [11.0]]))
        >>> take_views(views, jnp.array([0, 1, 1]), jnp.array([1, 0, 1])).tolist()
        [[10.0], [1.0], [11.0]]
    """
    found = views[0][rows]
    for number, view in enumerate(views[1:], start=1):
        this = (chosen == number).reshape(-1, *(1,) * (view.ndim - 1))
        found = jnp.where(this, view[rows], found)
    return found


def start_all(specs: RunSpec, shared: Shared, *, fixed: Fixed) -> RunState:
    """R runs before their first step."""
    network = fixed.networks.given(shared).trained
    sources = len(shared.arrays.counts) - 1
    inputs = shared.arrays.inputs
    example = jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype)
    options = {"network": network, "method": fixed.method, "config": fixed.config}
    begin = functools.partial(start, **options, num_sources=sources, example=example)
    return jax.vmap(begin)(specs)


def measure_all(params: Any, state: Any, specs: RunSpec, shared: Shared, *, fixed: Fixed) -> Metrics:
    """What is measured of R runs; see `measure`."""
    network, new_network = fixed.networks.given(shared)
    options = {"method": fixed.method, "config": fixed.config, "probe": fixed.probe, "kept": fixed.kept}
    one = functools.partial(measure, network=network, **options, new_network=new_network, new=shared.new)
    return jax.vmap(one, in_axes=(0, 0, 0, None))(params, state, specs, shared.arrays)


def sharpness_all(params: Any, state: Any, specs: RunSpec, shared: Shared, *, fixed: Fixed) -> jax.Array:
    """Sharpness of each domain of R runs; see `domain_sharpness`."""
    network = fixed.networks.given(shared).trained
    one = functools.partial(domain_sharpness, network=network, config=fixed.config, probe=fixed.probe)
    return jax.vmap(one, in_axes=(0, 0, 0, None))(params, state, specs, shared.arrays)


def step_all(states: RunState, specs: RunSpec, step: jax.Array, shared: Shared, *, fixed: Fixed) -> RunState:
    """A step of R runs, each on its own batch."""
    network = fixed.networks.given(shared).trained
    options = {"network": network, "method": fixed.method, "config": fixed.config}

    def one(run: RunState, spec: RunSpec) -> RunState:
        inputs, labels = draw(spec, step, shared.arrays, fixed.config.per_domain)
        return train_step(run, spec, step, inputs, labels, **options)

    return jax.vmap(one)(states, specs)


def segment(
    states: RunState,
    specs: RunSpec,
    first: jax.Array,
    shared: Shared,
    *,
    fixed: Fixed,
) -> tuple[RunState, Metrics]:
    """Measures R runs, then trains each up to the next point at which they are measured.

    Args:
        states: States of the runs, leaves [R, ...].
        specs: Seeds, targets and hyperparameters of the runs, leaves [R, ...].
        first: Number of steps already made, int32 [].
        shared: Arrays that the runs share.
        fixed: What all runs have in common.

    Returns:
        The runs after `min(config.segment, config.steps - first)` more steps, and what was measured before these.
    """
    config = fixed.config
    measured = measure_all(*weights(states, config), specs, shared, fixed=fixed)

    def body(runs: RunState, step: jax.Array) -> tuple[RunState, None]:
        # The last segment may reach past the end of training; skipping there keeps its length, and with it the
        # compiled program, the same for all segments.
        advance = lambda runs: step_all(runs, specs, step, shared, fixed=fixed)
        return jax.lax.cond(step < config.steps, advance, lambda runs: runs, runs), None

    states, _ = jax.lax.scan(body, states, first + jnp.arange(config.segment, dtype=jnp.int32))
    return states, measured
