"""The compiled program of a method: many runs side by side, in as many as the memory holds."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from disam_jax.dg.data import keys, sampling
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import Method
from disam_jax.dg.models.network import Network
from disam_jax.dg.results import Run
from disam_jax.dg.runners.memory import program_bytes
from disam_jax.dg.training import averaging
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.evaluation import Metrics, Unseen, domain_sharpness, measure
from disam_jax.dg.training.step import Arrays, RunSpec, RunState, sources_of, standardised, start, train_step


class Shared(NamedTuple):
    """What all runs share.

    Attributes:
        arrays: the data set.
        weights: of the network.
        new: examples of new classes, or None.
        new_weights: of the network that tells these apart.
    """

    arrays: Arrays
    weights: Any = ()
    new: Arrays | None = None
    new_weights: Any = ()


class Networks(NamedTuple):
    """The network that is trained, and the one that tells new classes apart with its parameters, if there are any."""

    trained: Network
    new: Network | None = None

    def given(self, shared: Shared) -> tuple[Network, Unseen | None]:
        """With the weights, and the examples, of a program's arguments."""
        unseen = None
        if self.new is not None and shared.new is not None:
            unseen = Unseen(self.new.given(shared.new_weights), shared.new)
        return self.trained.given(shared.weights), unseen


class InMemoryRunner:
    """Trains and measures R runs of one method at once.

    Args:
        network: that is trained.
        method: that makes the gradients.
        setting: what all runs share.
        arrays: the data set.
        seeds: S seeds, in the order of the splits in `arrays`.
        probe: number of examples of each domain on which w + e is measured.
        unseen: new classes that are measured too, if there are any.
    """

    def __init__(
        self,
        network: Network,
        method: Method,
        setting: TrainConfig,
        arrays: Arrays,
        seeds: Sequence[int],
        probe: int,
        unseen: Unseen | None = None,
    ):
        self.setting, self.seeds = setting, tuple(seeds)
        networks = Networks(network, unseen.network if unseen else None)
        self.shared = Shared(arrays, network.weights)
        if unseen is not None:
            self.shared = self.shared._replace(new=unseen.arrays, new_weights=unseen.network.weights)
        fixed = {"networks": networks, "method": method, "setting": setting}
        self._start = jax.jit(functools.partial(start_all, **fixed))
        self._measure = jax.jit(functools.partial(measure_all, **fixed, probe=probe))
        self._sharpness = jax.jit(functools.partial(sharpness_all, networks=networks, setting=setting, probe=probe))
        self._segment = jax.jit(functools.partial(segment, **fixed, probe=probe), donate_argnums=0)
        self._step = functools.partial(step_all, **fixed)
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
            hyper={name: jnp.asarray([run.hyper[name] for run in runs], jnp.float32) for name in runs[0].hyper},
        )
        return jax.device_put(specs, over_runs(len(runs)))

    def shared_for(self, number: int) -> Shared:
        """What R runs share, on every device that has some of them."""
        place = over_runs(number)
        where = NamedSharding(place.mesh, PartitionSpec()) if isinstance(place, NamedSharding) else place
        if where not in self._placed:
            self._placed[where] = put_once(self.shared, where)
        return self._placed[where]

    def compile(self, runs: Sequence[Run]) -> Any:
        """The program for as many runs; it is compiled once."""
        number = len(runs)
        if number not in self._compiled:
            specs, shared = self.specs(runs), self.shared_for(number)
            states = jax.device_put(self._start(specs, shared), over_runs(number))
            self._compiled[number] = self._segment.lower(states, specs, jnp.int32(0), shared).compile()
        return self._compiled[number]

    def runs_at_once(self, runs: Sequence[Run], most: int, budget: int) -> int:
        """How many runs fit into one program: compiled, and its memory read, until it fits.

        Args:
            runs: all runs of the method.
            most: not more than these.
            budget: bytes on each device.

        Returns:
            A number that deals the runs evenly, a multiple of the number of devices if there are so many runs.

        Raises:
            InputError: if not even the smallest program fits.
        """
        return fitting(len(runs), most, budget, lambda number: program_bytes(self.compile([runs[0]] * number)))

    def flops(self, run: Run) -> float | None:
        """Floating-point operations of one training step of one run, as XLA counts them; None where it does not."""
        specs, shared = self.specs([run]), self.shared_for(1)
        states = jax.eval_shape(self._start, specs, shared)
        return flops_of(jax.jit(self._step), states, specs, jnp.int32(0), shared)

    def train(self, runs: Sequence[Run], on_segment=None) -> dict[str, np.ndarray]:
        """Trains and measures runs.

        Args:
            runs: R of them, with the same names of hyperparameters.
            on_segment: called after each of the P segments.

        Returns:
            The arrays of `Results` by name, [R, ...], NaN where there is nothing to measure.
        """
        specs, compiled, shared = self.specs(runs), self.compile(runs), self.shared_for(len(runs))
        states = jax.device_put(self._start(specs, shared), over_runs(len(runs)))
        points: list[Metrics] = []
        averages: list[Any] = []
        for first in self.setting.measured_at:
            states, measured = compiled(states, specs, jnp.int32(first), shared)
            points.append(jax.device_get(measured))
            if self.setting.averaging == "swad" and first < self.setting.steps:
                averages.append(jax.device_get(states.average))
            if on_segment is not None:
                on_segment()
        params, state = weights(states, self.setting)
        if averages:
            params, state = swad_weights(averages, points, [run.target for run in runs])
            points[-1] = jax.device_get(self._measure(params, state, specs, shared))
        return found(points, jax.device_get(self._sharpness(params, state, specs, shared)), runs)


