"""From batches to domain losses: one loss for each source domain.

A batch is either grouped, with leaves ``[domains, per_domain, ...]``, or flat, with leaves ``[N, ...]``
and the domain of each example in ``domain_ids`` ``[N]``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import jax.typing
import numpy as np

from disam_jax._dtypes import LARGEST, accumulation_dtype, known, nan_unless
from disam_jax._types import AxisName, GradFn, LossFn


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
    weights: jax.typing.ArrayLike | None = None


Losses: TypeAlias = jax.typing.ArrayLike | DomainLosses


class CheckedLosses(NamedTuple):
    """The domain losses of one pass, checked, with all that follows from their weights.

    Attributes:
      values: ``L_i``, floating point ``[M]``, float32 at least; 0 for an absent domain.
      weights: As in ``DomainLosses``, ``[M]``, in the dtype of the values.
      present: Which domains have a weight, boolean ``[M]``.
      shares: ``a_i = weights_i / sum(weights)``, ``[M]``; all 0 when every domain is absent.
    """

    values: jax.Array
    weights: jax.Array
    present: jax.Array
    shares: jax.Array


def per_domain(loss_fn: LossFn, in_axes: int | Sequence[Any] | None = (None, 0)) -> LossFn:
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


def per_domain_value_and_grad(loss_fn: LossFn) -> GradFn:
    """The loss and the gradient of each domain, for inspection.

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
    num_domains = static_positive_int(num_domains, "num_domains")
    example_losses, domain_ids = jnp.asarray(example_losses), jnp.asarray(check_ids(domain_ids, num_domains))
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
    return DomainLosses(sums / jnp.maximum(counts, 1) * nan_unless(known_ids), counts)


def as_domain_losses(losses: Any, argument: str, axis_name: AxisName = None) -> CheckedLosses:
    """Checks what a loss function returned; with an axis, the result is that of the batch on all its devices."""
    values, weights = _check_losses(losses, argument)
    if axis_name is not None:
        values, weights = _across_devices(values, weights, axis_name)
    total = jnp.sum(weights)
    return CheckedLosses(values, weights, weights > 0, weights / jnp.where(total > 0, total, 1))


def _check_losses(losses: Any, argument: str) -> tuple[jax.Array, jax.Array]:
    """The values and the weights, each ``[M]``, in float32 at least."""
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
        return values, weights
    right = nan_unless(jnp.all((weights >= 0) & (weights <= LARGEST)))
    return values * right, weights * right


def _across_devices(values: jax.Array, weights: jax.Array, axis_name: AxisName) -> tuple[jax.Array, jax.Array]:
    """The losses and weights of the whole batch, from those of the examples that each device holds.

    ``L_i = sum_dev n_(i,dev) L_(i,dev) / n_i``. Differentiating through this sum and taking the mean of the gradient
    over the axis gives the global gradient under pmap, vmap and shard_map, with and without varying-axes checking.
    """
    everywhere = jax.lax.psum(weights, axis_name)
    fraction = weights / jnp.where(everywhere > 0, everywhere, 1)
    return jax.lax.psum(fraction * values, axis_name), everywhere


def _accumulation_dtype(x: jax.Array, where: str, what: str) -> jnp.dtype:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{where}: {what} must be floating point, got {x.dtype}{list(x.shape)}. A count or a 0/1 error has no "
            "gradient: return a differentiable loss."
        )
    return accumulation_dtype(x)


def _as_weights(weights: Any, dtype: jnp.dtype, argument: str) -> tuple[jax.Array, bool]:
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


def _may_be_negative(dtype: jnp.dtype) -> bool:
    return not (jnp.issubdtype(dtype, jnp.bool_) or jnp.issubdtype(dtype, jnp.unsignedinteger))


def static_positive_int(value: object, argument: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{argument} must be a static Python integer, got {value!r} of type {type(value).__name__}.")
    if value < 1:
        raise ValueError(f"{argument} must be at least 1, got {value}.")
    return int(value)


def check_ids(domain_ids: jax.typing.ArrayLike, num_domains: int) -> Any:
    # Only values on the host can be looked at without waiting; a list may hold traced ids.
    on_device = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(domain_ids))
    ids = jnp.asarray(domain_ids) if on_device else np.asarray(domain_ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(
            f"domain_ids must be integers, got {ids.dtype}{list(ids.shape)}. Write domain_ids.astype(jnp.int32)."
        )
    if isinstance(ids, np.ndarray) and ids.size:
        # Python integers: a bound that the dtype of the ids cannot hold compares as it should.
        lowest, highest = int(ids.min()), int(ids.max())
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
