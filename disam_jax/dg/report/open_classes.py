"""Base and new classes: how well the classes of training are told apart, and those that it never saw."""

from typing import NamedTuple

import numpy as np

from disam_jax.dg.report.findings import p_text
from disam_jax.dg.report.scores import held_out_of, score
from disam_jax.dg.report.statistics import estimate
from disam_jax.dg.report.summary import Summary, compare
from disam_jax.dg.report.tables import NOTHING, Cell, Table, estimate_cell
from disam_jax.dg.results import Results
from disam_jax.dg.sweep.model_selection import Selected, select

LABELS = {"base": "base", "new": "new", "harmonic": "harmonic mean"}


class OpenScores(NamedTuple):
    """Percent of right answers on the held-out domain; float64 [K, S, T], NaN where the run diverged.

    Attributes:
        base: on the training split of the base classes, among these.
        new: on all examples of the new classes, among these.
        harmonic: 2 base new / (base + new), of each run.
    """

    base: np.ndarray
    new: np.ndarray
    harmonic: np.ndarray


def open_scores(results: Results, criterion: str) -> OpenScores:
    """Judges the chosen runs.

    Args:
        results: of the sweep, with new classes.
        criterion: how runs and points are chosen, on base classes only.

    Returns:
        OpenScores.

    Raises:
        ValueError: if the results have no new classes.

    Example:
        >>> from disam_jax.dg.results import Run
        >>> run, half, rest = Run("ERM", 0, 0, 0, {}), np.full((1, 2, 2, 2), 0.5), np.ones((1, 2, 2))
        >>> results = Results({"methods": ["ERM"]}, (run,), np.arange(2), half, half, rest, rest, rest[:, 0], rest / 4)
        >>> scores = open_scores(results, "last")
        >>> scores.base.tolist(), scores.new.tolist(), scores.harmonic.round(1).tolist()
        ([[[50.0]]], [[[25.0]]], [[[33.3]]])

    References:
        Xian et al., Zero-Shot Learning: A Comprehensive Evaluation, TPAMI 2019 (harmonic mean). Zhou et al.,
        Conditional Prompt Learning for Vision-Language Models, CVPR 2022 (each part among its own classes).
    """
    return judge(results, select(results, criterion))


def judge(results: Results, selected: Selected) -> OpenScores:
    """Judges runs at points of training, see `open_scores`.

    Example:
        >>> from disam_jax.dg.results import Run
        >>> run, half, rest = Run("ERM", 0, 0, 0, {}), np.full((1, 2, 2, 2), 0.5), np.ones((1, 2, 2))
        >>> results = Results({"methods": ["ERM"]}, (run,), np.arange(2), half, half, rest, rest, rest[:, 0], rest / 4)
        >>> scores = judge(results, Selected(run=np.array([0]), point=np.array([1])))
        >>> scores.base.tolist(), scores.new.tolist(), scores.harmonic.round(1).tolist()
        ([50.0], [25.0], [33.3])
    """
    if results.new_accuracy is None:
        raise ValueError("the results have no new classes")
    judged = score(results, selected)
    held_out = held_out_of(results, selected.run)
    values = results.new_accuracy[selected.run, selected.point]
    new = 100.0 * np.take_along_axis(values, held_out[..., None], -1)[..., 0]
    new = np.where(judged.diverged, np.nan, new)
    with np.errstate(invalid="ignore", divide="ignore"):
        harmonic = 2.0 * judged.accuracy * new / (judged.accuracy + new)
    # Nothing right in either part is a mean of zero.
    return OpenScores(judged.accuracy, new, np.where(judged.accuracy + new == 0.0, 0.0, harmonic))


def open_by_run(results: Results) -> dict[str, np.ndarray]:
    """What every run reaches on the new classes after the last step, by column of `runs.csv`; nothing without them.

    Example:
        >>> from disam_jax.dg.results import Run
        >>> run, half, rest = Run("ERM", 0, 0, 0, {}), np.full((1, 2, 2, 2), 0.5), np.ones((1, 2, 2))
        >>> results = Results({"methods": ["ERM"]}, (run,), np.arange(2), half, half, rest, rest, rest[:, 0], rest / 4)
        >>> {name: values.round(1).tolist() for name, values in open_by_run(results).items()}
        {'new_accuracy': [25.0], 'harmonic': [33.3]}
    """
    if results.new_accuracy is None:
        return {}
    every = np.arange(len(results.runs))
    last = judge(results, Selected(every, np.full(len(every), len(results.steps) - 1)))
    return {"new_accuracy": last.new, "harmonic": last.harmonic}


def open_table(results: Results, summary: Summary) -> Table:
    """Methods by base, new and harmonic mean; the difference of the latter from each method's base.

    Example:
        >>> from disam_jax.dg.report.summary import summarise
        >>> from disam_jax.dg.results import Run
        >>> data = {"name": "toy", "domains": {"photo": 9, "sketch": 9}, "classes": ["cat"], "new_classes": ["dog"]}
        >>> header, run, ones = {"data": data, "methods": {"ERM": {}}}, Run("ERM", 1, 0, 0, {}), np.ones((1, 2, 2, 2))
        >>> results = Results(header, (run,), np.arange(2), ones, ones, *[ones[:, 0]] * 2, ones[:, 0, 0], ones[:, 0])
        >>> [cell.text for cell in open_table(results, summarise(results, "last")).rows[0]]
        ['ERM', '100.0 ± -', '100.0 ± -', '100.0 ± -', '-', '-']
    """
    scores = open_scores(results, summary.criterion)
    facts = results.header["data"]
    bases = {name: results.header["methods"][name].get("base") for name in summary.methods}
    pairs = [(name, base) for name, base in bases.items() if base in summary.methods]
    with np.errstate(invalid="ignore"):
        compared = {each.method: each for each in compare(scores, "harmonic", summary.methods, pairs)}
        means = {name: estimate(getattr(scores, name).mean(-1).T) for name in LABELS}
    runs = summary.scores.diverged[0].size
    rows = []
    for k, name in enumerate(summary.methods):
        bad = int(summary.scores.diverged[k].sum())
        cells = [estimate_cell(means[each].mean[k], means[each].error[k], ".1f", bad, runs) for each in LABELS]
        if name in compared:
            each = compared[name]
            both = bad + int(summary.scores.diverged[summary.methods.index(each.baseline)].sum())
            against = f" (- {summary.labels[each.baseline]})"
            cell = estimate_cell(float(each.difference.mean), float(each.difference.error), "+.2f", both, 2 * runs)
            cells += [Cell(cell.text + against * (not both), cell.values)]
            cells += [Cell(p_text(each.corrected) if np.isfinite(each.corrected) else NOTHING, {"": each.corrected})]
        else:
            cells += [Cell(NOTHING), Cell(NOTHING)]
        rows.append((Cell(summary.labels[name]), *cells))
    notes = (
        f"In percent on the held-out domain, mean over the targets ± standard error over seeds. Base classes, which "
        f"are trained on: {', '.join(facts['classes'])}. New ones: {', '.join(facts['new_classes'])}. Each part is "
        "told apart among its own classes; base on the training split of the domain, new on all of its images.",
        "Difference: of the harmonic mean from that of the method's base, paired by seed; p: permutation test, "
        "corrected for these comparisons by Holm's method.",
    )
    return Table("Base and new classes", ("method", *LABELS.values(), "difference", "p"), tuple(rows), notes)
