"""From batches to domain losses: one loss for each source domain.

A batch is either grouped, with leaves ``[domains, per_domain, ...]``, or flat, with leaves ``[N, ...]``
and the domain of each example in ``domain_ids`` ``[N]``.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax._dtypes import LARGEST, accumulation_dtype, known, nan_unless


class DomainLosses(NamedTuple):
    """The losses of M domains and how much each counts in the mean loss.

    The mean loss is ``sum_i a_i L_i`` with the shares ``a = weights / sum(weights)``.

    Attributes:
      values: The mean loss of each domain, floating point ``[M]``. The value of an absent domain has no effect, NaN
        included. The loss function is still differentiated there, with a cotangent of 0, and 0 times the derivative of
        0 / 0 is NaN: divide a masked mean by ``jnp.maximum(count, 1)``, as below.
      weights: Shares or sample counts, finite and not negative, ``[M]``, of any real dtype or boolean; 0 marks an
        absent domain. ``None`` gives every domain the same share. A wrong weight that is known when the step is called
        (a number, a numpy array, a device array that is ready) is an error. One that is traced or still being computed
        makes every loss and gradient NaN: no step waits for a device to check it.

    Example:
      A domain without a valid label in this batch is absent:

      >>> import jax.numpy as jnp
      >>> import disam_jax
      >>> def domain_losses(w, x, valid):   # x [M, n], valid [M, n]
      ...   count = jnp.sum(valid, axis=1)
      ...   sums = jnp.sum(jnp.where(valid, (w * x) ** 2, 0.0), axis=1)
      ...   return disam_jax.DomainLosses(values=sums / jnp.maximum(count, 1), weights=count)
      >>> x = jnp.array([[1.0, 3.0], [2.0, 5.0]])
      >>> valid = jnp.array([[True, True], [False, False]])
      >>> loss, grad = disam_jax.value_and_grad(domain_losses, rho=0.5, lam=0.1)(1.0, x, valid)
      >>> float(loss), float(grad)
      (5.0, 15.0)
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
      ``fn(params, batch, **kwargs) -> [M]`` for a batch whose leaves are ``[M, n, ...]``; with an auxiliary output
      ``([M], aux)``, every leaf of aux ``[M, ...]``. Keyword arguments are passed to every domain as they are: a
      Python value such as ``train=True`` stays one, and an array is not split by domain.

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

    def domain_losses(*args, **kwargs):
        _check_domain_axes(args, in_axes)
        # vmap itself maps keyword arguments, and over their first axis.
        fn = jax.vmap(functools.partial(loss_fn, **kwargs), in_axes=in_axes) if kwargs else mapped
        return fn(*args)

    return domain_losses


