"""The tables: what stands in each cell, before any format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from disam_jax.dg.report.findings import p_text
from disam_jax.dg.report.scores import QUANTITIES
from disam_jax.dg.report.statistics import Estimate
from disam_jax.dg.report.summary import ALPHA, PLAIN, Comparison, Summary, compare
from disam_jax.dg.results import Results
from disam_jax.dg.sweep.model_selection import CRITERIA

INDENT = "  "
NOTHING = "-"
QUANTITY_LABELS = {
    "accuracy": "held-out accuracy",
    "spread": "spread at w",
    "perturbed_spread": "spread at w + e",
    "mean_loss": "mean domain loss",
    "worst_loss": "worst domain loss",
    "sharpness": "sharpness",
    "target_sharpness": "target sharpness",
}
LOSSES = QUANTITIES[1:]


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what is printed.
        values: the numbers behind it for CSV and JSON, by the ending of their column's name; the mean's is "".
        best: whether it is the best of its column.
        level: whether it is not distinguishable from the best.
    """

    text: str
    values: Mapping[str, float] = field(default_factory=dict)
    best: bool = False
    level: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: one line.
        columns: names of the columns; the first is that of the labels.
        rows: cells, the label first. A row with a label alone is a heading; labels that begin with two spaces
            belong to the heading above them.
        notes: what the reader has to know, for under the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


def estimate_cell(mean: float, error: float, form: str, diverged: int = 0, of: int = 0, **marks: bool) -> Cell:
    """A mean and its standard error.

    Args:
        mean: shown as it is; NaN of a diverged run as "diverged".
        error: of the mean; NaN with one seed, where the mean stands alone.
        form: format of the mean, as in `format`.
        diverged: how many of the runs behind the mean diverged.
        of: how many runs are behind the mean.
        **marks: `best` and `level`.

    Returns:
        Cell.

    Example:
        >>> estimate_cell(93.81, 0.26, ".1f").text, estimate_cell(float("nan"), 0.0, ".1f", 1, 10).text
        ('93.8 ± 0.3', 'diverged (1 of 10)')
    """
    if diverged:
        text = f"diverged ({diverged} of {of})"
    elif not np.isfinite(mean):
        text = NOTHING
    elif not np.isfinite(error):
        text = f"{mean:{form}} ± {NOTHING}"
    else:
        text = f"{mean:{form}} ± {error:{form.lstrip('+')}}"
    return Cell(text, {"": float(mean), "se": float(error)}, **marks)


def accuracy_table(summary: Summary) -> Table:
    """Methods by targets, and the average; the best average and those that are level with it are marked."""
    diverged, of = _diverged(summary), summary.scores.diverged[0].size
    average = summary.overall["accuracy"]
    best = _best(average.mean)
    level = _level(summary, best)
    rows = []
    for k, name in enumerate(summary.methods):
        per_target = summary.scores.diverged[k].sum(0)
        rows.append(
            (
                Cell(summary.labels[name]),
                *(
                    estimate_cell(mean, error, ".1f", int(bad), summary.seeds)
                    for mean, error, bad in zip(
                        summary.accuracy.mean[k], summary.accuracy.error[k], per_target, strict=True
                    )
                ),
                _at(average, k, ".1f", diverged[k], of, best=k == best, level=name in level),
            )
        )
    notes = ["In percent, mean ± standard error over seeds.", accuracy_note(summary)]
    if best is not None:
        notes.append(
            "Bold: the highest average. †: not distinguishable from it (permutation test of the differences paired by "
            "seed, corrected for the comparisons with it by Holm's method: p of 0.05 or more)."
        )
    return Table("Held-out accuracy", ("method", *summary.targets, "average"), tuple(rows), tuple(notes))


def _best(means: np.ndarray) -> int | None:
    return int(np.nanargmax(means)) if len(means) > 1 and np.isfinite(means).any() else None


def _level(summary: Summary, best: int | None) -> set[str]:
    """Methods whose average accuracy is not distinguishable from the best one's."""
    if best is None:
        return set()
    pairs = [(name, summary.methods[best]) for k, name in enumerate(summary.methods) if k != best]
    found = compare(summary.scores, "accuracy", summary.methods, pairs)
    return {each.method for each in found if each.corrected >= ALPHA}


def comparisons_table(summary: Summary, quantities: Sequence[str] = ("accuracy",)) -> Table:
    """Differences paired by seed, with intervals and tests, for each of the quantities."""
    rows = []
    for quantity in quantities:
        digits = 2 if quantity == "accuracy" else 4
        unit = "points" if quantity == "accuracy" else "nats"
        rows.append((Cell(f"{QUANTITY_LABELS[quantity]}, in {unit}"),))
        rows += [_comparison_row(summary, each, digits) for each in summary.comparisons[quantity]]
    many = max(len(summary.comparisons[quantity]) for quantity in quantities)
    notes = (
        "Differences are paired by seed (the same initial weights and the same batches); a seed's value is the mean "
        "over its targets. Mean ± standard error; 95 % interval by Student's t.",
        f"p: two-sided permutation test by flipping signs; corrected: for the {many} comparisons of a quantity by "
        "Holm's method.",
    )
    of_losses = "" if "accuracy" in quantities else " of the losses"
    return Table(
        f"Paired differences{of_losses}", ("", "difference", "95 % interval", "p", "corrected"), tuple(rows), notes
    )


