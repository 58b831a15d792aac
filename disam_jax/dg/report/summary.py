"""From the results of a sweep to what is said about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from disam_jax.dg.report.scores import QUANTITIES, Scores, ever_diverged, held_out_of, score
from disam_jax.dg.report.statistics import (
    Estimate,
    Interval,
    confidence_interval,
    estimate,
    holm,
    paired,
    permutation_test,
    smallest_p,
)
from disam_jax.dg.results import TRAIN, Results
from disam_jax.dg.sweep.model_selection import select

ALPHA = 0.05
PLAIN = "ERM"


class Comparison(NamedTuple):
    """One method against another in one quantity, paired by seed; a seed's value is the mean over its targets.

    Attributes:
        method: name.
        baseline: name.
        difference: method minus baseline, Estimate [].
        by_target: the same for each target, Estimate [T].
        interval: 95 % confidence interval of the difference.
        p: of the permutation test.
        corrected: p corrected for all comparisons of this quantity.
    """

    method: str
    baseline: str
    difference: Estimate
    by_target: Estimate
    interval: Interval
    p: float
    corrected: float

    @property
    def shown(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.corrected < ALPHA


class Divergence(NamedTuple):
    """How many runs of a method diverged, whether chosen or not.

    Attributes:
        diverged: number of these.
        runs: number of all its runs.
        seeds: those in which one did, ascending.
    """

    diverged: int
    runs: int
    seeds: tuple[int, ...]


class Curves(NamedTuple):
    """What the chosen runs did along training, means over seeds and their standard errors.

    Attributes:
        steps: int [P].
        domain_losses: losses of the source domains at w on the training splits, in nats, Estimate [K, P, D]: of a
            domain, the mean over the targets for which it is a source; NaN if there is none.
        loss: their mean over the source domains, Estimate [K, P].
        accuracy: percent of right answers on the held-out domain's training split, Estimate [K, P].
    """

    steps: np.ndarray
    domain_losses: Estimate
    loss: Estimate
    accuracy: Estimate


@dataclass(frozen=True, eq=False)
class Summary:
    """Means over seeds with standard errors, under one way to choose what is reported.

    Attributes:
        title: one line that says what was run.
        criterion: how runs and points were chosen, one of `selection.CRITERIA`.
        methods: K names.
        labels: what the tables call each method.
        targets: T names of domains.
        domains: D names.
        seeds: S.
        scores: of the chosen runs, [K, S, T].
        accuracy: of each target, Estimate [K, T].
        overall: of each of `QUANTITIES`, Estimate [K]; a seed's value is the mean over its targets.
        domain_sharpness: Estimate [K, D]; of a domain, the mean over the targets for which it is a source.
        variants: the pairs (method, its base) that are compared apart from ERM.
        controls: names of the methods that are controls (lam < 0).
        missing: names of the bases and of ERM that are not among the methods.
        comparisons: for each quantity, the variants against their bases, then every method against ERM.
        divergence: of each method.
        curves: along training.
    """

    title: str
    criterion: str
    methods: tuple[str, ...]
    labels: Mapping[str, str]
    targets: tuple[str, ...]
    domains: tuple[str, ...]
    seeds: int
    scores: Scores
    accuracy: Estimate
    overall: Mapping[str, Estimate]
    domain_sharpness: Estimate
    variants: tuple[tuple[str, str], ...]
    controls: tuple[str, ...]
    missing: tuple[str, ...]
    comparisons: Mapping[str, tuple[Comparison, ...]]
    divergence: Mapping[str, Divergence]
    curves: Curves

    def comparison(self, quantity: str, method: str, baseline: str) -> Comparison:
        """The one of these two methods."""
        return next(each for each in self.comparisons[quantity] if each[:2] == (method, baseline))


def title(results: Results) -> str:
    """One line that says what was run; rho and lam where every run that has one has the same.

    Example:
        >>> from disam_jax.dg.results import Run
        >>> runs = tuple(Run("SAM", 0, seed, 0, {"rho": 0.05}) for seed in range(3))
        >>> results = Results({"data": {"name": "toy"}}, runs, np.array([0, 100]), *[np.zeros(0)] * 5)
        >>> title(results)
        'toy, leave one domain out: 3 seeds, 100 steps, rho 0.05'
    """
    parts = [f"{len(results.seeds)} seed{'s' if len(results.seeds) > 1 else ''}", f"{results.steps[-1]} steps"]
    for name in ("rho", "lam"):
        values = {float(run.hyper[name]) for run in results.runs if run.hyper.get(name, 0.0) != 0.0}
        if len(values) == 1:
            parts.append(f"{name} {values.pop():g}")
    return f"{results.header['data']['name']}, leave one domain out: {', '.join(parts)}"


def variants_of(methods: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """The pairs (method, base) other than with ERM, of the methods that are there.

    Example:
        >>> variants_of({"ERM": {}, "SAM": {"base": "ERM"}, "DISAM": {"base": "SAM"}})
        (('DISAM', 'SAM'),)
    """
    bases = {name: facts.get("base") for name, facts in methods.items()}
    return tuple((name, base) for name, base in bases.items() if base in methods and base not in (PLAIN, name))


def summarise(results: Results, criterion: str, seed: int = 0) -> Summary:
    """Scores the chosen runs, averages them and compares the methods.

    Args:
        results: of the sweep.
        criterion: how to choose, one of `selection.CRITERIA`.
        seed: of the permutation tests with more seeds than are tested exactly.

    Returns:
        Summary.

    Raises:
        ValueError: on an unknown criterion, or if a run is missing.

    Example:
        >>> from disam_jax.dg.results import Run
        >>> header = {"data": {"name": "toy", "domains": {"photo": 9, "sketch": 9}}, "methods": {"ERM": {}, "SAM": {}}}
        >>> runs, ones = tuple(Run(name, 1, 0, 0, {}) for name in ("ERM", "SAM")), np.ones((2, 2, 2, 2))
        >>> results = Results(header, runs, np.arange(2), ones, ones, *[ones[:, 0]] * 2, ones[:, 0, 0])
        >>> summary = summarise(results, "last")
        >>> summary.methods, summary.targets, summary.accuracy.mean.tolist()
        (('ERM', 'SAM'), ('sketch',), [[100.0], [100.0]])
    """
    facts = results.header["methods"]
    methods = results.methods
    selected = select(results, criterion)
    scores = score(results, selected)
    by_seed = {quantity: getattr(scores, quantity).mean(-1) for quantity in QUANTITIES}
    variants = variants_of(facts)
    pairs = [*variants, *((name, PLAIN) for name in methods if PLAIN in methods and name != PLAIN)]
    wanted = [PLAIN, *(base for name in methods if (base := facts[name].get("base")) is not None)]
    held_out = held_out_of(results, selected.run)
    sharpness = np.where(scores.diverged[..., None], np.nan, results.sharpness[selected.run])
    return Summary(
        title=title(results),
        criterion=criterion,
        methods=methods,
        labels={name: facts[name].get("label") or name for name in methods},
        targets=tuple(results.domain_names[target] for target in results.targets),
        domains=results.domain_names,
        seeds=len(results.seeds),
        scores=scores,
        accuracy=estimate(scores.accuracy.swapaxes(0, 1)),
        overall={quantity: estimate(values.T) for quantity, values in by_seed.items()},
        domain_sharpness=estimate(_as_source(sharpness, held_out).swapaxes(0, 1)),
        variants=variants,
        controls=tuple(name for name in methods if facts[name].get("control") is True),
        missing=tuple(dict.fromkeys(name for name in wanted if name not in methods)),
        comparisons={quantity: compare(scores, quantity, methods, pairs, seed) for quantity in QUANTITIES},
        divergence=_divergence(results),
        curves=_curves(results, selected.run, held_out),
    )


def compare(
    scores: NamedTuple, quantity: str, methods: Sequence[str], pairs: Sequence[tuple[str, str]], seed: int = 0
) -> tuple[Comparison, ...]:
    """Compares pairs of methods in one quantity; the pairs are the family for which p is corrected.

    Args:
        scores: arrays [K, S, T] by name, `Scores` or others.
        quantity: name of one of them.
        methods: K names.
        pairs: (method, baseline), names.
        seed: of the permutation test.

    Returns:
        A comparison for each pair.

    Example:
        >>> values = np.array([[[60.0], [61.0]], [[62.0], [63.5]]])  # two methods, two seeds, one target
        >>> (found,) = compare(Scores(*[values] * 8), "accuracy", ["ERM", "SAM"], [("SAM", "ERM")])
        >>> found.method, found.baseline, float(found.difference.mean), found.p
        ('SAM', 'ERM', 2.25, 0.5)
    """
    values = dict(zip(methods, getattr(scores, quantity), strict=True))
    with np.errstate(invalid="ignore"):
        differences = [(values[one] - values[other]).mean(-1) for one, other in pairs]
    p_values = [permutation_test(each, seed=seed) for each in differences]
    corrected = holm(p_values)
    return tuple(
        Comparison(
            one,
            other,
            estimate(difference),
            paired(values[one], values[other]),
            confidence_interval(difference),
            p,
            float(corrected[place]),
        )
        for place, ((one, other), difference, p) in enumerate(zip(pairs, differences, p_values, strict=True))
    )


def _divergence(results: Results) -> dict[str, Divergence]:
    diverged = ever_diverged(results)
    found = {}
    for name in results.methods:
        of_method = [index for index, run in enumerate(results.runs) if run.method == name]
        bad = [index for index in of_method if diverged[index]]
        seeds = tuple(sorted({results.runs[index].seed for index in bad}))
        found[name] = Divergence(len(bad), len(of_method), seeds)
    return found


def _as_source(values: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Mean over the targets for which a domain is a source: [K, S, T, x, D] and [K, S, T] to [K, S, x, D]."""
    is_source = np.arange(values.shape[-1]) != held_out[..., None]
    further = tuple(range(3, values.ndim - 1))
    is_source = np.broadcast_to(np.expand_dims(is_source, further), values.shape)
    times = is_source.sum(2)
    with np.errstate(invalid="ignore"):
        return np.where(is_source, values, 0.0).sum(2) / np.where(times > 0, times, np.nan)


