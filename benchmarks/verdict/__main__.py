"""The one command of the verdict."""

import argparse
from pathlib import Path

from benchmarks.verdict.plan import ARMS, CONFIRMED, DATA, PHASES, REGIMES
from benchmarks.verdict.run import run
from benchmarks.verdict.tables import write
from disam_jax.dg.data.array_cache import cache_folder

RESULTS = Path(__file__).parents[1] / "results" / "verdict"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.verdict",
        description="`run` trains what PROTOCOL.md names and is not there yet; `tables` makes the pages from it.",
    )
    parser.add_argument("what", choices=("run", "tables"))
    parser.add_argument("--phase", choices=PHASES, default="confirmation")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="folder of the data sets, as `disam-jax data` makes them"
    )
    parser.add_argument("--seeds", type=int, help="only the first so many seeds of the phase")
    parser.add_argument("--out", type=Path, default=RESULTS, help="of the results")
    parser.add_argument("--work", type=Path, default=cache_folder() / "verdict", help="of features and unfinished runs")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.what == "tables":
        for path in write(options.out, options.phase):
            print(path)
        return
    arms = {name: ARMS[name] for name in CONFIRMED} if options.phase == "confirmation" else ARMS
    seeds = list(PHASES[options.phase])[: options.seeds]
    for regime in options.regimes:
        for data in options.data:
            run(data, regime, options.phase, options.folder, options.out, options.work, arms=arms, seeds=seeds)


if __name__ == "__main__":
    main()
