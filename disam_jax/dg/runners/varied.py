"""Trains runs that differ in what is fixed in a compiled program: the batch size and dropout."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from disam_jax.dg.results import Run
from disam_jax.dg.runners.base import Runner
from disam_jax.dg.runners.checkpoints import Checkpoints

# Hyperparameters of a run that are fixed in its program.
FIXED = ("per_domain", "dropout")


def fixed_of(run: Run) -> tuple[int, float]:
    """The batch size and the dropout of a run whose hyperparameters have both.

    Example:
        >>> fixed_of(Run("ERM", 0, 0, 1, {"learning_rate": 0.1, "per_domain": 8.0, "dropout": 0.5}))
        (8, 0.5)
    """
    return int(run.hparams["per_domain"]), run.hparams["dropout"]


class VariedRunner:
    """Trains and measures the runs of one method, in a program for each batch size and dropout. Meets `base.Runner`.

    Args:
        make: (examples of each domain in a batch, dropout) -> runner of the runs that have these.
    """

    def __init__(self, make: Callable[[int, float], Runner]):
        self._make = functools.cache(make)
        self.per_device: int | None = None

    def runner_of(self, runs: Sequence[Run]) -> Runner:
        """The runner that trains runs of one program.

        Raises:
            ValueError: If they are of several.
        """
        values = {fixed_of(run) for run in runs}
        if len(values) > 1:
            raise ValueError(f"the runs of a chunk must have batch size and dropout in common, got {sorted(values)}")
        runner = self._make(*values.pop())
        runner.per_device = self.per_device
        return runner

    def chunks(self, runs: Sequence[Run], size: int) -> list[list[Run]]:
        """See `Runner`: runs of one program go together."""
        together: dict[tuple[int, float], list[Run]] = {}
        for run in runs:
            together.setdefault(fixed_of(run), []).append(run)
        return [chunk for each in together.values() for chunk in self.runner_of(each).chunks(each, size)]

    def runs_at_once(self, runs: Sequence[Run], most: int, budget: int) -> int:
        """See `Runner`: as many as fit with the largest batch."""
        largest = max(fixed_of(run) for run in runs)
        alike = [run for run in runs if fixed_of(run) == largest]
        return self.runner_of(alike).runs_at_once(alike, most, budget)

    def flops(self, run: Run) -> float | None:
        """See `Runner`."""
        return self.runner_of([run]).flops(run)

    def compile(self, runs: Sequence[Run]) -> Any:
        """See `Runner`: runs of one program."""
        return self.runner_of(runs).compile(runs)

    def train(
        self,
        runs: Sequence[Run],
        on_segment: Callable[[], None] | None = None,
        checkpoints: Checkpoints | None = None,
        save: str = "none",
    ) -> dict[str, Any]:
        """See `Runner`: runs of one program."""
        return self.runner_of(runs).train(runs, on_segment, checkpoints, save)
