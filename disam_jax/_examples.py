"""Subsets of the examples of each domain: the same ones at every call, and none moves between devices."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax._sharding import check_divides
from disam_jax._types import Examples


def ascent_subset(batch: Examples, fraction: float, *, axis: int = 1) -> Examples:
    """Takes a subset of each domain's examples, for an ``ascent_loss_fn``: a step then costs 1 + fraction plain steps.

    The ``m = ceil(fraction * n)`` examples at ``0, s, 2 s, ...`` with ``s = n // m``, the same ones at every call. So
    the order in the batch should mean nothing, as after a shuffle.

    Args:
      batch: A pytree of arrays ``[M, n, ...]``, numpy or jax.
      fraction: Fraction of the examples to take, in ``(0, 1]``, static. 1 takes the whole batch.
      axis: The axis of the examples: 0 for the batch of one domain, ``[n, ...]``, and for a flat batch ``[N, ...]``
        that is sorted by domain. Where the domains take turns in a flat batch, equal strides may leave one out: take
        the subset of the grouped batch there.

    Returns:
      The pytree with leaves ``[M, m, ...]``. Under ``jit``, where the n examples lie on several devices and each has a
      multiple of s of them, none of them moves.

    Raises:
      TypeError: When the fraction is not a static number.
      ValueError: When it is not in ``(0, 1]``, or the leaves do not have the same number of examples.

    Example:
      >>> import numpy as np
      >>> import disam_jax
      >>> disam_jax.ascent_subset(np.arange(16).reshape(2, 8), 0.25).tolist()   # 2 domains, 8 examples of each
      [[0, 4], [8, 12]]
    """
    kept, stride = _stride(batch, fraction, axis, "ascent_subset")
    check_divides(batch, axis, [kept], "ascent_subset")
    return jax.tree.map(lambda leaf: _slice(leaf, 0, kept * stride, stride, axis), batch)


def split_examples(batch: Examples, fraction: float, *, axis: int = 1) -> tuple[Examples, Examples]:
    """Splits each domain's examples in two: the subset that ``ascent_subset`` takes, and the rest of the examples.

    Every example is on one side, so ``m / n`` of the subset's mean loss plus ``1 - m / n`` of the rest's is the mean
    loss of the whole batch.

    Args:
      batch: As in ``ascent_subset``.
      fraction: As in ``ascent_subset``.
      axis: As in ``ascent_subset``.

    Returns:
      ``(subset, rest)`` with leaves ``[M, m, ...]`` and ``[M, n - m, ...]``; ``n - m`` is 0 for a fraction of 1. Under
      ``jit``, no example moves between devices where none does for ``ascent_subset``.

    Raises:
      TypeError: As in ``ascent_subset``.
      ValueError: As in ``ascent_subset``.

    Example:
      >>> import numpy as np
      >>> import disam_jax
      >>> subset, rest = disam_jax.split_examples(np.arange(16).reshape(2, 8), 0.25)   # 2 domains, 8 examples of each
      >>> subset.tolist(), rest.tolist()
      ([[0, 4], [8, 12]], [[1, 2, 3, 5, 6, 7], [9, 10, 11, 13, 14, 15]])
    """
    kept, stride = _stride(batch, fraction, axis, "split_examples")
    n = jnp.shape(jax.tree.leaves(batch)[0])[axis]
    check_divides(batch, axis, [kept, kept * stride], "split_examples")

    def rest(leaf):
        head = _slice(leaf, 0, kept * stride, 1, axis)
        # Rows of one stride, of which the first is in the subset: a reshape, where a gather would move examples.
        rows = head.reshape(*leaf.shape[:axis], kept, stride, *leaf.shape[axis + 1 :])
        head = _slice(rows, 1, stride, 1, axis + 1)
        head = head.reshape(*leaf.shape[:axis], kept * (stride - 1), *leaf.shape[axis + 1 :])
        if kept * stride == n:
            return head
        tail = _slice(leaf, kept * stride, n, 1, axis)
        return (np if isinstance(leaf, np.ndarray) else jnp).concatenate([head, tail], axis)

    return ascent_subset(batch, fraction, axis=axis), jax.tree.map(rest, batch)


def check_fraction(fraction: object, name: str) -> None:
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: fraction must be a static number, got {fraction!r}. Write 0.25.")
    if not 0 < fraction <= 1:
        raise ValueError(f"{name}: fraction must be in (0, 1], got {fraction}. Write 0.25 for every fourth example.")


def _stride(batch: Examples, fraction: float, axis: int, name: str) -> tuple[int, int]:
    """How many examples are in the subset, and how far they are apart."""
    check_fraction(fraction, name)
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    shapes = {f"batch{jax.tree_util.keystr(path)}": jnp.shape(leaf) for path, leaf in leaves}
    if any(not 0 <= axis < len(shape) for shape in shapes.values()) or len({s[axis] for s in shapes.values()}) != 1:
        seen = ", ".join(f"{leaf} {shape}" for leaf, shape in shapes.items()) or "no arrays"
        raise ValueError(
            f"{name}: every leaf must have the same number of examples on axis {axis}, got {seen}. Leaves are "
            "[M, n, ...]; write axis=0 for the batch of one domain, [n, ...]."
        )
    n = next(iter(shapes.values()))[axis]
    # 0.07 * 100 is a little more than 7 in floating point, and meant as 7.
    kept = max(math.ceil(round(fraction * n, 9)), 1)
    stride = max(n // kept, 1)
    return kept, stride


def _slice(leaf: Any, start: int, stop: int, stride: int, axis: int) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf[(*(slice(None),) * axis, slice(start, stop, stride))]
    # Outside of jit, indexing is a gather, which an explicit mesh refuses.
    return jax.lax.slice_in_dim(leaf, start, stop, stride, axis)