def _curves(results: Results, run: np.ndarray, held_out: np.ndarray) -> Curves:
    losses = results.losses[run, :, TRAIN]
    of_target = np.take_along_axis(results.accuracy[run, :, TRAIN], held_out[..., None, None], -1)[..., 0]
    is_source = np.arange(losses.shape[-1]) != held_out[..., None, None]
    finite = np.isfinite(losses).all(-1)
    with np.errstate(invalid="ignore", over="ignore"):
        mean_loss = np.where(is_source, losses, 0.0).sum(-1) / (losses.shape[-1] - 1)
        accuracy = np.where(finite, 100.0 * of_target, np.nan)
        return Curves(
            results.steps,
            estimate(_as_source(losses, held_out).swapaxes(0, 1)),
            estimate(mean_loss.mean(2).swapaxes(0, 1)),
            estimate(accuracy.mean(2).swapaxes(0, 1)),
        )


FOUND = (
    ("accuracy", "held-out accuracy", "points", 2),
    ("spread", "spread of the domain losses at w", "nats", 4),
    ("worst_loss", "worst domain loss", "nats", 4),
)


def findings(summary: Summary) -> list[str]:
    r"""What the paired differences allow to be said, and no more.

    Args:
        summary: of the runs.

    Returns:
        Sentences. Only a difference with a corrected p-value below 0.05 is claimed; any other is called not
        shown; one that cannot be computed, since a run diverged, is said to be so. A claim about a variant is
        followed by what the controls of the same base do.

    Example:
        >>> from disam_jax.dg.results import Run
        >>> header = {"data": {"name": "toy", "domains": {"photo": 9, "sketch": 9}}, "methods": {"ERM": {}, "SAM": {}}}
        >>> runs, ones = tuple(Run(name, 1, 0, 0, {}) for name in ("ERM", "SAM")), np.ones((2, 2, 2, 2))
        >>> results = Results(header, runs, np.arange(2), ones, ones, *[ones[:, 0]] * 2, ones[:, 0, 0])
        >>> print(*findings(summarise(results, "last")), sep="\n")
        Against ERM's, the held-out accuracy is not shown to differ for SAM (+0.00, 1.000) (points, corrected p).
        With 1 seed there is no standard error and nothing can be shown: use 10 or more.
    """
    pairs = [pair for pair in summary.variants if pair[0] not in summary.controls] or summary.variants
    lines = []
    for quantity, what, unit, digits in FOUND:
        compared = [summary.comparison(quantity, *pair) for pair in pairs]
        claimed = [each for each in compared if each.shown]
        failed = [each for each in compared if not np.isfinite(each.difference.mean)]
        open_ones = [each for each in compared if np.isfinite(each.difference.mean) and not each.shown]
        for each in claimed:
            sentence = finding(what, each, summary.labels, unit, digits)
            lines.append(" ".join([sentence, *_controls(summary, quantity, each, digits)]))
        for group, several in ((open_ones, not_shown), (failed, not_comparable)):
            if len(group) == 1:
                lines.append(finding(what, group[0], summary.labels, unit, digits))
            elif group:
                lines.append(several(what, group, summary.labels, unit, digits))
    lines += against_plain(summary)
    lines += [f"{name} was not run: nothing is compared with it." for name in summary.missing]
    return [*lines, *few_seeds(summary), *diverged_runs(summary)]


