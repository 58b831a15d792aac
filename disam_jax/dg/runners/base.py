"""What a sweep needs of a runner, and what runners have in common."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from disam_jax.dg.data.domains import Domains
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import MethodError
from disam_jax.dg.models.network import Network
from disam_jax.dg.results import Run
from disam_jax.dg.runners.checkpoints import Checkpoints
from disam_jax.dg.runners.kept_logits import Examples, kept_of
from disam_jax.dg.training import averaging
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.evaluation import Metrics
from disam_jax.dg.training.step import RunState

# The arrays of `Metrics` that are fields of `Results`.
MEASURED = ("accuracy", "losses", "probe_losses", "perturbed_losses", "new_accuracy")


class NewClasses(NamedTuple):
    """Classes that no run is trained on.

    Attributes:
        data: Their examples, of the same domains, with labels counted from 0 again.
        networks: For each method by name, the network that classifies them with the parameters that were trained.
    """

    data: Domains
    networks: Mapping[str, Network]


class Runner(Protocol):
    """Trains and measures the runs of one method, a chunk of them at a time.

    Attributes:
        per_device: Number of runs that a device trains at once. It is part of the compiled program: a run has the same
            numbers, bit for bit, in every chunk that has as many runs on each device, whatever the others are. None:
            runs are dealt over all devices.
    """

    per_device: int | None

    def chunks(self, runs: Sequence[Run], size: int) -> list[list[Run]]:
        """All runs of the method in chunks of at most `size`."""
        ...

    def runs_at_once(self, runs: Sequence[Run], most: int, budget: int) -> int:
        """How many runs a device trains at once, so that its program fits into `budget` bytes.

        Args:
            runs: Runs of the method.
            most: Largest number of runs on all devices.
            budget: Bytes on each device.

        Returns:
            Value for `per_device`.

        Raises:
            InputError: If not even the smallest chunk fits, or the method breaks its contract.
        """
        ...

    def flops(self, run: Run) -> float | None:
        """Floating-point operations of one training step of one run, as XLA counts them; None where it does not."""
        ...

    def compile(self, runs: Sequence[Run]) -> Any:
        """Compiles the program of a chunk, unless one of this size is there."""
        ...

    def train(
        self,
        runs: Sequence[Run],
        on_segment: Callable[[], None] | None = None,
        checkpoints: Checkpoints | None = None,
        save: str = "none",
    ) -> dict[str, Any]:
        """Trains and measures a chunk of R runs.

        Args:
            runs: Chunk of runs, with the same names of hyperparameters.
            on_segment: Called after each segment.
            checkpoints: Where the runs go on from, and where they are saved along training; None for neither.
            save: Which weights are kept, a key of `keep.SAVES`.

        Returns:
            The arrays of `Results` by name, [R, ...], NaN where there is nothing to measure; with
            `TrainConfig.keep_logits`, "logits", a list of R `RunLogits`; and what `Keeper.kept` returns.

        Raises:
            InputError: If an image cannot be read, or a checkpoint cannot be written.
        """
        ...


@contextlib.contextmanager
def naming(runs: Sequence[Run]) -> Iterator[None]:
    """Puts the name of the runs' method in front of an error about its contract.

    Raises:
        InputError: In the place of a `MethodError`.

    Example:
        >>> with naming([Run("Mine", 0, 0, 0, {})]):
        ...     raise MethodError("a method must return ...")
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: --method Mine: a method must return ...
    """
    try:
        yield
    except MethodError as error:
        raise InputError(f"--method {runs[0].method}: {error}") from error


def in_order(runs: Sequence[Run], size: int) -> list[list[Run]]:
    """Chunks of at most `size` runs, in their order.

    Example:
        >>> runs = [Run("ERM", 0, seed, 0, {}) for seed in range(3)]
        >>> [[run.seed for run in chunk] for chunk in in_order(runs, 2)]
        [[0, 1], [2]]
    """
    return [list(runs[first : first + size]) for first in range(0, len(runs), size)]


def by_seed_and_target(runs: Sequence[Run], size: int) -> list[list[Run]]:
    """Chunks of at most `size` runs with seed and target in common, seed by seed.

    Example:
        >>> runs = [Run("SAM", target, 0, candidate, {}) for candidate in range(3) for target in range(2)]
        >>> [[(run.target, run.candidate) for run in chunk] for chunk in by_seed_and_target(runs, 2)]
        [[(0, 0), (0, 1)], [(0, 2)], [(1, 0), (1, 1)], [(1, 2)]]
    """
    together: dict[tuple[int, int], list[Run]] = {}
    for run in runs:
        together.setdefault((run.seed, run.target), []).append(run)
    return [chunk for shared in sorted(together) for chunk in in_order(together[shared], size)]


def flops_of(jitted: Any, *arguments: Any) -> float | None:
    """Floating-point operations of a program, as XLA counts them; None where it does not."""
    counted = (jitted.lower(*arguments).compile().cost_analysis() or {}).get("flops")
    return None if counted is None or counted <= 0 else float(counted)


def found(
    points: Sequence[Metrics], sharpness: np.ndarray, runs: Sequence[Run], examples: Callable[[Run], Examples]
) -> dict[str, Any]:
    """The arrays of `Results` by name.

    Args:
        points: What was measured at each of P points, arrays [R, ...].
        sharpness: [R, D].
        runs: R runs.
        examples: Function from a run to the examples of its target.

    Returns:
        Arrays [R, P, ...]; those that were not measured are absent. "metrics" has the further metrics by name, and
        "logits" R `RunLogits` if logits were kept.
    """
    names = [name for name in MEASURED if getattr(points[0], name) is not None]
    arrays = {name: np.stack([getattr(point, name) for point in points], 1) for name in names}
    metrics = {name: np.stack([point.metrics[name] for point in points], 1) for name in points[0].metrics}
    perturbed = arrays["perturbed_losses"].astype(np.float64)
    perturbed[np.arange(len(runs)), :, [run.target for run in runs]] = np.nan
    arrays = {**arrays, "perturbed_losses": perturbed, "sharpness": sharpness}
    more: dict[str, Any] = {"metrics": metrics} if metrics else {}
    if points[-1].logits is not None:
        more["logits"] = [kept_of(points, place, run, examples(run)) for place, run in enumerate(runs)]
    return {**arrays, **more}


def weights(states: RunState, config: TrainConfig) -> tuple[Any, Any]:
    """Parameters and running statistics that are measured: the moving average if there is one."""
    if config.averaging == "ema":
        return states.average
    return states.params, states.state


def swad_weights(
    averages: Sequence[Any], points: Sequence[Metrics], targets: Sequence[int], config: TrainConfig
) -> tuple[Any, Any]:
    """SWAD's weights of R runs, from the means over the segments and the validation losses at their ends."""
    counts_of = averaging.SWAD[config.averaging]
    validation = np.stack([point.losses[:, 1] for point in points[1:]], 1)  # [R, P - 1, D]
    counts = [
        counts_of(np.delete(losses, target, -1).mean(-1)) for losses, target in zip(validation, targets, strict=True)
    ]
    return averaging.average_points(averages, np.stack(counts))
