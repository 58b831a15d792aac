"""Trains the runs of the verdict, data set by data set, and keeps what was measured. Interrupted, it goes on."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.verdict import raw
from benchmarks.verdict.inputs import for_target, load
from benchmarks.verdict.method import VERDICT
from benchmarks.verdict.plan import ARMS, DATA, PHASES, REGIMES, Arm, Regime, candidates
from benchmarks.verdict.trainer import Fixed, train
from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.splits import split
from disam_jax.dg.methods import Method
from disam_jax.dg.models.network import Network
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.report.environment import machine, versions
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.step import make_arrays

POINTS = 10


def config_of(regime: Regime, standardise: bool) -> TrainConfig:
    """How the runs of a regime are trained."""
    return TrainConfig(
        model="mlp" if regime.hidden else "linear",
        steps=regime.steps,
        learning_rate=regime.learning_rate,
        optimizer="adam",
        standardise=standardise,
        averaging="swad",
        evaluations=POINTS,
        block=1024,
    )


def network_of(hidden: int, data: Domains) -> Network:
    """An MLP with so many hidden units; a linear classifier where there are none."""
    shape, classes = data.inputs.shape[1:], len(data.class_names)
    if hidden:
        return make_network("mlp", shape, classes, hidden=(hidden,))
    return make_network("linear", shape, classes)


def run(
    data_name: str,
    regime_name: str,
    phase: str,
    folder: Path,
    out: Path,
    work: Path,
    *,
    arms: Mapping[str, Arm] = ARMS,
    method: Method = VERDICT,
    seeds: Sequence[int] | None = None,
    say: Callable[[str], None] = print,
) -> raw.Raw:
    """Trains the runs of a data set in a regime that are not there yet.

    Args:
        data_name: Key of `DATA`.
        regime_name: Key of `REGIMES`.
        phase: Key of `PHASES`.
        folder: Folder of the data sets.
        out: Folder for the results.
        work: Folder for features and for the runs of a data set that is not finished.
        arms: Arms to train.
        method: Method that trains them.
        seeds: Seeds; those of the phase by default.
        say: Called with lines of text.

    Returns:
        The runs, which are in `runs_path(out, phase, regime_name, data_name)` as well.
    """
    entry, regime = DATA[data_name], REGIMES[regime_name]
    seeds = tuple(PHASES[phase] if seeds is None else seeds)
    tried = candidates(regime, arms)
    path = raw.runs_path(out, phase, regime_name, data_name)
    if path.exists():
        found = raw.read(path)
        if tuple(found.seeds.tolist()) == seeds and found.arms == tuple(each.arm for each in tried):
            return found
    data = load(entry, folder, work / "features", say)
    config = config_of(regime, entry.standardise)
    targets = range(len(data.domain_names))
    values = np.empty((len(tried), len(seeds), len(targets), len(raw.FIELDS)), np.float32)
    network: Network | None = None
    began = time.perf_counter()
    for target in targets:
        parts = [work / phase / path.stem / f"{target}-{seed}.npy" for seed in seeds]
        if not all(part.exists() for part in parts):
            seen = for_target(data, entry, target)
            network = network or network_of(regime.hidden, seen)
            arrays = make_arrays(seen, tuple(split(seen, seed, config.holdout) for seed in seeds), config.standardise)
        for place, (seed, part) in enumerate(zip(seeds, parts, strict=True)):
            if not part.exists():
                curves = train(tried, seed, place, target, arrays, Fixed(network, config, method))
                with raw.written_whole(part) as file:
                    np.save(file, raw.summarised(curves, target))
            values[:, place, target] = np.load(part)
        say(
            f"{data_name}, {regime_name}, {phase}: {data.domain_names[target]} is done, "
            f"{time.perf_counter() - began:.0f} s so far"
        )
    found = raw.Raw(
        values,
        tuple(each.arm for each in tried),
        np.array([each.varied for each in tried]),
        np.array(seeds),
        data.domain_names,
    )
    raw.save(path, found)
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": data_name,
        "examples": dict(zip(data.domain_names, data.counts.tolist(), strict=True)),
        "regime": {**regime._asdict()},
        "runs": int(np.prod(values.shape[:3])),
        "seconds": round(time.perf_counter() - began, 1),
        "machine": machine(),
        "versions": versions(),
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return found
