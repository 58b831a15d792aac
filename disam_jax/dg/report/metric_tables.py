"""Tables of the metrics of kept logits."""

import numpy as np

from disam_jax.dg.report import formats
from disam_jax.dg.report.findings import p_text
from disam_jax.dg.report.metric_summary import MetricSummary
from disam_jax.dg.report.statistics import Estimate
from disam_jax.dg.report.summary import Comparison, Summary
from disam_jax.dg.report.tables import INDENT, NOTHING, Cell, Table, accuracy_note, estimate_cell
from disam_jax.dg.sweep.results_folder import metric_file

UNDEFINED = "not defined"


def metric_tables(summary: Summary) -> dict[str, Table]:
    """The tables of a summary's metrics, by the names of their files; nothing without metrics.

    Example:
        >>> from disam_jax.dg.report.summary import summarise
        >>> from disam_jax.dg.testing import toy_results
        >>> metric_tables(summarise(toy_results("ERM"), "last"))
        {}
    """
    made = {}
    tested = [each for each in summary.metrics if each.metric.tested]
    numbers = [each for each in tested if each.metric.parts is None]
    if numbers:
        made["kept_metrics"] = metrics_of_logits(summary, numbers)
    if any(each.comparisons[0] for each in numbers):
        made["kept_comparisons"] = comparisons_of_logits(summary, numbers)
    for each in tested:
        if each.metric.parts is not None:
            made[metric_file(each.name)] = parts_table(summary, each)
    return made


def metrics_of_logits(summary: Summary, metrics: list[MetricSummary]) -> Table:
    """Methods by metrics that are numbers."""
    rows = tuple(
        (Cell(summary.labels[name]), *(_cell(each, each.overall, k, 0) for each in metrics))
        for k, name in enumerate(summary.methods)
    )
    notes = [
        "Mean ± standard error over seeds; a seed's value is the mean over its targets, or the lowest of them. Of the "
        "examples of which the accuracy is reported.",
        accuracy_note(summary),
        *(f"{each.name}: {each.metric.note}{_in(each.metric.unit)}{_better(each)}." for each in metrics),
    ]
    return Table("Metrics of the kept logits", ("method", *(each.name for each in metrics)), rows, tuple(notes))


def comparisons_of_logits(summary: Summary, metrics: list[MetricSummary]) -> Table:
    """Differences paired by seed, with intervals and tests, for each metric that is a number."""
    rows: list[tuple[Cell, ...]] = []
    for each in metrics:
        rows.append((Cell(each.metric.note + _in(each.metric.of_differences)),))
        for compared in each.comparisons[0]:
            low, high = (float(bound) for bound in compared.interval)
            form = f"+.{each.metric.digits + 1}f"
            interval = f"[{low:{form}}, {high:{form}}]" if np.isfinite([low, high]).all() else NOTHING
            rows.append(
                (
                    Cell(INDENT + _pair(summary, compared)),
                    _difference(summary, each, compared),
                    Cell(interval, {"low": low, "high": high}),
                    *(Cell(_p(p), {"": p}) for p in (compared.p, compared.corrected)),
                )
            )
    notes = (
        "Differences are paired by seed, over the seeds and targets where the metric is defined for both methods. "
        "Mean ± standard error; 95 % interval by Student's t.",
        "p: two-sided permutation test by flipping signs; corrected: for the comparisons of a metric by Holm's method.",
    )
    columns = ("", "difference", "95 % interval", "p", "corrected")
    return Table("Paired differences of the metrics", columns, tuple(rows), notes)


def parts_table(summary: Summary, each: MetricSummary) -> Table:
    """The parts of a metric by methods, and the difference of each variant from its base with its corrected p."""
    variants = [place for place, compared in enumerate(each.comparisons[0]) if compared[:2] in summary.variants]
    rows = []
    for place, part in enumerate(each.parts):
        cells = [_cell(each, each.overall, k, place) for k in range(len(each.methods))]
        for variant in variants:
            compared = each.comparisons[place][variant]
            cells += [_difference(summary, each, compared), Cell(_p(compared.corrected), {"": compared.corrected})]
        rows.append((Cell(", ".join(part)), *cells))
    differences = [
        column for variant in variants for column in (_pair(summary, each.comparisons[0][variant]), "corrected p")
    ]
    notes = [
        f"{each.metric.note}{_in(each.metric.unit)}{_better(each)}. Mean ± standard error over seeds.",
        f"p: corrected for the {len(each.parts) * len(each.comparisons[0])} comparisons of all parts by Holm's method."
        if variants
        else "",
    ]
    title = f"{each.metric.note[0].upper()}{each.metric.note[1:]}"
    columns = (" and ".join(each.metric.part_names), *each.methods, *differences)
    return Table(title, columns, tuple(rows), tuple(note for note in notes if note))


def metric_csv(each: MetricSummary) -> str:
    """All parts of a metric by which methods are not compared.

    Args:
        each: The metric.

    Returns:
        CSV with a header line: method, the names of the part, mean, se.
    """
    lines: list[list[str]] = [["method", *each.metric.part_names, "mean", "se"]]
    for k, method in enumerate(each.methods):
        for place, part in enumerate(each.parts):
            number = (each.overall.mean[k, place], each.overall.error[k, place])
            lines.append([method, *part, *(formats.csv_number(float(value)) for value in number)])
    return formats.write_csv(lines)


def _cell(each: MetricSummary, estimates: Estimate, k: int, place: int) -> Cell:
    mean, error = float(estimates.mean[k, place]), float(estimates.error[k, place])
    bad = each.diverged[k]
    cell = estimate_cell(mean, error, f".{each.metric.digits}f", int(bad.sum()), bad.size)
    return Cell(UNDEFINED, cell.values) if cell.text == NOTHING else cell


def _difference(summary: Summary, each: MetricSummary, compared: Comparison) -> Cell:
    places = [summary.methods.index(name) for name in compared[:2]]
    bad = each.diverged[places]
    mean, error = float(compared.difference.mean), float(compared.difference.error)
    cell = estimate_cell(mean, error, f"+.{each.metric.digits + 1}f", int(bad.sum()), bad.size)
    return Cell(UNDEFINED, cell.values) if cell.text == NOTHING else cell


def _pair(summary: Summary, compared: Comparison) -> str:
    return f"{summary.labels[compared.method]} - {summary.labels[compared.baseline]}"


def _p(p: float) -> str:
    return p_text(p) if np.isfinite(p) else NOTHING


def _in(unit: str) -> str:
    return f", in {unit}" if unit else ""


def _better(each: MetricSummary) -> str:
    lowest = "; the lowest of the targets" if each.metric.over_targets == "lowest" else ""
    return lowest + ("; lower is better" if each.metric.better == "lower" else "")
