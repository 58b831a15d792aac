"""From batches to domain losses: one loss for each source domain.

A batch is either grouped, with leaves ``[domains, per_domain, ...]``, or flat, with leaves ``[N, ...]``
and the domain of each example in ``domain_ids`` ``[N]``.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax._dtypes import accumulation_dtype


class DomainLosses(NamedTuple):
    """The losses of M domains and how much each counts in the mean loss.

    The mean loss is ``sum_i a_i L_i`` with the shares ``a = weights / sum(weights)``.

    Attributes:
      values: The mean loss of each domain, floating point ``[M]``. The value of an absent domain is never read.
      weights: Shares or sample counts, not negative, ``[M]``; 0 marks an absent domain. ``None`` gives every domain the
        same share.

    Example:
      >>> import jax.numpy as jnp
      >>> import disam_jax
      >>> losses = disam_jax.DomainLosses(values=jnp.array([0.5, 0.7]), weights=jnp.array([30, 10]))
    """

    values: jax.Array
    weights: Any = None


def per_domain(loss_fn: Callable[..., Any], in_axes: int | Sequence[Any] | None = (None, 0)) -> Callable[..., Any]:
    """Turns the loss of one domain's batch into the losses of all domains.

    ``L_i(w) = loss_fn(w, batch[i])`` by ``vmap``: one pass over the whole grouped batch, no Python loop.

    Args:
      loss_fn: ``loss_fn(params, one_domains_batch) -> scalar``, or ``(scalar, aux)`` for use with ``has_aux=True``.
      in_axes: As in ``jax.vmap``: for each argument the axis that runs over the domains, ``None`` for an argument that
        all domains share.

    Returns:
      ``fn(params, batch) -> [M]`` for a batch whose leaves are ``[M, n, ...]``; with an auxiliary output
      ``([M], aux)``, every leaf of aux ``[M, ...]``.

    Raises:
      ValueError: When the leaves of the batch do not have the same number of domains (at trace time).

    Example:
      >>> import jax.numpy as jnp
      >>> import disam_jax
      >>> def loss(w, batch):
      ...   return jnp.mean((batch["x"] @ w - batch["y"]) ** 2)
      >>> batch = {"x": jnp.ones((3, 8, 2)), "y": jnp.zeros((3, 8))}   # 3 domains, 8 examples of each
      >>> disam_jax.per_domain(loss)(jnp.array([1.0, 1.0]), batch).shape
      (3,)
    """
    mapped = jax.vmap(loss_fn, in_axes=in_axes)

    def domain_losses(*args):
        _check_domain_axes(args, in_axes)
        return mapped(*args)

    return domain_losses


def per_domain_value_and_grad(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """The loss and the gradient of each domain, for those who want to look at them.

    ``L_i(w)`` and ``grad L_i(w)`` by ``vmap`` of ``value_and_grad``. DISAM itself needs no per-domain gradient:
    ``value_and_grad`` and the ``domain_loss_fn`` form are faster and hold one gradient instead of M.

    Args:
      loss_fn: ``loss_fn(params, one_domains_batch) -> scalar``.

    Returns:
      ``fn(params, batch) -> (losses [M], stacked_grads)`` for a batch whose leaves are ``[M, n, ...]``; every leaf
      of ``stacked_grads`` is ``[M, *param.shape]``, as the second form of ``disam(...).update`` takes them.

    Raises:
      ValueError: When the leaves of the batch do not have the same number of domains (at trace time).

    Example:
      >>> import jax.numpy as jnp
      >>> import disam_jax
      >>> fn = disam_jax.per_domain_value_and_grad(lambda w, x: jnp.mean(x @ w))
      >>> losses, grads = fn(jnp.ones(2), jnp.ones((3, 8, 2)))
      >>> losses.shape, grads.shape
      ((3,), (3, 2))
    """
    return per_domain(jax.value_and_grad(loss_fn))


def mean_by_domain(example_losses: jax.Array, domain_ids: jax.Array, num_domains: int) -> DomainLosses:
    """The mean loss of each domain of a flat batch, with the sample counts as weights.

    ``L_i = sum_{n: d_n = i} l_n / n_i``. The mean loss of the result is the mean over the examples of the batch. For
    equal shares use ``DomainLosses(out.values, out.weights > 0)``.

    Args:
      example_losses: The loss of each example, floating point ``[N]``. Sums are taken in float32 at least.
      domain_ids: The domain of each example, integers ``[N]`` in ``0 .. num_domains - 1``. Any number of examples per
        domain, none included, in any order.
      num_domains: M, static.

    Returns:
      ``DomainLosses(values [M], weights [M])``; an absent domain has weight 0 and value 0.

    Raises:
      TypeError: When a loss is not floating point or an id is not an integer.
      ValueError: When the shapes differ, or when an id that is known at trace time is out of range. An id that is known
        only on the device and out of range makes every loss NaN: its example is not dropped in silence.

    Example:
      >>> import jax.numpy as jnp
      >>> import disam_jax
      >>> out = disam_jax.mean_by_domain(jnp.array([1.0, 3.0, 5.0]), jnp.array([0, 0, 2]), num_domains=3)
      >>> out.values.tolist(), out.weights.tolist()
      ([2.0, 0.0, 5.0], [2.0, 0.0, 1.0])
    """
    num_domains = _static_positive_int(num_domains, "num_domains")
    example_losses, domain_ids = jnp.asarray(example_losses), jnp.asarray(_check_ids(domain_ids, num_domains))
    if example_losses.ndim != 1 or example_losses.shape != domain_ids.shape:
        raise ValueError(
            "mean_by_domain: example_losses and domain_ids must both be [N], seen "
            f"{example_losses.shape} and {domain_ids.shape}. Reduce everything but the batch axis first: "
            "mean_by_domain(example_losses.reshape(N, -1).mean(1), domain_ids, num_domains)."
        )
    dtype = _accumulation_dtype(example_losses, "mean_by_domain", "example_losses")
    member = domain_ids[:, None] == jnp.arange(num_domains, dtype=domain_ids.dtype)[None]
    # A select and a sum, not a product with a one-hot matrix: 0 * nan would spread one domain's nan to all, and a
    # matrix product may run in reduced precision on an accelerator.
    sums = jnp.sum(jnp.where(member, example_losses.astype(dtype)[:, None], 0), axis=0)
    counts = jnp.sum(member, axis=0, dtype=dtype)
    known = jnp.all((domain_ids >= 0) & (domain_ids < num_domains))
    # As a factor, so that the gradient is nan too, whatever the loss function is.
    values = sums / jnp.maximum(counts, 1) * jnp.where(known, 1, jnp.nan).astype(dtype)
    return DomainLosses(values, counts)


def group_by_domain(
    batch: Any,
    domain_ids: Any,
    num_domains: int,
    per_domain: int | None = None,
    *,
    replace: bool = False,
    rng: np.random.Generator | None = None,
) -> Any:
    """Groups a flat batch by domain on the host, for ``disam_jax.per_domain``.

    Args:
      batch: A pytree of numpy arrays ``[N, ...]``.
      domain_ids: The domain of each example, integers ``[N]`` in ``0 .. num_domains - 1``.
      num_domains: M.
      per_domain: n, how many examples of each domain to keep: the first n in the order of the batch, or n drawn with
        ``rng``. ``None`` keeps all, and then all domains must have the same number.
      replace: Fill a domain that has fewer than n examples by repeating them (with ``rng``: by drawing with
        replacement).
      rng: A numpy generator that draws the examples; ``None`` draws nothing.

    Returns:
      The pytree with leaves ``[M, n, ...]``.

    Raises:
      TypeError: Under ``jit``, or when an id is not an integer.
      ValueError: When a leaf is not ``[N, ...]``, an id is out of range, or the groups are ragged.

    Example:
      >>> import numpy as np
      >>> import disam_jax
      >>> x, ids = np.array([10.0, 20.0, 11.0, 21.0]), np.array([0, 1, 0, 1])
      >>> disam_jax.group_by_domain(x, ids, num_domains=2).tolist()
      [[10.0, 11.0], [20.0, 21.0]]
    """
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((batch, domain_ids))):
        raise TypeError(
            "group_by_domain: works on the host, with numpy, and was called under jit (batch or domain_ids is traced). "
            "Call it before the step, or use disam_jax.mean_by_domain(example_losses, domain_ids, num_domains) inside."
        )
    num_domains = _static_positive_int(num_domains, "num_domains")
    ids = np.asarray(_check_ids(np.asarray(domain_ids), num_domains))
    if ids.ndim != 1:
        raise ValueError(f"group_by_domain: domain_ids must be [N], seen {ids.shape}.")
    members = [np.flatnonzero(ids == i) for i in range(num_domains)]
    counts = [len(m) for m in members]
    if per_domain is None and len(set(counts)) > 1:
        raise ValueError(
            f"group_by_domain: the groups are ragged, domain_ids has {counts} examples of the domains in their order. "
            f"Write group_by_domain(batch, domain_ids, {num_domains}, per_domain={max(min(counts), 1)}), or keep the "
            "batch flat and use disam_jax.mean_by_domain, which takes unequal and absent domains."
        )
    n = counts[0] if per_domain is None else _static_positive_int(per_domain, "per_domain")
    if min(counts) < (1 if replace else n):
        raise ValueError(
            f"group_by_domain: per_domain={n}, but domain_ids has {counts} examples of domains 0..{num_domains - 1}. "
            "Write a smaller per_domain, or replace=True to repeat the examples of a domain that has at least one."
        )
    chosen = np.stack([_choose(m, n, replace and len(m) < n, rng) for m in members])

    def gather(path, leaf):
        leaf = np.asarray(leaf)
        if leaf.ndim < 1 or leaf.shape[0] != len(ids):
            raise ValueError(
                f"group_by_domain: batch{jax.tree_util.keystr(path)} has shape {leaf.shape}, but domain_ids has "
                f"{len(ids)} entries: every leaf must be [N, ...]."
            )
        return leaf[chosen]

    return jax.tree_util.tree_map_with_path(gather, batch)


def ascent_part(batch: Any, fraction: float, *, axis: int = 1) -> Any:
    """A part of each domain's examples, for an ``ascent_loss_fn``: a step then costs 1 + fraction plain ones, not 2.

    The ``m = ceil(fraction * n)`` examples at ``0, s, 2 s, ...`` with ``s = n // m``, the same ones at every call. So
    the order in the batch should mean nothing, as after a shuffle.

    Args:
      batch: A pytree of arrays ``[M, n, ...]``, numpy or jax.
      fraction: Of the examples, in ``(0, 1]``, static. 1 is the whole batch.
      axis: The axis of the examples: 0 for the batch of one domain, ``[n, ...]``, and for a flat batch ``[N, ...]``
        that is sorted by domain. Where the domains take turns in a flat batch, equal strides may leave one out: take
        the part of the grouped batch there.

    Returns:
      The pytree with leaves ``[M, m, ...]``. Under ``jit``, where the n examples lie on several devices and each has a
      multiple of s of them, none of them moves.

    Raises:
      TypeError: When the fraction is not a static number.
      ValueError: When it is not in ``(0, 1]``, or the leaves do not have the same number of examples.

    Example:
      >>> import numpy as np
      >>> import disam_jax
      >>> disam_jax.ascent_part(np.arange(16).reshape(2, 8), 0.25).tolist()   # 2 domains, 8 examples of each
      [[0, 4], [8, 12]]
    """
    kept, stride = _stride(batch, fraction, axis, "ascent_part")
    rows = (slice(None),) * axis + (slice(0, kept * stride, stride),)
    return jax.tree.map(lambda leaf: leaf[rows], batch)


def part_and_rest(batch: Any, fraction: float, *, axis: int = 1) -> tuple[Any, Any]:
    """Both sides of a cut through each domain's examples: ``ascent_part`` and all that it leaves out.

    Every example is on one side, so ``m / n`` of the part's mean loss and ``1 - m / n`` of the rest's are the mean loss
    of the whole batch.

    Args:
      batch: As in ``ascent_part``.
      fraction: As in ``ascent_part``.
      axis: As in ``ascent_part``.

    Returns:
      ``(part, rest)`` with leaves ``[M, m, ...]`` and ``[M, n - m, ...]``; ``n - m`` is 0 for a fraction of 1. Under
      ``jit``, nothing moves between devices where nothing does for ``ascent_part``.

    Raises:
      TypeError: As in ``ascent_part``.
      ValueError: As in ``ascent_part``.

    Example:
      >>> import numpy as np
      >>> import disam_jax
      >>> part, rest = disam_jax.part_and_rest(np.arange(16).reshape(2, 8), 0.25)   # 2 domains, 8 examples of each
      >>> part.tolist(), rest.tolist()
      ([[0, 4], [8, 12]], [[1, 2, 3, 5, 6, 7], [9, 10, 11, 13, 14, 15]])
    """
    kept, stride = _stride(batch, fraction, axis, "part_and_rest")
    before = (slice(None),) * axis

    def rest(leaf):
        head, tail = leaf[(*before, slice(kept * stride))], leaf[(*before, slice(kept * stride, None))]
        # Rows of one stride, of which the first is in the part: a reshape, where a gather would move examples.
        rows = head.reshape(*leaf.shape[:axis], kept, stride, *leaf.shape[axis + 1 :])
        head = rows[(*before, slice(None), slice(1, None))]
        head = head.reshape(*leaf.shape[:axis], kept * (stride - 1), *leaf.shape[axis + 1 :])
        if not tail.shape[axis]:
            return head
        return (np if isinstance(leaf, np.ndarray) else jnp).concatenate([head, tail], axis)

    return ascent_part(batch, fraction, axis=axis), jax.tree.map(rest, batch)


def as_domain_losses(losses: Any, argument: str) -> DomainLosses:
    """Checks what a loss function returned; values and weights come out as ``[M]`` in float32 at least."""
    values, weights = losses if isinstance(losses, DomainLosses) else (losses, None)
    if isinstance(values, (tuple, list, dict)) or values is None:
        raise TypeError(
            f"{argument}: the domain losses must be an array [M], a scalar (one domain) or "
            f"DomainLosses(values, weights), seen {type(values).__name__}. Stack a list with jnp.stack(losses); for "
            "(losses, aux) use disam_jax.value_and_grad(..., has_aux=True)."
        )
    values = jnp.asarray(values)
    if values.ndim > 1:
        raise ValueError(
            f"{argument}: the domain losses must be [M], one mean loss for each domain, seen shape {values.shape}. "
            "Write disam_jax.per_domain(loss_fn)(params, batch) for a grouped batch, or "
            "disam_jax.mean_by_domain(example_losses, domain_ids, num_domains) for a flat one."
        )
    dtype = _accumulation_dtype(values, argument, "the domain losses")
    values = values.astype(dtype).reshape(-1)
    if values.size == 0:
        raise ValueError(f"{argument}: the domain losses are empty, shape (0,). At least one domain is needed.")
    weights = jnp.ones_like(values) if weights is None else jnp.asarray(weights).astype(dtype)
    weights = weights.reshape(-1) if weights.ndim == 0 else weights
    if weights.shape != values.shape:
        raise ValueError(
            f"{argument}: DomainLosses needs one weight for each domain, seen values {values.shape} and weights "
            f"{weights.shape}. Write DomainLosses(values, weights) with both [M]."
        )
    # The value of an absent domain is not a loss: whatever stands there must not reach a sum.
    return DomainLosses(jnp.where(weights > 0, values, 0), weights)


def domain_shares(losses: DomainLosses) -> jax.Array:
    """``a_i = weights_i / sum(weights)``, and 0 for all when every domain is absent."""
    total = jnp.sum(losses.weights)
    return losses.weights / jnp.where(total > 0, total, 1)


def mean_loss(losses: DomainLosses) -> jax.Array:
    """``sum_i a_i L_i``."""
    return jnp.sum(domain_shares(losses) * losses.values)


def across_devices(losses: DomainLosses, axis_name: Any) -> DomainLosses:
    """The domain losses of the whole batch, from the part of the batch that each device holds.

    ``L_i = sum_dev n_(i,dev) L_(i,dev) / n_i``. Differentiating through this sum and taking the mean of the gradient
    over the axis gives the global gradient under pmap, vmap and shard_map, with and without varying-axes checking.
    """
    if axis_name is None:
        return losses
    weights = jax.lax.psum(losses.weights, axis_name)
    part = losses.weights / jnp.where(weights > 0, weights, 1)
    return DomainLosses(jax.lax.psum(part * losses.values, axis_name), weights)


def check_axis(axis_name: Any) -> None:
    """An axis name that no transformation binds is a mistake of the caller, found at trace time."""
    if axis_name is None:
        return
    try:
        jax.lax.axis_index(axis_name)
    except NameError as error:
        raise ValueError(
            f"axis_name={axis_name!r} is not a mapped axis here. It is for pmap-style code: jax.pmap(step, "
            f"axis_name={axis_name!r}), jax.vmap or jax.shard_map. Under jit with a sharded batch write "
            "axis_name=None, which gives the numbers of the whole batch."
        ) from error


def _accumulation_dtype(x: jax.Array, where: str, what: str) -> Any:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{where}: {what} must be floating point, seen {x.dtype}{list(x.shape)}. A count or a 0/1 error has no "
            "gradient: return a differentiable loss."
        )
    return accumulation_dtype(x)


def _stride(batch: Any, fraction: Any, axis: int, name: str) -> tuple[int, int]:
    """How many examples are in the part, and how far they are apart."""
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: fraction must be a static number, seen {fraction!r}. Write 0.25.")
    if not 0 < fraction <= 1:
        raise ValueError(f"{name}: fraction must be in (0, 1], seen {fraction}. Write 0.25 for every fourth example.")
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    shapes = {f"batch{jax.tree_util.keystr(path)}": jnp.shape(leaf) for path, leaf in leaves}
    if any(not 0 <= axis < len(shape) for shape in shapes.values()) or len({s[axis] for s in shapes.values()}) != 1:
        seen = ", ".join(f"{leaf} {shape}" for leaf, shape in shapes.items()) or "no arrays"
        raise ValueError(
            f"{name}: every leaf must have the same number of examples on axis {axis}, seen {seen}. Leaves are "
            "[M, n, ...]; write axis=0 for the batch of one domain, [n, ...]."
        )
    n = next(iter(shapes.values()))[axis]
    # 0.07 * 100 is a little more than 7 in floating point, and meant as 7.
    kept = max(math.ceil(round(fraction * n, 9)), 1)
    stride = max(n // kept, 1)
    return kept, stride


def _static_positive_int(value: Any, argument: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{argument} must be a static Python integer, seen {value!r} of type {type(value).__name__}.")
    if value < 1:
        raise ValueError(f"{argument} must be at least 1, seen {value}.")
    return int(value)


def _check_ids(domain_ids: Any, num_domains: int) -> Any:
    ids = domain_ids if isinstance(domain_ids, (jax.Array, np.ndarray)) else np.asarray(domain_ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(
            f"domain_ids must be integers, seen {ids.dtype}{list(ids.shape)}. Write domain_ids.astype(jnp.int32)."
        )
    # numpy values are on the host already; reading a device array here would make every eager call wait for it.
    if isinstance(ids, np.ndarray) and ids.size and (ids.min() < 0 or ids.max() >= num_domains):
        raise ValueError(
            f"domain_ids must be in 0..{num_domains - 1} for num_domains={num_domains}, seen {ids.min()}..{ids.max()}. "
            "Number the domains from 0, or raise num_domains."
        )
    return ids


def _check_domain_axes(args: tuple[Any, ...], in_axes: Any) -> None:
    axes = [in_axes] * len(args) if isinstance(in_axes, int) else in_axes
    if axes is None or len(axes) != len(args):
        return  # vmap's own message says it best
    seen: dict[int, str] = {}
    for number, (arg, axis) in enumerate(zip(args, axes, strict=True)):
        if not isinstance(axis, int):
            continue
        for path, leaf in jax.tree_util.tree_leaves_with_path(arg):
            shape, name = jnp.shape(leaf), f"argument {number}{jax.tree_util.keystr(path)}"
            if not -len(shape) <= axis < len(shape):
                raise ValueError(
                    f"per_domain: {name} has shape {shape} and no axis {axis} for the domains: leaves are [M, n, ...]."
                )
            seen.setdefault(shape[axis], f"{name} {shape}")
    if len(seen) > 1:
        found = " but ".join(f"{m} in {name}" for m, name in seen.items())
        raise ValueError(
            f"per_domain: the number of domains differs: {found}. Every leaf must be [M, n, ...]: group a flat batch "
            "with disam_jax.group_by_domain(batch, domain_ids, num_domains)."
        )


def _choose(members: np.ndarray, n: int, replace: bool, rng: np.random.Generator | None) -> np.ndarray:
    if rng is not None:
        return rng.choice(members, n, replace=replace)
    return np.resize(members, n) if replace else members[:n]
