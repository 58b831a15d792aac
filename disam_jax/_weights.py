"""The idea of DISAM: how much each domain counts in the ascent, from the domain losses alone.

The ascent maximises ``mean - lam * penalty``. Every penalty here makes the domain weights affine in the losses,

    b_i = a_i - slope * m_i * (L_i - center),        m_i = 1/|P| for present domains, or the share a_i

so one reverse pass with b as the cotangent of (L_1, ..., L_M) gives the ascent gradient, and a running sum of
``g_i`` and ``L_i g_i`` gives it domain by domain.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp

from disam_jax._domains import CheckedLosses, Losses, as_domain_losses
from disam_jax._dtypes import as_scalar
from disam_jax._types import Penalty, Scalar

PENALTIES: tuple[str, ...] = get_args(Penalty)


class AscentWeights(NamedTuple):
    """The domain weights ``b_i = a_i - slope * m_i * (L_i - center)``, and the terms of the objective behind them.

    ``center = largest + offset``. The two are kept apart because ``L_i - largest`` is exact where the losses are close,
    and exactly 0 where they are equal.

    Attributes:
      values: ``b_i``, ``[M]``; 0 for an absent domain.
      slope: Weight per unit of loss, scalar.
      measure: ``m_i``, ``[M]``, sums to 1; 0 for an absent domain.
      largest: The largest loss of a present domain, scalar.
      offset: ``sum_i m_i (L_i - largest)``, scalar.
      mean: ``sum_i a_i L_i``, scalar.
      variance: ``sum_i m_i (L_i - center)^2``, scalar.
    """

    values: jax.Array
    slope: jax.Array
    measure: jax.Array
    largest: jax.Array
    offset: jax.Array
    mean: jax.Array
    variance: jax.Array


def domain_weights(losses: Losses, lam: Scalar, *, penalty: Penalty = "variance") -> jax.Array:
    """The weight of each domain in the ascent gradient of DISAM.

    The gradient of ``sum_i a_i L_i - lam * penalty(L)`` with respect to the losses, over the present domains P:

    - ``"variance"``: ``b_i = a_i - (2 lam / |P|) (L_i - mean_P L)``
    - ``"weighted_variance"``: ``b_i = a_i - 2 lam a_i (L_i - sum_j a_j L_j)``
    - ``"std"``: ``b_i = a_i - (lam / |P|) (L_i - mean_P L) / std_P L``, and ``a_i`` where the losses are equal

    The weights sum to 1. A weight is negative where a loss is far above the mean: with equal shares, more than
    ``1 / (2 lam)`` above it for the variance; never for the std with ``lam < 1 / sqrt(|P| - 1)``.

    Args:
      losses: ``[M]``, a scalar, or ``DomainLosses(values [M], weights [M])``.
      lam: Strength of the penalty: per unit of loss for the variances, without unit for the std. A number or a scalar
        array; for a vector of strengths use ``jax.vmap``. 0 gives the shares (SAM).
      penalty: ``"variance"``, ``"weighted_variance"`` or ``"std"``.

    Returns:
      ``b`` ``[M]``, float32 at least; 0 for an absent domain.

    Raises:
      TypeError: When the losses are not floating point, or lam is not a real number.
      ValueError: When the losses are not ``[M]``, lam is not a finite scalar, or the penalty is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> import disam_jax
      >>> [round(b, 3) for b in disam_jax.domain_weights(jnp.array([0.2, 0.5, 0.8]), lam=0.1).tolist()]
      [0.353, 0.333, 0.313]

    References:
      Zhang et al., Domain-Inspired Sharpness-Aware Minimization Under Domain Shifts, ICLR 2024, section 3
      (``"variance"``). ``"weighted_variance"`` is what the authors' released training loop computes; ``"std"`` is ours.
    """
    lam = as_scalar("lam", lam, "lam=0.1", negative=True, wait=False)
    check_penalty(penalty)
    return ascent_weights(as_domain_losses(losses, "losses"), lam, penalty).values


def ascent_weights(losses: CheckedLosses, lam: Scalar, penalty: Penalty) -> AscentWeights:
    """``b_i = a_i - slope * m_i * (L_i - center)``: the gradient of ``mean - lam * penalty`` in the losses."""
    values, present = losses.values, losses.present
    measure = losses.shares if penalty == "weighted_variance" else _equal_shares(losses)
    # The largest loss cancels from every formula; as a constant it also cancels from their derivatives. The smallest
    # value stands in for those of absent domains, for it is never the largest; with none present all are 0.
    largest = jax.lax.stop_gradient(jnp.max(jnp.where(present, values, jnp.min(values))))
    distance = jnp.where(present, values - largest, 0)
    offset = jnp.sum(measure * distance)
    centered = jnp.where(present, distance - offset, 0)
    lam = jnp.asarray(lam, values.dtype)
    slope = _over_spread(lam, _root_mean_square(centered, measure)) if penalty == "std" else 2 * lam
    return AscentWeights(
        values=losses.shares - slope * measure * centered,
        slope=slope,
        measure=measure,
        largest=largest,
        offset=offset,
        mean=mean_loss(losses),
        variance=jnp.sum(measure * centered**2),
    )


def mean_loss(losses: CheckedLosses) -> jax.Array:
    """``sum_i a_i L_i``."""
    return jnp.sum(losses.shares * losses.values)


def check_penalty(penalty: object) -> None:
    if penalty not in PENALTIES:
        raise ValueError(f"penalty must be one of {', '.join(map(repr, PENALTIES))}, got {penalty!r}.")


def _equal_shares(losses: CheckedLosses) -> jax.Array:
    present = losses.present.astype(losses.values.dtype)
    return present / jnp.maximum(jnp.sum(present), 1)


def _root_mean_square(centered: jax.Array, measure: jax.Array) -> jax.Array:
    # Scaled by the largest entry, so that losses of 1e-30 have a standard deviation too.
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(centered)))
    mean_square = jnp.sum(measure * (centered / jnp.where(scale > 0, scale, 1)) ** 2)
    return scale * jnp.sqrt(jnp.where(scale > 0, mean_square, 1))


def _over_spread(lam: jax.Array, spread: jax.Array) -> jax.Array:
    # Equal losses have no direction of spread, so they keep their shares. nan passes through, that of lam too.
    return lam / jnp.where(spread == 0, 1, spread) * (spread != 0).astype(spread.dtype)
