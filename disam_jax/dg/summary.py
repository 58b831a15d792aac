"""From the histories of ERM, SAM and DISAM to what is said about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from disam_jax.dg.protocol import History
from disam_jax.dg.scores import Scores, score
from disam_jax.dg.statistics import Estimate, estimate, paired, shown

DIFFERENCES = (("SAM", "ERM"), ("DISAM", "SAM"))
QUANTITIES = ("accuracy", "spread", "perturbed_spread", "mean_loss", "worst_loss")


@dataclass(frozen=True, eq=False)
class Summary:
    """Means with standard errors over seeds.

    Attributes:
        scores: for each method, its runs' scores.
        by_target: for each method and each difference ("DISAM - SAM"), the held-out accuracy of
            each target, Estimate [T].
        overall: for each method and each difference, an Estimate [] of each of `QUANTITIES`; a
            seed's value is the mean over its targets.
        curves: for each method, the source domains' losses at w along training, Estimate [P, D]:
            of a domain, the mean over the targets for which it is a source.
        steps: int [P], where the curves are measured.
        targets: T indices of domains.
    """

    scores: Mapping[str, Scores]
    by_target: Mapping[str, Estimate]
    overall: Mapping[str, Mapping[str, Estimate]]
    curves: Mapping[str, Estimate]
    steps: np.ndarray
    targets: tuple[int, ...]


def summarise(histories: Mapping[str, History]) -> Summary:
    """Scores all runs and averages them.

    Args:
        histories: of the methods ERM, SAM and DISAM, from the same seeds and targets.

    Returns:
        Summary.
    """
    scores = {name: score(history) for name, history in histories.items()}
    by_target = {name: estimate(each.accuracy) for name, each in scores.items()}
    overall = {name: {q: estimate(getattr(each, q).mean(1)) for q in QUANTITIES} for name, each in scores.items()}
    for name, baseline in DIFFERENCES:
        one, other = scores[name], scores[baseline]
        by_target[f"{name} - {baseline}"] = paired(one.accuracy, other.accuracy)
        overall[f"{name} - {baseline}"] = {
            q: paired(getattr(one, q).mean(1), getattr(other, q).mean(1)) for q in QUANTITIES
        }
    first = next(iter(histories.values()))
    return Summary(
        scores=scores,
        by_target=by_target,
        overall=overall,
        curves={name: _curves(history) for name, history in histories.items()},
        steps=first.steps,
        targets=tuple(int(t) for t in first.held_out.argmax(1)),
    )


def _curves(history: History) -> Estimate:
    is_source = ~history.held_out
    times_source = is_source.sum(0)
    # A domain that is the only target is never a source: it has no curve.
    with np.errstate(invalid="ignore"):
        total = np.where(is_source, history.losses.astype(np.float64), 0.0).sum(2)
        per_seed = total / np.where(times_source > 0, times_source, np.nan)
    return estimate(per_seed.swapaxes(0, 1))


def findings(summary: Summary) -> list[str]:
    """What the paired differences between DISAM and SAM allow to be said, and no more.

    Args:
        summary: of the runs.

    Returns:
        Sentences. A difference within two standard errors of zero is called not shown; a difference
        that cannot be computed, since a run diverged, is said to be so.
    """
    difference = summary.overall["DISAM - SAM"]
    return [
        finding("held-out accuracy", difference["accuracy"], "points", 2),
        finding("spread of the domain losses at w", difference["spread"], "nats", 4),
        finding("worst domain loss", difference["worst_loss"], "nats", 4),
        *few_seeds(len(summary.scores["DISAM"].accuracy)),
        *diverged_runs(summary.scores),
    ]


def finding(what: str, difference: Estimate, unit: str, digits: int) -> str:
    """One sentence about a paired difference between DISAM and SAM.

    Example:
        >>> finding("accuracy", Estimate(np.array(-0.1), np.array(0.2)), "points", 1)
        'No difference in accuracy between DISAM and SAM is shown (-0.1 ± 0.2 points).'
        >>> finding("accuracy", Estimate(np.array(-0.5), np.array(0.2)), "points", 1)
        "DISAM's accuracy is lower than SAM's here (-0.5 ± 0.2 points)."
    """
    if not np.isfinite(difference.mean):
        return f"Whether DISAM and SAM differ in {what} cannot be said: a run diverged."
    numbers = f"{difference.mean:+.{digits}f} ± {difference.error:.{digits}f} {unit}"
    if not shown(difference):
        return f"No difference in {what} between DISAM and SAM is shown ({numbers})."
    direction = "higher" if difference.mean > 0 else "lower"
    return f"DISAM's {what} is {direction} than SAM's here ({numbers})."


def few_seeds(num_seeds: int) -> list[str]:
    """A warning with fewer than ten seeds; nothing otherwise."""
    if num_seeds >= 10:
        return []
    return [f"With {num_seeds} seeds the standard errors are themselves uncertain: use 10 or more."]


def diverged_runs(scores: Mapping[str, Scores]) -> list[str]:
    """Says how many runs of which method diverged; nothing if none did."""
    lines = []
    for name, each in scores.items():
        if each.diverged.any():
            seeds = ", ".join(str(seed) for seed in np.flatnonzero(each.diverged.any(1)))
            lines.append(
                f"{each.diverged.sum()} of {each.diverged.size} runs of {name} diverged (seeds "
                f"{seeds}): a loss was not finite. Every mean that they enter says 'diverged'."
            )
    return lines


def table_rows(summary: Summary, domain_names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The table's rows: a label, and a cell for ERM, SAM, DISAM and DISAM - SAM.

    Args:
        summary: of the runs.
        domain_names: of all D domains.

    Returns:
        A heading (no cells) and one row per target with the held-out accuracy, their mean, and one
        row for each of the losses.
    """
    columns = (*summary.scores, "DISAM - SAM")
    rows: list[tuple[str, list[str]]] = [("held-out accuracy", [])]
    for place, target in enumerate(summary.targets):
        each = [_at(summary.by_target[column], place) for column in columns]
        rows.append((f"  {domain_names[target]}", _cells(each, 1)))
    for label, quantity, digits in (
        ("  mean", "accuracy", 1),
        ("spread at w", "spread", 3),
        ("spread at w + e", "perturbed_spread", 3),
        ("mean domain loss", "mean_loss", 3),
        ("worst domain loss", "worst_loss", 3),
    ):
        rows.append((label, _cells([summary.overall[c][quantity] for c in columns], digits)))
    return rows


def _at(estimates: Estimate, place: int) -> Estimate:
    return Estimate(estimates.mean[place], estimates.error[place])


def _cells(estimates: Sequence[Estimate], digits: int) -> list[str]:
    *levels, difference = estimates
    # A paired difference has the smaller error, so that one more digit of it means something.
    return [*(_cell(level, f".{digits}f") for level in levels), _cell(difference, f"+.{digits + 1}f")]


def _cell(each: Estimate, form: str) -> str:
    if not np.isfinite(each.mean):
        return "diverged"
    return f"{each.mean:{form}} ± {each.error:{form.lstrip('+')}}"
