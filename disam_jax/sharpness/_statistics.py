"""Means with their intervals."""

from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A mean over independent samples and the interval of Student's t around it.

    Attributes:
      mean: float64.
      low: float64, same shape, lower end of the interval.
      high: float64, same shape, upper end.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def student(samples: np.ndarray, confidence: float) -> Estimate:
    """``mean +- t * s / sqrt(n)`` over the first axis, with t of n - 1 degrees of freedom.

    Args:
      samples: ``[n, ...]``, n at least 2.
      confidence: Of the interval, between 0 and 1.

    Returns:
      Estimate ``[...]``.
    """
    from scipy.special import stdtrit

    samples = np.asarray(samples, np.float64)
    n = len(samples)
    mean = samples.mean(0)
    half = stdtrit(n - 1, (1 + confidence) / 2) * samples.std(0, ddof=1) / np.sqrt(n)
    return Estimate(mean, mean - half, mean + half)


def check_sampling(samples: int, confidence: float) -> None:
    """An error unless an interval can be had."""
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 2:
        raise ValueError(f"samples must be at least 2, for an interval, got {samples!r}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}. Write 0.95 for 95 %.")
