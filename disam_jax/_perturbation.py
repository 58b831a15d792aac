"""From the ascent gradient to the perturbation of the parameters.

e = rho * g / ||g||                          and with adaptive=True (ASAM)   e = rho * w^2 g / || |w| g ||
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax._dtypes import accumulation_dtype, cast, like, nan_unless, not_negative


def perturbation(
    params: Any,
    gradient: Any,
    scale: Callable[[jax.Array], jax.Array],
    *,
    adaptive: bool,
    mask: Any,
    eps: Any,
) -> tuple[Any, jax.Array]:
    """The perturbation e, like the parameters, and the L2 norm of the gradient over what is perturbed.

    ``e = scale(||T g|| + eps) * T (T g)`` with ``T = |w|`` for the adaptive form and 1 otherwise; 0 where the norm is
    0. Masked-out leaves get zeros and do not count in the norm.
    """
    mask = resolve_mask(mask, params)
    dtype = accumulation_dtype(gradient)

    def stretch(w, g):
        return cast(jnp.abs(w), dtype) * cast(g, dtype) if adaptive else cast(g, dtype)

    norm = _masked_norm(jax.tree.map(stretch, params, gradient), mask)
    # A finite gradient whose squares overflow has no norm to divide by: nan, where rho / inf would be a silent 0.
    norm = norm * nan_unless(norm <= jnp.finfo(dtype).max, dtype)
    # Both branches of a select are differentiated, so the one that is not taken must be finite too.
    length = jnp.where(norm == 0, 0, scale(jnp.where(norm == 0, 1, norm) + not_negative(eps, dtype)))

    def leaf(perturbed, w, g):
        return cast(length * stretch(w, stretch(w, g)), w.dtype) if perturbed else jnp.zeros_like(w, dtype=w.dtype)

    e = jax.tree.map(leaf, mask, params, gradient)
    return e, _masked_norm(gradient, mask) if adaptive else norm


def perturb(params: Any, e: Any, mask: Any) -> Any:
    """``w + e`` where the mask says so; the other leaves are the parameters themselves, not a copy."""
    return jax.tree.map(
        lambda perturbed, w, d: like(w + d, w) if perturbed else w, resolve_mask(mask, params), params, e
    )


def tree_norm(tree: Any) -> jax.Array:
    """The L2 norm over all leaves, summed in float32 at least; at 0 it is 0 and so is its derivative."""
    dtype = accumulation_dtype(tree)
    squares = sum((jnp.sum(jnp.square(cast(x, dtype))) for x in jax.tree.leaves(tree)), start=jnp.zeros((), dtype))
    return jnp.where(squares == 0, 0, jnp.sqrt(jnp.where(squares == 0, 1, squares)))


def tree_vdot(a: Any, b: Any) -> jax.Array:
    """The inner product over all leaves, summed in float32 at least."""
    dtype = accumulation_dtype((a, b))
    products = jax.tree.map(lambda x, y: jnp.sum(cast(x, dtype) * cast(y, dtype)), a, b)
    return sum(jax.tree.leaves(products), start=jnp.zeros((), dtype))


def resolve_mask(mask: Any, params: Any) -> Any:
    """A tree of Python booleans like the parameters: True where a leaf is perturbed."""
    tree = mask(params) if callable(mask) else True if mask is None else mask
    try:
        return jax.tree.map(lambda m, sub: jax.tree.map(lambda _: _boolean(m), sub), tree, params)
    except (ValueError, KeyError) as error:
        raise ValueError(
            "mask must be a tree of booleans with the structure of params or a prefix of it, or a function from params "
            f"to one, got {jax.tree.structure(tree)} for params {jax.tree.structure(params)}."
        ) from error


def _masked_norm(tree: Any, mask: Any) -> jax.Array:
    leaves, keep = jax.tree.leaves(tree), jax.tree.leaves(mask)
    norm = tree_norm([leaf for leaf, perturbed in zip(leaves, keep, strict=True) if perturbed])
    return cast(norm, accumulation_dtype(tree))


def _boolean(m: Any) -> bool:
    if not isinstance(m, (bool, np.bool_)):
        raise TypeError(f"mask must hold Python booleans, one for each leaf of params or subtree, got {m!r}.")
    return bool(m)
