"""All files of a report, made from stored results: the same bytes whenever they are made again."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from disam_jax.dg.report import figures, formats, tables
from disam_jax.dg.report.findings import findings
from disam_jax.dg.report.html_page import html_page
from disam_jax.dg.report.metric_figures import LOOKS, metric_figures
from disam_jax.dg.report.metric_tables import metric_csv, metric_tables
from disam_jax.dg.report.metrics import metrics_table
from disam_jax.dg.report.numbers import as_json, json_bytes
from disam_jax.dg.report.open_classes import open_by_run, open_table
from disam_jax.dg.report.scores import QUANTITIES, score
from disam_jax.dg.report.sensitivity import Grid, grids
from disam_jax.dg.report.summary import Summary, summarise
from disam_jax.dg.results import Results
from disam_jax.dg.sweep.model_selection import CRITERIA, IN_EVERY_REPORT, Selected, reported, select
from disam_jax.dg.sweep.results_folder import metric_file

# More methods than these make the small table of quantities by methods too wide for a page.
COMPARED = 4


def report_files(
    results: Results,
    criterion: str = "validation",
    cost: Mapping[str, Mapping[str, Any]] | None = None,
    summaries: Mapping[str, Summary] | None = None,
) -> dict[str, bytes]:
    """All files of a report.

    Args:
        results: of a sweep over one data set.
        criterion: how what is reported was chosen, a key of `CRITERIA`; those of `reported` are in the table
            of selections and in `results.json`.
        cost: for each method "flops" per training step and "seconds_per_run", each a number or None. It decides
            `cost.*` alone: every other file is the same bytes without it.
        summaries: one for each criterion, if they are there already.

    Returns:
        For each file's name, its bytes: `report.html`, `table.md`, `runs.csv`, `results.json`, a LaTeX and a CSV file
        for each table, a PNG and a PDF file for each figure.

    Raises:
        ValueError: on an unknown criterion, or if a run is missing.

    Example:
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM")
        >>> files = report_files(results, "last")
        >>> [name for name in files if not name.endswith((".csv", ".tex", ".pdf"))]
        ['table.md', 'results.json', 'domain_losses.png', 'convergence.png', 'report.html']
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    if summaries is None:
        summaries = {each: summarise(results, each) for each in reported(criterion)}
    drawn = report_figures(summaries[criterion], grids(results))
    contents = text_files(results, summaries, criterion, tuple(drawn), cost)
    for name, figure in drawn.items():
        for suffix in ("png", "pdf"):
            contents[f"{name}.{suffix}"] = figures.render(figure, suffix)
    shown = {name: figures.render(figure, "svg") for name, figure in drawn.items()}
    made = report_tables(results, summaries, criterion)
    contents["report.html"] = html_page(results, summaries[criterion], made, shown)
    for name, figure in metric_figures(summaries[criterion].metrics, LOOKS["dark"]).items():
        contents[f"{name}_dark.png"] = figures.render(figure, "png")
    return contents


def text_files(
    results: Results,
    summaries: Mapping[str, Summary],
    criterion: str,
    drawn: tuple[str, ...] = (),
    cost: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, bytes]:
    """All files of a report but the figures.

    Args:
        results: of the sweep.
        summaries: one for each criterion.
        criterion: the one that is reported.
        drawn: names of the figures, for the page.
        cost: as in `report_files`.

    Returns:
        For each file's name, its bytes.

    Example:
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM")
        >>> sorted(text_files(results, {each: summarise(results, each) for each in CRITERIA}, "last"))[:5]
        ['accuracy.csv', 'accuracy.tex', 'losses.csv', 'losses.tex', 'results.json']
    """
    of_grid = grids(results)
    made = report_tables(results, summaries, criterion)
    contents = {
        "table.md": page(results, summaries[criterion], made, drawn).encode(),
        "runs.csv": runs_csv(results).encode(),
        "results.json": json_bytes(as_json(results, summaries, criterion, made, of_grid)),
    }
    for name, table in made.items():
        contents[f"{name}.tex"] = formats.to_latex(table).encode()
        contents[f"{name}.csv"] = formats.to_csv(table).encode()
    for each in summaries[criterion].metrics:
        if not each.metric.tested:
            contents[f"{metric_file(each.name)}.csv"] = metric_csv(each).encode()
    if cost is not None:
        table = tables.cost_table(results, cost)
        contents["cost.md"] = f"# {table.title}\n\n{formats.to_markdown(table)}".encode()
        contents["cost.tex"] = formats.to_latex(table).encode()
        contents["cost.csv"] = formats.to_csv(table).encode()
    return contents


