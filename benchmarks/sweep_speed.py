"""How much faster many runs in one program are than one run after the other, through the same code.

    python benchmarks/sweep_speed.py

Both sides train the same runs of DISAM on the digits, a block at a time, in turn, compiled beforehand; the ratio
is taken block by block. Then the same for programs of other sizes. Writes sweep_speed.json and sweep_speed.md.
"""

import argparse
import json
import pathlib
import statistics
import time

from disam_jax.dg.data.digits import load_digits
from disam_jax.dg.data.splits import split
from disam_jax.dg.methods import METHODS
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.report.environment import machine, versions
from disam_jax.dg.runners.in_memory import InMemoryRunner
from disam_jax.dg.runners.memory import program_bytes
from disam_jax.dg.sweep import hparams as search
from disam_jax.dg.sweep import run as sweep
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.step import make_arrays


def seconds(program, runs, at_once):
    """Trains the runs in programs of `at_once` and returns the seconds it took, without compilation."""
    parts = [runs[first : first + at_once] for first in range(0, len(runs), at_once)]
    program.compile(parts[0])
    began = time.perf_counter()
    for part in parts:
        program.train(part)
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--block", type=int, default=50, help="runs of a block, and in one program")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--steps", type=int, default=TrainConfig.steps)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    options = parser.parse_args()

    data, method = load_digits(), METHODS["DISAM"]
    config = TrainConfig(steps=options.steps)
    seeds = tuple(range(10))
    arrays = make_arrays(data, tuple(split(data, seed) for seed in seeds), config.standardise)
    candidates = search.random_candidates(method, config, -(-options.runs // (len(seeds) * 6)), seed=0)
    runs = sweep.Plan({"DISAM": candidates}, tuple(range(6)), seeds).runs[: options.runs]
    network = make_network("mlp", data.inputs.shape[1:], len(data.class_names), hidden=(config.hidden,))
    program = InMemoryRunner(network, method, config, arrays, seeds, config.probe if config.probe < 200 else 200)

    blocks = [runs[first : first + options.block] for first in range(0, len(runs), options.block)]
    blocks = [block for block in blocks if len(block) == options.block]
    for size in (options.block, 1):
        program.train(blocks[0][:size])  # the first run of a program is not timed
    together, alone = [], []
    for number, block in enumerate(blocks):
        # In turn, so that what else the machine does falls on both.
        first, second = (together, alone) if number % 2 else (alone, together)
        for side in (first, second):
            side.append(seconds(program, block, options.block if side is together else 1))
    ratios = [slow / fast for slow, fast in zip(alone, together, strict=True)]

    scaling = []
    for size in options.sizes:
        if size <= len(runs):
            program.train(runs[:size])
            taken = [seconds(program, runs[:size], size) / size for _ in range(3)]
            scaling.append(
                {
                    "runs_at_once": size,
                    "seconds_per_run": statistics.median(taken),
                    "spread": [min(taken), max(taken)],
                    "bytes": program_bytes(program.compile(runs[:size])),
                }
            )

    count = len(blocks) * options.block
    found = {
        "runs": count,
        "steps": config.steps,
        "runs_at_once": options.block,
        "runs_per_minute": 60.0 * count / sum(together),
        "runs_per_minute_alone": 60.0 * count / sum(alone),
        "ratio": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "scaling": scaling,
        "machine": machine(),
        "versions": versions(),
    }
    lines = [
        "# Runs per minute of a sweep",
        "",
        "    python benchmarks/sweep_speed.py",
        "",
        f"{count} runs of DISAM on the digits ({config.steps} steps, measured {config.evaluations} times), "
        f"{options.block} in one program against one after the other, in turn, without compilation:",
        "",
        "| | runs per minute |",
        "|---|---:|",
        f"| {options.block} in one program | {found['runs_per_minute']:.0f} |",
        f"| one after the other | {found['runs_per_minute_alone']:.0f} |",
        f"| ratio, median of {len(ratios)} blocks (least, most) | {found['ratio']['median']:.2f} "
        f"({found['ratio']['least']:.2f}, {found['ratio']['most']:.2f}) |",
        "",
        "| runs in one program | seconds per run (least, most of 3) | memory of the program, MiB |",
        "|---:|---:|---:|",
        *(
            f"| {each['runs_at_once']} | {each['seconds_per_run']:.3f} ({each['spread'][0]:.3f}, "
            f"{each['spread'][1]:.3f}) | {each['bytes'] / 2**20:.1f} |"
            for each in scaling
        ),
        "",
        f"{found['machine']['cpu']}, {found['machine']['cores']} cores, {found['machine']['device']}; "
        + ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        + ".",
        "",
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "sweep_speed.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "sweep_speed.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