def put_once(tree: Any, where: Any) -> Any:
    """The arrays of a tree on devices; one that it holds twice is there once."""
    placed: dict[int, jax.Array] = {}

    def put(leaf: Any) -> jax.Array:
        if id(leaf) not in placed:
            placed[id(leaf)] = jax.device_put(leaf, where)
        return placed[id(leaf)]

    return jax.tree.map(put, tree)


def flops_of(jitted: Any, *arguments: Any) -> float | None:
    """Floating-point operations of a program, as XLA counts them; None where it does not."""
    counted = (jitted.lower(*arguments).compile().cost_analysis() or {}).get("flops")
    return None if counted is None or counted <= 0 else float(counted)


def found(points: Sequence[Metrics], sharpness: np.ndarray, runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """The arrays of `Results` by name, from what was measured at P points.

    Args:
        points: arrays [R, ...].
        sharpness: [R, D].
        runs: R of them.

    Returns:
        Arrays [R, P, ...]; those that were not measured are absent.
    """
    names = [name for name in Metrics._fields if getattr(points[0], name) is not None]
    arrays = {name: np.stack([getattr(point, name) for point in points], 1) for name in names}
    perturbed = arrays["perturbed_losses"].astype(np.float64)
    perturbed[np.arange(len(runs)), :, [run.target for run in runs]] = np.nan
    return {**arrays, "perturbed_losses": perturbed, "sharpness": sharpness}


def over_runs(number: int) -> Any:
    """Where arrays of R runs lie: dealt over the devices, or on the first one if they cannot be dealt evenly."""
    devices = jax.devices()
    if number % len(devices):
        return devices[0]
    return NamedSharding(Mesh(np.array(devices), ("runs",)), PartitionSpec("runs"))


def fitting(total: int, most: int, budget: int, used: Callable[[int], int]) -> int:
    """The size of the parts of `total` runs that fit: compiled, and their memory read, until they do.

    Args:
        total: number of runs.
        most: not more than these in a part.
        budget: bytes on each device.
        used: number of runs -> bytes that they take on each device.

    Returns:
        A size that `evenly` gives.

    Raises:
        InputError: if not even the smallest part fits.
    """
    most = min(most, total)
    while True:
        number = evenly(total, most)
        needed = used(number)
        if needed <= budget:
            return number
        if number == 1 or most == 1:
            raise InputError(
                f"one run needs {needed / 2**20:.0f} MiB and --memory allows {budget / 2**20:.0f} MiB: allow more, "
                "take a smaller model, image size or batch, or read images with --stream"
            )
        # Never too few, since a part of the memory does not grow with the runs.
        most = max(1, min(number - 1, int(number * budget / needed)))


def evenly(total: int, most: int) -> int:
    """The size of equal parts of at most `most`, a multiple of the number of devices if it is larger than that.

    Example:
        >>> evenly(10, 4)
        4
        >>> evenly(9, 4)
        3
    """
    size = -(-total // -(-total // most))
    devices = jax.device_count()
    rounded = -(-size // devices) * devices
    if rounded > most:
        rounded = size // devices * devices
    return rounded or size


def weights(states: RunState, setting: TrainConfig) -> tuple[Any, Any]:
    """Parameters and running statistics that are measured: the moving average if there is one."""
    if setting.averaging == "ema":
        return states.average
    return states.params, states.state


def swad_weights(averages: Sequence[Any], points: Sequence[Metrics], targets: Sequence[int]) -> tuple[Any, Any]:
    """SWAD's weights of R runs, from the means over the segments and the validation losses at their ends."""
    validation = np.stack([point.losses[:, 1] for point in points[1:]], 1)  # [R, P - 1, D]
    windows = [
        averaging.swad_window(np.delete(losses, target, -1).mean(-1))
        for losses, target in zip(validation, targets, strict=True)
    ]
    first, last = np.array(windows).T
    return averaging.average_points(averages, first, last)


def draw(spec: RunSpec, step: jax.Array, arrays: Arrays, per_domain: int) -> tuple[jax.Array, jax.Array]:
    """Inputs [M, n, ...] and labels [M, n] of the batch of a step of one run."""
    sources = sources_of(spec.target, len(arrays.counts))
    rows = sampling.step_rows(
        spec.key, step, arrays.order[spec.place], arrays.train_counts, arrays.starts, sources, per_domain
    )
    flat = rows.reshape(-1)
    inputs = standardised(arrays.inputs[flat], spec, arrays)
    return inputs.reshape(*rows.shape, *inputs.shape[1:]), arrays.labels[rows]


def start_all(specs: RunSpec, shared: Shared, *, networks: Networks, method: Method, setting: TrainConfig) -> RunState:
    """R runs before their first step."""
    network, _ = networks.given(shared)
    sources = len(shared.arrays.counts) - 1
    begin = functools.partial(start, network=network, method=method, setting=setting, num_sources=sources)
    return jax.vmap(begin)(specs)


def measure_all(
    params: Any,
    state: Any,
    specs: RunSpec,
    shared: Shared,
    *,
    networks: Networks,
    method: Method,
    setting: TrainConfig,
    probe: int,
) -> Metrics:
    """What is measured of R runs; see `measure`."""
    network, unseen = networks.given(shared)
    one = functools.partial(measure, network=network, method=method, setting=setting, probe=probe, unseen=unseen)
    return jax.vmap(one, in_axes=(0, 0, 0, None))(params, state, specs, shared.arrays)


def sharpness_all(
    params: Any, state: Any, specs: RunSpec, shared: Shared, *, networks: Networks, setting: TrainConfig, probe: int
) -> jax.Array:
    """Sharpness of each domain of R runs; see `domain_sharpness`."""
    one = functools.partial(domain_sharpness, network=networks.given(shared)[0], setting=setting, probe=probe)
    return jax.vmap(one, in_axes=(0, 0, 0, None))(params, state, specs, shared.arrays)


def step_all(
    states: RunState,
    specs: RunSpec,
    step: jax.Array,
    shared: Shared,
    *,
    networks: Networks,
    method: Method,
    setting: TrainConfig,
) -> RunState:
    """A step of R runs, each on its own batch."""
    network, _ = networks.given(shared)

    def one(run: RunState, spec: RunSpec) -> RunState:
        inputs, labels = draw(spec, step, shared.arrays, setting.per_domain)
        return train_step(run, spec, step, inputs, labels, network=network, method=method, setting=setting)

    return jax.vmap(one)(states, specs)


def segment(
    states: RunState,
    specs: RunSpec,
    first: jax.Array,
    shared: Shared,
    *,
    networks: Networks,
    method: Method,
    setting: TrainConfig,
    probe: int,
) -> tuple[RunState, Metrics]:
    """Measures R runs, then trains each up to the next point at which they are measured.

    Args:
        states: of the runs, leaves [R, ...].
        specs: of the runs, leaves [R, ...].
        first: int32 [], the number of steps already made.
        shared: what the runs share.
        networks: that are trained and measured.
        method: that makes the gradients.
        setting: what all runs share, but for arrays.
        probe: number of examples of each domain on which w + e is measured.

    Returns:
        The runs after `min(setting.segment, setting.steps - first)` more steps, and what was measured before these.
    """
    fixed = {"networks": networks, "method": method, "setting": setting}
    measured = measure_all(*weights(states, setting), specs, shared, **fixed, probe=probe)

    def body(runs: RunState, step: jax.Array) -> tuple[RunState, None]:
        # The last segment may reach past the end of training; skipping there keeps its length, and with it the
        # compiled program, the same for all segments.
        advance = lambda runs: step_all(runs, specs, step, shared, **fixed)
        return jax.lax.cond(step < setting.steps, advance, lambda runs: runs, runs), None

    states, _ = jax.lax.scan(body, states, first + jnp.arange(setting.segment, dtype=jnp.int32))
    return states, measured
