"""The machine and the packages behind numbers."""

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import disam_jax


def machine() -> dict[str, Any]:
    """Processor, number of cores and JAX's device.

    Example:
        >>> sorted(machine())
        ['cores', 'cpu', 'device', 'system']
    """
    import jax

    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    device = jax.devices()[0]
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "device": device.device_kind,
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on.

    Example:
        >>> list(versions())[:4]
        ['python', 'disam_jax', 'jax', 'jaxlib']
    """
    found = {"python": platform.python_version(), "disam_jax": disam_jax.__version__}
    for package in ("jax", "jaxlib", "numpy", "optax", "flax", "scipy", "scikit-learn", "scikit-image"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
