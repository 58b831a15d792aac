"""Where the arrays of a chunk of runs lie."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding


def over_runs(number: int) -> Any:
    """Sharding of arrays [R, ...]: dealt over all devices, or on the first one if they cannot be dealt evenly."""
    devices = jax.devices()
    if number % len(devices):
        return devices[0]
    return NamedSharding(Mesh(np.array(devices), ("runs",)), PartitionSpec("runs"))


def layout(number: int) -> tuple[Sharding, Sharding]:
    """Shardings of arrays of R runs and of what they share: as many devices as can have equally many runs."""
    devices = jax.devices()
    used = max(each for each in range(1, len(devices) + 1) if number % each == 0)
    if used == 1:
        return SingleDeviceSharding(devices[0]), SingleDeviceSharding(devices[0])
    mesh = Mesh(np.array(devices[:used]), ("runs",))
    return NamedSharding(mesh, PartitionSpec("runs")), NamedSharding(mesh, PartitionSpec())


def put_once(tree: Any, where: Any) -> Any:
    """Puts the arrays of a tree on devices; an array that occurs twice is there once."""
    placed: dict[int, jax.Array] = {}

    def put(leaf: Any) -> jax.Array:
        if id(leaf) not in placed:
            placed[id(leaf)] = jax.device_put(leaf, where)
        return placed[id(leaf)]

    return jax.tree.map(put, tree)
