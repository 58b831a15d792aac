"""How much memory there is, and how much a compiled program takes."""

import contextlib
import os
from pathlib import Path
from typing import Any

import jax


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
