"""Which files in a folder of domains and classes are its images: every file once, in its own class.

All readers of image folders list them here. What is hidden and what systems and programs leave behind is passed over
at every level, and so are folders of results. A link is followed if it leads out of the data set, to another disk or
a store of files. One that leads back into it is passed over, because what is there is counted where it lies.
"""

import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import is_folder, reason, shown
from disam_jax.dg.sweep.results_folder import MANIFEST, RESULTS

# Files that only a folder of results has.
MARKS = frozenset({RESULTS, MANIFEST})

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# What Windows, macOS, network drives and Python leave in folders without a dot before it; in lower case.
LEFTOVERS = frozenset(
    (
        *(
            "$recycle.bin",
            "desktop.ini",
            "ehthumbs.db",
            "found.000",
            "recycler",
            "system volume information",
            "thumbs.db",
        ),
        *("thumbs.db", "__macosx", "network trash folder", "temporary items"),
        *("#recycle", "#snapshot", "@eadir", "@recently-snapshot", "@recycle", "@tmp", "lost+found"),
        "__pycache__",
    )
)


class Entry(NamedTuple):
    """A file or folder in a folder.

    Attributes:
        path: Where it is listed.
        real: Where it lies, without links on the way.
        is_link: Whether it is a link.
        is_folder: Whether it is a folder or a link to one.
        is_file: Whether it is a regular file or a link to one.
    """

    path: Path
    real: str
    is_link: bool
    is_folder: bool
    is_file: bool


class Places(NamedTuple):
    """The folders of a data set, by which links that lead back into it are recognised.

    Attributes:
        folders: Where they lie, without links on the way.
        around: These and all folders that they lie in.
    """

    folders: frozenset[str]
    around: frozenset[str]

    def has(self, real: str) -> bool:
        """Whether a place is one of the folders or lies in one, in nothing that is passed over."""
        below, path = [], real
        while path not in self.folders:
            path, name = os.path.split(path)
            if not name:
                return False
            below.append(name)
        return all(map(is_visible, below))

    def lead_back(self, real: str) -> bool:
        """Whether a place lies in the data set or the data set in it."""
        return real in self.around or self.has(real)


class ClassImages(NamedTuple):
    """The images of one class in one domain.

    Attributes:
        images: Paths, sorted by folder and name.
        left_out: Links to images that are counted elsewhere.
    """

    images: tuple[Path, ...]
    left_out: tuple[Path, ...]


def places(folders: Iterable[Path]) -> Places:
    """The places of some folders.

    Example:
        >>> found = places([Path("/data/photo")])
        >>> found.has("/data/photo/cat"), found.has("/data/photo/.git/x"), found.lead_back("/data"), found.has("/data")
        (True, False, True, False)
    """
    reals = frozenset(os.path.realpath(folder) for folder in folders)
    around = set(reals)
    for real in reals:
        while (real := os.path.dirname(real)) not in around:
            around.add(real)
    return Places(reals, frozenset(around))


