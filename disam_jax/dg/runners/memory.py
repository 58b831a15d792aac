"""How much memory there is, how much a compiled program takes, and how many runs fit."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from disam_jax.dg.errors import InputError


def program_bytes(compiled: Any) -> int:
    """Peak memory of a compiled program on each device, as XLA laid it out: arguments, results and temporaries."""
    sizes = compiled.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return int(held - sizes.alias_size_in_bytes)


def free_bytes() -> int:
    """Memory that one device has left, in bytes: the accelerator's own, or the machine's shared by its CPU devices."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        sizes = device.memory_stats()
        if sizes and "bytes_limit" in sizes:
            return int(sizes["bytes_limit"] - sizes["bytes_in_use"])
    return _machine_bytes() // jax.local_device_count()


def all_bytes() -> int:
    """All memory of one device, in use or not, in bytes: its own, or its share of the machine's."""
    device = jax.devices()[0]
    sizes = None if device.platform == "cpu" else device.memory_stats()
    if sizes and "bytes_limit" in sizes:
        return int(sizes["bytes_limit"])
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _container_limit()
    return (total if limit is None else min(total, limit)) // jax.local_device_count()


def fitting(total: int, most: int, budget: int, used: Callable[[int], int], groups: int | None = None) -> int:
    """The size of chunks that fit into memory, found by compiling one and reading its memory until it fits.

    Args:
        total: Number of runs.
        most: Largest size of a chunk.
        budget: Bytes on each device.
        used: Number of runs -> bytes that they take on each device.
        groups: Number of groups of devices that runs are dealt over; by default each device is one.

    Returns:
        A size that `evenly` gives.

    Raises:
        InputError: If not even the smallest chunk fits.
    """
    most = min(most, total)
    while True:
        number = evenly(total, most, groups)
        needed = used(number)
        if needed <= budget:
            return number
        if number == 1 or most == 1:
            raise InputError(
                f"one run needs {needed / 2**20:.0f} MiB and --memory allows {budget / 2**20:.0f} MiB: allow more, "
                "take a smaller model, image size or batch, or read images with --stream"
            )
        # Never too few, since some of the memory does not grow with the runs.
        most = max(1, min(number - 1, int(number * budget / needed)))


def evenly(total: int, most: int, groups: int | None = None) -> int:
    """The size of equal chunks of at most `most`, a multiple of the number of devices if it is larger than that.

    Args:
        total: Number of runs.
        most: Largest size.
        groups: Number of groups of devices; by default each device is one.

    Returns:
        The size.

    Example:
        >>> evenly(10, 4)
        4
        >>> evenly(9, 4)
        3
    """
    size = -(-total // -(-total // most))
    devices = jax.device_count() if groups is None else groups
    rounded = -(-size // devices) * devices
    if rounded > most:
        rounded = size // devices * devices
    return rounded or size


def _machine_bytes() -> int:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _container_limit()
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
        if limit is not None:
            free = min(free, max(limit - int(Path("/sys/fs/cgroup/memory.current").read_text()), 0))
    return free


def _container_limit() -> int | None:
    """What a container may hold, which can be less than its machine has."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None
    return None if limit == "max" else int(limit)