def _comparison_row(summary: Summary, each: Comparison, digits: int) -> tuple[Cell, ...]:
    low, high = (float(bound) for bound in each.interval)
    interval = f"[{low:+.{digits}f}, {high:+.{digits}f}]" if np.isfinite([low, high]).all() else NOTHING
    bad, of = _diverged_of(summary, each)
    return (
        Cell(f"{INDENT}{_pair_label(summary, each.method, each.baseline)}"),
        estimate_cell(float(each.difference.mean), float(each.difference.error), f"+.{digits}f", bad, of),
        Cell(interval, {"low": low, "high": high}),
        *(Cell(p_text(p) if np.isfinite(p) else NOTHING, {"": p}) for p in (each.p, each.corrected)),
    )


def losses_table(summary: Summary) -> Table:
    """Methods by what is measured of the losses."""
    diverged, of = _diverged(summary), summary.scores.diverged[0].size
    rows = tuple(
        (
            Cell(summary.labels[name]),
            *(_at(summary.overall[quantity], k, ".3f", diverged[k], of) for quantity in LOSSES),
        )
        for k, name in enumerate(summary.methods)
    )
    columns = ("method", *(QUANTITY_LABELS[quantity] for quantity in LOSSES))
    return Table("Domain losses and sharpness, in nats", columns, rows, loss_notes(summary))


def sharpness_table(summary: Summary) -> Table:
    """Methods by domains: the sharpness of each source domain's own loss."""
    diverged, of = _diverged(summary), summary.scores.diverged[0].size
    each = summary.domain_sharpness
    rows = tuple(
        (
            Cell(summary.labels[name]),
            *(
                estimate_cell(mean, error, ".3f", *_if_nan(mean, diverged[k], of))
                for mean, error in zip(each.mean[k], each.error[k], strict=True)
            ),
        )
        for k, name in enumerate(summary.methods)
    )
    notes = (
        _SHARPNESS,
        "Each domain as a source: mean over the targets other than itself, mean ± standard error over seeds.",
    )
    return Table("Sharpness of each domain, in nats", ("method", *summary.domains), rows, notes)


def selection_table(summaries: Mapping[str, Summary]) -> Table:
    """Average accuracy under each of the ways to choose what is reported."""
    first = next(iter(summaries.values()))
    rows = tuple(
        (
            Cell(first.labels[name]),
            *(
                _at(each.overall["accuracy"], k, ".1f", _diverged(each)[k], each.scores.diverged[0].size)
                for each in summaries.values()
            ),
        )
        for k, name in enumerate(first.methods)
    )
    notes = (
        "Held-out accuracy in percent, mean over the targets, mean ± standard error over seeds.",
        f"The columns: {'; '.join(CRITERIA[criterion].title for criterion in summaries)}.",
    )
    return Table("Average accuracy by model selection", ("method", *summaries), rows, notes)


