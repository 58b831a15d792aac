"""`disam-jax report`, and the end of `compare`: the table on standard output, the files in the folder."""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import exists, shown

if TYPE_CHECKING:
    from disam_jax.dg.cli.options import Merge, Report
    from disam_jax.dg.results import Results

# Of a report with too many methods for one table.
OF_LOGITS = ("kept_metrics", "kept_comparisons")
FEW = 20
PRINTED = ("accuracy", "open", "comparisons", "losses", "selection", "flops")


def report(
    results: "Results",
    criterion: str,
    out: Path,
    cost: Mapping[str, Mapping[str, Any]] | None,
    command: str,
    seconds: float | None,
    machine: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = (),
) -> None:
    """Prints the table and writes all files of the report.

    Args:
        results: Results of all runs.
        criterion: How runs and points of training are chosen, a key of `CRITERIA`.
        out: Folder of the results.
        cost: Cost of each method, if runs were trained just now.
        command: Command that was typed.
        seconds: Seconds that it took, if runs were trained just now.
        machine: What trained them; this one by default.
        metrics: Names of metrics of kept logits; by default all, where logits were kept.

    Raises:
        InputError: If a metric is unknown, or the logits cannot be read; nothing has been written then.
    """
    from disam_jax.dg.report import environment, formats, write
    from disam_jax.dg.report.findings import findings
    from disam_jax.dg.report.metric_summary import with_metrics
    from disam_jax.dg.report.summary import summarise
    from disam_jax.dg.sweep.model_selection import reported
    from disam_jax.dg.sweep.results_folder import RECORD, metric_file, report_folder, write_report

    folder = report_folder(out, criterion)
    trained = any(each["seconds_per_run"] is not None for each in (cost or {}).values())
    if not trained and exists(folder / RECORD):
        # What was measured when they were trained is not lost.
        cost, seconds = None, None
    summaries = {each: summarise(results, each) for each in reported(criterion)}
    summaries[criterion] = with_metrics(summaries[criterion], results, out, metrics)
    contents = write.report_files(results, criterion, cost, summaries)
    if seconds is not None:
        record = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": command,
            "seconds": round(seconds, 1),
            "machine": machine or environment.machine(),
            "versions": environment.versions(),
            "cost": cost,
        }
        contents[RECORD] = (json.dumps(record, indent=1) + "\n").encode()
    write_report(folder, contents, criterion)
    made = write.report_tables(results, summaries, criterion)
    # Of so many parts that they are no table to read, the files are enough, unless the user asks for them.
    of_parts = [metric_file(each.name) for each in summaries[criterion].metrics if metrics or len(each.parts) <= FEW]
    for name in (*(("compare", "open") if "compare" in made else PRINTED), *OF_LOGITS, *of_parts):
        if name in made:
            formats.print_table(made[name])
            print()
    found = findings(summaries[criterion])
    formats.print_lines(
        [*found, *results.header["notes"], "", f"written to {shown(folder)}: {', '.join(sorted(contents))}"]
    )


def run_report(options: "Report", command: str) -> None:
    """Makes the report of a folder's results again.

    Raises:
        InputError: If no folder is given, or the results cannot be read.
    """
    from disam_jax.dg.sweep.results_file import complete_part, load_results
    from disam_jax.dg.sweep.results_folder import check_out, read_manifest

    out = options.folder or options.out
    if out is None or (options.folder and options.out):
        raise InputError("report takes one folder: write disam-jax report DIR")
    results = complete_part(load_results(out))
    check_out(out)
    manifest = read_manifest(out)
    select = options.select or (manifest.select if manifest else "validation")
    report(results, select, out, None, command, None, metrics=options.metrics)


def run_merge(options: "Merge") -> None:
    """Puts shards together, prints the table of the whole and writes its report.

    Raises:
        InputError: If they do not belong together, or the whole cannot be written.
    """
    from disam_jax.dg.sweep.merge import merge
    from disam_jax.dg.sweep.results_folder import read_manifest

    if len(options.folders) < 2:
        raise InputError("merge takes the folders of all shards: write disam-jax merge DIR DIR ... --out DIR")
    results = merge(options.folders, options.out, options.select)
    manifest = read_manifest(options.out)
    select = options.select or (manifest.select if manifest else "validation")
    report(results, select, options.out, None, results.header["command"], None)
