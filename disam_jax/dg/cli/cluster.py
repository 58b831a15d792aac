"""`disam-jax sweep` on the workers of a cluster: they have the data and the devices, the client writes the results."""

import contextlib
import functools
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import shown

if TYPE_CHECKING:
    from disam_jax.dg.cli.logs import OnRecords
    from disam_jax.dg.cli.options import Compare
    from disam_jax.dg.cli.progress import Progress, Say
    from disam_jax.dg.results import Results, Run
    from disam_jax.dg.runners.base import Runner
    from disam_jax.dg.saving.blueprint import Blueprint
    from disam_jax.dg.sweep.run import Plan, Prepared
    from disam_jax.dg.sweep.shards import Shard

# A worker that has several threads trains one chunk at a time all the same.
_ONE_AT_A_TIME = threading.Lock()
# Options that name files, which every worker must find.
OF_FILES = ("data", "data_dir", "split_files", "duplicates", "checkpoint", "cache")


class Described(NamedTuple):
    """What a worker finds out of a sweep before anything is trained.

    Attributes:
        header: From `make_header`.
        plan: All runs.
        most: Largest number of runs on each device.
        passes: For each method, the number of forward and backward passes in a step.
        machine: Of the worker, for the record.
    """

    header: dict[str, Any]
    plan: "Plan"
    most: int
    passes: dict[str, float]
    machine: dict[str, Any]


def with_full_paths(options: "Compare") -> "Compare":
    """The options with the paths of files that are there from the root on, as workers elsewhere need them."""
    there = {name: value for name in OF_FILES if (value := getattr(options, name)) is not None and Path(value).exists()}
    full = {name: type(value)(Path(value).absolute()) for name, value in there.items()}
    return replace(options, out=options.out.absolute(), **full)


@contextlib.contextmanager
def cluster_of(options: "Compare") -> Iterator[tuple[Any, int | None]]:
    """The cluster that the options ask for.

    Yields:
        Client, and the number of devices that one process would have in the place of all workers, where that is known.
    """
    from disam_jax.dg.sweep import cluster

    if options.workers is None:
        with cluster.running_cluster(options.scheduler, options.scheduler_file) as client:
            yield client, None
    else:
        devices = cluster.devices_here()
        flags = os.environ.get("XLA_FLAGS", "")
        with cluster.local_cluster(cluster.worker_environments(devices, options.workers, flags)) as client:
            yield client, devices.count


def run_on_cluster(
    options: "Compare", command: str, shard: "Shard | None", told: "Progress", log: "OnRecords"
) -> tuple["Results", dict[str, dict[str, Any]], dict[str, Any]]:
    """Trains all runs that a folder does not have yet, on the workers of a cluster.

    Args:
        options: Options of the command line.
        command: What was typed, for the record.
        shard: Part of the runs that is trained.
        told: How progress is shown.
        log: Called with the runs of each chunk that is on disk, and the header.

    Returns:
        Results and cost, as of `run_sweep`, and the machine of a worker.

    Raises:
        InputError: If the options, the data or the cluster cannot be used.
    """
    from disam_jax.dg.sweep.cluster import finished, of_each
    from disam_jax.dg.sweep.ledger import Ledger, Listeners
    from disam_jax.dg.sweep.models import ModelStore
    from disam_jax.dg.sweep.results_file import open_store
    from disam_jax.dg.sweep.run import check_size
    from disam_jax.dg.sweep.shards import with_options

    everywhere = with_full_paths(options)
    tell = Listeners(told.show, told.say, told.log, told.estimate, log)
    # Who trained the runs is in the record, and makes no difference to the tables.
    command = with_options(command, dict.fromkeys(("--workers", "--scheduler", "--scheduler-file")))
    with cluster_of(options) as (client, devices):
        tell.show("reading the data on a worker", 0, 1)
        ((_, described),) = finished(client, describe, [(everywhere, command, shard, devices, versions())], tell.say)
        header, plan = described.header, described.plan
        check_size(plan)
        same = (header["data"]["fingerprint"], versions())
        blueprints: dict[str, Blueprint] = {}
        if options.save != "none":
            of_methods = [(everywhere, name, *same) for name in plan.candidates]
            found = finished(client, blueprint_of, of_methods, tell.say)
            blueprints = {of_methods[number][1]: each for number, each in found}
        models = ModelStore(options.out, options.save, blueprints.__getitem__)
        models.begin(plan.runs, header, tell.say)
        with open_store(options.out, header, options.overwrite, options.select) as store:
            counts = of_each(client, device_count)
            ledger = Ledger(plan, header, store, models, described.passes, tell, side_by_side=len(counts))
            ledger.begin(options.keep_logits, options.out)
            new = [name for name, runs in ledger.missing.items() if runs and name not in store.programs]
            asked = [(everywhere, ledger.missing[name], described.most, *same) for name in new]
            settled = {new[number]: program for number, program in finished(client, settle, asked, tell.say)}
            # In the order of the tables, whichever came first.
            for name in new:
                store.program(name, settled[name])
            tasks_of = functools.partial(
                chunks_of, store.programs, min(counts), described.most, header["data"]["streamed"]
            )
            for chunk, trained in chunks_on(client, tasks_of(ledger.missing), everywhere, same, tell.say):
                name = chunk[0].method
                ledger.left.compiled_first(name, trained.compiling)
                ledger.keep(chunk, trained.measured, trained.seconds, trained=len(chunk))
                ledger.say_kept(name, f"training {name}")
            again = {name: ledger.without_model(name) for name in plan.candidates}
            for chunk, trained in chunks_on(client, tasks_of(again), everywhere, same, tell.say):
                ledger.keep_models(chunk, trained.measured)
            results = store.results(plan.runs)
    return results, ledger.cost(), described.machine


