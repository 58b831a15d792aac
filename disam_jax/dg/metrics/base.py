"""What a metric of kept logits is, and what several of them need."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from disam_jax.dg.report.metric_figures import Look
    from disam_jax.dg.report.metric_summary import MetricSummary

    Draw = Callable[[MetricSummary, Look], Figure]
else:
    Draw = Callable[..., Any]


class LogitMetric(NamedTuple):
    """A number, or several, of one run: of the logits and labels of all examples that are reported.

    Attributes:
        of_run: (logits float64 [n, C], the largest of each example 0; labels int [n]; n at least 1) -> a number, or as
            many as there are `parts`. NaN where the metric is not defined.
        note: One line for the list of metrics and the tables.
        formula: The formula in Markdown, for the documentation.
        needs: What it needs beside logits and labels, for the documentation.
        classes: Number of classes that it is for; None for any.
        part_names: What distinguishes the parts, for example ("class",); () for a single number.
        parts: Function from the names of the C classes to the parts, each a tuple as long as `part_names`.
        over_targets: Value of a seed: the mean over the targets, or the lowest of them.
        unit: "percent" for fractions, which tables then show times 100; any other text as it is, "" for none.
        digits: Decimal places in the tables.
        better: Which values are better.
        tested: Whether methods are compared by it. Parts that are too many to compare have a file of their own, and a
            figure.
        draw: Function from a `MetricSummary` and a `Look` to a figure, if there is one.
    """

    of_run: Callable[[np.ndarray, np.ndarray], Any]
    note: str
    formula: str
    needs: str = ""
    classes: int | None = None
    part_names: tuple[str, ...] = ()
    parts: Callable[[Sequence[str]], Sequence[tuple[str, ...]]] | None = None
    over_targets: Literal["mean", "lowest"] = "mean"
    unit: str = "percent"
    digits: int = 1
    better: Literal["higher", "lower"] = "higher"
    tested: bool = True
    draw: Draw | None = None

    @property
    def of_differences(self) -> str:
        """Unit of differences."""
        return "points" if self.unit == "percent" else self.unit


def answers(logits: np.ndarray) -> np.ndarray:
    """The class with the largest logit, the first of several, int [n].

    Example:
        >>> answers(np.array([[0.0, -1.0], [-2.0, 0.0], [0.0, 0.0]])).tolist()
        [0, 1, 0]
    """
    return logits.argmax(-1)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax, ``p_c = exp(l_c) / sum_k exp(l_k)``.

    Args:
        logits: float64 [n, C].

    Returns:
        float64 [n, C].

    Example:
        >>> probabilities(np.array([[0.0, 0.0], [0.0, -np.inf]])).tolist()
        [[0.5, 0.5], [1.0, 0.0]]
    """
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def confusion_counts(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Number of examples of each class with each predicted class.

    Args:
        logits: float [n, C].
        labels: int [n].

    Returns:
        int [C, C], labels by answers.

    Example:
        >>> confusion_counts(np.array([[0.0, -1.0], [0.0, -1.0], [-1.0, 0.0]]), np.array([0, 1, 1])).tolist()
        [[1, 0], [1, 1]]
    """
    classes = logits.shape[-1]
    return np.bincount(labels * classes + answers(logits), minlength=classes**2).reshape(classes, classes)


def ratio(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """One array divided by another one, NaN where that is zero.

    Example:
        >>> ratio(np.array([1, 0]), np.array([2, 0])).tolist()
        [0.5, nan]
    """
    return np.divide(
        one, other, out=np.full(np.broadcast_shapes(np.shape(one), np.shape(other)), np.nan), where=other > 0
    )