def report_tables(results: Results, summaries: Mapping[str, Summary], criterion: str) -> dict[str, tables.Table]:
    """The tables by the names of their files.

    Args:
        results: of the sweep.
        summaries: one for each criterion.
        criterion: the one that is reported.

    Returns:
        The tables that the results allow: paired differences only with two methods to compare, FLOPs only if a
        method's are known.

    Example:
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM", "SAM")
        >>> summaries = {criterion: summarise(results, criterion) for criterion in CRITERIA}
        >>> list(report_tables(results, summaries, "last"))
        ['accuracy', 'comparisons', 'loss_comparisons', 'losses', 'sharpness', 'selection']
    """
    summary = summaries[criterion]
    made = {}
    if summary.variants and len(summary.methods) <= COMPARED:
        made["compare"] = tables.compare_table(summary)
    made["accuracy"] = tables.accuracy_table(summary)
    if results.new_accuracy is not None:
        made["open"] = open_table(results, summary)
    if summary.comparisons["accuracy"]:
        made["comparisons"] = tables.comparisons_table(summary)
        made["loss_comparisons"] = tables.comparisons_table(summary, tables.LOSSES)
    made["losses"] = tables.losses_table(summary)
    made["sharpness"] = tables.sharpness_table(summary)
    if results.metrics:
        made["metrics"] = metrics_table(results, summary)
    made |= metric_tables(summary)
    made["selection"] = tables.selection_table(summaries)
    if any(facts.get("flops") is not None for facts in results.header["methods"].values()):
        made["flops"] = tables.cost_table(results)
    return made


def report_figures(summary: Summary, of_grid: tuple[Grid, ...]) -> dict[str, Any]:
    """The figures by the names of their files.

    Args:
        summary: of the runs.
        of_grid: from `sensitivity.grids`.

    Returns:
        The figures that the results allow: paired differences only with two methods to compare, sensitivity only of
        methods with several rho or lam, the usable range only of those with several rho, and with ERM.

    Example:
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM", "SAM")
        >>> list(report_figures(summarise(results, "last"), of_grid=()))
        ['domain_losses', 'convergence', 'differences']
    """
    compared = {name for pair in summary.variants for name in pair}
    methods = [name for name in summary.methods if name in compared or not compared]
    drawn = {
        "domain_losses": figures.draw_losses(summary, methods),
        "convergence": figures.draw_convergence(summary),
    }
    if summary.comparisons["accuracy"]:
        drawn["differences"] = figures.draw_differences(summary)
    if of_grid:
        drawn["sensitivity"] = figures.draw_sensitivity(of_grid, summary.labels, summary.title)
    ranges = [grid for grid in of_grid if grid.gain is not None and len(grid.line("lam", grid.drawn_lam)) > 1]
    if ranges:
        drawn["usable_range"] = figures.draw_usable_range(ranges, summary.labels, summary.title)
    return drawn | metric_figures(summary.metrics, LOOKS["light"])