def chunks_of(
    programs: Mapping[str, Mapping[str, Any]],
    devices: int,
    most: int,
    streamed: bool,
    runs: Mapping[str, "Sequence[Run]"],
) -> list[tuple[int, "Sequence[Run]"]]:
    """Runs of each method as chunks for workers.

    Args:
        programs: What is settled for the program of each method.
        devices: Number of devices of every worker.
        most: Largest number of runs on each device.
        streamed: Whether the runs of a chunk must have seed and target in common.
        runs: Runs of each method, perhaps none.

    Returns:
        Number of runs of a device, and runs, for each chunk.
    """
    from disam_jax.dg.runners.base import by_seed_and_target, in_order

    deal = by_seed_and_target if streamed else in_order
    found: list[tuple[int, Sequence[Run]]] = []
    for name, of_method in runs.items():
        if of_method:
            per_device = programs[name]["runs_at_once"]
            size = per_device * max(1, min(devices, most // per_device))
            found += [(per_device, chunk) for chunk in deal(of_method, size)]
    return found


def chunks_on(
    client: Any,
    chunks: Sequence[tuple[int, "Sequence[Run]"]],
    options: "Compare",
    same: tuple[str, dict[str, str]],
    say: "Say",
) -> Iterator[tuple["Sequence[Run]", "Trained"]]:
    """Trains chunks on the workers of a cluster, and yields each with what came of it, as they come."""
    from disam_jax.dg.sweep.cluster import finished

    tasks = [(options, per_device, chunk, *same) for per_device, chunk in chunks]
    for number, trained in finished(client, train_chunk, tasks, say):
        yield chunks[number][1], trained


def describe_on_cluster(options: "Compare", command: str, shard: "Shard | None", say: "Say") -> Described:
    """What a worker finds out, and no more.

    Raises:
        InputError: As `run_on_cluster`.
    """
    from disam_jax.dg.sweep.cluster import finished

    with cluster_of(options) as (client, devices):
        asked = (with_full_paths(options), command, shard, devices, versions())
        ((_, described),) = finished(client, describe, [asked], say)
    return described


# What workers do.


def versions() -> dict[str, str]:
    """The versions that a client and its workers must share."""
    import importlib.metadata

    import disam_jax

    return {
        "disam_jax": disam_jax.__version__,
        **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib")},
    }


def check_versions(of_client: dict[str, str]) -> None:
    """Checks that this worker has the versions of the client.

    Raises:
        InputError: If it has not: runs of other versions do not belong into one table unseen.
    """
    here = versions()
    for name, version in of_client.items():
        if here[name] != version:
            raise InputError(
                f"the worker on {socket.gethostname()} has {name} {shown(here[name])}, the client {shown(version)}: "
                "install the same there; what was finished is kept, and the same command goes on from there"
            )


class Kept:
    """What a worker keeps between the chunks of a sweep: data, networks and compiled programs."""

    def __init__(self, options: "Compare"):
        from disam_jax.dg.cli.compare import memory_budget_of, prepare
        from disam_jax.dg.cli.compiled import keep_programs
        from disam_jax.dg.data.load import fingerprint
        from disam_jax.dg.runners import memory

        keep_programs(options.compilation_cache, lambda _: None)
        self.work = prepare(options, lambda *_: None)
        given = memory_budget_of(options)
        self.budget = memory.free_bytes() // 2 if given is None else given
        self.fingerprint = fingerprint(self.work.runs.data)
        self.runner = functools.cache(self.prepare("", None).make_runner)

    def prepare(self, command: str, shard: "Shard | None") -> "Prepared":
        """See `prepare_sweep`."""
        from disam_jax.dg.sweep.run import prepare_sweep

        runs, plan = self.work.runs, replace(self.work.plan, shard=shard)
        return prepare_sweep(
            runs.data, runs.network, self.work.config, runs.methods, plan, command, runs.own_networks, runs.new
        )


kept = functools.lru_cache(maxsize=1)(Kept)


def describe(
    options: "Compare", command: str, shard: "Shard | None", devices: int | None, of_client: dict[str, str]
) -> Described:
    """The header and the plan of a sweep."""
    from disam_jax.dg.report.environment import machine
    from disam_jax.dg.sweep.beforehand import passes_of
    from disam_jax.dg.sweep.run import most_on_a_device

    check_versions(of_client)
    with _ONE_AT_A_TIME:
        mine = kept(options)
        header = mine.prepare(command, shard).header
        most = most_on_a_device(mine.work.config, options.runs_at_once, devices or device_count())
        passes = {name: passes_of(method) for name, method in mine.work.runs.methods.items()}
        return Described(header, replace(mine.work.plan, shard=shard), most, passes, machine())


def device_count() -> int:
    """Number of devices of this worker."""
    import jax

    return jax.local_device_count()


@contextlib.contextmanager
def one_runner(
    options: "Compare", method: str, per_device: int | None, fingerprint: str, of_client: dict[str, str]
) -> "Iterator[tuple[Runner, int]]":
    """The runner of a method and the bytes that its program may take, for as long as no other chunk is trained here.

    Raises:
        InputError: If this worker has other versions than the client, or other data than the first worker.
    """
    check_versions(of_client)
    with _ONE_AT_A_TIME:
        mine = kept(options)
        check_data(mine, fingerprint)
        runner = mine.runner(method)
        runner.per_device = per_device
        yield runner, mine.budget


def settle(
    options: "Compare", runs: "Sequence[Run]", most: int, fingerprint: str, of_client: dict[str, str]
) -> dict[str, Any]:
    """What is settled for the program of a method when it is first compiled."""
    with one_runner(options, runs[0].method, None, fingerprint, of_client) as (runner, budget):
        return {
            "runs_at_once": runner.runs_at_once(runs, most * device_count(), budget),
            "flops": runner.flops(runs[0]),
        }


def blueprint_of(options: "Compare", method: str, fingerprint: str, of_client: dict[str, str]) -> "Blueprint":
    """How the network of a method is built again, for the models that the client writes."""
    check_versions(of_client)
    with _ONE_AT_A_TIME:
        mine = kept(options)
        check_data(mine, fingerprint)
        return mine.work.runs.blueprint(method)


class Trained(NamedTuple):
    """What came of a chunk.

    Attributes:
        measured: What was measured, and kept where models are saved.
        seconds: Time in which it was trained.
        compiling: Seconds in which its program was made before.
    """

    measured: dict[str, Any]
    seconds: float
    compiling: float


def train_chunk(
    options: "Compare", per_device: int, chunk: "Sequence[Run]", fingerprint: str, of_client: dict[str, str]
) -> Trained:
    """Trains and measures a chunk of runs of a method."""
    from disam_jax.dg.sweep.run import chunk_size

    with one_runner(options, chunk[0].method, per_device, fingerprint, of_client) as (runner, _):
        size = chunk_size(per_device, len(chunk), len(chunk), device_count())
        measured, seconds, compiling = [], 0.0, 0.0
        for first in range(0, len(chunk), size):
            those = list(chunk[first : first + size])
            filled = those + [those[-1]] * (size - len(those))
            began = time.perf_counter()
            runner.compile(filled)
            compiling += time.perf_counter() - began
            began = time.perf_counter()
            measured.append(cut(runner.train(filled, save=options.save), len(those)))
            seconds += time.perf_counter() - began
        return Trained(joined(measured), seconds, compiling)


def check_data(mine: Kept, fingerprint: str) -> None:
    """Checks that this worker has read the data that the first one has.

    Raises:
        InputError: If it has others.
    """
    if mine.fingerprint != fingerprint:
        name = shown(mine.work.runs.data.name)
        raise InputError(
            f"the worker on {socket.gethostname()} finds other data for {name} than the first worker: give the path of "
            "a disk that all machines share"
        )


def cut(measured: dict[str, Any], number: int) -> dict[str, Any]:
    """Of arrays [R, ...] and lists of R, the first ones."""
    return {name: cut(each, number) if isinstance(each, dict) else each[:number] for name, each in measured.items()}


def joined(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Arrays [R, ...] and lists of R of several chunks as those of one."""
    import numpy as np

    together: dict[str, Any] = {}
    for name, value in measured[0].items():
        parts = [each[name] for each in measured]
        if isinstance(value, dict):
            together[name] = joined(parts)
        elif isinstance(value, list):
            together[name] = [entry for part in parts for entry in part]
        else:
            together[name] = np.concatenate([np.asarray(part) for part in parts])
    return together
