"""Forward and backward passes at w and at w + e, for each way to supply domain losses.

The first pass gives the losses, the domain weights and the ascent gradient; the second gives the gradient to descend
along, that of the mean loss or of another weighting of the domains. All that follows (perturbation, variants) is the
same for every way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from disam_jax._domains import CheckedLosses, DomainLosses, Losses, as_domain_losses
from disam_jax._dtypes import accumulation_dtype, as_params, cast
from disam_jax._sharding import check_not_split, explicit_split
from disam_jax._types import Aux, AxisName, Examples, LossFn, Params, Updates
from disam_jax._weights import AscentWeights

Weigh: TypeAlias = Callable[[CheckedLosses], AscentWeights]
Unit: TypeAlias = Callable[[Params, Updates], Updates]  # the gradient of a domain at params -> the same of length 1


class WeightedPass(NamedTuple):
    """Results of a pass that weighs the domains by their losses.

    Attributes:
      losses: The domain losses.
      aux: What the loss function returned beside them.
      weights: The domain weights of these losses.
      gradient: ``sum_i b_i grad L_i``; with ``unit``, ``sum_i b_i grad L_i / ||grad L_i||``.
      mean_gradient: A function that returns ``sum_i a_i grad L_i``, by one more backward pass at most.
    """

    losses: CheckedLosses
    aux: Aux
    weights: AscentWeights
    gradient: Updates
    mean_gradient: Callable[[], Updates]


class DescentPass(NamedTuple):
    """Results of the pass whose gradient is descended along.

    Attributes:
      losses: The domain losses, or ``None`` where a function supplied the gradient alone.
      aux: What the loss function returned beside them; ``None`` with ``passes_from_gradients`` and in the descent of
        ``passes_by_scan``.
      gradient: ``sum_i a_i grad L_i``, or ``sum_i b_i grad L_i``.
    """

    losses: CheckedLosses | None
    aux: Aux
    gradient: Updates


class Passes(NamedTuple):
    """The two passes of a step, and the one pass of a plain step.

    Attributes:
      ascent: ``ascent(params, weigh)``: the pass at w. ``weigh`` makes the domain weights of its losses.
      descent: ``descent(params, weigh)``: the pass at w + e. With ``weigh=None`` its gradient is that of the mean loss;
        otherwise ``weigh`` makes the domain weights of its losses.
      plain: ``plain(params)``: the pass at w whose gradient is that of the mean loss; it always has the losses.
    """

    ascent: Callable[[Params, Weigh], WeightedPass]
    descent: Callable[[Params, Weigh | None], DescentPass]
    plain: Callable[[Params], DescentPass]


def passes_from_loss_fn(
    domain_loss_fn: LossFn,
    ascent_loss_fn: LossFn | None = None,
    *,
    has_aux: bool = False,
    axis_name: AxisName = None,
) -> Passes:
    """Passes from a function of the parameters that returns the domain losses: b is the cotangent of ONE reverse pass.

    ``ascent_loss_fn``, if given, replaces ``domain_loss_fn`` in the first pass.
    """
    check_ascent_loss_fn(ascent_loss_fn)
    check_axis(axis_name)

    def evaluate(params, loss_fn, argument):
        def values_at(p):
            out, aux = split_aux(loss_fn(p), has_aux, argument)
            losses = as_domain_losses(out, argument, axis_name)
            return losses.values, (losses, aux)

        values, pull, (losses, aux) = jax.vjp(values_at, params, has_aux=True)

        def gradient(cotangent):
            (grads,) = pull(cotangent)
            return mean_over_axis(grads, axis_name)

        return losses._replace(values=values), aux, gradient

    def ascent(params, weigh):
        if ascent_loss_fn is None:
            losses, aux, gradient = evaluate(params, domain_loss_fn, "domain_loss_fn")
        else:
            losses, aux, gradient = evaluate(params, ascent_loss_fn, "ascent_loss_fn")
        weights = weigh(losses)
        return WeightedPass(losses, aux, weights, gradient(weights.values), lambda: gradient(losses.shares))

    def descent(params, weigh):
        losses, aux, gradient = evaluate(params, domain_loss_fn, "domain_loss_fn")
        return DescentPass(losses, aux, gradient(losses.shares if weigh is None else weigh(losses).values))

    return Passes(ascent, descent, lambda params: descent(params, None))


def passes_from_gradients(
    stacked: Updates,
    losses: Losses,
    grad_fn: Callable[[Params], Updates],
    *,
    unit: Unit | None = None,
    axis_name: AxisName = None,
) -> Passes:
    """Passes from the gradients of each domain at w, which b sums, and ``grad_fn``, which is the second pass.

    With ``unit``, b sums the gradients of length 1.
    """
    check_axis(axis_name)
    stacked = as_params(stacked, "stacked gradients")
    local = as_domain_losses(losses, "domain_losses")
    everywhere = local if axis_name is None else as_domain_losses(losses, "domain_losses", axis_name)
    total = jnp.sum(everywhere.weights)
    local_share = jnp.sum(local.weights) / jnp.where(total > 0, total, 1)
    fraction = local.weights / jnp.where(everywhere.present, everywhere.weights, 1)

    def present_rows(g):
        # An absent domain's gradient may be anything, nan included: select it away before the sum.
        return jnp.where(_by_row(local.present, g), cast(g, accumulation_dtype(g)), 0)

    def sum_rows(tree, factors):
        def leaf(g):
            rows = present_rows(g)
            weights = cast(factors, rows.dtype)
            if explicit_split(rows, 0) > 1:  # where a product would be refused, and a sum is not
                return cast(jnp.sum(_by_row(weights, g) * rows, axis=0), g.dtype)
            return cast(jnp.tensordot(weights, rows, axes=1, precision=jax.lax.Precision.HIGHEST), g.dtype)

        return jax.tree.map(leaf, tree)

    def weighted_sum(b):
        return sum_over_axis(sum_rows(stacked, fraction * b), axis_name)

    def weighted_sum_of_units(unit, params, b):
        whole = jax.tree.map(present_rows, stacked)
        if axis_name is not None:  # the length of a gradient is that over all devices
            whole = sum_over_axis(jax.tree.map(lambda g: _by_row(cast(fraction, g.dtype), g) * g, whole), axis_name)
        units = jax.vmap(unit, in_axes=(None, 0))(params, whole)
        return jax.tree.map(
            lambda u, g: cast(jnp.sum(_by_row(cast(b, u.dtype), u) * u, axis=0), g.dtype), units, stacked
        )

    def ascent(params, weigh):
        _check_stacked(stacked, params, local.values.shape[0])
        weights = weigh(everywhere)
        b = weights.values
        gradient = weighted_sum(b) if unit is None else weighted_sum_of_units(unit, params, b)
        return WeightedPass(everywhere, None, weights, gradient, lambda: weighted_sum(everywhere.shares))

    def descent(params, weigh):
        assert weigh is None, "grad_fn gives the gradient of the mean loss"
        grads = grad_fn(params)
        if jax.tree.structure(grads) != jax.tree.structure(params):
            raise ValueError(
                "grad_fn must return a gradient with the structure of params, got "
                f"{jax.tree.structure(grads)} for params {jax.tree.structure(params)}. Write "
                "grad_fn=jax.grad(lambda p: jnp.mean(disam_jax.per_domain(loss_fn)(p, batch)))."
            )
        grads = as_params(grads, "the gradient of grad_fn")
        _check_shapes(grads, params)
        if axis_name is not None:
            grads = sum_over_axis(jax.tree.map(lambda g: g * cast(local_share, g.dtype), grads), axis_name)
        return DescentPass(None, None, grads)

    def plain(params):
        _check_stacked(stacked, params, local.values.shape[0])
        return DescentPass(everywhere, None, weighted_sum(everywhere.shares))

    return Passes(ascent, descent, plain)


def passes_by_scan(
    loss_fn: LossFn,
    batch: Examples,
    ascent_loss_fn: LossFn | None,
    *,
    has_aux: bool,
    axis_name: AxisName,
    unit: Unit | None = None,
    unroll: int | bool = 1,
) -> Passes:
    """Passes that take one domain at a time, from ``loss_fn(params, one_domains_batch)``.

    b is affine in L, so ``sum g_i`` and ``sum (L_i - L_0) g_i`` from one scan suffice for ``sum_i b_i g_i``.
    ``ascent_loss_fn``, if given, replaces ``loss_fn`` in the first pass. With ``unit``, the gradients that the ascent
    sums have length 1.
    """
    check_axis(axis_name)
    num_domains = number_of_domains(batch)

    def of_one_domain(one_domain_loss_fn):
        return jax.value_and_grad(one_domain_loss(one_domain_loss_fn, has_aux, axis_name), has_aux=True)

    def domain(index):
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), batch)

    def mean(total):
        return mean_over_axis(mean_over_domains(total, num_domains), axis_name)

    def weighted(params, weigh, one_domain_loss_fn, unit=None):
        value_and_grad = of_one_domain(one_domain_loss_fn)

        def weighed(grads):
            return grads if unit is None else unit(params, mean_over_axis(grads, axis_name))

        def body(sums, index):
            weighed_sum, by_loss, plain_sum = sums
            (loss, aux), grads = value_and_grad(params, domain(index))
            plain_sum = plain_sum if unit is None else add(plain_sum, grads, jnp.ones(()))
            grads = weighed(grads)
            # Losses relative to the first one: the two sums would cancel almost all digits of a small spread otherwise.
            sums = add(weighed_sum, grads, jnp.ones(())), add(by_loss, grads, loss - first), plain_sum
            return sums, (loss, aux)

        # The first domain before the scan, for one sum starts from its gradient and the other without it.
        (first, first_aux), grads = value_and_grad(params, domain(0))
        weighed_sum, plain_sum = jax.tree.map(
            lambda g: g.astype(accumulation_dtype(g)), (weighed(grads), None if unit is None else grads)
        )
        by_loss = jax.tree.map(jnp.zeros_like, weighed_sum)
        values, aux = jax.tree.map(lambda x: jnp.asarray(x)[None], (first, first_aux))
        if num_domains > 1:  # jax.disable_jit refuses a scan over nothing
            sums = weighed_sum, by_loss, plain_sum
            sums, others = jax.lax.scan(body, sums, jnp.arange(1, num_domains), unroll=unroll)
            weighed_sum, by_loss, plain_sum = sums
            values, aux = jax.tree.map(lambda x, xs: jnp.concatenate([x, xs]), (values, aux), others)

        losses = as_domain_losses(values, "loss_fn")
        weights = weigh(losses)
        combined = weighted_total(weighed_sum, by_loss, weights, first)
        plain_sum = weighed_sum if unit is None else plain_sum
        return WeightedPass(losses, aux, weights, mean(combined), lambda: mean(plain_sum))

    def plain(params, *, keep_aux=True):
        value_and_grad = of_one_domain(loss_fn)

        def body(plain_sum, one_domain):
            (loss, aux), grads = value_and_grad(params, one_domain)
            return add(plain_sum, grads, jnp.ones(())), (loss, aux if keep_aux else None)

        # Plain accumulation and nothing else: with rho=0 its result is bitwise that of a plain step.
        zeros = jax.tree.map(lambda w: jnp.zeros_like(w, dtype=accumulation_dtype(w)), params)  # with their sharding
        plain_sum, (values, aux) = jax.lax.scan(body, zeros, batch, unroll=unroll)
        return DescentPass(as_domain_losses(values, "loss_fn"), aux, mean(plain_sum))

    def ascent(params, weigh):
        return weighted(params, weigh, loss_fn if ascent_loss_fn is None else ascent_loss_fn, unit)

    def descent(params, weigh):
        if weigh is None:
            return plain(params, keep_aux=False)
        found = weighted(params, weigh, loss_fn)
        return DescentPass(found.losses, None, found.gradient)

    return Passes(ascent, descent, plain)


def one_domain_loss(loss_fn: LossFn, has_aux: bool, axis_name: AxisName) -> LossFn:
    """``(params, one_domains_batch) -> (loss, aux)``, the loss checked and averaged over the axis."""

    def loss_at(params, one_domain):
        loss, aux = _scalar_loss(loss_fn(params, one_domain), has_aux)
        return loss if axis_name is None else jax.lax.pmean(loss, axis_name), aux

    return loss_at


def number_of_domains(batch: Examples) -> int:
    """How many domains a scan over the batch takes, one after the other."""
    number = _leading_size(batch)
    check_not_split(batch)
    return number


def add(total: Updates, grads: Updates, factor: jax.Array) -> Updates:
    """``total + factor * grads`` in the dtypes of the total."""
    return jax.tree.map(lambda t, g: t + cast(factor, t.dtype) * cast(g, t.dtype), total, grads)


def weighted_total(total: Updates, by_loss: Updates, weights: AscentWeights, first: jax.Array) -> Updates:
    """``M sum_i b_i g_i`` from ``sum_i g_i`` and ``sum_i (L_i - first) g_i``, for domains of equal shares."""
    shift = (first - weights.largest) - weights.offset
    constant, slope = 1 - weights.slope * shift, weights.slope
    return jax.tree.map(lambda p, s: cast(constant, p.dtype) * p - cast(slope, s.dtype) * s, total, by_loss)


def mean_over_domains(total: Updates, num_domains: int) -> Updates:
    """``total / M`` in the dtypes of the total."""
    return jax.tree.map(lambda t: t / num_domains, total)


def _by_row(factors: jax.Array, rows: jax.Array) -> jax.Array:
    return factors.reshape(-1, *[1] * (rows.ndim - 1))


def check_ascent_loss_fn(ascent_loss_fn: object) -> None:
    if ascent_loss_fn is not None and not callable(ascent_loss_fn):
        raise TypeError(
            f"ascent_loss_fn must be a function like domain_loss_fn, got {type(ascent_loss_fn).__name__}. Write "
            "ascent_loss_fn=lambda params, batch: domain_losses(params, disam_jax.ascent_subset(batch, 0.25))."
        )


def check_axis(axis_name: AxisName) -> None:
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


def mean_over_axis(grads: Updates, axis_name: AxisName) -> Updates:
    """The gradient of a loss that was summed over the axis inside: each device's gradient is already whole."""
    return grads if axis_name is None else jax.tree.map(lambda g: jax.lax.pmean(g, axis_name), grads)


