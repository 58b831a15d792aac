"""Trains on images, or activations, that stay in their files: the results of `InMemoryRunner`, however many there are.

The runs of a chunk have seed and target in common, so that they share the stream of batches: an image is decoded once
for all of them. The device holds a stack of batches, a block of examples to evaluate, or the probe at a time; none of
these grows with the data set.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from disam_jax.dg.data import keys
from disam_jax.dg.data.load import CachedFeatures, StreamedImages
from disam_jax.dg.data.splits import Split, validates
from disam_jax.dg.data.streaming import Block, MappedBatches, StreamingBatches, eval_blocks
from disam_jax.dg.methods import Method
from disam_jax.dg.models.network import Network, Params, State
from disam_jax.dg.results import Run
from disam_jax.dg.runners.base import by_seed_and_target, flops_of, found, naming, swad_weights, weights
from disam_jax.dg.runners.checkpoints import Checkpoints, Halfway
from disam_jax.dg.runners.devices import devices_of, everywhere, groups, layout, put_once, split_batches
from disam_jax.dg.runners.keep import Keeper
from disam_jax.dg.runners.kept_logits import Examples, by_run, forget
from disam_jax.dg.runners.memory import all_bytes, fitting, program_bytes
from disam_jax.dg.runners.stacks import stack_length, stacks
from disam_jax.dg.training.averaging import SWAD
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.evaluation import Metrics, kept_logits, measure_probe, sharpness_of
from disam_jax.dg.training.metrics import METRICS, extra_metrics, measure_examples
from disam_jax.dg.training.step import RunSpec, RunState, start, train_step

# The runs of a chunk differ in nothing but their hyperparameters.
OVER_RUNS = RunSpec._make((None, None, None, 0))


class Compiled(NamedTuple):
    """The compiled programs for R runs.

    Attributes:
        advance: Trains over a stack of batches.
        evaluate: Sums over a block of examples.
        probe: Losses at w and at w + e.
        new: Sums over a block of examples of new classes, or None.
    """

    advance: Any
    evaluate: Any
    probe: Any
    new: Any


class StreamingRunner:
    """Trains and measures R runs of one method, seed and target at once. Meets `runners.base.Runner`.

    Args:
        network: Network to train.
        method: Method that computes the gradients.
        config: Configuration that all runs share; `standardise` is for features and not used.
        data: Images, or activations on disk.
        splits: Splits of the images, one for each seed.
        seeds: S seeds.
        probe: Number of examples of each domain on which w + e is measured.
        new_network: Network that classifies new classes with the trained parameters, if there are any.
        new: Images of these.
        threads: Number of threads that decode images, each a batch or a block at a time; by default one for each
            processor.
    """

    def __init__(
        self,
        network: Network,
        method: Method,
        config: TrainConfig,
        data: StreamedImages | CachedFeatures,
        splits: Sequence[Split],
        seeds: Sequence[int],
        probe: int,
        new_network: Network | None = None,
        new: StreamedImages | CachedFeatures | None = None,
        threads: int | None = None,
    ):
        self.config, self.data, self.probe = config, data, probe
        self.per_device: int | None = None
        self.threads = threads or os.cpu_count() or 1
        self.splits = dict(zip(seeds, splits, strict=True))
        domains = len(data.counts)
        self.batch = (domains - 1, config.per_domain, *data.inputs.shape[1:])
        self.dtype = data.inputs.dtype
        self.length = stack_length(config.segment, math.prod(self.batch) * self.dtype.itemsize)
        self.block = min(config.block, len(data.labels))
        self.weights = (network.weights, new_network.weights if new_network else ())
        self.new = new
        whole = network
        if config.data_parallel:
            network, new_network = split_batches(network), new_network and split_batches(new_network)
        fixed = {"method": method, "config": config}
        example = jax.ShapeDtypeStruct(self.batch[2:], self.dtype)
        begin = functools.partial(start, **fixed, num_sources=domains - 1, example=example)
        sums = functools.partial(block_sums, groups=2 * domains, keep_logits=config.keep_logits)
        # What follows the weights has no axis of runs but for the run's own and its hyperparameters.
        self._start = jax.jit(with_weights(network, begin, (OVER_RUNS,)))
        self._advance = functools.partial(advance, network=network, **fixed)
        step = functools.partial(train_step, **fixed)
        self._step = with_weights(whole, step, (0, OVER_RUNS, None, None, None))
        self._evaluate = with_weights(network, sums, (0, 0, OVER_RUNS, None, None, None))
        self._probe = with_weights(network, functools.partial(measure_probe, **fixed), (0, 0, OVER_RUNS, None, None))
        sharpness = functools.partial(each_domain, functools.partial(sharpness_of, config=config))
        self._sharpness = jax.jit(with_weights(network, sharpness, (0, 0, OVER_RUNS, None, None)))
        if new_network is not None:
            sums = functools.partial(block_sums, groups=domains)
            self._evaluate_new = with_weights(new_network, sums, (0, 0, OVER_RUNS, None, None, None))
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
        run, (apart, everywhere) = runs[0], self.place(len(runs))
        specs = RunSpec(
            key=keys.run_key(run.seed, run.target),
            place=jnp.int32(list(self.splits).index(run.seed)),
            target=jnp.int32(run.target),
            hparams={name: jnp.asarray([each.hparams[name] for each in runs], jnp.float32) for name in run.hparams},
        )
        return jax.device_put(specs, RunSpec._make((everywhere, everywhere, everywhere, apart)))

    def place(self, number: int) -> tuple[Sharding, Sharding]:
        """Where arrays of R runs lie, and what they share."""
        if self.config.data_parallel:
            return everywhere(), everywhere()
        return layout(number, self.per_device)

    def weights_for(self, where: Sharding) -> tuple[Any, Any]:
        """Weights of the network, and of that of new classes, on the device."""
        if where not in self._placed:
            self._placed[where] = put_once(self.weights, where)
        return self._placed[where]

    def chunks(self, runs: Sequence[Run], size: int) -> list[list[Run]]:
        """See `Runner`: runs of one seed and target go together."""
        return by_seed_and_target(runs, size)

    def compile(self, runs: Sequence[Run]) -> Compiled:
        """The programs for as many runs; they are compiled once."""
        number = len(runs)
        if number not in self._compiled:
            specs, (apart, everywhere) = self.specs(runs), self.place(number)
            own, of_new = self.weights_for(everywhere)
            states = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=apart),
                jax.eval_shape(self._start, own, specs),
            )
            params, state = weights(states, self.config)
            image, per_domain = self.batch[2:], (self.batch[0] + 1, self.probe)
            integers = lambda *shape: jax.ShapeDtypeStruct(shape, np.int32, sharding=everywhere)
            images = lambda *shape: jax.ShapeDtypeStruct((*shape, *image), self.dtype, sharding=everywhere)
            leading = (self.length, *self.batch[:2])
            stack = (integers(), integers(), images(*leading), integers(*leading))
            block = (images(self.block), integers(self.block), integers(self.block))
            probe = (images(*per_domain), integers(*per_domain))
            # The states must come out as they went in, for the next stack.
            jitted = functools.partial(jax.jit, out_shardings=apart)
            with naming(runs):
                advance = jitted(self._advance, donate_argnums=1).lower(own, states, specs, *stack).compile()
            self._compiled[number] = Compiled(
                advance,
                jitted(self._evaluate).lower(own, params, state, specs, *block).compile(),
                jitted(self._probe).lower(own, params, state, specs, *probe).compile(),
                jitted(self._evaluate_new).lower(of_new, params, state, specs, *block).compile() if self.new else None,
            )
        return self._compiled[number]

    def bytes(self, runs: Sequence[Run]) -> int:
        """The most bytes that as many runs take on each device.

        They are those of a program, the states, the probe, and a stack or a block that waits for its turn.
        """
        programs = self.compile(runs)
        states = jax.eval_shape(self._start, self.weights[0], self.specs(runs))
        devices = self._groups(len(runs))
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(states)) // devices
        pixels = math.prod(self.batch[2:]) * self.dtype.itemsize
        waiting = max(self.length * math.prod(self.batch[:2]), self.block)
        probe = (self.batch[0] + 1) * self.probe
        used = max(program_bytes(program) for program in programs if program is not None)
        return used + held + pixels * (waiting + probe)

    def runs_at_once(self, runs: Sequence[Run], most: int, budget: int) -> int:
        """See `Runner`: a number that deals the candidates of a seed and target evenly."""
        together = len(self.chunks(runs, len(runs))[0])
        used = lambda number: self.bytes([runs[0]] * number)
        number = fitting(together, most, budget, used, groups(self.config))
        return number // self._groups(number)

    def _groups(self, number: int) -> int:
        """Number of groups of devices, of which each has its part of R runs."""
        return 1 if self.config.data_parallel else devices_of(self.place(number)[0])

    def flops(self, run: Run) -> float | None:
        """Floating-point operations of one training step of one run, as XLA counts them; None where it does not."""
        specs = self.specs([run])
        states = jax.eval_shape(self._start, self.weights[0], specs)
        images = jax.ShapeDtypeStruct(self.batch, self.dtype)
        labels = jax.ShapeDtypeStruct(self.batch[:2], np.int32)
        with naming([run]):
            return flops_of(jax.jit(self._step), self.weights[0], states, specs, jnp.int32(0), images, labels)

    def train(
        self,
        runs: Sequence[Run],
        on_segment: Callable[[], None] | None = None,
        checkpoints: Checkpoints | None = None,
        save: str = "none",
    ) -> dict[str, Any]:
        """See `Runner`."""
        run, config = runs[0], self.config
        specs, compiled, (apart, everywhere) = self.specs(runs), self.compile(runs), self.place(len(runs))
        own, _ = self.weights_for(everywhere)
        states = jax.device_put(self._start(own, specs), apart)
        points: list[Metrics] = []
        averages: list[Any] = []
        keeper = Keeper(save, runs, config)
        begin = 0
        if checkpoints is not None and (found_there := checkpoints.latest(states)) is not None:
            begin, states, points, averages, kept = found_there
            keeper.resume(kept, weights(states, config))
            states = jax.device_put(states, apart)
        with batches_of(run, self.data, self.splits[run.seed], config, self.threads, self.length) as stream:
            stream.set_state({**stream.get_state(), "step": begin})
            for place, first in enumerate(config.measured_at):
                if place >= len(points):
                    keeper.before(weights(states, config))
                    points.append(self._measure(*weights(states, config), specs, runs))
                    forget(points, runs)
                    keeper.after(place, points[-1])
                last = min(first + config.segment, config.steps)
                for step, stack in stacks(stream, max(first, begin), last, self.length):
                    waiting = jax.device_put(stack, everywhere)
                    # One stack on the device, one that waits: decoding must not run away from training.
                    jax.block_until_ready(states)
                    states = compiled.advance(own, states, specs, jnp.int32(step), jnp.int32(last), *waiting)
                    done = step + self.length
                    if checkpoints is not None and done < last and checkpoints.due(done):
                        checkpoints.save(Halfway(done, states, points, averages, keeper.so_far()))
                if config.averaging in SWAD and len(averages) <= place and first < config.steps:
                    averages.append(jax.device_get(states.average))
                if checkpoints is not None and last > begin and checkpoints.due(last):
                    checkpoints.save(Halfway(last, states, points, averages, keeper.so_far()))
                if on_segment is not None:
                    on_segment()
        params, state = weights(states, config)
        if averages:
            params, state = jax.device_put(swad_weights(averages, points, [run.target] * len(runs), config), apart)
            points[-1] = self._measure(params, state, specs, runs)
        sharpness = self._sharpness(own, params, state, specs, *self._probe_for(run, everywhere))
        kept = keeper.kept(params, state, dict)
        return {**found(points, jax.device_get(sharpness), runs, self._examples), **kept}

    def _examples(self, run: Run) -> Examples:
        """The examples of a run's target."""
        of_target = self.data.domain_ids == run.target
        return Examples(self.data.labels[of_target], validates(self.splits[run.seed], self.data)[of_target])

    def _probe_for(self, run: Run, where: Sharding) -> tuple[jax.Array, jax.Array]:
        """Images [D, n, ...] and labels int32 [D, n] of the probe of a seed, on the device."""
        if (run.seed, where) not in self._probe_of:
            rows = self.splits[run.seed].order[self.data.starts[:, None] + np.arange(self.probe)[None]]
            probe = (read_rows(rows, self.data, self.block, self.threads), self.data.labels[rows])
            # Only that of the last seed is kept: the chunks have the seeds one after the other.
            self._probe_of = {(run.seed, where): jax.device_put(probe, where)}
        return self._probe_of[run.seed, where]

    def _measure(self, params: Params, state: State, specs: RunSpec, runs: Sequence[Run]) -> Metrics:
        """What is measured of R runs at a point of training, numpy arrays [R, ...]."""
        run, compiled, (_, everywhere) = runs[0], self.compile(runs), self.place(len(runs))
        own, of_new = self.weights_for(everywhere)
        domains = len(self.data.counts)
        groups = self.data.domain_ids + domains * validates(self.splits[run.seed], self.data).astype(np.int32)
        evaluate = functools.partial(compiled.evaluate, own, params, state, specs)
        kept = Logits(self.data.domain_ids == run.target, len(runs)) if self.config.keep_logits else None
        means = self._means(evaluate, self.data, groups, 2 * domains, everywhere, kept)
        of = {name: each.reshape(len(runs), 2, domains) for name, each in means.items()}
        probe = compiled.probe(own, params, state, specs, *self._probe_for(run, everywhere))
        new_accuracy = None
        if self.new is not None:
            evaluate = functools.partial(compiled.new, of_new, params, state, specs)
            new_accuracy = self._means(evaluate, self.new, self.new.domain_ids, domains, everywhere)["accuracy"]
        extra = {name: of[name] for name in extra_metrics()}
        logits = None if kept is None else by_run(kept.of_runs())
        return Metrics._make((of["accuracy"], of["losses"], *jax.device_get(probe), new_accuracy, extra, logits))

    def _means(
        self,
        evaluate: Callable[..., jax.Array],
        data: StreamedImages | CachedFeatures,
        groups: np.ndarray,
        number: int,
        everywhere: Sharding,
        kept: "Logits | None" = None,
    ) -> dict[str, np.ndarray]:
        """Means of each of `METRICS` over groups of images.

        Args:
            evaluate: Function (images, labels, groups) of a block -> sums, float32 [R, K, G]; with `kept`, sums and
                logits, see `block_sums`.
            data: N images.
            groups: Group of each image, int [N], 0..G-1.
            number: Number G of groups.
            everywhere: Where blocks lie.
            kept: What takes logits, if they are kept.

        Returns:
            float64 [R, G] for each name; NaN for a group without images.
        """

        def sums_of(outputs: Any, first: int) -> np.ndarray:
            if kept is not None:
                outputs, logits = outputs
                kept.take(logits, first)
            return np.asarray(outputs, np.float64)

        rows = np.arange(len(groups))
        total: Any = 0.0
        before = None
        for first, block in zip(
            range(0, len(rows), self.block), blocks_of(rows, data, self.block, self.threads), strict=True
        ):
            here = np.full(self.block, -1, np.int32)
            here[block.valid] = groups[first : first + self.block]
            outputs = evaluate(*jax.device_put((block.x, block.y, here), everywhere))
            # The sums of the block before, so that the device has this one to work on meanwhile.
            if before is not None:
                total = total + sums_of(*before)
            before = (outputs, first)
        if before is not None:
            total = total + sums_of(*before)
        with np.errstate(invalid="ignore"):
            means = total / np.bincount(groups, minlength=number)
        return {name: means[:, k] for k, name in enumerate(METRICS)}


