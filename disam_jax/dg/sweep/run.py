"""Sweeps: thousands of paired runs, chunk by chunk, on disk as they come."""

import functools
import itertools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import disam_jax
from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.load import fingerprint, is_streamed
from disam_jax.dg.data.names import hint
from disam_jax.dg.data.splits import small_domains, split
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import Method
from disam_jax.dg.methods.subset import check_subset
from disam_jax.dg.models.network import Network
from disam_jax.dg.models.registry import MODELS
from disam_jax.dg.models.stages import CLASSIFIER
from disam_jax.dg.progress import OnProgress, TimeToGo
from disam_jax.dg.ranges import MOST_RUNS
from disam_jax.dg.results import Results, Run
from disam_jax.dg.runners import checkpoints, memory
from disam_jax.dg.runners.base import NewClasses, Runner
from disam_jax.dg.runners.devices import check_batch, groups
from disam_jax.dg.runners.make import runner_factory
from disam_jax.dg.runners.varied import FIXED, VariedRunner, fixed_of
from disam_jax.dg.saving.blueprint import Blueprint, from_scratch
from disam_jax.dg.sweep.beforehand import passes_of
from disam_jax.dg.sweep.logits_files import size_line
from disam_jax.dg.sweep.models import ModelStore
from disam_jax.dg.sweep.results_file import SCHEMA, open_store, planned
from disam_jax.dg.sweep.shards import Shard, in_shard
from disam_jax.dg.training.config import TrainConfig, check_config
from disam_jax.dg.training.metrics import extra_metrics

