"""The same batches for images that do not fit into memory: decoded by threads, ahead of time.

Threads and their queue are grain's. The numbers are drawn beforehand, so that no thread waits for the device.
"""

import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from disam_jax.dg.data.batches import Batch, ResumableBatches, arrange
from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.folder import ImageIndex
from disam_jax.dg.data.images import read_image
from disam_jax.dg.data.load import CachedFeatures
from disam_jax.dg.data.sampling import Plan, fingerprint
from disam_jax.dg.data.splits import Split
from disam_jax.dg.errors import InputError

T = TypeVar("T")


class _Ahead(ResumableBatches):
    """Batches that threads make ahead of time.

    Args:
        plan: which examples.
        identity: from `fingerprint`.
        make: makes the batch of a step; no method, since the threads must not keep alive the object whose end is to end
            them.
        threads: number of threads.
        prefetch: number of batches that are made ahead.
    """

    def __init__(self, plan: Plan, identity: str, make: Callable[[int], Batch], threads: int, prefetch: int):
        _check_positive(threads=threads, prefetch=prefetch)
        super().__init__(plan, identity)
        self._make, self._threads, self._prefetch = make, threads, prefetch
        self._ahead: Generator[Batch] | None = None

    def _load(self, step: int) -> Batch:
        return self._make(step)

    def _load_next(self, step: int) -> Batch:
        if self._ahead is None:
            self._ahead = _ahead(self._make, step, len(self), self._threads, self._prefetch)
        try:
            return next(self._ahead)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stops the threads, each after the batch that it is at; the next batch starts them again."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


class StreamingBatches(_Ahead):
    """Batches of images in files, byte by byte those of `MemoryBatches` over `folder.load_images`.

    The batches are numpy arrays. Threads start with the first batch of an iteration and end with the last, at an
    error and with `close`, for which a `with` statement can be used. The rows of all steps are held, 4 bytes each.

    Args:
        listing: the images.
        split: which of them train.
        sources: M indices of domains.
        seed: of the run.
        target: index of the held-out domain.
        per_domain: n.
        steps: number of batches.
        form: "grouped", "flat" or "merged".
        batch_size: B of merged batches.
        image_size: S, pixels on each side to which images are scaled.
        threads: number of threads, each of which decodes a batch at a time.
        prefetch: number of batches that are decoded ahead, M n S S 3 bytes each.

    Raises:
        ValueError: if these do not fit together.
        InputError: when the iteration meets an image that cannot be read.

    References:
        grain, https://github.com/google/grain
    """

    def __init__(
        self,
        listing: ImageIndex,
        split: Split,
        sources: Sequence[int],
        seed: int,
        target: int,
        per_domain: int,
        steps: int,
        form: str = "grouped",
        batch_size: int | None = None,
        *,
        image_size: int = 64,
        threads: int = 4,
        prefetch: int = 8,
    ):
        _check_positive(image_size=image_size)
        counts = np.array([len(domain) for domain in listing.images], np.int32)
        plan = Plan(counts, split, tuple(sources), seed, target, per_domain, steps, form, batch_size)
        images = _Images(listing, image_size)
        shape = (image_size, image_size, 3)
        identity = fingerprint(plan, images.labels, shape, np.uint8, listing.domain_names)
        super().__init__(plan, identity, functools.partial(_batch, images, plan, plan.rows()), threads, prefetch)


class MappedBatches(_Ahead):
    """Grouped or merged batches of activations that stay on disk, those that `MemoryBatches` has of the same arrays.

    Args:
        data: activations, mapped into memory; of their views one is drawn for each example, if there are any.
        split: which of them train.
        sources: M indices of domains.
        seed: of the run.
        target: index of the held-out domain.
        per_domain: n.
        steps: number of batches.
        form: "grouped" or "merged".
        batch_size: B of merged batches.
        threads: number of threads, each of which reads a batch at a time.
        prefetch: number of batches that are read ahead.

    Raises:
        ValueError: if these do not fit together.
    """

    def __init__(
        self,
        data: CachedFeatures,
        split: Split,
        sources: Sequence[int],
        seed: int,
        target: int,
        per_domain: int,
        steps: int,
        form: str = "grouped",
        batch_size: int | None = None,
        *,
        threads: int = 4,
        prefetch: int = 8,
    ):
        plan = Plan(data.counts, split, tuple(sources), seed, target, per_domain, steps, form, batch_size)
        arrays = data.views or (data.inputs,)
        chosen = plan.views(len(arrays))
        identity = fingerprint(plan, data.labels, data.inputs.shape[1:], data.inputs.dtype, data.domain_names)
        make = functools.partial(_mapped_batch, arrays, data.labels, plan, plan.rows(), chosen)
        super().__init__(plan, identity, make, threads, prefetch)


