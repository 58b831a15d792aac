"""SAM, GSAM and SAGM: how far to go along the ascent gradient, and which gradient to hand to the optimizer.

A variant is an object of two pure functions, so your own is a few lines:

  >>> from disam_jax import variants
  >>> half = variants.Variant(scale=lambda rho, norm: 0.5 * rho / norm, combine=lambda reference, perturbed: perturbed)
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from disam_jax._perturbation import tree_vdot


class Variant(NamedTuple):
    """What to perturb by, and what to hand over.

    Attributes:
      scale: ``scale(rho, norm) -> scalar``: the perturbation is this times the ascent gradient. ``norm`` is the norm of
        the ascent gradient and never 0.
      combine: ``combine(reference, perturbed) -> gradient``: pytrees like the parameters. ``perturbed`` is the gradient
        of the mean loss at w + e. With ``refresh_every > 1``, on steps that reuse the perturbation, ``perturbed``
        stands in for the reference, which is not computed there.
      reference: The gradient at w that ``combine`` is given: ``"ascent"`` (of the mean loss minus lam times the
        penalty, as in the released code) or ``"clean"`` (of the mean loss; one more backward pass, no more forward
        ones).
    """

    scale: Callable[[jax.Array, jax.Array], jax.Array]
    combine: Callable[[Any, Any], Any]
    reference: Literal["ascent", "clean"] = "ascent"


def sam() -> Variant:
    """Sharpness-aware minimisation: perturb by ``rho g / ||g||``, hand over the perturbed gradient.

    Returns:
      The variant that ``variant=None`` stands for.

    Example:
      >>> import disam_jax
      >>> tx = disam_jax.disam(0.05, 0.1, variant=disam_jax.variants.sam())

    References:
      Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021, equation 2.
    """
    return Variant(_sam_scale, _hand_over_perturbed)


def gsam(alpha: Any, reference: Literal["ascent", "clean"] = "ascent") -> Variant:
    """Surrogate-gap guided SAM: SAM's perturbation; part of the gradient at w is taken away from the result.

    With g the reference gradient and h the perturbed one, ``d = h - alpha * (g - <g, h> h / ||h||^2)``: the part of g
    that is orthogonal to h is descended less.

    Args:
      alpha: Strength, not negative, without unit. A float or a traced scalar.
      reference: Which g: see ``Variant``.

    Returns:
      A ``Variant``.

    Raises:
      ValueError: When alpha is negative or the reference is unknown.

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

        def leaf(g, h):
            g32, h32 = g.astype(along.dtype), h.astype(along.dtype)
            return (h32 - jnp.asarray(alpha, along.dtype) * (g32 - along * h32)).astype(h.dtype)

        return jax.tree.map(leaf, g, h)

    return Variant(_sam_scale, combine, reference)


def sagm(alpha: Any, reference: Literal["ascent", "clean"] = "ascent") -> Variant:
    """Sharpness-aware gradient matching: perturb by ``(rho / ||g|| - alpha) g``, hand over the mean of both gradients.

    With g the reference gradient and h the perturbed one, ``d = (g + h) / 2``. The perturbation changes sign where
    ``||g|| > rho / alpha``, as in the released code.

    Args:
      alpha: Step of the gradient matching, not negative, in units of parameters per gradient. A float or a traced
        scalar.
      reference: Which g the result is averaged with: see ``Variant``.

    Returns:
      A ``Variant``.

    Raises:
      ValueError: When alpha is negative or the reference is unknown.

    Example:
      >>> import disam_jax
      >>> tx = disam_jax.disam(0.05, 0.1, variant=disam_jax.variants.sagm(alpha=0.001))

    References:
      Wang et al., Sharpness-Aware Gradient Matching for Domain Generalization, CVPR 2023.
    """
    alpha = _check("sagm", alpha, reference)

    def scale(rho, norm):
        return rho / norm - jnp.asarray(alpha, norm.dtype)

    def combine(g, h):
        return jax.tree.map(lambda g, h: 0.5 * h + 0.5 * g, g, h)

    return Variant(scale, combine, reference)


def check_variant(variant: Any) -> Variant:
    """The variant itself; ``None`` stands for SAM."""
    if variant is None:
        return sam()
    if not isinstance(variant, Variant):
        raise TypeError(
            "variant must be None (SAM), disam_jax.variants.gsam(alpha), disam_jax.variants.sagm(alpha) or a "
            f"disam_jax.variants.Variant, seen {variant!r}. Call it: variant=disam_jax.variants.gsam(alpha=0.3)."
        )
    return variant


def _check(name: str, alpha: Any, reference: str) -> Any:
    if isinstance(alpha, (int, float)) and not alpha >= 0:
        raise ValueError(f"{name}: alpha must not be negative, seen {alpha}. Write variants.{name}(alpha=0.1).")
    if reference not in ("ascent", "clean"):
        raise ValueError(f"{name}: reference must be 'ascent' or 'clean', seen {reference!r}.")
    return alpha


def _sam_scale(rho, norm):
    return rho / norm


def _hand_over_perturbed(reference, perturbed):
    del reference
    return perturbed
