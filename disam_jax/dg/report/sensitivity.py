"""How the accuracy after the last step depends on rho and lam, from runs whose candidates form a grid."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from disam_jax.dg.report.scores import score
from disam_jax.dg.report.statistics import Estimate, estimate
from disam_jax.dg.report.summary import PLAIN
from disam_jax.dg.results import Results
from disam_jax.dg.sweep.model_selection import Selected

GRID = ("rho", "lam")


class Grid(NamedTuple):
    """Held-out accuracy of one method over its grid, G points ascending in rho, then in lam.

    Attributes:
        method: name.
        rho: float [G].
        lam: float [G].
        default: bool [G], which is candidate 0.
        accuracy: percent, after the last step, mean over the targets, Estimate [G] over seeds.
        gain: the same minus ERM's with its candidate 0, paired by seed, Estimate [G]; None without ERM.
    """

    method: str
    rho: np.ndarray
    lam: np.ndarray
    default: np.ndarray
    accuracy: Estimate
    gain: Estimate | None

    def line(self, name: str, value: float) -> np.ndarray:
        """Places of the grid where "rho" or "lam" has a value, ascending in the other one."""
        return np.flatnonzero(getattr(self, name) == value)

    @property
    def default_lam(self) -> float:
        """That of candidate 0."""
        return float(self.lam[self.default.argmax()])

    @property
    def drawn_lam(self) -> float:
        """The one with the most values of rho, that of candidate 0 if it is among these."""
        values = np.unique(self.lam)
        lengths = np.array([len(self.line("lam", value)) for value in values])
        longest = values[lengths == lengths.max()]
        return self.default_lam if self.default_lam in longest else float(longest[0])


def grids(results: Results) -> tuple[Grid, ...]:
    """The grid of every method that was run with more than one rho or lam.

    Only candidates that have all other hyperparameters in common with candidate 0 belong to the grid, so that
    nothing but rho and lam differs along a line.

    Args:
        results: of the sweep.

    Returns:
        In the order of the methods; empty if every method has one point.

    Raises:
        ValueError: if a seed or a target of a candidate is missing.
    """
    last = len(results.steps) - 1
    accuracy = score(results, Selected(np.arange(len(results.runs)), np.full(len(results.runs), last))).accuracy
    plain = _by_seed(results, accuracy, PLAIN, 0) if PLAIN in results.methods else None
    found = []
    for method in results.methods:
        hparams = {run.candidate: run.hparams for run in results.runs if run.method == method}
        if 0 not in hparams:
            continue
        rest = _rest(hparams[0])
        points: dict[tuple[float, float], int] = {}
        for candidate in sorted(hparams):
            if _rest(hparams[candidate]) == rest:
                at = (float(hparams[candidate].get("rho", 0.0)), float(hparams[candidate].get("lam", 0.0)))
                points.setdefault(at, candidate)
        if len(points) < 2:
            continue
        order = sorted(points)
        values = np.stack([_by_seed(results, accuracy, method, points[at]) for at in order], 1)
        found.append(
            Grid(
                method,
                np.array([rho for rho, _ in order]),
                np.array([lam for _, lam in order]),
                np.array([points[at] == 0 for at in order]),
                estimate(values),
                None if plain is None else estimate(values - plain[:, None]),
            )
        )
    return tuple(found)


def _rest(hparams: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in hparams.items() if name not in GRID}


def _by_seed(results: Results, accuracy: np.ndarray, method: str, candidate: int) -> np.ndarray:
    """Accuracy [S], mean over the targets."""
    values = {
        (run.seed, run.target): accuracy[index]
        for index, run in enumerate(results.runs)
        if run.method == method and run.candidate == candidate
    }
    try:
        return np.array([[values[seed, target] for target in results.targets] for seed in results.seeds]).mean(1)
    except KeyError as error:
        seed, target = error.args[0]
        raise ValueError(f"no run of {method}, seed {seed}, target {target}, candidate {candidate}") from None


def usable(gain: Estimate) -> np.ndarray:
    """Where a method stays above ERM: the mean gain is more than one standard error above zero.

    Args:
        gain: Estimate [G].

    Returns:
        bool [G]; False where a run diverged or there is one seed.

    Example:
        >>> usable(Estimate(np.array([0.5, 0.1, -1.0]), np.array([0.2, 0.2, 0.2]))).tolist()
        [True, False, False]
    """
    return np.asarray(gain.mean - gain.error > 0.0)


def stretches(flags: np.ndarray) -> list[tuple[int, int]]:
    """First and last place of each run of True.

    Example:
        >>> stretches(np.array([False, True, True, False, True]))
        [(1, 2), (4, 4)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(first), int(end) - 1) for first, end in edges.reshape(-1, 2)]
