"""Trains the runs of a phase on a data set and keeps what was measured. Interrupted, it goes on."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.fast.plan import (
    ELSEWHERE,
    LARGER,
    OTHER_OPTIMIZER,
    OTHER_RATES,
    PENALTIES,
    RATES,
    SEARCHED,
    SEEDS,
    SETTINGS,
    Setting,
    Way,
    confirmed,
    numbers,
)
from benchmarks.fast.trainer import FIELDS, Fixed, train
from benchmarks.verdict.inputs import for_target, load
from benchmarks.verdict.raw import written_whole
from benchmarks.verdict.run import network_of
from disam_jax.dg.data.splits import split
from disam_jax.dg.models.network import Network
from disam_jax.dg.report.environment import machine, versions
from disam_jax.dg.training.step import make_arrays

HOLDOUT = 0.2


class Raw(NamedTuple):
    """All runs of a phase on a data set.

    Attributes:
        values: float32 [K, S, T, len(FIELDS)] of K runs for each of S seeds and T targets.
        names: What each run is, [K].
        rhos: Its rho, [K].
        seeds: [S].
        targets: Names, [T].
    """

    values: np.ndarray
    names: Sequence[str]
    rhos: np.ndarray
    seeds: np.ndarray
    targets: Sequence[str]

    def of(self, name: str, field: str) -> np.ndarray:
        """A field of the runs of a name, float64 [K', S, T], in the order of their rhos."""
        rows = [row for row, each in enumerate(self.names) if each == name]
        return self.values[rows, ..., FIELDS.index(field)].astype(np.float64)


def path_of(folder: Path, phase: str, data: str) -> Path:
    """Where the runs of a phase on a data set are kept."""
    return folder / phase / f"{data}.npz"


def read(path: Path) -> Raw:
    """Reads a file of runs.

    Raises:
        ValueError: If it has other fields.
    """
    with np.load(path, allow_pickle=False) as file:
        if tuple(file["fields"].tolist()) != FIELDS:
            raise ValueError(f"{path} has other fields than {FIELDS}: make it again")
        return Raw(
            *(file[name] if file[name].dtype.kind == "f" else tuple(file[name].tolist()) for name in Raw._fields)
        )


def best_rhos(reach: Raw) -> dict[str, float]:
    """For SAM and each penalty, the rho with the highest accuracy on the unseen domains.

    A user cannot choose so. It makes the methods that the cheaper ways are compared with as good as they can be.
    """
    found = {}
    for name in ("SAM", *PENALTIES):
        accuracy = reach.of(name, "accuracy").mean((1, 2))
        rhos = [rho for each, rho in zip(reach.names, reach.rhos, strict=True) if each == name]
        found[name] = float(rhos[int(np.nanargmax(accuracy))])
    return found


def changed(name: str, change: str) -> Setting:
    """The setting of a data set with a change of `ELSEWHERE`, or without one."""
    setting = SETTINGS[name]
    if change == "other-optimizer":
        rate = OTHER_RATES.get(name, setting.learning_rate)
        return setting._replace(optimizer=OTHER_OPTIMIZER[setting.optimizer], learning_rate=rate)
    return setting._replace(**ELSEWHERE[change].setting) if change else setting


def best_rate(rates: Raw) -> float:
    """The learning rate at which ERM's validation loss is lowest."""
    losses = [rates.of(f"ERM, rate {rate:g}", "validation_loss").mean() for rate in RATES]
    return RATES[int(np.nanargmin(losses))]


def runs_of(
    setting: Setting, phase: str, rhos: Mapping[str, float], change: str = ""
) -> list[tuple[str, dict[str, float]]]:
    """Names and numbers of the runs of a phase: ERM, SAM, full DISAM, and the ways of the phase at these rhos.

    Args:
        setting: How all are trained.
        phase: Key of `SEEDS`. In "rates", ERM tries learning rates instead.
        rhos: Best rhos; not used by "reach", which tries those of the setting.
        change: Key of `ELSEWHERE`, or "".
    """
    other = ELSEWHERE[change].way if change else {}
    of = lambda rho, way: numbers(setting, rho, way._replace(**other))
    # Without a penalty, DISAM is SAM.
    full = {"SAM": Way(penalty=""), **{name: Way(penalty=name) for name in PENALTIES}}
    if phase == "reach":
        return [
            ("ERM", of(0.0, full["SAM"])),
            *((name, of(rho, way)) for name, way in full.items() for rho in setting.rhos),
        ]
    ways = SEARCHED if phase == "search" else [LARGER[change]] if phase == "larger" else confirmed()
    if phase == "rates":
        return [(f"ERM, rate {rate:g}", {**of(0.0, full["SAM"]), "learning_rate": rate}) for rate in RATES]
    return [
        ("ERM", of(0.0, full["SAM"])),
        *((name, of(rhos[name], way)) for name, way in full.items()),
        *((way.title, of(rhos[way.penalty], way)) for way in ways),
    ]


def run(
    name: str,
    phase: str,
    folder: Path,
    out: Path,
    work: Path,
    *,
    change: str = "",
    seeds: Sequence[int] | None = None,
    say: Callable[[str], None] = print,
) -> Raw:
    """Trains the runs of a phase on a data set that are not there yet.

    Args:
        name: Key of `SETTINGS`.
        phase: Key of `SEEDS`.
        folder: Folder of the data sets.
        out: Folder for the results, which has those of the phase "reach" unless that is the phase.
        work: Folder for features and for the runs of a data set that is not finished.
        change: Key of `ELSEWHERE`, in what the runs differ from the setting of the data set.
        seeds: Seeds; those of the phase by default.
        say: Called with lines of text.

    Returns:
        The runs, which are in `path_of(out, phase, name)` as well.
    """
    setting, title = changed(name, change), f"{name}-{change}" if change else name
    seeds = tuple(SEEDS[phase] if seeds is None else seeds)
    rhos = {} if phase == "reach" else best_rhos(read(path_of(out, "reach", name)))
    named = [
        (way, {"learning_rate": setting.learning_rate, **values})
        for way, values in runs_of(setting, phase, rhos, change)
    ]
    names, each = zip(*named, strict=True)
    path = path_of(out, phase, title)
    if path.exists() and (found := read(path)).names == names and found.seeds == seeds:
        return found
    data = load(setting.data, folder, work / "features", say)
    values = np.empty((len(named), len(seeds), len(data.domain_names), len(FIELDS)), np.float32)
    network: Network | None = None
    began = time.perf_counter()
    for target, domain in enumerate(data.domain_names):
        seen = for_target(data, setting.data, target)
        network = network or network_of(setting.hidden, seen)
        arrays = make_arrays(seen, tuple(split(seen, seed, HOLDOUT) for seed in seeds), setting.data.standardise)
        for place, seed in enumerate(seeds):
            part = work / phase / title / f"{target}-{seed}.npy"
            if not part.exists():
                found = train(list(each), seed, place, target, arrays, Fixed(network, setting))
                with written_whole(part) as file:
                    np.save(file, found)
            values[:, place, target] = np.load(part)
        say(f"{title}, {phase}: {domain} is done, {time.perf_counter() - began:.0f} s so far")
    rho = np.array([each["rho"] for _, each in named])
    with written_whole(path) as file:
        np.savez_compressed(
            file,
            values=values,
            names=np.array(names),
            rhos=rho,
            seeds=np.array(seeds),
            targets=data.domain_names,
            fields=np.array(FIELDS),
        )
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": name,
        "change": change,
        "rhos": rhos,
        "runs": int(np.prod(values.shape[:3])),
        "seconds": round(time.perf_counter() - began, 1),
        "machine": machine(),
        "versions": versions(),
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return read(path)
