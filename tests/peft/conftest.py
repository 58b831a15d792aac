"""A tiny CLIP and a tiny ViT, and a batch for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from disam_jax.dg.models.clip import CLIP, CLIPConfig
from disam_jax.dg.models.vit import ViT, ViTConfig

# A program that needs packages which no test needs.
collect_ignore = ["make_token_ids.py"]

CLIP_CONFIG = CLIPConfig(
    image_size=8,
    patch_size=4,
    vision_width=8,
    vision_layers=1,
    vision_heads=2,
    vision_hidden=16,
    text_width=8,
    text_layers=1,
    text_heads=2,
    text_hidden=16,
    vocab_size=30,
    embed_dim=6,
    context_length=12,
    eos_token_id=29,
)
VIT_CONFIG = ViTConfig(image_size=8, patch_size=4, width=8, layers=1, heads=2, hidden=16)

# Start 28, end 29: names of one, two and three tokens.
CLASS_IDS = np.array([[28, 5, 29, 0, 0, 0], [28, 6, 7, 29, 0, 0], [28, 8, 9, 10, 29, 0]], np.int32)


def spread(make):
    """The module with random numbers for all its variables, so that no scale is 1 and no bias 0."""
    module = nnx.eval_shape(make)
    rng = np.random.default_rng(0)
    state = nnx.state(module, nnx.Param)
    nnx.update(module, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), leaf.dtype), state))
    return module


@pytest.fixture
def clip():
    return spread(lambda: CLIP(CLIP_CONFIG, rngs=nnx.Rngs(0)))


@pytest.fixture
def vit():
    return spread(lambda: ViT(VIT_CONFIG, rngs=nnx.Rngs(0)))


@pytest.fixture
def class_ids():
    return CLASS_IDS


@pytest.fixture
def batch():
    """Three domains of four images, as [M, n, ...]."""
    rng = np.random.default_rng(1)
    return {
        "x": rng.normal(size=(3, 4, 8, 8, 3)).astype(np.float32),
        "y": rng.integers(0, 3, (3, 4)).astype(np.int32),
    }
