"""Sources by name. A new one is a mapping `SOURCES` from names to `Source` in any file of this package."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from disam_jax.dg.data.names import hint
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import shown
from disam_jax.dg.registry import Registry


class PlacedImage(NamedTuple):
    """An image of a checkout and where it belongs.

    Attributes:
        path: Path of the image.
        domain: Name of its domain.
        class_name: Name of its class.
    """

    path: Path
    domain: str
    class_name: str


@dataclass(frozen=True)
class Source:
    """A data set in a public Git repository.

    Attributes:
        summary: What it is, in one line.
        url: Address of the repository.
        commit: Commit to fetch, 40 hexadecimal digits.
        megabytes: What is fetched, about.
        counts: For each domain, the number of examples of each class.
        licence: What is known of the licence.
        citation: Papers to cite.
        images: Checkout -> its images, for a data set of images. None for a table.
        arrays: Checkout -> the arrays `x`, `y` and `domain` of `load_arrays`, for a table. None for images.
        checksum: `convert.tree_checksum` of what is written with the default options; empty if it is not known.
        depends_on: Library on whose version the checksum depends; empty if it is always the same.

    Raises:
        ValueError: If it has both of `images` and `arrays`, or none.
    """

    summary: str
    url: str
    commit: str
    megabytes: int
    counts: Mapping[str, Mapping[str, int]]
    licence: str
    citation: str
    images: Callable[[Path], Iterable[PlacedImage]] | None = None
    arrays: Callable[[Path], Mapping[str, np.ndarray]] | None = None
    checksum: str = ""
    depends_on: str = ""

    def __post_init__(self):
        if (self.images is None) == (self.arrays is None):
            raise ValueError(f"{self.summary}: a source has images or arrays, and not both")


SOURCES: Registry[Source] = Registry(
    "source",
    Source,
    "disam_jax.dg.data.sources",
    "SOURCES",
    "disam_jax.sources",
    first=("pacs", "office_caltech10", "rsscn7", "heart", "reviews"),
)


def find_source(name: str) -> str:
    """The name of a source as `SOURCES` has it.

    Args:
        name: Name in upper or lower case, with or without "_" and "-".

    Returns:
        Name of the source.

    Raises:
        InputError: If there is none. Those that there are are named.

    Example:
        >>> find_source("pacs"), find_source("office-caltech10")
        ('PACS', 'OfficeCaltech10')
    """
    known = {_plain(each): each for each in SOURCES}.get(_plain(name))
    if known is None:
        raise InputError(f"no data set {shown(name)} to fetch: write {', '.join(SOURCES)}{hint(name, SOURCES)}")
    return known


def _plain(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "")
