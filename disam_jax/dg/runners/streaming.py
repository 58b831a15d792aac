"""The program of a method for images that stay in their files: the numbers of `InMemoryRunner`, however many images.

The runs of a chunk have seed and target in common, so that they share the stream of batches: an image is decoded once
for all of them. What is on the device at a time is a piece of that stream, a block of examples to evaluate, or the
probe; none of these grows with the data set.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from disam_jax.dg.data import batches, keys
from disam_jax.dg.data.load import StreamedImages
from disam_jax.dg.data.splits import Split, validates
from disam_jax.dg.data.streaming import StreamingBatches, eval_blocks
from disam_jax.dg.methods import Method
from disam_jax.dg.models.network import Network, Params, State
from disam_jax.dg.results import Run
from disam_jax.dg.runners.in_memory import fitting, flops_of, found, put_once, swad_weights, weights
from disam_jax.dg.runners.memory import all_bytes, program_bytes
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.evaluation import Metrics, measure_probe, sharpness_of
from disam_jax.dg.training.step import RunSpec, RunState, example_losses, start, train_step

# What a piece of the stream takes at most, unless a single batch is larger.
PIECE_BYTES = 64 * 2**20
# The runs of a chunk differ in nothing but their hyperparameters.
OVER_RUNS = RunSpec._make((None, None, None, 0))


class Compiled(NamedTuple):
    """The compiled programs for R runs.

    Attributes:
        advance: trains over a piece of the stream.
        evaluate: sums over a block of examples.
        probe: losses at w and at w + e.
        new: sums over a block of examples of new classes, or None.
    """

    advance: Any
    evaluate: Any
    probe: Any
    new: Any


class NewImages(NamedTuple):
    """Classes that no run is trained on.

    Attributes:
        network: tells these classes apart with the parameters of the network that is trained.
        data: their images, of the same domains, labels counted from 0 again.
    """

    network: Network
    data: StreamedImages


class StreamingRunner:
    """Trains and measures R runs of one method, seed and target at once.

    Args:
        network: that is trained.
        method: that makes the gradients.
        setting: what all runs share, but for `standardise`, which is for features.
        data: the images.
        splits: of the data, one for each seed.
        seeds: S seeds.
        probe: number of examples of each domain on which w + e is measured.
        threads: that decode images, each a batch or a block at a time; by default one for each processor.
        new: new classes that are measured too, if there are any.
    """

    def __init__(
        self,
        network: Network,
        method: Method,
        setting: TrainConfig,
        data: StreamedImages,
        splits: Sequence[Split],
        seeds: Sequence[int],
        probe: int,
        threads: int | None = None,
        new: NewImages | None = None,
    ):
        self.setting, self.data, self.probe = setting, data, probe
        self.threads = threads or os.cpu_count() or 1
        self.splits = dict(zip(seeds, splits, strict=True))
        domains = len(data.counts)
        self.batch = (domains - 1, setting.per_domain, *data.inputs.shape[1:])
        self.length = piece_length(setting.segment, math.prod(self.batch))
        self.block = min(setting.block, len(data.labels))
        self.weights, self.new = network.weights, new
        fixed = {"method": method, "setting": setting}
        begin = functools.partial(start, **fixed, num_sources=domains - 1)
        sums = functools.partial(block_sums, groups=2 * domains)
        # What follows the weights has no axis of runs but for the run's own and its hyperparameters.
        self._start = jax.jit(with_weights(network, begin, (OVER_RUNS,)))
        self._advance = functools.partial(advance, network=network, **fixed)
        step = functools.partial(train_step, **fixed)
        self._step = with_weights(network, step, (0, OVER_RUNS, None, None, None))
        self._evaluate = with_weights(network, sums, (0, 0, OVER_RUNS, None, None, None))
        self._probe = with_weights(network, functools.partial(measure_probe, **fixed), (0, 0, OVER_RUNS, None, None))
        sharpness = functools.partial(each_domain, functools.partial(sharpness_of, setting=setting))
        self._sharpness = jax.jit(with_weights(network, sharpness, (0, 0, OVER_RUNS, None, None)))
        if new is not None:
            sums = functools.partial(block_sums, groups=domains)
            self._evaluate_new = with_weights(new.network, sums, (0, 0, OVER_RUNS, None, None, None))
        self._placed: dict[Any, Any] = {}
        self._compiled: dict[int, Compiled] = {}
        self._probe_of: dict[Any, tuple[jax.Array, jax.Array]] = {}

    def specs(self, runs: Sequence[Run]) -> RunSpec:
        """The runs as arrays: hyperparameters [R], and what the runs share without an axis of runs.

        Raises:
            ValueError: if they do not share seed and target.
        """
        if len({(run.seed, run.target) for run in runs}) > 1:
            raise ValueError("the runs of a chunk must have seed and target in common: they share the batches of these")
        run, (apart, everywhere) = runs[0], layout(len(runs))
        specs = RunSpec(
            key=keys.run_key(run.seed, run.target),
            place=jnp.int32(list(self.splits).index(run.seed)),
            target=jnp.int32(run.target),
            hyper={name: jnp.asarray([each.hyper[name] for each in runs], jnp.float32) for name in run.hyper},
        )
        return jax.device_put(specs, RunSpec._make((everywhere, everywhere, everywhere, apart)))

    def weights_for(self, where: Sharding) -> tuple[Any, Any]:
        """Weights of the network, and of that of new classes, on the device."""
        if where not in self._placed:
            self._placed[where] = put_once((self.weights, self.new.network.weights if self.new else ()), where)
        return self._placed[where]

    def compile(self, runs: Sequence[Run]) -> Compiled:
        """The programs for as many runs; they are compiled once."""
        number = len(runs)
        if number not in self._compiled:
            specs, (apart, everywhere) = self.specs(runs), layout(number)
            own, of_new = self.weights_for(everywhere)
            states = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=apart),
                jax.eval_shape(self._start, own, specs),
            )
            params, state = weights(states, self.setting)
            image, per_domain = self.batch[2:], (self.batch[0] + 1, self.probe)
            integers = lambda *shape: jax.ShapeDtypeStruct(shape, np.int32, sharding=everywhere)
            images = lambda *shape: jax.ShapeDtypeStruct((*shape, *image), np.uint8, sharding=everywhere)
            leading = (self.length, *self.batch[:2])
            piece = (integers(), integers(), images(*leading), integers(*leading))
            block = (images(self.block), integers(self.block), integers(self.block))
            probe = (images(*per_domain), integers(*per_domain))
            # The states must come out as they went in, for the next piece.
            jitted = functools.partial(jax.jit, out_shardings=apart)
            self._compiled[number] = Compiled(
                jitted(self._advance, donate_argnums=1).lower(own, states, specs, *piece).compile(),
                jitted(self._evaluate).lower(own, params, state, specs, *block).compile(),
                jitted(self._probe).lower(own, params, state, specs, *probe).compile(),
                jitted(self._evaluate_new).lower(of_new, params, state, specs, *block).compile() if self.new else None,
            )
        return self._compiled[number]

    def bytes(self, runs: Sequence[Run]) -> int:
        """What as many runs take at most on each device.

        That is a program, and beside it the states, the probe, and a piece or a block that waits for its turn.
        """
        programs = self.compile(runs)
        states = jax.eval_shape(self._start, self.weights, self.specs(runs))
        devices = len(layout(len(runs))[0].device_set)
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(states)) // devices
        pixels = math.prod(self.batch[2:])
        waiting = max(self.length * math.prod(self.batch[:2]), self.block)
        probe = (self.batch[0] + 1) * self.probe
        used = max(program_bytes(program) for program in programs if program is not None)
        return used + held + pixels * (waiting + probe)

    def runs_at_once(self, runs: Sequence[Run], most: int, budget: int) -> int:
        """How many runs of one seed and target fit into one program.

        Args:
            runs: all runs of the method.
            most: not more than these.
            budget: bytes on each device.

        Returns:
            A number that deals the candidates evenly, see `program.evenly`.

        Raises:
            InputError: if not even the smallest program fits.
        """
        together = len(chunks(runs, len(runs))[0])
        return fitting(together, most, budget, lambda number: self.bytes([runs[0]] * number))

    def flops(self, run: Run) -> float | None:
        """Floating-point operations of one training step of one run, as XLA counts them; None where it does not."""
        specs = self.specs([run])
        states = jax.eval_shape(self._start, self.weights, specs)
        images = jax.ShapeDtypeStruct(self.batch, np.uint8)
        labels = jax.ShapeDtypeStruct(self.batch[:2], np.int32)
        return flops_of(jax.jit(self._step), self.weights, states, specs, jnp.int32(0), images, labels)

    def train(self, runs: Sequence[Run], on_segment: Callable[[], None] | None = None) -> dict[str, np.ndarray]:
        """Trains and measures runs.

        Args:
            runs: R of them, of one seed and target, with the same names of hyperparameters.
            on_segment: called after each of the P segments.

        Returns:
            The arrays of `Results` by name, [R, ...], NaN where there is nothing to measure.

        Raises:
            InputError: if an image cannot be read.
        """
        run, setting = runs[0], self.setting
        specs, compiled, (apart, everywhere) = self.specs(runs), self.compile(runs), layout(len(runs))
        own, _ = self.weights_for(everywhere)
        states = jax.device_put(self._start(own, specs), apart)
        points: list[Metrics] = []
        averages: list[Any] = []
        with self._stream(run) as stream:
            for first in setting.measured_at:
                points.append(self._measure(*weights(states, setting), specs, runs))
                last = min(first + setting.segment, setting.steps)
                for step, piece in pieces(stream, first, last, self.length):
                    waiting = jax.device_put(piece, everywhere)
                    # One piece on the device, one that waits: decoding must not run away from training.
                    jax.block_until_ready(states)
                    states = compiled.advance(own, states, specs, jnp.int32(step), jnp.int32(last), *waiting)
                if setting.averaging == "swad" and first < setting.steps:
                    averages.append(jax.device_get(states.average))
                if on_segment is not None:
                    on_segment()
        params, state = weights(states, setting)
        if averages:
            params, state = jax.device_put(swad_weights(averages, points, [run.target] * len(runs)), apart)
            points[-1] = self._measure(params, state, specs, runs)
        sharpness = self._sharpness(own, params, state, specs, *self._probe_for(run, everywhere))
        return found(points, jax.device_get(sharpness), runs)

    def _stream(self, run: Run) -> StreamingBatches:
        return StreamingBatches(
            self.data.listing,
            self.splits[run.seed],
            tuple(domain for domain in range(len(self.data.counts)) if domain != run.target),
            run.seed,
            run.target,
            self.setting.per_domain,
            self.setting.steps,
            image_size=self.data.image_size,
            threads=self.threads,
            prefetch=max(self.length, self.threads),
        )

    def _blocks(self, rows: np.ndarray, data: StreamedImages | None = None) -> Iterator[Any]:
        return eval_blocks(
            (data or self.data).listing,
            rows,
            self.block,
            image_size=self.data.image_size,
            threads=self.threads,
            prefetch=self.threads,
        )

    def _probe_for(self, run: Run, where: Sharding) -> tuple[jax.Array, jax.Array]:
        """Pixels uint8 [D, n, S, S, 3] and labels int32 [D, n] of the probe of a seed, on the device."""
        if (run.seed, where) not in self._probe_of:
            rows = self.splits[run.seed].order[self.data.starts[:, None] + np.arange(self.probe)[None]]
            pixels = np.concatenate([block.x[block.valid] for block in self._blocks(rows.reshape(-1))])
            probe = (pixels.reshape(*rows.shape, *pixels.shape[1:]), self.data.labels[rows])
            # Only that of the last seed is kept: `chunks` has the seeds one after the other.
            self._probe_of = {(run.seed, where): jax.device_put(probe, where)}
        return self._probe_of[run.seed, where]

    def _measure(self, params: Params, state: State, specs: RunSpec, runs: Sequence[Run]) -> Metrics:
        """What is measured of R runs at a point of training, numpy arrays [R, ...]."""
        run, compiled, (_, everywhere) = runs[0], self.compile(runs), layout(len(runs))
        own, of_new = self.weights_for(everywhere)
        domains = len(self.data.counts)
        groups = self.data.domain_ids + domains * validates(self.splits[run.seed], self.data).astype(np.int32)
        evaluate = functools.partial(compiled.evaluate, own, params, state, specs)
        means = self._means(evaluate, self.data, groups, 2 * domains, everywhere).reshape(len(runs), 2, 2, domains)
        probe = compiled.probe(own, params, state, specs, *self._probe_for(run, everywhere))
        new_accuracy = None
        if self.new is not None:
            evaluate = functools.partial(compiled.new, of_new, params, state, specs)
            data = self.new.data
            new_accuracy = self._means(evaluate, data, data.domain_ids, domains, everywhere)[:, 1]
        return Metrics._make((means[:, 1], means[:, 0], *jax.device_get(probe), new_accuracy))

    def _means(
        self,
        evaluate: Callable[..., jax.Array],
        data: StreamedImages,
        groups: np.ndarray,
        number: int,
        everywhere: Sharding,
    ) -> np.ndarray:
        """Mean losses and fractions of right answers of R runs over groups of images.

        Args:
            evaluate: (images, labels, groups) of a block -> float32 [R, 2, G], sums.
            data: N images.
            groups: int [N], 0..G-1.
            number: G.
            everywhere: where blocks lie.

        Returns:
            float64 [R, 2, G]; NaN for a group without images.
        """
        rows = np.arange(len(groups))
        total: Any = 0.0
        before = None
        for first, block in zip(range(0, len(rows), self.block), self._blocks(rows, data), strict=True):
            here = np.full(self.block, -1, np.int32)
            here[block.valid] = groups[first : first + self.block]
            sums = evaluate(*jax.device_put((block.x, block.y, here), everywhere))
            # The sums of the block before, so that the device has this one to work on meanwhile.
            if before is not None:
                total = total + np.asarray(before, np.float64)
            before = sums
        total = total + np.asarray(before, np.float64)
        with np.errstate(invalid="ignore"):
            return total / np.bincount(groups, minlength=number)


def with_weights(network: Network, function: Callable[..., Any], axes: tuple[Any, ...]) -> Callable[..., Any]:
    """A function of one run as one of R runs, with the network's weights as its first argument.

    Args:
        network: that the function takes as the keyword `network`.
        function: of one run.
        axes: that R runs have, as in `jax.vmap`.

    Returns:
        (weights, ...) -> what the function returns, [R, ...].
    """

    def of_all(weights: Any, *arguments: Any) -> Any:
        return jax.vmap(functools.partial(function, network=network.given(weights)), in_axes=axes)(*arguments)

    return of_all


def chunks(runs: Sequence[Run], size: int) -> list[list[Run]]:
    """Parts of at most `size` runs with seed and target in common, seed by seed.

    Example:
        >>> runs = [Run("SAM", target, 0, candidate, {}) for candidate in range(3) for target in range(2)]
        >>> [[(run.target, run.candidate) for run in chunk] for chunk in chunks(runs, 2)]
        [[(0, 0), (0, 1)], [(0, 2)], [(1, 0), (1, 1)], [(1, 2)]]
    """
    together: dict[tuple[int, int], list[Run]] = {}
    for run in runs:
        together.setdefault((run.seed, run.target), []).append(run)
    groups = [together[shared] for shared in sorted(together)]
    return [group[first : first + size] for group in groups for first in range(0, len(group), size)]


def piece_length(segment: int, batch_bytes: int) -> int:
    """Number of batches in a piece of the stream: a segment in as few equal parts as `PIECE_BYTES` allows.

    Example:
        >>> piece_length(20, 1), piece_length(20, 5 * 2**20), piece_length(20, 2**30)
        (20, 10, 1)
    """
    most = max(1, PIECE_BYTES // batch_bytes)
    return -(-segment // -(-segment // most))


def pieces(
    stream: Iterator[batches.Batch], first: int, last: int, length: int
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    """The next batches of a stream, joined.

    Args:
        stream: whose next batch is that of step `first`.
        first: step.
        last: the step after the last one.
        length: K, number of batches in a piece.

    Yields:
        The step of the piece's first batch, and its images [K, M, n, ...] and labels [K, M, n]; the last piece is
        filled up with zeros.
    """
    for begin in range(first, last, length):
        taken = [next(stream) for _ in range(min(length, last - begin))]
        images = np.zeros((length, *taken[0].x.shape), taken[0].x.dtype)
        labels = np.zeros((length, *taken[0].y.shape), np.int32)
        for place, batch in enumerate(taken):
            images[place], labels[place] = batch.x, batch.y
        yield begin, (images, labels)


def advance(
    own: Any,
    states: RunState,
    specs: RunSpec,
    first: jax.Array,
    last: jax.Array,
    inputs: jax.Array,
    labels: jax.Array,
    *,
    network: Network,
    method: Method,
    setting: TrainConfig,
) -> RunState:
    """Trains R runs over a piece of the stream.

    Args:
        own: weights of the network.
        states: of the runs, leaves [R, ...].
        specs: of the runs, see `OVER_RUNS`.
        first: int32 [], the step of the piece's first batch.
        last: int32 [], the step at which the segment ends; batches from there on are skipped.
        inputs: uint8 [K, M, n, S, S, 3].
        labels: int32 [K, M, n].
        network: that is trained.
        method: that makes the gradients.
        setting: what all runs share.

    Returns:
        The runs after it.
    """
    one = functools.partial(train_step, network=network.given(own), method=method, setting=setting)

    def body(runs: RunState, batch: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[RunState, None]:
        step = batch[0]
        step_all = lambda runs: jax.vmap(one, in_axes=(0, OVER_RUNS, None, None, None))(runs, specs, *batch)
        return jax.lax.cond(step < last, step_all, lambda runs: runs, runs), None

    steps = first + jnp.arange(len(labels), dtype=jnp.int32)
    return jax.lax.scan(body, states, (steps, inputs, labels))[0]


def block_sums(
    params: Params,
    state: State,
    spec: RunSpec,
    inputs: jax.Array,
    labels: jax.Array,
    group: jax.Array,
    *,
    network: Network,
    groups: int,
) -> jax.Array:
    """Sums of losses and of right answers over the examples of each group in a block.

    Args:
        params: of the network.
        state: of the network.
        spec: of the run.
        inputs: uint8 [B, S, S, 3].
        labels: int32 [B].
        group: int32 [B], 0..G-1; -1 for what is in none.
        network: that is trained.
        groups: G.

    Returns:
        float32 [2, G].
    """
    logits = network.apply(params, state, inputs, spec.key, False).logits
    values = jnp.stack([example_losses(logits, labels), (logits.argmax(-1) == labels).astype(jnp.float32)])
    member = group[None] == jnp.arange(groups, dtype=jnp.int32)[:, None]
    # A select, not a product: a loss that is not finite belongs to its own group only.
    return jnp.where(member[None], values[:, None], 0.0).sum(-1)


def each_domain(
    sharpness: Callable[..., jax.Array],
    params: Params,
    state: State,
    spec: RunSpec,
    inputs: jax.Array,
    labels: jax.Array,
    *,
    network: Network,
) -> jax.Array:
    """Sharpness of D domains, one after the other, from inputs [D, n, ...] and labels [D, n]."""
    one = functools.partial(sharpness, params, state, spec, network=network)
    return jax.lax.map(lambda domain: one(*domain), (inputs, labels))


def layout(number: int) -> tuple[Sharding, Sharding]:
    """Where arrays of R runs lie, and where what they share does: on as many devices as can have equally many runs."""
    devices = jax.devices()
    used = max(each for each in range(1, len(devices) + 1) if number % each == 0)
    if used == 1:
        return SingleDeviceSharding(devices[0]), SingleDeviceSharding(devices[0])
    mesh = Mesh(np.array(devices[:used]), ("runs",))
    return NamedSharding(mesh, PartitionSpec("runs")), NamedSharding(mesh, PartitionSpec())


def pixel_budget(memory_budget: int | None = None) -> int:
    """How many bytes of pixels are kept in memory when nothing is said about streaming.

    By default half of all memory of a device, not of what is free: an interrupted sweep must choose the same again.

    Args:
        memory_budget: bytes on each device, if they are given.

    Returns:
        Bytes.
    """
    return all_bytes() // 2 if memory_budget is None else memory_budget
