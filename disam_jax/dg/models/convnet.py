"""A small convolutional network, for images of 32 to 96 pixels."""

import jax
from flax import nnx

from disam_jax.dg.models.conv import product_convolution
from disam_jax.dg.models.linear import make_head
from disam_jax.dg.models.mlp import he_normal
from disam_jax.dg.models.norm import make_norm


class ConvNet(nnx.Module):
    """3 x 3 convolutions of stride 2 with rectified units, the mean over all places, and a linear head.

    Args:
        num_classes: C.
        widths: channels of each convolution.
        in_channels: channels of the images.
        dropout: fraction of the features that is dropped in training.
        norm: what stands between a convolution and its units: "none", "batch", "frozen" or "group", see `make_norm`.
        rngs: random streams.
    """

    def __init__(
        self,
        num_classes: int,
        widths: tuple[int, ...] = (16, 32, 64),
        *,
        in_channels: int = 3,
        dropout: float = 0.0,
        norm: str = "none",
        rngs: nnx.Rngs,
    ):
        self.convs = nnx.data(
            [
                nnx.Conv(
                    m,
                    n,
                    (3, 3),
                    strides=2,
                    padding=1,
                    use_bias=norm == "none",
                    kernel_init=he_normal,
                    conv_general_dilated=product_convolution,
                    rngs=rngs,
                )
                for m, n in zip((in_channels, *widths[:-1]), widths, strict=True)
            ]
        )
        self.norms = nnx.data([make_norm(norm, width, rngs) for width in widths])
        self.dropout = nnx.Dropout(dropout)
        self.fc = make_head(widths[-1], num_classes, rngs)

    def __call__(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits and the mean of the last convolution's units.

        Args:
            x: float [N, H, W, in_channels].
            key: decides what dropout drops.

        Returns:
            (logits [N, C], features [N, widths[-1]]).
        """
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.relu(norm(conv(x)))
        features = self.dropout(x.mean((1, 2)), rngs=key)
        return self.classify(features), features

    def classify(self, features: jax.Array) -> jax.Array:
        """Logits [N, C] of features [N, F]: the last layer."""
        return self.fc(features)
