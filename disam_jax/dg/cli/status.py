"""`disam-jax status`: how far a sweep has come."""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from disam_jax.dg.progress import duration

if TYPE_CHECKING:
    from disam_jax.dg.cli.options import Status
    from disam_jax.dg.sweep.results_file import Written


def run_status(options: "Status") -> None:
    """Prints how many runs of a folder are done, missing and diverged, and how long the rest takes.

    Raises:
        InputError: If there is no results file, or it cannot be read.
    """
    from disam_jax.dg.report.formats import print_lines
    from disam_jax.dg.sweep.results_file import read_written

    print_lines(status_lines(read_written(options.folder)))


def status_lines(written: "Written") -> list[str]:
    """How far a sweep has come, in all and for each method.

    Args:
        written: What the results file says.

    Returns:
        Lines of text.
    """
    from disam_jax.dg.sweep.results_file import planned

    header = written.header
    names = planned(header)
    missing = [name for name in names if name not in written.records]
    done = len(names) - len(missing)
    of_method = lambda method, those: sum(name[0] == method for name in those)
    diverged = [name for name, record in written.records.items() if has_diverged(record)]
    lines = [f"{header['data']['name']}: {counts(done, len(names), len(diverged))}"]
    for method in header["methods"]:
        total = of_method(method, names)
        lines.append(f"  {method}: {counts(total - of_method(method, missing), total, of_method(method, diverged))}")
    if missing:
        seconds = seconds_left(written.seconds, {name: of_method(name, missing) for name in header["methods"]})
        lines.append(
            "nothing tells yet how long the rest takes"
            if seconds is None
            else f"about {duration(seconds)} left in one process, without compilation; the same command goes on"
        )
    return lines


def counts(done: int, total: int, diverged: int) -> str:
    """Numbers of runs, in words.

    Example:
        >>> counts(40, 60, 1)
        '40 of 60 runs done, 20 missing, 1 diverged'
    """
    return f"{done} of {total} runs done, {total - done} missing, {diverged} diverged"


def has_diverged(record: Mapping[str, Any]) -> bool:
    """Whether a loss of a run was ever not finite, in what a results file says of it.

    Example:
        >>> losses = {"target": 1, "losses": [[[0.5, 0.1]]], "probe_losses": [[0.5, 0.1]]}
        >>> has_diverged({**losses, "perturbed_losses": [[0.5, None]]})  # not measured on the target
        False
        >>> has_diverged({**losses, "perturbed_losses": [[None, None]]})
        True
    """
    of_sources = [[*point[: record["target"]], *point[record["target"] + 1 :]] for point in record["perturbed_losses"]]
    every = [*itertools.chain(*record["losses"]), *record["probe_losses"], *of_sources]
    return any(loss is None for losses in every for loss in losses)


def seconds_left(taken: Mapping[str, tuple[float, int]], missing: Mapping[str, int]) -> float | None:
    """How long the missing runs take, told from those that are done.

    Args:
        taken: For each method, seconds and number of runs.
        missing: For each method, number of runs.

    Returns:
        Seconds; a method of which no run is done takes as long as the others do on average. None if none is done.

    Example:
        >>> seconds_left({"ERM": (10.0, 10), "SAM": (20.0, 10)}, {"ERM": 0, "SAM": 5, "DISAM": 2})
        13.0
    """
    seconds, runs = (sum(each) for each in zip(*taken.values(), strict=True)) if taken else (0.0, 0)
    if not runs:
        return None
    each = {method: taken[method][0] / taken[method][1] if method in taken else seconds / runs for method in missing}
    return sum(number * each[method] for method, number in missing.items())
