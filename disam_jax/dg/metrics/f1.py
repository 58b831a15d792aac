"""Macro-averaged F1."""

import numpy as np

from disam_jax.dg.metrics.base import LogitMetric, confusion_counts


def macro_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean over classes of F1, the harmonic mean of precision and recall.

    F1 of a class is ``2 TP / (2 TP + FP + FN)``. The mean is over the classes that occur among labels or answers.

    Args:
        logits: float64 [n, C].
        labels: int [n].

    Returns:
        A number.

    References:
        Opitz and Burst, Macro F1 and Macro F1, arXiv:1911.03347, 2019 (the mean of F1, and not F1 of the means).

    Example:
        >>> round(macro_f1(np.array([[0.0, -1.0], [0.0, -1.0], [-1.0, 0.0]]), np.array([0, 1, 1])), 3)
        0.667
    """
    counts = confusion_counts(logits, labels)
    right, occurrences = counts.diagonal(), counts.sum(0) + counts.sum(1)
    there = occurrences > 0
    return float((2.0 * right[there] / occurrences[there]).mean())


LOGIT_METRICS = {
    "macro_f1": LogitMetric(
        macro_f1,
        "mean over classes of F1",
        r"mean over $c$ of $2 TP_c / (2 TP_c + FP_c + FN_c)$, over classes that occur among labels or answers",
    ),
}
