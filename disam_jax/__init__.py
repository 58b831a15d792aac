"""Domain-inspired sharpness-aware minimisation (DISAM) in JAX and Optax."""

import importlib
from typing import Any

from disam_jax import variants
from disam_jax._domains import (
    DomainLosses,
    group_by_domain,
    mean_by_domain,
    per_domain,
    per_domain_value_and_grad,
)
from disam_jax._gradient import DisamInfo, accumulated_value_and_grad, value_and_grad
from disam_jax._transform import DisamState, disam, sam
from disam_jax._weights import domain_weights

__version__ = "0.1.0"

__all__ = [
    "DisamInfo",
    "DisamState",
    "DomainLosses",
    "accumulated_value_and_grad",
    "disam",
    "domain_weights",
    "group_by_domain",
    "mean_by_domain",
    "per_domain",
    "per_domain_value_and_grad",
    "sam",
    "value_and_grad",
    "variants",
]


def __getattr__(name: str) -> Any:
    # ``disam_jax.nnx`` works without an import of its own, and those who don't use it don't wait for Flax.
    if name == "nnx":
        return importlib.import_module("disam_jax.nnx")
    raise AttributeError(f"module 'disam_jax' has no attribute {name!r}")
