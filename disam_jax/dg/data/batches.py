"""Which examples make up the batch of a step, and the batches themselves.

The rows of a batch are a function of the run's key and the step, nothing else. So batches from memory and from files
are the same, a program on the device can draw them itself, and a run can be taken up at any step.
"""

import functools
import hashlib
import json
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.splits import Split
from disam_jax.dg.errors import InputError

FORMS = ("grouped", "flat")


def run_key(seed: jax.Array | int, target: jax.Array | int) -> jax.Array:
    """The key of a run, made of its seed and its target alone, so that all methods share it.

    The generator is named, because jax's default can be changed and the numbers with it. From this key come the keys
    of all that is drawn. For a given key Threefry is a bijection, so different numbers folded in give different keys.

    Args:
        seed: int32 [], not negative.
        target: int32 [], index of the held-out domain.

    Returns:
        Key [].

    Example:
        >>> seeds, targets = jnp.arange(3), jnp.arange(4)
        >>> jax.vmap(jax.vmap(run_key, (0, None)), (None, 0))(seeds, targets).shape
        (4, 3)
    """
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), target)


def init_key(key: jax.Array) -> jax.Array:
    """The key of the initial weights; `key` is the run's.

    Example:
        >>> key = run_key(seed=0, target=1)
        >>> bool(init_key(key) == step_key(key, 0))
        False
    """
    # No step has this number: steps are int32 and count from 0.
    return jax.random.fold_in(key, np.uint32(2**32 - 1))


def step_key(key: jax.Array, step: jax.Array | int) -> jax.Array:
    """The key of a step, counted from 0; `key` is the run's.

    Example:
        >>> key = run_key(seed=0, target=1)
        >>> bool(step_key(key, 2) == step_key(key, 2)), bool(step_key(key, 2) == step_key(key, 3))
        (True, False)
    """
    return jax.random.fold_in(key, step)


def rows_key(key: jax.Array) -> jax.Array:
    """What draws the rows of the batch; `key` is the step's.

    Example:
        >>> key = step_key(run_key(seed=0, target=1), 2)
        >>> bool(rows_key(key) == augmentation_key(key))
        False
    """
    return jax.random.fold_in(key, np.uint32(0))


def augmentation_key(key: jax.Array) -> jax.Array:
    """What draws the augmentation of the batch; `key` is the step's.

    Example:
        >>> key = step_key(run_key(seed=0, target=1), 2)
        >>> bool(augmentation_key(key) == dropout_key(key))
        False
    """
    return jax.random.fold_in(key, np.uint32(1))


def dropout_key(key: jax.Array) -> jax.Array:
    """What draws the dropout masks of both passes; `key` is the step's.

    Example:
        >>> key = step_key(run_key(seed=0, target=1), 2)
        >>> bool(dropout_key(key) == rows_key(key))
        False
    """
    return jax.random.fold_in(key, np.uint32(2))


def method_key(key: jax.Array) -> jax.Array:
    """What a method draws from, as Mixup does; `key` is the step's.

    Example:
        >>> key = step_key(run_key(seed=0, target=1), 2)
        >>> bool(method_key(key) == dropout_key(key))
        False
    """
    return jax.random.fold_in(key, np.uint32(3))


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


class Batch(NamedTuple):
    """Examples of M source domains, n of each.

    Grouped, the leading axes are [M, n]; flat, they are [M * n], one domain after the other.

    Attributes:
        x: [M, n, ...] or [M * n, ...], float32, or uint8 images.
        y: int32 [M, n] or [M * n], classes.
        domain: int32 [M, n] or [M * n], the place 0..M-1 of the example's domain in `sources`, not its index in the
            data set: what `disam_jax.mean_by_domain` takes with `num_domains=M`.
    """

    x: Any
    y: Any
    domain: Any


def arrange(x: Any, y: Any, form: str) -> Batch:
    """A batch of the given form.

    Args:
        x: [M, n, ...].
        y: int32 [M, n].
        form: "grouped" or "flat".

    Returns:
        Batch.

    Example:
        >>> batch = arrange(np.zeros((2, 3, 5)), np.array([[0, 1, 0], [1, 1, 0]]), "flat")
        >>> batch.x.shape, batch.y.tolist(), batch.domain.tolist()
        ((6, 5), [0, 1, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1])
    """
    domain = np.repeat(np.arange(y.shape[0], dtype=np.int32)[:, None], y.shape[1], axis=1)
    if form == "grouped":
        return Batch(x, y, domain)
    return Batch(x.reshape(-1, *x.shape[2:]), y.reshape(-1), domain.reshape(-1))


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
        form: "grouped" or "flat".

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

    def arrays(self) -> tuple[jax.Array, ...]:
        """What `draw_rows` takes after the key, but for `per_domain`."""
        starts = np.cumsum(self.counts) - self.counts
        given = (self.split.order, self.split.train_counts, starts, np.array(self.sources))
        return tuple(jnp.asarray(x, jnp.int32) for x in given)

    def rows(self) -> np.ndarray:
        """The rows of all steps on the host, int32 [steps, M, n]."""
        return np.asarray(_all_rows(run_key(self.seed, self.target), *self.arrays(), self.steps, self.per_domain))


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
    numbers = [*plan.sources, plan.seed, plan.target, plan.per_domain, *shape]
    text = json.dumps([[int(x) for x in numbers], plan.form, np.dtype(dtype).name, list(names)])
    digest = hashlib.blake2b(text.encode(), digest_size=8)
    for array in (plan.counts, *plan.split, labels):
        digest.update(np.ascontiguousarray(array, "<i4").tobytes())
    return digest.hexdigest()


