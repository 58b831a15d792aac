"""An image as 176 numbers: what edges and which colours it has, and where."""

import numpy as np

from disam_jax.dg.errors import InputError

GRID = 4
ORIENTATIONS = 8
NUM_FEATURES = GRID * GRID * (ORIENTATIONS + 3)


def check_image_size(size: int) -> None:
    """Checks that an image of this size can be cut into the cells.

    Args:
        size: pixels on each side.

    Raises:
        InputError: if it is not a multiple of 4 or below 8, where a cell has no gradient.

    Example:
        >>> check_image_size(64)
        >>> check_image_size(10)
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: --image-size must be a multiple of 4, at least 8, got 10
    """
    if size < 2 * GRID or size % GRID:
        raise InputError(f"--image-size must be a multiple of {GRID}, at least {2 * GRID}, got {size}")


def image_features(image: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients and mean colours of a grid of 4 x 4 cells.

    The histograms are normalised together, over the whole image, which keeps what differs between
    cells and drops the overall contrast.

    Args:
        image: uint8 [S, S, 3], with S a multiple of 4.

    Returns:
        float32 [176]: 16 cells x 8 orientations, then 16 cells x 3 mean colours in [0, 1].

    Example:
        >>> image_features(np.zeros((8, 8, 3), np.uint8)).shape
        (176,)
    """
    from skimage.feature import hog

    cell = image.shape[0] // GRID
    edges = hog(
        image,
        orientations=ORIENTATIONS,
        pixels_per_cell=(cell, cell),
        cells_per_block=(GRID, GRID),
        block_norm="L2-Hys",
        channel_axis=-1,
    )
    colours = image.reshape(GRID, cell, GRID, cell, 3).mean((1, 3)) / 255.0
    return np.concatenate([edges, colours.ravel()]).astype(np.float32)
