"""A checkout as a folder of images or an npz file that `--data` reads."""

import hashlib
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from disam_jax.dg.data.images import read_image
from disam_jax.dg.data.sources.registry import PlacedImage, Source
from disam_jax.dg.data.walk import is_image
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import reason, shown

# Of JPEG, for images that are scaled.
QUALITY = 88

Counts = Mapping[str, Mapping[str, int]]


def images_in(folder: Path) -> list[Path]:
    """The images in a folder, sorted by name.

    Args:
        folder: Folder of a checkout.

    Returns:
        Paths.

    Raises:
        InputError: If there is no such folder.
    """
    try:
        return sorted(path for path in folder.iterdir() if is_image(path.name))
    except OSError as error:
        raise InputError(f"the repository is not laid out as expected: {shown(folder)}: {reason(error)}") from error


def images_by_class(folders: Mapping[str, Path], class_names: Sequence[str]) -> Iterator[PlacedImage]:
    """The images of a checkout that has a folder for each class in the folder of each domain.

    Args:
        folders: Folder of each domain.
        class_names: Names of the classes, which are those of their folders.

    Yields:
        The images, domain by domain and class by class.

    Raises:
        InputError: If a folder is missing.
    """
    for domain, folder in folders.items():
        for name in class_names:
            yield from (PlacedImage(path, domain, name) for path in images_in(folder / name))


def labelled(inputs: Mapping[str, np.ndarray], labels: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Arrays as `load_arrays` reads them.

    Args:
        inputs: For each domain, [N_d, ...].
        labels: For each domain, the names of the classes of its N_d examples.

    Returns:
        `x` [N, ...], `y` [N] and `domain` [N], names of classes and domains as strings.

    Example:
        >>> made = labelled({"a": np.zeros((2, 3)), "b": np.ones((1, 3))}, {"a": ["no", "yes"], "b": ["no"]})
        >>> made["x"].shape, made["y"].tolist(), made["domain"].tolist()
        ((3, 3), ['no', 'yes', 'no'], ['a', 'a', 'b'])
    """
    return {
        "x": np.concatenate([*inputs.values()]),
        "y": np.array([label for each in labels.values() for label in each]),
        "domain": np.array([domain for domain, each in labels.items() for _ in each]),
    }


def write_data_set(
    name: str,
    source: Source,
    checkout: Path,
    folder: Path,
    image_size: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> str:
    """Writes a data set, as files `domain/class/image` or as one npz file.

    Args:
        name: Name of the source; the npz file is called after it.
        source: What it is.
        checkout: Files of the source's commit.
        folder: Folder to write to, empty.
        image_size: Pixels on each side to which images are scaled with Lanczos' filter, to be JPEG files; None to copy
            them as they are.
        on_progress: Called with the number of images written and their total.

    Returns:
        Path within `folder` of what `--data` reads; "." for the folder itself.

    Raises:
        InputError: If a file of the checkout is missing or cannot be read, or the counts differ from the source's.
        OSError: If a file cannot be written.
    """
    if source.images is not None:
        images = list(source.images(checkout))
        check_counts(name, count((image.domain, image.class_name) for image in images), source.counts)
        _write_images(images, folder, image_size, on_progress)
        return "."
    assert source.arrays is not None
    arrays = source.arrays(checkout)
    check_counts(name, count(zip(arrays["domain"].tolist(), arrays["y"].tolist(), strict=True)), source.counts)
    file = f"{name}.npz"
    np.savez_compressed(folder / file, x=arrays["x"], y=arrays["y"], domain=arrays["domain"])
    return file


def count(examples: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """The number of examples of each class in each domain.

    Args:
        examples: Domain and class of each example.

    Returns:
        Numbers by domain and class.

    Example:
        >>> count([("a", "cat"), ("a", "cat"), ("b", "dog")])
        {'a': {'cat': 2}, 'b': {'dog': 1}}
    """
    counts: dict[str, dict[str, int]] = {}
    for (domain, name), number in Counter(examples).items():
        counts.setdefault(domain, {})[name] = number
    return counts


def check_counts(name: str, found: Counts, expected: Counts) -> None:
    """Checks that each class of each domain has as many examples as it must have.

    Args:
        name: Name of the source.
        found: Numbers by domain and class.
        expected: The source's numbers.

    Raises:
        InputError: If some differ. The first of them is named.

    Example:
        >>> check_counts("toy", {"a": {"cat": 2}}, {"a": {"cat": 2}})
        >>> check_counts("toy", {"a": {"cat": 2}}, {"a": {"cat": 3}})
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: toy: domain a has 2 examples of class cat, expected 3; nothing is written
    """
    pairs = [(domain, each) for counts in (expected, found) for domain in counts for each in counts[domain]]
    wrong = [
        (domain, each, found.get(domain, {}).get(each, 0), expected.get(domain, {}).get(each, 0))
        for domain, each in dict.fromkeys(pairs)
        if found.get(domain, {}).get(each, 0) != expected.get(domain, {}).get(each, 0)
    ]
    if wrong:
        domain, each, there, wanted = wrong[0]
        more = f" (and {len(wrong) - 1} more counts differ)" if len(wrong) > 1 else ""
        raise InputError(
            f"{name}: domain {shown(domain)} has {there} examples of class {shown(each)}, expected {wanted}{more}; "
            "nothing is written"
        )


def _write_images(
    images: Sequence[PlacedImage],
    folder: Path,
    image_size: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    places: dict[str, Path] = {}
    for path, domain, name in images:
        file = path.name if image_size is None else f"{path.stem}.jpg"
        first = places.setdefault(f"{domain}/{name}/{file}", path)
        if first != path:
            raise InputError(f"{shown(first)} and {shown(path)} would both be {domain}/{name}/{shown(file)}")
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)

    def write(place: str) -> None:
        if image_size is None:
            shutil.copyfile(places[place], folder / place)
        else:
            _write_scaled(places[place], folder / place, image_size)

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for number, _ in enumerate(pool.map(write, places), 1):
            if on_progress is not None:
                on_progress(number, len(places))
    finally:
        pool.shutdown(cancel_futures=True)


def _write_scaled(path: Path, place: Path, size: int) -> None:
    from PIL import Image

    image = Image.fromarray(read_image(path, size, "lanczos"))
    image.save(place, "JPEG", quality=QUALITY, optimize=True)


def tree_checksum(folder: Path) -> str:
    """SHA-256 of all files in a folder: of the list that `sha256sum` prints for them, sorted by their paths.

    An npz file counts as a folder of its arrays, because the bytes of a compressed file depend on who compresses it.

    Args:
        folder: Folder with files, also in folders.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a").write_bytes(b"1")
        ...     tree_checksum(Path(folder)) == _sha256(f"{_sha256(b'1')}  a{chr(10)}".encode())
        True
    """
    digests = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                digests |= {f"{name}/{each}": _sha256(archive.read(each)) for each in archive.namelist()}
        elif path.is_file():
            digests[name] = _sha256(path.read_bytes())
    return _sha256("".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
