"""The metrics of kept logits by name."""

from collections.abc import Sequence

from disam_jax.dg.data.names import hint
from disam_jax.dg.errors import InputError
from disam_jax.dg.metrics.base import LogitMetric
from disam_jax.dg.registry import Registry

LOGIT_METRICS: Registry[LogitMetric] = Registry(
    "metric",
    LogitMetric,
    "disam_jax.dg.metrics",
    "LOGIT_METRICS",
    "disam_jax.logit_metrics",
    first=("accuracy", "f1", "auroc", "calibration", "confusion"),
)
ALL, NONE = "all", "none"


def find_metrics(names: Sequence[str], classes: int) -> dict[str, LogitMetric]:
    """Metrics by name, each once.

    Upper and lower case are the same, and so are hyphens and underscores: "Macro-F1" is "macro_f1".

    Args:
        names: Names of metrics, also several with commas between; "all" for all that are for so many classes, "none".
        classes: Number C of classes.

    Returns:
        Metrics, in the order of the names.

    Raises:
        InputError: If a name is unknown, or a metric that is named is for another number of classes.

    Example:
        >>> list(find_metrics(["ECE,macro-f1"], classes=7)), "auroc" in find_metrics(["all"], classes=7)
        (['ece', 'macro_f1'], False)
        >>> find_metrics(["auroc"], classes=7)
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: --metrics auroc is for 2 classes, the results have 7: leave it out
    """
    known = {_key(name): name for name in LOGIT_METRICS}
    asked = [name for each in names for name in each.split(",") if name]
    if NONE in map(str.lower, asked) and len(asked) > 1:
        raise InputError(f"--metrics {NONE} stands alone, got {' '.join(asked)}")
    found: dict[str, LogitMetric] = {}
    for given in asked:
        name = known.get(_key(given))
        if given.lower() == ALL:
            found |= {each: metric for each, metric in LOGIT_METRICS.items() if metric.classes in (None, classes)}
        elif name is not None:
            found[name] = LOGIT_METRICS[name]
        elif given.lower() != NONE:
            every, near = ", ".join(LOGIT_METRICS), hint(given, LOGIT_METRICS)
            raise InputError(f"unknown --metrics {given}: the metrics are {every}, {ALL} and {NONE}{near}")
    for name, metric in found.items():
        if metric.classes not in (None, classes):
            raise InputError(
                f"--metrics {name} is for {metric.classes} classes, the results have {classes}: leave it out"
            )
    return found


def _key(name: str) -> str:
    return name.lower().replace("-", "_")
