"""How good forecasts are of gains that their model has not seen.

The model that forecasts the gain of a target has seen nothing of its group, neither in its coefficients nor in the
strength of its penalty.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from disam_jax.dg.diagnosis.table import Table

# Of the penalty, for standardised signals; infinity is the forecast that knows no signal.
STRENGTHS = (*np.geomspace(0.1, 1e4, 26).tolist(), math.inf)
# Share of the gains that an interval is to hold.
COVERAGE = 0.9
ALPHA = 0.05


class Ridge(NamedTuple):
    """Ridge regression on standardised signals, as a linear map of the gains, for A strengths of the penalty.

    Attributes:
        center: Mean of each signal, float64 [K].
        scale: Its standard deviation, float64 [K].
        maps: From the gains less their mean to the coefficients, float64 [A, K, n].
    """

    center: np.ndarray
    scale: np.ndarray
    maps: np.ndarray


class Smoother(NamedTuple):
    """Linear map from the gains of some rows to forecasts of others, for A strengths.

    Attributes:
        train: Rows of the gains, int [n].
        test: Rows that are forecast, int [m].
        maps: From the gains less their mean to the forecasts less it, float64 [A, m, n].
    """

    train: np.ndarray
    test: np.ndarray
    maps: np.ndarray

    def __call__(self, gain: np.ndarray) -> np.ndarray:
        """Forecasts [A, m, ...] from the gains of all rows, [N, ...]."""
        mean = gain[self.train].mean(0)
        return mean + np.tensordot(self.maps, gain[self.train] - mean, axes=1)


def scales(signals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each signal; 1 for one that is constant.

    Example:
        >>> [each.tolist() for each in scales(np.array([[1.0, 5.0], [3.0, 5.0]]))]
        [[2.0, 5.0], [1.0, 1.0]]
    """
    deviation = signals.std(0)
    # A mean of equal numbers may be off by its last digit.
    constant = deviation <= 1e-12 * np.abs(signals).max(0)
    return signals.mean(0), np.where(constant, 1.0, deviation)


def ridge(signals: np.ndarray) -> Ridge:
    """Ridge regression for each of `STRENGTHS`.

    With the standardised signals Z, the coefficients of gains y are `(Z'Z + strength)^-1 Z' (y - mean(y))`.

    Args:
        signals: float64 [n, K].

    Returns:
        Ridge.

    Example:
        >>> fitted = ridge(np.array([[0.0], [1.0], [2.0]]))
        >>> coefficients = fitted.maps @ np.array([-1.0, 0.0, 1.0])
        >>> round(float(coefficients[0, 0]), 2), float(coefficients[-1, 0])
        (0.79, 0.0)
    """
    center, scale = scales(signals)
    known = (signals - center) / scale
    values, vectors = np.linalg.eigh(known.T @ known)
    shrunk = np.stack([1.0 / (np.maximum(values, 0.0) + strength) for strength in STRENGTHS])
    return Ridge(center, scale, np.einsum("jk,ak,kn->ajn", vectors, shrunk, (known @ vectors).T))


def smoother(signals: np.ndarray, train: np.ndarray, test: np.ndarray) -> Smoother:
    """Forecasts of some rows from the gains of others, for each of `STRENGTHS`.

    A signal beyond those of the others is taken as the nearest of them: a line says nothing of what lies outside.

    Args:
        signals: float64 [N, K].
        train: Rows to fit on, int [n].
        test: Rows to forecast, int [m].

    Returns:
        Smoother.

    Example:
        >>> fitted = smoother(np.array([[0.0], [2.0], [1.5], [9.0]]), np.array([0, 1]), np.array([2, 3]))
        >>> forecasts = fitted(np.array([0.0, 2.0, np.nan, np.nan]))
        >>> forecasts[0].round(2).tolist(), forecasts[-1].tolist()
        ([1.48, 1.95], [1.0, 1.0])
    """
    known = signals[train]
    fitted = ridge(known)
    asked = (np.clip(signals[test], known.min(0), known.max(0)) - fitted.center) / fitted.scale
    return Smoother(train, test, asked @ fitted.maps)


class Fold(NamedTuple):
    """A group that is held out.

    Attributes:
        outer: Forecasts it from all other groups.
        inner: Forecast each of these from the rest of them, to choose a strength.
    """

    outer: Smoother
    inner: tuple[Smoother, ...]


def leave_one_out(signals: np.ndarray, rows: np.ndarray, groups: np.ndarray) -> tuple[Smoother, ...]:
    """Smoothers that forecast each group of some rows from the others.

    Args:
        signals: float64 [N, K].
        rows: int [R].
        groups: Group of each of these, int [R].

    Returns:
        A smoother for each group.

    Example:
        >>> [each.test.tolist() for each in leave_one_out(np.zeros((3, 1)), np.arange(3), np.array([0, 1, 1]))]
        [[0], [1, 2]]
    """
    return tuple(smoother(signals, rows[groups != each], rows[groups == each]) for each in np.unique(groups))


