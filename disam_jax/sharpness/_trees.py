"""Trees of arrays like the parameters."""

from typing import Any

import jax
import jax.numpy as jnp

from disam_jax._perturbation import tree_norm


@jax.jit
def normal_like(key: jax.Array, params: Any) -> Any:
    """Independent standard normal numbers."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten([jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])


def stretched(params: Any, tree: Any, adaptive: bool) -> Any:
    """``|w| x`` element by element for the adaptive forms, and x otherwise."""
    return jax.tree.map(lambda w, x: jnp.abs(w) * x, params, tree) if adaptive else tree


def moved(params: Any, length: Any, tree: Any) -> Any:
    """``w + length * x``."""
    return jax.tree.map(lambda w, x: w + jnp.asarray(length, w.dtype) * x, params, tree)


def scaled(tree: Any, factor: Any) -> Any:
    """``factor * x``."""
    return jax.tree.map(lambda x: jnp.asarray(factor, x.dtype) * x, tree)


def unit_length(tree: Any) -> Any:
    """``x / ||x||``, and 0 for 0; nan where the squares overflow, for there is no direction to be had."""
    norm = tree_norm(tree)
    inverse = jnp.where(norm == 0, 0, 1 / jnp.where(norm == 0, 1, norm))
    return scaled(tree, jnp.where(jnp.isinf(norm), jnp.nan, inverse))