class Logits:
    """The logits of the target's examples, taken from the blocks of an evaluation.

    Args:
        of_target: Whether an example is of the target, bool [N].
        runs: Number of runs.
    """

    def __init__(self, of_target: np.ndarray, runs: int):
        self.of_target = of_target
        self._of_blocks: list[list[np.ndarray]] = [[] for _ in range(runs)]

    def take(self, logits: jax.Array, first: int) -> None:
        """Takes those of a block.

        Args:
            logits: float16 [R, B, C].
            first: Row of its first example.
        """
        here = self.of_target[first : first + logits.shape[1]]
        if here.any():
            for of_blocks, each in zip(self._of_blocks, np.asarray(logits), strict=True):
                of_blocks.append(each[: len(here)][here])

    def of_runs(self) -> list[np.ndarray]:
        """For each run float16 [n, C]."""
        return [np.concatenate(of_blocks) for of_blocks in self._of_blocks]


def batches_of(
    run: Run, data: StreamedImages | CachedFeatures, split: Split, config: TrainConfig, threads: int, prefetch: int
) -> StreamingBatches | MappedBatches:
    """The batches of a run.

    Args:
        run: Run, of which seed and target decide.
        data: Images, or activations on disk.
        split: Split of its seed.
        config: Configuration that all runs share.
        threads: Number of threads that read.
        prefetch: Number of batches that are read ahead; at least one for each thread is.

    Returns:
        A stream of `config.steps` batches.
    """
    sources = tuple(domain for domain in range(len(data.counts)) if domain != run.target)
    plan = (split, sources, run.seed, run.target, config.per_domain, config.steps)
    ahead = {"threads": threads, "prefetch": max(prefetch, threads)}
    if isinstance(data, CachedFeatures):
        return MappedBatches(data, *plan, **ahead)
    return StreamingBatches(data.listing, *plan, image_size=data.image_size, **ahead)


