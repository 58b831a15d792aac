"""The command of the search for DISAM near the price of a plain step."""

import argparse
from pathlib import Path

from benchmarks.fast.plan import SEEDS, SETTINGS
from benchmarks.fast.run import run
from disam_jax.dg.data.array_cache import cache_folder

RESULTS = Path(__file__).parents[1] / "results" / "fast"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fast", description=__doc__)
    parser.add_argument("phase", choices=SEEDS)
    parser.add_argument("--data", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--folder", type=Path, default=Path(), help="of the data sets that `disam-jax data` makes")
    parser.add_argument("--seeds", type=int, help="only the first so many seeds of the phase")
    parser.add_argument("--out", type=Path, default=RESULTS, help="of the results")
    parser.add_argument("--work", type=Path, default=cache_folder() / "fast", help="of features and unfinished runs")
    options = parser.parse_args(arguments)
    for name in options.data:
        run(
            name,
            options.phase,
            options.folder,
            options.out,
            options.work,
            seeds=list(SEEDS[options.phase])[: options.seeds],
        )


if __name__ == "__main__":
    main()
