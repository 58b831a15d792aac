"""Which runner a data set needs."""

from collections.abc import Sequence
from typing import Any, Protocol

from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.load import is_streamed
from disam_jax.dg.data.splits import Split, whole
from disam_jax.dg.methods import Method
from disam_jax.dg.models.network import Network
from disam_jax.dg.runners.base import NewClasses, Runner
from disam_jax.dg.runners.in_memory import InMemoryRunner
from disam_jax.dg.runners.streaming import StreamingRunner
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.step import make_arrays


class MakeRunner(Protocol):
    """Makes the runner of a method."""

    def __call__(self, name: str, network: Network, method: Method, own: TrainConfig = ...) -> Runner:
        """The runner of a method.

        Args:
            name: Name of the method.
            network: Network to train.
            method: Method that computes the gradients.
            own: Configuration, with another batch size or dropout than that of all runs; by default that one.

        Returns:
            Runner.
        """
        ...


def runner_factory(
    data: Domains,
    config: TrainConfig,
    splits: tuple[Split, ...],
    seeds: Sequence[int],
    probe: int,
    new: NewClasses | None = None,
) -> MakeRunner:
    """A function that makes the runners of a sweep, which share the data set on the device.

    Args:
        data: Data set; `StreamedImages` stay in their files, as do `CachedFeatures` that are streamed.
        config: Configuration that all runs share.
        splits: Splits of the data, one for each seed.
        seeds: S seeds.
        probe: Number of examples of each domain on which w + e is measured.
        new: Classes that are measured too and not trained on, if there are any.

    Returns:
        Function that makes the runner of a method.
    """
    new_network = lambda name: None if new is None else new.networks[name]
    if is_streamed(data):
        images: Any = None if new is None else new.data
        assert images is None or is_streamed(images)
        on_disk: Any = data
        return lambda name, network, method, own=config: StreamingRunner(
            network, method, own, on_disk, splits, seeds, probe, new_network(name), images
        )
    arrays = make_arrays(data, splits, config.standardise)
    examples = None if new is None else make_arrays(new.data, (whole(new.data),) * len(splits), False)
    return lambda name, network, method, own=config: InMemoryRunner(
        network, method, own, arrays, seeds, probe, new_network(name), examples
    )
