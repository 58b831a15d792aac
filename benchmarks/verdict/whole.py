"""The whole of a pretrained network, fine-tuned on a folder of images: for a GPU, in the minutes that it is given.

    python -m benchmarks.verdict.whole --data PACS96/PACS --minutes 8 --out OUT

ERM, SAM, DISAM-std, its control and descent on the penalised objective, in bfloat16 and in float32: round by round, a
round being one seed and one target with every arm in both types. All arms are one method of the library with other
numbers, so that one program serves them. What is finished when the time is over is what the table has.
"""

import argparse
import csv
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.verdict.tables import markdown, signed
from disam_jax.dg.cli.compare import config_of, fine_tuned, load_checkpoint, read_data, with_own_checkpoint
from disam_jax.dg.cli.options import Compare
from disam_jax.dg.data.splits import split
from disam_jax.dg.methods import METHODS
from disam_jax.dg.models.network import Network, Output
from disam_jax.dg.report.environment import machine, versions
from disam_jax.dg.report.statistics import estimate
from disam_jax.dg.results import TRAIN, VALIDATION, Run
from disam_jax.dg.runners.make import runner_factory

METHOD = "DISAM-descent-std"
ARMS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "ERM": {"rho": 0.0, "lam": 0.0, "descent_lam": 0.0},
        "SAM": {"lam": 0.0, "descent_lam": 0.0},
        "DISAM-std, lam 0.7": {"lam": 0.7, "descent_lam": 0.0},
        "control, std, lam -0.7": {"lam": -0.7, "descent_lam": 0.0},
        "descent 0.5": {"lam": 0.0, "descent_lam": 0.5},
    }
)
DTYPES = ("bfloat16", "float32")
COLUMNS = ("dtype", "seed", "target", "arm", "accuracy", "validation", "spread", "worst_loss", "seconds")


def computed_in(network: Network, dtype: str) -> Network:
    """The network with its arithmetic in another type: float32 parameters are cast, logits come back as float32.

    Its inputs must come in that type too: see `PreparedIn`.

    Example:
        >>> apply = lambda params, state, x, key, train: Output(params * x, x, state)
        >>> network = computed_in(Network(lambda key: (jnp.ones(()), {}), apply), "bfloat16")
        >>> network.apply(jnp.float32(1.001), {}, jnp.ones((1, 1), "bfloat16"), None, False).logits.tolist()
        [[1.0]]
    """

    def apply(params: Any, state: Any, x: jax.Array, key: Any, train: bool, **weights: Any) -> Output:
        narrow = lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        wide = lambda new, old: new.astype(old.dtype)
        params, given, weights = jax.tree.map(narrow, (params, state, weights))
        output = network.apply(params, given, x, key, train, **weights)
        new_state = jax.tree.map(wide, output.state, state)
        return Output(output.logits.astype(jnp.float32), output.features.astype(jnp.float32), new_state)

    return network if dtype == "float32" else network._replace(apply=apply)


@dataclasses.dataclass(frozen=True)
class PreparedIn:
    """Images as a network gets them, in another type; equal to another one of the same parts."""

    prepare: Callable[[jax.Array], jax.Array]
    dtype: str

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.prepare(inputs).astype(self.dtype)


class Row(NamedTuple):
    """One run: percent and nats at the last step, and what it took."""

    dtype: str
    seed: int
    target: str
    arm: str
    accuracy: float
    validation: float
    spread: float
    worst_loss: float
    seconds: float