@runtime_checkable
class Batches(Protocol):
    """The batches of a run, from wherever: an iterator that knows its place.

    A state that is restored, in another process too, is followed by the same batches bit by bit.
    """

    def __len__(self) -> int:
        """The number of all steps, wherever the iteration stands."""
        ...

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, 0 to `len` - 1; the iteration stays where it is."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """Itself: an iteration goes on from where the last one stopped."""
        ...

    def __next__(self) -> Batch:
        """The next batch; an error leaves the iteration where it was."""
        ...

    def get_state(self) -> dict[str, int | str]:
        """Where the iteration stands, as JSON values."""
        ...

    def set_state(self, state: Mapping[str, int | str]) -> None:
        """Continues from a state."""
        ...

    def close(self) -> None:
        """Lets go of what runs in the background; the next batch starts it again."""
        ...


class ResumableBatches(ABC):
    """What all `Batches` have in common: a place among the steps, to be saved and restored.

    Args:
        plan: which examples.
        identity: from `fingerprint`; a state with another one is refused.
    """

    def __init__(self, plan: Plan, identity: str):
        self.plan = plan
        self._identity = identity
        self._step = 0

    @abstractmethod
    def _load(self, step: int) -> Batch:
        """The batch of any step."""

    def _load_next(self, step: int) -> Batch:
        """The batch of a step that mostly follows the last one asked for."""
        return self._load(step)

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> Batch:
        step = operator.index(step)
        if not 0 <= step < len(self):
            raise IndexError(f"step must be in 0..{len(self) - 1}, got {step}")
        return self._load(step)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._step >= len(self):
            self.close()
            raise StopIteration
        batch = self._load_next(self._step)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int | str]:
        """The number of batches given so far and the fingerprint, as JSON values."""
        return {"step": self._step, "batches": self._identity}

    def set_state(self, state: Mapping[str, int | str]) -> None:
        """Continues from a state.

        Args:
            state: from `get_state`, of the same batches from memory or from files.

        Raises:
            InputError: if it is no such state, or that of other batches.
        """
        if not isinstance(state, Mapping) or set(state) != {"step", "batches"}:
            raise InputError(f'not a state of batches: {state!r}; expected {{"step": number, "batches": fingerprint}}')
        if state["batches"] != self._identity:
            raise InputError(
                f"the state belongs to other batches ({state['batches']}, these are {self._identity}): resume with "
                "the data, split, seed, target, batch size and form that it was saved with"
            )
        step = state["step"]
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= len(self):
            raise InputError(f"the state is at step {step!r}, but these batches have {len(self)} steps")
        self.close()
        self._step = step

    @abstractmethod
    def close(self) -> None:
        """Lets go of what runs in the background; the next batch starts it again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MemoryBatches(ResumableBatches):
    """Batches of data in memory, put on the device once.

    Args:
        data: the data set.
        split: which of its examples train.
        sources: M indices of domains.
        seed: of the run.
        target: index of the held-out domain.
        per_domain: n.
        steps: number of batches.
        form: "grouped" or "flat".

    Raises:
        ValueError: if these do not fit together.

    Example:
        >>> from disam_jax.dg.data.domains import join_domains
        >>> from disam_jax.dg.data.splits import seeded_split
        >>> two = [np.zeros((8, 3)), np.ones((9, 3)), np.ones((9, 3))]
        >>> data = join_domains("toy", two, [np.arange(len(x)) % 2 for x in two], "abc", ["no", "yes"])
        >>> split = seeded_split(data.counts, seed=0)
        >>> batches = MemoryBatches(data, split, sources=(0, 2), seed=0, target=1, per_domain=4, steps=10)
        >>> len(batches), next(batches).x.shape, batches.get_state()["step"]
        (10, (2, 4, 3), 1)
    """

    def __init__(
        self,
        data: Domains,
        split: Split,
        sources: Sequence[int],
        seed: int,
        target: int,
        per_domain: int,
        steps: int,
        form: str = "grouped",
    ):
        plan = Plan(data.counts, split, tuple(sources), seed, target, per_domain, steps, form)
        names = data.domain_names
        super().__init__(plan, fingerprint(plan, data.labels, data.inputs.shape[1:], data.inputs.dtype, names))
        self._key = run_key(seed, target)
        self._data = (jnp.asarray(data.inputs), jnp.asarray(data.labels), *plan.arrays())

    def _load(self, step: int) -> Batch:
        return _gather(self._key, np.int32(step), *self._data, per_domain=self.plan.per_domain, form=self.plan.form)

    def close(self) -> None:
        """Nothing to do: nothing runs in the background."""


@functools.partial(jax.jit, static_argnames=("per_domain", "form"))
def _gather(key, step, inputs, labels, order, train_counts, starts, sources, *, per_domain, form):
    rows = step_rows(key, step, order, train_counts, starts, sources, per_domain)
    return arrange(inputs[rows], labels[rows], form)