def cost_table(results: Results, cost: Mapping[str, Mapping[str, Any]] | None = None) -> Table:
    """FLOPs of a training step and, if they are given, seconds of a run.

    Args:
        results: of the sweep; its header has the FLOPs.
        cost: for each method "flops" per training step and "seconds_per_run", each a number or None.

    Returns:
        Table.
    """
    facts = results.header["methods"]
    given: dict[str, Mapping[str, Any]] = {name: facts[name] for name in results.methods}
    for name, measured in ({} if cost is None else cost).items():
        given[name] = {**given.get(name, {}), **measured}
    flops = {name: _number(given[name].get("flops")) for name in results.methods}
    seconds = {name: _number(given[name].get("seconds_per_run")) for name in results.methods}
    largest = max((value for value in flops.values() if np.isfinite(value)), default=0.0)
    power = min(4, int(np.log10(max(largest, 1.0)) // 3))
    plain = flops.get(PLAIN, float("nan"))
    rows = []
    for name in results.methods:
        cells = [
            _plain_cell(flops[name], f"{flops[name] / 1000.0**power:#.3g}".rstrip(".")),
            _plain_cell(flops[name] / plain, f"{flops[name] / plain:.2f}"),
        ]
        if cost is not None:
            cells.append(_plain_cell(seconds[name], f"{seconds[name]:#.3g}".rstrip(".")))
        rows.append((Cell(facts[name].get("label") or name), *cells))
    columns = ["method", f"{('', 'k', 'M', 'G', 'T')[power]}FLOPs per step", f"ratio to {PLAIN}"]
    notes = ["FLOPs of one training step of one run, as the compiler counts them."]
    if cost is not None:
        columns.append("seconds per run")
        notes.append("Seconds of one run are those of all runs side by side, divided by their number.")
    return Table("Cost", tuple(columns), tuple(rows), tuple(notes))


def compare_table(summary: Summary) -> Table:
    """The small table of a few methods: quantities by methods, and the difference of each variant from its base."""
    rows: list[tuple[Cell, ...]] = [(Cell(QUANTITY_LABELS["accuracy"]),)]
    for place, target in enumerate(summary.targets):
        bad = summary.scores.diverged[:, :, place].sum(1)
        cells = [
            estimate_cell(
                summary.accuracy.mean[k, place], summary.accuracy.error[k, place], ".1f", int(bad[k]), summary.seeds
            )
            for k in range(len(summary.methods))
        ]
        for pair in summary.variants:
            each = summary.comparison("accuracy", *pair)
            both = sum(int(bad[summary.methods.index(name)]) for name in pair)
            cells.append(
                _difference_cell(each.by_target.mean[place], each.by_target.error[place], 2, both, 2 * summary.seeds)
            )
        rows.append((Cell(INDENT + target), *cells))
    for quantity, digits in (
        ("accuracy", 1),
        ("spread", 3),
        ("perturbed_spread", 3),
        ("mean_loss", 3),
        ("worst_loss", 3),
    ):
        label = f"{INDENT}mean" if quantity == "accuracy" else QUANTITY_LABELS[quantity]
        rows.append((Cell(label), *_compared_cells(summary, quantity, digits)))
    pairs = tuple(_pair_label(summary, *pair) for pair in summary.variants)
    columns = ("", *(summary.labels[name] for name in summary.methods), *pairs)
    return Table(summary.title, columns, tuple(rows), compare_notes(summary))


def _compared_cells(summary: Summary, quantity: str, digits: int) -> list[Cell]:
    diverged, of = _diverged(summary), summary.scores.diverged[0].size
    cells = [_at(summary.overall[quantity], k, f".{digits}f", diverged[k], of) for k in range(len(summary.methods))]
    for pair in summary.variants:
        each = summary.comparison(quantity, *pair)
        bad, both = _diverged_of(summary, each)
        cells.append(_difference_cell(float(each.difference.mean), float(each.difference.error), digits + 1, bad, both))
    return cells


def _difference_cell(mean: float, error: float, digits: int, diverged: int, of: int) -> Cell:
    # A paired difference has the smaller error, so that one more digit of it means something.
    return estimate_cell(mean, error, f"+.{digits}f", diverged, of)


_SHARPNESS = (
    "sharpness: the increase of a domain's loss after a step of one fixed length along its own gradient, the same "
    "length for every method, after the last step of training."
)


def accuracy_note(summary: Summary) -> str:
    """What the accuracy is measured on, and how the point is chosen."""
    return (
        "held-out accuracy: on the training split of the domain left out of training, none of which is used in "
        f"training; chosen by {CRITERIA[summary.criterion].title}."
    )


def loss_notes(summary: Summary) -> tuple[str, ...]:
    """What the columns of losses mean."""
    points = len(summary.curves.steps) - 1
    lines = [
        "spread: standard deviation of the source domains' losses on their training splits, in nats, averaged over "
        f"{points} point{'s' if points > 1 else ''} of training; at w + e on as many examples of each domain.",
        "w + e: the weights with the method's own perturbation; for a method without one, with SAM's.",
        "mean and worst domain loss: mean and largest loss of the source domains at w, in nats.",
        _SHARPNESS,
    ]
    if len(summary.domains) == 2:
        lines.append("With two domains there is one source domain: DISAM is SAM, and no spread.")
    return tuple(lines)


def compare_notes(summary: Summary) -> tuple[str, ...]:
    """What the rows of the small table mean."""
    paired = " and ".join(_pair_label(summary, *pair) for pair in summary.variants)
    first = "mean ± standard error over seeds"
    if paired:
        verb = "is" if len(summary.variants) == 1 else "are"
        first += f"; {paired} {verb} paired by seed: the same initial weights and the same batches"
    lines = [line for line in loss_notes(summary) if line != _SHARPNESS]
    return (f"{first}.", f"{accuracy_note(summary)[:-1]}; in percent.", *lines)


def _pair_label(summary: Summary, method: str, baseline: str) -> str:
    return f"{summary.labels[method]} - {summary.labels[baseline]}"


def _diverged(summary: Summary) -> list[int]:
    return summary.scores.diverged.sum((1, 2)).tolist()


def _diverged_of(summary: Summary, each: Comparison) -> tuple[int, int]:
    """How many of the chosen runs of both methods diverged."""
    places = [summary.methods.index(name) for name in (each.method, each.baseline)]
    diverged = summary.scores.diverged[places]
    return int(diverged.sum()), diverged.size


def _if_nan(mean: float, diverged: int, of: int) -> tuple[int, int]:
    return (0, 0) if np.isfinite(mean) else (diverged, of)


def _at(estimates: Estimate, k: int, form: str, diverged: int, of: int, **marks: bool) -> Cell:
    return estimate_cell(float(estimates.mean[k]), float(estimates.error[k]), form, diverged, of, **marks)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _plain_cell(value: float, text: str) -> Cell:
    return Cell(text if np.isfinite(value) else NOTHING, {"": value})
