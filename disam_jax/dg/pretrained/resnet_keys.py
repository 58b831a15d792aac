"""ResNets' checkpoints in the layouts of torchvision and timm and of Hugging Face's transformers."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from flax import nnx

from disam_jax.dg.errors import InputError
from disam_jax.dg.models.inputs import IMAGENET_MEAN, IMAGENET_STD
from disam_jax.dg.models.linear import make_head
from disam_jax.dg.models.resnet import BasicBlock, Bottleneck, ResNet
from disam_jax.dg.pretrained.files import CONFIG, Checkpoint
from disam_jax.dg.pretrained.keymap import NOT_NEEDED, Recipe, Rule, conv_rule, head_rules, norm_rules
from disam_jax.dg.pretrained.normalisation import check_normalisation
from disam_jax.dg.pretrained.tensors import shapes
from disam_jax.dg.pretrained.transformer_keys import MOST_SIZE, count_blocks
from disam_jax.dg.reading import brief, shown

# Plain ResNets by torchvision's and timm's names; relatives such as resnet50d compute something else.
NAMED: Mapping[str, tuple[tuple[int, ...], type[BasicBlock] | type[Bottleneck]]] = {
    "resnet18": ((2, 2, 2, 2), BasicBlock),
    "resnet34": ((3, 4, 6, 3), BasicBlock),
    "resnet50": ((3, 4, 6, 3), Bottleneck),
    "resnet101": ((3, 4, 23, 3), Bottleneck),
    "resnet152": ((3, 8, 36, 3), Bottleneck),
}

# Each has twice the channels of the one before.
MOST_STAGES = 16


class Sizes(NamedTuple):
    """What tells one ResNet from another.

    Attributes:
        stages: number of blocks in each.
        block: `BasicBlock` or `Bottleneck`.
        width: channels of the stem.
        in_channels: channels of the images.
    """

    stages: tuple[int, ...]
    block: type[BasicBlock] | type[Bottleneck]
    width: int
    in_channels: int


def resnet_recipe(
    checkpoint: Checkpoint,
    num_classes: int | None,
    name: str | None = None,
    *,
    dropout: float = 0.0,
    frozen_norm: bool = False,
) -> Recipe:
    """How a checkpoint of a ResNet becomes a `ResNet`.

    The layout is seen by the keys. torchvision's and timm's tells the sizes by itself, Hugging Face's by config.json.

    Args:
        checkpoint: in one of the layouts.
        num_classes: of a new head; None keeps the checkpoint's, if it has one.
        name: one of `NAMED`, if it must be that one.
        dropout: see `ResNet`.
        frozen_norm: see `ResNet`.

    Returns:
        Recipe.

    Raises:
        InputError: if sizes cannot be told, are of a network that `ResNet` cannot be or of another than `name`; or if
            the images were not normalised as `inputs.images` does.
    """
    hugging_face = any("embedder.embedder." in key for key in checkpoint.tensors)
    sizes = sizes_by_config(checkpoint) if hugging_face else sizes_by_tensors(checkpoint)
    if hugging_face:
        _check_depths(checkpoint, sizes.stages)
    if name is not None and (sizes.stages, sizes.block, sizes.width) != (*NAMED[name], 64):
        raise InputError(
            f"{checkpoint.where}: is not {name} but a ResNet of {sizes.block.__name__} {sizes.stages}, width "
            f"{sizes.width}; write model='resnet' to load it as it is"
        )
    check_normalisation(checkpoint, IMAGENET_MEAN, IMAGENET_STD, "ResNets see images normalised by {usual}", 1e-3)
    head = "classifier.1" if hugging_face else "fc"
    kept = None
    if num_classes is None and f"{head}.weight" in checkpoint.tensors:
        kept = _shape(checkpoint, f"{head}.weight", 2)[0]
    return Recipe(
        make=lambda rngs: ResNet(
            sizes.stages,
            sizes.block,
            kept,
            in_channels=sizes.in_channels,
            width=sizes.width,
            dropout=dropout,
            frozen_norm=frozen_norm,
            rngs=rngs,
        ),
        rules=[
            *(hugging_face_rules(len(sizes.stages)) if hugging_face else torchvision_rules()),
            *head_rules(head, None if kept is None else "fc"),
            NOT_NEEDED,
        ],
        add_head=None if num_classes is None else partial(add_head, num_classes=num_classes),
    )


def add_head(module: nnx.Module, rngs: nnx.Rngs, num_classes: int) -> None:
    """Gives a ResNet without a head a new one.

    Args:
        module: the ResNet.
        rngs: random streams.
        num_classes: C.
    """
    assert isinstance(module, ResNet)
    module.fc = make_head(module.num_features, num_classes, rngs)


def sizes_by_tensors(checkpoint: Checkpoint) -> Sizes:
    """Sizes by the shapes and the keys of torchvision's and timm's layout.

    Args:
        checkpoint: in that layout.

    Returns:
        Sizes.

    Raises:
        InputError: if it has no such keys or shapes.
    """
    width, in_channels, _, _ = _shape(checkpoint, "conv1.weight", 4)
    stages: list[int] = []
    while blocks := _count(checkpoint, f"layer{len(stages) + 1}." + "{}.conv1.weight"):
        stages.append(blocks)
    if len(stages) > MOST_STAGES:
        raise InputError(f"{checkpoint.where}: has {len(stages)} stages, a ResNet has at most {MOST_STAGES}")
    if not stages:
        raise InputError(
            f"{checkpoint.where}: has no layer1.0.conv1.weight, so it is not a ResNet of torchvision or timm"
        )
    block = Bottleneck if "layer1.0.conv3.weight" in checkpoint.tensors else BasicBlock
    return Sizes(tuple(stages), block, width, in_channels)


def sizes_by_config(checkpoint: Checkpoint) -> Sizes:
    """Sizes by the config.json of Hugging Face's layout; what it leaves out are transformers' defaults, ResNet-50's.

    Args:
        checkpoint: in that layout.

    Returns:
        Sizes.

    Raises:
        InputError: if there is no config.json, an entry cannot be, or the network is none that `ResNet` can be.

    Example:
        >>> config = {"embedding_size": 64, "hidden_sizes": [64, 128], "depths": [2, 2], "layer_type": "basic"}
        >>> sizes = sizes_by_config(Checkpoint("folder", config, None, {}))
        >>> sizes.stages, sizes.block.__name__, sizes.width
        ((2, 2), 'BasicBlock', 64)
    """
    where = f"{checkpoint.where}: {CONFIG}"
    if checkpoint.config is None:
        raise InputError(f"{checkpoint.where}: no {CONFIG} beside it, which tells the sizes of a ResNet; get it too")
    given = checkpoint.config
    for key in ("downsample_in_bottleneck", "downsample_in_first_stage"):
        if given.get(key, False) is not False:
            raise InputError(
                f"{where}: {key} is {brief(given[key])}, but only ResNets without it (false) are supported"
            )
    if (activation := given.get("hidden_act", "relu")) != "relu":
        raise InputError(f"{where}: hidden_act is {brief(activation)}, but only relu is supported")
    blocks = {"basic": BasicBlock, "bottleneck": Bottleneck}
    layer_type = given.get("layer_type", "bottleneck")
    if not isinstance(layer_type, str) or layer_type not in blocks:
        raise InputError(f"{where}: layer_type is {brief(layer_type)}, must be one of {', '.join(blocks)}")
    block = blocks[layer_type]
    (width,) = _whole(where, "embedding_size", [given.get("embedding_size", 64)])
    (channels,) = _whole(where, "num_channels", [given.get("num_channels", 3)])
    stages = _whole(where, "depths", given.get("depths", [3, 4, 6, 3]))
    hidden = _whole(where, "hidden_sizes", given.get("hidden_sizes", [256, 512, 1024, 2048]))
    doubling = tuple(width * 2**place * block.expansion for place in range(len(stages)))
    if hidden != doubling:
        raise InputError(
            f"{where}: hidden_sizes is {list(hidden)}, but only {list(doubling)} is supported with embedding_size "
            f"{width}, layer_type {layer_type} and {len(stages)} depths"
        )
    return Sizes(stages, block, width, channels)


def torchvision_rules() -> list[Rule]:
    """From torchvision's and timm's keys to the variables of `ResNet`, but for the head."""
    block = r"(?:layer\d+\.\d+\.)"
    return [
        *_conv_and_norm(rf"({block}?)conv(\d)", r"\1conv\2", rf"({block}?)bn(\d)", r"\1bn\2"),
        *_conv_and_norm(
            rf"({block}downsample\.)0", r"\g<1>0", rf"({block}downsample\.)1", r"\g<1>1"
        ),  # \g<1>: the digit after it is no part of the group's number.
    ]


def hugging_face_rules(num_stages: int) -> list[Rule]:
    """From the keys of transformers' ResNetModel and ResNetForImageClassification, but for the head.

    Args:
        num_stages: number of stages, which count from 0 there and from 1 in `ResNet`, as the layers of a block do.

    Returns:
        Rules.
    """
    rules = _unit(r"(?:resnet\.)?embedder\.embedder", "conv1", "bn1")
    for stage in range(num_stages):
        block, path = rf"(?:resnet\.)?encoder\.stages\.{stage}\.layers\.(\d+)", rf"layer{stage + 1}.\1"
        rules += _unit(rf"{block}\.shortcut", f"{path}.downsample.0", f"{path}.downsample.1")
        for layer in range(3):
            rules += _unit(rf"{block}\.layer\.{layer}", f"{path}.conv{layer + 1}", f"{path}.bn{layer + 1}")
    return rules


def _unit(key: str, conv: str, norm: str) -> list[Rule]:
    return _conv_and_norm(rf"{key}\.convolution", conv, rf"{key}\.normalization", norm)


def _conv_and_norm(conv_key: str, conv: str, norm_key: str, norm: str) -> list[Rule]:
    return [conv_rule(conv_key, conv), *norm_rules(norm_key, norm)]


def _count(checkpoint: Checkpoint, form: str) -> int:
    """How many of the keys with 0, 1, 2, ... in the form there are before the first that is not."""
    count = 0
    while form.format(count) in checkpoint.tensors:
        count += 1
    return count


def _shape(checkpoint: Checkpoint, key: str, rank: int) -> tuple[int, ...]:
    if key not in checkpoint.tensors:
        some = ", ".join(map(shown, sorted(checkpoint.tensors)[:3]))
        raise InputError(f"{checkpoint.where}: has no {key}, so it is not a ResNet; its keys are {some}, ...")
    shape = shapes(checkpoint.tensors)[key]
    if len(shape) != rank or 0 in shape or max(shape) > MOST_SIZE:
        raise InputError(f"{checkpoint.where}: {key} is {list(shape)}, must have {rank} dimensions above zero")
    return shape


def _whole(where: str, key: str, numbers: Any) -> tuple[int, ...]:
    if (
        not isinstance(numbers, list)
        or not 1 <= len(numbers) <= MOST_STAGES
        or not all(type(n) is int and 0 < n <= MOST_SIZE for n in numbers)
    ):
        raise InputError(
            f"{where}: {key} is {brief(numbers)}, must be whole numbers above zero, at most {MOST_STAGES} of at most "
            f"{MOST_SIZE}"
        )
    return tuple(numbers)


def _check_depths(checkpoint: Checkpoint, stages: tuple[int, ...]) -> None:
    """Not more blocks than there are tensors for: to make them takes time that config.json would decide."""
    for stage, depth in enumerate(stages):
        found = count_blocks(checkpoint.tensors, rf"(?:resnet\.)?encoder\.stages\.{stage}\.layers\.(\d+)\.")
        if depth > max(found, 1):
            raise InputError(
                f"{checkpoint.where}: {CONFIG}: depths is {list(stages)}, but stage {stage} has {found} blocks in the "
                "checkpoint's tensors"
            )
