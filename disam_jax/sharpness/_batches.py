"""From batches that come one after another to arrays."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np


def collect(batches: Iterable[tuple[Any, Any]], num_examples: int | None = None) -> tuple[Any, np.ndarray]:
    """The first examples of a data iterator as arrays, for `loss_surface`.

    A measure evaluates the same examples many times, which an iterator cannot give.

    Args:
      batches: Pairs of a batch, a pytree of arrays ``[n, ...]``, and the domain of each of its examples, integers
        ``[n]``. n may differ.
      num_examples: How many to keep, N; an iterator without end needs it. ``None`` keeps all.

    Returns:
      ``(data, domain_ids)``: numpy arrays ``[N, ...]`` and ``[N]``.

    Raises:
      ValueError: When the iterator is empty or ends before ``num_examples``, or the batches do not fit together.

    Example:
      >>> import numpy as np
      >>> from disam_jax import sharpness
      >>> data, ids = sharpness.collect([(np.ones((2, 5)), [0, 1]), (np.ones((2, 5)), [1, 1])], num_examples=3)
      >>> data.shape, ids.tolist()
      ((3, 5), [0, 1, 1])
    """
    if num_examples is not None and num_examples < 1:
        raise ValueError(f"num_examples must be at least 1, got {num_examples}.")
    kept, number = [], 0
    for batch, ids in batches:
        batch, ids = jax.tree.map(np.asarray, batch), np.asarray(ids)
        sizes = {x.shape[:1] for x in jax.tree.leaves((batch, ids))}
        if sizes != {ids.shape} or ids.ndim != 1:
            raise ValueError(f"batch {len(kept)} must have leaves [n, ...] and ids [n], got {sorted(sizes)}.")
        kept.append((batch, ids))
        number += len(ids)
        if num_examples is not None and number >= num_examples:
            break
    if number == 0:
        raise ValueError("the data iterator is empty: it gave no examples. An iterator that was read to its end is.")
    if num_examples is not None and number < num_examples:
        raise ValueError(
            f"the data iterator ended after {number} of {num_examples} examples: write num_examples={number} or None."
        )
    if len({jax.tree.structure(pair) for pair in kept}) > 1:
        raise ValueError("the batches differ in structure: every batch must be the same tree of arrays.")
    data, ids = jax.tree.map(lambda *parts: np.concatenate(parts)[:num_examples], *kept)
    return data, ids
