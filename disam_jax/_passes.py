"""The two passes of a step, for each form in which the domain losses can be had.

A form is two functions: ``clean(params) -> CleanPass`` at w and ``perturbed(params) -> PerturbedPass`` at w + e.
All that follows (weights, perturbation, variants) is the same for every form. A form may take its two functions from
two others: then the ascent sees one loss function and the descent another.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from disam_jax._domains import (
    DomainLosses,
    across_devices,
    as_domain_losses,
    check_axis,
    domain_shares,
    explicit_split,
)
from disam_jax._dtypes import accumulation_dtype, as_params, cast
from disam_jax._weights import Tilt, weights_at


class CleanPass(NamedTuple):
    """What the pass at w gives: losses, the loss function's auxiliary output, and gradients on demand."""

    losses: DomainLosses
    aux: Any
    ascent_gradient: Callable[[Tilt], Any]
    mean_gradient: Callable[[], Any]


class PerturbedPass(NamedTuple):
    """What the pass at w + e gives: the gradient of the mean loss, and the domain losses where they are known."""

    losses: DomainLosses | None
    gradient: Any


class Form(NamedTuple):
    """The two passes, as functions of the parameters."""

    clean: Callable[[Any], CleanPass]
    perturbed: Callable[[Any], PerturbedPass]


def closure_form(domain_loss_fn: Callable[[Any], Any], *, has_aux: bool, axis_name: Any, argument: str) -> Form:
    """A function from params to the domain losses: b is the cotangent of ONE reverse pass."""
    check_axis(axis_name)

    def evaluate(params):
        def values_at(p):
            out, aux = split_aux(domain_loss_fn(p), has_aux, argument)
            losses = across_devices(as_domain_losses(out, argument), axis_name)
            return losses.values, (losses.weights, aux)

        values, pull, (weights, aux) = jax.vjp(values_at, params, has_aux=True)

        def gradient(cotangent):
            (grads,) = pull(cotangent)
            return mean_over_axis(grads, axis_name)

        return DomainLosses(values, weights), aux, gradient

    def clean(params):
        losses, aux, gradient = evaluate(params)
        return CleanPass(
            losses,
            aux,
            lambda tilt: gradient(weights_at(losses, tilt)),
            lambda: gradient(domain_shares(losses)),
        )

    def perturbed(params):
        losses, _, gradient = evaluate(params)
        return PerturbedPass(losses, gradient(domain_shares(losses)))

    return Form(clean, perturbed)


def stacked_form(stacked: Any, losses: Any, grad_fn: Callable[[Any], Any], *, axis_name: Any) -> Form:
    """Per-domain gradients that the caller holds already: b weights their sum, and ``grad_fn`` is the second pass."""
    check_axis(axis_name)
    stacked = as_params(stacked, "stacked gradients")
    local = as_domain_losses(losses, "domain_losses")
    everywhere = across_devices(local, axis_name)
    total = jnp.sum(everywhere.weights)
    local_share = jnp.sum(local.weights) / jnp.where(total > 0, total, 1)
    part = local.weights / jnp.where(everywhere.weights > 0, everywhere.weights, 1)

    def weighted_sum(b):
        def leaf(g):
            dtype = accumulation_dtype(g)
            # An absent domain's gradient may be anything, nan included: select it away before the sum.
            rows = jnp.where((local.weights > 0).reshape(-1, *[1] * (g.ndim - 1)), cast(g, dtype), 0)
            weights = cast(part * b, dtype)
            if explicit_split(rows, 0) > 1:  # where a product would be refused, and a sum is not
                weights = weights.reshape(-1, *[1] * (g.ndim - 1))
                return cast(jnp.sum(weights * rows, axis=0), g.dtype)
            return cast(jnp.tensordot(weights, rows, axes=1, precision=jax.lax.Precision.HIGHEST), g.dtype)

        return sum_over_axis(jax.tree.map(leaf, stacked), axis_name)

    def clean(params):
        _check_stacked(stacked, params, local.values.shape[0])
        return CleanPass(
            everywhere,
            None,
            lambda tilt: weighted_sum(weights_at(everywhere, tilt)),
            lambda: weighted_sum(domain_shares(everywhere)),
        )

    def perturbed(params):
        grads = grad_fn(params)
        if jax.tree.structure(grads) != jax.tree.structure(params):
            raise ValueError(
                "grad_fn must return a gradient with the structure of params, got "
                f"{jax.tree.structure(grads)} for params {jax.tree.structure(params)}. Write "
                "grad_fn=jax.grad(lambda p: jnp.mean(disam_jax.per_domain(loss_fn)(p, batch)))."
            )
        grads = as_params(grads, "the gradient of grad_fn")
        _check_shapes(grads, params)
        if axis_name is None:
            return PerturbedPass(None, grads)
        return PerturbedPass(
            None, sum_over_axis(jax.tree.map(lambda g: g * cast(local_share, g.dtype), grads), axis_name)
        )

    return Form(clean, perturbed)


