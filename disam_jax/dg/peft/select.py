"""What is trained, by name: the NNX filter of each way of fine-tuning."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flax import nnx

from disam_jax.dg.peft.coop import PromptParam


def in_head(path: tuple[Any, ...], variable: Any) -> bool:
    """Whether a variable is of the last layer: of `head` or `fc`, but not of the unused one of a probe's tower."""
    del variable
    return path[-2:-1] in (("head",), ("fc",)) and "tower" not in path


def of_norm_or_bias(path: tuple[Any, ...], variable: Any) -> bool:
    """Whether a variable is the scale of a normalisation layer, or any layer's bias."""
    del variable
    return path[-1] in ("scale", "bias")


# For `wrt=` of `disam_jax.nnx.value_and_grad` and of `nnx.Optimizer`. Where a new head exists, it is trained as well.
#
# full       everything
# probe      the head of a `LinearProbe`
# lora       what `add_lora` added (Hu et al., ICLR 2022)
# coop       the context vectors of a `CoOp` (Zhou et al., IJCV 2022)
# norm-bias  scales of the normalisation layers and all biases (BitFit, Ben Zaken et al., ACL 2022, has the biases)
TRAINABLE: Mapping[str, Any] = MappingProxyType(
    {
        "full": nnx.Param,
        "probe": nnx.All(nnx.Param, in_head),
        "lora": nnx.Any(nnx.LoRAParam, nnx.All(nnx.Param, in_head)),
        "coop": PromptParam,
        "norm-bias": nnx.All(nnx.Param, nnx.Any(in_head, of_norm_or_bias)),
    }
)
