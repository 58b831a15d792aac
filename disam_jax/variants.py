"""SAM, GSAM and SAGM: how far to go along the ascent gradient, and which gradient to hand to the optimizer.

A variant is an object of two pure functions, so your own is a few lines:

  >>> from disam_jax import variants
  >>> half = variants.Variant(scale=lambda rho, norm: 0.5 * rho / norm, combine=lambda base, perturbed: perturbed)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from disam_jax._dtypes import as_scalar, not_negative
from disam_jax._perturbation import tree_vdot
from disam_jax._types import Scalar, Updates

Reference: TypeAlias = Literal["ascent", "clean"]


class Variant(NamedTuple):
    """How far to perturb, and which gradient to return.

    Attributes:
      scale: ``scale(rho, norm) -> scalar``: the perturbation is this times the ascent gradient. ``norm`` is the norm of
        the ascent gradient and never 0.
      combine: ``combine(base, perturbed) -> gradient``: pytrees like the parameters. ``base`` is the gradient at w, and
        ``perturbed`` the gradient at w + e: of the mean loss, or with ``descent_lam`` of the penalised one. Both are
        given in float32 (float64 where a parameter is), and the result is rounded to the dtypes of the parameters, so
        there is nothing to cast. With ``refresh_every > 1``, steps that reuse the perturbation compute no gradient at
        w, and ``perturbed`` is used in its place.
      reference: Which gradient at w is the base gradient: ``"ascent"`` (of the mean loss minus lam times the penalty,
        as in the released code) or ``"clean"`` (of the mean loss; one more backward pass, no more forward ones).
    """

    scale: Callable[[jax.Array, jax.Array], jax.Array]
    combine: Callable[[Updates, Updates], Updates]
    reference: Reference = "ascent"


def sam() -> Variant:
    """Sharpness-aware minimisation: perturb by ``rho g / ||g||``, return the perturbed gradient.

    Returns:
      The variant that ``variant=None`` stands for.

    Example:
      >>> import disam_jax
      >>> tx = disam_jax.disam(0.05, 0.1, variant=disam_jax.variants.sam())

    References:
      Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021, equation 2.
    """
    return Variant(_sam_scale, _perturbed_alone)


def gsam(alpha: Scalar, reference: Reference = "ascent") -> Variant:
    """Surrogate-gap guided SAM: SAM's perturbation, with the surrogate gap reduced as well.

    With g the base gradient and h the perturbed one, ``d = h - alpha * (g - <g, h> h / ||h||^2)``: alpha times the
    component of g orthogonal to h is subtracted.

    Args:
      alpha: Strength, not negative, without unit: a number or a scalar array. A traced one that is negative or infinite
        makes the gradient NaN.
      reference: Which gradient g is: see ``Variant``.

    Returns:
      A ``Variant``.

    Raises:
      TypeError: When alpha is not a real number.
      ValueError: When alpha is negative, infinite, NaN or no scalar, or the reference is unknown.

    Example:
      >>> import disam_jax
      >>> tx = disam_jax.disam(0.05, 0.1, variant=disam_jax.variants.gsam(alpha=0.3))

    References:
      Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, ICLR 2022, algorithm 1.
    """
    alpha = _check("gsam", alpha, reference)

    def combine(g, h):
        square = tree_vdot(h, h)
        along = jnp.where(square == 0, 0, tree_vdot(g, h) / jnp.where(square == 0, 1, square))
        strength = not_negative(alpha, along.dtype)
        return jax.tree.map(lambda g, h: h - strength * (g - along * h), g, h)

    return Variant(_sam_scale, combine, reference)


def sagm(alpha: Scalar, reference: Reference = "ascent") -> Variant:
    """Sharpness-aware gradient matching: perturb by ``(rho / ||g|| - alpha) g``, return the mean of both gradients.

    With g the base gradient and h the perturbed one, ``d = (g + h) / 2``. The perturbation changes sign where
    ``||g|| > rho / alpha``, as in the released code.

    Args:
      alpha: Step of the gradient matching, not negative, in units of parameters per gradient: a number or a scalar
        array. A traced one that is negative or infinite makes the gradient NaN.
      reference: Which gradient g is: see ``Variant``.

    Returns:
      A ``Variant``.

    Raises:
      TypeError: When alpha is not a real number.
      ValueError: When alpha is negative, infinite, NaN or no scalar, or the reference is unknown.

    Example:
      >>> import disam_jax
      >>> tx = disam_jax.disam(0.05, 0.1, variant=disam_jax.variants.sagm(alpha=0.001))

    References:
      Wang et al., Sharpness-Aware Gradient Matching for Domain Generalization, CVPR 2023.
    """
    alpha = _check("sagm", alpha, reference)

    def scale(rho, norm):
        return rho / norm - not_negative(alpha, norm.dtype)

    def combine(g, h):
        return jax.tree.map(lambda g, h: 0.5 * h + 0.5 * g, g, h)

    return Variant(scale, combine, reference)


def as_variant(variant: object) -> Variant:
    """The variant itself; ``None`` stands for SAM."""
    if variant is None:
        return sam()
    if not isinstance(variant, Variant):
        raise TypeError(
            "variant must be None (SAM), disam_jax.variants.gsam(alpha), disam_jax.variants.sagm(alpha) or a "
            f"disam_jax.variants.Variant, got {variant!r}. Call it: variant=disam_jax.variants.gsam(alpha=0.3)."
        )
    if not (callable(variant.scale) and callable(variant.combine)):
        raise TypeError(
            f"variant: scale and combine must be functions, got {variant.scale!r} and {variant.combine!r}. Write "
            "Variant(scale=lambda rho, norm: rho / norm, combine=lambda base, perturbed: perturbed)."
        )
    _check_reference("variant", variant.reference)
    return variant


def _check(name: str, alpha: object, reference: object) -> Scalar:
    alpha = as_scalar(f"{name}: alpha", alpha, f"variants.{name}(alpha=0.1)")
    _check_reference(name, reference)
    return alpha


def _check_reference(name: str, reference: object) -> None:
    if reference not in ("ascent", "clean"):
        raise ValueError(f"{name}: reference must be 'ascent' or 'clean', got {reference!r}.")


def _sam_scale(rho, norm):
    return rho / norm


def _perturbed_alone(base, perturbed):
    del base
    return perturbed