def accumulated_form(loss_fn: Callable[[Any, Any], Any], batch: Any, *, has_aux: bool, axis_name: Any) -> Form:
    """One domain at a time: b is affine in L, so ``sum g_i`` and ``sum (L_i - L_0) g_i`` from one scan suffice."""
    check_axis(axis_name)
    num_domains = _leading_size(batch)
    _check_not_split(batch)

    def loss_at(params, one_domain):
        loss, aux = _scalar_loss(loss_fn(params, one_domain), has_aux)
        return loss if axis_name is None else jax.lax.pmean(loss, axis_name), aux

    value_and_grad = jax.value_and_grad(loss_at, has_aux=True)

    def domain(index):
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), batch)

    def add(total, grads, factor):
        return jax.tree.map(lambda t, g: t + cast(factor, t.dtype) * cast(g, t.dtype), total, grads)

    def mean(total, params):
        grads = jax.tree.map(lambda t, w: cast(t / num_domains, w.dtype), total, params)
        return mean_over_axis(grads, axis_name)

    def clean(params):
        def body(sums, index):
            plain, by_loss = sums
            (loss, aux), grads = value_and_grad(params, domain(index))
            # Losses relative to the first one: the two sums would cancel almost all digits of a small spread otherwise.
            return (add(plain, grads, jnp.ones(())), add(by_loss, grads, loss - first)), (loss, aux)

        # The first domain before the scan, for one sum starts from its gradient and the other without it.
        (first, first_aux), grads = value_and_grad(params, domain(0))
        plain = jax.tree.map(lambda g: g.astype(accumulation_dtype(g)), grads)
        by_loss = jax.tree.map(jnp.zeros_like, plain)
        values, aux = jax.tree.map(lambda x: jnp.asarray(x)[None], (first, first_aux))
        if num_domains > 1:  # jax.disable_jit refuses a scan over nothing
            (plain, by_loss), others = jax.lax.scan(body, (plain, by_loss), jnp.arange(1, num_domains))
            values, aux = jax.tree.map(lambda x, xs: jnp.concatenate([x, xs]), (values, aux), others)

        def ascent_gradient(tilt):
            shift = (first - tilt.reference) - tilt.offset
            constant, slope = 1 - tilt.slope * shift, tilt.slope
            combined = jax.tree.map(lambda p, s: cast(constant, p.dtype) * p - cast(slope, s.dtype) * s, plain, by_loss)
            return mean(combined, params)

        losses = as_domain_losses(values, "loss_fn")
        return CleanPass(losses, aux, ascent_gradient, lambda: mean(plain, params))

    def perturbed(params):
        def body(plain, one_domain):
            (loss, _), grads = value_and_grad(params, one_domain)
            return add(plain, grads, jnp.ones(())), loss

        # Plain accumulation and nothing else: with rho=0 its result is bitwise that of a plain step.
        zeros = jax.tree.map(lambda w: jnp.zeros_like(w, dtype=accumulation_dtype(w)), params)  # with their sharding
        plain, values = jax.lax.scan(body, zeros, batch)
        return PerturbedPass(as_domain_losses(values, "loss_fn"), mean(plain, params))

    return Form(clean, perturbed)


def mean_over_axis(grads: Any, axis_name: Any) -> Any:
    """The gradient of a loss that was summed over the axis inside: each device's gradient is already whole."""
    return grads if axis_name is None else jax.tree.map(lambda g: jax.lax.pmean(g, axis_name), grads)


def sum_over_axis(grads: Any, axis_name: Any) -> Any:
    return grads if axis_name is None else jax.tree.map(lambda g: jax.lax.psum(g, axis_name), grads)


def split_aux(out: Any, has_aux: bool, argument: str) -> tuple[Any, Any]:
    """What a loss function returned, as (domain losses, aux)."""
    if not has_aux:
        return out, None
    if isinstance(out, DomainLosses) or not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(
            f"{argument}: with has_aux=True it must return (domain losses, aux), got {type(out).__name__}. Return a "
            "pair, or write has_aux=False."
        )
    return out


def _scalar_loss(out: Any, has_aux: bool) -> tuple[jax.Array, Any]:
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


def _leading_size(batch: Any) -> int:
    shapes = {jax.tree_util.keystr(path): jnp.shape(x) for path, x in jax.tree_util.tree_leaves_with_path(batch)}
    sizes = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(sizes) != 1 or 0 in sizes:
        seen = ", ".join(f"batch{name} {shape}" for name, shape in shapes.items()) or "no arrays"
        raise ValueError(
            f"batch must have leaves [M, n, ...] with the same number of domains M >= 1 in each, got {seen}. Group a "
            "flat batch with disam_jax.group_by_domain(batch, domain_ids, num_domains)."
        )
    return sizes.pop()


def _check_not_split(batch: Any) -> None:
    """On an explicit mesh the type of an array says how it lies there; a scan takes one domain after the other."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        devices = explicit_split(leaf, axis=0)
        if devices > 1:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} has its domains split over {devices} devices, and "
                "accumulated_value_and_grad takes one domain after the other. Split the examples, "
                'jax.sharding.reshard(batch, P(None, "data")), or use disam_jax.value_and_grad: it takes all at once.'
            )


def _check_shapes(grads: Any, params: Any) -> None:
    for (path, g), w in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(params), strict=True):
        if g.shape != w.shape:
            raise ValueError(
                f"grad_fn must return a gradient with the shapes of params, got {g.shape} for "
                f"params{jax.tree_util.keystr(path)} {w.shape}. It is the gradient of the mean loss, not that of each "
                "domain."
            )


def _check_stacked(stacked: Any, params: Any, num_domains: int) -> None:
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
