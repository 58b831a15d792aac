"""CLIP: an image tower and a text tower that embed into one space."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx

from disam_jax.dg.models.stages import NamedStage, chained, run_stages
from disam_jax.dg.models.transformer import (
    Block,
    LayerNorm,
    check_patches,
    check_transformer,
    image_tokens,
    make_linear,
    token_init,
    widened,
)

# Of the images that OpenAI trained on, in [0, 1]; the models trained since keep them.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class CLIPConfig:
    """The sizes of a CLIP.

    Attributes:
        image_size: S, pixels in both directions.
        patch_size: pixels of a patch in both directions.
        vision_width: numbers per token of the image tower.
        vision_layers: blocks of the image tower.
        vision_heads: heads of its attention.
        vision_hidden: hidden units of its perceptrons.
        text_width: W, numbers per token of the text tower.
        text_layers: blocks of the text tower.
        text_heads: heads of its attention.
        text_hidden: hidden units of its perceptrons.
        vocab_size: number of token ids.
        embed_dim: E, of the space that both towers embed into.
        context_length: most tokens of a text.
        activation: "quick_gelu" (OpenAI's weights) or "gelu".
        eps: added to the variance in every normalisation, of both towers.
        eos_token_id: of the token that ends a text. 2, as OpenAI's checkpoints on Hugging Face say, is not the end
            token's id but means that the end is where the id is largest.

    Raises:
        ValueError: if heads don't divide a width, patches don't divide the image, or the activation is unknown.
    """

    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_hidden: int
    text_width: int
    text_layers: int
    text_heads: int
    text_hidden: int
    vocab_size: int
    embed_dim: int
    context_length: int = 77
    activation: str = "quick_gelu"
    eps: float = 1e-5
    eos_token_id: int = 49407

    def __post_init__(self):
        check_patches(self.image_size, self.patch_size)
        check_transformer(self.vision_width, self.vision_heads, self.activation)
        check_transformer(self.text_width, self.text_heads, self.activation)


_B16 = CLIPConfig(
    image_size=224,
    patch_size=16,
    vision_width=768,
    vision_layers=12,
    vision_heads=12,
    vision_hidden=3072,
    text_width=512,
    text_layers=12,
    text_heads=8,
    text_hidden=2048,
    vocab_size=49408,
    embed_dim=512,
)
CLIP_CONFIGS: Mapping[str, CLIPConfig] = MappingProxyType(
    {
        "ViT-B/16": _B16,
        "ViT-B/32": replace(_B16, patch_size=32),
        "ViT-L/14": replace(
            _B16,
            patch_size=14,
            vision_width=1024,
            vision_layers=24,
            vision_heads=16,
            vision_hidden=4096,
            text_width=768,
            text_heads=12,
            text_hidden=3072,
            embed_dim=768,
        ),
    }
)


class ImageTower(nnx.Module):
    """CLIP's image tower: a ViT with one more normalisation before its blocks, and a projection of its class token.

    Args:
        config: sizes.
        rngs: random streams.
    """

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        width, count = config.vision_width, (config.image_size // config.patch_size) ** 2
        self.image_size = config.image_size
        self.num_features = config.embed_dim
        self.patch_size = config.patch_size
        self.patch = make_linear(3 * config.patch_size**2, width, rngs, use_bias=False)
        self.class_token = nnx.Param(token_init(rngs.params(), (width,), jnp.float32))
        self.positions = nnx.Param(token_init(rngs.params(), (1 + count, width), jnp.float32))
        self.norm_in = LayerNorm(width, epsilon=config.eps, rngs=rngs)
        self.blocks = nnx.data(
            [
                Block(
                    width,
                    config.vision_heads,
                    config.vision_hidden,
                    activation=config.activation,
                    eps=config.eps,
                    rngs=rngs,
                )
                for _ in range(config.vision_layers)
            ]
        )
        self.norm_out = LayerNorm(width, epsilon=config.eps, rngs=rngs)
        self.projection = make_linear(width, config.embed_dim, rngs, use_bias=False)

    @property
    def stages(self) -> tuple[NamedStage, ...]:
        """The embedding of the patches, layers.0, layers.1, ..., and the projected class token."""
        embedding = NamedStage("embedding", self.embed, (("patch",), ("class_token",), ("positions",), ("norm_in",)))
        blocks = (NamedStage(f"layers.{place}", block, (("blocks", place),)) for place, block in enumerate(self.blocks))
        head = NamedStage("head", lambda x: self.projection(self.norm_out(x[:, 0])), (("norm_out",), ("projection",)))
        return (embedding, *blocks, head)

    def embed(self, pixels: jax.Array) -> jax.Array:
        """All tokens before the first block.

        Args:
            pixels: float [N, S, S, 3], as for `features`.

        Returns:
            float [N, 1 + P, W].
        """
        tokens = image_tokens(
            pixels, self.patch, self.class_token[...], self.positions[...], self.image_size, self.patch_size
        )
        return self.norm_in(tokens)

    def features(self, pixels: jax.Array) -> jax.Array:
        """Embeds images.

        Args:
            pixels: float [N, S, S, 3], (x - CLIP_MEAN) / CLIP_STD of x in [0, 1].

        Returns:
            float [N, E], not of length 1.
        """
        return run_stages(self.stages, pixels)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Embeds images, as `features` does."""
        return self.features(pixels)


class TextTower(nnx.Module):
    """CLIP's text tower: causal, so that what follows the end token has no effect.

    Args:
        config: sizes.
        rngs: random streams.
    """

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        width = config.text_width
        self.eos_token_id = config.eos_token_id
        self.tokens = nnx.Embed(config.vocab_size, width, embedding_init=token_init, rngs=rngs)
        self.positions = nnx.Param(token_init(rngs.params(), (config.context_length, width), jnp.float32))
        self.blocks = nnx.data(
            [
                Block(
                    width,
                    config.text_heads,
                    config.text_hidden,
                    activation=config.activation,
                    eps=config.eps,
                    causal=True,
                    rngs=rngs,
                )
                for _ in range(config.text_layers)
            ]
        )
        self.norm_out = LayerNorm(width, epsilon=config.eps, rngs=rngs)
        self.projection = make_linear(width, config.embed_dim, rngs, use_bias=False)

    def embed(self, ids: jax.Array) -> jax.Array:
        """The embeddings of tokens, without positions.

        Args:
            ids: int [C, L], in 0..vocab_size - 1.

        Returns:
            float [C, L, W].
        """
        return self.tokens(ids)

    def ends(self, ids: jax.Array) -> jax.Array:
        """Where each text ends: the first place of the end token, or of the largest id (see `CLIPConfig.eos_token_id`).

        A text without an end token ends at place 0.

        Args:
            ids: int [C, L].

        Returns:
            int32 [C].
        """
        marks = ids if self.eos_token_id == 2 else ids == self.eos_token_id
        return jnp.argmax(marks, -1).astype(jnp.int32)

    def encode(self, embeddings: jax.Array, ends: jax.Array) -> jax.Array:
        """Embeds texts of which the tokens' embeddings are given: prompts may be learned.

        Args:
            embeddings: float [C, L, W], L at most the context length.
            ends: int [C], the place of each end token.

        Returns:
            float [C, E], not of length 1.

        Raises:
            ValueError: if L is more than the context length.
        """
        count, length = embeddings.shape[:2]
        positions = self.positions[...]
        if length > positions.shape[0]:
            raise ValueError(f"the text tower has a context of {positions.shape[0]} tokens, got texts of {length}")
        x = embeddings.astype(positions.dtype) + positions[None, :length]
        x = chained(self.blocks)(x)
        return self.projection(self.norm_out(x[jnp.arange(count), ends]))

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Embeds texts.

        Args:
            ids: int [C, L], in 0..vocab_size - 1, L at most the context length.

        Returns:
            float [C, E], not of length 1.
        """
        return self.encode(self.embed(ids), self.ends(ids))


def unit(x: jax.Array) -> jax.Array:
    """Vectors [..., E] of length 1, float32 at least; zero stays zero.

    Example:
        >>> unit(jnp.array([[0.0, 2.0], [0.0, 0.0]])).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    x = x.astype(widened(x))
    square = jnp.sum(x**2, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))


