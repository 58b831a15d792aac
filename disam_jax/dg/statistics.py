"""Means over seeds, their standard errors, and paired differences."""

from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A mean over seeds and its standard error, arrays of the same shape."""

    mean: np.ndarray
    error: np.ndarray


def estimate(values: np.ndarray) -> Estimate:
    """Mean over the first axis (seeds) and its standard error, sd / sqrt(S) with S - 1 in sd.

    A value that is not finite makes both of its results non-finite.

    Args:
        values: [S, ...], at least two seeds.

    Returns:
        Estimate of shape [...].

    Raises:
        ValueError: with fewer than two seeds, which have no standard error.

    Example:
        >>> estimate(np.array([1.0, 2.0, 3.0, 6.0]))._asdict()
        {'mean': np.float64(3.0), 'error': np.float64(1.0801234497346435)}
    """
    seeds = len(values)
    if seeds < 2:
        raise ValueError(f"a standard error needs at least two seeds, got {seeds}")
    with np.errstate(invalid="ignore", over="ignore"):
        values = np.asarray(values, np.float64)
        return Estimate(values.mean(0), values.std(0, ddof=1) / np.sqrt(seeds))


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


def shown(difference: Estimate) -> bool:
    """Whether a difference is more than two standard errors from zero.

    Example:
        >>> shown(Estimate(np.array(0.3), np.array(0.2))), shown(Estimate(np.array(-0.5), np.array(0.2)))
        (False, True)
    """
    return bool(abs(difference.mean) > 2.0 * difference.error)
