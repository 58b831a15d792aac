"""A forecast of DISAM's gain over SAM from signals: a ridge regression, and how far it can be relied on."""

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from disam_jax.dg.diagnosis.reliability import (
    COVERAGE,
    STRENGTHS,
    Measures,
    Reliability,
    best_strength,
    leave_one_out,
    reliability,
    ridge,
)
from disam_jax.dg.diagnosis.table import Table, described
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import brief, exists, read_json, shown

# The model that comes with the package; without the file there is no forecast.
FILE = Path(__file__).with_name("forecast.json")
SCHEMA = 1
# Without a data set that is held out and one by which the strength is chosen, nothing is left to fit on.
LEAST_DATA_SETS = 3


class Prediction(NamedTuple):
    """A forecast of a gain, in points; arrays of one shape.

    Attributes:
        gain: Forecast.
        low: Lower end of its interval.
        high: Upper end.
    """

    gain: np.ndarray
    low: np.ndarray
    high: np.ndarray


# Groups that are held out, by what they are called.
SPLITS = {"data set": lambda table: table.data_sets, "target": lambda table: table.targets}


@dataclass(frozen=True, eq=False)
class Forecast:
    """A fitted model: `gain = intercept + sum_k coefficients_k (signal_k - center_k) / scale_k`.

    Attributes:
        names: K names of signals.
        center: Mean of each signal in the table, float64 [K].
        scale: Its standard deviation, float64 [K].
        coefficients: Points for a standard deviation of each signal, float64 [K].
        intercept: Mean gain of the table, in points.
        strength: Of the penalty.
        lowest: Smallest value of each signal in the table, float64 [K].
        highest: Largest value, float64 [K].
        reliability: How good forecasts of "data set"s and "target"s are that the model had not seen.
        provenance: What it was fitted on, JSON values.
    """

    names: tuple[str, ...]
    center: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    intercept: float
    strength: float
    lowest: np.ndarray
    highest: np.ndarray
    reliability: Mapping[str, Reliability]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def foretells(self) -> bool:
        """Whether the signals foretell the gain on data sets that the model had not seen."""
        return self.reliability["data set"].foretells

    def predict(self, signals: Mapping[str, np.ndarray]) -> Prediction:
        """Forecasts gains on a data set that the model has not seen.

        Args:
            signals: Values of each of `names`, float64 [T]. One beyond those of the table is taken as the nearest one.

        Returns:
            Prediction with arrays [T]. Where signals do no better than the mean gain, it is the mean gain.

        Raises:
            ValueError: If a signal is missing.
        """
        missing = [name for name in self.names if name not in signals]
        if missing:
            raise ValueError(f"signals must have {', '.join(self.names)}, got none called {', '.join(missing)}")
        values = np.stack([np.asarray(signals[name], np.float64) for name in self.names], -1)
        found = self.reliability["data set"]
        if self.foretells:
            within = np.clip(values, self.lowest, self.highest)
            gain = self.intercept + ((within - self.center) / self.scale) @ self.coefficients
            half = found.half_width
        else:
            gain, half = np.full(values.shape[:-1], self.intercept), found.constant_half_width
        return Prediction(gain, gain - half, gain + half)

    def beyond(self, signals: Mapping[str, np.ndarray]) -> tuple[str, ...]:
        """Names of the signals with a value outside of what the model was fitted on."""
        return tuple(
            name
            for name, low, high in zip(self.names, self.lowest, self.highest, strict=True)
            if (np.asarray(signals[name]) < low).any() or (np.asarray(signals[name]) > high).any()
        )

    def sentences(self, arm: str) -> list[str]:
        """What the forecast is worth, in two or three sentences.

        Args:
            arm: Method whose gain over SAM is forecast.

        Returns:
            Sentences.
        """
        unseen = self.reliability["data set"]
        of = unseen.measures
        percent = round(100 * COVERAGE)
        if not self.foretells:
            return [
                "These signals did not predict the gain on data sets that the model had not seen: expect "
                f"{self.intercept:+.1f} ± {unseen.constant_half_width:.1f} points whatever their values.",
                f"(R² {of.r2:+.2f} against the mean gain, p = {unseen.p['r2']:.3f}; {unseen.groups} data sets, each "
                f"held out once. {percent} % of the gains of {arm} over SAM were within that range.)",
            ]
        return [
            f"On data sets that the model had not seen, forecasts were off by {of.error:.1f} points on average, the "
            f"mean gain by {of.constant_error:.1f}; {100 * of.right_signs:.0f} % had the right sign, of the mean gain "
            f"{100 * of.constant_signs:.0f} %.",
            f"R² {of.r2:+.2f} against the mean gain (p = {unseen.p['r2']:.3f}), rank correlation "
            f"{of.rank_correlation:+.2f} (p = {unseen.p['rank_correlation']:.3f}); {unseen.groups} data sets, each "
            "held out once.",
            f"The intervals are those that held {percent} % of the gains of {arm} over SAM there.",
        ]

    def record(self) -> dict[str, Any]:
        """JSON values."""
        plain = lambda value: [float(f"{each:.10g}") for each in value]
        return {
            "provenance": dict(self.provenance),
            "reliability": {
                name: {**asdict(each), "measures": each.measures._asdict()} for name, each in self.reliability.items()
            },
            "names": list(self.names),
            "center": plain(self.center),
            "scale": plain(self.scale),
            "coefficients": plain(self.coefficients),
            "intercept": float(self.intercept),
            # JSON has no word for infinity.
            "strength": self.strength if math.isfinite(self.strength) else None,
            "lowest": plain(self.lowest),
            "highest": plain(self.highest),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Forecast":
        """The forecast of a `record`."""
        reliability = {
            name: Reliability(
                each["groups"],
                Measures(**each["measures"]),
                each["p"],
                each["half_width"],
                each["constant_half_width"],
            )
            for name, each in record["reliability"].items()
        }
        arrays = {name: np.array(record[name]) for name in ("center", "scale", "coefficients", "lowest", "highest")}
        return cls(
            names=tuple(record["names"]),
            intercept=record["intercept"],
            strength=math.inf if record["strength"] is None else record["strength"],
            reliability=reliability,
            provenance=record["provenance"],
            **arrays,
        )


def fit(table: Table, permutations: int = 999, provenance: Mapping[str, Any] | None = None) -> Forecast:
    """Fits a ridge regression of the gains on the standardised signals.

    The strength of the penalty has the least squared error of forecasts of data sets that are held out.

    Args:
        table: Gains and signals, of at least three data sets.
        permutations: Number of permutations behind each p.
        provenance: What the table was made of, JSON values.

    Returns:
        Forecast.

    Raises:
        InputError: If there are too few data sets.

    Example:
        >>> from disam_jax.dg.diagnosis.table import Table
        >>> rows = np.arange(12)
        >>> names = tuple("abcd"[row // 3] for row in rows)
        >>> table = Table(names, names, tuple(map(str, rows)), rows % 3.0, rows * 0.0, rows[:, None] % 3.0, ("x",))
        >>> forecast = fit(table, permutations=39)
        >>> round(float(forecast.predict({"x": np.array([1.5])}).gain[0]), 1)
        1.5
    """
    number = len(set(table.data))
    if number < LEAST_DATA_SETS:
        raise InputError(
            f"the table has {number} data sets, and how far a forecast can be relied on is told from data sets that it "
            f"has not seen: give at least {LEAST_DATA_SETS}"
        )
    held_out = leave_one_out(table.signals, np.arange(len(table.gain)), table.data_sets)
    place = int(best_strength(held_out, table.gain))
    fitted, mean = ridge(table.signals), float(table.gain.mean())
    return Forecast(
        table.names,
        fitted.center,
        fitted.scale,
        fitted.maps[place] @ (table.gain - mean),
        mean,
        STRENGTHS[place],
        table.signals.min(0),
        table.signals.max(0),
        {name: reliability(table, groups(table), permutations) for name, groups in SPLITS.items()},
        {**described(table), **(provenance or {})},
    )


def load_forecasts(path: Path = FILE) -> dict[str, Forecast]:
    """The fitted model of each method; of the package, if no other file is given.

    Args:
        path: JSON file, from `python -m benchmarks.verdict.forecast`.

    Returns:
        Forecasts by method; none where there is no such file.

    Raises:
        InputError: If the file is another one.

    Example:
        >>> load_forecasts(Path("nothing here"))
        {}
    """
    if not exists(path):
        return {}
    contents = read_json(path)
    if contents.get("schema") != SCHEMA:
        raise InputError(
            f"{shown(path)} has schema {brief(contents.get('schema'))}, this version reads {SCHEMA}: make it anew"
        )
    return {name: Forecast.from_record(each) for name, each in contents["forecasts"].items()}


@functools.cache
def own_forecasts() -> Mapping[str, Forecast]:
    """Those of the package, read once."""
    return load_forecasts()
