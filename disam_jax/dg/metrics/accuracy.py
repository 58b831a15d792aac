"""Accuracy of each class, of the worst class and of the worst domain."""

import numpy as np

from disam_jax.dg.metrics.base import LogitMetric, answers, confusion_counts, ratio


def class_accuracy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The accuracy of each class, which is its recall: ``a_c = sum_i [answer_i = c][y_i = c] / sum_i [y_i = c]``.

    Args:
        logits: float64 [n, C].
        labels: int [n].

    Returns:
        float64 [C]; NaN for a class without examples.

    References:
        Sokolova and Lapalme, A Systematic Analysis of Performance Measures for Classification Tasks, Information
        Processing and Management 45, 2009.

    Example:
        >>> class_accuracy(np.array([[0.0, -1.0], [0.0, -1.0], [-1.0, 0.0]]), np.array([0, 1, 1])).tolist()
        [1.0, 0.5]
    """
    counts = confusion_counts(logits, labels)
    return ratio(counts.diagonal(), counts.sum(1))


def worst_class(logits: np.ndarray, labels: np.ndarray) -> float:
    """The lowest accuracy of a class that has examples, ``min_c a_c``.

    Args:
        logits: float64 [n, C].
        labels: int [n].

    Returns:
        A number.

    References:
        Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, ICLR 2020 (accuracy of the worst
        group; here the groups are the classes).

    Example:
        >>> worst_class(np.array([[0.0, -1.0], [0.0, -1.0], [-1.0, 0.0]]), np.array([0, 1, 1]))
        0.5
    """
    return float(np.nanmin(class_accuracy(logits, labels)))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of right answers, ``sum_i [answer_i = y_i] / n``.

    The lowest over the targets is the accuracy of the worst domain.

    Args:
        logits: float64 [n, C].
        labels: int [n].

    Returns:
        A number.

    References:
        Koh et al., WILDS: A Benchmark of in-the-Wild Distribution Shifts, ICML 2021 (accuracy of the worst domain).

    Example:
        >>> accuracy(np.array([[0.0, -1.0], [0.0, -1.0]]), np.array([0, 1]))
        0.5
    """
    return float((answers(logits) == labels).mean())


LOGIT_METRICS = {
    "class_accuracy": LogitMetric(
        class_accuracy,
        "accuracy of each class",
        r"$a_c$ = right answers among the examples of class $c$ / all of them",
        part_names=("class",),
        parts=lambda classes: [(name,) for name in classes],
    ),
    "worst_class": LogitMetric(worst_class, "accuracy of the worst class", r"$\min_c a_c$, over classes with examples"),
    "worst_domain": LogitMetric(
        accuracy,
        "accuracy of the worst target",
        r"$\min_t a_t$, $a_t$ = accuracy on the held-out domain $t$",
        needs="several targets",
        over_targets="lowest",
    ),
}
