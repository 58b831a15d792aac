"""A data set by its name or path."""

import hashlib
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from disam_jax.dg.data import arrays, domainbed, folder, splits
from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.names import near
from disam_jax.dg.data.registry import DATASETS, find_data_set
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import exists, is_folder, reason, shown


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamedImages(Domains):
    """Images that stay in their files; `inputs` has the shape and type of their pixels, but no values.

    Attributes:
        listing: the images, in the order of `labels`.
        image_size: S, pixels on each side to which they are scaled when they are read.
    """

    listing: folder.ImageIndex
    image_size: int


@dataclass(frozen=True, eq=False, kw_only=True)
class CachedFeatures(Domains):
    """What a frozen tower, or the front of one, makes of the images of a data set.

    Attributes:
        origin: tells the images and the weights of the tower apart from others.
        views: what it makes of augmented views of the images, K arrays like `inputs`, for training.
        streamed: whether all this stays on disk and is read as it is needed.
    """

    origin: str
    views: tuple[np.ndarray, ...] = ()
    streamed: bool = False

    @classmethod
    def of(cls, data: Domains, inputs: np.ndarray, **own: Any) -> "CachedFeatures":
        """The data set with other inputs, and the attributes of this class.

        Example:
            >>> from disam_jax.dg.testing import toy
            >>> CachedFeatures.of(toy(), np.zeros((24, 5)), origin="a tower").inputs.shape
            (24, 5)
        """
        values = {each.name: getattr(data, each.name) for each in fields(Domains)}
        return cls(**(values | {"inputs": inputs}), **own)


def is_streamed(data: Domains) -> bool:
    """Whether the inputs of a data set stay on disk and are read as they are needed.

    Example:
        >>> from disam_jax.dg.testing import toy
        >>> is_streamed(toy())
        False
    """
    return isinstance(data, StreamedImages) or (isinstance(data, CachedFeatures) and data.streamed)


def open_data(
    name_or_path: str,
    *,
    data_dir: Path | None = None,
    image_size: int = 64,
    features: bool = True,
    split_files: Path | None = None,
    duplicates: Path | None = None,
    allow_missing_classes: bool = False,
    stream: bool = False,
    most_bytes: int | None = None,
    on_progress: folder.Progress | None = None,
    out: Path | None = None,
) -> Domains:
    """Reads a data set.

    Args:
        name_or_path: Name of an entry of `DATASETS`, in upper or lower case; a folder of images,
            `DIR/domain/class/*.jpg`; or an npz file. A name goes before a path of the same name: write `./digits` for
            a folder.
        data_dir: DomainBed's data directory, for data sets of images that have a name.
        image_size: pixels on each side to which images are scaled; not used for digits and arrays.
        features: images as 176 numbers, float32 [N, 176], instead of uint8 [N, S, S, 3].
        split_files: for images, a folder of split files or one of them, see `splits.read_split_files`.
        duplicates: for DomainNet, the list of images to leave out.
        allow_missing_classes: for arrays, see `arrays.load_arrays`.
        stream: leave the images in their files.
        most_bytes: leave them there too if their pixels take more; None for no limit.
        on_progress: called with the number of images read and their total.
        out: Folder that results will be written to; none of the folders in which the images lie.

    Returns:
        The data set; `StreamedImages` if the images stay in their files.

    Raises:
        InputError: if the name is unknown, an option does not belong to the data, or the data is not as it should be.

    Example:
        >>> data = open_data("digits-rotated")
        >>> data.domain_names, data.inputs.shape
        (('0', '15', '30', '45', '60', '75'), (1797, 64))
    """
    name = find_data_set(name_or_path)
    entry = None if name is None else DATASETS[name]
    path = expand(Path(name_or_path))
    if has_images(name_or_path):
        _check_complete(name_or_path, allow_missing_classes)
        listing = list_data(name_or_path, data_dir=data_dir, split_files=split_files, duplicates=duplicates)
        if out is not None:
            check_apart(out, listing)
        if features and stream:
            raise InputError("features are computed once and fit: leave out --stream")
        if not features and (stream or (most_bytes is not None and pixel_bytes(listing, image_size) > most_bytes)):
            return stream_images(listing, image_size)
        return (folder.load_features if features else folder.load_images)(listing, image_size, on_progress)
    if stream:
        raise InputError(f"{shown(name_or_path)} is not a folder of images and fits: leave out --stream")
    _check_data_dir(name_or_path, data_dir)
    for option, given in (("split files", split_files), ("list of duplicates", duplicates)):
        if given is not None:
            raise InputError(f"{shown(name_or_path)} is not a folder of images and has no {option}, got {shown(given)}")
    if entry is not None and entry.load is not None:
        _check_complete(name_or_path, allow_missing_classes)
        return entry.load()
    if path.suffix == ".npz":
        return arrays.load_arrays(path, allow_missing_classes)
    seen = "is a file, but no .npz file" if exists(path) else "is neither a known name nor a folder"
    known = f"one of {', '.join(DATASETS)}, a folder of images or a .npz file"
    meant = None if exists(path) else near(name_or_path, DATASETS)
    raise InputError(f"{shown(name_or_path)} {seen}: write {known}{'' if meant is None else f'; is {meant} meant?'}")


