"""Whether answers are right as often as they are sure: expected calibration error and reliability diagram."""

import itertools
from typing import Any

import numpy as np

from disam_jax.dg.metrics.base import LogitMetric, answers, probabilities, ratio

BINS = 15
EDGES = np.linspace(0.0, 1.0, BINS + 1)


def reliability(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Accuracy and confidence of answers that are as sure: the numbers behind a reliability diagram.

    Confidence is the largest probability. Bin b of 15 has the examples with a confidence in ((b - 1) / 15, b / 15].

    Args:
        logits: float64 [n, C].
        labels: int [n].

    Returns:
        float64 [45]: for each bin its share of the examples, mean confidence, and accuracy; the latter two NaN in a bin
        without examples.

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 2.

    Example:
        >>> found = reliability(np.array([[0.0, -9.0], [0.0, -9.0]]), np.array([0, 1])).reshape(15, 3)
        >>> found[-1].round(3).tolist(), found[0].tolist()
        ([1.0, 1.0, 0.5], [0.0, nan, nan])
    """
    confidence = probabilities(logits).max(-1)
    right = answers(logits) == labels
    place = np.searchsorted(EDGES[1:-1], confidence, side="left")
    count = np.bincount(place, minlength=BINS)
    total = lambda values: np.bincount(place, weights=values, minlength=BINS)
    return np.stack([count / len(labels), ratio(total(confidence), count), ratio(total(right), count)], -1).reshape(-1)


def ece(logits: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error with 15 bins of equal width.

    ``sum_b (n_b / n) abs(a_b - p_b)`` with the accuracy ``a_b`` and the mean confidence ``p_b`` of the ``n_b`` examples
    of bin b; see `reliability`.

    Args:
        logits: float64 [n, C].
        labels: int [n].

    Returns:
        A number.

    References:
        Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015.
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (15 bins).

    Example:
        >>> round(ece(np.array([[0.0, -9.0], [0.0, -9.0]]), np.array([0, 1])), 3)
        0.5
    """
    share, confidence, right = reliability(logits, labels).reshape(BINS, 3).T
    return float(np.nansum(share * np.abs(right - confidence)))


def _draw(summary: Any, look: Any) -> Any:
    from disam_jax.dg.report.metric_figures import draw_reliability

    return draw_reliability(summary, look)


LOGIT_METRICS = {
    "ece": LogitMetric(
        ece,
        "expected calibration error",
        r"$\sum_b \frac{n_b}{n} \lvert a_b - \bar{p_b} \rvert$, 15 bins of equal width of the confidence",
        better="lower",
    ),
    "reliability": LogitMetric(
        reliability,
        "accuracy of answers by confidence",
        r"$n_b / n$, $\bar{p_b}$, $a_b$ of each bin $b$; figure",
        part_names=("bin", "what"),
        parts=lambda _: [
            (f"{low:.2f} to {high:.2f}", what)
            for low, high in itertools.pairwise(EDGES)
            for what in ("share", "confidence", "accuracy")
        ],
        tested=False,
        draw=_draw,
    ),
}