def clip_logits(image_features: jax.Array, text_features: jax.Array, logit_scale: jax.Array) -> jax.Array:
    """exp(logit_scale) cos(image, text).

    Args:
        image_features: float [N, E].
        text_features: float [C, E].
        logit_scale: float [].

    Returns:
        [N, C], float32 at least.

    Example:
        >>> images, texts = jnp.array([[2.0, 0.0]]), jnp.array([[3.0, 0.0], [0.0, 5.0]])
        >>> clip_logits(images, texts, jnp.float32(0.0)).tolist()
        [[1.0, 0.0]]
    """
    cosines = unit(image_features) @ unit(text_features).T
    return jnp.exp(logit_scale.astype(cosines.dtype)) * cosines


class CLIP(nnx.Module):
    """Contrastive language-image pretraining: logits of images against texts.

    Weights start truncated normal 0.02, the temperature exp(-logit_scale) at 0.07. `pretrained.from_pretrained` makes
    it with published weights.

    Args:
        config: sizes; those of the published models are `CLIP_CONFIGS`.
        rngs: random streams.

    Example:
        >>> config = CLIPConfig(image_size=16, patch_size=8, vision_width=8, vision_layers=1, vision_heads=2,
        ...     vision_hidden=16, text_width=8, text_layers=1, text_heads=2, text_hidden=16, vocab_size=50,
        ...     embed_dim=4, eos_token_id=49)
        >>> ids = jnp.array([[48, 7, 49, 0], [48, 7, 8, 49]])
        >>> jax.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0))(jnp.ones((3, 16, 16, 3)), ids)).shape
        (3, 2)

    References:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021.
    """

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.image = ImageTower(config, rngs=rngs)
        self.text = TextTower(config, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07), jnp.float32))

    def __call__(self, pixels: jax.Array, ids: jax.Array) -> jax.Array:
        """exp(logit_scale) times the cosine of every image with every text.

        Args:
            pixels: float [N, S, S, 3], normalised as for `ImageTower`.
            ids: int [C, L], as for `TextTower`.

        Returns:
            [N, C], float32 at least.
        """
        return clip_logits(self.image(pixels), self.text(ids), self.logit_scale[...])
