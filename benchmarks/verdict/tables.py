"""The pages that the runs make: README.md, and a row of numbers for every comparison in comparisons.csv."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.verdict.analysis import TUNED, Comparison, added_family, at_rho, family, tuned
from benchmarks.verdict.plan import ARMS, DATA, REGIMES
from benchmarks.verdict.raw import Raw, joined, read, runs_path
from disam_jax.dg.report.statistics import estimate

COLUMNS = ("regime", "how", "selection", "quantity", "arm", "minus", "mean", "error", "p", "corrected", "verdict")
INTERVALS = ("data_low", "data_high", "targets_low", "targets_high")


def runs_of(folder: Path, phase: str) -> dict[str, dict[str, Raw]]:
    """For each regime, the runs of each data set that are there.

    Raises:
        FileNotFoundError: If there are none.
    """
    found = {
        regime: {data: read(path) for data in DATA if (path := runs_path(folder, phase, regime, data)).exists()}
        for regime in REGIMES
    }
    found = {regime: of_data for regime, of_data in found.items() if of_data}
    if not found:
        raise FileNotFoundError(f"no runs of the phase {phase} in {folder}: train them first")
    return found


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers.

    Example:
        >>> print(markdown(["arm", "mean"], [["SAM", "1.0"]]))
        | arm | mean |
        |---|---:|
        | SAM | 1.0 |
    """
    line = lambda cells: f"| {' | '.join(cells)} |"
    return "\n".join([line(header), "|---|" + "---:|" * (len(header) - 1), *map(line, rows)])


def signed(number: float, digits: int = 2) -> str:
    """A number with its sign, and no minus zero.

    Example:
        >>> signed(-0.001), signed(1.234), signed(float("nan"))
        ('0.00', '+1.23', '-')
    """
    if not np.isfinite(number):
        return "-"
    text = f"{number:+.{digits}f}"
    return text[1:] if float(text) == 0.0 else text


def comparison_row(found: Comparison) -> list[str]:
    """A row of a table of comparisons."""
    digits = 3 if found.pair.quantity == "spread" else 2
    interval = lambda low, high: f"{signed(low, digits)} to {signed(high, digits)}"
    return [
        f"{found.pair.arm} - {found.pair.other}",
        f"{signed(found.mean, digits)} ± {found.error:.{digits}f}",
        f"{found.corrected:.3g}" if np.isfinite(found.corrected) else "-",
        interval(*found.over_data),
        interval(*found.over_targets),
        *(signed(each, digits) for each in found.by_data.values()),
        found.verdict,
    ]


def comparisons_table(found: Sequence[Comparison]) -> str:
    """A table of comparisons of the same data sets."""
    data = list(found[0].by_data)
    header = ["", "mean ± error", "p, corrected", "over data sets", "over targets", *data, "verdict"]
    return markdown(header, [comparison_row(each) for each in found])


def accuracy_table(runs: Mapping[str, Raw], selection: str) -> str:
    """Mean accuracy of each arm on each data set, and its standard error over seeds."""
    arms = list(dict.fromkeys(next(iter(runs.values())).arms))
    rows = []
    for arm in arms:
        of_data = [estimate(tuned(raw, arm, selection).mean(1)) for raw in runs.values()]
        cells = [f"{mean:.1f} ± {error:.1f}" for mean, error in of_data]
        rows.append([arm, *cells, f"{np.mean([mean for mean, _ in of_data]):.2f}"])
    return markdown(["arm", *runs, "mean"], rows)


def rho_table(runs: Mapping[str, Raw], regime: str) -> str:
    """Accuracy at the last step for each rho of SAM, mean over the data sets; for arms with a perturbation."""
    rhos = REGIMES[regime].rhos
    arms = [arm for arm in dict.fromkeys(next(iter(runs.values())).arms) if arm in ARMS and ARMS[arm].varied == "rho"]
    rows = []
    for arm in arms:
        means = [np.mean([at_rho(raw, arm, rho, "last_accuracy").mean() for raw in runs.values()]) for rho in rhos]
        rows.append([arm, *(f"{mean:.1f}" if np.isfinite(mean) else "diverged" for mean in means)])
    return markdown(["arm, rho of SAM", *(f"{rho:g}" for rho in rhos)], rows)