def is_visible(name: str) -> bool:
    """Whether a file or folder of this name counts: it is not hidden and no usual leftover.

    Example:
        >>> [is_visible(name) for name in ("cat", ".ipynb_checkpoints", "._1.jpg", "@eaDir", "Thumbs.db")]
        [True, False, False, False, False]
    """
    return not name.startswith(".") and name.casefold() not in LEFTOVERS


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image.

    Example:
        >>> [is_image(name) for name in ("1.JPG", "._1.jpg", "notes.txt")]
        [True, False, False]
    """
    return is_visible(name) and name.lower().endswith(SUFFIXES)


def subfolders(folder: Path, data: Places | None = None) -> list[Path]:
    """The folders in a folder that can be domains or classes, sorted by name.

    Args:
        folder: Folder to list.
        data: Places of the data set, into which no link may lead back; by default the folder itself.

    Returns:
        Paths, without what is hidden or left over, folders of results, and links back into the data set.

    Raises:
        InputError: If it cannot be listed or has a link that leads nowhere.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("sketch", "photo", ".hidden"):
        ...         Path(folder, name).mkdir()
        ...     [path.name for path in subfolders(Path(folder))]
        ['photo', 'sketch']
    """
    known = places([folder]) if data is None else data
    entries = _entries(folder, os.path.realpath(folder))
    return [entry.path for entry in entries if entry.is_folder and _why_passed_over(entry, known) is None]


def why_passed_over(folder: Path, data: Places) -> str | None:
    """Says why `subfolders` leaves out a folder.

    Args:
        folder: Path of a folder, which need not exist.
        data: Places of the data set.

    Returns:
        The end of a sentence that begins with the folder's name; None if it is not there or not left out.

    Example:
        >>> why_passed_over(Path("nothing here"), places([Path(".")])) is None
        True
    """
    for entry in _entries(folder.parent, os.path.realpath(folder.parent)) if is_folder(folder.parent) else ():
        if entry.path.name == folder.name and entry.is_folder:
            return _why_passed_over(entry, data)
    return None


def class_images(folder: Path) -> list[Path]:
    """The images in a folder and the folders within, in the order of torchvision's ImageFolder.

    Args:
        folder: Folder of one class.

    Returns:
        Paths, each file once.

    Raises:
        InputError: As `images_of_classes`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("2.PNG", "1.jpg", "notes.txt"):
        ...         Path(folder, name).touch()
        ...     [path.name for path in class_images(Path(folder))]
        ['1.jpg', '2.PNG']
    """
    (found,) = images_of_classes([folder], places([folder]))
    return list(found.images)


def all_images(folder: Path) -> list[Path]:
    """The images in a folder and the folders within, whatever these are called, in the order of `class_images`.

    Args:
        folder: Folder of images.

    Returns:
        Paths, each file once.

    Raises:
        InputError: If there is none, and as `images_of_classes`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "cat").mkdir()
        ...     Path(folder, "cat", "1.jpg").touch()
        ...     [path.name for path in all_images(Path(folder))]
        ['1.jpg']
    """
    if next(_walk(folder, places([folder])), None) is None:
        raise InputError(f"{shown(folder)} has no image ({', '.join(SUFFIXES)})")
    return class_images(folder)


def images_of_classes(classes: Sequence[Path], data: Places) -> list[ClassImages]:
    """The images of all classes of all domains.

    A file is counted once. A link to an image or a folder that belongs to the data set is passed over, wherever in
    the data set it leads; of several links in one class to one image outside the data set, the first counts. Hard
    links are files of their own: programs that save space make them of equal images.

    Args:
        classes: Folders of the classes of all domains.
        data: Places of the data set and its domains.

    Returns:
        For each class its images.

    Raises:
        InputError: If a folder cannot be listed, a class has no image, an image is linked to from two classes, a link
            leads nowhere, or something that is no file has an image's name.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("cat", "dog"):
        ...         Path(root, name).mkdir()
        ...         Path(root, name, "1.jpg").touch()
        ...     Path(root, "cat", "dogs").symlink_to(Path(root, "dog"))
        ...     found = images_of_classes([Path(root, "cat"), Path(root, "dog")], places([Path(root)]))
        >>> [len(each.images) for each in found]
        [1, 1]
    """
    first: dict[str, Path] = {}
    for folder in classes:
        same = first.setdefault(os.path.realpath(folder), folder)
        if same is not folder:
            raise InputError(f"{shown(same)} and {shown(folder)} are the same folder: remove one of the links")
    of_classes = places(classes)
    everything = Places(data.folders | of_classes.folders, data.around | of_classes.around)
    taken: dict[str, Path] = {}
    return [_images_of_class(folder, of_classes, everything, taken) for folder in classes]


def _images_of_class(folder: Path, classes: Places, data: Places, taken: dict[str, Path]) -> ClassImages:
    """`taken` has the images outside of all classes that other classes link to."""
    start = os.path.join(os.path.realpath(folder), "")
    images: list[Path] = []
    left_out: list[Path] = []
    own: set[str] = set()
    outside: dict[str, Path] = {}
    files = sorted(_walk(folder, data), key=lambda file: (str(file.path.parent), file.path.name))
    for file in files:
        if file.real in own or (file.is_link and is_image(os.path.basename(file.real)) and classes.has(file.real)):
            left_out.append(file.path)
            continue
        if file.real in taken:
            raise InputError(
                f"{shown(taken[file.real])} and {shown(file.path)} are the same file: an image belongs to one domain "
                "and one class; remove one of the links"
            )
        own.add(file.real)
        # Where no link led on the way, no other class can lead to it: see `_why_passed_over`.
        if file.real != start + str(file.path)[len(str(folder)) + 1 :]:
            outside[file.real] = file.path
        images.append(file.path)
    if not images:
        links = f"no image of its own, only {len(left_out)} links to others" if left_out else "no image"
        raise InputError(f"empty class: {shown(folder)} has {links} ({', '.join(SUFFIXES)})")
    taken |= outside
    return ClassImages(tuple(images), tuple(left_out))


def _walk(folder: Path, data: Places) -> Iterator[Entry]:
    """The files and links with an image's name in a folder and the folders within."""
    start = os.path.realpath(folder)
    seen = {start}
    # Each folder with where it lies and with the places to which links have led on the way there.
    waiting: list[tuple[Path, str, tuple[str, ...]]] = [(folder, start, (start,))]
    while waiting:
        inside, real, linked = waiting.pop()
        entries = _entries(inside, real)
        if inside != folder and any(entry.path.name in MARKS for entry in entries) and is_results(inside):
            continue
        for entry in entries:
            if entry.is_folder:
                back = entry.is_link and (
                    data.lead_back(entry.real) or any(_lies_in(place, entry.real) for place in linked)
                )
                if not back and entry.real not in seen:
                    seen.add(entry.real)
                    waiting.append((entry.path, entry.real, (*linked, entry.real) if entry.is_link else linked))
            elif is_image(entry.path.name):
                if not entry.is_file:
                    raise InputError(
                        f"{shown(entry.path)} has the name of an image, but is not a file (a pipe, socket or device): "
                        "remove it"
                    )
                yield entry


