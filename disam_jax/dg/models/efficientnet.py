"""EfficientNet-Lite0 and -Lite2, with the layers and names of timm's `tf_efficientnet_lite0` and `_lite2`."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from disam_jax.dg.models.conv import platform_convolution
from disam_jax.dg.models.depthwise import depthwise_convolution, same_padding
from disam_jax.dg.models.linear import make_head
from disam_jax.dg.models.norm import make_norm
from disam_jax.dg.models.resnet import conv_init
from disam_jax.dg.models.stages import Block, NamedStage, chained, run_stages

NUM_FEATURES = 1280
STEM = 32
# The checkpoints were trained on images normalised as (x - 127) / 128.
MEAN, STD = (127.0 / 255.0,) * 3, (128.0 / 255.0,) * 3


class Stage(NamedTuple):
    """A stage of Lite0: so many blocks, of which the first has the stride.

    Attributes:
        blocks: Number of blocks.
        kernel: Size of the depthwise kernel.
        stride: Stride of the first block.
        expansion: Factor on the channels inside a block.
        channels: Channels out.
    """

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Scale(NamedTuple):
    """What distinguishes the networks of the family.

    Attributes:
        width: Factor on the channels of every stage; the stem and the head keep theirs.
        depth: Factor on the number of blocks of every stage but the first and the last.
        image_size: Side of the images that the published weights were trained on.
    """

    width: float
    depth: float
    image_size: int


SCALES: Mapping[str, Scale] = MappingProxyType(
    {"efficientnet_lite0": Scale(1.0, 1.0, 224), "efficientnet_lite2": Scale(1.1, 1.2, 260)}
)


def scaled_stages(scale: Scale) -> tuple[Stage, ...]:
    """The stages of a scaled network: channels to the nearest multiple of 8, blocks rounded up.

    Example:
        >>> [(stage.blocks, stage.channels) for stage in scaled_stages(SCALES["efficientnet_lite2"])]
        [(1, 16), (3, 24), (3, 48), (4, 88), (4, 120), (5, 208), (1, 352)]
    """
    ends = (0, len(STAGES) - 1)
    return tuple(
        stage._replace(
            blocks=stage.blocks if place in ends else math.ceil(scale.depth * stage.blocks),
            channels=_rounded(scale.width * stage.channels),
        )
        for place, stage in enumerate(STAGES)
    )


def _rounded(channels: float) -> int:
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


class Conv(nnx.Conv):
    """A convolution without bias that pads as TensorFlow does: for the size of the image in hand."""

    def __init__(self, m: int, n: int, size: int, stride: int, rngs: nnx.Rngs, *, depthwise: bool = False):
        super().__init__(
            m,
            n,
            (size, size),
            strides=stride,
            use_bias=False,
            feature_group_count=m if depthwise else 1,
            kernel_init=conv_init,
            conv_general_dilated=_padded(depthwise_convolution if depthwise else platform_convolution, size, stride),
            padding="VALID",
            rngs=rngs,
        )


def _padded(convolution: Any, size: int, stride: int) -> Any:
    def convolve(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **rest: Any) -> jax.Array:
        del padding
        if (size, stride) == (1, 1):
            return x @ kernel[0, 0]
        return convolution(x, kernel, strides, same_padding(x.shape[1:3], (size, size), stride), **rest)

    return convolve


def _norm(width: int, frozen: bool, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return make_norm("frozen" if frozen else "batch", width, rngs, momentum=0.99, epsilon=1e-3)


class SeparableBlock(Block):
    """A depthwise convolution and a pointwise one: the block of the first stage."""

    def __init__(self, m: int, stage: Stage, stride: int, frozen_norm: bool, rngs: nnx.Rngs):
        self.conv_dw = Conv(m, m, stage.kernel, stride, rngs, depthwise=True)
        self.bn1 = _norm(m, frozen_norm, rngs)
        self.conv_pw = Conv(m, stage.channels, 1, 1, rngs)
        self.bn2 = _norm(stage.channels, frozen_norm, rngs)
        self.skip = stride == 1 and m == stage.channels

    def __call__(self, x: jax.Array) -> jax.Array:
        """From [N, H, W, m] to [N, H / stride, W / stride, n]."""
        y = jax.nn.relu6(self.bn1(self.conv_dw(x)))
        y = self.bn2(self.conv_pw(y))
        return x + y if self.skip else y


class InvertedBlock(Block):
    """Pointwise up, depthwise, pointwise down, and a shortcut where the shape stays: MobileNetV2's block."""

    def __init__(self, m: int, stage: Stage, stride: int, frozen_norm: bool, rngs: nnx.Rngs):
        wide = m * stage.expansion
        self.conv_pw = Conv(m, wide, 1, 1, rngs)
        self.bn1 = _norm(wide, frozen_norm, rngs)
        self.conv_dw = Conv(wide, wide, stage.kernel, stride, rngs, depthwise=True)
        self.bn2 = _norm(wide, frozen_norm, rngs)
        self.conv_pwl = Conv(wide, stage.channels, 1, 1, rngs)
        self.bn3 = _norm(stage.channels, frozen_norm, rngs)
        self.skip = stride == 1 and m == stage.channels

    def __call__(self, x: jax.Array) -> jax.Array:
        """From [N, H, W, m] to [N, H / stride, W / stride, n]."""
        y = jax.nn.relu6(self.bn1(self.conv_pw(x)))
        y = jax.nn.relu6(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.skip else y


class EfficientNetLite(nnx.Module):
    """EfficientNet-Lite: inverted residual blocks with ReLU6 and without squeeze-and-excitation.

    Parameters are named as timm's: conv_stem, bn1, blocks.0.0.conv_dw, ..., conv_head, bn2, classifier; "kernel" for
    the "weight" of a convolution or of classifier, "scale" for that of a BatchNorm, "mean" and "var" for its
    "running_mean" and "running_var". Images are normalised as (x - 127) / 128, x in 0..255.

    Args:
        scale: Entry of `SCALES`.
        num_classes: C; None: no last layer, only features.
        in_channels: Channels of the images.
        dropout: Fraction of the features that is dropped in training, before the last layer.
        frozen_norm: Whether BatchNorm normalises by its running statistics in training too and leaves them as they
            are.
        rngs: Random streams.

    Example:
        >>> make = lambda: EfficientNetLite(Scale(0.5, 0.25, 64), 7, rngs=nnx.Rngs(0))  # smaller than SCALES
        >>> apply = lambda x: make()(x, jax.random.key(0))
        >>> [each.shape for each in jax.eval_shape(apply, jnp.ones((2, 64, 64, 3)))]
        [(2, 7), (2, 1280)]

    References:
        Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019; the Lite
        variants: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.
    """

    def __init__(
        self,
        scale: Scale,
        num_classes: int | None,
        *,
        in_channels: int = 3,
        dropout: float = 0.0,
        frozen_norm: bool = False,
        rngs: nnx.Rngs,
    ):
        self.conv_stem = Conv(in_channels, STEM, 3, 2, rngs)
        self.bn1 = _norm(STEM, frozen_norm, rngs)
        channels, stages = STEM, []
        for stage in scaled_stages(scale):
            block = SeparableBlock if stage.expansion == 1 else InvertedBlock
            blocks: list[SeparableBlock | InvertedBlock] = []
            for number in range(stage.blocks):
                blocks.append(block(channels, stage, stage.stride if number == 0 else 1, frozen_norm, rngs))
                channels = stage.channels
            stages.append(blocks)
        self.blocks = nnx.data(stages)
        self.conv_head = Conv(channels, NUM_FEATURES, 1, 1, rngs)
        self.bn2 = _norm(NUM_FEATURES, frozen_norm, rngs)
        self.dropout = nnx.Dropout(dropout)
        self.num_features = NUM_FEATURES
        self.classifier = nnx.data(None if num_classes is None else make_head(NUM_FEATURES, num_classes, rngs))

    @property
    def stages(self) -> tuple[NamedStage, ...]:
        """The stem, blocks.0, blocks.1, ..., and the last convolution with the mean over all places."""
        return (
            NamedStage("stem", lambda x: jax.nn.relu6(self.bn1(self.conv_stem(x))), (("conv_stem",), ("bn1",))),
            *(
                NamedStage(f"blocks.{place}", chained(blocks), (("blocks", place),))
                for place, blocks in enumerate(self.blocks)
            ),
            NamedStage(
                "head",
                lambda x: jnp.mean(jax.nn.relu6(self.bn2(self.conv_head(x))), (1, 2)),
                (("conv_head",), ("bn2",)),
            ),
        )

    def features(self, x: jax.Array) -> jax.Array:
        """The mean of the last feature maps over all places.

        Args:
            x: float [N, H, W, in_channels], normalised.

        Returns:
            float [N, 1280].
        """
        return run_stages(self.stages, x)

    def __call__(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits and features.

        Args:
            x: float [N, H, W, in_channels], normalised.
            key: Decides what dropout drops.

        Returns:
            (logits [N, C], features [N, 1280] as the last layer sees them, with dropout).

        Raises:
            ValueError: If there is no last layer.
        """
        features = self.dropout(self.features(x), rngs=key)
        return self.classify(features), features

    def classify(self, features: jax.Array) -> jax.Array:
        """Logits [N, C] of features [N, F]: the last layer.

        Raises:
            ValueError: If there is none.
        """
        if self.classifier is None:
            raise ValueError("this EfficientNet has no last layer: write num_classes, or call features")
        return self.classifier(features)
