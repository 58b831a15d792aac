"""What is kept of runs besides their numbers: their weights at one point of training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from disam_jax.dg.models.network import by_name
from disam_jax.dg.results import Run, six_digits, validation_score
from disam_jax.dg.runners.checkpoints import in_order, numbered
from disam_jax.dg.training.averaging import SWAD
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.evaluation import Metrics


class Keeper:
    """Keeps the weights of R runs, each at its last or its best point, in the memory of the host.

    Args:
        save: A key of `SAVES`.
        runs: R runs.
        config: Configuration that all runs share.
    """

    def __init__(self, save: str, runs: Sequence[Run], config: TrainConfig):
        self._runs, self._last = runs, len(config.measured_at) - 1
        self._save = save
        # Along training SWAD has no weights that are its own.
        self._chooses = save == "best" and config.averaging not in SWAD
        self._scores = np.full(len(runs), -np.inf)
        self._points = np.full(len(runs), self._last, np.int32)
        self._best: Any = None
        self._copy: Any = None

    def before(self, weights: Any) -> None:
        """Copies the weights of a point that is about to be measured, by a program that uses them up."""
        if self._chooses:
            # A copy of our own: the program may write over what the host only looks at.
            self._copy = jax.tree.map(np.array, weights)

    def after(self, place: int, measured: Metrics) -> None:
        """Keeps the copy of those runs that are better at a point than at all before it.

        Args:
            place: Number of the point; the one before training is never chosen.
            measured: What was measured there, numpy arrays [R, ...].
        """
        if not self._chooses or place == 0:
            return
        scores = self.scores(measured)
        better = scores > self._scores
        if better.any():
            self._scores = np.where(better, scores, self._scores)
            self._points = np.where(better, np.int32(place), self._points)
            chosen = lambda new, old: np.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
            self._best = self._copy if better.all() else jax.tree.map(chosen, self._copy, self._best)

    def so_far(self) -> dict[str, Any]:
        """What a checkpoint has to hold, for `resume`: nothing unless the best weights so far are kept."""
        if self._best is None:
            return {}
        return {"scores": self._scores, "points": self._points, "best": numbered(self._best)}

    def resume(self, so_far: Mapping[str, Any], weights: Any) -> None:
        """Goes on from a checkpoint.

        Args:
            so_far: From `so_far`.
            weights: Weights of the runs, whose structure is that of the best ones.
        """
        if so_far:
            self._scores, self._points = np.array(so_far["scores"]), np.array(so_far["points"])
            self._best = jax.tree.unflatten(jax.tree.structure(weights), in_order(so_far["best"]))

    def scores(self, measured: Metrics) -> np.ndarray:
        """Accuracy by which a point is chosen, float64 [R]: of the numbers that are written down."""
        written = [np.array(six_digits(each), np.float64) for each in (measured.accuracy, measured.losses)]
        return np.array(
            [
                validation_score(accuracy, losses, run.target)
                for run, accuracy, losses in zip(self._runs, *written, strict=True)
            ]
        )

    def kept(self, params: Any, state: Any, more: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What was kept, as entries for what a runner returns.

        Args:
            params: Parameters that are measured at the end, leaves [R, ...].
            state: Running statistics that are measured at the end.
            more: () -> further arrays [R, ...] of the runs by name.

        Returns:
            Nothing if nothing is saved; else "kept": "point", int32 [R], and "tensors", arrays [R, ...] by the dotted
            path of their variable.
        """
        if self._save == "none":
            return {}
        weights = jax.device_get((params, state)) if self._best is None else self._best
        tensors = {name: each for tree in weights for name, each in by_name(tree).items()}
        return {"kept": {"point": self._points, "tensors": {**tensors, **more()}}}
