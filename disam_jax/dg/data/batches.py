"""The batches of a run, from memory: an iterator that can be saved and taken up at any step."""

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.keys import run_key
from disam_jax.dg.data.sampling import Plan, fingerprint, step_rows
from disam_jax.dg.data.splits import Split
from disam_jax.dg.errors import InputError


class Batch(NamedTuple):
    """Examples of M source domains, n of each.

    Grouped, the leading axes are [M, n]; flat, they are [M * n], one domain after the other. Merged, they are [B], and
    the domains have unequally many, in any order.

    Attributes:
        x: [M, n, ...], [M * n, ...] or [B, ...], float32, or uint8 images.
        y: int32 [M, n], [M * n] or [B], classes.
        domain: int32 [M, n], [M * n] or [B], the place 0..M-1 of the example's domain in `sources`, not its index
            in the data set: what `disam_jax.mean_by_domain` takes with `num_domains=M`.
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
        form: "grouped", "flat" or "merged".
        batch_size: B of merged batches: all training examples of the sources, shuffled anew in each epoch.

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
        batch_size: int | None = None,
    ):
        plan = Plan(data.counts, split, tuple(sources), seed, target, per_domain, steps, form, batch_size)
        names = data.domain_names
        super().__init__(plan, fingerprint(plan, data.labels, data.inputs.shape[1:], data.inputs.dtype, names))
        self._key = run_key(seed, target)
        self._data = (jnp.asarray(data.inputs), jnp.asarray(data.labels), *plan.arrays())
        self._rows = plan.rows() if batch_size is not None else None

    def _load(self, step: int) -> Batch:
        if self._rows is not None:
            inputs, labels, rows = *self._data[:2], self._rows[step]
            return Batch(inputs[rows], labels[rows], jnp.asarray(self.plan.domains(rows)))
        return _gather(self._key, np.int32(step), *self._data, per_domain=self.plan.per_domain, form=self.plan.form)

    def close(self) -> None:
        """Nothing to do: nothing runs in the background."""


@functools.partial(jax.jit, static_argnames=("per_domain", "form"))
def _gather(key, step, inputs, labels, order, train_counts, starts, sources, *, per_domain, form):
    rows = step_rows(key, step, order, train_counts, starts, sources, per_domain)
    return arrange(inputs[rows], labels[rows], form)
