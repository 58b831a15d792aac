"""Images in folders, `DIR/domain/class/*.jpg`: listed and checked first, read afterwards."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.features import check_image_size, image_features
from disam_jax.dg.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Listing:
    """The images of a data set, listed and checked but not read.

    Attributes:
        root: the folder.
        name: what the data set is called in tables.
        domain_names: D names.
        class_names: C names.
        images: for each domain, its images' paths, under `root`, and labels, indices into `class_names`.
        left_out: images in the folder that do not belong to the data set (the duplicates of DomainNet).
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


def list_images(root: Path) -> Listing:
    """Lists the images of a folder and checks that it is complete.

    Domains and classes are sorted by name and the images of a class by folder and name, as DomainBed and
    torchvision's ImageFolder sort them, so that an image has the same index there and here. Files that are no
    images by their name and hidden entries are passed over.

    Args:
        root: folder of domain folders of class folders of images; the images may lie in folders of their own in
            the class folder. Their names end in one of `SUFFIXES`, in upper or lower case.

    Returns:
        Listing with the name of the folder.

    Raises:
        InputError: if the folder is missing or can't be listed, has fewer than two domains or two
            classes, if a domain lacks a class that another one has, or a class is empty.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("photo/cat", "photo/dog", "sketch/cat", "sketch/dog"):
        ...         Path(folder, name).mkdir(parents=True)
        ...         Path(folder, name, "1.jpg").touch()
        ...     list_images(Path(folder)).class_names
        ('cat', 'dog')
    """
    if not root.exists():
        raise InputError(f"no such folder: {root}")
    domains = subfolders(root)
    expected = "expected DIR/domain/class/*.jpg"
    if len(domains) < 2:
        found = f"only one domain, {domains[0].name}" if domains else "no domain"
        raise InputError(f"{root} has {found}; at least two are needed ({expected})")
    classes = {domain: {path.name: path for path in subfolders(domain)} for domain in domains}
    names = sorted(set().union(*classes.values()))
    if len(names) < 2:
        found = f"only one class, {names[0]}" if names else "no class folder"
        raise InputError(f"{root} has {found} in its domains; at least two are needed ({expected})")
    images = []
    for domain in domains:
        for name in names:
            if name not in classes[domain]:
                raise InputError(f"class missing in a domain: {domain / name} does not exist")
        images.append(tuple((path, y) for y, name in enumerate(names) for path in class_images(classes[domain][name])))
    # A relative "." has no name of its own.
    name = Path(os.path.abspath(root)).name
    return Listing(root, name, tuple(domain.name for domain in domains), tuple(names), tuple(images))


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name, without hidden ones.

    Raises:
        InputError: if it cannot be listed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("sketch", "photo", ".hidden"):
        ...         Path(folder, name).mkdir()
        ...     [path.name for path in subfolders(Path(folder))]
        ['photo', 'sketch']
    """
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        _cannot_list(error, folder)
    return [path for path in entries if path.is_dir() and not path.name.startswith(".")]


def class_images(folder: Path) -> list[Path]:
    """The images in a folder and the folders within, in the order of torchvision's ImageFolder.

    Raises:
        InputError: if it cannot be listed or has no image.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("2.PNG", "1.jpg", "notes.txt"):
        ...         Path(folder, name).touch()
        ...     [path.name for path in class_images(Path(folder))]
        ['1.jpg', '2.PNG']
    """
    walked = sorted(os.walk(folder, onerror=lambda error: _cannot_list(error, folder), followlinks=True))
    images = [Path(inside, name) for inside, _, names in walked for name in sorted(names) if _is_image(name)]
    if not images:
        raise InputError(f"empty class: {folder} has no image ({', '.join(SUFFIXES)})")
    return images


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def _cannot_list(error: OSError, folder: Path) -> NoReturn:
    raise InputError(f"cannot list {error.filename or folder}: {error.strerror}") from error


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
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def read_image(path: Path, size: int) -> np.ndarray:
    """Reads an image and scales it to a square.

    A truncated image is an error here, where DomainBed fills in what is missing.

    Args:
        path: of the image.
        size: pixels on each side of the result.

    Returns:
        uint8 [size, size, 3], scaled bilinearly with antialiasing.

    Raises:
        InputError: if the file is not a complete image of 8 bits per colour.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (2, 3), "red").save(Path(folder, "1.png"))
        ...     read_image(Path(folder, "1.png"), size=1).tolist()
        [[[255, 0, 0]]]
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            # Pillow cuts such pixels off at 255 without a word.
            if image.mode[0] in "IF":
                raise ValueError(f"pixels of more than 8 bits (mode {image.mode}); save it with 8 bits")
            # Palettes and transparency only become colours by way of RGBA.
            if image.mode == "P" or "transparency" in image.info:
                image = image.convert("RGBA")
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    # A decoder meets broken bytes with whatever error it happens upon.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read image {path}: {reason}") from error


def load_features(listing: Listing, image_size: int = 64, on_progress: Progress | None = None) -> Domains:
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
        ...     listing = Listing(path.parent, "toy", ("photo",), ("cat",), (((path, 0),),))
        ...     load_features(listing, image_size=8).inputs.shape
        (1, 176)
    """
    check_image_size(image_size)
    return _load(listing, lambda path: image_features(read_image(path, image_size)), on_progress)


def load_images(listing: Listing, image_size: int = 64, on_progress: Progress | None = None) -> Domains:
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
        ...     listing = Listing(path.parent, "toy", ("photo",), ("cat",), (((path, 0),),))
        ...     load_images(listing, image_size=4).inputs.shape
        (1, 4, 4, 3)
    """
    if image_size < 1:
        raise InputError(f"--image-size must be at least 1, got {image_size}")
    return _load(listing, lambda path: read_image(path, image_size), on_progress)


def _load(listing: Listing, read: Callable[[Path], np.ndarray], on_progress: Progress | None) -> Domains:
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