def finding(what: str, compared: Comparison, labels: Mapping[str, str], unit: str, digits: int) -> str:
    """One sentence about a paired difference.

    Example:
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
        return f"Whether {one} and {other} differ in {what} cannot be said: a run diverged."
    numbers = f"{difference_text(compared.difference, digits)} {unit}, corrected p {p_text(compared.corrected)}"
    if not compared.shown:
        return f"No difference in {what} between {one} and {other} is shown ({numbers})."
    return f"{one}'s {what} is {_direction(compared)} than {other}'s here ({numbers})."


def not_shown(what: str, compared: Sequence[Comparison], labels: Mapping[str, str], unit: str, digits: int) -> str:
    """One sentence about several differences of which none is shown.

    Example:
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
    return f"No difference in {what} is shown between {pairs} ({unit}, corrected p)."


def not_comparable(
    what: str, compared: Sequence[Comparison], labels: Mapping[str, str], _unit: str, _digits: int
) -> str:
    """One sentence about several differences that cannot be computed.

    Example:
        >>> none, each = Interval(np.array(np.nan), np.array(np.nan)), Estimate(np.array(np.nan), np.array(np.nan))
        >>> compared = [Comparison(name, "C", each, each, none, np.nan, np.nan) for name in ("A", "B")]
        >>> not_comparable("loss", compared, {"A": "A", "B": "B", "C": "C"}, "nats", 0)
        'Whether these differ in loss cannot be said, since a run diverged: A and C, B and C.'
    """
    pairs = ", ".join(f"{labels[each.method]} and {labels[each.baseline]}" for each in compared)
    return f"Whether these differ in {what} cannot be said, since a run diverged: {pairs}."


