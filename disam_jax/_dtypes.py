"""The dtype in which losses, norms and weights are summed."""

from typing import Any

import jax
import jax.numpy as jnp


def accumulation_dtype(tree: Any) -> Any:
    """float64 when any leaf is, else float32: half-precision sums overflow and lose digits."""
    wide = any(jnp.finfo(leaf.dtype).bits > 32 for leaf in jax.tree.leaves(tree))
    return jnp.dtype(jnp.float64 if wide else jnp.float32)
