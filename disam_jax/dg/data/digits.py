"""Handwritten digits under named shifts: real data that comes with scikit-learn.

The 1797 digits (8 x 8 pixels, ten classes) are dealt to the domains, so that no digit is seen in two
of them: what is learned about the digits of the source domains can only help on the held-out domain
through what the domains share.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np

from disam_jax.dg.data.domains import Domains, join_domains
from disam_jax.dg.data.registry import DataSet

Shift = Callable[[np.ndarray, np.random.Generator], np.ndarray]

ANGLES = (0, 15, 30, 45, 60, 75)


def clean(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The digits as they are.

    Args:
        images: float [N, 8, 8], 0 for paper and 1 for ink, here and in all other shifts.
        rng: draws what is random; not used here.

    Returns:
        Images of the same shape and range.

    Example:
        >>> clean(np.array([[[0.0, 1.0]]]), np.random.default_rng(0)).tolist()
        [[[0.0, 1.0]]]
    """
    del rng
    return images


def rotation(images: np.ndarray, rng: np.random.Generator, degrees: float = 45.0) -> np.ndarray:
    """Turned about the centre, counter-clockwise as seen on the page; corners that leave are cut.

    Args:
        images: as for `clean`.
        rng: not used.
        degrees: the angle.

    Returns:
        Images of the same shape and range, bilinearly interpolated.

    Example:
        >>> image = np.array([[[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]])
        >>> rotation(image, np.random.default_rng(0), degrees=90.0).round(3).tolist()
        [[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]
    """
    from scipy import ndimage

    del rng
    turned = ndimage.rotate(images, degrees, axes=(1, 2), reshape=False, order=1)
    return np.clip(turned, 0.0, 1.0)


