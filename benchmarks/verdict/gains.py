"""The gains of DISAM-std over SAM beside the signals of a short plain trial: what a forecast is fitted to.

python -m benchmarks.verdict.gains --folder DATA && python -m benchmarks.verdict.forecast gains.csv
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.verdict.__main__ import RESULTS
from benchmarks.verdict.analysis import STD, tuned
from benchmarks.verdict.inputs import for_target, load
from benchmarks.verdict.plan import ARMS, DATA, EQUAL_RHO, REGIMES
from benchmarks.verdict.raw import Raw
from benchmarks.verdict.run import config_of, network_of
from benchmarks.verdict.tables import runs_of
from disam_jax.dg.data.array_cache import cache_folder
from disam_jax.dg.diagnosis.trial import diagnose
from disam_jax.dg.report.statistics import estimate

METHOD, SELECTION = "DISAM-std", "validation_loss"
# Of the trials: none of those on which gains are measured.
SEEDS = range(3)


def gains(raw: Raw) -> tuple[np.ndarray, np.ndarray]:
    """Gain over SAM on each target, tuned, in points, and its standard error over seeds, [T] each."""
    return estimate(tuned(raw, STD, SELECTION) - tuned(raw, "SAM", SELECTION))


def rows(regime: str, name: str, raw: Raw, folder: Path, work: Path) -> list[dict[str, object]]:
    """A row for each target of a data set in a regime."""
    entry, data = DATA[name], load(DATA[name], folder, work / "features")
    config = config_of(REGIMES[regime], entry.standardise)
    config = replace(config, averaging="none", rho=EQUAL_RHO[regime], lam=ARMS[STD].values["std"])
    gain, error = gains(raw)
    found: list[dict[str, object]] = []
    network = None
    for target, domain in enumerate(data.domain_names):
        seen = for_target(data, entry, target)
        network = network or network_of(REGIMES[regime].hidden, seen)
        signals = diagnose(seen, network, config, METHOD, [target], SEEDS).estimates()
        numbers = {"gain": gain[target], "gain_se": error[target]}
        numbers |= {key: each.mean[0] for key, each in signals.items()}
        words = {"data": name, "regime": regime, "target": domain, "method": METHOD}
        found.append({**words, **{key: f"{number:.6g}" for key, number in numbers.items()}})
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdict.gains", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(), help="of the data sets that `disam-jax data` makes")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--runs", type=Path, default=RESULTS, help="folder of the confirming runs")
    parser.add_argument("--work", type=Path, default=cache_folder() / "verdict", help="of features")
    parser.add_argument("--out", type=Path, default=RESULTS / "confirmation" / "gains.csv")
    options = parser.parse_args(arguments)
    table: list[dict[str, object]] = []
    runs = runs_of(options.runs, "confirmation")
    for regime in options.regimes:
        for name, raw in runs[regime].items():
            print(f"{name}, {regime}", flush=True)
            table += rows(regime, name, raw, options.folder, options.work)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
