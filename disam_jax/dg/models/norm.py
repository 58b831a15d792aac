"""Normalisation layers by name."""

import math

from flax import nnx

NORMS = ("none", "batch", "frozen", "group")


class FrozenBatchNorm(nnx.BatchNorm):
    """Normalises by the running statistics in training too and never moves them; scale and bias are trained.

    So does DomainBed's ResNet, which puts its BatchNorm layers into evaluation mode at every call of `train`.

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
        return nnx.GroupNorm(width, num_groups=math.gcd(width, 8), rngs=rngs)
    if name not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {name!r}")
    layer = FrozenBatchNorm if name == "frozen" else nnx.BatchNorm
    return layer(width, momentum=momentum, epsilon=epsilon, rngs=rngs)