def rounds(options: Compare, minutes: float, clock: Callable[[], float] = time.monotonic) -> Iterator[Row]:
    """Trains round by round until the time is over; a round is not begun that would not end in time.

    Args:
        options: Data, model and training.
        minutes: Time from the call on, compiling included.
        clock: Seconds.
    """
    began = clock()
    options = with_own_checkpoint(options)
    silent = lambda *_: None
    pretrained = load_checkpoint(options)
    assert pretrained is not None
    data = read_data(options, options.image_size or 128, None, silent, options.out)
    config = config_of(options, data)

    def network_in(dtype: str) -> Network:
        in_type = pretrained._replace(prepare=PreparedIn(pretrained.prepare, dtype))
        return computed_in(fine_tuned(in_type, data, config, {}, options, silent, None).network, dtype)

    seeds = tuple(range(options.seeds))
    splits = tuple(split(data, seed, config.holdout) for seed in seeds)
    make = runner_factory(data, config, splits, seeds, min(config.probe, int(splits[0].train_counts.min())))
    runners = {dtype: make(METHOD, network_in(dtype), METHODS[METHOD]) for dtype in DTYPES}
    shared = {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay, "rho": config.rho}
    longest = 0.0
    for seed in seeds:
        for target, name in enumerate(data.domain_names):
            if clock() - began + longest > 60.0 * minutes:
                return
            start = clock()
            for place, (arm, own) in enumerate(ARMS.items()):
                for dtype, runner in runners.items():
                    run_began = clock()
                    found = runner.train([Run(METHOD, target, seed, place, {**shared, **own})])
                    yield row(found, dtype, seed, target, name, arm, clock() - run_began)
            # The first round compiles.
            longest = clock() - start if longest or seed or target else 0.5 * (clock() - start)


def row(found: Mapping[str, Any], dtype: str, seed: int, target: int, name: str, arm: str, seconds: float) -> Row:
    """What is kept of a run."""
    accuracy, losses = found["accuracy"][0, -1], np.asarray(found["losses"][0, -1], np.float64)
    sources = np.delete(losses[TRAIN], target)
    validation = np.delete(accuracy[VALIDATION], target).mean()
    worth = [100.0 * accuracy[TRAIN, target], 100.0 * validation, sources.std(), sources.max(), seconds]
    return Row(dtype, seed, name, arm, *(round(float(each), 4) for each in worth))


def table(rows: list[Row]) -> str:
    """Means of each arm, and differences to SAM paired by seed and target; only rounds that are whole."""
    of = {(each.dtype, each.seed, each.target, each.arm): each for each in rows}
    units = sorted({(each.seed, each.target) for each in rows})
    units = [unit for unit in units if all((dtype, *unit, arm) in of for dtype in DTYPES for arm in ARMS)]
    lines = []
    for dtype in DTYPES:
        for arm in ARMS:
            mine = [of[dtype, *unit, arm] for unit in units]
            sam = [of[dtype, *unit, "SAM"] for unit in units]
            gain, error = estimate(np.array([a.accuracy - b.accuracy for a, b in zip(mine, sam, strict=True)]))
            mean = lambda name, mine=mine: float(np.mean([getattr(each, name) for each in mine]))
            spread_of_gain = f" ± {error:.2f}" if len(units) > 1 else ""
            cells = [f"{mean('accuracy'):.2f}", signed(gain) + spread_of_gain, f"{mean('spread'):.3f}"]
            lines.append([f"{arm}, {dtype}", *cells, f"{mean('worst_loss'):.3f}", f"{mean('seconds'):.1f}"])
    header = ["", "accuracy", "minus SAM", "spread, nats", "largest loss, nats", "seconds per run"]
    return f"{len(units)} pairs of seed and target.\n\n{markdown(header, lines)}\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdict.whole", description=__doc__)
    parser.add_argument("--data", required=True, help="folder of images, DIR/domain/class/image")
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--per-domain", type=int, default=16)
    parser.add_argument("--rho", type=float, default=0.05)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, default=20, help="at most; as many as fit are trained")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    taken = {name: value for name, value in vars(options).items() if name not in ("minutes", "out")}
    training = Compare(**taken, frozen_norm=True, evaluations=1, optimizer="adam", out=options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with (options.out / "whole.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for one in rounds(training, options.minutes):
            rows.append(one)
            writer.writerow(one)
            file.flush()
            print(*one, flush=True)
    record = {"options": {**taken, "minutes": options.minutes}, "machine": machine(), "versions": versions()}
    (options.out / "whole.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "whole.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
