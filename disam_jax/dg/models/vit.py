"""ViT: a transformer on the patches of an image."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from disam_jax.dg.models.linear import make_head
from disam_jax.dg.models.stages import NamedStage, run_stages
from disam_jax.dg.models.transformer import (
    Block,
    LayerNorm,
    check_patches,
    check_transformer,
    image_tokens,
    make_linear,
    token_init,
)


@dataclass(frozen=True)
class ViTConfig:
    """The sizes of a ViT; those of ViT-B/16 if nothing is said.

    Attributes:
        image_size: S, pixels in both directions.
        patch_size: pixels of a patch in both directions.
        width: W, numbers per token.
        layers: blocks.
        heads: heads of the attention.
        hidden: hidden units of the perceptrons.
        num_classes: C; None for a network without a head, which has features only.
        activation: "gelu" or "quick_gelu".
        eps: added to the variance in every normalisation.
        qkv_bias: whether the projections to query, key and value have a bias.
        channels: of the images.
        mean: of the images in [0, 1] that the weights were trained on, by channel.
        std: standard deviation of the same.

    Raises:
        ValueError: if heads don't divide the width, patches don't divide the image, or the activation is unknown.
    """

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    num_classes: int | None = None
    activation: str = "gelu"
    eps: float = 1e-12
    qkv_bias: bool = True
    channels: int = 3
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        check_patches(self.image_size, self.patch_size)
        check_transformer(self.width, self.heads, self.activation)


class ViT(nnx.Module):
    """A vision transformer that classifies by its class token.

    Weights start truncated normal 0.02, the head as `make_head` does. `pretrained.from_pretrained` makes it with
    published weights.

    Args:
        config: sizes.
        rngs: random streams.

    Example:
        >>> config = ViTConfig(image_size=16, patch_size=8, width=8, layers=1, heads=2, hidden=16, num_classes=7)
        >>> logits, features = jax.eval_shape(
        ...     lambda: ViT(config, rngs=nnx.Rngs(0))(jnp.ones((3, 16, 16, 3)), jax.random.key(0)))
        >>> logits.shape, features.shape
        ((3, 7), (3, 8))

    References:
        Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021.
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        width, count = config.width, (config.image_size // config.patch_size) ** 2
        self.config = config
        self.patch = make_linear(config.channels * config.patch_size**2, width, rngs)
        self.class_token = nnx.Param(token_init(rngs.params(), (width,), jnp.float32))
        self.positions = nnx.Param(token_init(rngs.params(), (1 + count, width), jnp.float32))
        self.blocks = nnx.data(
            [
                Block(
                    width,
                    config.heads,
                    config.hidden,
                    activation=config.activation,
                    eps=config.eps,
                    qkv_bias=config.qkv_bias,
                    rngs=rngs,
                )
                for _ in range(config.layers)
            ]
        )
        self.norm_out = LayerNorm(width, epsilon=config.eps, rngs=rngs)
        # Held as data even where there is none, so that one can be put there.
        self.head = nnx.data(None if config.num_classes is None else make_head(width, config.num_classes, rngs))

    @property
    def stages(self) -> tuple[NamedStage, ...]:
        """The embedding of the patches, layers.0, layers.1, ..., and the normalised class token."""
        embedding = NamedStage("embedding", self.embed, (("patch",), ("class_token",), ("positions",)))
        blocks = (NamedStage(f"layers.{place}", block, (("blocks", place),)) for place, block in enumerate(self.blocks))
        return (embedding, *blocks, NamedStage("head", lambda x: self.norm_out(x[:, 0]), (("norm_out",),)))

    def embed(self, x: jax.Array) -> jax.Array:
        """All tokens before the first block.

        Args:
            x: float [N, S, S, channels], as for `tokens`.

        Returns:
            float [N, 1 + P, W].
        """
        config = self.config
        return image_tokens(
            x, self.patch, self.class_token[...], self.positions[...], config.image_size, config.patch_size
        )

    def tokens(self, x: jax.Array) -> jax.Array:
        """All tokens after the last block, the class token first.

        Args:
            x: float [N, S, S, channels], (pixel - mean) / std of pixels in [0, 1].

        Returns:
            float [N, 1 + P, W], not yet normalised by `norm_out`.
        """
        return run_stages(self.stages[:-1], x)

    def features(self, x: jax.Array) -> jax.Array:
        """The class token.

        Args:
            x: float [N, S, S, channels], as for `tokens`.

        Returns:
            float [N, W].
        """
        return run_stages(self.stages, x)

    def __call__(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits and the class token.

        Args:
            x: float [N, S, S, channels], as for `tokens`.
            key: without effect: nothing is drawn.

        Returns:
            (logits [N, C], features [N, W]).

        Raises:
            ValueError: if the network has no head.
        """
        del key
        features = self.features(x)
        return self.classify(features), features

    def classify(self, features: jax.Array) -> jax.Array:
        """Logits [N, C] of features [N, F]: the last layer.

        Raises:
            ValueError: If there is none.
        """
        if self.head is None:
            raise ValueError("this ViT has no head: make it with num_classes, or call its features")
        return self.head(features)
