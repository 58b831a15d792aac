"""Chooses the rule of each budget from the runs of the search, as the protocol says."""

from collections.abc import Mapping

import numpy as np

from benchmarks.fast.plan import PENALTIES, SEARCHED, Way
from benchmarks.fast.run import Raw
from disam_jax.dg.report.statistics import Estimate, paired


def over_runs(raw: Raw, name: str, other: str, field: str) -> Estimate:
    """Mean of name - other and its standard error, over seeds and targets."""
    return paired(*(raw.of(each, field)[0].reshape(-1) for each in (name, other)))


def difference_in_errors(raw: Raw, name: str, other: str, field: str) -> float:
    """(mean of name - other) / standard error, over seeds and targets.

    NaN where a run diverged; 0 where the two are the same in every run.
    """
    mean, error = over_runs(raw, name, other, field)
    return 0.0 if error == 0.0 and mean == 0.0 else float(mean / error)


def score(runs: Mapping[str, Raw], way: Way) -> float:
    """How a way compares with full DISAM of the same penalty, mean over the data sets.

    For each data set min(a, 1) - max(s, 0): a is the difference in accuracy and s that in the spread of the domain
    losses, in standard errors. Minus infinity for a way of which a run diverged.

    Args:
        runs: Runs of the search for each data set.
        way: A way that all of them have.
    """
    found = []
    for raw in runs.values():
        accuracy, spread = (
            difference_in_errors(raw, way.title, way.penalty, field) for field in ("accuracy", "spread")
        )
        found.append(min(accuracy, 1.0) - max(spread, 0.0) if np.isfinite([accuracy, spread]).all() else -np.inf)
    return float(np.mean(found))


def candidates(budget: float) -> list[Way]:
    """The ways that cost no more than a budget and have the schedule of all.

    Example:
        >>> any(way.cosine or way.cost > 1.05 for way in candidates(1.05))
        False
    """
    usual = Way()
    return [
        way
        for way in SEARCHED
        if way.cost <= budget and (way.decay, way.cosine) == (usual.decay, usual.cosine) and way.penalty in PENALTIES
    ]


def choose(runs: Mapping[str, Raw], budget: float) -> Way:
    """The way with the highest score; of several, the cheapest.

    Args:
        runs: Runs of the search for each data set.
        budget: Plain steps per step, over the whole training.
    """
    return max(candidates(budget), key=lambda way: (score(runs, way), -way.cost))