class _Images:
    """The images of a listing by row: domain after domain, as in `Domains`."""

    def __init__(self, listing: ImageIndex, size: int):
        self.paths = listing.paths
        self.labels = np.array([label for domain in listing.images for _, label in domain], np.int32)
        self.size = size

    def read(self, rows: np.ndarray) -> np.ndarray:
        """uint8 [*rows.shape, S, S, 3]."""
        out = np.empty((rows.size, self.size, self.size, 3), np.uint8)
        for place, row in enumerate(rows.reshape(-1)):
            out[place] = read_image(self.paths[row], self.size)
        return out.reshape(*rows.shape, *out.shape[1:])


def _arranged(x: np.ndarray, labels: np.ndarray, plan: Plan, rows: np.ndarray) -> Batch:
    if plan.form == "merged":
        return Batch(x, labels[rows], plan.domains(rows))
    return arrange(x, labels[rows], plan.form)


def _batch(images: _Images, plan: Plan, rows: np.ndarray, step: int) -> Batch:
    return _arranged(images.read(rows[step]), images.labels, plan, rows[step])


def _mapped_batch(
    arrays: Sequence[np.ndarray], labels: np.ndarray, plan: Plan, rows: np.ndarray, chosen: np.ndarray, step: int
) -> Batch:
    rows, chosen = rows[step], chosen[step]
    x = np.empty((*rows.shape, *arrays[0].shape[1:]), arrays[0].dtype)
    for number, array in enumerate(arrays):
        x[chosen == number] = array[rows[chosen == number]]
    return _arranged(x, labels, plan, rows)


def _ahead(make: Callable[[int], T], first: int, last: int, threads: int, prefetch: int) -> Generator[T]:
    """make(first), ..., make(last - 1), in order, computed by threads ahead of time."""
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    iterator = iter(grain.MapDataset.range(first, last).map(make).to_iter_dataset(options))
    try:
        yield from iterator
    except Exception as error:
        cause = _input_error(error)
        if cause is None:
            raise
        # Anew, without what grain adds to the message.
        raise InputError(str(cause)) from cause
    finally:
        iterator.close()


def _input_error(error: BaseException | None) -> InputError | None:
    """The error a user can mend among those that led to an error."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


class Block(NamedTuple):
    """B examples to evaluate, the last ones perhaps filled up.

    Attributes:
        x: [B, ...], float32, or uint8 images; zeros where not valid.
        y: int32 [B]; 0 where not valid.
        valid: bool [B].
    """

    x: np.ndarray
    y: np.ndarray
    valid: np.ndarray


def eval_blocks(
    data: Domains | ImageIndex,
    rows: np.ndarray,
    block: int,
    *,
    image_size: int = 64,
    threads: int = 4,
    prefetch: int = 8,
) -> Iterator[Block]:
    """Given examples in their order, in blocks of one size.

    Args:
        data: in memory, or images in files.
        rows: int [K], of the data, domain after domain.
        block: B.
        image_size: S, pixels on each side to which images from files are scaled; not used for data in memory.
        threads: number of threads that decode images from files.
        prefetch: number of blocks that are decoded ahead.

    Returns:
        Iterator over ceil(K / B) blocks. It can be left early: threads end with it.

    Raises:
        ValueError: if a row does not exist or a number is not positive.
        InputError: when the iteration meets an image that cannot be read.

    Example:
        >>> from disam_jax.dg.data.domains import join_domains
        >>> data = join_domains("toy", [np.ones((3, 2))] * 2, [np.array([0, 1, 2])] * 2, "ab", "xyz")
        >>> [(b.y.tolist(), b.valid.tolist()) for b in eval_blocks(data, np.array([2, 4, 5]), block=2)]
        [([2, 1], [True, True]), ([2, 0], [True, False])]
    """
    _check_positive(block=block, image_size=image_size, threads=threads, prefetch=prefetch)
    rows = np.asarray(rows)
    if isinstance(data, ImageIndex):
        images = _Images(data, image_size)
        read, labels = images.read, images.labels
    else:
        read, labels = data.inputs.__getitem__, data.labels
    if rows.ndim != 1 or (rows.size and not 0 <= rows.min() <= rows.max() < len(labels)):
        raise ValueError(f"rows must be [K] in 0..{len(labels) - 1}, got shape {rows.shape}: {rows}")

    def make(place: int) -> Block:
        chosen = rows[place * block : (place + 1) * block]
        return Block(filled(read(chosen), block), filled(labels[chosen], block), np.arange(block) < len(chosen))

    number = -(-len(rows) // block)
    return _ahead(make, 0, number, threads, prefetch) if isinstance(data, ImageIndex) else map(make, range(number))


def filled(x: np.ndarray, length: int) -> np.ndarray:
    """An array [n, ...] with zeros behind it, [length, ...]; itself if it is as long.

    Example:
        >>> filled(np.ones(2), 3).tolist()
        [1.0, 1.0, 0.0]
    """
    return x if len(x) == length else np.concatenate([x, np.zeros((length - len(x), *x.shape[1:]), x.dtype)])


def _check_positive(**values: Any) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
