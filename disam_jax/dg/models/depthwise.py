"""Depthwise convolution: one filter for each channel, fast on a CPU and exact everywhere.

XLA computes a convolution with as many groups as channels one group after another on a CPU. As a sum of shifted
products, it is one loop over the image:

    y[n, p, q, c] = sum_{i, j} x[n, s p + i, s q + j, c] w[i, j, c]

and the gradients are sums of the same kind: that of x takes, for each of the s * s phases of its places, the taps that
fall on it; that of w is a running sum over the rows of all examples.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from disam_jax.dg.models.conv import shifted_images

Padding = tuple[tuple[int, int], tuple[int, int]]


def same_padding(size: Sequence[int], kernel: Sequence[int], stride: int) -> Padding:
    """Zeros before and after, so that the result has ceil(size / stride) places; the odd one comes after.

    Args:
        size: Height and width of the image.
        kernel: Height and width of the kernel.
        stride: Stride in both directions.

    Returns:
        ((top, bottom), (left, right)), TensorFlow's "SAME".

    Example:
        >>> same_padding((5, 6), (3, 3), 2)
        ((1, 1), (0, 1))
    """
    totals = [max((-(-n // stride) - 1) * stride + k - n, 0) for n, k in zip(size, kernel, strict=True)]
    top, left = (total // 2 for total in totals)
    return (top, totals[0] - top), (left, totals[1] - left)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shifted_products(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """A depthwise convolution as a sum of shifted products.

    Args:
        x: float [N, H, W, C].
        kernel: float [h, w, C].
        stride: Stride in both directions.
        padding: Zeros before and after, in the two directions.

    Returns:
        float [N, H', W', C].

    Example:
        >>> x = jnp.arange(4.0).reshape(1, 1, 4, 1)
        >>> shifted_products(x, jnp.ones((1, 3, 1)), 1, ((0, 0), (1, 1)))[0, 0, :, 0].tolist()
        [1.0, 3.0, 6.0, 5.0]
    """
    return _forward(x, kernel, stride, padding)[0]


def _forward(x, kernel, stride, padding):
    seen = shifted_images(x, kernel.shape[:2], (stride, stride), padding)
    taps = kernel.reshape(-1, kernel.shape[-1])
    terms = [image * taps[None, None, None, number] for number, image in enumerate(seen)]
    return functools.reduce(jnp.add, terms), (x, kernel)


def _backward(stride, padding, residuals, g):
    x, kernel = residuals
    return _of_image(g, kernel, stride, padding, x.shape), _of_kernel(g, x, kernel, stride, padding)


def _of_image(g, kernel, stride, padding, shape):
    """Place a of the padded image is under tap i of output p where a = s p + i: its phase a mod s decides the taps."""
    height, width, channels = kernel.shape
    (top, _), (left, _) = padding
    number, tall, wide, _ = shape
    # Rows and columns of each phase, enough for all places of the padded image.
    down, right = (-(-(size + before) // stride) for size, before in ((tall, top), (wide, left)))
    most_down, most_right = (-(-size // stride) for size in (height, width))
    g = jnp.pad(
        g,
        (
            (0, 0),
            (most_down, max(down - g.shape[1], 0)),
            (most_right, max(right - g.shape[2], 0)),
            (0, 0),
        ),
    )

    def phase(a: int, b: int) -> jax.Array:
        terms = [
            jax.lax.slice(
                g,
                (0, most_down - i // stride, most_right - j // stride, 0),
                (number, most_down - i // stride + down, most_right - j // stride + right, channels),
            )
            * kernel[None, None, None, i, j]
            for i in range(a, height, stride)
            for j in range(b, width, stride)
        ]
        return functools.reduce(jnp.add, terms) if terms else jnp.zeros((number, down, right, channels), g.dtype)

    phases = jnp.stack([jnp.stack([phase(a, b) for b in range(stride)], 3) for a in range(stride)], 2)
    image = phases.reshape(number, down * stride, right * stride, channels)
    return image[:, top : top + tall, left : left + wide]


def _of_kernel(g, x, kernel, stride, padding):
    """One row of the output after the other: its products with the rows of the image that it saw, in a running sum.

    On a CPU, XLA computes a sum over places for one channel after another, through all of the memory each time.
    """
    height, width, channels = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    number, rows, columns, _ = g.shape
    dtype = _wide(g.dtype)

    def add(sums, one):
        place, of_row = one
        example, row, zero = place // rows, place % rows, jnp.zeros_like(place)
        seen = jax.lax.dynamic_slice(x, (example, row * stride, zero, zero), (1, height, x.shape[2], channels))[0]
        of_row = of_row.astype(dtype)
        shifted = [seen[:, j : j + (columns - 1) * stride + 1 : stride].astype(dtype) for j in range(width)]
        return [total + image * of_row for total, image in zip(sums, shifted, strict=True)], None

    zeros = [jnp.zeros((height, columns, channels), dtype)] * width
    places = jnp.arange(number * rows, dtype=jnp.int32), g.reshape(number * rows, 1, columns, channels)
    sums, _ = jax.lax.scan(add, zeros, places)
    return jnp.stack([jnp.sum(total, 1) for total in sums], 1).astype(kernel.dtype)


def _wide(dtype: Any) -> Any:
    return jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype


shifted_products.defvjp(_forward, _backward)


def depthwise_convolution(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], **rest: Any
) -> jax.Array:
    """`shifted_products` on a CPU, `lax.conv_general_dilated` elsewhere; for `nnx.Conv(conv_general_dilated=...)`.

    Args:
        x: float [N, H, W, C].
        kernel: float [h, w, 1, C].
        strides: Strides in the two directions, equal.
        padding: Zeros before and after, in the two directions.
        **rest: What else `nnx.Conv` passes.

    Returns:
        float [N, H', W', C].
    """
    (stride, other), ((top, bottom), (left, right)) = strides, padding
    assert stride == other
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: shifted_products(x, kernel[:, :, 0], stride, ((top, bottom), (left, right))),
        default=lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, strides, padding, **rest),
    )
