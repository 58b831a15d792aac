"""ViT's checkpoints as Hugging Face publishes them: sizes from config.json, variables from the keys."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from flax import nnx

from disam_jax.dg.errors import InputError
from disam_jax.dg.models.linear import make_head
from disam_jax.dg.models.vit import ViT, ViTConfig
from disam_jax.dg.pretrained.files import CONFIG, PREPROCESSOR, Checkpoint
from disam_jax.dg.pretrained.keymap import Recipe, Rule
from disam_jax.dg.pretrained.tensors import shapes
from disam_jax.dg.pretrained.transformer_keys import Settings, count_blocks, linear_rules, norm_rules, patch_rule
from disam_jax.dg.reading import brief

# A mean and a standard deviation are held for each.
MOST_CHANNELS = 1024

_BLOCK = r"(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)"


def vit_recipe(checkpoint: Checkpoint, num_classes: int | None) -> Recipe:
    """How a checkpoint of ViTForImageClassification or ViTModel becomes a `ViT`.

    Args:
        checkpoint: with a config.json.
        num_classes: of a new head; None keeps the checkpoint's, if it has one.

    Returns:
        Recipe.

    Raises:
        InputError: if config.json has a size that cannot be, or speaks of a head that is not there.
    """
    said, where = checkpoint.config or {}, checkpoint.where
    config = vit_config(said, where, checkpoint.preprocessor)
    found = count_blocks(checkpoint.tensors, rf"{_BLOCK}\.")
    Settings(said, f"{where}: {CONFIG}").layers("num_hidden_layers", 12, found)
    if num_classes is not None:
        return _recipe(config, None, partial(add_head, num_classes=num_classes))
    architectures = _architectures(said, where)
    sizes = shapes(checkpoint.tensors)
    head = [sizes[key] for key in ("classifier.weight", "classifier.bias") if key in sizes]
    if not head and "ViTForImageClassification" in architectures:
        raise InputError(
            f"{where}: no tensor classifier.weight, but {CONFIG} says ViTForImageClassification; get it anew, or write "
            "num_classes for a new head"
        )
    if head and not (head[0] and head[0][0]):
        raise InputError(f"{where}: the tensors of the classifier have no row: get it anew")
    return _recipe(config, head[0][0] if head else None)


def _architectures(config: Mapping[str, Any], where: str) -> list[str]:
    names = config.get("architectures")
    if names is None:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where}: {CONFIG}: architectures is {brief(names)}, must be a list of names")
    return names


def _recipe(config: ViTConfig, kept: int | None, add: Callable[[nnx.Module, nnx.Rngs], None] | None = None) -> Recipe:
    """With `kept` classes of the checkpoint's own head."""
    sizes = replace(config, num_classes=kept)
    return Recipe(lambda rngs: ViT(sizes, rngs=rngs), vit_rules(sizes), add)


def add_head(module: nnx.Module, rngs: nnx.Rngs, num_classes: int) -> None:
    """Gives a ViT without a head a new one.

    Args:
        module: the ViT.
        rngs: random streams.
        num_classes: C.
    """
    assert isinstance(module, ViT)
    module.config = replace(module.config, num_classes=num_classes)
    module.head = make_head(module.config.width, num_classes, rngs)


def vit_config(config: Mapping[str, Any], where: str, preprocessor: Mapping[str, Any] | None = None) -> ViTConfig:
    """The sizes that a config.json gives; those that it leaves out are transformers' defaults, which are ViT-B/16's.

    Args:
        config: content of config.json.
        where: name of the checkpoint, for messages.
        preprocessor: content of preprocessor_config.json, for mean and standard deviation of the images; 0.5 without.

    Returns:
        ViTConfig without a head.

    Raises:
        InputError: if a size is no number above zero, or sizes don't go together.

    Example:
        >>> config = vit_config({"image_size": 384}, "weights")
        >>> config.image_size, config.width, config.mean
        (384, 768, (0.5, 0.5, 0.5))
    """
    settings = Settings(config, f"{where}: {CONFIG}")
    channels = settings.whole("num_channels", 3, most=MOST_CHANNELS)
    images = Settings(preprocessor or {}, f"{where}: {PREPROCESSOR}")
    try:
        return ViTConfig(
            image_size=settings.square("image_size", 224),
            patch_size=settings.square("patch_size", 16),
            width=settings.whole("hidden_size", 768),
            layers=settings.whole("num_hidden_layers", 12),
            heads=settings.whole("num_attention_heads", 12),
            hidden=settings.whole("intermediate_size", 3072),
            activation=settings.activation("gelu"),
            eps=settings.positive("layer_norm_eps", 1e-12),
            qkv_bias=settings.flag("qkv_bias", True),
            channels=channels,
            mean=images.numbers("image_mean", (0.5,) * channels),
            std=images.numbers("image_std", (0.5,) * channels, above=0.0),
        )
    except ValueError as error:
        raise InputError(f"{where}: {CONFIG}: {error}") from error


def vit_rules(config: ViTConfig) -> list[Rule]:
    r"""From the keys of transformers' ViT to the variables of `ViT`.

    The published files call the blocks `encoder.layer.0`; `layers.0`, with other names inside, are those of the modules
    of transformers 5.

    Args:
        config: sizes; without num_classes the checkpoint's head is left out.

    Returns:
        Rules.
    """
    return [
        Rule(r"(?:vit\.)?embeddings\.cls_token", "class_token", partial(np.squeeze, axis=(0, 1))),
        Rule(r"(?:vit\.)?embeddings\.position_embeddings", "positions", partial(np.squeeze, axis=0)),
        patch_rule(
            r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.weight", "patch", config.patch_size, config.channels
        ),
        Rule(r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.bias", "patch.bias"),
        *_block_rules(),
        *norm_rules(r"(?:vit\.)?layernorm", "norm_out"),
        *(
            [Rule(r"classifier\.(weight|bias)", None)]
            if config.num_classes is None
            else linear_rules("classifier", "head")
        ),
        # A layer on the class token and a token for masked patches that pretraining had and classification has not.
        Rule(r"(?:vit\.)?pooler\.dense\.(weight|bias)", None),
        Rule(r"(?:vit\.)?embeddings\.mask_token", None),
    ]


def _block_rules() -> list[Rule]:
    block, path = _BLOCK, r"blocks.\1"
    names = {
        "attention.query": r"attention\.(?:attention\.query|q_proj)",
        "attention.key": r"attention\.(?:attention\.key|k_proj)",
        "attention.value": r"attention\.(?:attention\.value|v_proj)",
        "attention.out": r"attention\.(?:output\.dense|o_proj)",
        "mlp.fc1": r"(?:intermediate\.dense|mlp\.fc1)",
        "mlp.fc2": r"(?:output\.dense|mlp\.fc2)",
    }
    return [
        *norm_rules(rf"{block}\.layernorm_before", f"{path}.norm1"),
        *norm_rules(rf"{block}\.layernorm_after", f"{path}.norm2"),
        *(rule for layer, name in names.items() for rule in linear_rules(rf"{block}\.{name}", f"{path}.{layer}")),
    ]
