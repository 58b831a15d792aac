"""The one command of the verdict."""

import argparse
from pathlib import Path

from benchmarks.verdict.method import VERDICT
from benchmarks.verdict.plan import DATA, PHASES, REGIMES, arms_of
from benchmarks.verdict.run import run
from benchmarks.verdict.tables import write
from disam_jax.dg.data.array_cache import cache_folder
from disam_jax.dg.methods import METHODS

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
    added = options.phase == "added"
    method = METHODS["CORAL"] if added else VERDICT
    seeds = list(PHASES[options.phase])[: options.seeds]
    for regime in ["mlp"] if added else options.regimes:
        for data in options.data:
            run(
                data,
                regime,
                options.phase,
                options.folder,
                options.out,
                options.work,
                arms=arms_of(options.phase),
                method=method,
                seeds=seeds,
            )


if __name__ == "__main__":
    main()
