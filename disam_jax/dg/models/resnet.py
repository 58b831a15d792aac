"""ResNet-18 and ResNet-50, with the layers, the names and the initial weights of torchvision."""

import jax
import jax.numpy as jnp
from flax import nnx

from disam_jax.dg.models.conv import platform_convolution
from disam_jax.dg.models.linear import make_head
from disam_jax.dg.models.norm import make_norm
from disam_jax.dg.models.stages import Block, NamedStage, chained, run_stages

# He et al.'s, by the fan-out: keeps the variance of the gradients.
conv_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def make_conv(m: int, n: int, size: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution without bias, padded by (size - 1) / 2 on every side.

    XLA's "SAME" pads an image of even size on the far side only when the stride is 2, which is not what
    networks trained in torch have seen.

    Args:
        m: channels in.
        n: channels out.
        size: of the kernel, odd.
        stride: in both directions.
        rngs: random streams.

    Returns:
        A module from [N, H, W, m] to [N, ceil(H / stride), ceil(W / stride), n].

    Example:
        >>> convolved = lambda x: make_conv(3, 8, size=3, stride=2, rngs=nnx.Rngs(0))(x)
        >>> jax.eval_shape(convolved, jnp.ones((1, 5, 5, 3))).shape
        (1, 3, 3, 8)
    """
    return nnx.Conv(
        m,
        n,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=conv_init,
        conv_general_dilated=platform_convolution,
        rngs=rngs,
    )


def make_shortcut(m: int, n: int, stride: int, norm: str, rngs: nnx.Rngs) -> list[nnx.Module]:
    """Maps a block's input to the shape of its output: nothing, or a 1 x 1 convolution and its normalisation.

    Example:
        >>> [type(layer).__name__ for layer in make_shortcut(4, 8, 2, "batch", nnx.Rngs(0))]
        ['Conv', 'BatchNorm']
        >>> make_shortcut(4, 4, 1, "batch", nnx.Rngs(0))
        []
    """
    if stride == 1 and m == n:
        return []
    return [make_conv(m, n, 1, stride, rngs), make_norm(norm, n, rngs)]


class BasicBlock(Block):
    """Two 3 x 3 convolutions and a shortcut: the block of ResNet-18.

    Args:
        in_channels: channels in.
        width: channels of both convolutions and of the output.
        stride: of the first convolution and of the shortcut.
        norm: "batch" or "frozen", see `make_norm`.
        rngs: random streams.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, norm: str, rngs: nnx.Rngs):
        self.conv1 = make_conv(in_channels, width, 3, stride, rngs)
        self.bn1 = make_norm(norm, width, rngs)
        self.conv2 = make_conv(width, width, 3, 1, rngs)
        self.bn2 = make_norm(norm, width, rngs)
        self.downsample = nnx.data(make_shortcut(in_channels, width, stride, norm, rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """From [N, H, W, in_channels] to [N, H / stride, W / stride, width]."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        for layer in self.downsample:
            x = layer(x)
        return jax.nn.relu(y + x)


class Bottleneck(Block):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut: the block of ResNet-50.

    The stride is on the 3 x 3 convolution, as in torchvision ("v1.5"), not on the first as in the paper.

    Args:
        in_channels: channels in.
        width: channels of the first two convolutions; the output has four times as many.
        stride: of the 3 x 3 convolution and of the shortcut.
        norm: "batch" or "frozen", see `make_norm`.
        rngs: random streams.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, norm: str, rngs: nnx.Rngs):
        out = width * self.expansion
        self.conv1 = make_conv(in_channels, width, 1, 1, rngs)
        self.bn1 = make_norm(norm, width, rngs)
        self.conv2 = make_conv(width, width, 3, stride, rngs)
        self.bn2 = make_norm(norm, width, rngs)
        self.conv3 = make_conv(width, out, 1, 1, rngs)
        self.bn3 = make_norm(norm, out, rngs)
        self.downsample = nnx.data(make_shortcut(in_channels, out, stride, norm, rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """From [N, H, W, in_channels] to [N, H / stride, W / stride, 4 width]."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        for layer in self.downsample:
            x = layer(x)
        return jax.nn.relu(y + x)


class ResNet(nnx.Module):
    """A residual network: stages (2, 2, 2, 2) of BasicBlock make ResNet-18, (3, 4, 6, 3) of Bottleneck ResNet-50.

    Parameters are named as torchvision's: conv1, bn1, layer1.0.conv1, ..., layer2.0.downsample.0, fc; "kernel" for a
    "weight" of a convolution or of fc, "scale" for that of a BatchNorm, and "mean", "var" for its "running_mean",
    "running_var". Kernels are [H, W, in, out] and [in, out].

    Args:
        stages: number of blocks in each stage; each stage but the first halves the image and doubles the width.
        block: `BasicBlock` or `Bottleneck`.
        num_classes: C; None: no last layer, only features.
        in_channels: channels of the images.
        width: channels of the stem and of the first stage.
        small_input: for images of 32 to 64 pixels: a stem of one 3 x 3 convolution of stride 1 in place of the 7 x 7
            one of stride 2 and the max-pooling, which make an image four times smaller before the first stage.
        dropout: fraction of the features that is dropped in training, before the last layer (DomainBed's
            `resnet_dropout`).
        frozen_norm: whether BatchNorm normalises by its running statistics in training too and leaves them as they
            are, see `norm.FrozenBatchNorm`.
        rngs: random streams.

    References:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016. torchvision, `models/resnet.py`.
    """

    def __init__(
        self,
        stages: tuple[int, ...],
        block: type[BasicBlock] | type[Bottleneck],
        num_classes: int | None,
        *,
        in_channels: int = 3,
        width: int = 64,
        small_input: bool = False,
        dropout: float = 0.0,
        frozen_norm: bool = False,
        rngs: nnx.Rngs,
    ):
        norm = "frozen" if frozen_norm else "batch"
        self.small_input = small_input
        self.conv1 = make_conv(in_channels, width, 3 if small_input else 7, 1 if small_input else 2, rngs)
        self.bn1 = make_norm(norm, width, rngs)
        self.stage_names = tuple(f"layer{number}" for number in range(1, len(stages) + 1))
        channels = width
        for place, (name, count) in enumerate(zip(self.stage_names, stages, strict=True)):
            blocks: list[BasicBlock | Bottleneck] = []
            for number in range(count):
                stride = 2 if place > 0 and number == 0 else 1
                blocks.append(block(channels, width * 2**place, stride, norm, rngs))
                channels = width * 2**place * block.expansion
            setattr(self, name, nnx.data(blocks))
        self.dropout = nnx.Dropout(dropout)
        self.num_features = channels
        self.fc = nnx.data(None if num_classes is None else make_head(channels, num_classes, rngs))

    @property
    def stages(self) -> tuple[NamedStage, ...]:
        """The stem, layer1, layer2, ..., and the mean over all places."""
        layers = (NamedStage(name, chained(getattr(self, name)), ((name,),)) for name in self.stage_names)
        stem = NamedStage("stem", self.stem, (("conv1",), ("bn1",)))
        return (stem, *layers, NamedStage("head", lambda x: jnp.mean(x, (1, 2))))

    def stem(self, x: jax.Array) -> jax.Array:
        """What comes before the first stage of blocks.

        Args:
            x: float [N, H, W, in_channels].

        Returns:
            float [N, H, W, width] for small inputs, otherwise [N, H / 4, W / 4, width].
        """
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        return x if self.small_input else nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    def features(self, x: jax.Array) -> jax.Array:
        """The mean of the last stage over all places.

        Args:
            x: float [N, H, W, in_channels].

        Returns:
            float [N, F]; F is 512 for ResNet-18 and 2048 for ResNet-50.
        """
        return run_stages(self.stages, x)

    def __call__(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits and features.

        Args:
            x: float [N, H, W, in_channels].
            key: decides what dropout drops.

        Returns:
            (logits [N, C], features [N, F] as the last layer sees them, with dropout).

        Raises:
            ValueError: if there is no last layer.
        """
        features = self.dropout(self.features(x), rngs=key)
        return self.classify(features), features

    def classify(self, features: jax.Array) -> jax.Array:
        """Logits [N, C] of features [N, F]: the last layer.

        Raises:
            ValueError: If there is none.
        """
        if self.fc is None:
            raise ValueError("this ResNet has no last layer: write num_classes, or call features")
        return self.fc(features)
