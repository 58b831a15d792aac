"""What is kept of a run: a few numbers, from which every table is made."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from benchmarks.verdict.trainer import Curves
from disam_jax.dg.results import TRAIN, VALIDATION

# For each selection, the score of the run's best point (higher is better) and the target's accuracy there, in percent.
# "last" has no choice of a point; its score is the validation accuracy, which no table uses.
SELECTIONS = ("validation_accuracy", "validation_loss", "oracle", "last", "swad_accuracy", "swad_loss")
FURTHER = ("spread", "worst_loss", "mean_loss")
FIELDS = tuple(f"{name}_{what}" for name in SELECTIONS for what in ("score", "accuracy")) + FURTHER


def summarised(curves: Curves, target: int) -> np.ndarray:
    """What is kept of K runs, float32 [K, len(FIELDS)].

    - "validation_accuracy" and "validation_loss": the point with the highest accuracy or the lowest loss on the source
      domains' validation splits, averaged over them.
    - "oracle": the last point, scored by the accuracy on the target's validation split.
    - "last": the last point.
    - "swad_accuracy" and "swad_loss": SWAD's weights, scored as the first two.
    - "spread", "worst_loss", "mean_loss": of the source domains' training losses at the last point, in nats.

    The target's accuracy is that on its training split, as in DomainBed. A run that diverged has NaN.
    """
    sources = lambda values: np.delete(values, target, -1)
    with np.errstate(invalid="ignore"):
        accuracy = sources(curves.accuracy[:, :, VALIDATION]).mean(-1)
        loss = sources(curves.losses[:, :, VALIDATION]).mean(-1)
        unseen = 100.0 * curves.accuracy[:, :, TRAIN, target]
        scores = {"validation_accuracy": accuracy, "validation_loss": -loss}
        found: dict[str, np.ndarray] = {}
        for name, score in scores.items():
            best = score.argmax(1)[:, None]
            found[f"{name}_score"] = np.take_along_axis(score, best, 1)[:, 0]
            found[f"{name}_accuracy"] = np.take_along_axis(unseen, best, 1)[:, 0]
        found["oracle_score"] = curves.accuracy[:, -1, VALIDATION, target]
        found["last_score"] = accuracy[:, -1]
        found["oracle_accuracy"] = found["last_accuracy"] = unseen[:, -1]
        found["swad_accuracy_score"] = sources(curves.swad_accuracy[:, VALIDATION]).mean(-1)
        found["swad_loss_score"] = -sources(curves.swad_losses[:, VALIDATION]).mean(-1)
        found["swad_accuracy_accuracy"] = found["swad_loss_accuracy"] = 100.0 * curves.swad_accuracy[:, TRAIN, target]
        training = sources(curves.losses[:, -1, TRAIN])
        found |= {"spread": training.std(-1), "worst_loss": training.max(-1), "mean_loss": training.mean(-1)}
        diverged = ~np.isfinite(curves.losses).all((1, 2, 3))
    table = np.stack([found[name] for name in FIELDS], -1).astype(np.float32)
    table[diverged] = np.nan
    return table


class Raw(NamedTuple):
    """All runs of a data set in a regime, of one phase.

    Attributes:
        values: float32 [K, S, T, len(FIELDS)] of K candidates, S seeds and T targets.
        arms: Arm of each candidate, [K].
        varied: The number that distinguishes it from the others of its arm, [K].
        seeds: [S].
        targets: Names, [T].
    """

    values: np.ndarray
    arms: Sequence[str]
    varied: np.ndarray
    seeds: np.ndarray
    targets: Sequence[str]

    def field(self, name: str) -> np.ndarray:
        """One of `FIELDS`, float64 [K, S, T]."""
        return self.values[..., FIELDS.index(name)].astype(np.float64)


def joined(one: Raw, other: Raw) -> Raw:
    """The arms of both with the seeds of the one, which the other has as well.

    Raises:
        ValueError: If the other has other targets or lacks a seed.
    """
    places = np.flatnonzero(np.isin(other.seeds, one.seeds))
    if tuple(one.targets) != tuple(other.targets) or other.seeds[places].tolist() != one.seeds.tolist():
        raise ValueError(f"runs of seeds {one.seeds} and targets {one.targets} have none beside them in {other.seeds}")
    values = np.concatenate([one.values, other.values[:, places]])
    return one._replace(values=values, arms=(*one.arms, *other.arms), varied=np.concatenate([one.varied, other.varied]))


def runs_path(folder: Path, phase: str, regime: str, data: str) -> Path:
    """Where the runs of a data set in a regime are kept."""
    return folder / phase / f"{regime}-{data}.npz"


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which has its name when it is whole; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    with unfinished.open("wb") as file:
        yield file
    unfinished.replace(path)


def save(path: Path, raw: Raw) -> None:
    """Writes a file of runs, whole or not at all."""
    with written_whole(path) as file:
        np.savez_compressed(file, fields=np.array(FIELDS), **raw._asdict())


def read(path: Path) -> Raw:
    """Reads a file of runs."""
    with np.load(path, allow_pickle=False) as file:
        if tuple(file["fields"].tolist()) != FIELDS:
            raise ValueError(f"{path} has other fields than {FIELDS}: make it again")
        return Raw(
            file["values"], tuple(file["arms"].tolist()), file["varied"], file["seeds"], tuple(file["targets"].tolist())
        )
