"""The numbers of a report: scores of all methods, averaged over seeds and compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

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
)
from disam_jax.dg.results import TRAIN, Results
from disam_jax.dg.sweep.model_selection import select

if TYPE_CHECKING:
    from disam_jax.dg.report.metric_summary import MetricSummary

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
    """Means and standard errors over seeds of the chosen runs along training.

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
        criterion: how runs and points were chosen, a key of `CRITERIA`.
        methods: K names.
        labels: what the tables call each method.
        targets: T names of domains.
        domains: D names.
        classes: C, the number of classes.
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
        metrics: of the logits that were kept, see `metric_summary.with_metrics`.
    """

    title: str
    criterion: str
    methods: tuple[str, ...]
    labels: Mapping[str, str]
    targets: tuple[str, ...]
    domains: tuple[str, ...]
    classes: int
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
    metrics: "tuple[MetricSummary, ...]" = ()

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
        values = {float(run.hparams[name]) for run in results.runs if run.hparams.get(name, 0.0) != 0.0}
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
        criterion: how to choose, a key of `CRITERIA`.
        seed: of the permutation tests with more seeds than are tested exactly.

    Returns:
        Summary.

    Raises:
        ValueError: on an unknown criterion, or if a run is missing.

    Example:
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM", "SAM")
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
    classes = results.header["data"]["classes"]
    return Summary(
        title=title(results),
        criterion=criterion,
        methods=methods,
        labels={name: facts[name].get("label") or name for name in methods},
        targets=tuple(results.domain_names[target] for target in results.targets),
        domains=results.domain_names,
        classes=classes if isinstance(classes, int) else len(classes),
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
