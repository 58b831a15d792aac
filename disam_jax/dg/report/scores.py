"""What a run is judged by."""

from typing import NamedTuple

import numpy as np

from disam_jax.dg.results import TRAIN, Results
from disam_jax.dg.sweep.model_selection import Selected


class Scores(NamedTuple):
    """Of the chosen runs at the chosen points; float64 [K, S, T] each, NaN where the run diverged.

    Attributes:
        accuracy: percent of right answers on the training split of the held-out domain (DomainBed's "in"
            split; the validation split of it only serves the oracle).
        spread: standard deviation over the source domains of their losses at w on the training splits, in
            nats, averaged over the points of training that were measured (but the first, before any step).
        perturbed_spread: the same at w + e on the probe.
        mean_loss: mean over the source domains of their losses at w on the training splits, in nats.
        worst_loss: the largest of these losses, in nats.
        sharpness: mean over the source domains of each one's sharpness after the last step, in nats.
        target_sharpness: that of the held-out domain, in nats.
        diverged: bool, whether a loss of the run was ever not finite.
    """

    accuracy: np.ndarray
    spread: np.ndarray
    perturbed_spread: np.ndarray
    mean_loss: np.ndarray
    worst_loss: np.ndarray
    sharpness: np.ndarray
    target_sharpness: np.ndarray
    diverged: np.ndarray


QUANTITIES = Scores._fields[:-1]


def held_out_of(results: Results, run: np.ndarray) -> np.ndarray:
    """The domain that each run holds out.

    Args:
        results: of the sweep.
        run: int, any shape, indices into `results.runs`.

    Returns:
        int, the same shape.

    Example:
        >>> from disam_jax.dg.results import Run
        >>> runs = tuple(Run("ERM", target, 0, 0, {}) for target in (0, 2))
        >>> results = Results({}, runs, np.arange(1), *[np.zeros(0)] * 5)
        >>> held_out_of(results, np.array([[1, 0]])).tolist()
        [[2, 0]]
    """
    return np.array([each.target for each in results.runs])[run]


def without(values: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Leaves out one domain of each run.

    Args:
        values: [..., x, D], where ... is the shape of `held_out` and x may be any further axes.
        held_out: int [...].

    Returns:
        [..., x, D - 1], the other domains in their order.

    Example:
        >>> without(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), np.array([1, 0])).tolist()
        [[1.0, 3.0], [5.0, 6.0]]
    """
    domains = values.shape[-1]
    kept = (np.arange(domains) != held_out[..., None]).nonzero()[-1]
    further = (1,) * (values.ndim - held_out.ndim - 1)
    return np.take_along_axis(values, kept.reshape(*held_out.shape, *further, domains - 1), -1)


def ever_diverged(results: Results) -> np.ndarray:
    """Whether a loss of each run was ever not finite, bool [R].

    Example:
        >>> from disam_jax.dg.results import Run
        >>> runs = tuple(Run("ERM", target=0, seed=seed, candidate=0, hparams={}) for seed in range(2))
        >>> losses, rest = np.ones((2, 3, 2, 2)), np.ones((2, 3, 2))
        >>> losses[1, 2] = np.nan
        >>> results = Results({}, runs, np.arange(3), losses, losses, rest, rest, rest[:, 0])
        >>> ever_diverged(results).tolist()
        [False, True]
    """
    held_out = held_out_of(results, np.arange(len(results.runs)))
    every = (results.losses, results.probe_losses, without(results.perturbed_losses, held_out))
    return np.logical_or.reduce([~np.isfinite(losses).all(tuple(range(1, losses.ndim))) for losses in every])


def score(results: Results, selected: Selected) -> Scores:
    """Judges the chosen runs at the chosen points.

    Args:
        results: of the sweep.
        selected: int [K, S, T], or both of any other one shape.

    Returns:
        Scores of that shape. A diverged run has none: as NaN it shows in every mean that it would enter.

    Example:
        >>> from disam_jax.dg.results import Run
        >>> runs, half, rest = (Run("ERM", 0, 0, 0, {}),), np.full((1, 2, 2, 2), 0.5), np.ones((1, 2, 2))
        >>> results = Results({}, runs, np.arange(2), half, half, rest, rest, rest[:, 0])
        >>> scores = score(results, Selected(run=np.array([0]), point=np.array([1])))
        >>> scores.accuracy.tolist(), scores.worst_loss.tolist(), scores.sharpness.tolist()
        ([50.0], [0.5], [1.0])

    References:
        Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, ICLR 2021 (which part of the
        held-out domain is reported).
    """
    run, point = selected
    held_out = held_out_of(results, run)
    diverged = ever_diverged(results)[run]
    accuracy = results.accuracy[run, point, TRAIN]
    losses = without(results.losses[run, :, TRAIN], held_out)
    perturbed = without(results.perturbed_losses[run], held_out)
    at_point = without(results.losses[run, point, TRAIN], held_out)
    sharpness = results.sharpness[run]

    def of_target(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, held_out[..., None], -1)[..., 0]

    def unless_diverged(values: np.ndarray) -> np.ndarray:
        return np.where(diverged, np.nan, values)

    with np.errstate(invalid="ignore", over="ignore"):
        return Scores(
            unless_diverged(100.0 * of_target(accuracy)),
            unless_diverged(losses[..., 1:, :].std(-1).mean(-1)),
            unless_diverged(perturbed[..., 1:, :].std(-1).mean(-1)),
            unless_diverged(at_point.mean(-1)),
            unless_diverged(at_point.max(-1)),
            unless_diverged(without(sharpness, held_out).mean(-1)),
            unless_diverged(of_target(sharpness)),
            diverged,
        )
