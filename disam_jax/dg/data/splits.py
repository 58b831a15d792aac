"""Which examples of a domain train and which validate: drawn with a seed, or given in text files."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.folder import ImageIndex, read_lines
from disam_jax.dg.data.walk import is_visible
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import exists, is_folder, reason, shown

PARTS = {"train": False, "val": True, "crossval": True, "validation": True, "test": None}


class Split(NamedTuple):
    """The rows of a data set, those of each domain with its training examples first.

    With `starts` and `counts` of the data, domain d trains on the rows `order[starts[d] : starts[d] + train_counts[d]]`
    and validates on `order[starts[d] + train_counts[d] : starts[d] + counts[d]]`.

    Attributes:
        order: int32 [N], each of 0..N-1 once.
        train_counts: int32 [D].
    """

    order: np.ndarray
    train_counts: np.ndarray


def whole(data: Domains) -> Split:
    """All examples as training examples: of classes that no run is trained on.

    Example:
        >>> data = Domains("toy", np.zeros((3, 1)), np.zeros(3, int), np.array([0, 0, 1]), ("photo", "art"), ("dog",))
        >>> order, train_counts = whole(data)
        >>> order.tolist(), train_counts.tolist()
        ([0, 1, 2], [2, 1])
    """
    return Split(np.arange(len(data.labels), dtype=np.int32), data.counts)


def validates(split: Split, data: Domains) -> np.ndarray:
    """Whether each example is set aside for validation, bool [N].

    Example:
        >>> from disam_jax.dg.data.domains import join_domains
        >>> data = join_domains("toy", [np.zeros((3, 1))], [np.zeros(3, int)], ["photo"], ["dog"])
        >>> validates(Split(np.array([2, 0, 1]), np.array([2])), data).tolist()
        [False, True, False]
    """
    trains = np.arange(len(data.labels)) < (data.starts + split.train_counts)[data.domain_ids]
    found = np.empty(len(data.labels), bool)
    found[split.order] = ~trains
    return found


def split(data: Domains, seed: int, holdout: float = 0.2) -> Split:
    """The split that comes with the data if there is one, else a seeded one.

    Args:
        data: N examples of D domains.
        seed: as for `seeded_split`; not used if `data.validation` is given.
        holdout: as for `seeded_split`; not used if `data.validation` is given.

    Returns:
        Split.

    Raises:
        InputError: as `fixed_split` and `seeded_split`.

    Example:
        >>> data = Domains("toy", np.zeros((10, 1)), np.zeros(10, int), np.zeros(10, int), ("photo",), ("dog",))
        >>> split(data, seed=0, holdout=0.3).train_counts.tolist()
        [7]
    """
    if data.validation is not None:
        return fixed_split(data)
    return seeded_split(data.counts, seed, holdout, data.domain_names)


def seeded_split(
    counts: Sequence[int] | np.ndarray, seed: int, holdout: float = 0.2, names: Sequence[str] | None = None
) -> Split:
    """Splits each domain at random, as DomainBed does.

    The first int(n * holdout) of the n shuffled examples of a domain validate, but at least one; the others train.
    The generator that shuffles domain i is seeded with a hash of (seed, i): the split is DomainBed's for trial seed
    `seed`, index by index, if the domains and images are in its order.

    Args:
        counts: number of examples of each domain, int [D].
        seed: decides the split.
        holdout: fraction of the examples that validate, in (0, 1).
        names: the domains' names for messages; their numbers if None.

    Returns:
        Split.

    Raises:
        InputError: if the fraction is out of range, or a domain has a single example.

    References:
        Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, ICLR 2021 (DomainBed,
        `domainbed/lib/misc.py`: `split_dataset`, `seed_hash`).

    Example:
        >>> order, train_counts = seeded_split([5, 10], seed=0)
        >>> train_counts.tolist(), sorted(order[:5].tolist())
        ([4, 8], [0, 1, 2, 3, 4])
    """
    if not 0.0 < holdout < 1.0:
        raise InputError(f"the holdout fraction must lie between 0 and 1, got {holdout:g}")
    sizes = [int(count) for count in counts]
    labels = [str(place) for place in range(len(sizes))] if names is None else names
    order, train_counts = [], []
    for place, (size, name) in enumerate(zip(sizes, labels, strict=True)):
        if size < 2:
            raise InputError(f"domain {name} has {size} example: at least two are needed, one of them to validate on")
        trains, validates = drawn(size, seed, place, holdout)
        order.append(sum(sizes[:place]) + np.concatenate([trains, validates]))
        train_counts.append(len(trains))
    return Split(np.concatenate(order).astype(np.int32), np.array(train_counts, np.int32))


def drawn(size: int, seed: int, place: int, holdout: float) -> tuple[np.ndarray, np.ndarray]:
    """The rows of one domain that train and those that validate, as `seeded_split` draws them.

    Args:
        size: Number of its examples, at least 2.
        seed: As for `seeded_split`.
        place: Number of the domain among all.
        holdout: As for `seeded_split`.

    Returns:
        int arrays, which together hold each of 0..size - 1 once.

    Example:
        >>> [len(rows) for rows in drawn(10, seed=0, place=1, holdout=0.2)]
        [8, 2]
    """
    held = min(max(1, int(size * holdout)), size - 1)
    # The legacy generator, because its numbers are DomainBed's.
    shuffled = np.random.RandomState(seed_hash(int(seed), place)).permutation(size)
    return shuffled[held:], shuffled[:held]


def seed_hash(*args: int | str) -> int:
    """DomainBed's seed for a tuple of values: md5 of its text, modulo 2**31.

    Example:
        >>> seed_hash(0, 1)
        1514274641
    """
    digest = hashlib.md5(str(args).encode("utf-8"), usedforsecurity=False).hexdigest()
    return int(digest, 16) % 2**31


def fixed_split(data: Domains) -> Split:
    """The split that comes with the data; the rows of each part in their order.

    Args:
        data: with `validation`.

    Returns:
        Split.

    Raises:
        InputError: if a domain has nothing to train or to validate on.
        ValueError: if the data has no `validation`.

    Example:
        >>> flags = np.array([True, False, False])
        >>> data = Domains("toy", np.zeros((3, 1)), np.zeros(3, int), np.zeros(3, int), ("photo",), ("dog",), flags)
        >>> order, train_counts = fixed_split(data)
        >>> order.tolist(), train_counts.tolist()
        ([1, 2, 0], [2])
    """
    if data.validation is None:
        raise ValueError(f"{data.name} has no validation flags")
    held = np.bincount(data.domain_ids[data.validation], minlength=len(data.domain_names))
    train_counts = (data.counts - held).astype(np.int32)
    for name, training, validating in zip(data.domain_names, train_counts, held, strict=True):
        if training == 0 or validating == 0:
            part = "train" if training == 0 else "validate"
            raise InputError(f"domain {name}: the split leaves nothing to {part} on")
    # Stable: by domain, then training first, then by row.
    order = np.lexsort((data.validation, data.domain_ids))
    return Split(order.astype(np.int32), train_counts)


def small_domains(data: Domains, split: Split, per_domain: int) -> list[str]:
    """Says which domains have fewer training examples than a batch draws of them.

    They are trained on all the same: batches are drawn with replacement, as in DomainBed, so that theirs repeat some
    examples.

    Args:
        data: the data set.
        split: its split.
        per_domain: how many examples of each domain are in a batch.

    Returns:
        A sentence for each such domain.

    Example:
        >>> data = Domains("toy", np.zeros((3, 1)), np.zeros(3, int), np.zeros(3, int), ("photo",), ("dog",))
        >>> len(small_domains(data, whole(data), per_domain=3)), len(small_domains(data, whole(data), per_domain=4))
        (0, 1)
    """
    return [
        f"Domain {name} has {count} training examples, fewer than the {per_domain} that a batch draws of it: its "
        "batches repeat examples."
        for name, count in zip(data.domain_names, split.train_counts, strict=True)
        if count < per_domain
    ]


def read_split_files(paths: Path | Sequence[Path], listing: ImageIndex) -> ImageIndex:
    """Marks the images that split files set aside for validation.

    A split file is a text file of one image a line, `domain/class/image.jpg` or that with a label after a space, as
    PACS has them. What a file is for is the last of these words in its name, as in `art_painting_crossval_kfold.txt`:
    train; val, crossval or validation; test. Test lists are not read, because of a held-out domain everything is
    measured, and so are other files of a folder. The domain is read from the lines.

    Lines may name images that the listing leaves out. Folders before the domain's are dropped, and `.png` may stand
    for `.jpg` and so on, and letters be in another Unicode form, if the class has one image of that name only: many
    copies of a data set were saved anew.
    Labels may count from 0 or 1 or in any order, but must agree with the class folders.

    Args:
        paths: a folder of split files, or the files.
        listing: the images.

    Returns:
        The listing with `validation`.

    Raises:
        InputError: if a line names no image of the listing, an image is in two places or in none, a label does not
            agree with a class folder, or there is no list for training or none for validation.

    Example:
        >>> import tempfile
        >>> images = (((Path("toy/photo/cat/1.jpg"), 0), (Path("toy/photo/cat/2.jpg"), 0)),)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, number in (("photo_train.txt", 1), ("photo_val.txt", 2)):
        ...         length = Path(folder, name).write_text(f"photo/cat/{number}.jpg")
        ...     read_split_files(Path(folder), ImageIndex(Path("toy"), "toy", ("photo",), ("cat",), images)).validation
        ((False, True),)
    """
    files = _split_files(paths)
    index = _index(listing)
    validation: dict[Path, bool] = {}
    first: dict[Path, str] = {}
    label_of: dict[str, tuple[str, str]] = {}
    for file, validates in files:
        for number, line in read_lines(file):
            where = f"{shown(file)} line {number}"
            name, label = _parse(line)
            image, class_name = _find(name, index, listing, where)
            if image in first:
                raise InputError(f"{where}: {shown(name)} is listed twice, first in {first[image]}")
            first[image], validation[image] = where, validates
            if label is not None:
                _check_label(label, class_name, label_of, where)
    for domain_name, domain in zip(listing.domain_names, listing.images, strict=True):
        absent = [path for path, _ in domain if path not in validation]
        if absent:
            raise InputError(
                f"{len(absent)} of {len(domain)} images of {domain_name} are in no split file, "
                f"the first {shown(absent[0])}"
            )
    flags = tuple(tuple(validation[path] for path, _ in domain) for domain in listing.images)
    return replace(listing, validation=flags)


def _split_files(paths: Path | Sequence[Path]) -> list[tuple[Path, bool]]:
    if isinstance(paths, Path):
        if not exists(paths):
            raise InputError(f"no such folder of split files: {shown(paths)}")
        given = _texts(paths) if is_folder(paths) else [paths]
    else:
        given = list(paths)
    parts = []
    for path in given:
        words = [word for word in re.split(r"[^a-z0-9]+", path.stem.casefold()) if word in PARTS]
        parts.append(PARTS[words[-1]] if words else None)
    for validates, what in ((False, "train"), (True, "val")):
        if validates not in parts:
            raise InputError(f"no split file named like DOMAIN_{what}.txt among {_short(given) or shown(paths)}")
    return [(path, part) for path, part in zip(given, parts, strict=True) if part is not None]


def _texts(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".txt" and is_visible(path.name))
    except OSError as error:
        raise InputError(f"cannot list {shown(folder)}: {reason(error)}") from error


def _short(paths: Sequence[Path]) -> str:
    names = [shown(path) for path in paths]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Index(NamedTuple):
    """Each image and its class by its path from the domain on.

    Attributes:
        exact: by path.
        stems: By path without suffix, in NFC; None where two images share one.
    """

    exact: dict[str, tuple[Path, str]]
    stems: dict[str, tuple[Path, str] | None]


def _index(listing: ImageIndex) -> Index:
    index = Index({}, {})
    for domain_name, domain in zip(listing.domain_names, listing.images, strict=True):
        for path, label in domain:
            _add(index, Path(domain_name, *path.relative_to(listing.root).parts[1:]), path, listing.class_names[label])
    # Lists made before the duplicates were left out may name them.
    for path in listing.left_out:
        relative = path.relative_to(listing.root)
        _add(index, relative, path, relative.parts[1])
    return index


def _add(index: Index, relative: Path, path: Path, class_name: str) -> None:
    stem = _stem(relative)
    index.exact[relative.as_posix()] = (path, class_name)
    index.stems[stem] = None if stem in index.stems else (path, class_name)


def _stem(relative: Path) -> str:
    return _composed(relative.with_suffix("").as_posix())


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _parse(line: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.*\S)\s+(\d+)", line)
    return (line, None) if match is None else (match[1], int(match[2]))


def _find(name: str, index: Index, listing: ImageIndex, where: str) -> tuple[Path, str]:
    parts = name.replace("\\", "/").split("/")
    domain_names = [_composed(domain) for domain in listing.domain_names]
    for start in (place for place, part in enumerate(parts) if _composed(part) in domain_names):
        relative = Path(*parts[start:])
        entry = index.exact.get(relative.as_posix()) or index.stems.get(_stem(relative))
        if entry is not None:
            return entry
    raise InputError(f"{where}: no image {shown(name)} in {shown(listing.root)}")


def _check_label(label: int, class_name: str, label_of: dict[str, tuple[str, str]], where: str) -> None:
    """Each class has one label and each label one class; `label_of` keeps both, with the place of the first."""
    for key, value in ((f"class {class_name}", f"label {label}"), (f"label {label}", f"class {class_name}")):
        before, place = label_of.setdefault(key, (value, where))
        if before != value:
            raise InputError(f"{where}: {key} with {value}, but with {before} in {place}")
