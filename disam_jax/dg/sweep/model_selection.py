"""Which point of which run is reported: two of DomainBed's ways to choose, and no choice at all.

For each method, target and seed, the choice is among the candidates (hyperparameters) and the points of training.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from disam_jax.dg.reading import brief
from disam_jax.dg.results import TRAIN, VALIDATION, Results, Run, validation_score


class Selected(NamedTuple):
    """The chosen run and point for each of K methods, S seeds and T targets.

    Attributes:
        run: int [K, S, T], index into `Results.runs`.
        point: int [K, S, T], index into `Results.steps`.
    """

    run: np.ndarray
    point: np.ndarray


def select(results: Results, criterion: str) -> Selected:
    """Chooses a candidate and a point of training for each method, seed and target.

    - "validation": the highest accuracy on the source domains' validation splits, averaged over them, at any point
      of training of any candidate.
    - "oracle": the highest accuracy on the target's validation split after the last step of any candidate; no early
      stopping, as in DomainBed.
    - "last": the last step of candidate 0, the default hyperparameters. Nothing is chosen.

    - "validation-domainbed", "oracle-domainbed": the same as those, but for ties.

    Ties go to the earlier candidate, that is to the defaults first, and with DomainBed's code to the later one; of a
    candidate they go to the earlier point. The step 0, before any training, is never chosen.
    A run that diverged counts as accuracy 0 from then on.

    Args:
        results: every method with the same targets, seeds and number of candidates.
        criterion: a key of `CRITERIA`.

    Returns:
        Selected.

    Raises:
        ValueError: on an unknown criterion, or if a run is missing.

    Example:
        >>> from disam_jax.dg.results import Run
        >>> runs = tuple(Run("ERM", target=0, seed=0, candidate=candidate, hparams={}) for candidate in range(2))
        >>> accuracy, losses, rest = np.zeros((2, 3, 2, 2)), np.ones((2, 3, 2, 2)), np.zeros((2, 3, 2))
        >>> accuracy[1, 2, VALIDATION, 1] = 0.75
        >>> results = Results({"methods": ["ERM"]}, runs, np.arange(3), accuracy, losses, rest, rest, rest[:, 0])
        >>> run, point = select(results, "validation")
        >>> run.tolist(), point.tolist()
        ([[[1]]], [[[2]]])

    References:
        Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, ICLR 2021, section 4 (model selection); ties
        as in `domainbed/model_selection.py`, which sorts candidates by score, stably, and takes the last.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    return CRITERIA[criterion].choose(results)


def _last(results: Results) -> Selected:
    run = runs_table(results)[..., 0]
    return Selected(run, np.full(run.shape, len(results.steps) - 1))


def _highest(results: Results, by_target: bool, latest: bool = False) -> Selected:
    """The highest accuracy on validation splits: of the target after the last step, or of the sources at any point.

    Of candidates with the same accuracy it is the first one, or the last one if `latest`.
    """
    table = runs_table(results)
    points = len(results.steps)
    target = np.array(results.targets)
    runs_of_target = np.moveaxis(table, 2, 0)  # [T, K, S, candidates]
    run, point = np.empty(runs_of_target.shape[:3], int), np.empty(runs_of_target.shape[:3], int)
    for place, held_out in enumerate(target):
        accuracy, losses = results.accuracy[runs_of_target[place]], results.losses[runs_of_target[place]]
        if by_target:
            first = points - 1
            finite = np.isfinite(losses[..., -1:, :, :]).all((-2, -1))
            score = np.where(finite, accuracy[..., -1:, VALIDATION, held_out], 0.0)
        else:
            first = 1
            score = validation_score(accuracy, losses, held_out)[..., 1:]
        run[place], at = _best(score, runs_of_target[place], latest)
        point[place] = at + first
    return Selected(np.moveaxis(run, 0, 2), np.moveaxis(point, 0, 2))


def _best(score: np.ndarray, runs: np.ndarray, latest: bool) -> tuple[np.ndarray, np.ndarray]:
    """Run and point of the highest score.

    Args:
        score: float64 [K, S, candidates, points].
        runs: Index of each run, int [K, S, candidates]; from where a method has no more candidates, its first again.
        latest: Whether the last of several candidates with the same score is taken.

    Returns:
        Index of the run and of its point, int [K, S] each.
    """
    repeated = (runs == runs[..., :1]) & (np.arange(runs.shape[-1]) > 0)
    best = np.where(repeated, -1.0, score.max(-1))
    chosen = best.shape[-1] - 1 - best[..., ::-1].argmax(-1) if latest else best.argmax(-1)
    take = lambda values: np.take_along_axis(values, chosen[..., None], -1)[..., 0]
    return take(runs), take(score.argmax(-1))


