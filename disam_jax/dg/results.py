"""What a sweep finds: the runs and what was measured of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

TRAIN, VALIDATION = 0, 1


# As --save takes them, and what each one is.
SAVES: Mapping[str, str] = MappingProxyType(
    {
        "none": "no model",
        "last": "the last step of every run",
        "best": "of each method, target and seed the candidate and the point of training that accuracy on the source "
        "domains' validation splits chooses; with SWAD its average",
    }
)


class Run(NamedTuple):
    """One training run.

    Attributes:
        method: name of the method.
        target: index of the domain that is held out.
        seed: decides the split, the initial weights and the batches, together with the target.
        candidate: which choice of hyperparameters, counted from 0 for each method.
        hparams: the hyperparameters' values by name ("rho", "lam", "learning_rate", ...).
    """

    method: str
    target: int
    seed: int
    candidate: int
    hparams: Mapping[str, float]


def six_digits(values: Any) -> Any:
    """Nested lists of numbers of six digits, as results are written; None where not finite: JSON has no word for it.

    Example:
        >>> six_digits(np.array([1 / 3, np.nan]))
        [0.333333, None]
    """
    if np.ndim(values):
        return [six_digits(value) for value in values]
    return float(f"{float(values):.6g}") if math.isfinite(values) else None


def validation_score(accuracy: np.ndarray, losses: np.ndarray, target: int) -> np.ndarray:
    """Score by which a point of training is chosen: the accuracy on the source domains' validation splits, their mean.

    Args:
        accuracy: float64 [..., 2, D].
        losses: float64 [..., 2, D].
        target: Held-out domain, which does not count.

    Returns:
        float64 [...]; 0 where a loss of a source domain is not finite.

    Example:
        >>> accuracy = np.array([[[0.0, 0.0, 0.0], [0.5, 0.75, 1.0]]])
        >>> validation_score(accuracy, np.ones((1, 2, 3)), target=2).tolist()
        [0.625]
    """
    finite = np.isfinite(np.delete(losses, target, -1)).all((-2, -1))
    return np.where(finite, np.delete(accuracy[..., VALIDATION, :], target, -1).mean(-1), 0.0)


class RunLogits(NamedTuple):
    """Kept logits of a run for the n examples of its target: logits, at K points of training.

    Attributes:
        points: Indices into `Results.steps`, int [K].
        logits: float16 [K, n, C], each example's less the largest of them.
        labels: int [n].
        validation: Whether an example is in the target's validation split, bool [n].
    """

    points: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    validation: np.ndarray


@dataclass(frozen=True, eq=False)
class Results:
    """All runs of a sweep, measured at P points of training on the D domains.

    Of the held-out domain everything is measured, and none of it is used in training. A run that diverged
    has NaN where its losses were not finite.

    Attributes:
        header: what was run, JSON values only: "command", "version", "data" (of which "name", "domains": {name: number
            of examples}, "classes", "fingerprint"), "setting", "methods": {name: {...}} in the order of the tables.
        runs: R runs.
        steps: int [P], the optimizer steps after which the runs were measured; the first is 0.
        accuracy: float64 [R, P, 2, D], fraction of right answers on the training split (0) and the validation
            split (1) of each domain.
        losses: float64 [R, P, 2, D], mean cross-entropy there, in nats.
        probe_losses: float64 [R, P, D], the same at w on the probe: as many examples of each domain's training split.
        perturbed_losses: float64 [R, P, D], on the probe at w + e with the method's own perturbation for the
            source domains (SAM's for methods without one), that of their cross-entropy alone.
        sharpness: float64 [R, D], after the last step: L_d(w + e_d) - L_d(w) on the probe, where e_d is the step
            of one fixed length along the gradient of that domain's loss alone, the same length for every method.
        new_accuracy: float64 [R, P, D], fraction of right answers among the new classes on all their examples; None if
            all classes are trained on.
        metrics: Each further metric by name, float64 [R, P, 2, D], its mean on the training split (0) and the
            validation split (1) of each domain.
    """

    header: Mapping[str, Any]
    runs: tuple[Run, ...]
    steps: np.ndarray
    accuracy: np.ndarray
    losses: np.ndarray
    probe_losses: np.ndarray
    perturbed_losses: np.ndarray
    sharpness: np.ndarray
    new_accuracy: np.ndarray | None = None
    metrics: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, in the order of the tables."""
        return tuple(self.header["methods"])

    @property
    def domain_names(self) -> tuple[str, ...]:
        """D names."""
        return tuple(self.header["data"]["domains"])

    @property
    def targets(self) -> tuple[int, ...]:
        """The held-out domains, ascending."""
        return tuple(sorted({run.target for run in self.runs}))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending."""
        return tuple(sorted({run.seed for run in self.runs}))
