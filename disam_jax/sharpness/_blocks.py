"""Losses, gradients and Hessian products of the domains, a block of examples at a time.

A unit is what a measure is taken of: domain 0 .. D-1, or D, the mixture of the sources. The blocks of a unit are walked
by a loop of as many rounds as it has blocks, so one compiled program serves all units.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax._dtypes import accumulation_dtype


class Reader:
    """Rows of a data set that stays on the host, and the error that reading them raised."""

    def __init__(self, read: Callable[[np.ndarray], Any], shapes: Any):
        self.read, self.shapes = read, shapes
        self.error: Exception | None = None

    def __call__(self, rows: Any) -> Any:
        # An error inside a compiled program reaches the caller as XLA's; the one that says what to do is kept.
        try:
            return matching(self.read(np.asarray(rows)), self.shapes, np.asarray(rows))
        except Exception as error:
            self.error = error
            raise


class Source(NamedTuple):
    """Where losses come from; hashable, so that a program is compiled once for it.

    Attributes:
      loss_fn: ``loss_fn(params, batch) -> float [n]``.
      reader: Of rows on the host, or ``None`` for data on the device.
    """

    loss_fn: Callable[[Any, Any], Any]
    reader: Reader | None


class Blocks(NamedTuple):
    """The examples in blocks of one domain each, B of them; those of a domain are neighbours.

    Attributes:
      data: Leaves ``[N, ...]``, or ``None`` where a reader has them.
      rows: int32 ``[B, block]``, which examples. A domain's last block is filled up with examples that it has seen.
      counted: bool ``[B, block]``, False for those that fill up.
      domain: int32 ``[B]``.
      counts: int32 ``[D]``, examples of each domain.
      shares: float ``[D + 1, D]``, how much each domain counts in each unit; rows sum to 1.
      first: int32 ``[D + 1]`` and
      end: int32 ``[D + 1]``, places in ``order`` of the blocks of each unit.
      order: int32, blocks: all of them, then those of the mixture.
    """

    data: Any
    rows: jax.Array
    counted: jax.Array
    domain: jax.Array
    counts: jax.Array
    shares: jax.Array
    first: jax.Array
    end: jax.Array
    order: jax.Array


def plan(ids: np.ndarray, shares: np.ndarray, block: int) -> dict[str, np.ndarray]:
    """The fields of `Blocks` but the data, on the host.

    Args:
      ids: The domain of each example, integers ``[N]``; every domain has at least one.
      shares: Of the domains in the mixture, ``[D]``.
      block: Examples in a block.

    Returns:
      Numpy arrays by name.
    """
    number = len(shares)
    counts = np.bincount(ids, minlength=number)
    sizes = -(-counts // block)
    members = np.split(np.argsort(ids, kind="stable"), np.cumsum(counts)[:-1])
    rows = [np.resize(m, (s, block)) for m, s in zip(members, sizes, strict=True)]
    counted = [np.arange(s * block).reshape(s, block) < n for n, s in zip(counts, sizes, strict=True)]
    domain = np.repeat(np.arange(number), sizes)
    ends = np.cumsum(sizes)
    mixture = np.flatnonzero(shares[domain] > 0)
    return {
        "rows": np.concatenate(rows).astype(np.int32),
        "counted": np.concatenate(counted),
        "domain": domain.astype(np.int32),
        "counts": counts.astype(np.int32),
        "shares": np.concatenate([np.eye(number), shares[None]]),
        "first": np.append(ends - sizes, ends[-1]).astype(np.int32),
        "end": np.append(ends, ends[-1] + len(mixture)).astype(np.int32),
        "order": np.concatenate([np.arange(len(domain)), mixture]).astype(np.int32),
    }


def example_losses(source: Source, blocks: Blocks, params: Any) -> jax.Array:
    """The loss of every example in its block, ``[B, block]``; this alone grows with the data."""
    return jax.lax.map(lambda b: _losses(source, blocks, params, b), jnp.arange(len(blocks.domain), dtype=jnp.int32))


def by_domain(blocks: Blocks, values: jax.Array) -> jax.Array:
    """Means of values ``[B, block]`` over the examples of each domain, ``[D]``."""
    sums = jnp.sum(jnp.where(blocks.counted, values, 0), axis=1)
    # A select, not a product: 0 * nan would spread one domain's nan to all.
    member = blocks.domain[:, None] == jnp.arange(len(blocks.counts), dtype=jnp.int32)[None]
    return jnp.sum(jnp.where(member, sums[:, None], 0), axis=0) / blocks.counts.astype(values.dtype)


def rise(source: Source, blocks: Blocks, base: jax.Array, params: Any, unit: jax.Array) -> jax.Array:
    """How far the loss of a unit lies above the losses ``base`` ``[B, block]`` of its examples.

    The mean of differences keeps digits that the difference of means has lost.
    """
    add = lambda total, b: total + _block_rise(source, blocks, base, params, unit, b)
    return _over_blocks(blocks, unit, jnp.zeros((), base.dtype), add)


def rise_and_gradient(
    source: Source, blocks: Blocks, base: jax.Array, params: Any, unit: jax.Array
) -> tuple[jax.Array, Any]:
    """`rise` and its gradient, summed in the parameters' dtype, float32 at least."""

    def add(total, b):
        block = lambda p: _block_rise(source, blocks, base, p, unit, b)
        return jax.tree.map(jnp.add, total, jax.value_and_grad(block)(params))

    return _over_blocks(blocks, unit, (jnp.zeros((), base.dtype), jax.tree.map(jnp.zeros_like, params)), add)


