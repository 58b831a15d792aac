"""From what a data set holds to what a network computes on: float32, scaled and normalised."""

import jax
import jax.numpy as jnp
import numpy as np

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_float(inputs: jax.Array) -> jax.Array:
    """uint8 divided by 255; floating point as it is.

    Args:
        inputs: uint8 or floating point [N, ...].

    Returns:
        float32 [N, ...].

    Raises:
        TypeError: on any other dtype.

    Example:
        >>> to_float(jnp.array([0, 255], jnp.uint8)).tolist()
        [0.0, 1.0]
    """
    if inputs.dtype == jnp.uint8:
        return inputs.astype(jnp.float32) / 255.0
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise TypeError(f"inputs must be uint8 or floating point, got {inputs.dtype}{list(inputs.shape)}")
    return inputs.astype(jnp.float32)


def vectors(inputs: jax.Array) -> jax.Array:
    """One vector per example, for networks that know nothing of images.

    Args:
        inputs: uint8 in 0..255 or floating point [N, ...].

    Returns:
        float32 [N, F]; uint8 is divided by 255.

    Example:
        >>> vectors(jnp.full((2, 4, 4, 3), 255, jnp.uint8)).shape
        (2, 48)
    """
    return to_float(inputs).reshape(inputs.shape[0], -1)


def images(
    inputs: jax.Array, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> jax.Array:
    """Images normalised, for ImageNet by default: (x - mean) / standard deviation, channel by channel.

    Args:
        inputs: uint8 in 0..255 or floating point in [0, 1], [N, H, W, C].
        mean: of each channel.
        std: of each channel.

    Returns:
        float32 [N, H, W, C]. Images of another number of channels are scaled to [0, 1] only.

    Example:
        >>> images(jnp.full((1, 1, 1, 3), 0.5), mean=(0.0, 0.25, 0.5), std=(0.5, 0.5, 0.5)).tolist()
        [[[[1.0, 0.5, 0.0]]]]
    """
    scaled = to_float(inputs)
    if inputs.shape[-1] != len(mean):
        return scaled
    centre, spread = np.array(mean, np.float32), np.array(std, np.float32)
    return (scaled - centre[None, None, None, :]) / spread[None, None, None, :]
