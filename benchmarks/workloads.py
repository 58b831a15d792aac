"""What is trained in a benchmark: a network and a batch of several domains."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from disam_jax.dg.models.adapter import from_nnx
from disam_jax.dg.models.convnet import ConvNet
from disam_jax.dg.models.mlp import MLP
from disam_jax.dg.models.network import Network
from disam_jax.dg.models.resnet import BasicBlock, Bottleneck, ResNet
from disam_jax.dg.models.vit import ViT, ViTConfig

CLASSES = 7


class Workload(NamedTuple):
    """A network, and the batch that a step sees.

    Attributes:
        network: its inputs are floating point and stay in the dtype in which they come.
        shape: of one example.
        num_domains: M; the domains have equally many examples and lie one after the other in the batch.
        per_domain: n.
        dtype: in which the network computes; its parameters are float32 and are cast.
    """

    network: Network
    shape: tuple[int, ...]
    num_domains: int
    per_domain: int
    dtype: str = "float32"


def make_batch(work: Workload, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise: x float32 [M n, ...], y int32 [M n], domain int32 [M n]."""
    rng = np.random.default_rng(seed)
    size = work.num_domains * work.per_domain
    return {
        "x": rng.normal(size=(size, *work.shape)).astype(np.float32),
        "y": rng.integers(0, CLASSES, size).astype(np.int32),
        "domain": np.repeat(np.arange(work.num_domains, dtype=np.int32), work.per_domain),
    }


def _of(make: Callable[[nnx.Rngs], nnx.Module], shape: tuple[int, ...], num_domains: int, per_domain: int) -> Workload:
    return Workload(from_nnx(make, prepare=lambda x: x), shape, num_domains, per_domain)


def mlp(features: int, hidden: tuple[int, ...], num_domains: int, per_domain: int) -> Workload:
    return _of(lambda rngs: MLP(features, hidden, CLASSES, rngs=rngs), (features,), num_domains, per_domain)


def conv(side: int, widths: tuple[int, ...], num_domains: int, per_domain: int) -> Workload:
    """Batch normalised."""
    make = lambda rngs: ConvNet(CLASSES, widths, norm="batch", rngs=rngs)
    return _of(make, (side, side, 3), num_domains, per_domain)


def native_conv(side: int, widths: tuple[int, ...], num_domains: int, per_domain: int) -> Workload:
    """`conv` with XLA's own convolution, which is what a user's network has."""

    def make(rngs: nnx.Rngs) -> ConvNet:
        module = ConvNet(CLASSES, widths, norm="batch", rngs=rngs)
        for layer in module.convs:
            layer.conv_general_dilated = jax.lax.conv_general_dilated
        return module

    return _of(make, (side, side, 3), num_domains, per_domain)


def resnet(
    stages: tuple[int, ...],
    block: type[BasicBlock] | type[Bottleneck],
    width: int,
    side: int,
    num_domains: int,
    per_domain: int,
) -> Workload:
    make = lambda rngs: ResNet(stages, block, CLASSES, width=width, rngs=rngs)
    return _of(make, (side, side, 3), num_domains, per_domain)


def vit(side: int, patch: int, width: int, layers: int, heads: int, num_domains: int, per_domain: int) -> Workload:
    config = ViTConfig(side, patch, width, layers, heads, hidden=4 * width, num_classes=CLASSES)
    return _of(lambda rngs: ViT(config, rngs=rngs), (side, side, 3), num_domains, per_domain)


R18, R50 = ((2, 2, 2, 2), BasicBlock), ((3, 4, 6, 3), Bottleneck)

# "cpu" fits two cores; "gpu" has the paper's sizes; "tiny" is for the counts that the tests hold on to, where the
# ResNets keep their blocks and lose their depth and width, for the sake of the time that compiling takes.
SIZES: Mapping[str, Mapping[str, Callable[[], Workload]]] = {
    "cpu": {
        "mlp": lambda: mlp(784, (1024, 1024), 4, 64),
        "conv": lambda: conv(32, (32, 64, 128), 4, 32),
        "resnet18": lambda: resnet(*R18, 64, 64, 4, 4),
        "resnet50": lambda: resnet(*R50, 64, 48, 4, 4),
        "vit": lambda: vit(64, 8, 192, 4, 3, 4, 4),
    },
    "gpu": {
        "mlp": lambda: mlp(4096, (4096, 4096, 4096), 4, 1024),
        "conv": lambda: conv(96, (64, 128, 256), 4, 64),
        "resnet18": lambda: resnet(*R18, 64, 224, 3, 32),
        "resnet50": lambda: resnet(*R50, 64, 224, 3, 32),
        "vit": lambda: vit(224, 16, 768, 12, 12, 4, 64),
    },
    "tiny": {
        "mlp": lambda: mlp(64, (256, 256), 4, 16),
        "conv": lambda: conv(16, (16, 32), 4, 16),
        "resnet18": lambda: resnet((1,), BasicBlock, 8, 32, 4, 4),
        "resnet50": lambda: resnet((1,), Bottleneck, 8, 32, 4, 4),
        "vit": lambda: vit(16, 4, 32, 1, 2, 4, 4),
    },
}
NETWORKS = tuple(SIZES["cpu"])


def describe(work: Workload) -> dict[str, object]:
    params, _ = jax.eval_shape(work.network.init, jax.random.key(0))
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "batch": [work.num_domains, work.per_domain, *work.shape],
        "dtype": work.dtype,
    }
