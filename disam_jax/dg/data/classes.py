"""Base and new classes: those that training sees, and those that are met for the first time after it."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from disam_jax.dg.data.array_cache import RowsOnDisk
from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.folder import ImageIndex
from disam_jax.dg.data.load import CachedFeatures, StreamedImages, is_streamed, stream_images
from disam_jax.dg.data.names import hint
from disam_jax.dg.errors import InputError


def split_classes(class_names: Sequence[str], base: Sequence[str] = ()) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The base classes and the new ones.

    Args:
        class_names: C names, at least 2.
        base: names of the base classes; without any, the first half is base, the larger one if C is odd.

    Returns:
        Base and new classes, each in the order of the data.

    Raises:
        InputError: on a name that is no class, or if either part is empty.

    References:
        Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022, section 4.1.

    Example:
        >>> split_classes(["dog", "elephant", "giraffe"])
        (('dog', 'elephant'), ('giraffe',))
    """
    for name in base:
        if name not in class_names:
            near = hint(name, class_names)
            raise InputError(f"unknown base class {name}: the classes are {', '.join(class_names)}{near}")
    chosen = set(base) or set(class_names[: (len(class_names) + 1) // 2])
    parts = tuple(name for name in class_names if name in chosen), tuple(n for n in class_names if n not in chosen)
    if not all(parts):
        raise InputError(f"base and new classes must both be some of {', '.join(class_names)}")
    return parts


def take_classes(data: Domains, class_names: Sequence[str]) -> Domains:
    """The examples of some classes.

    Args:
        data: N examples of D domains.
        class_names: C' of its classes, in any order.

    Returns:
        The data set of these, of the same kind, labels counted from 0 in the order of `class_names`; a domain may
        have none.

    Example:
        >>> from disam_jax.dg.data.domains import join_domains
        >>> data = join_domains("toy", [np.arange(3)[:, None]], [np.array([0, 1, 2])], ["photo"], ["dog", "cat", "cow"])
        >>> part = take_classes(data, ["cow", "dog"])
        >>> part.labels.tolist(), part.inputs[:, 0].tolist()
        ([1, 0], [0.0, 2.0])
    """
    place = {data.class_names.index(name): label for label, name in enumerate(class_names)}
    if isinstance(data, StreamedImages):
        return stream_images(_listing_of(data.listing, place, tuple(class_names)), data.image_size)
    rows = np.flatnonzero(np.isin(data.labels, list(place)))
    take: Any = functools.partial(RowsOnDisk, rows=rows) if is_streamed(data) else lambda array: array[rows]
    if isinstance(data, CachedFeatures):
        data = replace(data, views=tuple(map(take, data.views)))
    return replace(
        data,
        inputs=take(data.inputs),
        labels=np.array([place[label] for label in data.labels[rows].tolist()], np.int32),
        domain_ids=data.domain_ids[rows],
        class_names=tuple(class_names),
        validation=None if data.validation is None else data.validation[rows],
    )


def _listing_of(listing: ImageIndex, place: dict[int, int], class_names: tuple[str, ...]) -> ImageIndex:
    kept = [[number for number, (_, label) in enumerate(domain) if label in place] for domain in listing.images]
    images = tuple(
        tuple((domain[number][0], place[domain[number][1]]) for number in numbers)
        for domain, numbers in zip(listing.images, kept, strict=True)
    )
    validation = listing.validation
    if validation is not None:
        validation = tuple(tuple(d[n] for n in numbers) for d, numbers in zip(validation, kept, strict=True))
    return replace(listing, class_names=class_names, images=images, validation=validation)


def check_bases(data: Domains, classes: Sequence[str]) -> None:
    """Makes sure that every domain has examples to train on.

    Args:
        data: of the base classes.
        classes: their names, for the message.

    Raises:
        InputError: naming a domain without any.

    Example:
        >>> data = Domains("toy", np.zeros((1, 2)), np.array([0]), np.array([0]), ("photo", "sketch"), ("dog",))
        >>> check_bases(data, ["dog"])
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: domain sketch has no image of the base classes dog: choose others
    """
    empty = [name for name, count in zip(data.domain_names, data.counts.tolist(), strict=True) if not count]
    if empty:
        raise InputError(f"domain {empty[0]} has no image of the base classes {', '.join(classes)}: choose others")