def leave_one_domain_out(results: Results, without: Mapping[str, Results]) -> Selected:
    """DomainBed's third criterion: the candidate and point that are best on sources which were held out as well.

    For the target t, the score of a candidate at a point is the mean over the other domains v of the accuracy on v, on
    its training split, of the run that was trained without t and v. Ties are broken as in DomainBed.

    Args:
        results: Runs with one target each.
        without: For the name of each target, the same methods, seeds, candidates and points on a data set without that
            domain (`--leave-out`), every other domain held out in turn.

    Returns:
        Selected, runs and points of `results`.

    Raises:
        ValueError: If a target has no results without it, or they are of other methods, seeds, candidates, points or
            domains.

    Example:
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM")
        >>> leave_one_domain_out(results, {})
        Traceback (most recent call last):
        ...
        ValueError: without must have results for each target, got none without sketch: train with --leave-out sketch

    References:
        Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, ICLR 2021, section 4;
        `LeaveOneOutSelectionMethod` in `domainbed/model_selection.py`.
    """
    table = runs_table(results)
    run, point = np.empty(table.shape[:3], int), np.empty(table.shape[:3], int)
    for place, target in enumerate(results.targets):
        name = results.domain_names[target]
        if name not in without:
            raise ValueError(
                f"without must have results for each target, got none without {name}: train with --leave-out {name}"
            )
        score = _held_out_accuracy(without[name], results, name)
        run[:, :, place], at = _best(score, table[:, :, place], latest=True)
        point[:, :, place] = at + 1
    return Selected(run, point)


def _held_out_accuracy(pairs: Results, results: Results, name: str) -> np.ndarray:
    """Mean accuracy on the held-out domains after each point but the first, float64 [K, S, candidates, P - 1]."""
    others = tuple(other for other in results.domain_names if other != name)
    for what, found, wanted in (
        ("methods", pairs.methods, results.methods),
        ("seeds", pairs.seeds, results.seeds),
        ("domains", pairs.domain_names, others),
        ("targets", tuple(pairs.domain_names[each] for each in pairs.targets), others),
        ("steps", pairs.steps.tolist(), results.steps.tolist()),
        ("candidates", _candidates(pairs), _candidates(results)),
    ):
        if found != wanted:
            raise ValueError(
                f"the results without {name} must have the {what} {brief(wanted, 80)}, got {brief(found, 80)}"
            )
    table = runs_table(pairs)  # [K, S, D - 1, candidates]
    of_target = lambda values: np.stack([values[table[:, :, v], 1:, ..., v] for v in range(len(others))])
    # As for the other criteria, a run that diverged counts as accuracy 0.
    finite = np.isfinite(pairs.losses[table, 1:]).all((-2, -1))
    accuracy = np.moveaxis(of_target(pairs.accuracy[:, :, TRAIN]), 0, 2)
    return np.where(finite, accuracy, 0.0).mean(2)


def _candidates(results: Results) -> dict[tuple[str, int, int], Mapping[str, float]]:
    """Hyperparameters by method, seed and candidate."""
    return {(run.method, run.seed, run.candidate): dict(run.hparams) for run in sorted(results.runs, key=_named)}


def _named(run: Run) -> tuple[str, int, int, int]:
    return run[:4]


class Criterion(NamedTuple):
    """A registered selection criterion.

    Attributes:
        title: What tables call it.
        choose: results -> Selected.
    """

    title: str
    choose: Callable[[Results], Selected]


CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {
        "validation": Criterion("training-domain validation", partial(_highest, by_target=False)),
        "oracle": Criterion("oracle (test-domain validation)", partial(_highest, by_target=True)),
        "last": Criterion("last step of the default hyperparameters", _last),
        "validation-domainbed": Criterion(
            "training-domain validation, ties as in DomainBed", partial(_highest, by_target=False, latest=True)
        ),
        "oracle-domainbed": Criterion(
            "oracle (test-domain validation), ties as in DomainBed", partial(_highest, by_target=True, latest=True)
        ),
    }
)


# Of these every report has a column.
IN_EVERY_REPORT = ("validation", "oracle", "last")


def reported(criterion: str) -> tuple[str, ...]:
    """The criteria that a report has, if it reports by this one.

    Example:
        >>> reported("oracle"), reported("validation-domainbed")[-1]
        (('validation', 'oracle', 'last'), 'validation-domainbed')
    """
    return tuple(dict.fromkeys([*IN_EVERY_REPORT, criterion]))


def runs_table(results: Results) -> np.ndarray:
    """Where each run is: indices into `results.runs`, int [K, S, T, candidates].

    A method that has fewer candidates than another one, as on a grid, repeats its first, which changes no choice.

    Raises:
        ValueError: if a run is missing or there twice.

    Example:
        >>> from disam_jax.dg.results import Run
        >>> runs = tuple(Run("ERM", target, seed=0, candidate=0, hparams={}) for target in range(3))
        >>> results = Results({"methods": ["ERM"]}, runs, np.array([0]), *[np.zeros(0)] * 5)
        >>> runs_table(results).tolist()
        [[[[0], [1], [2]]]]
    """
    methods, seeds, targets = results.methods, results.seeds, results.targets
    candidates = sorted({run.candidate for run in results.runs})
    table = np.full((len(methods), len(seeds), len(targets), len(candidates)), -1)
    places = [{x: i for i, x in enumerate(axis)} for axis in (methods, seeds, targets, candidates)]
    for index, run in enumerate(results.runs):
        at = tuple(place[x] for place, x in zip(places, (run.method, run.seed, run.target, run.candidate), strict=True))
        if table[at] >= 0:
            raise ValueError(f"the run {run[:4]} appears twice")
        table[at] = index
    absent = np.all(table < 0, axis=(1, 2), keepdims=True)
    table = np.where(absent, table[..., :1], table)
    if (table < 0).any():
        k, s, t, c = (
            axis[i] for axis, i in zip((methods, seeds, targets, candidates), np.argwhere(table < 0)[0], strict=True)
        )
        raise ValueError(f"no run of {k}, seed {s}, target {t}, candidate {c}")
    return table
