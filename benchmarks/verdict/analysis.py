"""What the runs say: selection, paired comparisons, tests and intervals, as PROTOCOL.md has them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.verdict.plan import ARMS, EQUAL_RHO
from benchmarks.verdict.raw import Raw
from disam_jax.dg.report.statistics import Interval, confidence_interval, estimate, holm, permutation_test

TUNED = {"validation_loss": "validation loss", "validation_accuracy": "validation accuracy"}
WITH_SWAD = {"validation_loss": "swad_loss", "validation_accuracy": "swad_accuracy"}
BOOTSTRAPS = 9999
LEVEL, TIE = 0.05, 0.5


class Pair(NamedTuple):
    """Two arms that are compared, and how.

    Attributes:
        arm: The one.
        other: The other.
        how: "tuned", "swad" (tuned, with SWAD's weights) or "equal rho".
        quantity: "accuracy" in points, or "spread" in nats.
    """

    arm: str
    other: str
    how: str = "tuned"
    quantity: str = "accuracy"


STD, CONTROL = "DISAM-std, lam 0.7", "control, std, lam -0.7"
CLAIMED: tuple[Pair, ...] = (
    Pair("SAM", "ERM"),
    Pair("ASAM", "SAM"),
    Pair("DISAM, lam 0.1", "SAM"),
    Pair("DISAM, lam 1", "SAM"),
    Pair("DISAM-std, lam 0.4", "SAM"),
    Pair(STD, "SAM"),
    Pair(STD, CONTROL),
    Pair("own e", "SAM"),
    Pair("normalised", "SAM"),
    Pair("descent 0.5", "SAM"),
    Pair("V-REx", "ERM"),
    Pair("GroupDRO", "ERM"),
    Pair("SAM", "ERM", "swad"),
    Pair(STD, "SAM", "swad"),
    Pair("descent 0.5", "SAM", "swad"),
)
ADDED_PAIRS: tuple[Pair, ...] = (Pair("CORAL", "ERM"), Pair("CORAL", "SAM"))
AT_EQUAL_RHO: tuple[Pair, ...] = tuple(
    Pair(arm, "SAM", "equal rho", quantity)
    for arm in (STD, CONTROL, "DISAM, lam 1", "DISAM, lam 0.1")
    for quantity in ("accuracy", "spread")
)


def chosen(raw: Raw, arm: str, selection: str) -> np.ndarray:
    """Which candidate of an arm has the highest score, int [S, T]; one that diverged is never chosen."""
    rows = rows_of(raw, arm)
    score = raw.field(f"{selection}_score")[rows]
    return np.asarray(rows)[np.where(np.isfinite(score), score, -np.inf).argmax(0)]


def rows_of(raw: Raw, arm: str) -> list[int]:
    """The candidates of an arm.

    Raises:
        KeyError: If there are no runs of it.
    """
    rows = [row for row, name in enumerate(raw.arms) if name == arm]
    if not rows:
        raise KeyError(f"no runs of {arm}")
    return rows


def tuned(raw: Raw, arm: str, selection: str) -> np.ndarray:
    """The target's accuracy of the candidate that a selection chooses, float64 [S, T], in percent."""
    return np.take_along_axis(raw.field(f"{selection}_accuracy"), chosen(raw, arm, selection)[None], 0)[0]


def at_rho(raw: Raw, arm: str, rho: float, field: str) -> np.ndarray:
    """A field of an arm's candidate with SAM's rho, float64 [S, T]."""
    wanted = ARMS[arm].times * rho
    row = next(row for row in rows_of(raw, arm) if np.isclose(raw.varied[row], wanted))
    return raw.field(field)[row]


def values(raw: Raw, arm: str, pair: Pair, selection: str, regime: str) -> np.ndarray:
    """What is compared of one arm, float64 [S, T]."""
    if pair.how == "equal rho":
        return at_rho(raw, arm, EQUAL_RHO[regime], "last_accuracy" if pair.quantity == "accuracy" else pair.quantity)
    return tuned(raw, arm, WITH_SWAD[selection] if pair.how == "swad" else selection)


class Comparison(NamedTuple):
    """What a comparison shows.

    Attributes:
        pair: What is compared.
        regime: In which regime.
        selection: By which selection; "" at equal rho.
        by_data: Mean difference of each data set.
        mean: Mean over the data sets.
        error: Its standard error over seeds.
        p: Of the sign flips over seeds, not corrected.
        over_data: Student's interval over data sets.
        over_targets: Bootstrap interval over data sets, targets and seeds.
        corrected: p, corrected for the whole family.
    """

    pair: Pair
    regime: str
    selection: str
    by_data: Mapping[str, float]
    mean: float
    error: float
    p: float
    over_data: Interval
    over_targets: Interval
    corrected: float = float("nan")

    @property
    def verdict(self) -> str:
        """One of the words of the protocol."""
        real = self.corrected < LEVEL
        if self.pair.quantity == "spread":
            word = "lower" if self.mean < 0.0 else "higher"
            beyond = self.over_data.high < 0.0 or self.over_data.low > 0.0
            return ("not shown" if not real else word) if beyond or not real else f"{word} on these data sets"
        if real and self.over_data.low > 0.0:
            return "win"
        if real and self.over_data.high < 0.0:
            return "loss"
        if real:
            return "win on these data sets" if self.mean > 0.0 else "loss on these data sets"
        if self.over_data.low >= -TIE and self.over_data.high <= TIE:
            return "tie"
        return "not shown"


def bootstrap(differences: Sequence[np.ndarray], number: int = BOOTSTRAPS, seed: int = 0) -> Interval:
    """95 % interval of the mean over data sets of arrays [S, T]: data sets are drawn, then targets, then seeds.

    Seeds are drawn once for all targets of a data set, which share them.

    Example:
        >>> bootstrap([np.ones((4, 2)), np.ones((4, 3))], number=10)
        Interval(low=np.float64(1.0), high=np.float64(1.0))
    """
    rng = np.random.default_rng(seed)
    of_data = np.empty((len(differences), number, len(differences)))
    for place, each in enumerate(differences):
        seeds, targets = (rng.integers(size, size=(number, len(differences), size)) for size in each.shape)
        of_data[place] = each[seeds[..., :, None], targets[..., None, :]].mean((-2, -1))
    drawn = rng.integers(len(differences), size=(number, len(differences)))
    means = np.take_along_axis(np.moveaxis(of_data, 0, -1), drawn[..., None], -1).mean((-2, -1))
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(low, high)


def compare(runs: Mapping[str, Raw], pair: Pair, regime: str, selection: str) -> Comparison:
    """Compares two arms in a regime over all data sets, which have the same seeds.

    Args:
        runs: Runs of each data set.
        pair: What to compare.
        regime: Regime of the runs.
        selection: Key of `TUNED`; not used at equal rho.

    Returns:
        Comparison, whose p is not corrected.
    """
    differences = {
        name: values(raw, pair.arm, pair, selection, regime) - values(raw, pair.other, pair, selection, regime)
        for name, raw in runs.items()
    }
    of_data = np.array([each.mean() for each in differences.values()])
    of_seeds = np.stack([each.mean(1) for each in differences.values()]).mean(0)
    return Comparison(
        pair,
        regime,
        "" if pair.how == "equal rho" else selection,
        dict(zip(differences, of_data.tolist(), strict=True)),
        *map(float, estimate(of_seeds)),
        permutation_test(of_seeds),
        confidence_interval(of_data),
        bootstrap(list(differences.values())),
    )


def corrected(found: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons as one family, by Holm's method."""
    return [each._replace(corrected=float(p)) for each, p in zip(found, holm([each.p for each in found]), strict=True)]


def family(runs: Mapping[str, Mapping[str, Raw]]) -> list[Comparison]:
    """All comparisons of the protocol, corrected together.

    Args:
        runs: For each regime, the runs of each data set.
    """
    return corrected(
        [
            compare(of_regime, pair, regime, selection)
            for regime, of_regime in runs.items()
            for selection, pairs in [*((name, CLAIMED) for name in TUNED), ("", AT_EQUAL_RHO)]
            for pair in pairs
        ]
    )


def added_family(runs: Mapping[str, Mapping[str, Raw]]) -> list[Comparison]:
    """The comparisons of the arms that were added, corrected among themselves."""
    return corrected(
        [
            compare(of_regime, pair, regime, selection)
            for regime, of_regime in runs.items()
            for selection in TUNED
            for pair in ADDED_PAIRS
        ]
    )
