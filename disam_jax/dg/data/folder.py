"""Images in folders, `DIR/domain/class/*.jpg`: listed and checked first, read afterwards."""

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.features import check_image_size, image_features
from disam_jax.dg.data.images import read_image
from disam_jax.dg.data.names import check_different, check_name, hint
from disam_jax.dg.data.walk import Places, images_of_classes, places, subfolders, why_passed_over
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import read_bytes, reason, shown

# Above the lists of any benchmark: those of DomainNet have 600,000 lines.
MOST_LIST_BYTES = 2**28

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ImageIndex:
    """The images of a data set, listed and checked but not read.

    Attributes:
        root: the folder.
        name: what the data set is called in tables.
        domain_names: D names.
        class_names: C names.
        images: for each domain, its images' paths, under `root`, and labels, indices into `class_names`.
        left_out: Images in the folder that are not counted: the duplicates of DomainNet, and links to images that are
            counted elsewhere.
        validation: for each domain and image, whether a split file sets it aside for validation; None if there
            are no split files and the split is drawn, see `splits`.
    """

    root: Path
    name: str
    domain_names: tuple[str, ...]
    class_names: tuple[str, ...]
    images: tuple[tuple[tuple[Path, int], ...], ...]
    left_out: tuple[Path, ...] = ()
    validation: tuple[tuple[bool, ...], ...] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of results has to know: how many images are left out."""
        number = len(self.left_out)
        return (f"{self.name}: {number} duplicate image{'s are' if number > 1 else ' is'} left out.",) if number else ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The images of all domains, N paths in the order in which they are read."""
        return tuple(path for domain in self.images for path, _ in domain)


def list_images(root: Path) -> ImageIndex:
    """Lists the images of a folder and checks that it is complete.

    Domains and classes are sorted by name and the images of a class by folder and name, as DomainBed and
    torchvision's ImageFolder sort them, so that an image has the same index there and here. Files that are no
    images by their name are passed over, and so are hidden entries, usual leftovers (`__MACOSX`, `@eaDir`,
    `Thumbs.db`, ...) and folders of results. Every file counts once, in its own class, see `walk.images_of_classes`.

    Args:
        root: Folder of domain folders of class folders of images; the images may lie in folders of their own in
            the class folder. Their names end in one of `walk.SUFFIXES`, in upper or lower case.

    Returns:
        ImageIndex with the name of the folder.

    Raises:
        InputError: If the folder is missing or can't be listed, has fewer than two domains or two
            classes, if a domain lacks a class that another one has, a class is empty, or a name cannot be written into
            tables.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("photo/cat", "photo/dog", "sketch/cat", "sketch/dog"):
        ...         Path(folder, name).mkdir(parents=True)
        ...         Path(folder, name, "1.jpg").touch()
        ...     list_images(Path(folder)).class_names
        ('cat', 'dog')
    """
    check_folder(root)
    # A relative "." has no name of its own.
    name = Path(os.path.abspath(root)).name
    check_name(name, "data set", root)
    domains = subfolders(root)
    expected = "expected DIR/domain/class/*.jpg"
    if len(domains) < 2:
        found = f"only one domain, {shown(domains[0].name)}" if domains else "no domain"
        raise InputError(f"{shown(root)} has {found}; at least two are needed ({expected})")
    data = places([root, *domains])
    classes = {domain: {path.name: path for path in subfolders(domain, data)} for domain in domains}
    for domain in domains:
        check_name(domain.name, "domain", domain)
        for path in classes[domain].values():
            check_name(path.name, "class", path)
    names = sorted(set().union(*classes.values()))
    if len(names) < 2:
        found = f"only one class, {names[0]}" if names else "no class folder"
        raise InputError(f"{shown(root)} has {found} in its domains; at least two are needed ({expected})")
    for domain in domains:
        for each in names:
            if each not in classes[domain]:
                _class_missing(domain / each, list(classes[domain]), data)
    check_different([domain.name for domain in domains], "domain")
    check_different(names, "class")
    folders = [[(classes[domain][each], label) for label, each in enumerate(names)] for domain in domains]
    images, left_out = list_classes(folders, data)
    return ImageIndex(root, name, tuple(domain.name for domain in domains), tuple(names), images, left_out)


def check_folder(folder: Path) -> None:
    """Checks that a folder exists.

    Args:
        folder: Path of the folder.

    Raises:
        InputError: If it is not there.

    Example:
        >>> check_folder(Path("."))
    """
    try:
        os.stat(folder)
    # A ValueError: a name with a zero byte, or one that the file system cannot encode.
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise InputError(
            f"no such folder: {shown(folder)}" if missing else f"cannot list {shown(folder)}: {reason(error)}"
        ) from error