def sum_over_axis(grads: Updates, axis_name: AxisName) -> Updates:
    return grads if axis_name is None else jax.tree.map(lambda g: jax.lax.psum(g, axis_name), grads)


def split_aux(out: Any, has_aux: bool, argument: str) -> tuple[Any, Aux]:
    """What a loss function returned, as (domain losses, aux)."""
    if not has_aux:
        return out, None
    if isinstance(out, DomainLosses) or not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(
            f"{argument}: with has_aux=True it must return (domain losses, aux), got {type(out).__name__}. Return a "
            "pair, or write has_aux=False."
        )
    return out


def _scalar_loss(out: Any, has_aux: bool) -> tuple[jax.Array, Aux]:
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(f"loss_fn: with has_aux=True it must return (loss, aux), got {type(out).__name__}.")
    loss, aux = out if has_aux else (out, None)
    losses = as_domain_losses(loss, "loss_fn").values
    if jnp.ndim(jnp.asarray(loss)):
        raise ValueError(
            f"loss_fn must return one scalar, the mean loss of one domain's batch, got shape {losses.shape}. Write "
            "jnp.mean(example_losses)."
        )
    return losses[0], aux


def _leading_size(batch: Examples) -> int:
    shapes = {jax.tree_util.keystr(path): jnp.shape(x) for path, x in jax.tree_util.tree_leaves_with_path(batch)}
    sizes = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(sizes) != 1 or 0 in sizes:
        seen = ", ".join(f"batch{name} {shape}" for name, shape in shapes.items()) or "no arrays"
        raise ValueError(
            f"batch must have leaves [M, n, ...] with the same number of domains M >= 1 in each, got {seen}. Group a "
            "flat batch with disam_jax.group_by_domain(batch, domain_ids, num_domains)."
        )
    return sizes.pop()


def _check_shapes(grads: Updates, params: Params) -> None:
    for (path, g), w in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(params), strict=True):
        if g.shape != w.shape:
            raise ValueError(
                f"grad_fn must return a gradient with the shapes of params, got {g.shape} for "
                f"params{jax.tree_util.keystr(path)} {w.shape}. It is the gradient of the mean loss, not that of each "
                "domain."
            )


def _check_stacked(stacked: Updates, params: Params, num_domains: int) -> None:
    if jax.tree.structure(stacked) != jax.tree.structure(params):
        raise ValueError(
            "the stacked gradients must have the structure of params, got "
            f"{jax.tree.structure(stacked)} for params {jax.tree.structure(params)}. Write losses, stacked_grads = "
            "disam_jax.per_domain_value_and_grad(loss_fn)(params, batch)."
        )
    for (path, w), g in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(stacked), strict=True):
        expected = (num_domains, *jnp.shape(w))
        if jnp.shape(g) != expected:
            raise ValueError(
                f"stacked gradients{jax.tree_util.keystr(path)} must be [M, *param.shape] = {expected}, got "
                f"{jnp.shape(g)}. Write losses, stacked_grads = disam_jax.per_domain_value_and_grad(loss_fn)(params, "
                "batch)."
            )
