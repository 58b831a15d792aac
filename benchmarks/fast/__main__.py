"""The command of the search for DISAM near the price of a plain step."""

import argparse
from pathlib import Path

from benchmarks.fast.plan import BUDGETS, ELSEWHERE, LARGER, SEARCHED, SEEDS, SETTINGS
from benchmarks.fast.rules import choose, score
from benchmarks.fast.run import best_rate, run
from benchmarks.fast.tables import page, runs_of_phase
from disam_jax.dg.data.array_cache import cache_folder

RESULTS = Path(__file__).parents[1] / "results" / "fast"


def rules(folder: Path) -> list[str]:
    """The rule of each budget by the runs of the search, and the best step before."""
    runs = runs_of_phase(folder, "search")
    before = max((way for way in SEARCHED if way.before), key=lambda way: score(runs, way))
    found = {str(budget): choose(runs, budget) for budget in BUDGETS} | {"the step before": before}
    rates = {name: best_rate(raw) for name, raw in runs_of_phase(folder, "rates", "-other-optimizer").items()}
    ways = [f"{name}: {way.title}, score {score(runs, way):.2f}, {way}" for name, way in found.items()]
    return [*ways, f"rates of the other optimizer: {rates}"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fast",
        description="A phase of PROTOCOL.md trains what is not there yet; `rules` says which rules the search chooses; "
        "`tables` makes the page.",
    )
    parser.add_argument("what", choices=(*SEEDS, "rules", "tables"))
    parser.add_argument("--data", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--folder", type=Path, default=Path(), help="of the data sets that `disam-jax data` makes")
    parser.add_argument("--seeds", type=int, help="only the first so many seeds of the phase")
    parser.add_argument("--changes", nargs="+", choices=ELSEWHERE, help="of `elsewhere` and `larger`, all by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="of the results")
    parser.add_argument("--work", type=Path, default=cache_folder() / "fast", help="of features and unfinished runs")
    options = parser.parse_args(arguments)
    if options.what == "rules":
        print("\n".join(rules(options.out)))
    elif options.what == "tables":
        (options.out / "README.md").write_text(page(options.out))
    else:
        seeds = list(SEEDS[options.what])[: options.seeds]
        own = {"elsewhere": ELSEWHERE, "larger": LARGER, "rates": ["other-optimizer"]}.get(options.what, [""])
        changes = [each for each in own if options.changes is None or each in options.changes]
        for name in options.data:
            for change in changes:
                run(name, options.what, options.folder, options.out, options.work, change=change, seeds=seeds)


if __name__ == "__main__":
    main()
