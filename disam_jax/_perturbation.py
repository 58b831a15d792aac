"""From the ascent gradient to the perturbed parameters.

e = rho * g / ||g||                          and with adaptive=True (ASAM)   e = rho * w^2 g / || |w| g ||
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax._dtypes import as_real, like, nan_unless, not_negative, widen
from disam_jax._types import Mask, Params, Scalar, Updates


class Perturbation(NamedTuple):
    """A perturbation of the parameters.

    Attributes:
      e: The perturbation, like the parameters; 0 where the mask leaves a parameter out.
      perturbed: ``w + e``.
      norm: L2 norm of the ascent gradient over the parameters that are perturbed, scalar.
    """

    e: Params
    perturbed: Params
    norm: jax.Array


def perturbation(
    params: Params,
    gradient: Updates,
    rho: Scalar,
    scale: Callable[[jax.Array, jax.Array], Scalar],
    *,
    adaptive: bool,
    mask: Mask,
    eps: Scalar,
    radius: jax.Array | None = None,
) -> Perturbation:
    """``e = radius * scale(rho, ||T g|| + eps) * T (T g)`` with ``T = |w|`` for the adaptive form and 1 otherwise.

    The radius is a scalar of either sign; ``None`` is 1. e is 0 where the norm is 0. Parameters that the mask leaves
    out are not perturbed and do not count in the norm.
    """
    mask = resolve_mask(mask, params)
    gradient, dtype = widen(gradient)

    def stretch(w, g):
        return jnp.abs(w).astype(dtype) * g if adaptive else g

    norm = _finite_norm(jax.tree.map(stretch, params, gradient), mask, dtype)
    rho, eps = not_negative((rho, eps), dtype)
    # Both branches of a select are differentiated, so the one that is not taken must be finite too.
    length = as_real(
        f"variant: what scale ({getattr(scale, '__qualname__', repr(scale))}) returns",
        scale(rho, jnp.where(norm == 0, 1, norm) + eps),
        "scale=lambda rho, norm: rho / norm",
    )
    length = jnp.where(norm == 0, 0, jnp.asarray(length, dtype))
    if radius is not None:
        length = radius.astype(dtype) * length

    def leaf(perturbed, w, g):
        return (length * stretch(w, stretch(w, g))).astype(w.dtype) if perturbed else jnp.zeros_like(w, dtype=w.dtype)

    e = jax.tree.map(leaf, mask, params, gradient)
    reported = _masked_norm(gradient, mask, dtype) if adaptive else norm
    return Perturbation(e, _add(params, e, mask), reported)


def norm_of_perturbed(params: Params, gradient: Updates, mask: Mask) -> jax.Array:
    """The L2 norm of the gradient over the parameters that are perturbed."""
    gradient, dtype = widen(gradient)
    return _masked_norm(gradient, resolve_mask(mask, params), dtype)


def unit_gradient(params: Params, gradient: Updates, *, adaptive: bool, mask: Mask, eps: Scalar) -> Updates:
    """``g / (||T g|| + eps)`` with T and the norm of ``perturbation``; 0 where the norm is 0. In float32 at least."""
    gradient, dtype = widen(gradient)
    stretched = jax.tree.map(lambda w, g: jnp.abs(w).astype(dtype) * g, params, gradient) if adaptive else gradient
    norm = _finite_norm(stretched, resolve_mask(mask, params), dtype)
    (eps,) = not_negative((eps,), dtype)
    factor = jnp.where(norm == 0, 0, 1 / (jnp.where(norm == 0, 1, norm) + eps))
    return jax.tree.map(lambda g: factor * g, gradient)


def perturb(params: Params, e: Params, mask: Mask) -> Params:
    """``w + e`` where the mask says so; the other leaves are the parameters themselves, not a copy."""
    return _add(params, e, resolve_mask(mask, params))


def tree_norm(tree: Params) -> jax.Array:
    """The L2 norm over all leaves, summed in float32 at least; at 0 it is 0 and so is its derivative."""
    wide, dtype = widen(tree)
    return _norm(jax.tree.leaves(wide), dtype)


def tree_vdot(a: Params, b: Params) -> jax.Array:
    """The inner product over all leaves, summed in float32 at least."""
    (a, b), dtype = widen((a, b))
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return sum(jax.tree.leaves(products), start=jnp.zeros((), dtype))


def resolve_mask(mask: Mask, params: Params) -> Mask:
    """A tree of Python booleans like the parameters: True where a leaf is perturbed."""
    tree = mask(params) if callable(mask) else True if mask is None else mask
    try:
        return jax.tree.map(lambda m, sub: jax.tree.map(lambda _: _boolean(m), sub), tree, params)
    except (ValueError, KeyError) as error:
        raise ValueError(
            "mask must be a tree of booleans with the structure of params or a prefix of it, or a function from params "
            f"to one, got {jax.tree.structure(tree)} for params {jax.tree.structure(params)}."
        ) from error


def _add(params: Params, e: Params, mask: Mask) -> Params:
    return like(jax.tree.map(lambda perturbed, w, d: w + d if perturbed else w, mask, params, e), params)


def _masked_norm(tree: Updates, mask: Mask, dtype: jnp.dtype) -> jax.Array:
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(mask), strict=True)
    return _norm([leaf for leaf, perturbed in pairs if perturbed], dtype)


def _finite_norm(tree: Updates, mask: Mask, dtype: jnp.dtype) -> jax.Array:
    # A finite gradient whose squares overflow has no norm to divide by: nan, where rho / inf would be a silent 0.
    norm = _masked_norm(tree, mask, dtype)
    return norm * nan_unless(norm <= jnp.finfo(dtype).max)


def _norm(leaves: Sequence[jax.Array], dtype: jnp.dtype) -> jax.Array:
    squares = sum((jnp.sum(jnp.square(x)) for x in leaves), start=jnp.zeros((), dtype))
    return jnp.where(squares == 0, 0, jnp.sqrt(jnp.where(squares == 0, 1, squares)))


def _boolean(m: object) -> bool:
    if not isinstance(m, (bool, np.bool_)):
        raise TypeError(f"mask must hold Python booleans, one for each leaf of params or subtree, got {m!r}.")
    return bool(m)
