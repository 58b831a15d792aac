"""Where the arrays of a chunk of runs lie: each run on one device, or the batch of every run over all of them."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from disam_jax.dg.errors import InputError
from disam_jax.dg.models.network import Network, Output, Params, State
from disam_jax.dg.training.config import TrainConfig


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


def everywhere() -> NamedSharding:
    """Sharding of arrays that every device has a copy of, while it computes on its part of a batch."""
    return NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), PartitionSpec())


def groups(config: TrainConfig) -> int:
    """Number of groups of devices that train runs of their own: each device, or all together one batch.

    Example:
        >>> groups(TrainConfig(data_parallel=True))
        1
    """
    return 1 if config.data_parallel else jax.device_count()


def split_batches(network: Network) -> Network:
    """The network with its batches dealt over all devices, as far as they can be dealt evenly.

    Args:
        network: Network of which parameters and state lie `everywhere`.

    Returns:
        Network; its numbers are the same to rounding.
    """
    mesh = everywhere().mesh

    def apply(params: Params, state: State, inputs: jax.Array, key: jax.Array, train: bool, **weights: Any) -> Output:
        if len(inputs) % mesh.size == 0:
            inputs = jax.lax.with_sharding_constraint(inputs, NamedSharding(mesh, PartitionSpec("batch")))
        return network.apply(params, state, inputs, key, train, **weights)

    return network._replace(apply=apply)


def check_batch(config: TrainConfig, sources: int) -> None:
    """Checks that the batch of a step can be dealt over all devices evenly, if the configuration asks for that.

    Args:
        config: Configuration that all runs share.
        sources: Number of source domains.

    Raises:
        InputError: If it cannot. The message says how many examples of each domain can.

    Example:
        >>> check_batch(TrainConfig(), sources=3)
    """
    if not config.data_parallel:
        return
    devices = jax.device_count()
    if devices == 1:
        raise InputError("--data-parallel deals a batch over several devices, and jax has one: leave it out")
    if config.batch_size is not None:
        if config.batch_size % devices:
            raise InputError(
                f"--data-parallel must deal {config.batch_size} examples over {devices} devices evenly: write "
                f"--batch-size {-(-config.batch_size // devices) * devices}"
            )
        return
    if config.per_domain * sources % devices:
        step = devices // math.gcd(devices, sources)
        raise InputError(
            f"--data-parallel must deal {config.per_domain * sources} examples, --per-domain {config.per_domain} of "
            f"{sources} source domains, over {devices} devices evenly: write --per-domain "
            f"{-(-config.per_domain // step) * step}"
        )