# Runs at once on each device, before memory is asked. On a core more were no faster, see
# benchmarks/results/sweep_speed.md, while small networks keep an accelerator waiting. The number does not depend on how
# many runs there are: it is part of the program, and a sweep that grows must end with the same numbers as one that had
# all its runs from the beginning.
ON_A_CORE, ON_AN_ACCELERATOR, OF_IMAGES_ON_AN_ACCELERATOR = 8, 256, 32


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep: every candidate of every method for every target and seed.

    Attributes:
        candidates: for each method's name, its hyperparameters; the first are the defaults.
        targets: T indices of domains.
        seeds: S seeds.
        shard: Part of the runs that is trained; None for all.
        by_seed: For each method's name and seed the hyperparameters of its candidates, where each seed has its own.
    """

    candidates: Mapping[str, Sequence[Mapping[str, float]]]
    targets: tuple[int, ...]
    seeds: tuple[int, ...]
    shard: Shard | None = None
    by_seed: Mapping[str, Mapping[int, Sequence[Mapping[str, float]]]] = field(default_factory=dict)

    def runs_of(self, method: str) -> list[Run]:
        """The runs of a method, in the order in which they are trained."""
        own = self.by_seed.get(method)
        runs = [
            Run(method, target, seed, place, own[seed][place] if own else hparams)
            for place, hparams in enumerate(self.candidates[method])
            for target in self.targets
            for seed in self.seeds
        ]
        return in_shard(runs, list(self.candidates).index(method), self.shard)

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for method in self.candidates for run in self.runs_of(method)]


def make_header(
    data: Domains,
    config: TrainConfig,
    methods: Mapping[str, Method],
    plan: Plan,
    notes: Sequence[str],
    command: str,
    new: Domains | None = None,
) -> dict[str, Any]:
    """What is run, as JSON values: by this a results file is recognised.

    Example:
        >>> from disam_jax.dg.methods import METHODS
        >>> from disam_jax.dg.testing import toy
        >>> plan = Plan({"ERM": [{"learning_rate": 0.1}]}, targets=(1,), seeds=(0, 1))
        >>> header = make_header(toy(), TrainConfig(), {"ERM": METHODS["ERM"]}, plan, notes=[], command="")
        >>> header["targets"], header["seeds"], header["planned"]
        (['sketch'], [0, 1], 2)
    """
    new_classes = {} if new is None else {"new_classes": list(new.class_names), "new_fingerprint": fingerprint(new)}
    return {
        "schema": SCHEMA,
        "version": {"disam_jax": disam_jax.__version__, "jax": jax.__version__},
        "command": command,
        "data": {
            "name": data.name,
            "domains": dict(zip(data.domain_names, data.counts.tolist(), strict=True)),
            "classes": list(data.class_names),
            "shape": list(data.inputs.shape[1:]),
            "streamed": is_streamed(data),
            "fingerprint": fingerprint(data),
            **new_classes,
        },
        "setting": config.record(),
        "methods": {
            name: {"base": method.base, "control": method.control, "candidates": len(plan.candidates[name])}
            for name, method in methods.items()
        },
        "candidates": {name: [dict(each) for each in plan.candidates[name]] for name in methods},
        "targets": [data.domain_names[target] for target in plan.targets],
        "seeds": list(plan.seeds),
        "steps": list(config.measured_at),
        **({"metrics": list(extra)} if (extra := extra_metrics()) else {}),
        "notes": list(notes),
        "planned": sum(map(len, plan.candidates.values())) * len(plan.targets) * len(plan.seeds),
        **({} if plan.shard is None else {"shard": list(plan.shard)}),
    }


def run_sweep(
    data: Domains,
    network: Network,
    config: TrainConfig,
    methods: Mapping[str, Method],
    plan: Plan,
    out: Path,
    *,
    command: str = "",
    overwrite: bool = False,
    runs_at_once: int | None = None,
    memory_budget: int | None = None,
    checkpoint_every: int | None = None,
    on_progress: OnProgress | None = None,
    on_line: Callable[[str], None] | None = None,
    on_chunk: Callable[[str], None] | None = None,
    on_estimate: Callable[[str], None] | None = None,
    on_records: Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], None] | None = None,
    select: str = "validation",
    own_networks: Mapping[str, Network] | None = None,
    new: NewClasses | None = None,
    save: str = "none",
    blueprint: Callable[[str], Blueprint] | None = None,
) -> tuple[Results, dict[str, dict[str, Any]]]:
    """Trains all runs of a plan that a folder does not have yet.

    Runs go through the compiled program of their method in chunks. A finished chunk is on disk before the next one
    starts: whatever happens, at most one chunk is lost. A run has the same numbers in any chunk, since the program has
    as many runs on each device whatever the chunk: a folder can be gone on with, with the same plan or a larger one.

    Args:
        data: Data set of at least two domains; `StreamedImages` are read as they are needed, with the same results.
        network: Network to train.
        config: What all runs share.
        methods: Methods by name, in the order of the tables.
        plan: All runs.
        out: Folder of the results file.
        command: Command that was typed, for the record.
        overwrite: Whether results of something else in the folder are moved into a folder of their own, inside;
            otherwise they are an error.
        runs_at_once: Largest number of runs in a chunk, on all devices; by default from `default_runs_at_once`.
        memory_budget: Bytes on each device that a program may take; by default half of what is free.
        checkpoint_every: Number of steps after which a chunk is saved, in memory at the next measurement; it goes
            on from there after an interruption. None: it begins anew.
        on_progress: Called as the runs are trained.
        on_line: Called with a line of text before anything starts.
        on_chunk: Called with a line of text whenever a chunk is on disk.
        on_estimate: Called before `on_progress` with how long the rest takes, in words; empty where that is not known.
        on_records: Called whenever a chunk is on disk, with its runs as the results file has them, and its header.
        select: Which runs and points the folder's report will have, a key of `CRITERIA`.
        own_networks: Networks of the methods that have one of their own, by the method's name.
        new: Classes that are not trained on, and are measured too.
        save: Which models are kept in the folder `models`, a key of `SAVES`. One that is missing there has its run
            trained again.
        blueprint: (name of a method) -> how its network is built again; by default of a network by name, which
            `make_network` makes for the configuration.

    Returns:
        The results, and for each method its "flops" (of one training step of one run) and "seconds_per_run" (of those
        trained now, without compilation; None if there were none).

    Raises:
        InputError: if something the user gave cannot be used.

    Example:
        >>> import tempfile
        >>> from disam_jax.dg.methods import METHODS
        >>> from disam_jax.dg.models.registry import make_network
        >>> from disam_jax.dg.sweep.hparams import default_hparams
        >>> from disam_jax.dg.testing import toy
        >>> data = toy()
        >>> config, methods = TrainConfig(steps=4, evaluations=2, per_domain=2), {"DISAM": METHODS["DISAM"]}
        >>> plan = Plan({"DISAM": [default_hparams(methods["DISAM"], config)]}, targets=(2,), seeds=(0, 1))
        >>> network = make_network("mlp", data.inputs.shape[1:], len(data.class_names), hidden=(4,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     results, cost = run_sweep(data, network, config, methods, plan, Path(folder))
        >>> results.losses.shape  # runs, measured points, training and validation split, domains
        (2, 3, 2, 3)
        >>> sorted(cost["DISAM"])
        ['flops', 'seconds_per_run']
    """
    header, make_runner = prepare_sweep(data, network, config, methods, plan, command, own_networks, new)
    budget = memory.free_bytes() // 2 if memory_budget is None else memory_budget
    most = runs_at_once or default_runs_at_once(config)
    say, say_chunk, tell = (each or (lambda _: None) for each in (on_line, on_chunk, on_estimate))
    total = len(plan.runs)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    plain = functools.cache(lambda: from_scratch(network, config, data))
    models = ModelStore(out, save, blueprint or (lambda _: plain()))
    if save != "none" and plan.runs:
        say(models.begin(plan.runs, header))

    with open_store(out, header, overwrite, select) as store:
        if store.aside is not None:
            say(f"the earlier results are in {store.aside} now")
        missing = {name: [run for run in plan.runs_of(name) if not store.has(run)] for name in methods}
        to_train = {name: len(runs) for name, runs in missing.items()}
        say(start_line(header, to_train))
        if config.keep_logits and (line := size_line([run for runs in missing.values() for run in runs], header, out)):
            say(line)
        done = total - sum(to_train.values())
        left = TimeToGo(to_train, {name: passes_of(method) for name, method in methods.items()})

        def show(what: str, done: float, total: float) -> None:
            tell(left.text())
            (on_progress or (lambda *_: None))(what, done, total)

        # Models are looked for when all runs of a method are there, since these decide which has one.
        for name, again in itertools.product(methods, (False, True)):
            runs = models.missing(plan.runs_of(name), store) if again else missing[name]
            if not runs:
                continue
            if again:
                say(missing_line(name, len(runs)))
            began = time.perf_counter()
            show(f"compiling {name}", done, total)
            runner = make_runner(name)
            if name not in store.programs:
                per_device = runner.runs_at_once(runs, most, budget)
                store.program(name, {"runs_at_once": per_device, "flops": runner.flops(runs[0])})
            runner.per_device = store.programs[name]["runs_at_once"]
            together = max(map(len, runner.chunks(runs, len(runs))))
            size = chunk_size(runner.per_device, together, most, groups(config))
            for chunk in runner.chunks(runs, size):
                # The last chunk is filled up with a run that is not written down, so that it fits the program.
                filled = chunk + [chunk[-1]] * (size - len(chunk))
                show(f"compiling {name}", done, total)
                runner.compile(filled)
                left.compiled(name, time.perf_counter() - began)
                new_runs = 0 if again else len(chunk)
                step = new_runs / len(config.measured_at)
                what = f"training {name}, {size} at once"
                began = time.perf_counter()
                saved = None
                if checkpoint_every is not None:
                    saved = checkpoints.checkpoints_of(out, header, filled, checkpoint_every, save, say)
                measured = runner.train(filled, counting(show, what, done, step, total), saved, save)
                took = time.perf_counter() - began
                if not again:
                    seconds[name].append(took / len(filled))
                    store.chunk(name, chunk, measured, took)
                    if on_records is not None:
                        on_records([store.records[run[:4]] for run in chunk], header)
                    left.trained(name, len(chunk), took)
                models.write(chunk, measured, plan.runs_of(name), store)
                if saved is not None:
                    saved.remove()
                done += new_runs
                show(what, done, total)
                if not again:
                    say_chunk(chunk_line(name, done, total, left.text()))
                began = time.perf_counter()
        # What a kill left between the end of a chunk and that of its checkpoints.
        shutil.rmtree(out / checkpoints.FOLDER, ignore_errors=True)
        results = store.results(plan.runs)
        cost = {
            name: {
                "flops": store.programs[name]["flops"],
                "seconds_per_run": float(np.mean(seconds[name])) if seconds[name] else None,
            }
            for name in methods
        }
    return results, cost


class Prepared(NamedTuple):
    """A sweep before anything is trained.

    Attributes:
        header: From `make_header`.
        make_runner: Makes the runner of a method, by name; runners share the data on the device.
    """

    header: dict[str, Any]
    make_runner: Callable[[str], Runner]


def prepare_sweep(
    data: Domains,
    network: Network,
    config: TrainConfig,
    methods: Mapping[str, Method],
    plan: Plan,
    command: str = "",
    own_networks: Mapping[str, Network] | None = None,
    new: NewClasses | None = None,
) -> Prepared:
    """Checks a sweep and splits its data. The arguments are those of `run_sweep`.

    Returns:
        What is run, and what runs it.

    Raises:
        InputError: If something the user gave cannot be used.

    Example:
        >>> from disam_jax.dg.methods import METHODS
        >>> from disam_jax.dg.testing import toy
        >>> plan, config = Plan({"ERM": [{}]}, targets=(1,), seeds=(0, 1)), TrainConfig(per_domain=2)
        >>> network = Network(init=lambda key: ({}, {}), apply=lambda *_: None)
        >>> prepare_sweep(toy(), network, config, {"ERM": METHODS["ERM"]}, plan).header["planned"]
        2
    """
    check_config(config)
    check_size(plan)
    for name, method in methods.items():
        for per_domain, dropout in fixed_values(plan, name, config):
            check_fits(name, method, replace(config, per_domain=per_domain), data)
            check_batch(replace(config, per_domain=per_domain), len(data.domain_names) - 1)
            check_dropout(network, dropout, config)
    splits = tuple(split(data, seed, config.holdout) for seed in plan.seeds)
    probe = min(config.probe, int(splits[0].train_counts.min()))
    notes = [*data.notes, *small_domains(data, splits[0], config.per_domain)]
    header = make_header(data, config, methods, plan, notes, command, None if new is None else new.data)
    # The data go to the device when the first runner is made, if any is.
    make = functools.cache(lambda: runner_factory(data, config, splits, plan.seeds, probe, new))
    network_of = lambda name: (own_networks or {}).get(name, network)

    def make_runner(name: str) -> Runner:
        trained, method = network_of(name), methods[name]
        if not varies(plan, name):
            return make()(name, trained, method, config)

        def of(per_domain: int, dropout: float) -> Runner:
            own = replace(config, per_domain=per_domain, dropout=dropout)
            return make()(name, dropping(trained, dropout, config), method, own)

        return VariedRunner(of)

    return Prepared(header, make_runner)


def varies(plan: Plan, method: str) -> bool:
    """Whether the runs of a method have a batch size and dropout of their own.

    Example:
        >>> varies(Plan({"ERM": [{"learning_rate": 0.1}]}, targets=(0,), seeds=(0,)), "ERM")
        False
    """
    return all(name in plan.candidates[method][0] for name in FIXED)


def fixed_values(plan: Plan, method: str, config: TrainConfig) -> list[tuple[int, float]]:
    """The batch sizes and dropouts that the runs of a method have, one pair for each of its programs.

    Example:
        >>> fixed_values(Plan({"ERM": [{"learning_rate": 0.1}]}, targets=(0,), seeds=(0,)), "ERM", TrainConfig())
        [(16, 0.0)]
    """
    if not varies(plan, method):
        return [(config.per_domain, config.dropout)]
    return sorted({fixed_of(run) for run in plan.runs_of(method)})


def check_dropout(network: Network, dropout: float, config: TrainConfig) -> None:
    """Checks that a network can have another dropout than that of the configuration.

    Raises:
        InputError: If it has none.

    Example:
        >>> check_dropout(Network(init=lambda key: ({}, {}), apply=lambda *_: None), 0.0, TrainConfig())
    """
    if dropout != np.float32(config.dropout) and network.with_dropout is None:
        raise InputError(f"--search dropout: --model {config.model} has no dropout here, leave it out")


def dropping(network: Network, dropout: float, config: TrainConfig) -> Network:
    """A network with the dropout of a run, checked by `check_dropout`.

    Example:
        >>> network = Network(init=lambda key: ({}, {}), apply=lambda *_: None)
        >>> dropping(network, 0.0, TrainConfig()) is network
        True
    """
    if network.with_dropout is None or dropout == np.float32(config.dropout):
        return network
    return network.with_dropout(dropout)


def check_fits(name: str, method: Method, config: TrainConfig, data: Domains) -> None:
    """Checks that a step has as many examples and source domains as a method needs.

    Raises:
        InputError: If it has not.

    Example:
        >>> from disam_jax.dg.data.domains import join_domains
        >>> from disam_jax.dg.methods import METHODS
        >>> two = join_domains("two", [np.zeros((2, 3))] * 2, [np.array([0, 1])] * 2, "ab", ["no", "yes"])
        >>> check_fits("MMD", METHODS["MMD"], TrainConfig(), two)
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: --method MMD needs 2 source domains, got 1: leave it out, or take more domains
    """
    if config.per_domain < method.min_per_domain:
        raise InputError(f"--per-domain must be at least {method.min_per_domain} for {name}, got {config.per_domain}")
    if not config.perturbs_all and "rho" in method.hparams:
        check_subset(name, method, config.per_domain, config.fraction)
    domains = len(data.domain_names)
    if domains - 1 < method.min_sources:
        raise InputError(
            f"--method {name} needs {method.min_sources} source domains, got {domains - 1}: leave it out, or take more "
            "domains"
        )


def check_size(plan: Plan) -> None:
    """Checks that there are not more runs than a results file can list.

    Raises:
        InputError: If there are.

    Example:
        >>> check_size(Plan({"ERM": [{}] * 10_000}, targets=(0,), seeds=tuple(range(1000))))
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: these are 10,000,000 runs: take fewer --candidates, --seeds or methods
    """
    number = sum(map(len, plan.candidates.values())) * len(plan.targets) * len(plan.seeds)
    if number > MOST_RUNS:
        raise InputError(f"these are {number:,} runs: take fewer --candidates, --seeds or methods")


def start_line(header: Mapping[str, Any], missing: Mapping[str, int]) -> str:
    """What will be run, in a line.

    Args:
        header: From `make_header`.
        missing: For each method, the number of its runs that are not finished; those of the shard, if it is one.

    Returns:
        Text.

    Example:
        >>> header = {"data": {"name": "toy"}, "targets": ["photo"], "seeds": [0, 1, 2], "planned": 6}
        >>> header |= {"methods": {"ERM": {}, "SAM": {}}, "candidates": {"ERM": [{}], "SAM": [{}]}}
        >>> start_line(header, {"ERM": 3, "SAM": 3})
        'toy: 2 methods x 1 target x 3 seeds = 6 runs in 2 programs, of ERM, SAM; targets photo'
        >>> start_line(header, {"ERM": 0, "SAM": 1}).split("; ")[-1]
        '5 are finished, 1 is left, in 1 program'
    """
    total = len(planned(header)) if "shard" in header else header["planned"]
    left, programs = sum(missing.values()), counted(sum(map(bool, missing.values())), "program")
    all_left = f" in {programs}" if left == header["planned"] else ""
    parts = [
        f"{header['data']['name']}: {product(header)} = {counted(header['planned'], 'run')}{all_left}, "
        f"of {', '.join(header['methods'])}",
        f"targets {', '.join(header['targets'])}",
    ]
    if "shard" in header:
        parts.append(f"{total} of them are in shard {Shard(*header['shard'])}" + f", in {programs}" * (left == total))
    if left < total:
        are = "is" if left == 1 else "are"
        parts.append(f"{total - left} are finished" + (f", {left} {are} left, in {programs}" if left else ""))
    return "; ".join(parts)


def product(header: Mapping[str, Any]) -> str:
    """The number of runs as a product.

    Example:
        >>> header = {"targets": ["photo"], "seeds": [0, 1], "candidates": {"ERM": [{}], "SAM": [{}, {}]}}
        >>> product(header)
        '3 candidates of 2 methods x 1 target x 2 seeds'
    """
    numbers = [len(each) for each in header["candidates"].values()]
    methods = counted(len(numbers), "method")
    if len({*numbers}) > 1:
        methods = f"{sum(numbers)} candidates of {methods}"
    elif numbers[0] > 1:
        methods += f" x {numbers[0]} candidates"
    return f"{methods} x {counted(len(header['targets']), 'target')} x {counted(len(header['seeds']), 'seed')}"


def counted(number: int, what: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "seed"), counted(2, "seed")
        ('1 seed', '2 seeds')
    """
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def missing_line(method: str, number: int) -> str:
    """How many models are made again, in a line.

    Example:
        >>> missing_line("SAM", 2)
        'the models of 2 runs of SAM are not there: these runs are trained again'
    """
    return f"the models of {number} runs of {method} are not there: these runs are trained again"


def chunk_line(method: str, done: int, total: int, left: str) -> str:
    """How far a sweep has come, in a line.

    Example:
        >>> chunk_line("SAM", 120, 180, "about 20 s left")
        '120 of 180 runs are finished, the last of SAM, about 20 s left'
    """
    return f"{done} of {total} runs are finished, the last of {method}" + (f", {left}" if left else "")


def counting(show: OnProgress, what: str, done: float, step: float, total: float) -> Callable[[], None]:
    """A function that shows `step` more at each call.

    Example:
        >>> one_more = counting(print, "training SAM", done=2.0, step=0.5, total=4.0)
        >>> one_more()
        training SAM 2.5 4.0
        >>> one_more()
        training SAM 3.0 4.0
    """
    count = itertools.count(1)
    return lambda: show(what, done + step * next(count), total)


def chunk_size(per_device: int, together: int, most: int, devices: int) -> int:
    """Number of runs in a chunk: as many devices as there is work for, each with the runs of its program.

    Args:
        per_device: Number of runs of the program of a device.
        together: Number of runs that can go into a chunk.
        most: Largest number of runs on all devices; one device is always used.
        devices: Number of devices.

    Returns:
        A multiple of `per_device`.

    Example:
        >>> chunk_size(8, together=60, most=64, devices=2), chunk_size(8, together=20, most=64, devices=8)
        (16, 24)
    """
    return per_device * min(devices, max(1, most // per_device), -(-together // per_device))


def most_on_a_device(config: TrainConfig, runs_at_once: int | None, devices: int) -> int:
    """The largest number of runs in the program of a device, before memory is asked.

    Args:
        config: What all runs share.
        runs_at_once: What the user asked for, on all devices; None for the default.
        devices: Number of devices that one process would have, over which these are dealt.

    Returns:
        As many as there are in one process with these devices.

    Example:
        >>> [most_on_a_device(TrainConfig(), number, devices=4) for number in (3, 8, 9)]
        [3, 2, 2]
    """
    if runs_at_once is None:
        return default_runs_at_once(config) // jax.device_count()
    return runs_at_once // devices or runs_at_once


def default_runs_at_once(config: TrainConfig) -> int:
    """The largest number of runs in a chunk, on all devices, before memory is asked.

    Example:
        >>> default_runs_at_once(TrainConfig(model="mlp")) == 8 * jax.device_count()
        True
    """
    finetune = config.finetune
    cached = finetune is not None and (finetune.cache_features or finetune.train_from == CLASSIFIER)
    model = MODELS.get(config.model)
    if jax.default_backend() == "cpu":
        alone = model is not None and model.one_at_a_time_on_cpu and not cached
        return groups(config) * (1 if alone else ON_A_CORE)
    of_images = model is not None and model.of_images and not cached
    return groups(config) * (OF_IMAGES_ON_AN_ACCELERATOR if of_images else ON_AN_ACCELERATOR)


def check_targets(targets: Sequence[str], domain_names: Sequence[str], where: str) -> tuple[int, ...]:
    """Indices of the domains to hold out.

    Args:
        targets: their names; empty means all.
        domain_names: D names.
        where: what has the domains, for the error.

    Returns:
        Indices, in the order given, each once.

    Raises:
        InputError: on a name that is no domain's.

    Example:
        >>> check_targets(["sketch"], ["photo", "sketch"], "DIR")
        (1,)
    """
    for name in targets:
        if name not in domain_names:
            near = hint(name, domain_names)
            raise InputError(f"unknown --target {name}: the domains of {where} are {', '.join(domain_names)}{near}")
    return tuple(dict.fromkeys(map(list(domain_names).index, targets))) or tuple(range(len(domain_names)))
