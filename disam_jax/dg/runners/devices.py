"""Where the arrays of a chunk of runs lie."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding


def over_runs(number: int, per_device: int | None = None) -> NamedSharding:
    """Sharding of arrays [R, ...] over devices.

    Args:
        number: Number R of runs.
        per_device: Number of runs of each device; by default they are dealt over all devices, or lie on the first one
            if they cannot be dealt evenly.

    Returns:
        Sharding.
    """
    devices = jax.devices() if per_device is None else jax.devices()[: max(1, number // per_device)]
    if number % len(devices):
        devices = devices[:1]
    return NamedSharding(Mesh(np.array(devices), ("runs",)), PartitionSpec("runs"))


def layout(number: int, per_device: int | None = None) -> tuple[Sharding, Sharding]:
    """Shardings of arrays of R runs and of what they share.

    Args:
        number: Number R of runs.
        per_device: Number of runs of each device; by default as many devices are used as can have equally many runs.

    Returns:
        Two shardings.
    """
    devices = jax.devices()
    most = len(devices) if per_device is None else max(1, number // per_device)
    used = max(each for each in range(1, most + 1) if number % each == 0)
    if used == 1:
        return SingleDeviceSharding(devices[0]), SingleDeviceSharding(devices[0])
    mesh = Mesh(np.array(devices[:used]), ("runs",))
    return NamedSharding(mesh, PartitionSpec("runs")), NamedSharding(mesh, PartitionSpec())


def devices_of(place: Sharding) -> int:
    """Number of devices of a sharding."""
    return len(place.device_set)


def put_once(tree: Any, where: Any) -> Any:
    """Puts the arrays of a tree on devices; an array that occurs twice is there once."""
    placed: dict[int, jax.Array] = {}

    def put(leaf: Any) -> jax.Array:
        if id(leaf) not in placed:
            placed[id(leaf)] = jax.device_put(leaf, where)
        return placed[id(leaf)]

    return jax.tree.map(put, tree)