def blocks_of(rows: np.ndarray, data: StreamedImages | CachedFeatures, block: int, threads: int) -> Iterator[Block]:
    """Examples [K, ...] of the data, in blocks of one size; see `eval_blocks`."""
    if isinstance(data, CachedFeatures):
        return eval_blocks(data, rows, block)
    return eval_blocks(data.listing, rows, block, image_size=data.image_size, threads=threads, prefetch=threads)


def read_rows(rows: np.ndarray, data: StreamedImages | CachedFeatures, block: int, threads: int) -> np.ndarray:
    """Inputs [*rows.shape, ...] of the examples in the rows of the data."""
    found = np.concatenate([each.x[each.valid] for each in blocks_of(rows.reshape(-1), data, block, threads)])
    return found.reshape(*rows.shape, *found.shape[1:])


def with_weights(network: Network, function: Callable[..., Any], axes: tuple[Any, ...]) -> Callable[..., Any]:
    """A function of one run as one of R runs, with the network's weights as its first argument.

    Args:
        network: Network that the function takes as the keyword `network`.
        function: Function of one run.
        axes: Axes of R runs, as in `jax.vmap`.

    Returns:
        Function (weights, ...) -> results [R, ...].
    """

    def of_all(weights: Any, *arguments: Any) -> Any:
        return jax.vmap(functools.partial(function, network=network.given(weights)), in_axes=axes)(*arguments)

    return of_all


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
    config: TrainConfig,
) -> RunState:
    """Trains R runs over a stack of batches.

    Args:
        own: Weights of the network that no run trains.
        states: States of the runs, leaves [R, ...].
        specs: Seed, target and hyperparameters of the runs, see `OVER_RUNS`.
        first: Step of the first batch, int32 [].
        last: Step at which the segment ends, int32 []; batches from there on are skipped.
        inputs: uint8 images or floating-point activations, [K, M, n, ...].
        labels: int32 [K, M, n].
        network: Network to train.
        method: Method that computes the gradients.
        config: Configuration that all runs share.

    Returns:
        The states after the stack.
    """
    one = functools.partial(train_step, network=network.given(own), method=method, config=config)

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
    keep_logits: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Sums of each of the K `METRICS` over the examples of each group in a block.

    Args:
        params: Parameters of the network.
        state: Running statistics of the network.
        spec: Seed, target and hyperparameters of the run.
        inputs: uint8 images or floating-point activations, [B, ...].
        labels: int32 [B].
        group: Group of each example, int32 [B], 0..G-1; -1 for none.
        network: Network to evaluate.
        groups: Number G of groups.
        keep_logits: Whether the logits are asked for.

    Returns:
        float32 [K, G]; with `keep_logits` also the logits, see `kept_logits`, float16 [B, C].
    """
    logits = network.apply(params, state, inputs, spec.key, False).logits
    values = jnp.stack(list(measure_examples(logits, labels).values()))
    member = group[None] == jnp.arange(groups, dtype=jnp.int32)[:, None]
    # A select, not a product: a loss that is not finite belongs to its own group only.
    sums = jnp.where(member[None], values[:, None], 0.0).sum(-1)
    return (sums, kept_logits(logits)) if keep_logits else sums


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


def pixel_budget(memory_budget: int | None = None) -> int:
    """How many bytes of pixels are kept in memory when nothing is said about streaming.

    By default half of all memory of a device, not of what is free: an interrupted sweep must choose the same again.

    Args:
        memory_budget: bytes on each device, if they are given.

    Returns:
        Bytes.
    """
    return all_bytes() // 2 if memory_budget is None else memory_budget
