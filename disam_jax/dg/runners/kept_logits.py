"""The logits of the target's examples along a run, of which those stay that a selection can choose.

A selection chooses the last point of a run, or that with the highest accuracy on the source domains' validation splits.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from disam_jax.dg.results import Run, RunLogits, six_digits, validation_score
from disam_jax.dg.training.evaluation import Metrics


class Examples(NamedTuple):
    """The n examples of a run's target.

    Attributes:
        labels: int [n].
        validation: Whether an example is in the validation split, bool [n].
    """

    labels: np.ndarray
    validation: np.ndarray


def on_host(measured: Metrics, runs: Sequence[Run], examples: Callable[[Run], Examples]) -> Metrics:
    """What was measured of R runs as numpy arrays, the logits as those of each run, see `by_run`."""
    measured = jax.device_get(measured)
    if measured.logits is None:
        return measured
    # Copies, since an array of the device stays in memory as long as any part of it is in use.
    of_runs = [np.array(each[: len(examples(run).labels)]) for each, run in zip(measured.logits, runs, strict=True)]
    return measured._replace(logits=by_run(of_runs))


def by_run(logits: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Logits [n, C] by the number of the run among the R of a chunk, of which some can be dropped.

    The number is a text, as files have it.
    """
    return {str(place): each for place, each in enumerate(logits)}


def best_point(points: Sequence[Metrics], place: int, target: int) -> int:
    """The point of one run, of those with logits, that ranks highest by the source domains' validation splits.

    The first point, before any step, is never chosen.

    Args:
        points: What was measured of R runs.
        place: Which of the runs.
        target: Its target.

    Returns:
        Index of the point; 0 if there is none.
    """
    there = [number for number, point in enumerate(points) if number and str(place) in (point.logits or {})]
    if not there:
        return 0
    # As they are stored and chosen by.
    accuracy, losses = (
        np.array(six_digits([getattr(points[number], name)[place] for number in there]), np.float64)
        for name in ("accuracy", "losses")
    )
    return there[int(validation_score(accuracy, losses, target).argmax())]


def forget(points: Sequence[Metrics], runs: Sequence[Run]) -> None:
    """Drops the logits that no selection can choose any more, however the run goes on.

    Those of the last point stay, and of the best one before it: the last may be measured again with averaged weights.

    Args:
        points: What was measured so far, of R runs.
        runs: R runs.
    """
    if points[-1].logits is None:
        return
    before = points[:-1]
    for place, run in enumerate(runs):
        best = best_point(before, place, run.target)
        for number, point in enumerate(before):
            if point.logits and (number != best or best == 0):
                point.logits.pop(str(place), None)


def kept_of(points: Sequence[Metrics], place: int, run: Run, examples: Examples) -> RunLogits:
    """The logits of a run at the points that a selection can choose, in their order."""
    kept = sorted({best_point(points, place, run.target), len(points) - 1})
    logits = np.stack([points[number].logits[str(place)] for number in kept])
    return RunLogits(np.array(kept, np.int32), logits, examples.labels.astype(np.int32), examples.validation)