def folds(signals: np.ndarray, groups: np.ndarray) -> tuple[Fold, ...]:
    """Leave one group out, and another one within what is left.

    Args:
        signals: float64 [N, K].
        groups: Group of each row, int [N].

    Returns:
        A fold for each group.

    Example:
        >>> found = folds(np.zeros((3, 1)), np.array([0, 1, 2]))
        >>> found[0].outer.test.tolist(), [each.test.tolist() for each in found[0].inner]
        ([0], [[1], [2]])
    """
    rows = np.arange(len(groups))
    found = []
    for group in np.unique(groups):
        left = rows[groups != group]
        inner = leave_one_out(signals, left, groups[left])
        found.append(Fold(smoother(signals, left, rows[groups == group]), inner))
    return tuple(found)


def best_strength(smoothers: Sequence[Smoother], gain: np.ndarray) -> np.ndarray:
    """Place in `STRENGTHS` of the one whose forecasts have the least squared error.

    Of equal ones the strongest is taken, which says least.

    Args:
        smoothers: Each forecasts a group from others.
        gain: float64 [N, ...].

    Returns:
        int [...].

    Example:
        >>> signals, rows = np.arange(4.0)[:, None], np.arange(4)
        >>> int(best_strength(leave_one_out(signals, rows, groups=rows), gain=np.arange(4.0)))
        0
    """
    errors = np.sum([((each(gain) - gain[each.test]) ** 2).sum(1) for each in smoothers], axis=0)
    return len(errors) - 1 - np.argmin(errors[::-1], axis=0)


