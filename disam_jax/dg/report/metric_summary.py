"""Metrics of kept logits, averaged over seeds and compared as the accuracy is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from disam_jax.dg.errors import InputError
from disam_jax.dg.metrics.base import LogitMetric
from disam_jax.dg.metrics.registry import find_metrics
from disam_jax.dg.reading import shown
from disam_jax.dg.report.statistics import Estimate, confidence_interval, holm, paired, permutation_test
from disam_jax.dg.report.summary import Comparison, Summary
from disam_jax.dg.results import Results, RunLogits
from disam_jax.dg.sweep.model_selection import select


@dataclass(frozen=True, eq=False)
class MetricSummary:
    """One metric of the chosen runs.

    Attributes:
        name: Name of the metric.
        metric: The metric.
        methods: What the tables call each of K methods.
        classes: C names.
        parts: P parts, each a tuple of names; one empty tuple for a metric that is a number.
        values: Of each run, in the metric's unit, float64 [K, S, T, P]; NaN where it is not defined, or the run
            diverged.
        diverged: Whether a run diverged, bool [K, S, T].
        overall: Estimate [K, P]. A seed's value is the mean over the targets where the metric is defined, or the lowest
            of them; a seed without any is left out.
        by_target: Estimate [K, T, P].
        comparisons: For each part, those of `Summary.comparisons`; p is corrected for all of this metric's.
    """

    name: str
    metric: LogitMetric
    methods: tuple[str, ...]
    classes: tuple[str, ...]
    parts: tuple[tuple[str, ...], ...]
    values: np.ndarray
    diverged: np.ndarray
    overall: Estimate
    by_target: Estimate
    comparisons: tuple[tuple[Comparison, ...], ...]

    @property
    def undefined(self) -> np.ndarray:
        """Number of runs of each method that did not diverge and of which the metric is not defined, int [K, P]."""
        return (np.isnan(self.values) & ~self.diverged[..., None]).sum((1, 2))


def with_metrics(summary: Summary, results: Results, out: Path, names: Sequence[str]) -> Summary:
    """The summary with metrics of the logits in a folder.

    Args:
        summary: Summary under the criterion that is reported.
        results: Results of that folder.
        out: The folder.
        names: Names of metrics, see `find_metrics`; () for all that are for so many classes, where logits were kept.

    Returns:
        Summary.

    Raises:
        InputError: If a metric is unknown, no logits were kept, or they cannot be read.

    Example:
        >>> from disam_jax.dg.report.summary import summarise
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM")
        >>> with_metrics(summarise(results, "last"), results, Path("toy"), names=()).metrics
        ()
    """
    kept = results.header.get("setting", {}).get("keep_logits", False)
    metrics = find_metrics(names or (["all"] if kept else []), len(results.header["data"]["classes"]))
    if not metrics:
        return summary
    if not kept:
        raise InputError(
            f"{shown(out)} has no logits, from which --metrics are computed: train these runs again with --keep-logits "
            "and another --out"
        )
    # Only now, since it reads the results once more to find the files.
    from disam_jax.dg.sweep.logits_files import read_logits
    from disam_jax.dg.sweep.results_file import read_written

    selected = select(results, summary.criterion)
    values = {
        name: np.full((*selected.run.shape, len(parts_of(metric, results))), np.nan) for name, metric in metrics.items()
    }
    places: dict[int, list[tuple[int, ...]]] = {}
    for place, index in np.ndenumerate(selected.run):
        if not summary.scores.diverged[place]:
            places.setdefault(int(index), []).append(place)
    for index, logits in read_logits(out, read_written(out).chunk_of, results, sorted(places)):
        for place in places[index]:
            measured = measure_run(logits, int(selected.point[place]), metrics, str(shown(out)))
            for name, value in measured.items():
                values[name][place] = value
    made = (summarise_metric(name, metric, values[name], summary, results) for name, metric in metrics.items())
    return replace(summary, metrics=tuple(made))


def parts_of(metric: LogitMetric, results: Results) -> tuple[tuple[str, ...], ...]:
    """The parts of a metric; one empty tuple for a metric that is a number."""
    return ((),) if metric.parts is None else tuple(metric.parts(results.header["data"]["classes"]))


def measure_run(kept: RunLogits, point: int, metrics: Mapping[str, LogitMetric], where: str) -> dict[str, np.ndarray]:
    """Metrics of the examples of which the accuracy is reported, those of the target's training split.

    Args:
        kept: What was kept of a run that did not diverge.
        point: Point of training, an index into `Results.steps`.
        metrics: Metrics by name.
        where: Folder, for messages.

    Returns:
        float64 [P] for each name, in the metric's unit.

    Raises:
        InputError: If the logits of this point were not kept, or a metric breaks its contract.

    Example:
        >>> from disam_jax.dg.metrics.registry import LOGIT_METRICS
        >>> logits = np.array([[[0.0, -1.0], [0.0, -1.0]]], np.float16)
        >>> kept = RunLogits(np.array([3]), logits, np.array([0, 1]), np.array([False, True]))
        >>> measure_run(kept, 3, {"worst_class": LOGIT_METRICS["worst_class"]}, "DIR")["worst_class"].tolist()
        [100.0]
    """
    (at,) = np.nonzero(kept.points == point)
    if not len(at):
        raise InputError(f"{where} has no logits at the point of training that is chosen: train these runs again")
    reported = ~kept.validation
    logits, labels = kept.logits[at[0]][reported].astype(np.float64), kept.labels[reported]
    if not np.isfinite(logits).all():
        raise InputError(f"{where} has logits that are not finite, of a run that did not diverge: train it again")
    found = {}
    for name, metric in metrics.items():
        value = np.asarray(metric.of_run(logits, labels), np.float64)
        wanted = () if metric.parts is None else (len(metric.parts([""] * logits.shape[-1])),)
        if value.shape != wanted:
            raise InputError(f"metric {name} must return an array of shape {list(wanted)}, got {list(value.shape)}")
        found[name] = value.reshape(-1) * (100.0 if metric.unit == "percent" else 1.0)
    return found


def summarise_metric(
    name: str, metric: LogitMetric, values: np.ndarray, summary: Summary, results: Results
) -> MetricSummary:
    """Averages a metric over seeds and compares the methods.

    Args:
        name: Name of the metric.
        metric: The metric.
        values: float64 [K, S, T, P]; NaN where it is not defined or the run diverged.
        summary: Summary of the same runs.
        results: Results that they are of.

    Returns:
        MetricSummary.
    """
    diverged = summary.scores.diverged
    by_seed = over_targets(values, diverged, metric)
    bad = np.any(diverged, -1)
    pairs = [(each.method, each.baseline) for each in summary.comparisons["accuracy"]] if metric.tested else []
    return MetricSummary(
        name,
        metric,
        tuple(summary.labels[each] for each in summary.methods),
        tuple(results.header["data"]["classes"]),
        parts_of(metric, results),
        values,
        diverged,
        estimate_defined(by_seed.swapaxes(0, 1), bad.T),
        estimate_defined(values.swapaxes(0, 1), diverged.swapaxes(0, 1)),
        compare_parts(values, by_seed, diverged, metric, summary.methods, pairs),
    )


def over_targets(values: np.ndarray, diverged: np.ndarray, metric: LogitMetric) -> np.ndarray:
    """The values of seeds.

    Args:
        values: float64 [..., S, T, P].
        diverged: bool [..., S, T].
        metric: The metric.

    Returns:
        The mean over the targets where the metric is defined, or the lowest of them, float64 [..., S, P]; NaN where it
        is defined for none, or a run diverged.
    """
    defined = ~np.isnan(values)
    if metric.over_targets == "lowest":
        found = np.where(defined, values, np.inf).min(-2)
        found[~defined.any(-2)] = np.nan
    else:
        count = defined.sum(-2)
        found = np.where(defined, values, 0.0).sum(-2) / np.where(count, count, np.nan)
    return np.where(np.any(diverged, -1, keepdims=True), np.nan, found)


def estimate_defined(values: np.ndarray, diverged: np.ndarray) -> Estimate:
    """Mean over the seeds where a metric is defined, and its standard error.

    Args:
        values: float64 [S, ..., P].
        diverged: bool [S, ...].

    Returns:
        Estimate [..., P]; NaN where a run diverged, or there is no seed.

    Example:
        >>> found = estimate_defined(np.array([[1.0], [3.0], [np.nan]]), np.zeros(3, bool))
        >>> found.mean.tolist(), found.error.tolist()
        ([2.0], [1.0])
    """
    defined = ~np.isnan(values)
    count = np.where(defined.any(0), defined.sum(0), np.nan)
    mean = np.where(defined, values, 0.0).sum(0) / count
    squares = np.where(defined, values - mean, 0.0) ** 2
    error = np.sqrt(squares.sum(0) / np.where(count > 1, count - 1, np.nan) / count)
    bad = np.any(diverged, 0)[..., None]
    return Estimate(np.where(bad, np.nan, mean), np.where(bad, np.nan, error))


def compare_parts(
    values: np.ndarray,
    by_seed: np.ndarray,
    diverged: np.ndarray,
    metric: LogitMetric,
    methods: Sequence[str],
    pairs: Sequence[tuple[str, str]],
) -> tuple[tuple[Comparison, ...], ...]:
    """Compares pairs of methods in each part of a metric, over the seeds where it is defined for both.

    Args:
        values: float64 [K, S, T, P].
        by_seed: float64 [K, S, P].
        diverged: bool [K, S, T].
        metric: The metric.
        methods: K names.
        pairs: (method, baseline), names. With the parts they are the family for which p is corrected.

    Returns:
        For each part, a comparison for each pair.
    """
    place = {name: k for k, name in enumerate(methods)}
    made = []
    for part in range(values.shape[-1]):
        for one, other in pairs:
            k, j = place[one], place[other]
            # A target where only one of the two is defined does not tell them apart.
            apart = values[k, ..., part] - values[j, ..., part]
            if metric.over_targets == "mean":
                difference = over_targets(apart[..., None], diverged[k] | diverged[j], metric)[..., 0]
            else:
                difference = by_seed[k, :, part] - by_seed[j, :, part]
            bad = bool((diverged[k] | diverged[j]).any())
            there = difference[~np.isnan(difference)]
            known = not bad and len(there) > 0
            there = there if known else np.full(max(len(difference), 1), np.nan)
            by_target = estimate_defined(apart[..., None], diverged[k] | diverged[j])
            made.append((one, other, there, Estimate(by_target.mean[..., 0], by_target.error[..., 0])))
    p_values = [permutation_test(there) for _, _, there, _ in made]
    corrected = holm(p_values)
    compared = [
        Comparison(
            one, other, paired(there, np.zeros(len(there))), by_target, confidence_interval(there), p, float(each)
        )
        for (one, other, there, by_target), p, each in zip(made, p_values, corrected, strict=True)
    ]
    number = len(pairs)
    return tuple(tuple(compared[part * number : (part + 1) * number]) for part in range(values.shape[-1]))
