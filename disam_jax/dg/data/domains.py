"""A labelled data set made of domains."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from disam_jax.dg.data.names import check_names


@dataclass(frozen=True, eq=False)
class Domains:
    """The examples of D domains, one domain after the other.

    Nothing is padded: domain d is the rows `starts[d] : starts[d] + counts[d]`, so that domains of
    unequal size need no mask and can leave no trace of one in a mean.

    Attributes:
        name: what the data set is called in tables.
        inputs: float32 [N, ...], or uint8 [N, H, W, 3] for images.
        labels: int32 [N], indices into `class_names`.
        domain_ids: int32 [N], ascending, indices into `domain_names`.
        domain_names: D names.
        class_names: C names.
        validation: bool [N], True for the examples that split files set aside for validation; None
            if there are no such files and the split is drawn, see `splits`.
        notes: what a reader of its results has to know.

    Raises:
        InputError: If a name cannot be written into tables and figures.
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray
    domain_ids: np.ndarray
    domain_names: tuple[str, ...]
    class_names: tuple[str, ...]
    validation: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_names(self.name, self.domain_names, self.class_names)

    @property
    def counts(self) -> np.ndarray:
        """Number of examples of each domain, int32 [D]."""
        return np.bincount(self.domain_ids, minlength=len(self.domain_names)).astype(np.int32)

    @property
    def starts(self) -> np.ndarray:
        """Row of the first example of each domain, int32 [D]."""
        counts = self.counts
        return (np.cumsum(counts) - counts).astype(np.int32)


def join_domains(
    name: str,
    inputs: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    domain_names: Sequence[str],
    class_names: Sequence[str],
    validation: Sequence[np.ndarray] | None = None,
) -> Domains:
    """Joins one array of inputs and one of labels per domain into a data set.

    Args:
        name: what to call the data set.
        inputs: D arrays [N_d, ...]; uint8 is kept, all else is converted to float32.
        labels: D integer arrays [N_d].
        domain_names: D names.
        class_names: C names.
        validation: D bool arrays [N_d], or None.

    Returns:
        The data set, its rows in the order of the domains.

    Raises:
        ValueError: if the lengths do not agree, a domain has no example, or labels are not integers.

    Example:
        >>> two = [np.zeros((2, 3)), np.ones((1, 3))]
        >>> data = join_domains("toy", two, [np.array([0, 1]), np.array([1])], "ab", ["no", "yes"])
        >>> data.inputs.shape, data.counts.tolist(), data.starts.tolist()
        ((3, 3), [2, 1], [0, 2])
    """
    sizes = [len(part) for part in inputs]
    if not (len(inputs) == len(labels) == len(domain_names)) or sizes != [len(x) for x in labels]:
        raise ValueError(
            f"inputs, labels and domain_names must agree: {len(domain_names)} names, inputs of "
            f"{sizes} rows, labels of {[len(x) for x in labels]}"
        )
    if 0 in sizes:
        raise ValueError(f"domain {domain_names[sizes.index(0)]!r} has no example")
    for name_of, part in zip(domain_names, labels, strict=True):
        values = np.asarray(part)
        if values.dtype.kind not in "iubf" or not (values == np.round(values)).all():
            raise ValueError(
                f"labels must be classes, integers from 0, got {values.dtype} for domain {name_of!r}: number "
                "the classes"
            )
    joined = np.concatenate(inputs)
    return Domains(
        name=name,
        inputs=joined if joined.dtype == np.uint8 else joined.astype(np.float32),
        labels=np.concatenate(labels).astype(np.int32),
        domain_ids=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        domain_names=tuple(domain_names),
        class_names=tuple(class_names),
        validation=None if validation is None else np.concatenate(validation).astype(bool),
    )
