"""What of a sweep is on disk and what is left, and what is said of it: the same in one process and on a cluster."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from disam_jax.dg.progress import OnProgress, TimeToGo
from disam_jax.dg.results import Run
from disam_jax.dg.sweep.logits_files import size_line
from disam_jax.dg.sweep.models import ModelStore
from disam_jax.dg.sweep.results_file import Store, planned
from disam_jax.dg.sweep.shards import Shard

if TYPE_CHECKING:
    from disam_jax.dg.sweep.run import Plan

OnLine = Callable[[str], None]
OnRecords = Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], None]


def nobody(*_: Any) -> None:
    """Is told, and does nothing."""


class Listeners(NamedTuple):
    """Whom a sweep tells how far it is.

    Attributes:
        show: Called with what is going on, how many runs are done and how many there are.
        say: Called with a line that is kept.
        log: Called with a line whenever a chunk is on disk.
        estimate: Called before `show` with how long the rest takes, in words; empty where that is not known.
        records: Called whenever a chunk is on disk, with its runs as the results file has them, and its header.
    """

    show: OnProgress = nobody
    say: OnLine = nobody
    log: OnLine = nobody
    estimate: OnLine = nobody
    records: OnRecords = nobody


class Ledger:
    """Keeps account of the runs of a sweep: which are missing, how long they take, and what is said as they come.

    Args:
        plan: All runs.
        header: From `make_header`.
        store: Results of the folder.
        models: Models of the folder.
        passes: For each method, the number of forward and backward passes in a step.
        tell: Who is told.
        side_by_side: Number of chunks that are trained at the same time.
    """

    def __init__(
        self,
        plan: "Plan",
        header: Mapping[str, Any],
        store: Store,
        models: ModelStore,
        passes: Mapping[str, float],
        tell: Listeners,
        side_by_side: int = 1,
    ):
        self.plan, self.header, self.store, self.models, self.tell = plan, header, store, models, tell
        self.missing = {name: [run for run in plan.runs_of(name) if not store.has(run)] for name in plan.candidates}
        to_train = {name: len(runs) for name, runs in self.missing.items()}
        self.total = len(plan.runs)
        self.done = self.total - sum(to_train.values())
        self.left = TimeToGo(to_train, passes, side_by_side=side_by_side)
        self._seconds: dict[str, list[float]] = {name: [] for name in plan.candidates}

    def begin(self, keep_logits: bool, out: Path) -> None:
        """Says what will be run, before anything is trained."""
        if self.store.aside is not None:
            self.tell.say(f"the earlier results are in {self.store.aside} now")
        self.tell.say(start_line(self.header, {name: len(runs) for name, runs in self.missing.items()}))
        to_train = [run for runs in self.missing.values() for run in runs]
        if keep_logits and (line := size_line(to_train, self.header, out)):
            self.tell.say(line)

    def show(self, what: str, more: float = 0.0) -> None:
        """Shows what is going on, with `more` runs done than there are on disk."""
        self.tell.estimate(self.left.text())
        self.tell.show(what, self.done + more, self.total)

    def counting(self, what: str, step: float) -> Callable[[], None]:
        """A function that shows `step` more runs at each call."""
        count = itertools.count(1)
        return lambda: self.show(what, step * next(count))

    def keep(self, chunk: Sequence[Run], measured: Mapping[str, Any], seconds: float, trained: int) -> None:
        """Writes what was measured of a chunk of runs, which were missing.

        Args:
            chunk: R runs of one method.
            measured: What their runner returned.
            seconds: Time in which they were trained.
            trained: Number of runs that were trained in that time, with those that only fill a program up.
        """
        name = chunk[0].method
        self.store.chunk(name, chunk, measured, seconds)
        self.tell.records([self.store.records[run[:4]] for run in chunk], self.header)
        self._seconds[name].append(seconds / trained)
        self.left.trained(name, len(chunk), seconds)
        self.keep_models(chunk, measured)
        self.done += len(chunk)

    def say_kept(self, method: str, what: str) -> None:
        """Shows and says that a chunk of a method is on disk."""
        self.show(what)
        self.tell.log(chunk_line(method, self.done, self.total, self.left.text()))

    def keep_models(self, chunk: Sequence[Run], measured: Mapping[str, Any]) -> None:
        """Writes the models of a chunk of runs that are in the results."""
        self.models.write(chunk, measured, self.plan.runs_of(chunk[0].method), self.store)

    def without_model(self, method: str) -> list[Run]:
        """Runs of a method whose model is wanted and not there; says how many, if there are any.

        It can be asked when all runs of the method are there, since these decide which has a model.
        """
        runs = self.models.missing(self.plan.runs_of(method), self.store)
        if runs:
            self.tell.say(missing_line(method, len(runs)))
        return runs

    def cost(self) -> dict[str, dict[str, Any]]:
        """For each method its "flops" and "seconds_per_run", see `run_sweep`."""
        return {
            name: {
                "flops": self.store.programs.get(name, {}).get("flops"),
                "seconds_per_run": sum(seconds) / len(seconds) if seconds else None,
            }
            for name, seconds in self._seconds.items()
        }


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
