"""Averages of the weights along training, as an option on top of any method."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Tree = TypeVar("Tree")
# Names on the command line, and what each one is.
AVERAGING: Mapping[str, str] = MappingProxyType(
    {
        "none": "the weights themselves",
        "ema": "exponential moving average",
        "swad": "stochastic weight averaging, densely over the segment that the validation loss chooses",
    }
)


def moving_average(average: Tree, weights: Tree, count: jax.Array, decay: float) -> Tree:
    """An exponential moving average without a bias towards the initial weights.

    average <- average + s (weights - average) with s = max(1 - decay, 1 / (count + 1)): the plain mean of all weights
    until it is as long as the moving average's memory.

    Args:
        average: pytree of arrays; what is not floating is replaced by the newest.
        weights: pytree of the same structure.
        count: int [], how many weights are already in the average.
        decay: in [0, 1). With 1, the plain mean of all weights.

    Returns:
        Pytree of the same structure.

    Example:
        >>> float(moving_average(jnp.array(2.0), jnp.array(4.0), jnp.array(1), decay=0.9))
        3.0
    """
    share = jnp.maximum(1.0 - decay, 1.0 / (count.astype(jnp.float32) + 1.0))

    def blend(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return old + share.astype(new.dtype) * (new - old)

    return jax.tree.map(blend, average, weights)


def swad_window(losses: np.ndarray, converge: int = 3, tolerance: int = 6, ratio: float = 0.3) -> tuple[int, int]:
    """The points of training between which SWAD averages, found by the validation loss.

    It starts at the first point whose loss none of the next `converge - 1` undercuts, and ends before the first
    `tolerance` points in a row that are all above (1 + ratio) times the mean loss of the start and the
    `converge - 1` points after it; without these, at the last point.

    Args:
        losses: [P], mean validation loss of the source domains at the points, a point being the end of a segment.
        converge: points over which the start must be the lowest.
        tolerance: points in a row that end the window.
        ratio: how far above the start's level they are.

    Returns:
        First and last point of the window, inclusive. If the loss falls to the end there is no start, and the window is
        the last point alone.

    Example:
        >>> swad_window(np.array([3.0, 2.0, 1.0, 1.1, 1.2, 1.1, 1.0]))
        (2, 6)

    References:
        Cha et al., SWAD: Domain Generalization by Seeking Flat Minima, NeurIPS 2021, section 3.2 and algorithm 1.
    """
    losses = np.asarray(losses, np.float64)
    last = len(losses) - 1
    for start in range(len(losses) - converge + 1):
        window = losses[start : start + converge]
        if window.argmin() == 0 and np.isfinite(window).all():
            high = ~(losses <= (1.0 + ratio) * window.mean())
            for end in range(start + 1, len(losses) - tolerance + 1):
                if high[end : end + tolerance].all():
                    return start, end - 1
            return start, last
    return last, last


def average_points(points: Sequence[Tree], first: np.ndarray, last: np.ndarray) -> Tree:
    """The mean, for each of R runs, of what was averaged over the segments first to last.

    Args:
        points: P pytrees of arrays [R, ...], the mean over each segment, all of the same number of steps.
        first: int [R].
        last: int [R].

    Returns:
        Pytree of arrays [R, ...].

    Example:
        >>> points = [jnp.array([0.0, 1.0]), jnp.array([2.0, 3.0]), jnp.array([4.0, 5.0])]
        >>> average_points(points, first=np.array([0, 1]), last=np.array([1, 2])).tolist()
        [1.0, 4.0]
    """
    places = np.arange(len(points))[:, None]
    inside = (places >= first[None]) & (places <= last[None])
    shares = jnp.asarray(inside / inside.sum(0)[None], jnp.float32)

    def mean(*leaves: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaves[-1].dtype, jnp.floating):
            return leaves[-1]
        total = jnp.zeros_like(leaves[0])
        for share, leaf in zip(shares, leaves, strict=True):
            weight = share.reshape(-1, *[1] * (leaf.ndim - 1)).astype(leaf.dtype)
            # A run that diverged later must not spoil the mean of what came before.
            total += jnp.where(weight > 0.0, weight * leaf, jnp.zeros((), leaf.dtype))
        return total

    return jax.tree.map(mean, *points)
