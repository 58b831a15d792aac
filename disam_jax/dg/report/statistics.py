"""Means over seeds, their standard errors, and what paired differences show.

The seeds are the units: the S differences of two methods that share seeds are what an interval or a test is made of.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

EXACT_UP_TO = 14


class Estimate(NamedTuple):
    """A mean over seeds and its standard error, arrays of the same shape."""

    mean: np.ndarray
    error: np.ndarray


class Interval(NamedTuple):
    """Two bounds, arrays of the same shape."""

    low: np.ndarray
    high: np.ndarray


def estimate(values: np.ndarray) -> Estimate:
    """Mean over the first axis (seeds) and its standard error, sd / sqrt(S) with S - 1 in sd.

    A value that is not finite makes both of its results non-finite. One seed has no standard error: it is NaN.

    Args:
        values: [S, ...], at least one seed.

    Returns:
        Estimate of shape [...].

    Example:
        >>> estimate(np.array([1.0, 2.0, 3.0, 6.0]))._asdict()
        {'mean': np.float64(3.0), 'error': np.float64(1.0801234497346435)}
    """
    values = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        mean = values.mean(0)
        if len(values) == 1:
            return Estimate(mean, np.full_like(mean, np.nan))
        return Estimate(mean, values.std(0, ddof=1) / np.sqrt(len(values)))


def paired(values: np.ndarray, baseline: np.ndarray) -> Estimate:
    """The mean of `values - baseline`, seed by seed, and its standard error.

    The seeds share initial weights and batches, so what they have in common cancels.

    Args:
        values: [S, ...].
        baseline: [S, ...], the same seeds in the same order.

    Returns:
        Estimate of shape [...].

    Example:
        >>> difference = paired(np.array([2.0, 5.0]), np.array([1.0, 4.0]))
        >>> float(difference.mean), float(difference.error)
        (1.0, 0.0)
    """
    with np.errstate(invalid="ignore"):
        return estimate(np.asarray(values, np.float64) - np.asarray(baseline, np.float64))


def confidence_interval(differences: np.ndarray, level: float = 0.95) -> Interval:
    """Student's interval of the mean of paired differences, mean ± t(S - 1) times the standard error.

    Args:
        differences: [S, ...], one for each seed.
        level: how often such intervals hold the mean, between 0 and 1.

    Returns:
        Interval of shape [...]; NaN with one seed or where a difference is not finite.

    References:
        Student, The Probable Error of a Mean, Biometrika 6, 1908.

    Example:
        >>> low, high = confidence_interval(np.array([1.0, 2.0, 3.0]))
        >>> round(float(low), 3), round(float(high), 3)
        (-0.484, 4.484)
    """
    from scipy.stats import t

    mean, error = estimate(differences)
    if len(differences) == 1:
        return Interval(error, error)
    half = float(t.ppf(0.5 + level / 2.0, len(differences) - 1)) * error
    return Interval(mean - half, mean + half)


def permutation_test(differences: np.ndarray, num: int = 9999, seed: int = 0) -> float:
    """Two-sided test that the differences are symmetric about zero, by flipping their signs.

    The p-value is the share of sign flips whose sum is at least as far from zero as the sum observed: of all 2^S
    for up to 14 seeds, and of `num` drawn ones and the observed one, (b + 1) / (num + 1), for more.

    Args:
        differences: [S], one for each seed.
        num: how many flips are drawn.
        seed: of the generator that draws them.

    Returns:
        p, at least `smallest_p(S, num)`; NaN if a difference is not finite.

    References:
        Fisher, The Design of Experiments, 1935, section 21. Phipson and Smyth, Permutation P-values Should
        Never Be Zero, Statistical Applications in Genetics and Molecular Biology 9, 2010 (the drawn flips).

    Example:
        >>> permutation_test(np.array([1.0, 2.0, 0.5, 3.0]))
        0.125
    """
    differences = np.asarray(differences, np.float64)
    seeds = len(differences)
    if not np.isfinite(differences).all():
        return float("nan")
    if seeds <= EXACT_UP_TO:
        flips = (np.arange(2**seeds)[:, None] >> np.arange(seeds)[None, :]) & 1
    else:
        flips = np.random.default_rng(seed).integers(0, 2, (num, seeds))
    sums = np.abs((1.0 - 2.0 * flips) @ differences)
    # The order of a sum must not decide whether two equal ones tie.
    observed = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    extreme = int((sums >= observed).sum())
    return extreme / 2**seeds if seeds <= EXACT_UP_TO else (extreme + 1) / (num + 1)


def smallest_p(seeds: int, num: int = 9999) -> float:
    """The smallest p-value that `permutation_test` can return for S seeds.

    Example:
        >>> smallest_p(5)
        0.0625
    """
    return 2.0 ** (1 - seeds) if seeds <= EXACT_UP_TO else 1.0 / (num + 1)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Corrects the p-values of a family of m comparisons; below alpha, the family's error rate is below alpha.

    In ascending order, the i-th becomes the largest of (m - j + 1) p_j over j <= i, at most 1. A comparison
    that could not be made (NaN) stays NaN and counts as one of the m: which comparisons are made is decided
    before the runs, and a run that diverges must not make the others easier to show.

    Args:
        p_values: [m].

    Returns:
        Corrected p-values [m], in the order given.

    References:
        Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6, 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, np.float64)
    order = values.argsort(kind="stable")  # NaN comes last
    factors = np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * values[order]), 1.0)
    return corrected