def page(results: Results, summary: Summary, made: Mapping[str, tables.Table], drawn: tuple[str, ...]) -> str:
    """Everything on one page.

    Args:
        results: of the sweep.
        summary: under the criterion that is reported.
        made: the tables.
        drawn: names of the figures.

    Returns:
        Markdown.

    Example:
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM")
        >>> page(results, summarise(results, "last"), made={}, drawn=()).splitlines()[-1]
        'Data: photo 9, sketch 9; 2 classes.'
    """
    data = results.header["data"]
    classes = data["classes"] if isinstance(data["classes"], int) else len(data["classes"])
    text = formats.markdown_text
    counts = ", ".join(f"{name} {count}" for name, count in data["domains"].items())
    # A command can have an end of line in a name, which would end the block of code.
    command = " ".join(results.header["command"].splitlines())
    lines = [f"# {text(summary.title)}", "", f"    {command}", ""]
    lines += [f"Runs and points of training chosen by {CRITERIA[summary.criterion].title}.", ""]
    first, said = made.get("compare"), set()
    if first is not None:
        lines += [formats.to_markdown(replace(first, notes=()))]
    lines += [f"- {text(line)}" for line in [*findings(summary), *results.header.get("notes", ())]]
    if first is not None:
        lines += ["", *(f"- {text(note)}" for note in first.notes)]
        said.update(first.notes)
    for name, table in made.items():
        if name != "compare":
            # What a note says it says once.
            new = replace(table, notes=tuple(note for note in table.notes if note not in said))
            said.update(table.notes)
            lines += ["", f"## {table.title}", "", formats.to_markdown(new).rstrip()]
    if drawn:
        lines += ["", "## Figures", ""]
    of_metrics = {metric_file(each.name) for each in summary.metrics}
    lines += [_picture(name, dark=name in of_metrics) for name in drawn]
    lines += ["", f"Data: {text(counts)}; {classes} classes.", ""]
    return "\n".join(lines)


def _picture(name: str, dark: bool) -> str:
    words = name.replace("_", " ")
    if not dark:
        return f"![{words}]({name}.png)"
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{name}_dark.png">'
    return f'<picture>{source}<img alt="{words}" src="{name}.png"></picture>'


def runs_csv(results: Results) -> str:
    """One line for each run, diverged or not.

    The losses and `accuracy` are those after the last step. For each criterion, `accuracy_...` and `step_...` are
    what it reports of this run, empty where it chose another one.

    Args:
        results: of the sweep.

    Returns:
        CSV with a header line.

    Example:
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM")
        >>> [line.split(",")[:4] for line in runs_csv(results).splitlines()]
        [['method', 'target', 'seed', 'candidate'], ['ERM', 'sketch', '0', '0']]
    """
    every = np.arange(len(results.runs))
    last = score(results, Selected(every, np.full(len(every), len(results.steps) - 1)))
    chosen = {criterion: _chosen(results, criterion) for criterion in IN_EVERY_REPORT}
    hparams = list(dict.fromkeys(name for run in results.runs for name in run.hparams))
    header = ["method", "target", "seed", "candidate", *hparams, *QUANTITIES]
    header += [f"{what}_{criterion}" for criterion in IN_EVERY_REPORT for what in ("accuracy", "step")]
    of_new = open_by_run(results)
    lines = [[*header, *of_new, "diverged"]]
    for index, run in enumerate(results.runs):
        fields = [run.method, results.domain_names[run.target], str(run.seed), str(run.candidate)]
        fields += [formats.csv_number(run.hparams.get(name)) for name in hparams]
        fields += [formats.csv_number(float(getattr(last, quantity)[index])) for quantity in QUANTITIES]
        for chosen_runs in chosen.values():
            accuracy, step = chosen_runs.get(index, (None, None))
            fields += [formats.csv_number(accuracy), "" if step is None else str(step)]
        fields += [formats.csv_number(float(values[index])) for values in of_new.values()]
        lines.append([*fields, str(bool(last.diverged[index])).lower()])
    return formats.write_csv(lines)


def _chosen(results: Results, criterion: str) -> dict[int, tuple[float, int]]:
    """Accuracy and step that are reported of each chosen run."""
    selected = select(results, criterion)
    accuracy = score(results, selected).accuracy
    return {
        int(run): (float(value), int(results.steps[point]))
        for run, point, value in zip(selected.run.flat, selected.point.flat, accuracy.flat, strict=True)
    }