def _lies_in(place: str, folder: str) -> bool:
    return os.path.commonpath([place, folder]) == folder


def _why_passed_over(entry: Entry, data: Places) -> str | None:
    if entry.is_link and data.lead_back(entry.real):
        return f"is a link to {shown(entry.real)}, which belongs to the data set already"
    return f"holds results ({RESULTS})" if not entry.is_link and is_results(entry.path) else None


def is_results(folder: Path) -> bool:
    """Whether a folder holds results of this program and no data.

    Args:
        folder: Folder to look at.

    Returns:
        Whether it, or a folder within, has a results file, and no folder within has images but figures of a report.

    Raises:
        InputError: If it cannot be listed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "runs", "first").mkdir(parents=True)
        ...     Path(folder, "runs", "first", RESULTS).touch()
        ...     is_results(Path(folder, "runs"))
        True
    """
    marked = False
    waiting = [folder]
    while waiting:
        inside = waiting.pop()
        kinds = dict(_scan(inside))
        has_mark = not MARKS.isdisjoint(kinds)
        marked |= has_mark
        # A link to a folder leads to data: results are written to folders of their own.
        linked = any(kind == "link" and os.path.isdir(inside / name) for name, kind in kinds.items())
        if linked or (not has_mark and any(is_image(name) and not _is_figure(name, kinds) for name in kinds)):
            return False
        waiting += [inside / name for name, kind in kinds.items() if kind == "folder"]
    return marked


def _is_figure(name: str, beside: Collection[str]) -> bool:
    """A report has every figure as PNG and as PDF."""
    stem, suffix = os.path.splitext(name)
    return suffix == ".png" and f"{stem}.pdf" in beside


def _entries(folder: Path, real: str) -> list[Entry]:
    """What is visible in a folder, sorted by name; `real` is where the folder lies.

    Raises:
        InputError: If it cannot be listed or has a link that leads nowhere.
    """
    found = []
    for name, kind in sorted(_scan(folder)):
        path = folder / name
        if kind != "link":
            found.append(Entry(path, os.path.join(real, name), False, kind == "folder", kind == "file"))
        elif (linked := _follow(path)) is not None:
            found.append(linked)
    return found


def _scan(folder: Path) -> list[tuple[str, str]]:
    """Name and kind of everything visible in a folder."""
    try:
        with os.scandir(folder) as entries:
            return [(entry.name, _kind(entry)) for entry in entries if is_visible(entry.name)]
    except OSError as error:
        raise InputError(f"cannot list {shown(error.filename or folder)}: {reason(error)}") from error


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "link"
    return (
        "folder" if entry.is_dir(follow_symlinks=False) else "file" if entry.is_file(follow_symlinks=False) else "other"
    )


def _follow(path: Path) -> Entry | None:
    """Where a link leads; None if in a circle that no image can be at the end of."""
    try:
        real = os.path.realpath(path, strict=True)
        mode = os.stat(real).st_mode
    except OSError as error:
        if error.errno == errno.ELOOP and not is_image(path.name):
            return None
        raise InputError(f"{shown(path)} is a link that leads nowhere ({reason(error)}): mend or remove it") from error
    return Entry(path, real, True, stat.S_ISDIR(mode), stat.S_ISREG(mode))
