"""What a run is judged by."""

from typing import NamedTuple

import numpy as np

from disam_jax.dg.protocol import History


class Scores(NamedTuple):
    """Of S x T runs of one method; float64 [S, T] each, NaN where the run diverged.

    Attributes:
        accuracy: percent of right answers on the held-out domain after the last step.
        spread: standard deviation of the source domains' losses at w, in nats, averaged over the
            points of training that were measured (but the first, before any step).
        perturbed_spread: the same at w + e.
        mean_loss: mean over the source domains of their losses at w after the last step, in nats.
        worst_loss: the largest loss of a source domain at w after the last step, in nats.
        diverged: bool, whether a loss of the run was ever not finite.
    """

    accuracy: np.ndarray
    spread: np.ndarray
    perturbed_spread: np.ndarray
    mean_loss: np.ndarray
    worst_loss: np.ndarray
    diverged: np.ndarray


def source_losses(losses: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Losses of the source domains only.

    Args:
        losses: [..., T, D].
        held_out: bool [T, D], one True in each row.

    Returns:
        [..., T, D - 1].

    Example:
        >>> source_losses(np.array([[1.0, 2.0, 3.0]]), np.array([[False, True, False]])).tolist()
        [[1.0, 3.0]]
    """
    targets, domains = held_out.shape
    kept = np.broadcast_to(~held_out, losses.shape)
    return losses[kept].reshape(*losses.shape[:-2], targets, domains - 1)


def score(history: History) -> Scores:
    """Judges the runs of one method.

    Args:
        history: as measured.

    Returns:
        Scores. A diverged run has none: as NaN it shows in every mean that it would enter.
    """
    held_out = history.held_out
    losses = source_losses(history.losses, held_out).astype(np.float64)
    perturbed = source_losses(history.perturbed_losses, held_out).astype(np.float64)
    finite = np.isfinite(losses).all((0, -1)) & np.isfinite(perturbed).all((0, -1))
    diverged = np.asarray(~(finite & np.isfinite(history.losses).all((0, -1))))

    def unless_diverged(values: np.ndarray) -> np.ndarray:
        return np.where(diverged, np.nan, values)

    with np.errstate(invalid="ignore", over="ignore"):
        return Scores(
            unless_diverged(100.0 * (history.accuracy[-1] * held_out).sum(-1, dtype=np.float64)),
            unless_diverged(losses[1:].std(-1).mean(0)),
            unless_diverged(perturbed[1:].std(-1).mean(0)),
            unless_diverged(losses[-1].mean(-1)),
            unless_diverged(losses[-1].max(-1)),
            diverged,
        )
