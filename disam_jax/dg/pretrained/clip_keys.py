"""CLIP's checkpoints as Hugging Face publishes them: sizes from config.json, variables from the keys."""

from collections.abc import Mapping
from typing import Any

from disam_jax.dg.errors import InputError
from disam_jax.dg.models.clip import CLIP, CLIPConfig
from disam_jax.dg.pretrained.files import CONFIG, Checkpoint
from disam_jax.dg.pretrained.keymap import Recipe, Rule, linear_kernel
from disam_jax.dg.pretrained.transformer_keys import Settings, count_blocks, linear_rules, norm_rules, patch_rule
from disam_jax.dg.reading import brief


def clip_recipe(checkpoint: Checkpoint, num_classes: int | None) -> Recipe:
    """How a checkpoint of CLIP becomes a `CLIP`.

    Args:
        checkpoint: with a config.json.
        num_classes: None: CLIP classifies by texts and has no head.

    Returns:
        Recipe.

    Raises:
        InputError: if config.json has a size that cannot be, or num_classes is given.
    """
    if num_classes is not None:
        raise InputError(
            f"{checkpoint.where}: num_classes is {num_classes}, but CLIP classifies by texts and has no head to make; "
            "leave num_classes out"
        )
    given = checkpoint.config or {}
    config = clip_config(given, checkpoint.where)
    for part, model in (("text_config", "text_model"), ("vision_config", "vision_model")):
        found = count_blocks(checkpoint.tensors, rf"{_block(model)}\.")
        _part(given, part, f"{checkpoint.where}: {CONFIG}").layers("num_hidden_layers", 12, found)
    return Recipe(lambda rngs: CLIP(config, rngs=rngs), clip_rules(config.patch_size))


def clip_config(config: Mapping[str, Any], where: str) -> CLIPConfig:
    """The sizes that a config.json gives; those that it leaves out are transformers' defaults, which are ViT-B/32's.

    Older files have their sizes in `text_config_dict` and `vision_config_dict`, which go before `text_config` and
    `vision_config`.

    Args:
        config: content of config.json.
        where: name of the checkpoint, for messages.

    Returns:
        CLIPConfig.

    Raises:
        InputError: if a size is no number above zero, sizes don't go together, or the towers differ where `CLIPConfig`
            has one value for both.

    Example:
        >>> config = clip_config({"vision_config": {"patch_size": 16}}, "weights")
        >>> config.patch_size, config.vision_width, config.eos_token_id
        (16, 768, 49407)
    """
    where = f"{where}: {CONFIG}"
    text, vision = _part(config, "text_config", where), _part(config, "vision_config", where)
    if (channels := vision.whole("num_channels", 3)) != 3:
        raise InputError(f"{vision.where}: num_channels is {channels}, but only images of 3 channels are supported")
    vocab_size = text.whole("vocab_size", 49408)
    try:
        return CLIPConfig(
            image_size=vision.square("image_size", 224),
            patch_size=vision.square("patch_size", 32),
            vision_width=vision.whole("hidden_size", 768),
            vision_layers=vision.whole("num_hidden_layers", 12),
            vision_heads=vision.whole("num_attention_heads", 12),
            vision_hidden=vision.whole("intermediate_size", 3072),
            text_width=text.whole("hidden_size", 512),
            text_layers=text.whole("num_hidden_layers", 12),
            text_heads=text.whole("num_attention_heads", 8),
            text_hidden=text.whole("intermediate_size", 2048),
            vocab_size=vocab_size,
            embed_dim=Settings(config, where).whole("projection_dim", 512),
            context_length=text.whole("max_position_embeddings", 77),
            activation=_common("hidden_act", text.activation("quick_gelu"), vision.activation("quick_gelu"), where),
            eps=_common(
                "layer_norm_eps", text.positive("layer_norm_eps", 1e-5), vision.positive("layer_norm_eps", 1e-5), where
            ),
            eos_token_id=text.whole("eos_token_id", 49407, least=0, most=vocab_size - 1),
        )
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _part(config: Mapping[str, Any], name: str, where: str) -> Settings:
    entries: dict[str, Any] = {}
    for key in (name, f"{name}_dict"):
        part = {} if config.get(key) is None else config[key]
        if not isinstance(part, Mapping):
            raise InputError(f"{where}: {key} is {brief(part)}, must be an object {{...}}")
        entries |= part
    return Settings(entries, f"{where}: {name}")


def _common(key: str, text: Any, vision: Any, where: str) -> Any:
    if text != vision:
        raise InputError(f"{where}: {key} is {text!r} in text_config and {vision!r} in vision_config; must be the same")
    return text


def clip_rules(patch_size: int) -> list[Rule]:
    """From the keys of transformers' CLIPModel to the variables of `CLIP`.

    Args:
        patch_size: of the image tower.

    Returns:
        Rules. `pre_layrnorm` is spelt so in all published files.
    """
    return [
        Rule("logit_scale", "logit_scale"),
        # Buffers 0, 1, 2, ... of files that older versions wrote.
        Rule(r"(text|vision)_model\.embeddings\.position_ids", None),
        Rule(r"vision_model\.embeddings\.class_embedding", "image.class_token"),
        patch_rule(r"vision_model\.embeddings\.patch_embedding\.weight", "image.patch", patch_size),
        Rule(r"vision_model\.embeddings\.position_embedding\.weight", "image.positions"),
        *norm_rules(r"vision_model\.pre_layrnorm", "image.norm_in"),
        *_block_rules("vision_model", "image"),
        *norm_rules(r"vision_model\.post_layernorm", "image.norm_out"),
        Rule(r"visual_projection\.weight", "image.projection.kernel", linear_kernel),
        Rule(r"text_model\.embeddings\.token_embedding\.weight", "text.tokens.embedding"),
        Rule(r"text_model\.embeddings\.position_embedding\.weight", "text.positions"),
        *_block_rules("text_model", "text"),
        *norm_rules(r"text_model\.final_layer_norm", "text.norm_out"),
        Rule(r"text_projection\.weight", "text.projection.kernel", linear_kernel),
    ]


def _block_rules(model: str, tower: str) -> list[Rule]:
    block, path = _block(model), rf"{tower}.blocks.\1"
    return [
        *norm_rules(rf"{block}\.layer_norm1", f"{path}.norm1"),
        *linear_rules(rf"{block}\.self_attn\.q_proj", f"{path}.attention.query"),
        *linear_rules(rf"{block}\.self_attn\.k_proj", f"{path}.attention.key"),
        *linear_rules(rf"{block}\.self_attn\.v_proj", f"{path}.attention.value"),
        *linear_rules(rf"{block}\.self_attn\.out_proj", f"{path}.attention.out"),
        *norm_rules(rf"{block}\.layer_norm2", f"{path}.norm2"),
        *linear_rules(rf"{block}\.mlp\.(fc[12])", rf"{path}.mlp.\2"),
    ]


def _block(model: str) -> str:
    return rf"{model}\.encoder\.layers\.(\d+)"
