"""The sizes of a pretrained network as JSON values, and the network that has them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from disam_jax.dg.errors import InputError
from disam_jax.dg.models import resnet
from disam_jax.dg.models.clip import CLIP, CLIPConfig
from disam_jax.dg.models.efficientnet import SCALES, EfficientNetLite, scaled_stages
from disam_jax.dg.models.norm import FrozenBatchNorm
from disam_jax.dg.models.resnet import ResNet
from disam_jax.dg.models.vit import ViT, ViTConfig


def architecture_of(module: nnx.Module) -> dict[str, Any]:
    """What a pretrained network is made from, without its weights.

    Args:
        module: `CLIP`, `ViT`, `ResNet` or `EfficientNetLite`.

    Returns:
        JSON values, of which "kind" is the name of the class.

    Raises:
        InputError: If it is another network, or one of other sizes than any that has a name.

    Example:
        >>> config = ViTConfig(image_size=8, patch_size=4, width=8, layers=1, heads=2, hidden=8)
        >>> architecture_of(nnx.eval_shape(lambda: ViT(config, rngs=nnx.Rngs(0))))["patch_size"]
        4
    """
    kind = {"kind": type(module).__name__}
    if isinstance(module, (CLIP, ViT)):
        return {**kind, **dataclasses.asdict(module.config)}
    if isinstance(module, ResNet):
        layers = [getattr(module, name) for name in module.stage_names]
        stem = {"width": module.conv1.out_features, "small_input": module.small_input}
        sizes = {"stages": list(map(len, layers)), "block": type(layers[0][0]).__name__, **stem}
        return {**kind, **sizes, **_ends(module, module.conv1, module.bn1, module.fc)}
    if isinstance(module, EfficientNetLite):
        blocks = [(len(blocks), blocks[-1].conv_pwl.out_features) for blocks in module.blocks[1:]]
        for name, scale in SCALES.items():
            if blocks == [(stage.blocks, stage.channels) for stage in scaled_stages(scale)[1:]]:
                return {**kind, "scale": name, **_ends(module, module.conv_stem, module.bn1, module.classifier)}
    raise InputError(f"--save: a {type(module).__name__} of these sizes cannot be built again: leave --save out")


def _ends(module: Any, first: nnx.Conv, norm: nnx.Module, last: nnx.Linear | None) -> dict[str, Any]:
    return {
        "in_channels": first.in_features,
        "num_classes": None if last is None else last.out_features,
        "dropout": module.dropout.rate,
        "frozen_norm": isinstance(norm, FrozenBatchNorm),
    }


def make_architecture(architecture: Mapping[str, Any]) -> nnx.Module:
    """The network of some sizes, with initial weights.

    Args:
        architecture: From `architecture_of`.

    Returns:
        `CLIP`, `ViT`, `ResNet` or `EfficientNetLite`.

    Raises:
        KeyError: If the kind or the name of a scale or block is unknown, or an entry is missing.
        TypeError: If an entry is unknown.
        ValueError: If the sizes do not go together.

    Example:
        >>> sizes = {"stages": [1, 1], "block": "BasicBlock", "width": 8, "small_input": True}
        >>> ends = {"in_channels": 3, "num_classes": 2, "dropout": 0.0, "frozen_norm": True}
        >>> nnx.eval_shape(lambda: make_architecture({"kind": "ResNet", **sizes, **ends})).num_features
        16
    """
    values: dict[str, Any] = {
        name: tuple(each) if isinstance(each, list) else each for name, each in architecture.items() if name != "kind"
    }
    return _MAKERS[architecture["kind"]](values, nnx.Rngs(0))


def _resnet(values: dict[str, Any], rngs: nnx.Rngs) -> ResNet:
    blocks = {each.__name__: each for each in (resnet.BasicBlock, resnet.Bottleneck)}
    return ResNet(**(values | {"block": blocks[values["block"]]}), rngs=rngs)


_MAKERS: Mapping[str, Callable[[dict[str, Any], nnx.Rngs], nnx.Module]] = {
    "CLIP": lambda values, rngs: CLIP(CLIPConfig(**values), rngs=rngs),
    "ViT": lambda values, rngs: ViT(ViTConfig(**values), rngs=rngs),
    "ResNet": _resnet,
    "EfficientNetLite": lambda values, rngs: EfficientNetLite(
        **(values | {"scale": SCALES[values["scale"]]}), rngs=rngs
    ),
}
