"""Domain-inspired sharpness-aware minimisation (DISAM) in JAX and Optax."""

import importlib
from typing import Any

from disam_jax import variants
from disam_jax._domains import (
    DomainLosses,
    ascent_part,
    group_by_domain,
    mean_by_domain,
    part_and_rest,
    per_domain,
    per_domain_value_and_grad,
)
from disam_jax._gradient import DisamInfo, accumulated_value_and_grad, value_and_grad
from disam_jax._part import part_value_and_grad
from disam_jax._transform import DisamState, disam, sam
from disam_jax._weights import domain_weights

__version__ = "0.1.0"

__all__ = [
    "DisamInfo",
    "DisamState",
    "DomainLosses",
    "accumulated_value_and_grad",
    "ascent_part",
    "disam",
    "domain_weights",
    "group_by_domain",
    "mean_by_domain",
    "part_and_rest",
    "part_value_and_grad",
    "per_domain",
    "per_domain_value_and_grad",
    "sam",
    "value_and_grad",
    "variants",
]


def __getattr__(name: str) -> Any:
    # These work without an import of their own, and those who don't use them don't wait for what they need.
    if name in ("nnx", "sharpness"):
        return importlib.import_module(f"disam_jax.{name}")
    raise AttributeError(f"module 'disam_jax' has no attribute {name!r}")
