"""Domain-inspired sharpness-aware minimisation (DISAM) in JAX and Optax."""

import importlib
import warnings
from typing import Any

from disam_jax import variants
from disam_jax._domains import DomainLosses, mean_by_domain, per_domain, per_domain_value_and_grad
from disam_jax._examples import ascent_subset, split_examples
from disam_jax._gradient import DisamInfo, accumulated_value_and_grad, value_and_grad
from disam_jax._grouping import group_by_domain
from disam_jax._subset import subset_value_and_grad, training_cost
from disam_jax._transform import DisamState, disam, sam
from disam_jax._weights import domain_weights

__version__ = "0.1.0"

__all__ = [
    "DisamInfo",
    "DisamState",
    "DomainLosses",
    "accumulated_value_and_grad",
    "ascent_subset",
    "disam",
    "domain_weights",
    "group_by_domain",
    "mean_by_domain",
    "per_domain",
    "per_domain_value_and_grad",
    "sam",
    "split_examples",
    "subset_value_and_grad",
    "training_cost",
    "value_and_grad",
    "variants",
]


# Old names, which the next release removes.
_RENAMED = {
    "ascent_part": "ascent_subset",
    "part_and_rest": "split_examples",
    "part_value_and_grad": "subset_value_and_grad",
}


def __getattr__(name: str) -> Any:
    # These work without an import of their own, and those who don't use them don't wait for what they need.
    if name in ("nnx", "sharpness"):
        return importlib.import_module(f"disam_jax.{name}")
    if name in _RENAMED:
        new = _RENAMED[name]
        warnings.warn(f"disam_jax.{name} is now disam_jax.{new}.", DeprecationWarning, stacklevel=2)
        return globals()[new]
    raise AttributeError(f"module 'disam_jax' has no attribute {name!r}")
