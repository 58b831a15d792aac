"""A tiny CLIP and ViT, and random numbers for a module that nothing compiles."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from disam_jax.dg.models.clip import CLIPConfig
from disam_jax.dg.models.vit import ViTConfig

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


def filled(make, kinds, draw):
    """A module whose variables of these kinds have the numbers `draw(rng, shape)`."""
    module = nnx.eval_shape(make)
    rng = np.random.default_rng(0)
    state = nnx.state(module, kinds)
    nnx.update(module, jax.tree.map(lambda leaf: jnp.asarray(draw(rng, leaf.shape), leaf.dtype), state))
    return module
