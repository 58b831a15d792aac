"""The page that the runs make: README.md beside them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.fast.plan import (
    BUDGETS,
    ELSEWHERE,
    LARGER,
    PENALTIES,
    RULES,
    SEARCHED,
    SETTINGS,
    Way,
    budgets_of,
    confirmed,
)
from benchmarks.fast.rules import candidates, over_runs, score
from benchmarks.fast.run import Raw, best_rhos, path_of, read
from benchmarks.verdict.tables import markdown, signed
from disam_jax.dg.report.statistics import Estimate, estimate, paired

FULL = {"std": "DISAM, std", "variance": "DISAM, variance"}
QUANTITIES = {
    "accuracy": ("Accuracy on the unseen domains, points", 2),
    "spread": ("Spread of the domain losses, nats", 4),
    "worst_loss": ("Largest domain loss, nats", 4),
}


def of_seeds(raw: Raw, name: str, field: str) -> np.ndarray:
    """A field of the runs of a name, mean over the targets, [S]."""
    return raw.of(name, field)[0].mean(1)


def compared(raw: Raw, name: str, other: str, field: str) -> Estimate:
    """Name - other, paired by seed, mean over the targets."""
    return paired(of_seeds(raw, name, field), of_seeds(raw, other, field))


def meets(raw: Raw, way: Way) -> bool:
    """Whether it meets the goal of PROTOCOL.md: within one standard error of full DISAM in accuracy and in spread.

    A run that diverged makes it False.
    """
    accuracy, spread = (compared(raw, way.title, way.penalty, field) for field in ("accuracy", "spread"))
    return bool(accuracy.mean >= -accuracy.error and spread.mean <= spread.error)


def runs_of_phase(folder: Path, phase: str, suffix: str = "") -> dict[str, Raw]:
    """The runs of each data set that are there."""
    paths = {name: path_of(folder, phase, name + suffix) for name in SETTINGS}
    return {name: read(path) for name, path in paths.items() if path.exists()}


def _cell(found: Estimate, digits: int) -> str:
    if not np.isfinite(found.mean):
        return "diverged"
    return f"{signed(found.mean, digits)} ± {found.error:.{digits}f}"


def values_table(runs: Mapping[str, Raw], field: str, digits: int) -> str:
    """ERM, SAM and full DISAM themselves, and how far they are from ERM."""
    rows = []
    for name in ("ERM", "SAM", *PENALTIES):
        cells = []
        for raw in runs.values():
            own = estimate(of_seeds(raw, name, field))
            against = "" if name == "ERM" else f" ({_cell(compared(raw, name, 'ERM', field), digits)})"
            cells.append(f"{own.mean:.{digits}f} ± {own.error:.{digits}f}{against}")
        rows.append([FULL.get(name, name), *cells])
    return markdown(["value (minus ERM)", *runs], rows)


def ways_table(runs: Mapping[str, Raw], ways: Sequence[Way], field: str, digits: int, other: str = "") -> str:
    """Ways minus full DISAM of the same penalty, or minus another method."""
    rows = [
        [
            way.title,
            f"{way.cost:g}",
            *(_cell(compared(raw, way.title, other or way.penalty, field), digits) for raw in runs.values()),
        ]
        for way in ways
    ]
    return markdown(["", "cost", *runs], rows)


def goals_table(runs: Mapping[str, Raw], ways: Sequence[Way]) -> str:
    """On which data sets a way meets the goal."""
    rows = []
    for way in ways:
        found = [meets(raw, way) for raw in runs.values()]
        marks = ["yes" if each else "no" for each in found]
        budgets = ", ".join(f"{budget:g}" for budget in budgets_of(way)) or "-"
        rows.append([way.title, budgets, f"{way.cost:g}", *marks, f"{sum(found)} of {len(found)}"])
    return markdown(["", "rule of budget", "cost", *runs, "goal met"], rows)


def cosines_table(runs: Mapping[str, Raw], ways: Sequence[Way]) -> str:
    """Mean cosine between the direction used and the one that the batch gives, over steps, seeds and targets."""
    rows = [
        [way.title, *(f"{raw.of(way.title, 'cosine').mean():.2f}" for raw in runs.values())]
        for way in ways
        if way.before
    ]
    return markdown(["", *runs], rows)


def rho_table(runs: Mapping[str, Raw]) -> str:
    """For each fraction and each way to measure e, the factor on rho with the highest accuracy on each data set."""
    rows = []
    usual = Way()
    for fraction in sorted({way.fraction for way in SEARCHED if way.fraction < 1.0}, reverse=True):
        for begin in (0.0, 0.5, 0.8):
            for whole in (False, True):
                ways = [
                    way
                    for way in SEARCHED
                    if (way.fraction, way.begin, way.whole, way.penalty, way.before)
                    == (fraction, begin, whole, "std", False)
                    and (way.decay, way.cosine) == (usual.decay, usual.cosine)
                ]
                if len(ways) < 2:
                    continue
                cells = []
                for raw in runs.values():
                    accuracy = [np.nan_to_num(raw.of(way.title, "accuracy").mean(), nan=-1.0) for way in ways]
                    cells.append(f"{ways[int(np.argmax(accuracy))].times:g}")
                norm = "the batch's" if whole else "the part's"
                tried = ", ".join(f"{way.times:g}" for way in ways)
                rows.append([f"1/{1 / fraction:g} from {100 * begin:g} % on, norm of {norm}", tried, *cells])
    return markdown(["", "tried", *runs], rows)


def scores_table(runs: Mapping[str, Raw], budget: float, number: int = 5) -> str:
    """The ways with the highest scores within a budget."""
    best = sorted(candidates(budget), key=lambda way: (score(runs, way), -way.cost), reverse=True)[:number]
    return markdown(["", "cost", "score"], [[way.title, f"{way.cost:g}", signed(score(runs, way))] for way in best])


def schedules_table(runs: Mapping[str, Raw]) -> str:
    """What other schedules do, each minus the same way with the schedule of all: accuracy."""
    usual = Way()
    others = [way for way in SEARCHED if (way.decay, way.cosine) != (usual.decay, usual.cosine)]
    rows = []
    for way in others:
        same = way._replace(decay=usual.decay, cosine=usual.cosine)
        name = way.penalty if same == usual else same.title
        cells = (_cell(over_runs(raw, way.title, name, "accuracy"), 2) for raw in runs.values())
        rows.append([way.title, *cells])
    return markdown(["", *runs], rows)


def _elsewhere(runs: Mapping[str, Raw], way: Way) -> list[str]:
    gains = (
        " / ".join(signed(compared(raw, name, "ERM", "accuracy").mean) for raw in runs.values())
        for name in (way.penalty, way.title)
    )
    return [way.title, *gains, f"{sum(meets(raw, way) for raw in runs.values())} of {len(runs)}"]


def elsewhere_rows(folder: Path, ways: Sequence[Way]) -> list[list[str]]:
    """In other settings: full DISAM and the ways minus ERM, in accuracy, and how many data sets meet the goal."""
    rows = []
    for change in ELSEWHERE:
        runs = runs_of_phase(folder, "elsewhere", f"-{change}")
        rows += [[change, *_elsewhere(runs, way)] for way in ways if runs]
    return rows


def _over_data(runs: Mapping[str, Raw], name: str, other: str, field: str, digits: int) -> str:
    """The mean of the differences over the data sets; its error comes from the seeds alone."""
    found = [compared(raw, name, other, field) for raw in runs.values()]
    mean = np.mean([each.mean for each in found])
    return _cell(Estimate(mean, np.sqrt(np.square([each.error for each in found]).sum()) / len(found)), digits)


def _summary_row(runs: Mapping[str, Raw], number: int, way: Way | None, name: str, cost: str, write: str) -> list[str]:
    goal = "-" if way is None else f"{sum(meets(raw, way) for raw in runs.values())} of {len(runs)}"
    differences = (_over_data(runs, name, "std", field, digits) for field, digits in (("accuracy", 2), ("spread", 4)))
    return [write, str(number), cost, *differences, goal]


def changed_batch(change: str) -> int:
    """Examples of each domain in a batch with a change of `LARGER`."""
    return ELSEWHERE[change].setting["per_domain"]


def _written(way: Way) -> str:
    begin = f", begin={way.begin:g} * steps" if way.begin else ""
    norm = ", e in the norm of the batch's gradient" if way.whole else ""
    return f"`rho={way.times:g} * rho, fraction=1/{1 / way.fraction:g}{begin}`{norm}"


def summary(folder: Path) -> str:
    """The table with which `docs/fast.md` begins: fresh seeds, mean over the data sets, minus full DISAM."""
    runs = runs_of_phase(folder, "confirmation")
    rows = [
        _summary_row(runs, 16, None, "ERM", "1", "the plain gradient"),
        _summary_row(runs, 16, None, "SAM", "2", "`lam=0`, `fraction=1`: SAM"),
    ]
    for way in sorted(set(RULES.values()), key=lambda way: way.cost):
        rows.append(_summary_row(runs, 16, way, way.title, f"{way.cost:.3g}", _written(way)))
    for change, way in LARGER.items():
        if larger := runs_of_phase(folder, "larger", f"-{change}"):
            rows.append(_summary_row(larger, changed_batch(change), way, way.title, f"{way.cost:.3g}", _written(way)))
    header = ["what you write", "examples of a domain", "cost", "accuracy, points", "spread, nats", "within one error"]
    return markdown(header, rows)


def quantities(runs: Mapping[str, Raw], ways: Sequence[Way], where: str = "") -> list[str]:
    """Titles and tables of each of `QUANTITIES`."""
    parts = []
    for field, (title, digits) in QUANTITIES.items():
        parts += [f"### {title}{where}", values_table(runs, field, digits)]
        parts += ["Minus full DISAM:", ways_table(runs, ways, field, digits)]
    return parts


def page(folder: Path) -> str:
    """The page of all phases.

    Raises:
        FileNotFoundError: If there are no runs of the search.
    """
    reach, search, runs = (runs_of_phase(folder, phase) for phase in ("reach", "search", "confirmation"))
    if not search:
        raise FileNotFoundError(
            f"no runs of the search in {folder}: train them first, `python -m benchmarks.fast search`"
        )
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*/*.json"))]
    machine, versions = records[-1]["machine"], records[-1]["versions"]
    parts = [
        "# Cheaper than two passes, six data sets",
        "Made by `python -m benchmarks.fast tables` from the files beside this page, by "
        "[the protocol](../../fast/PROTOCOL.md). "
        f"{sum(each['runs'] for each in records):,} runs; {machine['cpu']}, {machine['cores']} cores; jax "
        f"{versions['jax']}.",
        "Accuracy is that on the unseen domains after the last step; spread and largest loss are of the source "
        "domains. Differences are paired by seed; errors are standard errors over seeds.",
    ]
    if runs:
        seeds = next(iter(runs.values())).seeds
        ways = confirmed()
        parts += [
            "## In short",
            "Minus full DISAM of the penalty std, means over the data sets.",
            summary(folder),
            f"## On fresh seeds, {seeds[0]} to {seeds[-1]}",
            goals_table(runs, ways),
        ]
        parts += quantities(runs, ways)
        parts += ["### Against ERM and SAM", "Accuracy minus ERM's:", ways_table(runs, ways, "accuracy", 2, "ERM")]
        parts += ["Accuracy minus SAM's:", ways_table(runs, ways, "accuracy", 2, "SAM")]
        parts += ["### The step before: cosine between the direction used and the fresh one", cosines_table(runs, ways)]
        if rows := elsewhere_rows(folder, ways):
            names = " / ".join(SETTINGS)
            parts += [
                "## Other optimizers, schedules and batch sizes",
                f"Points of accuracy on {names}. rho is that of the usual setting and was not searched again.",
                markdown(["setting", "way", "full DISAM - ERM", "way - ERM", "goal met"], rows),
            ]
    for change, way in LARGER.items():
        if larger := runs_of_phase(folder, "larger", f"-{change}"):
            batches = f"batches of {changed_batch(change)}"
            parts += [
                f"## One example of each domain in {batches}",
                "rho / sqrt(fraction) of the rho that was best in batches of 16; full DISAM has that rho.",
                goals_table(larger, [way]),
                *quantities(larger, [way], f", {batches}"),
            ]
    parts += ["## The search"]
    rhos = [[name, *(f"{rho:g}" for rho in best_rhos(raw).values())] for name, raw in reach.items()]
    parts += ["Best rho on the unseen domains:", markdown(["", "SAM", *FULL.values()], rhos)]
    for budget in BUDGETS:
        parts += [f"### The best within {budget:g}", scores_table(search, budget)]
    parts += ["### Which factor on rho, penalty std", rho_table(search)]
    parts += ["### Other schedules, minus the same with a decay of 0.3: accuracy", schedules_table(search)]
    parts += ["### The step before, cosines", cosines_table(search, SEARCHED)]
    return "\n\n".join(parts) + "\n"
