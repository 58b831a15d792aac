"""Data sets without some of their domains."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.load import CachedFeatures, StreamedImages, is_streamed, stream_images
from disam_jax.dg.data.names import hint
from disam_jax.dg.errors import InputError


def leave_out(data: Domains, names: Sequence[str]) -> Domains:
    """A data set without some of its domains, which are then neither trained on nor measured.

    Args:
        data: Data set, in memory or of images in their files, with at least two domains that stay.
        names: Names of the domains to leave out.

    Returns:
        Data set of the other domains, in their order.

    Raises:
        InputError: If a name is no domain's, or fewer than two domains are left.

    Example:
        >>> from disam_jax.dg.testing import toy
        >>> rest = leave_out(toy(), ["sketch"])
        >>> rest.domain_names, rest.counts.tolist()
        (('photo', 'cartoon'), [8, 8])
    """
    for name in names:
        if name not in data.domain_names:
            near = hint(name, data.domain_names)
            known = ", ".join(data.domain_names)
            raise InputError(f"unknown --leave-out {name}: the domains of {data.name} are {known}{near}")
    kept = [place for place, name in enumerate(data.domain_names) if name not in names]
    if len(kept) < 2:
        raise InputError(f"--leave-out leaves {len(kept)} domain of {data.name}: at least two must stay")
    domain_names = tuple(data.domain_names[place] for place in kept)
    if isinstance(data, StreamedImages):
        listing = data.listing
        parts = None if listing.validation is None else tuple(listing.validation[place] for place in kept)
        images = tuple(listing.images[place] for place in kept)
        rest = replace(listing, domain_names=domain_names, images=images, validation=parts)
        return stream_images(rest, data.image_size)
    if is_streamed(data) or isinstance(data, CachedFeatures):
        raise InputError("--leave-out is for data as it is read: leave domains out before features are computed")
    rows = np.isin(data.domain_ids, kept)
    return replace(
        data,
        inputs=data.inputs[rows],
        labels=data.labels[rows],
        domain_ids=np.searchsorted(kept, data.domain_ids[rows]).astype(np.int32),
        domain_names=domain_names,
        validation=None if data.validation is None else data.validation[rows],
    )
