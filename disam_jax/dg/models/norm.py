"""Normalisation layers by name."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

NORMS = ("none", "batch", "frozen", "group")


class BatchNorm(nnx.BatchNorm):
    """Normalises in float32 at least, and returns the type of its input."""

    def __call__(self, x, use_running_average=None, *, mask=None):
        """As `nnx.BatchNorm`."""
        return super().__call__(x.astype(widened(x)), use_running_average, mask=mask).astype(x.dtype)


class GroupNorm(nnx.GroupNorm):
    """Normalises in float32 at least, and returns the type of its input."""

    def __call__(self, x, *, mask=None):
        """As `nnx.GroupNorm`."""
        return super().__call__(x.astype(widened(x)), mask=mask).astype(x.dtype)


def widened(x: jax.Array) -> Any:
    """The dtype of sums over x: float64 for float64, otherwise float32."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


class FrozenBatchNorm(BatchNorm):
    """Normalises by the running statistics in training too and never moves them; scale and bias are trained.

    So does DomainBed's ResNet with `freeze_bn`, which puts its BatchNorm layers into evaluation mode at every call of
    `train`.

    References:
        Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, ICLR 2021, appendix D.
    """

    def __call__(self, x, use_running_average=None, *, mask=None):
        """As `nnx.BatchNorm` with running statistics, whatever is asked for."""
        del use_running_average
        return super().__call__(x, use_running_average=True, mask=mask)


def identity(x):
    """X itself."""
    return x


def make_norm(name: str, width: int, rngs: nnx.Rngs, *, momentum: float = 0.9, epsilon: float = 1e-5):
    """A normalisation layer for arrays [..., width].

    Running statistics move as m <- momentum m + (1 - momentum) m_batch, with the biased variance of the batch as in all
    of Flax; torch has the unbiased one there, larger by n / (n - 1) for n numbers per channel. Both normalise by the
    biased one.

    Args:
        name: "none", "batch", "frozen" (BatchNorm whose statistics stay) or "group" (8 groups, or
            as many of them as divide the width).
        width: number of channels.
        rngs: random streams.
        momentum: of the running statistics of BatchNorm.
        epsilon: added to the variances of BatchNorm.

    Returns:
        A module or function from arrays to arrays of the same shape.

    Raises:
        ValueError: on another name.
    """
    if name == "none":
        return identity
    if name == "group":
        return GroupNorm(width, num_groups=math.gcd(width, 8), rngs=rngs)
    if name not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {name!r}")
    layer = FrozenBatchNorm if name == "frozen" else BatchNorm
    return layer(width, momentum=momentum, epsilon=epsilon, rngs=rngs)
