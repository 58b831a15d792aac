"""Data sets by name. A new one is a mapping `DATASETS` from names to `DataSet` in any file of `disam_jax/dg/data`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from disam_jax.dg.data.domains import Domains
from disam_jax.dg.registry import Registry

if TYPE_CHECKING:
    from disam_jax.dg.data.domainbed import Layout


@dataclass(frozen=True)
class DataSet:
    """A registered data set: made in memory, or the images of a folder in a data directory.

    Attributes:
        summary: What it is, in one line.
        load: () -> the data set; its `name` is that of the entry. None for images.
        layout: Where the images lie and what domains and classes are called. None for a data set in memory.
        training: Values of `TrainConfig` that differ from those for "features", for a data set in memory.

    Raises:
        ValueError: If it has both of `load` and `layout`, or none.
    """

    summary: str
    load: Callable[[], Domains] | None = None
    layout: "Layout | None" = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if (self.load is None) == (self.layout is None):
            raise ValueError(f"{self.summary}: a data set has load or layout, and not both")


DATASETS: Registry[DataSet] = Registry(
    "data set", DataSet, "disam_jax.dg.data", "DATASETS", "disam_jax.data", first=("digits", "domainbed")
)


def find_data_set(name: str) -> str | None:
    """The name of a data set as `DATASETS` has it, None if there is none.

    Args:
        name: Name in upper or lower case, with or without "_" and "-".

    Example:
        >>> find_data_set("terra_incognita"), find_data_set("Digits"), find_data_set("mnist")
        ('TerraIncognita', 'digits', None)
    """
    return {_plain(known): known for known in DATASETS}.get(_plain(name))


def option_name(name: str) -> str:
    """How --data calls a data set.

    Example:
        >>> option_name("digits"), option_name("TerraIncognita")
        ('digits', 'terra_incognita')
    """
    layout = DATASETS[name].layout
    return name if layout is None else layout.folder.casefold()


def _plain(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "")
