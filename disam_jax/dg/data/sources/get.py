"""Fetches a data set and writes it as `--data` reads it."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from disam_jax.dg.data.load import expand
from disam_jax.dg.data.sources.checkout import TIME_LIMIT, fetch_commit
from disam_jax.dg.data.sources.convert import tree_checksum, write_data_set
from disam_jax.dg.data.sources.registry import SOURCES, Source, find_source
from disam_jax.dg.errors import InputError
from disam_jax.dg.ranges import check_range
from disam_jax.dg.reading import exists, is_folder, reason, shown
from disam_jax.dg.unfinished import remove_unfinished, unfinished_folder


class Fetched(NamedTuple):
    """What was written.

    Attributes:
        name: Name of the source.
        source: What is known of it; the counts are those that were found.
        data: What to give as `--data`.
        checksum: `convert.tree_checksum` of what was written.
        expected: The same of what the source is known to be; empty if nothing is known of it.
    """

    name: str
    source: Source
    data: Path
    checksum: str
    expected: str


def get_data_set(
    name: str,
    to: Path,
    *,
    image_size: int | None = None,
    url: str | None = None,
    cache: Path | None = None,
    on_fetch: Callable[[str], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    time_limit: float = TIME_LIMIT,
) -> Fetched:
    """Fetches a data set from its Git repository and writes it into a folder, whole or not at all.

    Args:
        name: Name of an entry of `SOURCES`, in upper or lower case.
        to: Folder to write to, which must be empty or not exist.
        image_size: Pixels on each side to which images are scaled; by default they are copied as they are.
        url: Address or path of another copy of the repository; it must have the same commit.
        cache: Folder in which fetched commits are kept; by default `default_cache()`.
        on_fetch: Called with a line before something is fetched.
        on_progress: Called with the number of images written and their total.
        time_limit: Seconds after which a fetch is given up.

    Returns:
        Fetched.

    Raises:
        InputError: If there is no such name, the commit cannot be fetched, a file or a count is not as expected, or
            nothing can be written.

    Example:
        >>> get_data_set("cifar", Path("data"))
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: no data set cifar to fetch: write PACS, OfficeCaltech10, RSSCN7, heart, reviews
    """
    name = find_source(name)
    source = SOURCES[name]
    if image_size is not None:
        check_range("image_size", image_size)
        if source.images is None:
            raise InputError(f"{name} is a table and has no images: leave out --image-size")
    to = expand(to)
    where = source.url if url is None else _address(url)
    place = (default_cache() if cache is None else expand(cache).absolute()) / f"{name}-{source.commit}"

    def say_fetch() -> None:
        if on_fetch is not None:
            on_fetch(f"fetching {name} from {where}, about {source.megabytes} MB, into {place.parent}")

    with _new_folder(to) as folder:
        checkout = fetch_commit(where, source.commit, place, time_limit, say_fetch)
        data = write_data_set(name, source, checkout, folder, image_size, on_progress)
        checksum = tree_checksum(folder)
        expected = source.checksum if image_size is None else ""
        if expected and checksum != expected and not source.depends_on:
            raise InputError(
                f"{name}: what was made of commit {source.commit} has the SHA-256 {checksum}, expected {expected}; "
                f"nothing is written. Remove {shown(place)} and try again"
            )
    return Fetched(name, source, to / data, checksum, expected)


def default_cache() -> Path:
    """The folder for fetched commits: `disam-jax` in the user's cache folder, `$XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        InputError: If the user has no folder.

    Example:
        >>> default_cache().name
        'disam-jax'
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else expand(Path("~/.cache"))) / "disam-jax"


def _address(url: str) -> str:
    """An address as it is, and a path from the root on, which git cannot take for an address."""
    path = expand(Path(url))
    if exists(path):
        return str(path.absolute())
    # As in https://host/path and user@host:path.
    if "://" in url or ("@" in url and ":" in url):
        return url
    raise InputError(f"--source {shown(url)} is neither there nor an address: write a folder or https://...")


@contextlib.contextmanager
def _new_folder(to: Path) -> Iterator[Path]:
    """A folder to write to, whose content moves to `to` at the end."""
    new = not exists(to)
    if not new and not is_folder(to):
        raise InputError(f"--to {shown(to)} is not a folder: give another name")
    try:
        to.mkdir(parents=True, exist_ok=True)
        remove_unfinished(to)
        if next(to.iterdir(), None) is not None:
            raise InputError(f"--to {shown(to)} is not empty: give a new folder, or move away what is in it")
        with unfinished_folder(to) as folder:
            yield folder
            for path in sorted(folder.iterdir()):
                os.replace(path, to / path.name)
    except OSError as error:
        raise InputError(f"cannot write to {shown(to)}: {reason(error)}") from error
    finally:
        if new:
            # Nothing is removed that has something in it.
            with contextlib.suppress(OSError):
                to.rmdir()
