"""What is measured of every example along training."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from disam_jax.dg.errors import InputError
from disam_jax.dg.registry import Registry
from disam_jax.dg.training.step import example_losses


class Metric(NamedTuple):
    """A number for each example, averaged over the training and the validation split of every domain.

    Attributes:
        of_examples: (logits [N, C], labels int32 [N]) -> float32 [N].
        note: One line for the list of metrics and the tables.
        digits: Decimal places in the tables.
    """

    of_examples: Callable[[jax.Array, jax.Array], jax.Array]
    note: str
    digits: int = 3


def is_right(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 where the largest logit is that of the label, else 0.

    Example:
        >>> is_right(jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([1, 1])).tolist()
        [1.0, 0.0]
    """
    return (logits.argmax(-1) == labels).astype(jnp.float32)


# These have fields of their own in the results and tables of their own in the report.
FIXED = ("losses", "accuracy")

EXAMPLE_METRICS = {
    "losses": Metric(example_losses, "cross-entropy in nats"),
    "accuracy": Metric(is_right, "fraction of right answers"),
}

# Every file of this package with a table EXAMPLE_METRICS. Whatever is here is measured, stored and reported.
METRICS: Registry[Metric] = Registry(
    "metric", Metric, "disam_jax.dg.training", "EXAMPLE_METRICS", "disam_jax.metrics", first=("metrics",)
)


def extra_metrics() -> tuple[str, ...]:
    """Names of the metrics that are not `FIXED`.

    Example:
        >>> set(extra_metrics()) & set(FIXED)
        set()
    """
    return tuple(name for name in METRICS if name not in FIXED)


def measure_examples(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Every metric of N examples.

    Args:
        logits: float [N, C].
        labels: int32 [N].

    Returns:
        float32 [N] for each name.

    Raises:
        InputError: If a metric returns anything but one number for each example.

    Example:
        >>> values = measure_examples(jnp.array([[0.0, 0.0], [0.0, 9.0]]), jnp.array([0, 0]))
        >>> values["accuracy"].tolist(), round(float(values["losses"][0]), 3)
        ([1.0, 0.0], 0.693)
    """
    values = {}
    for name, metric in METRICS.items():
        value = jnp.asarray(metric.of_examples(logits, labels))
        if value.shape != labels.shape or not jnp.issubdtype(value.dtype, jnp.floating):
            raise InputError(
                f"metric {name} must return one floating-point number for each example, {list(labels.shape)}, got "
                f"{value.dtype}{list(value.shape)}: leave the mean over examples out"
            )
        values[name] = value.astype(jnp.float32)
    return values