def _controls(summary: Summary, quantity: str, claimed: Comparison, digits: int) -> list[str]:
    """What the controls with the same base do, of a claim about a variant that is none itself."""
    return [
        control_finding(claimed, summary.comparison(quantity, name, base), summary.labels, digits)
        for name, base in summary.variants
        if name in summary.controls and base == claimed.baseline and claimed.method not in summary.controls
    ]


def control_finding(claimed: Comparison, control: Comparison, labels: Mapping[str, str], digits: int) -> str:
    """What a control of the wrong sign does where its variant differs from their base.

    Example:
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
        return f"The control {name} is {direction} as well {numbers}: the sign of lam does not explain the difference."
    return f"The control {name} is {direction} {numbers}, the other way."


def against_plain(summary: Summary) -> list[str]:
    """One sentence on the held-out accuracy of every method against ERM's; nothing without such a comparison.

    Example:
        >>> from disam_jax.dg.results import Run
        >>> header = {"data": {"name": "toy", "domains": {"photo": 9, "sketch": 9}}, "methods": {"ERM": {}, "SAM": {}}}
        >>> runs, ones = tuple(Run(name, 1, 0, 0, {}) for name in ("ERM", "SAM")), np.ones((2, 2, 2, 2))
        >>> results = Results(header, runs, np.arange(2), ones, ones, *[ones[:, 0]] * 2, ones[:, 0, 0])
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
        >>> from disam_jax.dg.results import Run
        >>> header = {"data": {"name": "toy", "domains": {"photo": 9, "sketch": 9}}, "methods": {"ERM": {}}}
        >>> run, ones = Run("ERM", 1, 0, 0, {}), np.ones((1, 2, 2, 2))
        >>> results = Results(header, (run,), np.arange(2), ones, ones, *[ones[:, 0]] * 2, ones[:, 0, 0])
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
        >>> from disam_jax.dg.results import Run
        >>> header = {"data": {"name": "toy", "domains": {"photo": 9, "sketch": 9}}, "methods": {"ERM": {}}}
        >>> run, ones = Run("ERM", 1, 0, 0, {}), np.ones((1, 2, 2, 2))
        >>> results = Results(header, (run,), np.arange(2), ones, np.nan * ones, *[ones[:, 0]] * 2, ones[:, 0, 0])
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
