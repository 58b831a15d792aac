"""Convolution as a matrix product, where that is faster.

On a CPU, XLA's convolutions are tens of times slower inside `lax.scan` than outside of it; and the kernels of several
networks under `vmap` make one grouped convolution, slower than one network after the other. A product is fast in both.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def shifted_images(
    x: jax.Array, kernel: Sequence[int], strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> list[jax.Array]:
    """What each tap of a kernel sees of an image, in the order of the kernel's rows.

    Args:
        x: float [N, H, W, m].
        kernel: height h and width w.
        strides: in the two directions.
        padding: with zeros, before and after, in the two directions.

    Returns:
        h w arrays, float [N, H', W', m].
    """
    height, width = kernel
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = ((size - k) // s + 1 for size, k, s in zip(x.shape[1:3], (height, width), strides, strict=True))
    return [
        x[:, i : i + (rows - 1) * strides[0] + 1 : strides[0], j : j + (columns - 1) * strides[1] + 1 : strides[1]]
        for i in range(height)
        for j in range(width)
    ]


def product_convolution(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], **rest: Any
) -> jax.Array:
    """A convolution as the product of all patches with the kernel; for `nnx.Conv(conv_general_dilated=...)`.

    Args:
        x: float [N, H, W, m].
        kernel: float [h, w, m, n].
        strides: in the two directions.
        padding: with zeros, before and after, in the two directions.
        **rest: what else `nnx.Conv` passes; its defaults are assumed.

    Returns:
        float [N, H', W', n]. The gradient keeps the patches, h w m numbers for each place of the output.
    """
    del rest
    height, width, m, n = kernel.shape
    patches = shifted_images(x, (height, width), strides, padding)
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(height * width * m, n)


def platform_convolution(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], **rest: Any
) -> jax.Array:
    """`product_convolution` on a CPU, `lax.conv_general_dilated` elsewhere; arguments and result as there.

    The patches are made again for the gradient, so that a deep network of large images fits into memory.
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=jax.checkpoint(lambda x, kernel: product_convolution(x, kernel, strides, padding)),
        default=lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, strides, padding, **rest),
    )
