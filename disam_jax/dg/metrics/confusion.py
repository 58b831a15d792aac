"""Which class is taken for which."""

from typing import Any

import numpy as np

from disam_jax.dg.metrics.base import LogitMetric, confusion_counts, ratio


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The confusion matrix, of which each row sums to 1: ``m_ck = sum_i [y_i = c][answer_i = k] / sum_i [y_i = c]``.

    Args:
        logits: float64 [n, C].
        labels: int [n].

    Returns:
        float64 [C * C], labels by answers; NaN in the row of a class without examples.

    References:
        Sokolova and Lapalme, A Systematic Analysis of Performance Measures for Classification Tasks, Information
        Processing and Management 45, 2009.

    Example:
        >>> confusion(np.array([[0.0, -1.0], [0.0, -1.0], [-1.0, 0.0]]), np.array([0, 1, 1])).tolist()
        [1.0, 0.0, 0.5, 0.5]
    """
    counts = confusion_counts(logits, labels)
    return ratio(counts, counts.sum(1, keepdims=True)).reshape(-1)


def _draw(summary: Any, look: Any) -> Any:
    from disam_jax.dg.report.metric_figures import draw_confusion

    return draw_confusion(summary, look)


LOGIT_METRICS = {
    "confusion": LogitMetric(
        confusion,
        "confusion matrix",
        r"$m_{ck}$ = answers $k$ among the examples of class $c$ / all of them; figure",
        part_names=("class", "answer"),
        parts=lambda classes: [(label, answer) for label in classes for answer in classes],
        tested=False,
        draw=_draw,
    ),
}
