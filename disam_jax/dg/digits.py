"""Handwritten digits under six shifts: real data that comes with scikit-learn.

The 1797 digits (8 x 8 pixels, ten classes) are dealt to the domains, so that no digit is seen in two
of them: what is learned about the digits of the source domains can only help on the held-out domain
through what the domains share.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from disam_jax.dg.domains import Domains, join_domains

Shift = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def clean(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The digits as they are.

    Args:
        images: float [N, 8, 8] in [0, 1], here and in all other shifts.
        rng: not used here.

    Returns:
        Images of the same shape and range.
    """
    del rng
    return images


def rotation(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned by 45 degrees about the centre, counter-clockwise; corners that leave are cut."""
    from scipy import ndimage

    del rng
    turned = ndimage.rotate(images, 45.0, axes=(1, 2), reshape=False, order=1)
    return np.clip(turned, 0.0, 1.0)


def inversion(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ink and paper exchanged: 1 - x."""
    del rng
    return 1.0 - images


def blur(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur with a standard deviation of one pixel."""
    from scipy import ndimage

    del rng
    return np.clip(ndimage.gaussian_filter(images, sigma=(0.0, 1.0, 1.0)), 0.0, 1.0)


def noise(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of standard deviation 0.5 added to every pixel, then clipped to [0, 1]."""
    return np.clip(images + 0.5 * rng.standard_normal(images.shape), 0.0, 1.0)


def texture(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Diagonal stripes behind the digit, of random slope, phase and strength for each image."""
    rows, columns = np.meshgrid(np.arange(8.0), np.arange(8.0), indexing="ij")
    slope = rng.choice((-1.0, 1.0), size=(len(images), 1, 1))
    phase = rng.uniform(0.0, 2.0 * np.pi, size=(len(images), 1, 1))
    strength = rng.uniform(0.5, 1.0, size=(len(images), 1, 1))
    stripes = 0.5 + 0.5 * np.sin(0.5 * np.pi * (rows + slope * columns) + phase)
    return np.maximum(images, strength * stripes)


SHIFTS: Mapping[str, Shift] = MappingProxyType(
    {
        "clean": clean,
        "rotation": rotation,
        "inversion": inversion,
        "blur": blur,
        "noise": noise,
        "texture": texture,
    }
)


def deal(labels: np.ndarray, hands: int, seed: int) -> list[np.ndarray]:
    """Deals the examples of every class evenly to `hands` disjoint groups.

    Args:
        labels: int [N].
        hands: number of groups.
        seed: decides which example goes where.

    Returns:
        `hands` arrays of indices that together hold each of 0..N-1 once; the number of examples of
        a class differs by at most one between any two of them.

    Example:
        >>> groups = deal(np.array([0, 1, 0, 1]), hands=2, seed=0)
        >>> [len(group) for group in groups]
        [2, 2]
    """
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(hands, shuffle=True, random_state=seed)
    return [group for _, group in folds.split(labels, labels)]


def load_digits(seed: int = 0) -> Domains:
    """The digits as six domains, one for each of `SHIFTS`.

    Args:
        seed: decides which digit goes to which domain, the noise and the stripes.

    Returns:
        About 300 examples of 64 pixels in [0, 1] per domain, each class evenly represented.
    """
    from sklearn import datasets

    pixels, targets = datasets.load_digits(return_X_y=True)
    images = np.asarray(pixels, np.float64).reshape(-1, 8, 8) / 16.0
    labels = np.asarray(targets, np.int32)
    groups = deal(labels, len(SHIFTS), seed)
    shifted = [
        shift(images[group], np.random.default_rng([seed, place]))
        for place, (group, shift) in enumerate(zip(groups, SHIFTS.values(), strict=True))
    ]
    return join_domains(
        "digits",
        [part.reshape(len(part), -1) for part in shifted],
        [labels[group] for group in groups],
        tuple(SHIFTS),
        "0123456789",
    )
