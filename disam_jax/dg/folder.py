"""Images in folders, `DIR/domain/class/*.jpg`: the layout that DomainBed reads."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from disam_jax.dg.domains import Domains, join_domains
from disam_jax.dg.errors import InputError
from disam_jax.dg.features import check_image_size, image_features

SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder, listed and checked but not read.

    Attributes:
        root: the folder.
        domain_names: D names, sorted.
        class_names: C names, sorted; every domain has all of them.
        images: for each domain, its images' paths and labels.
    """

    root: Path
    domain_names: tuple[str, ...]
    class_names: tuple[str, ...]
    images: tuple[tuple[tuple[Path, int], ...], ...]


def list_images(root: Path) -> ImageFolder:
    """Lists the images of a folder and checks that it is complete.

    Hidden entries and files that are no images by their name are passed over.

    Args:
        root: folder of domain folders of class folders of images, whose names end in .jpg, .jpeg or
            .png in upper or lower case.

    Returns:
        ImageFolder.

    Raises:
        InputError: if the folder is missing or can't be listed, has fewer than two domains or two
            classes, if a domain lacks a class that another one has, or a class is empty.
    """
    if not root.exists():
        raise InputError(f"no such folder: {root}")
    domains = _subfolders(root)
    expected = "expected DIR/domain/class/*.jpg"
    if len(domains) < 2:
        found = f"only one domain, {domains[0].name}" if domains else "no domain"
        raise InputError(f"{root} has {found}; at least two are needed ({expected})")
    classes = {domain: {path.name: path for path in _subfolders(domain)} for domain in domains}
    names = sorted(set().union(*classes.values()))
    if len(names) < 2:
        found = f"only one class, {names[0]}" if names else "no class folder"
        raise InputError(f"{root} has {found} in its domains; at least two are needed ({expected})")
    images = []
    for domain in domains:
        paths = []
        for label, name in enumerate(names):
            if name not in classes[domain]:
                raise InputError(f"class missing in a domain: {domain / name} does not exist")
            inside = [path for path in _entries(classes[domain][name]) if _is_image(path)]
            if not inside:
                raise InputError(f"empty class: {domain / name} has no .jpg, .jpeg or .png image")
            paths += [(path, label) for path in inside]
        images.append(tuple(paths))
    return ImageFolder(root, tuple(d.name for d in domains), tuple(names), tuple(images))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot list {folder}: {error.strerror}") from error


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def read_image(path: Path, size: int) -> np.ndarray:
    """Reads an image and scales it to a square.

    Args:
        path: of the image.
        size: pixels on each side of the result.

    Returns:
        uint8 [size, size, 3].

    Raises:
        InputError: if the file is not a complete image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            # Palettes and transparency only become colours by way of RGBA.
            if image.mode == "P" or "transparency" in image.info:
                image = image.convert("RGBA")
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    # A decoder meets broken bytes with whatever error it happens upon.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read image {path}: {reason}") from error


def load_folder(
    folder: ImageFolder,
    image_size: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> Domains:
    """Reads all images and computes their features.

    Args:
        folder: as from `list_images`.
        image_size: pixels on each side to which images are scaled, a positive multiple of 4.
        on_progress: called with the number of images read and their total.

    Returns:
        The data set, each image as the 176 numbers of `features.image_features`.

    Raises:
        InputError: if an image cannot be read or the size does not fit.
    """
    check_image_size(image_size)
    paths = [path for domain in folder.images for path, _ in domain]
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        rows = []
        for row in pool.map(lambda path: image_features(read_image(path, image_size)), paths):
            rows.append(row)
            if on_progress is not None:
                on_progress(len(rows), len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    bounds = np.cumsum([len(domain) for domain in folder.images])[:-1]
    return join_domains(
        Path(os.path.abspath(folder.root)).name,
        np.split(np.stack(rows), bounds),
        [np.array([label for _, label in domain]) for domain in folder.images],
        folder.domain_names,
        folder.class_names,
    )