def page(folder: Path, phase: str) -> tuple[str, list[Comparison]]:
    """The page of a phase and its comparisons. Arms that were added stand beside those that were confirmed."""
    runs = runs_of(folder, phase)
    if phase == "added":
        confirmed = runs_of(folder, "confirmation")
        runs = {
            regime: {data: joined(raw, confirmed[regime][data]) for data, raw in of_data.items()}
            for regime, of_data in runs.items()
        }
    records = [json.loads(path.read_text()) for path in sorted((folder / phase).glob("*.json"))]
    number = sum(each["runs"] for each in records)
    machine, versions = records[0]["machine"], records[0]["versions"]
    seeds = next(iter(next(iter(runs.values())).values())).seeds
    parts = [
        f"# The verdict, {phase}",
        f"Made by `python -m benchmarks.verdict tables --phase {phase}` from the files beside this page, by "
        "[the protocol](../../../verdict/PROTOCOL.md).",
        f"{number:,} runs, seeds {seeds.min()} to {seeds.max()}; {machine['cpu']}, {machine['cores']} cores; jax "
        f"{versions['jax']}; {records[0]['date'][:10]}. Accuracy in percent, differences in points, paired by seed; "
        "errors are standard errors over seeds.",
    ]
    comparisons: list[Comparison] = []
    if phase in ("confirmation", "added"):
        comparisons = (family if phase == "confirmation" else added_family)(runs)
        parts.append(
            f"The p values are corrected for all {len(comparisons)} comparisons by Holm's method. The two intervals "
            "are at 95 %: Student's over the data sets, and a bootstrap of data sets, targets and seeds."
        )
    for regime, of_data in runs.items():
        parts.append(f"## {REGIMES[regime].title}")
        domains = sum(len(raw.targets) for raw in of_data.values())
        parts.append(f"{len(of_data)} data sets, {domains} held-out domains.")
        for selection, title in TUNED.items():
            these = [each for each in comparisons if (each.regime, each.selection) == (regime, selection)]
            if these:
                parts += [f"### Tuned by {title}", comparisons_table(these)]
        at_equal = [each for each in comparisons if (each.regime, each.selection) == (regime, "")]
        if at_equal:
            for quantity, title in (("accuracy", "points"), ("spread", "of the domain losses at w, nats")):
                these = [each for each in at_equal if each.pair.quantity == quantity]
                parts += [f"### At equal rho: {quantity}, {title}", comparisons_table(these)]
        parts += ["### Accuracy by rho, last step, mean over the data sets", rho_table(of_data, regime)]
        for selection, title in {**TUNED, "oracle": "the target's validation split (oracle)"}.items():
            parts += [f"### Accuracy, chosen by {title}", accuracy_table(of_data, selection)]
    return "\n\n".join(parts) + "\n", comparisons


def as_csv(comparisons: Sequence[Comparison]) -> str:
    """All numbers of the comparisons."""
    data = list(dict.fromkeys(name for each in comparisons for name in each.by_data))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*COLUMNS, *INTERVALS, *data])
    for each in comparisons:
        pair = each.pair
        head = [each.regime, pair.how, each.selection, pair.quantity, pair.arm, pair.other]
        numbers = [each.mean, each.error, each.p, each.corrected]
        ends = [*each.over_data, *each.over_targets, *(each.by_data.get(name, np.nan) for name in data)]
        writer.writerow([*head, *(f"{x:.6g}" for x in numbers), each.verdict, *(f"{x:.6g}" for x in ends)])
    return file.getvalue()


def write(folder: Path, phase: str) -> list[Path]:
    """Writes the page of a phase, and the comparisons of the confirmation."""
    text, comparisons = page(folder, phase)
    written = [folder / phase / "README.md"]
    written[0].write_text(text)
    if comparisons:
        written.append(folder / phase / "comparisons.csv")
        written[1].write_text(as_csv(comparisons))
    return written
