"""What is trained, by name: the NNX filter of each way of fine-tuning."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from disam_jax.dg.peft.registry import FINETUNING


def in_head(path: tuple[Any, ...], variable: Any) -> bool:
    """Whether a variable is of the last layer (`head`, `fc`, `classifier`), but not of a probe's tower's unused one."""
    del variable
    return path[-2:-1] in (("head",), ("fc",), ("classifier",)) and "tower" not in path


def of_norm_or_bias(path: tuple[Any, ...], variable: Any) -> bool:
    """Whether a variable is the scale of a normalisation layer, or any layer's bias."""
    del variable
    return path[-1] in ("scale", "bias")


# For `wrt=` of `disam_jax.nnx.value_and_grad` and of `nnx.Optimizer`. Where a new head exists, it is trained as well.
TRAINABLE: Mapping[str, Any] = MappingProxyType({name: way.trained() for name, way in FINETUNING.items()})