def has_images(name_or_path: str) -> bool:
    """Whether a data set is a folder of images; it need not exist.

    Args:
        name_or_path: As for `open_data`.

    Example:
        >>> has_images("pacs"), has_images("digits")
        (True, False)
    """
    name = find_data_set(name_or_path)
    return is_folder(expand(Path(name_or_path))) if name is None else DATASETS[name].layout is not None


def list_data(
    name_or_path: str, *, data_dir: Path | None = None, split_files: Path | None = None, duplicates: Path | None = None
) -> folder.ImageIndex:
    """Lists the images of a layout or a folder without reading them.

    Args:
        name_or_path: name of a layout, or a folder of images.
        data_dir: as for `open_data`, as are the others.
        split_files: a folder of split files or one of them.
        duplicates: for DomainNet, the list of images to leave out.

    Returns:
        ImageIndex.

    Raises:
        InputError: as `open_data`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("photo/cat", "photo/dog", "sketch/cat", "sketch/dog"):
        ...         Path(root, name).mkdir(parents=True)
        ...         Path(root, name, "1.jpg").touch()
        ...     list_data(root).domain_names
        ('photo', 'sketch')
    """
    layout = domainbed.find_layout(name_or_path)
    if layout is None:
        if duplicates is not None:
            raise InputError(
                f"{shown(name_or_path)} has no list of duplicates, got {shown(duplicates)}; only DomainNet has one"
            )
        _check_data_dir(name_or_path, data_dir)
        listing = folder.list_images(expand(Path(name_or_path)))
    elif data_dir is None:
        here = f"; for the folder of that name here write ./{name_or_path}" if is_folder(Path(name_or_path)) else ""
        raise InputError(
            f"{layout.name} is read from a data directory: give --data-dir DIR (data_dir in Python), the folder that "
            f"holds {layout.folder}/; {domainbed.HOW_TO_GET}{here}"
        )
    else:
        listing = domainbed.list_layout(layout.name, expand(data_dir), duplicates)
    return listing if split_files is None else splits.read_split_files(split_files, listing)


def _check_data_dir(name_or_path: str, data_dir: Path | None) -> None:
    if data_dir is not None:
        takers = ", ".join(domainbed.layouts())
        raise InputError(f"--data-dir {shown(data_dir)} is for {takers}, but the data is {shown(name_or_path)}")


def _check_complete(name_or_path: str, allow_missing_classes: bool) -> None:
    if allow_missing_classes:
        raise InputError(f"{shown(name_or_path)} is not an .npz file: leave out --allow-missing-classes")


