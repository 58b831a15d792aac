"""Tables of gains and signals, from which a forecast is fitted."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from disam_jax.dg.diagnosis.signals import Signals
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import brief, read_bytes, shown

TEXTS = ("data", "regime", "target", "method")
GAINS = ("gain", "gain_se")


@dataclass(frozen=True, eq=False)
class Table:
    """Gains of a method over SAM and the signals of the same targets; N rows, K signals.

    Attributes:
        data: Names of the data sets, [N].
        regime: What was trained, [N].
        target: Names of the held-out domains, [N].
        gain: Held-out accuracy minus SAM's, in points, float64 [N].
        gain_se: Its standard error, float64 [N].
        signals: float64 [N, K].
        names: K names of signals.
    """

    data: tuple[str, ...]
    regime: tuple[str, ...]
    target: tuple[str, ...]
    gain: np.ndarray
    gain_se: np.ndarray
    signals: np.ndarray
    names: tuple[str, ...] = Signals._fields

    @property
    def data_sets(self) -> np.ndarray:
        """Number of the data set of each row, int [N]."""
        return _numbers(self.data)

    @property
    def targets(self) -> np.ndarray:
        """Number of the held-out domain of each row, int [N]; domains of two data sets are never the same."""
        return _numbers(list(zip(self.data, self.target, strict=True)))


def _numbers(values: Sequence[Any]) -> np.ndarray:
    place = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.array([place[value] for value in values], int)


def read_tables(paths: Sequence[Path]) -> dict[str, Table]:
    r"""Reads CSV files with the columns data, regime, target, method, gain, gain_se and one for each signal.

    Args:
        paths: Files; their rows go together. Other columns are left out.

    Returns:
        A table for each method.

    Raises:
        InputError: If a file cannot be read, lacks a column, has a value that is no finite number, or a row is there
            twice.

    Example:
        >>> import tempfile
        >>> columns = (*TEXTS, *GAINS, *Signals._fields)
        >>> row = ("digits", "mlp", "clean", "DISAM-std", "0.3", "0.2", *["0.5"] * len(Signals._fields))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "table.csv")
        ...     _ = path.write_text(",".join(columns) + "\n" + ",".join(row))
        ...     tables = read_tables([path])
        >>> tables["DISAM-std"].gain.tolist(), tables["DISAM-std"].signals.shape
        ([0.3], (1, 7))
    """
    rows: dict[tuple[str, ...], list[float]] = {}
    for path in paths:
        for where, row in _rows(path):
            key = tuple(row[name] for name in TEXTS)
            if key in rows:
                raise InputError(f"{where}: {', '.join(map(brief, key))} appears twice")
            rows[key] = [_number(row[name], name, where) for name in (*GAINS, *Signals._fields)]
    tables = {}
    for method in dict.fromkeys(key[3] for key in rows):
        chosen = {key: values for key, values in rows.items() if key[3] == method}
        values = np.array(list(chosen.values()))
        data, regime, target, _ = zip(*chosen, strict=True)
        tables[method] = Table(data, regime, target, values[:, 0], values[:, 1], values[:, 2:])
    return tables


def _rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Where each row is, and its values by column."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)} is not UTF-8: write the table anew as CSV") from error
    lines = list(csv.reader(io.StringIO(text)))
    if len(lines) < 2:
        raise InputError(f"{shown(path)} has no row under its header")
    header = lines[0]
    missing = [name for name in (*TEXTS, *GAINS, *Signals._fields) if name not in header]
    if missing:
        raise InputError(
            f"{shown(path)} has no column {', '.join(missing)}: its columns are {shown(', '.join(header))}"
        )
    found = []
    for number, line in enumerate(lines[1:], start=2):
        where = f"{shown(path)} line {number}"
        if line and len(line) != len(header):
            raise InputError(f"{where} has {len(line)} values, but there are {len(header)} columns")
        if line:
            found.append((where, dict(zip(header, line, strict=True))))
    return found


def _number(text: str, column: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {column} must be a finite number, got {brief(text)}")
    return value


def described(table: Table) -> dict[str, Any]:
    """Contents of a table, as JSON values.

    Example:
        >>> table = Table(("a", "a"), ("mlp",) * 2, ("x", "y"), np.array([1.0, 3.0]), np.ones(2), np.zeros((2, 7)))
        >>> described(table)["targets"], described(table)["explainable"]
        (2, 0.0)
    """
    variance = float(table.gain.var())
    noise = float((table.gain_se**2).mean())
    return {
        "data_sets": list(dict.fromkeys(table.data)),
        "regimes": list(dict.fromkeys(table.regime)),
        "targets": len(set(table.targets.tolist())),
        "rows": len(table.gain),
        "mean_gain": float(table.gain.mean()),
        "mean_gain_se": float(table.gain_se.mean()),
        # The share of the variance of the gains that is not the noise of their measurement.
        "explainable": max(0.0, 1.0 - noise / variance) if variance > 0 else 0.0,
    }