def hessian_product(source: Source, blocks: Blocks, params: Any, unit: jax.Array, vector: Any) -> Any:
    """The Hessian of a unit's loss times a vector: the derivative of the gradient along it."""
    base = jnp.zeros(blocks.rows.shape, accumulation_dtype(params))

    def add(total, b):
        gradient = jax.grad(lambda p: _block_rise(source, blocks, base, p, unit, b))
        return jax.tree.map(jnp.add, total, jax.jvp(gradient, (params,), (vector,))[1])

    return _over_blocks(blocks, unit, jax.tree.map(jnp.zeros_like, params), add)


def matching(batch: Any, shapes: Any, rows: np.ndarray) -> Any:
    """What a reader gave for ``rows``, as numpy arrays of the shapes that it gave at first."""
    batch = jax.tree.map(np.asarray, batch)
    if jax.tree.structure(batch) != jax.tree.structure(shapes):
        raise ValueError(
            f"data(rows) returned {jax.tree.structure(batch)}, and {jax.tree.structure(shapes)} for the first rows: "
            "every call must return the same tree of arrays."
        )

    def leaf(path, x, first):
        name = f"data(rows){jax.tree_util.keystr(path)}"
        if x.shape[:1] != rows.shape:
            raise ValueError(
                f"{name} ends early: shape {x.shape} for {len(rows)} rows in {rows.min()}..{rows.max()}. Every row "
                "number below len(domain_ids) must have an example."
            )
        if x.shape[1:] != first.shape[1:]:
            raise ValueError(f"{name} has shape {x.shape}, and {first.shape} for the first rows: examples must agree.")
        return x.astype(first.dtype, copy=False)

    return jax.tree_util.tree_map_with_path(leaf, batch, shapes)


def _over_blocks(blocks: Blocks, unit: jax.Array, start: Any, add: Callable[[Any, jax.Array], Any]) -> Any:
    return jax.lax.fori_loop(
        blocks.first[unit], blocks.end[unit], lambda place, total: add(total, blocks.order[place]), start
    )


def _block_rise(
    source: Source, blocks: Blocks, base: jax.Array, params: Any, unit: jax.Array, b: jax.Array
) -> jax.Array:
    total = jnp.sum(jnp.where(blocks.counted[b], _losses(source, blocks, params, b) - base[b], 0))
    d = blocks.domain[b]
    return total * (blocks.shares[unit, d].astype(base.dtype) / blocks.counts[d].astype(base.dtype))


def _losses(source: Source, blocks: Blocks, params: Any, b: jax.Array) -> jax.Array:
    """The losses of one block, ``[block]``."""
    rows = blocks.rows[b]
    if source.reader is None:
        batch = jax.tree.map(lambda x: x[rows], blocks.data)
    else:
        shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct((len(rows), *s.shape[1:]), s.dtype), source.reader.shapes)
        batch = jax.pure_callback(source.reader, shapes, rows, vmap_method="sequential")
    losses = jnp.asarray(source.loss_fn(params, batch))
    if losses.shape != rows.shape:
        raise ValueError(
            f"loss_fn must return the loss of each example, [n], got shape {losses.shape} for n={len(rows)}. Leave "
            "out the mean over the batch, and take it over every other axis."
        )
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise TypeError(f"loss_fn must return floating point losses, got {losses.dtype}: a count has no gradient.")
    return losses.astype(accumulation_dtype(params))