def out_of_sample(found: Sequence[Fold], gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts of each group by a model that was fitted on the others.

    Args:
        found: From `folds`.
        gain: float64 [N, ...].

    Returns:
        Forecasts [N, ...] from the signals, and those of the mean gain of the other groups.

    Example:
        >>> signals = np.tile(np.arange(3.0), 3)[:, None]
        >>> model, constant = out_of_sample(folds(signals, np.arange(9) // 3), 2 * signals[:, 0])
        >>> model.round(1).tolist()[:3], constant.tolist()[:3]
        ([0.0, 2.0, 4.0], [2.0, 2.0, 2.0])
    """
    model, constant = np.empty_like(gain), np.empty_like(gain)
    for outer, inner in found:
        forecasts = outer(gain)
        best = best_strength(inner, gain)[None, None]
        model[outer.test] = np.take_along_axis(forecasts, best, axis=0)[0]
        constant[outer.test] = forecasts[-1]
    return model, constant


class Measures(NamedTuple):
    """How good forecasts are; numbers, or arrays [...] of several tables of gains.

    Attributes:
        r2: 1 minus their squared error over that of the mean gain: above 0 where signals help.
        rank_correlation: Spearman's, between forecasts and gains.
        right_signs: Share of the forecasts that have the sign of the gain.
        error: Mean absolute error, in points.
        constant_signs: `right_signs` of the mean gain.
        constant_error: `error` of the mean gain.
    """

    r2: Any
    rank_correlation: Any
    right_signs: Any
    error: Any
    constant_signs: Any
    constant_error: Any


def measures(model: np.ndarray, constant: np.ndarray, gain: np.ndarray) -> Measures:
    """How good forecasts are beside those of the mean gain.

    Args:
        model: Forecasts, float64 [N, ...].
        constant: Those of the mean gain, float64 [N, ...].
        gain: What came, float64 [N, ...].

    Returns:
        Measures with arrays [...].

    Example:
        >>> found = measures(np.array([1.0, 2.0]), np.array([1.5, 1.5]), np.array([1.0, 3.0]))
        >>> float(found.r2), float(found.right_signs), float(found.error), float(found.constant_error)
        (0.6, 1.0, 0.5, 1.0)
    """
    squares = ((constant - gain) ** 2).sum(0)
    # Gains that are all equal differ from their mean by rounding.
    known = squares <= 1e-24 * (gain**2).sum(0)
    signs = lambda forecast: (np.sign(forecast) == np.sign(gain)).mean(0)
    error = lambda forecast: np.abs(forecast - gain).mean(0)
    return Measures(
        np.where(known, 0.0, 1.0 - ((model - gain) ** 2).sum(0) / np.where(known, 1.0, squares)),
        rank_correlation(model, gain),
        signs(model),
        error(model),
        signs(constant),
        error(constant),
    )


def rank_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the first axis; 0 where all of one are equal.

    Example:
        >>> float(rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.2, 0.3])))
        1.0
    """
    from scipy.stats import rankdata

    ranks = [rankdata(each, axis=0) - (len(each) + 1) / 2 for each in (one, other)]
    norm = np.sqrt((ranks[0] ** 2).sum(0) * (ranks[1] ** 2).sum(0))
    return (ranks[0] * ranks[1]).sum(0) / np.where(norm > 0, norm, 1.0)


def permuted(gain: np.ndarray, data_sets: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gains that signals cannot predict, clustered like the real ones.

    Means of data sets are exchanged among the data sets; what a target differs by from its data set, among the targets
    of this; and what a row differs by from its target, among the rows of this.

    Args:
        gain: float64 [N].
        data_sets: Number of the data set of each row, int [N].
        targets: Number of the held-out domain of each row, int [N].
        rng: Generator.

    Returns:
        float64 [N].

    Example:
        >>> one = permuted(np.array([1.0, 3.0]), np.array([0, 0]), np.array([0, 1]), np.random.default_rng(0))
        >>> sorted(one.tolist())
        [1.0, 3.0]
    """
    rows = np.arange(len(gain))
    by_data = _means(gain, data_sets)
    by_target = _means(gain, targets)
    # The data set of each target, and the target of each row.
    data_of = data_sets[np.unique(targets, return_index=True)[1]]
    return (
        rng.permutation(by_data)[data_sets]
        + _within(by_target - by_data[data_of], data_of, rng)[targets]
        + _within(gain - by_target[targets], targets[rows], rng)
    )


def _means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return np.bincount(groups, values) / np.bincount(groups)


def _within(values: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    found = np.empty_like(values)
    for group in np.unique(groups):
        found[groups == group] = rng.permutation(values[groups == group])
    return found


@dataclass(frozen=True)
class Reliability:
    """How good the forecasts of groups are that the model had not seen.

    Attributes:
        groups: Number of groups, each held out once.
        measures: Of the forecasts.
        p: For r2, rank_correlation, right_signs and error, the share of permuted gains on which the same procedure does
            at least as well.
        half_width: Points around a forecast that hold `COVERAGE` of the gains.
        constant_half_width: The same around the mean gain.
    """

    groups: int
    measures: Measures
    p: Mapping[str, float]
    half_width: float
    constant_half_width: float

    @property
    def foretells(self) -> bool:
        """Whether signals do better than the mean gain, beyond chance."""
        return self.measures.r2 > 0 and self.p["r2"] < ALPHA


# Larger is better, but for the error.
TESTED = {"r2": 1.0, "rank_correlation": 1.0, "right_signs": 1.0, "error": -1.0}


def reliability(table: Table, groups: np.ndarray, permutations: int = 999, seed: int = 0) -> Reliability:
    """Holds out one group after the other, and does the same on permuted gains.

    Args:
        table: Table.
        groups: Group of each row, int [N].
        permutations: Number of permutations.
        seed: Of the generator that draws them.

    Returns:
        Reliability.

    Example:
        >>> from disam_jax.dg.diagnosis.table import Table
        >>> rows = np.arange(12)
        >>> names = tuple("abcd"[row // 3] for row in rows)
        >>> table = Table(names, names, tuple(map(str, rows)), rows % 3.0, rows * 0.0, rows[:, None] % 3.0, ("x",))
        >>> found = reliability(table, table.data_sets, permutations=39)
        >>> found.groups, found.foretells
        (4, True)
    """
    found = folds(table.signals, groups)
    model, constant = out_of_sample(found, table.gain)
    observed = Measures(*map(float, measures(model, constant, table.gain)))
    rng = np.random.default_rng(seed)
    draw = lambda: permuted(table.gain, table.data_sets, table.targets, rng)
    gains = np.stack([draw() for _ in range(permutations)], axis=1)
    by_chance = measures(*out_of_sample(found, gains), gains)
    p = {}
    for name, sign in TESTED.items():
        # The order of a sum must not decide whether two equal values tie.
        as_good = sign * (getattr(by_chance, name) - getattr(observed, name)) >= -1e-12
        p[name] = (int(as_good.sum()) + 1) / (permutations + 1)
    return Reliability(
        len(found),
        observed,
        p,
        half_width(model - table.gain),
        half_width(constant - table.gain),
    )


def half_width(errors: np.ndarray) -> float:
    """Half the width of an interval that holds `COVERAGE` of the gains, from errors of forecasts out of sample.

    It is the `ceil(COVERAGE (N + 1))`-th of the N absolute errors, as in conformal prediction; the largest one where
    there are too few.

    References:
        Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, Springer 2005.

    Example:
        >>> half_width(np.array([-1.0, 2.0, 0.5]))
        2.0
    """
    absolute = np.sort(np.abs(errors))
    return float(absolute[min(math.ceil(COVERAGE * (len(absolute) + 1)), len(absolute)) - 1])