def list_classes(
    folders: Sequence[Sequence[tuple[Path, int]]], data: Places
) -> tuple[tuple[tuple[tuple[Path, int], ...], ...], tuple[Path, ...]]:
    """The images of all domains and classes.

    Args:
        folders: For each domain, the folders of its classes, each with its label.
        data: Places of the data set and its domains.

    Returns:
        For each domain its images with their labels, and the images that are left out.

    Raises:
        InputError: As `walk.images_of_classes`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "1.jpg").touch()
        ...     images, left_out = list_classes([[(Path(folder), 3)]], places([Path(folder)]))
        >>> [label for _, label in images[0]]
        [3]
    """
    found = iter(images_of_classes([path for domain in folders for path, _ in domain], data))
    of_domains = [[(next(found), label) for _, label in domain] for domain in folders]
    return (
        tuple(tuple((path, label) for each, label in domain for path in each.images) for domain in of_domains),
        tuple(path for domain in of_domains for each, _ in domain for path in each.left_out),
    )


def _class_missing(path: Path, others: Sequence[str], data: Places) -> NoReturn:
    """Says why a class has no folder, or which folder is perhaps meant."""
    passed_over = why_passed_over(path, data)
    found = f"does not exist{hint(path.name, others)}" if passed_over is None else passed_over
    raise InputError(f"class missing in a domain: {shown(path)} {found}")


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, each with its number, counted from 1.

    Raises:
        InputError: if it is no readable UTF-8 text.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "list.txt")
        ...     length = path.write_text(chr(10).join(["cat", "", "  dog"]))
        ...     read_lines(path)
        [(1, 'cat'), (3, 'dog')]
    """
    try:
        # Editors of Windows put a mark before the text.
        text = read_bytes(path, MOST_LIST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {shown(path)}: {reason(error)}; save it as UTF-8 text") from error
    # Not splitlines, which also ends lines at characters that names can have.
    return [(number, line.strip()) for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1) if line.strip()]


def load_features(listing: ImageIndex, image_size: int = 64, on_progress: Progress | None = None) -> Domains:
    """Reads all images and computes their features.

    Args:
        listing: as from `list_images`.
        image_size: pixels on each side to which images are scaled, a multiple of 4, at least 8.
        on_progress: called with the number of images read and their total.

    Returns:
        The data set, each image as the 176 numbers of `features.image_features`, float32 [N, 176].

    Raises:
        InputError: if an image cannot be read or the size does not fit.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (8, 8)).save(path := Path(folder, "1.png"))
        ...     listing = ImageIndex(path.parent, "toy", ("photo",), ("cat",), (((path, 0),),))
        ...     load_features(listing, image_size=8).inputs.shape
        (1, 176)
    """
    check_image_size(image_size)
    return _load(listing, lambda path: image_features(read_image(path, image_size)), on_progress)


def load_images(listing: ImageIndex, image_size: int = 64, on_progress: Progress | None = None) -> Domains:
    """Reads all images.

    Args:
        listing: as from `list_images`.
        image_size: S, pixels on each side to which images are scaled.
        on_progress: called with the number of images read and their total.

    Returns:
        The data set, inputs uint8 [N, S, S, 3].

    Raises:
        InputError: if an image cannot be read or the size is not positive.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (8, 8)).save(path := Path(folder, "1.png"))
        ...     listing = ImageIndex(path.parent, "toy", ("photo",), ("cat",), (((path, 0),),))
        ...     load_images(listing, image_size=4).inputs.shape
        (1, 4, 4, 3)
    """
    if image_size < 1:
        raise InputError(f"--image-size must be at least 1, got {image_size}")
    return _load(listing, lambda path: read_image(path, image_size), on_progress)


def _load(listing: ImageIndex, read: Callable[[Path], np.ndarray], on_progress: Progress | None) -> Domains:
    paths = listing.paths
    first = read(paths[0])
    inputs = np.empty((len(paths), *first.shape), first.dtype)
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for row, values in enumerate(pool.map(read, paths)):
            inputs[row] = values
            if on_progress is not None:
                on_progress(row + 1, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    sizes = [len(domain) for domain in listing.images]
    return Domains(
        name=listing.name,
        inputs=inputs,
        labels=np.array([label for domain in listing.images for _, label in domain], np.int32),
        domain_ids=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        domain_names=listing.domain_names,
        class_names=listing.class_names,
        validation=None if listing.validation is None else np.concatenate(listing.validation).astype(bool),
        notes=listing.notes,
    )
