"""Averages of the weights along training, as an option on top of any method."""

from collections.abc import Callable, Mapping, Sequence
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
        "swad-released": "the same as the authors' code does it, which takes other segments than their paper",
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


def swad_counts(losses: np.ndarray, converge: int = 3, tolerance: int = 6, ratio: float = 0.3) -> np.ndarray:
    """How often each segment is in SWAD's average: once from the first to the last of `swad_window`.

    Returns:
        int [P].

    Example:
        >>> swad_counts(np.array([3.0, 2.0, 1.0, 1.1, 1.2, 1.1, 1.0])).tolist()
        [0, 0, 1, 1, 1, 1, 1]
    """
    first, last = swad_window(losses, converge, tolerance, ratio)
    places = np.arange(len(losses))
    return ((places >= first) & (places <= last)).astype(int)


def swad_released_counts(losses: np.ndarray, converge: int = 3, tolerance: int = 6, ratio: float = 0.3) -> np.ndarray:
    """How often each segment is in the average of SWAD's released code.

    Let s be the start of `swad_window`, found at point s + converge - 1, with the level of there. The code keeps the
    last `tolerance` segments. It takes

    1. when it finds s, those of the kept segments up to s that come after the oldest one, or after the first one that
       follows the last above the level: with the defaults up to two before s, and s;
    2. from then on, at each point, the oldest kept segment if that is not before s: s again, and what follows, until
       all kept segments are above the level. Until `tolerance` segments are kept, that is the first one each time;
    3. at the end of training, without such an end, the kept segments after the oldest one, up to the last that is not
       above the level.

    A segment that is taken twice counts twice. If none is taken, the average is that of s.

    Args:
        losses: [P], as for `swad_window`.
        converge: As for `swad_window`.
        tolerance: As for `swad_window`.
        ratio: As for `swad_window`.

    Returns:
        int [P]. As in `swad_window`, a loss that is not finite neither starts a window nor is within the level; without
        a start, the last segment counts alone.

    Example:
        >>> swad_released_counts(np.array([3.0, 1.3, 1.2, 1.0, 1.1, 1.2, 1.1, 1.0, 1.1, 1.0])).tolist()
        [0, 0, 1, 2, 1, 1, 1, 1, 1, 1]

    References:
        `LossValley` in `domainbed/swad.py` of https://github.com/khanrc/swad, commit
        252190eb881169e736beccf51af5caaa5c5cf666.
    """
    losses = np.asarray(losses, np.float64)
    points, counts = len(losses), np.zeros(len(losses), int)
    starts = [
        place
        for place in range(points - converge + 1)
        if losses[place : place + converge].argmin() == 0 and np.isfinite(losses[place : place + converge]).all()
    ]
    if not starts:
        counts[-1] = 1
        return counts
    start, seen = starts[0], starts[0] + converge
    high = ~(losses <= (1.0 + ratio) * losses[start:seen].mean())
    oldest = lambda now: max(0, now - tolerance + 1)
    if tolerance > converge:
        first = oldest(seen - 1)
        before = np.arange(first, min(first + tolerance - converge + 1, seen))
        low_from = before[high[before]].max(initial=first - 1) + 1
        counts[before[before > low_from]] += 1
    else:
        counts[start + 1 : start + 1 + converge - tolerance] += 1
    for now in range(seen, points):
        if oldest(now) < start:
            continue
        if high[oldest(now) : now + 1].all():
            break
        counts[oldest(now)] += 1
    else:
        rest = np.arange(oldest(points - 1) + 1, points)
        counts[rest[rest <= rest[~high[rest]].max(initial=-1)]] += 1
    if not counts.any():
        counts[start] = 1
    return counts


# The averages of segments by name: from the validation losses [P] at their ends to how often each one counts [P].
SWAD: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {"swad": swad_counts, "swad-released": swad_released_counts}
)


def average_points(points: Sequence[Tree], counts: np.ndarray) -> Tree:
    """The mean, for each of R runs, of what was averaged over the segments.

    Args:
        points: P pytrees of arrays [R, ...], the mean over each segment, all of the same number of steps.
        counts: int [R, P], how often each segment counts.

    Returns:
        Pytree of arrays [R, ...].

    Example:
        >>> points = [jnp.array([0.0, 1.0]), jnp.array([2.0, 3.0]), jnp.array([4.0, 5.0])]
        >>> average_points(points, counts=np.array([[1, 1, 0], [0, 1, 1]])).tolist()
        [1.0, 4.0]
    """
    shares = jnp.asarray((counts / counts.sum(1, keepdims=True)).T, jnp.float32)

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