def inversion(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exchanges ink and paper: 1 - x.

    Example:
        >>> inversion(np.array([[[0.0, 0.25]]]), np.random.default_rng(0)).tolist()
        [[[1.0, 0.75]]]
    """
    del rng
    return 1.0 - images


def blur(images: np.ndarray, rng: np.random.Generator, sigma: float = 1.0) -> np.ndarray:
    """Gaussian blur.

    Args:
        images: as for `clean`.
        rng: not used.
        sigma: standard deviation of the kernel, in pixels.

    Returns:
        Images of the same shape and range.

    Example:
        >>> image = np.zeros((1, 8, 8))
        >>> image[0, 4, 4] = 1.0
        >>> blur(image, np.random.default_rng(0))[0, 4, 3:6].round(2).tolist()
        [0.1, 0.16, 0.1]
    """
    from scipy import ndimage

    del rng
    return np.clip(ndimage.gaussian_filter(images, sigma=(0.0, sigma, sigma)), 0.0, 1.0)


def noise(images: np.ndarray, rng: np.random.Generator, deviation: float = 0.5) -> np.ndarray:
    """Gaussian noise added to every pixel, then clipped to [0, 1].

    Args:
        images: as for `clean`.
        rng: draws the noise.
        deviation: standard deviation of the noise.

    Returns:
        Images of the same shape and range.

    Example:
        >>> noisy = noise(np.zeros((1, 8, 8)), np.random.default_rng(0))
        >>> noisy.shape, float(noisy.min())
        ((1, 8, 8), 0.0)
    """
    return np.clip(images + deviation * rng.standard_normal(images.shape), 0.0, 1.0)


def texture(images: np.ndarray, rng: np.random.Generator, faintest: float = 0.5, strongest: float = 1.0) -> np.ndarray:
    """Diagonal stripes behind the digit, four pixels from one to the next along a row.

    max(x, a (1 + sin(pi/2 (row + s column) + p)) / 2), with a slope s = 1 or -1, a phase p and a strength a drawn for
    each image.

    Args:
        images: as for `clean`.
        rng: draws slope, phase and strength.
        faintest: the least strength.
        strongest: the greatest strength, at most 1.

    Returns:
        Images of the same shape and range.

    Example:
        >>> striped = texture(np.zeros((1, 8, 8)), np.random.default_rng(0))
        >>> bool(np.allclose(striped[:, :, :4], striped[:, :, 4:]))
        True
    """
    rows, columns = np.meshgrid(np.arange(8.0), np.arange(8.0), indexing="ij")
    slope = rng.choice((-1.0, 1.0), size=(len(images), 1, 1))
    phase = rng.uniform(0.0, 2.0 * np.pi, size=(len(images), 1, 1))
    strength = rng.uniform(faintest, strongest, size=(len(images), 1, 1))
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


def make_digits(shifts: Mapping[str, Shift], name: str, seed: int = 0) -> Domains:
    """The digits as domains that you define.

    Args:
        shifts: for each domain its name and what is done to its digits; at least two. Parameters are set with
            `functools.partial`.
        name: what to call the data set.
        seed: decides which digit goes to which domain and what is random in a shift.

    Returns:
        The 1797 digits of 64 pixels in [0, 1], each in one domain only, each class evenly represented.

    Raises:
        ValueError: on fewer than two shifts, or if a shift changes the shape.

    Example:
        >>> shifts = {"faint": partial(texture, faintest=0.1, strongest=0.2), "soft": partial(blur, sigma=0.5)}
        >>> data = make_digits(shifts, "two papers")
        >>> data.domain_names, data.counts.tolist(), data.inputs.shape
        (('faint', 'soft'), [899, 898], (1797, 64))
    """
    from sklearn import datasets

    if len(shifts) < 2:
        raise ValueError(f"at least two shifts are needed, got {list(shifts)}")
    pixels, targets = datasets.load_digits(return_X_y=True)
    images = np.asarray(pixels, np.float64).reshape(-1, 8, 8) / 16.0
    labels = np.asarray(targets, np.int32)
    groups = deal(labels, len(shifts), seed)
    shifted = []
    for place, (group, (domain, shift)) in enumerate(zip(groups, shifts.items(), strict=True)):
        part = shift(images[group], np.random.default_rng([seed, place]))
        if part.shape != (len(group), 8, 8):
            raise ValueError(f"the shift {domain!r} must keep the shape {(len(group), 8, 8)}, returned {part.shape}")
        shifted.append(part.reshape(len(part), -1))
    return join_domains(name, shifted, [labels[group] for group in groups], tuple(shifts), "0123456789")


def load_digits(seed: int = 0) -> Domains:
    """The digits as six domains, one for each of `SHIFTS`.

    Args:
        seed: decides which digit goes to which domain, the noise and the stripes.

    Returns:
        About 300 examples of 64 pixels in [0, 1] per domain, each class evenly represented.

    Example:
        >>> load_digits().domain_names
        ('clean', 'rotation', 'inversion', 'blur', 'noise', 'texture')
    """
    return make_digits(SHIFTS, "digits", seed)


def load_rotated_digits(seed: int = 0) -> Domains:
    """The digits as six domains, turned by 0, 15, 30, 45, 60 and 75 degrees.

    Args:
        seed: decides which digit goes to which domain.

    Returns:
        About 300 examples of 64 pixels in [0, 1] per domain, each class evenly represented.

    Example:
        >>> load_rotated_digits().domain_names
        ('0', '15', '30', '45', '60', '75')

    References:
        Ghifary et al., Domain Generalization for Object Recognition with Multi-task Autoencoders, ICCV 2015, turned
        MNIST's digits by these angles.
    """
    shifts = {str(degrees): partial(rotation, degrees=float(degrees)) for degrees in ANGLES}
    return make_digits(shifts, "digits-rotated", seed)


# Where ERM and SAM learn, from a few tries on the last step (docs/benchmark.md).
_TRAINING = MappingProxyType({"steps": 400, "learning_rate": 0.1, "rho": 0.1, "standardise": False})

DATASETS = {
    "digits": DataSet(
        "scikit-learn's digits under six shifts: clean, rotation, inversion, blur, noise, background texture",
        load_digits,
        training=_TRAINING,
    ),
    "digits-rotated": DataSet(
        "the same digits turned by 0, 15, 30, 45, 60 and 75 degrees", load_rotated_digits, training=_TRAINING
    ),
}
