"""How arrays lie on the devices of an explicit mesh, where their types say so, and what is refused there."""

from __future__ import annotations

import math

import jax
import jax.typing

from disam_jax._types import Examples


def explicit_split(x: jax.typing.ArrayLike, axis: int) -> int:
    """Over how many devices the type of the array splits an axis, as on an explicit mesh; 1 where it does not."""
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis] if axis < len(sharding.spec) else None
    return math.prod(sharding.mesh.shape[name] for name in ([names] if isinstance(names, str) else names or ()))


def whole(x: jax.Array) -> jax.Array:
    """The array with its first axis on every device."""
    return jax.sharding.reshard(x, jax.sharding.PartitionSpec()) if explicit_split(x, 0) > 1 else x


def check_not_split(batch: Examples) -> None:
    """On an explicit mesh the type of an array says how it lies there; a scan takes one domain after the other."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        devices = explicit_split(leaf, axis=0)
        if devices > 1:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} has its domains split over {devices} devices, and "
                "accumulated_value_and_grad takes one domain after the other. Split the examples, "
                'jax.sharding.reshard(batch, P(None, "data")), or use disam_jax.value_and_grad: it takes all at once.'
            )


def check_divides(batch: Examples, axis: int, sizes: list[int], name: str) -> None:
    """Every size of a subset must be a multiple of the number of devices over which the examples are split."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        devices = explicit_split(leaf, axis)
        for size in sizes:
            if size % devices:
                raise ValueError(
                    f"{name}: the examples of batch{jax.tree_util.keystr(path)} are split over {devices} devices on an "
                    f"explicit mesh, and {size} of its {leaf.shape[axis]} do not divide by {devices}. Write another "
                    "fraction, or jax.sharding.reshard the batch so that they are not split."
                )
