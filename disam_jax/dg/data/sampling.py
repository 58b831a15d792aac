"""Which examples make up the batch of a step.

The rows of a batch are a function of the run's key and the step, nothing else. So batches from memory and from files
are the same, a program on the device can draw them itself, and a run can be taken up at any step.
"""

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax.dg.data.keys import augmentation_key, rows_key, run_key, step_key
from disam_jax.dg.data.splits import Split

FORMS = ("grouped", "flat", "merged")


def steps_of_epochs(train_counts: Any, target: Any, batch_size: int, epochs: int = 1) -> Any:
    """Number of steps in which the training examples of the source domains are seen, each at most once an epoch.

    An epoch is as many whole batches as there are; the examples that are left over are other ones in each epoch.

    Args:
        train_counts: Size of the training split of each domain, int [D], numpy or jax.
        target: Index of the held-out domain.
        batch_size: B.
        epochs: E.

    Returns:
        ``E * floor(sum_{d != target} n_d / B)``.

    Example:
        >>> int(steps_of_epochs(np.array([6, 5, 9]), target=1, batch_size=4, epochs=2))
        6
    """
    return epochs * ((train_counts.sum() - train_counts[target]) // batch_size)


def merged_rows(members: np.ndarray, seed: int, target: int, batch_size: int, steps: int) -> np.ndarray:
    """Rows of merged batches: every epoch shuffles all examples anew and deals them out without replacement.

    The rows are a function of seed, target and step, as in `draw_rows`.

    Args:
        members: Rows of the training splits of all sources, int [K], K at least B.
        seed: Seed of the run.
        target: Index of the held-out domain.
        batch_size: B.
        steps: Number of batches.

    Returns:
        int32 [steps, B].

    Example:
        >>> rows = merged_rows(np.array([2, 4, 6, 8, 9]), seed=0, target=1, batch_size=2, steps=4)
        >>> rows.shape, len(set(rows[:2].flat)), len(set(rows[2:].flat))
        ((4, 2), 4, 4)
    """
    each = len(members) // batch_size
    epochs = -(-steps // each)
    # The legacy generator, because its numbers are promised to stay what they are.
    orders = [np.random.RandomState((seed, target, epoch)).permutation(len(members)) for epoch in range(epochs)]
    dealt = [members[order[: each * batch_size]].reshape(each, batch_size) for order in orders]
    return np.concatenate(dealt)[:steps].astype(np.int32)


def draw_rows(
    key: jax.Array,
    order: jax.Array,
    train_counts: jax.Array,
    starts: jax.Array,
    sources: jax.Array,
    per_domain: int,
) -> jax.Array:
    """Rows of a batch: as many from the training split of each source, drawn with replacement as in DomainBed.

    Args:
        key: from `rows_key`.
        order: int32 [N], as in `splits.Split`.
        train_counts: int32 [D], as in `splits.Split`.
        starts: int32 [D], as in `Domains`.
        sources: int32 [M], indices of domains.
        per_domain: n; static.

    Returns:
        int32 [M, n].

    Example:
        >>> order, train_counts, starts = jnp.array([2, 0, 1, 4, 3]), jnp.array([2, 1]), jnp.array([0, 3])
        >>> rows = draw_rows(jax.random.key(0), order, train_counts, starts, jnp.array([1, 0]), 3)
        >>> rows[0].tolist(), set(rows[1].tolist()) <= {2, 0}
        ([4, 4, 4], True)
    """
    counts = train_counts[sources][:, None]
    within = jax.random.randint(key, (len(sources), per_domain), 0, counts, jnp.int32)
    return order[starts[sources][:, None] + within]


def step_rows(
    key: jax.Array,
    step: jax.Array | int,
    order: jax.Array,
    train_counts: jax.Array,
    starts: jax.Array,
    sources: jax.Array,
    per_domain: int,
) -> jax.Array:
    """The rows of the batch of a step of the run with this key, int32 [M, per_domain]; see `draw_rows`.

    Example:
        >>> order, train_counts, starts = jnp.array([2, 0, 1, 4, 3]), jnp.array([2, 1]), jnp.array([0, 3])
        >>> step_rows(run_key(0, 0), 7, order, train_counts, starts, sources=jnp.array([1]), per_domain=3).tolist()
        [[4, 4, 4]]
    """
    return draw_rows(rows_key(step_key(key, step)), order, train_counts, starts, sources, per_domain)


def step_views(key: jax.Array, step: jax.Array | int, number: int, views: int) -> jax.Array:
    """Which of its views each example of the batch of a step is, drawn uniformly.

    Args:
        key: of the run.
        step: counted from 0.
        number: of examples in the batch.
        views: K.

    Returns:
        int32 [number], 0..K - 1.

    Example:
        >>> step_views(run_key(0, 0), 7, number=3, views=1).tolist()
        [0, 0, 0]
    """
    return jax.random.randint(augmentation_key(step_key(key, step)), (number,), 0, views, jnp.int32)


@dataclass(frozen=True, eq=False)
class Plan:
    """What decides the rows of all batches of a run, checked.

    Attributes:
        counts: int32 [D], number of examples of each domain.
        split: of these examples.
        sources: M indices of domains, in the order of the batch.
        seed: of the run.
        target: index of the held-out domain.
        per_domain: n.
        steps: number of batches.
        form: "grouped", "flat", or "merged" for batches of `batch_size` examples of all sources.
        batch_size: B of merged batches, in which domains have unequally many examples; `per_domain` is not used then.

    Raises:
        ValueError: if these do not fit together.
    """

    counts: np.ndarray
    split: Split
    sources: Sequence[int]
    seed: int
    target: int
    per_domain: int
    steps: int
    form: str = "grouped"
    batch_size: int | None = None

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")
        if self.per_domain < 1 or self.steps < 0 or self.seed < 0:
            raise ValueError(
                f"per_domain must be at least 1, steps and seed at least 0, got {self.per_domain}, {self.steps}, "
                f"{self.seed}"
            )
        num_domains, examples = len(self.counts), int(np.sum(self.counts))
        if len(self.split.order) != examples or len(self.split.train_counts) != num_domains:
            raise ValueError(
                f"the split has {len(self.split.order)} examples of {len(self.split.train_counts)} domains, the data "
                f"{examples} of {num_domains}"
            )
        if not self.sources or len(set(self.sources)) < len(self.sources):
            raise ValueError(f"sources must be different domains, at least one, got {list(self.sources)}")
        if not set(self.sources) <= set(range(num_domains)):
            raise ValueError(f"sources must be in 0..{num_domains - 1}, got {list(self.sources)}")
        if self.target in self.sources:
            raise ValueError(f"the target {self.target} is among the sources {list(self.sources)}")
        for domain in self.sources:
            if self.split.train_counts[domain] < 1:
                raise ValueError(f"domain {domain} has no training example")
        if (self.batch_size is None) != (self.form != "merged"):
            raise ValueError(f"batch_size is for the form merged, got {self.batch_size} with {self.form}")
        if self.batch_size is not None and not 1 <= self.batch_size <= len(self.members()):
            raise ValueError(
                f"batch_size must be in 1..{len(self.members())}, the number of training examples of the sources, got "
                f"{self.batch_size}"
            )

    def members(self) -> np.ndarray:
        """Rows of the training splits of all sources, domain after domain in their order, int [K]."""
        starts, of_train = np.cumsum(self.counts) - self.counts, self.split.train_counts
        return np.concatenate([self.split.order[starts[d] : starts[d] + of_train[d]] for d in sorted(self.sources)])

    def arrays(self) -> tuple[jax.Array, ...]:
        """What `draw_rows` takes after the key, but for `per_domain`."""
        starts = np.cumsum(self.counts) - self.counts
        given = (self.split.order, self.split.train_counts, starts, np.array(self.sources))
        return tuple(jnp.asarray(x, jnp.int32) for x in given)

    def rows(self) -> np.ndarray:
        """The rows of all steps on the host, int32 [steps, M, n], or [steps, B] of merged batches."""
        if self.batch_size is not None:
            return merged_rows(self.members(), self.seed, self.target, self.batch_size, self.steps)
        return np.asarray(_all_rows(run_key(self.seed, self.target), *self.arrays(), self.steps, self.per_domain))

    def domains(self, rows: np.ndarray) -> np.ndarray:
        """The place in `sources` of the domain of each row, int32 of the same shape."""
        place = np.zeros(len(self.counts), np.int32)
        place[list(self.sources)] = np.arange(len(self.sources), dtype=np.int32)
        return place[np.searchsorted(np.cumsum(self.counts), rows, side="right")]

    def views(self, number: int) -> np.ndarray:
        """Which of `number` views each example of every batch is, on the host, int32 of the shape of `rows`."""
        shape = (len(self.sources), self.per_domain) if self.batch_size is None else (self.batch_size,)
        chosen = _all_views(run_key(self.seed, self.target), self.steps, math.prod(shape), number)
        return np.asarray(chosen).reshape(self.steps, *shape)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _all_views(key, steps, examples, views):
    return jax.vmap(lambda step: step_views(key, step, examples, views))(jnp.arange(steps, dtype=jnp.int32))


@functools.partial(jax.jit, static_argnums=(5, 6))
def _all_rows(key, order, train_counts, starts, sources, steps, per_domain):
    one = lambda step: step_rows(key, step, order, train_counts, starts, sources, per_domain)
    return jax.vmap(one)(jnp.arange(steps, dtype=jnp.int32))


def fingerprint(plan: Plan, labels: np.ndarray, shape: Sequence[int], dtype: Any, names: Sequence[str]) -> str:
    """Tells the batches of one run from those of another; the number of steps and the pixels do not enter.

    Args:
        plan: of the batches.
        labels: int32 [N], of the data.
        shape: of one example.
        dtype: of the inputs.
        names: of the domains.

    Returns:
        16 hexadecimal digits, the same from memory and from files.

    Example:
        >>> split = Split(np.arange(4), np.array([1, 1]))
        >>> plans = [Plan(np.array([2, 2]), split, (0,), seed, 1, 2, steps) for seed, steps in ((0, 5), (0, 9), (3, 5))]
        >>> prints = [fingerprint(plan, np.zeros(4), (8,), np.float32, ["photo", "sketch"]) for plan in plans]
        >>> prints[0] == prints[1], prints[0] == prints[2]
        (True, False)
    """
    batch = plan.per_domain if plan.batch_size is None else plan.batch_size
    numbers = [*plan.sources, plan.seed, plan.target, batch, *shape]
    text = json.dumps([[int(x) for x in numbers], plan.form, np.dtype(dtype).name, list(names)])
    digest = hashlib.blake2b(text.encode(), digest_size=8)
    for array in (plan.counts, *plan.split, labels):
        digest.update(np.ascontiguousarray(array, "<i4").tobytes())
    return digest.hexdigest()
