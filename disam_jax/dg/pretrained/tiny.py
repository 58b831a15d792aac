"""Tiny checkpoints with random weights, in the layouts of the published ones: to try things without a download."""

import json
from pathlib import Path

import numpy as np

from disam_jax.dg.pretrained.files import CONFIG, WEIGHTS

VOCABULARY = 49408


def write_tiny_clip(folder: str | Path, *, image_size: int = 32, width: int = 16, seed: int = 0) -> Path:
    """Writes a CLIP of two blocks for each tower, as Hugging Face stores one, with the vocabulary of OpenAI's.

    Args:
        folder: made if need be.
        image_size: S, a multiple of 8, the size of its patches.
        width: of both towers, a multiple of 4.
        seed: of the weights.

    Returns:
        The folder, for `from_pretrained`.

    Example:
        >>> import tempfile
        >>> from disam_jax.dg.pretrained import from_pretrained
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     clip = from_pretrained(write_tiny_clip(folder))
        >>> clip.config.image_size, clip.config.vocab_size
        (32, 49408)
    """
    shared = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**shared, "vocab_size": VOCABULARY, "max_position_embeddings": 77, "eos_token_id": VOCABULARY - 1}
    config = {
        "model_type": "clip",
        "projection_dim": width,
        "text_config": {**text, "projection_dim": width},
        "vision_config": {**shared, "image_size": image_size, "patch_size": 8, "projection_dim": width},
    }
    make = _Maker(seed)
    text_model, vision = "text_model.", "vision_model."
    make.normal(f"{text_model}embeddings.token_embedding.weight", VOCABULARY, width)
    make.normal(f"{text_model}embeddings.position_embedding.weight", 77, width)
    make.normal(f"{vision}embeddings.class_embedding", width)
    make.normal(f"{vision}embeddings.patch_embedding.weight", width, 3, 8, 8)
    make.normal(f"{vision}embeddings.position_embedding.weight", (image_size // 8) ** 2 + 1, width)
    make.norm(f"{vision}pre_layrnorm", width)
    make.norm(f"{vision}post_layernorm", width)
    make.norm(f"{text_model}final_layer_norm", width)
    for tower in (text_model, vision):
        for number in range(2):
            block = f"{tower}encoder.layers.{number}."
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                make.linear(f"{block}self_attn.{name}", width, width)
            make.linear(f"{block}mlp.fc1", width, 2 * width)
            make.linear(f"{block}mlp.fc2", 2 * width, width)
            make.norm(f"{block}layer_norm1", width)
            make.norm(f"{block}layer_norm2", width)
    make.normal("visual_projection.weight", width, width)
    make.normal("text_projection.weight", width, width)
    make.tensors["logit_scale"] = np.array(np.log(10.0), np.float32)
    return make.write(Path(folder), config)


def write_tiny_vit(
    folder: str | Path, *, image_size: int = 32, width: int = 16, num_classes: int = 7, seed: int = 0
) -> Path:
    """Writes a ViT of two blocks, as Hugging Face stores one.

    Args:
        folder: made if need be.
        image_size: S, a multiple of 8, the size of its patches.
        width: a multiple of 4.
        num_classes: of its head.
        seed: of the weights.

    Returns:
        The folder, for `from_pretrained`.

    Example:
        >>> import tempfile
        >>> from disam_jax.dg.pretrained import from_pretrained
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     vit = from_pretrained(write_tiny_vit(folder))
        >>> vit.config.layers
        2
    """
    config = {
        "model_type": "vit",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": 8,
        "id2label": {str(label): f"class {label}" for label in range(num_classes)},
    }
    make = _Maker(seed)
    make.normal("vit.embeddings.cls_token", 1, 1, width)
    make.normal("vit.embeddings.position_embeddings", 1, (image_size // 8) ** 2 + 1, width)
    make.normal("vit.embeddings.patch_embeddings.projection.weight", width, 3, 8, 8)
    make.normal("vit.embeddings.patch_embeddings.projection.bias", width)
    for number in range(2):
        block = f"vit.encoder.layer.{number}."
        for name in ("query", "key", "value"):
            make.linear(f"{block}attention.attention.{name}", width, width)
        make.linear(f"{block}attention.output.dense", width, width)
        make.linear(f"{block}intermediate.dense", width, 2 * width)
        make.linear(f"{block}output.dense", 2 * width, width)
        make.norm(f"{block}layernorm_before", width)
        make.norm(f"{block}layernorm_after", width)
    make.norm("vit.layernorm", width)
    make.linear("classifier", width, num_classes)
    return make.write(Path(folder), config)


class _Maker:
    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.tensors: dict[str, np.ndarray] = {}

    def normal(self, key: str, *shape: int) -> None:
        # As torch stores a kernel: outputs first.
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
        self.tensors[key] = (self.rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)

    def linear(self, key: str, m: int, n: int) -> None:
        self.normal(f"{key}.weight", n, m)
        self.tensors[f"{key}.bias"] = np.zeros(n, np.float32)

    def norm(self, key: str, width: int) -> None:
        self.tensors[f"{key}.weight"] = np.ones(width, np.float32)
        self.tensors[f"{key}.bias"] = np.zeros(width, np.float32)

    def write(self, folder: Path, config: dict) -> Path:
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, str(folder / WEIGHTS))
        (folder / CONFIG).write_text(json.dumps(config, indent=1))
        return folder
