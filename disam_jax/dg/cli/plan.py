"""What will be run and how long it will take, before anything is trained; with --dry-run, no more than that."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import shown

if TYPE_CHECKING:
    from disam_jax.dg.cli.compare import Work
    from disam_jax.dg.cli.options import Compare
    from disam_jax.dg.cli.progress import Progress, Say
    from disam_jax.dg.sweep.run import Plan
    from disam_jax.dg.sweep.shards import Shard


class Planned(NamedTuple):
    """A sweep that is not run.

    Attributes:
        header: From `make_header`.
        plan: All runs.
        more: Further lines to print.
    """

    header: dict[str, Any]
    plan: "Plan"
    more: tuple[str, ...]


def say_if_long(work: "Work", shard: "Shard | None", out: Path, say: "Say") -> None:
    """Says what the runs that a folder does not have will take, of a large network on a CPU; nothing of others.

    Raises:
        InputError: If there are too many runs.
    """
    from disam_jax.dg.sweep.beforehand import beforehand
    from disam_jax.dg.sweep.results_file import read_written
    from disam_jax.dg.sweep.run import check_size

    check_size(work.plan)
    done = {}
    # What is wrong with the folder is told when it is opened.
    with contextlib.suppress(InputError):
        done = read_written(out).records
    runs = [run for run in replace(work.plan, shard=shard).runs if run[:4] not in done]
    line = beforehand(work.runs.data, work.runs.network, work.config, work.runs.methods, runs)
    if line is not None:
        say(line)


def run_dry(options: "Compare", command: str, shard: "Shard | None") -> None:
    """Prints what a sweep would run, once all is checked that can be without training. Nothing is written.

    Raises:
        InputError: If the sweep would be refused.
    """
    from disam_jax.dg.cli.progress import progress
    from disam_jax.dg.report.formats import print_lines
    from disam_jax.dg.sweep.ledger import start_line
    from disam_jax.dg.sweep.results_file import read_fitting

    with progress() as told:
        of_cluster = options.scheduler or options.scheduler_file
        planned = (plan_there if of_cluster else plan_here)(options, command, shard, told)
    written = None
    lines = list(planned.more)
    if not computes_first(options):
        written, aside = read_fitting(options.out, planned.header, options.overwrite)
        if aside:
            lines.append(f"--overwrite would move what {shown(options.out)} holds into a folder of its own, inside")
    else:
        lines.append(f"what {shown(options.out)} holds is not compared: that takes what the frozen weights compute")
    done = {} if written is None else written.records
    missing = {name: sum(run[:4] not in done for run in planned.plan.runs_of(name)) for name in planned.plan.candidates}
    print_lines([start_line(planned.header, missing), *lines, "dry run: nothing was trained or written"])


def computes_first(options: "Compare") -> bool:
    """Whether a frozen tower computes something of every image before anything is trained on that."""
    from disam_jax.dg.cli.compare import finetune_of

    finetune = finetune_of(options)
    return finetune is not None and bool(finetune.cache_features or finetune.train_from)


def plan_here(options: "Compare", command: str, shard: "Shard | None", told: "Progress") -> Planned:
    """Reads the data and makes the network, in this process.

    Raises:
        InputError: If they cannot be used.
    """
    from disam_jax.dg.cli.compare import prepare
    from disam_jax.dg.sweep.run import prepare_sweep

    work = prepare(options, told.show)
    runs, plan = work.runs, replace(work.plan, shard=shard)
    header, _ = prepare_sweep(
        runs.data, runs.network, work.config, runs.methods, plan, command, runs.own_networks, runs.new
    )
    more: list[str] = []
    # Otherwise the network gets what was computed of the images once.
    if not computes_first(options):
        say_if_long(work, shard, options.out, more.append)
    return Planned(header, plan, (*header["notes"], *more))


def plan_there(options: "Compare", command: str, shard: "Shard | None", told: "Progress") -> Planned:
    """The same on a worker of a cluster, which has the data.

    Raises:
        InputError: If the cluster or the data cannot be used.
    """
    from disam_jax.dg.cli.cluster import describe_on_cluster

    described = describe_on_cluster(options, command, shard, told.say)
    return Planned(described.header, described.plan, tuple(described.header["notes"]))