def per_domain_value_and_grad(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """The loss and the gradient of each domain, for those who want to look at them.

    ``L_i(w)`` and ``grad L_i(w)`` by ``vmap`` of ``value_and_grad``. DISAM itself needs no per-domain gradient:
    ``value_and_grad`` and the ``domain_loss_fn`` form are faster and hold one gradient instead of M.

    Args:
      loss_fn: ``loss_fn(params, one_domains_batch) -> scalar``.

    Returns:
      ``fn(params, batch, **kwargs) -> (losses [M], stacked_grads)`` for a batch whose leaves are ``[M, n, ...]``; every
      leaf of ``stacked_grads`` is ``[M, *param.shape]``, as the second form of ``disam(...).update`` takes them.
      Keyword arguments are passed to every domain as they are.

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
      domain_ids: The domain of each example, ``[N]``, of any integer dtype, in ``0 .. num_domains - 1``. Any number of
        examples per domain, none included, in any order.
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
            "mean_by_domain: example_losses and domain_ids must both be [N], got "
            f"{example_losses.shape} and {domain_ids.shape}. Reduce everything but the batch axis first: "
            "mean_by_domain(example_losses.reshape(N, -1).mean(1), domain_ids, num_domains)."
        )
    dtype = _accumulation_dtype(example_losses, "mean_by_domain", "example_losses")
    ids, known_ids = _as_int32(domain_ids, num_domains)
    member = ids[:, None] == jnp.arange(num_domains, dtype=jnp.int32)[None]
    # A select and a sum, not a product with a one-hot matrix: 0 * nan would spread one domain's nan to all, and a
    # matrix product may run in reduced precision on an accelerator.
    sums = jnp.sum(jnp.where(member, example_losses.astype(dtype)[:, None], 0), axis=0)
    counts = jnp.sum(member, axis=0, dtype=dtype)
    return DomainLosses(sums / jnp.maximum(counts, 1) * nan_unless(known_ids, dtype), counts)


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
      domain_ids: The domain of each example, ``[N]``, of any integer dtype, in ``0 .. num_domains - 1``.
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
    ids = np.asarray(_check_ids(np.asarray(domain_ids), num_domains)).astype(np.int64)
    if ids.ndim != 1:
        raise ValueError(f"group_by_domain: domain_ids must be [N], got {ids.shape}.")
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
    _check_divides(batch, axis, [kept], "ascent_part")
    return jax.tree.map(lambda leaf: _slice(leaf, 0, kept * stride, stride, axis), batch)


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
    n = jnp.shape(jax.tree.leaves(batch)[0])[axis]
    _check_divides(batch, axis, [kept, kept * stride], "part_and_rest")

    def rest(leaf):
        head = _slice(leaf, 0, kept * stride, 1, axis)
        # Rows of one stride, of which the first is in the part: a reshape, where a gather would move examples.
        rows = head.reshape(*leaf.shape[:axis], kept, stride, *leaf.shape[axis + 1 :])
        head = _slice(rows, 1, stride, 1, axis + 1)
        head = head.reshape(*leaf.shape[:axis], kept * (stride - 1), *leaf.shape[axis + 1 :])
        if kept * stride == n:
            return head
        tail = _slice(leaf, kept * stride, n, 1, axis)
        return (np if isinstance(leaf, np.ndarray) else jnp).concatenate([head, tail], axis)

    return ascent_part(batch, fraction, axis=axis), jax.tree.map(rest, batch)


def as_domain_losses(losses: Any, argument: str) -> DomainLosses:
    """Checks what a loss function returned; values and weights come out as ``[M]`` in float32 at least."""
    values, weights = losses if isinstance(losses, DomainLosses) else (losses, None)
    if isinstance(values, (tuple, list, dict)) or values is None:
        raise TypeError(
            f"{argument}: the domain losses must be an array [M], a scalar (one domain) or "
            f"DomainLosses(values, weights), got {type(values).__name__}. Stack a list with jnp.stack(losses); for "
            "(losses, aux) use disam_jax.value_and_grad(..., has_aux=True)."
        )
    values = jnp.asarray(values)
    if values.ndim > 1:
        raise ValueError(
            f"{argument}: the domain losses must be [M], one mean loss for each domain, got shape {values.shape}. "
            "Write disam_jax.per_domain(loss_fn)(params, batch) for a grouped batch, or "
            "disam_jax.mean_by_domain(example_losses, domain_ids, num_domains) for a flat one."
        )
    dtype = _accumulation_dtype(values, argument, "the domain losses")
    values = values.astype(dtype).reshape(-1)
    if values.size == 0:
        raise ValueError(f"{argument}: the domain losses are empty, shape (0,). At least one domain is needed.")
    weights, checked = (jnp.ones_like(values), True) if weights is None else _as_weights(weights, dtype, argument)
    weights = weights.reshape(-1) if weights.ndim == 0 else weights
    if weights.shape != values.shape:
        raise ValueError(
            f"{argument}: DomainLosses needs one weight for each domain, got values {values.shape} and weights "
            f"{weights.shape}. Write DomainLosses(values, weights) with both [M]."
        )
    # The value of an absent domain is not a loss: whatever stands there must not reach a sum.
    values = jnp.where(weights > 0, values, 0)
    if checked:
        return DomainLosses(values, weights)
    right = nan_unless(jnp.all((weights >= 0) & (weights <= LARGEST)), dtype)
    return DomainLosses(values * right, weights * right)


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
            f"{where}: {what} must be floating point, got {x.dtype}{list(x.shape)}. A count or a 0/1 error has no "
            "gradient: return a differentiable loss."
        )
    return accumulation_dtype(x)


def _stride(batch: Any, fraction: Any, axis: int, name: str) -> tuple[int, int]:
    """How many examples are in the part, and how far they are apart."""
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: fraction must be a static number, got {fraction!r}. Write 0.25.")
    if not 0 < fraction <= 1:
        raise ValueError(f"{name}: fraction must be in (0, 1], got {fraction}. Write 0.25 for every fourth example.")
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


def _as_weights(weights: Any, dtype: Any, argument: str) -> tuple[jax.Array, bool]:
    """The weights as an array of the dtype, and whether their values are known to be right."""
    given = weights
    if not isinstance(weights, (jax.Array, np.ndarray)):
        on_device = any(isinstance(x, jax.Array) for x in jax.tree.leaves(weights))
        given = (jnp if on_device else np).asarray(weights)
    if not any(jnp.issubdtype(given.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)):
        raise TypeError(
            f"{argument}: the weights of DomainLosses must be real numbers, got {given.dtype}{list(given.shape)}. "
            "Write sample counts or shares."
        )
    found = known(given, wait=False)
    if found is not None and not np.all((found >= 0) & (found <= LARGEST)):
        raise ValueError(
            f"{argument}: the weights of DomainLosses must be finite and not negative, got {found.tolist()}. Write "
            "sample counts or shares, and 0 for an absent domain."
        )
    return jnp.asarray(given).astype(dtype), found is not None or not _may_be_negative(given.dtype)


def _may_be_negative(dtype: Any) -> bool:
    return not (jnp.issubdtype(dtype, jnp.bool_) or jnp.issubdtype(dtype, jnp.unsignedinteger))


def _slice(leaf: Any, start: int, stop: int, stride: int, axis: int) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf[(*(slice(None),) * axis, slice(start, stop, stride))]
    # Outside of jit, indexing is a gather, which an explicit mesh refuses.
    return jax.lax.slice_in_dim(leaf, start, stop, stride, axis)


def explicit_split(x: Any, axis: int) -> int:
    """In how many parts an axis is split by the type of the array, as on an explicit mesh; 1 where it is whole."""
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis] if axis < len(sharding.spec) else None
    return math.prod(sharding.mesh.shape[name] for name in ([names] if isinstance(names, str) else names or ()))


def _check_divides(batch: Any, axis: int, sizes: list[int], name: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        devices = explicit_split(leaf, axis)
        for size in sizes:
            if size % devices:
                raise ValueError(
                    f"{name}: the examples of batch{jax.tree_util.keystr(path)} are split over {devices} devices on an "
                    f"explicit mesh, and {size} of its {leaf.shape[axis]} do not divide by {devices}. Write another "
                    "fraction, or jax.sharding.reshard the batch so that they are not split."
                )


def _static_positive_int(value: Any, argument: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{argument} must be a static Python integer, got {value!r} of type {type(value).__name__}.")
    if value < 1:
        raise ValueError(f"{argument} must be at least 1, got {value}.")
    return int(value)


def _check_ids(domain_ids: Any, num_domains: int) -> Any:
    # Only values on the host can be looked at without waiting; a list may hold traced ids.
    on_device = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(domain_ids))
    ids = jnp.asarray(domain_ids) if on_device else np.asarray(domain_ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(
            f"domain_ids must be integers, got {ids.dtype}{list(ids.shape)}. Write domain_ids.astype(jnp.int32)."
        )
    if isinstance(ids, np.ndarray) and ids.size:
        # Python integers: a bound that the dtype of the ids cannot hold compares as it should.
        wide = ids if ids.dtype.kind in "iu" else ids.astype(np.int64)
        lowest, highest = int(wide.min()), int(wide.max())
        if lowest < 0 or highest >= num_domains:
            raise ValueError(
                f"domain_ids must be in 0..{num_domains - 1} for num_domains={num_domains}, got {lowest}..{highest}. "
                "Number the domains from 0, or raise num_domains."
            )
    return ids


def _as_int32(ids: jax.Array, num_domains: int) -> tuple[jax.Array, jax.Array]:
    """The ids as int32, and whether all of them are in range: judged in a dtype that holds both ids and bounds."""
    ids = ids if ids.dtype.itemsize >= 4 else ids.astype(jnp.int32)
    highest = np.asarray(min(num_domains - 1, jnp.iinfo(ids.dtype).max), ids.dtype)
    return ids.astype(jnp.int32), jnp.all((ids >= 0) & (ids <= highest))


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