def expand(path: Path) -> Path:
    """A path with `~` replaced by a user's folder.

    Raises:
        InputError: If there is no such user.

    Example:
        >>> expand(Path("data")).name
        'data'
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise InputError(f"cannot read {shown(path)}: {reason(error)}; write ./{shown(path)} for that name") from error


def check_apart(out: Path, listing: folder.ImageIndex) -> None:
    """Checks that results are not written among the images, where figures would be taken for images.

    Args:
        out: Folder that results will be written to; it need not exist.
        listing: Images of the data set.

    Raises:
        InputError: If it is a class folder, or a folder within one that has images in it.

    Example:
        >>> images = (((Path("toy/photo/cat/1.jpg"), 0),),)
        >>> listing = folder.ImageIndex(Path("toy"), "toy", ("photo",), ("cat",), images)
        >>> check_apart(Path("toy/results"), listing)
        >>> check_apart(Path("toy/photo/cat"), listing)
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: --out toy/photo/cat holds images of toy: give another folder
    """
    # Root and domains hold no images themselves.
    least = len(listing.root.parts) + 2
    parents = {path.parent for path in listing.paths}
    inside = {above for path in parents for above in (path, *path.parents) if len(above.parts) >= least}
    if os.path.realpath(out) in {os.path.realpath(path) for path in inside}:
        raise InputError(f"--out {shown(out)} holds images of {listing.name}: give another folder")


def pixel_bytes(listing: folder.ImageIndex, image_size: int) -> int:
    """Memory of the scaled images, one byte for each colour of a pixel.

    Example:
        >>> images = (((Path("toy/photo/cat/1.jpg"), 0), (Path("toy/photo/cat/2.jpg"), 0)),)
        >>> pixel_bytes(folder.ImageIndex(Path("toy"), "toy", ("photo",), ("cat",), images), image_size=10)
        600
    """
    return sum(map(len, listing.images)) * image_size**2 * 3


def stream_images(listing: folder.ImageIndex, image_size: int) -> StreamedImages:
    """The data set of `folder.load_images`, its images left in their files.

    Args:
        listing: as from `list_data`.
        image_size: S, pixels on each side to which images are scaled.

    Returns:
        The data set.

    Raises:
        InputError: if the size is not positive.

    Example:
        >>> images = (((Path("toy/photo/cat/1.jpg"), 0), (Path("toy/photo/cat/2.jpg"), 0)),)
        >>> data = stream_images(folder.ImageIndex(Path("toy"), "toy", ("photo",), ("cat",), images), image_size=10)
        >>> data.inputs.shape, data.labels.tolist()
        ((2, 10, 10, 3), [0, 0])
    """
    if image_size < 1:
        raise InputError(f"--image-size must be at least 1, got {image_size}")
    sizes = [len(domain) for domain in listing.images]
    return StreamedImages(
        name=listing.name,
        inputs=cast(Any, jax.ShapeDtypeStruct((sum(sizes), image_size, image_size, 3), np.uint8)),
        labels=np.array([label for domain in listing.images for _, label in domain], np.int32),
        domain_ids=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        domain_names=listing.domain_names,
        class_names=listing.class_names,
        validation=None if listing.validation is None else np.concatenate(listing.validation).astype(bool),
        notes=listing.notes,
        listing=listing,
        image_size=image_size,
    )


def fingerprint(data: Domains) -> str:
    """A hash of the data that a run uses: its arrays and the names of its domains and classes.

    The name of the data set is not part of it, so that a folder may be moved and renamed. Of images that stay in their
    files it takes the files' names and sizes instead of the pixels; of cached features, where they come from, since
    another machine rounds differently.

    Args:
        data: any.

    Returns:
        16 hexadecimal digits.

    Raises:
        InputError: if a file of streamed images is gone.

    Example:
        >>> from dataclasses import replace
        >>> from disam_jax.dg.testing import toy
        >>> data = toy()
        >>> fingerprint(data) == fingerprint(replace(data, name="other"))
        True
        >>> fingerprint(data) == fingerprint(replace(data, inputs=data.inputs + 1))
        False
    """
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(data, StreamedImages):
        digest.update(json.dumps([data.image_size, _files(data.listing)]).encode())
    if isinstance(data, CachedFeatures):
        digest.update(data.origin.encode())
    pixels = None if isinstance(data, StreamedImages | CachedFeatures) else data.inputs
    values = (pixels, data.labels, data.domain_ids, data.validation)
    shapes = [None if value is None else (value.dtype.str, value.shape) for value in values]
    digest.update(json.dumps([data.domain_names, data.class_names, shapes]).encode())
    for value in values:
        if value is not None:
            digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def _files(listing: folder.ImageIndex) -> list[tuple[str, int]]:
    """Name and size of every image, the names from the data set's folder on."""
    try:
        return [(path.relative_to(listing.root).as_posix(), path.stat().st_size) for path in listing.paths]
    except OSError as error:
        raise InputError(f"cannot read image {shown(error.filename)}: {reason(error)}") from error
