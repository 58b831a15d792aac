"""Stacks of batches: what a runner puts on the device together when images stay in their files."""

from collections.abc import Iterator, Sequence

import numpy as np

from disam_jax.dg.data import batches

# The most that a stack takes, unless a single batch is larger.
STACK_BYTES = 64 * 2**20


def stack_length(segment: int, batch_bytes: int) -> int:
    """Number of batches in a stack: a segment in as few equal stacks as `STACK_BYTES` allows.

    Example:
        >>> stack_length(20, 1), stack_length(20, 5 * 2**20), stack_length(20, 2**30)
        (20, 10, 1)
    """
    most = max(1, STACK_BYTES // batch_bytes)
    return -(-segment // -(-segment // most))


def stacks(
    stream: Iterator[batches.Batch], first: int, last: int, length: int
) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """The next batches of a stream, stacked.

    Args:
        stream: Stream of batches whose next one is that of step `first`.
        first: Step of the first batch.
        last: Step after that of the last batch.
        length: Number K of batches in a stack.

    Yields:
        Step of the first batch of the stack, and its images [K, M, n, ...] and labels [K, M, n]; of merged batches
        images [K, B, ...], labels and domains [K, B]. The last stack is filled up with zeros.
    """
    for begin in range(first, last, length):
        taken = [next(stream) for _ in range(min(length, last - begin))]
        fields = 3 if taken[0].y.ndim == 1 else 2
        yield begin, tuple(_stacked([batch[place] for batch in taken], length) for place in range(fields))


def _stacked(parts: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Arrays as one, filled up with zeros, [length, ...]."""
    found = np.zeros((length, *parts[0].shape), parts[0].dtype)
    found[: len(parts)] = parts
    return found
