"""Which point of which run is reported: DomainBed's three ways to choose.

For each method, target and seed, the choice is among the candidates (hyperparameters) and the points of training.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from disam_jax.dg.results import VALIDATION, Results, validation_score


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

    Ties go to the earlier candidate, then to the earlier point. The step 0, before any training, is never chosen.
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
        Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, ICLR 2021, section 4 (model selection).
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    return CRITERIA[criterion].choose(results)


def _last(results: Results) -> Selected:
    run = runs_table(results)[..., 0]
    return Selected(run, np.full(run.shape, len(results.steps) - 1))


def _highest(results: Results, by_target: bool) -> Selected:
    """The highest accuracy on validation splits: of the target after the last step, or of the sources at any point."""
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
        score = score.reshape(*score.shape[:2], -1)
        best = score.argmax(-1)
        chosen, at = np.divmod(best, points - first)
        run[place] = np.take_along_axis(runs_of_target[place], chosen[..., None], -1)[..., 0]
        point[place] = at + first
    return Selected(np.moveaxis(run, 0, 2), np.moveaxis(point, 0, 2))


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
    }
)


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
