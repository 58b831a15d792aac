"""Both passes of one domain after the other, each at its own perturbation: a step that needs no two whole passes.

e_i = rho * (b_i / a_i) * g_i / ||g_i||        the result is sum_i a_i grad L_i(w + e_i)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from disam_jax._domains import CheckedLosses, as_domain_losses
from disam_jax._dtypes import accumulation_dtype, cast
from disam_jax._passes import (
    Weigh,
    add,
    check_axis,
    mean_over_axis,
    mean_over_domains,
    number_of_domains,
    one_domain_loss,
    weighted_total,
)
from disam_jax._types import Aux, AxisName, Examples, LossFn, Params, Updates
from disam_jax._weights import AscentWeights


class OwnPasses(NamedTuple):
    """Results of both passes of every domain.

    Attributes:
      losses: The domain losses at w.
      aux: What the loss function returned beside them, stacked.
      weights: The domain weights of these losses.
      gradient: ``sum_i b_i grad L_i(w)``.
      mean_gradient: ``sum_i a_i grad L_i(w)``.
      perturbed_losses: ``L_i(w + e_i)``.
      perturbed_gradient: ``sum_i a_i grad L_i(w + e_i)``, or with the domain weights of the losses there.
    """

    losses: CheckedLosses
    aux: Aux
    weights: AscentWeights
    gradient: Updates
    mean_gradient: Updates
    perturbed_losses: CheckedLosses
    perturbed_gradient: Updates


def own_passes_by_scan(
    params: Params,
    loss_fn: LossFn,
    batch: Examples,
    perturb: Callable[[Params, Updates, jax.Array], Params],
    weigh: Weigh,
    weigh_descent: Weigh | None,
    ascent_loss_fn: LossFn | None = None,
    *,
    equal_radii: bool,
    has_aux: bool = False,
    unroll: int | bool = 1,
    axis_name: AxisName = None,
) -> OwnPasses:
    """One scan over the domains: loss and gradient at w, the perturbation, loss and gradient at w + e_i.

    ``perturb(params, gradient, radius)`` is ``w + e_i``. Radii that are not equal need the losses of all domains before
    the scan: one more forward pass. What is not used of the results costs nothing under ``jit``.
    """
    check_axis(axis_name)
    num_domains = number_of_domains(batch)
    loss_at_w = one_domain_loss(loss_fn if ascent_loss_fn is None else ascent_loss_fn, has_aux, axis_name)
    at_w = jax.value_and_grad(loss_at_w, has_aux=True)
    at_perturbed = jax.value_and_grad(one_domain_loss(loss_fn, has_aux, axis_name), has_aux=True)

    wide = jnp.result_type(float)
    radii = jnp.ones(num_domains, wide)
    if not equal_radii:
        _, values = jax.lax.scan(lambda _, one: (None, loss_at_w(params, one)[0]), None, batch, unroll=unroll)
        radii = num_domains * weigh(as_domain_losses(values, "loss_fn")).values

    def body(carry, given):
        (weighted, plain, perturbed, by_loss), first = carry
        index, one_domain, radius = given
        (loss, aux), g = at_w(params, one_domain)
        g = mean_over_axis(g, axis_name)
        (perturbed_loss, _), h = at_perturbed(perturb(params, g, radius), one_domain)
        first = jnp.where(index == 0, cast(perturbed_loss, wide), first)
        one = jnp.ones(())
        sums = (
            add(weighted, g, radius),
            add(plain, g, one),
            add(perturbed, h, one),
            # Relative to the first loss, as the sums of `passes_by_scan`.
            add(by_loss, h, cast(perturbed_loss, wide) - first),
        )
        return (sums, first), (loss, aux, perturbed_loss)

    zeros = jax.tree.map(lambda w: jnp.zeros_like(w, dtype=accumulation_dtype(w)), params)  # with their sharding
    start = (zeros, zeros, zeros, zeros), jnp.zeros((), wide)
    (sums, first), found = jax.lax.scan(body, start, (jnp.arange(num_domains), batch, radii), unroll=unroll)
    weighted, plain, perturbed, by_loss = sums
    values, aux, perturbed_values = found
    losses, perturbed_losses = as_domain_losses(values, "loss_fn"), as_domain_losses(perturbed_values, "loss_fn")
    if weigh_descent is not None:
        perturbed = weighted_total(perturbed, by_loss, weigh_descent(perturbed_losses), first)

    def mean(total):
        return mean_over_axis(mean_over_domains(total, num_domains), axis_name)

    return OwnPasses(losses, aux, weigh(losses), mean(weighted), mean(plain), perturbed_losses, mean(perturbed))
