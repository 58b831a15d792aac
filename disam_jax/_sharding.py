"""How an array lies on the devices of an explicit mesh, as its type says."""

from __future__ import annotations

import math

import jax
import jax.typing


def explicit_split(x: jax.typing.ArrayLike, axis: int) -> int:
    """Over how many devices the type of the array splits an axis, as on an explicit mesh; 1 where it does not."""
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis] if axis < len(sharding.spec) else None
    return math.prod(sharding.mesh.shape[name] for name in ([names] if isinstance(names, str) else names or ()))
