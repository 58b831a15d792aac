"""What the numbers of a report allow to be said, in sentences."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from disam_jax.dg.report.statistics import Estimate, smallest_p
from disam_jax.dg.report.summary import ALPHA, PLAIN, Comparison, Summary

if TYPE_CHECKING:
    from disam_jax.dg.report.metric_summary import MetricSummary

FOUND = (
    ("accuracy", "held-out accuracy", "points", 2),
    ("spread", "spread of the domain losses at w", "nats", 4),
    ("worst_loss", "worst domain loss", "nats", 4),
)


def findings(summary: Summary) -> list[str]:
    r"""Sentences that the paired differences support.

    Args:
        summary: of the runs.

    Returns:
        Sentences. Only a difference with a corrected p-value below 0.05 is claimed; any other is called not
        shown; one that cannot be computed, since a run diverged, is said to be so. A claim about a variant is
        followed by what the controls of the same base do.

    Example:
        >>> from disam_jax.dg.report.summary import summarise
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM", "SAM")
        >>> print(*findings(summarise(results, "last")), sep="\n")
        Against ERM's, the held-out accuracy is not shown to differ for SAM (+0.00, 1.000) (points, corrected p).
        With 1 seed there is no standard error and nothing can be shown: use 10 or more.
    """
    pairs = [pair for pair in summary.variants if pair[0] not in summary.controls] or summary.variants
    lines = []
    for quantity, what, unit, digits in FOUND:
        lines += _found(summary, what, summary.comparisons[quantity], pairs, unit, digits)
    lines += against_plain(summary)
    lines += below_guessing(summary)
    for each in summary.metrics:
        metric = each.metric
        if metric.tested and metric.parts is None:
            why = "a run diverged" if each.diverged.any() else f"{each.name} is not defined"
            compared, unit, digits = each.comparisons[0], metric.of_differences, metric.digits + 1
            lines += _found(summary, metric.note, compared, pairs, unit, digits, why)
        lines += undefined_runs(each)
    lines += [f"{name} was not run: nothing is compared with it." for name in summary.missing]
    return [*lines, *few_seeds(summary), *diverged_runs(summary)]


def _found(
    summary: Summary,
    what: str,
    comparisons: Sequence[Comparison],
    pairs: Sequence[tuple[str, str]],
    unit: str,
    digits: int,
    why: str = "a run diverged",
) -> list[str]:
    """What the comparisons of some pairs in one quantity allow to be said."""
    of = {each[:2]: each for each in comparisons}
    compared = [of[pair] for pair in pairs]
    lines = []
    for each in compared:
        if each.shown:
            sentence = finding(what, each, summary.labels, unit, digits)
            lines.append(" ".join([sentence, *_controls(summary, of, each, digits)]))
    failed = [each for each in compared if not np.isfinite(each.difference.mean)]
    open_ones = [each for each in compared if np.isfinite(each.difference.mean) and not each.shown]
    if len(open_ones) == 1:
        lines.append(finding(what, open_ones[0], summary.labels, unit, digits))
    elif open_ones:
        lines.append(not_shown(what, open_ones, summary.labels, unit, digits))
    if len(failed) == 1:
        lines.append(finding(what, failed[0], summary.labels, unit, digits, why))
    elif failed:
        lines.append(not_comparable(what, failed, summary.labels, why))
    return lines


def undefined_runs(of: "MetricSummary", most: int = 5) -> list[str]:
    """Says for how many runs a metric is not defined, though they did not diverge; nothing if of none.

    Args:
        of: Metric that methods are compared by; others may have parts without examples.
        most: Number of parts that are named.

    Returns:
        A sentence for each part, or how many more there are.

    Example:
        >>> from types import SimpleNamespace
        >>> metric = SimpleNamespace(tested=True)
        >>> each = {"name": "auroc", "metric": metric, "methods": ("ERM", "SAM"), "parts": ((),)}
        >>> of = SimpleNamespace(**each, undefined=np.array([[2], [2]]), values=np.zeros((2, 4, 3, 1)))
        >>> print(*undefined_runs(of))
        auroc is not defined for 2 of 12 runs of ERM, 2 of 12 runs of SAM; its means are over the others.
    """
    lines = []
    runs = of.values[0, ..., 0].size
    places = np.flatnonzero(of.undefined.any(0)) if of.metric.tested else []
    for place in places[:most]:
        part = f" of {', '.join(of.parts[place])}" if of.parts[place] else ""
        counts = [
            f"{number} of {runs} runs of {method}"
            for method, number in zip(of.methods, of.undefined[:, place], strict=True)
            if number
        ]
        lines.append(f"{of.name}{part} is not defined for {', '.join(counts)}; its means are over the others.")
    if len(places) > most:
        lines.append(f"{of.name} is not defined for some runs in {len(places) - most} more parts.")
    return lines


def finding(
    what: str,
    compared: Comparison,
    labels: Mapping[str, str],
    unit: str,
    digits: int,
    why: str = "a run diverged",
) -> str:
    """One sentence about a paired difference; `why` it cannot be computed, where it cannot.

    Example:
        >>> from disam_jax.dg.report.statistics import Interval
        >>> none = Interval(np.array(0.0), np.array(0.0))
        >>> def compared(mean, p):
        ...     each = Estimate(np.array(mean), np.array(0.2))
        ...     return Comparison("DISAM", "SAM", each, each, none, p, p)
        >>> labels = {"DISAM": "DISAM", "SAM": "SAM"}
        >>> finding("accuracy", compared(-0.1, 0.7), labels, "points", 1)
        'No difference in accuracy between DISAM and SAM is shown (-0.1 ± 0.2 points, corrected p 0.700).'
        >>> finding("accuracy", compared(-0.5, 0.004), labels, "points", 1)
        "DISAM's accuracy is lower than SAM's here (-0.5 ± 0.2 points, corrected p 0.004)."
    """
    one, other = labels[compared.method], labels[compared.baseline]
    if not np.isfinite(compared.difference.mean):
        return f"Whether {one} and {other} differ in {what} cannot be said: {why}."
    amount = f"{difference_text(compared.difference, digits)} {unit}".rstrip()
    numbers = f"{amount}, corrected p {p_text(compared.corrected)}"
    if not compared.shown:
        return f"No difference in {what} between {one} and {other} is shown ({numbers})."
    return f"{one}'s {what} is {_direction(compared)} than {other}'s here ({numbers})."


def not_shown(what: str, compared: Sequence[Comparison], labels: Mapping[str, str], unit: str, digits: int) -> str:
    """One sentence about several differences of which none is shown.

    Example:
        >>> from disam_jax.dg.report.statistics import Interval
        >>> none, each = Interval(np.array(0.0), np.array(0.0)), Estimate(np.array(1.0), np.array(2.0))
        >>> compared = [Comparison(name, "C", each, each, none, 0.7, 0.7) for name in ("A", "B")]
        >>> not_shown("loss", compared, {"A": "A", "B": "B", "C": "C"}, "nats", 0)
        'No difference in loss is shown between A and C (+1 ± 2, 0.700), B and C (+1 ± 2, 0.700) (nats, corrected p).'
    """
    pairs = ", ".join(
        f"{labels[each.method]} and {labels[each.baseline]} "
        f"({difference_text(each.difference, digits)}, {p_text(each.corrected)})"
        for each in compared
    )
    return f"No difference in {what} is shown between {pairs} ({f'{unit}, ' if unit else ''}corrected p)."


def not_comparable(
    what: str, compared: Sequence[Comparison], labels: Mapping[str, str], why: str = "a run diverged"
) -> str:
    """One sentence about several differences that cannot be computed, and why.

    Example:
        >>> from disam_jax.dg.report.statistics import Interval
        >>> none, each = Interval(np.array(np.nan), np.array(np.nan)), Estimate(np.array(np.nan), np.array(np.nan))
        >>> compared = [Comparison(name, "C", each, each, none, np.nan, np.nan) for name in ("A", "B")]
        >>> not_comparable("loss", compared, {"A": "A", "B": "B", "C": "C"})
        'Whether these differ in loss cannot be said, since a run diverged: A and C, B and C.'
    """
    pairs = ", ".join(f"{labels[each.method]} and {labels[each.baseline]}" for each in compared)
    return f"Whether these differ in {what} cannot be said, since {why}: {pairs}."


def _controls(
    summary: Summary, comparisons: Mapping[tuple[str, str], Comparison], claimed: Comparison, digits: int
) -> list[str]:
    """What the controls with the same base do, of a claim about a variant that is none itself."""
    return [
        control_finding(claimed, comparisons[name, base], summary.labels, digits)
        for name, base in summary.variants
        if name in summary.controls and base == claimed.baseline and claimed.method not in summary.controls
    ]


def control_finding(claimed: Comparison, control: Comparison, labels: Mapping[str, str], digits: int) -> str:
    """What a control of the wrong sign does where its variant differs from their base.

    Example:
        >>> from disam_jax.dg.report.statistics import Interval
        >>> def compared(name, mean, p):
        ...     each = Estimate(np.array(mean), np.array(0.2))
        ...     return Comparison(name, "SAM", each, each, Interval(each.mean, each.mean), p, p)
        >>> one, other = compared("DISAM", 0.9, 0.004), compared("NEG", -0.8, 0.008)
        >>> control_finding(one, other, {"DISAM": "DISAM", "NEG": "NEG", "SAM": "SAM"}, 1)
        'The control NEG is lower (-0.8 ± 0.2, corrected p 0.008), the other way.'
    """
    name, base = labels[control.method], labels[control.baseline]
    if not np.isfinite(control.difference.mean):
        return f"The control {name} diverged."
    numbers = f"({difference_text(control.difference, digits)}, corrected p {p_text(control.corrected)})"
    if not control.shown:
        return f"The control {name} is not shown to differ from {base} {numbers}."
    direction = _direction(control)
    if direction == _direction(claimed):
        why = "the sign of the penalty does not explain the difference"
        return f"The control {name} is {direction} as well {numbers}: {why}."
    return f"The control {name} is {direction} {numbers}, the other way."


def against_plain(summary: Summary) -> list[str]:
    """One sentence on the held-out accuracy of every method against ERM's; nothing without such a comparison.

    Example:
        >>> from disam_jax.dg.report.summary import summarise
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM", "SAM")
        >>> against_plain(summarise(results, "last"))
        ["Against ERM's, the held-out accuracy is not shown to differ for SAM (+0.00, 1.000) (points, corrected p)."]
    """
    groups: dict[str, list[str]] = {}
    for each in summary.comparisons["accuracy"]:
        if each.baseline != PLAIN:
            continue
        text = f"{summary.labels[each.method]} ({difference_text(each.difference, 2)}, {p_text(each.corrected)})"
        if not np.isfinite(each.difference.mean):
            groups.setdefault("cannot be compared, since a run diverged, for", []).append(summary.labels[each.method])
        elif each.shown:
            groups.setdefault(f"is {_direction(each)} for", []).append(text)
        else:
            groups.setdefault("is not shown to differ for", []).append(text)
    if not groups:
        return []
    plain = summary.labels[PLAIN]
    parts = [f"{verb} {', '.join(names)}" for verb, names in groups.items()]
    return [f"Against {plain}'s, the held-out accuracy {'; it '.join(parts)} (points, corrected p)."]


def below_guessing(summary: Summary) -> list[str]:
    """Explains held-out domains where every method has less than half of the accuracy of guessing.

    Example:
        >>> from types import SimpleNamespace
        >>> accuracy = Estimate(np.array([[0.0, 9.0], [0.2, 92.4]]), np.zeros((2, 2)))
        >>> print(*below_guessing(SimpleNamespace(targets=("inverted", "clean"), classes=10, accuracy=accuracy)))
        On inverted every method is far below guessing (10.0 %): what the other domains teach is wrong there.
    """
    guessing = 100.0 / summary.classes
    by_target = zip(summary.targets, summary.accuracy.mean.T, strict=True)
    names = [name for name, accuracies in by_target if (accuracies < guessing / 2).all()]
    if not names:
        return []
    return [
        f"On {', '.join(names)} every method is far below guessing ({guessing:.1f} %): what the other domains teach is "
        "wrong there."
    ]


def difference_text(difference: Estimate, digits: int) -> str:
    """A difference with its sign and its standard error, if it has one.

    Example:
        >>> difference_text(Estimate(np.array(0.5), np.array(0.25)), digits=2)
        '+0.50 ± 0.25'
    """
    if not np.isfinite(difference.error):
        return f"{difference.mean:+.{digits}f}"
    return f"{difference.mean:+.{digits}f} ± {difference.error:.{digits}f}"


def p_text(p: float) -> str:
    """A p-value of three digits.

    Example:
        >>> p_text(0.0312), p_text(0.00002)
        ('0.031', '<0.001')
    """
    return "<0.001" if p < 0.0005 else f"{p:.3f}"


def _direction(compared: Comparison) -> str:
    return "higher" if compared.difference.mean > 0 else "lower"


def few_seeds(summary: Summary) -> list[str]:
    """Warnings if the seeds are too few for standard errors or for the tests; nothing otherwise.

    Example:
        >>> from disam_jax.dg.report.summary import summarise
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM")
        >>> few_seeds(summarise(results, "last"))
        ['With 1 seed there is no standard error and nothing can be shown: use 10 or more.']
    """
    lines = []
    if summary.seeds == 1:
        lines.append("With 1 seed there is no standard error and nothing can be shown: use 10 or more.")
    elif summary.seeds < 10:
        lines.append(f"With {summary.seeds} seeds the standard errors are themselves uncertain: use 10 or more.")
    comparisons = len(summary.comparisons["accuracy"])
    if summary.seeds > 1 and comparisons and comparisons * smallest_p(summary.seeds) >= ALPHA:
        enough = next((seeds for seeds in range(2, 100) if comparisons * smallest_p(seeds) < ALPHA), None)
        lines.append(
            f"With {summary.seeds} seeds and {comparisons} comparison{'s' if comparisons > 1 else ''} the smallest "
            f"corrected p is {min(1.0, comparisons * smallest_p(summary.seeds)):.2g}: nothing can be shown"
            + ("." if enough is None else f" with fewer than {enough} seeds.")
        )
    return lines


def diverged_runs(summary: Summary) -> list[str]:
    """Says how many runs of which method diverged; nothing if none did.

    Example:
        >>> from disam_jax.dg.report.summary import summarise
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM", losses=np.nan)
        >>> print(*diverged_runs(summarise(results, "last")))
        1 of 1 runs of ERM diverged (seed 0): a loss was not finite. Every mean that they enter says 'diverged'.
    """
    lines = []
    for name, each in summary.divergence.items():
        if each.diverged:
            seeds = f"seed{'s' if len(each.seeds) > 1 else ''} {', '.join(map(str, each.seeds))}"
            lines.append(
                f"{each.diverged} of {each.runs} runs of {summary.labels[name]} diverged ({seeds}): a loss was not "
                "finite. Every mean that they enter says 'diverged'."
            )
    return lines
