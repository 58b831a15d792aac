"""Fits the forecast of `disam-jax diagnose` to measured gains and writes it into the package.

    python -m benchmarks.verdict.forecast TABLE.csv [TABLE.csv ...] --runs 5200

A table has the columns data, regime, target, method (the arm that is compared with SAM), gain (in points of held-out
accuracy, the arm minus SAM), gain_se, and one for each signal, as `signals.csv` of `disam-jax diagnose --out` has them.
Each method of the tables gets a model. Prints how far the forecasts can be relied on.
"""

import argparse
import datetime
import pathlib

import disam_jax
from disam_jax.dg.diagnosis.forecast import FILE, SCHEMA, Forecast, fit
from disam_jax.dg.diagnosis.table import read_tables
from disam_jax.dg.errors import InputError
from disam_jax.dg.report.formats import to_markdown
from disam_jax.dg.report.numbers import json_bytes
from disam_jax.dg.report.tables import Cell, Table


def main(arguments=None):
    parser = argparse.ArgumentParser("python -m benchmarks.verdict.forecast", description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", type=pathlib.Path, metavar="TABLE.csv")
    parser.add_argument("--runs", type=int, help="number of training runs behind the gains, for the record")
    parser.add_argument("--permutations", type=int, default=999)
    parser.add_argument("--out", type=pathlib.Path, default=FILE)
    options = parser.parse_args(arguments)
    if options.permutations < 20:
        parser.error(f"--permutations must be at least 20, got {options.permutations}: no p can be below 0.05 then")

    provenance = {
        "version": disam_jax.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "tables": [path.name for path in options.tables],
        "runs": options.runs,
        "permutations": options.permutations,
    }
    try:
        tables = read_tables(options.tables)
        forecasts = {name: fit(table, options.permutations, provenance) for name, table in tables.items()}
    except InputError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    records = {name: forecast.record() for name, forecast in forecasts.items()}
    options.out.write_bytes(json_bytes({"schema": SCHEMA, "forecasts": records}))
    for name, forecast in forecasts.items():
        print(report(name, forecast))


def report(arm, forecast: Forecast):
    """What was fitted and how reliable it is, in Markdown."""
    of = forecast.provenance
    sets = of["data_sets"]
    lines = [
        f"## {arm} - SAM",
        "",
        f"{of['rows']} gains of {of['targets']} targets in {len(sets)} data sets ({', '.join(sets)}); regimes: "
        f"{', '.join(of['regimes'])}. Mean gain {of['mean_gain']:+.2f} points; of the variance of the gains "
        f"{of['explainable']:.0%} is not the noise of their measurement. Strength of the penalty: "
        f"{forecast.strength:.3g}.",
        "",
        to_markdown(reliability_table(forecast)),
        to_markdown(coefficients_table(forecast)),
        *forecast.sentences(arm),
        "",
    ]
    return "\n".join(lines)


def reliability_table(forecast):
    rows = []
    for split, each in forecast.reliability.items():
        of, p = each.measures, each.p
        rows.append(
            (
                Cell(split),
                Cell(str(each.groups)),
                Cell(f"{of.r2:+.2f} (p {p['r2']:.3f})"),
                Cell(f"{of.rank_correlation:+.2f} (p {p['rank_correlation']:.3f})"),
                Cell(f"{of.right_signs:.0%}, {of.constant_signs:.0%} (p {p['right_signs']:.3f})"),
                Cell(f"{of.error:.2f}, {of.constant_error:.2f} (p {p['error']:.3f})"),
                Cell(f"{each.half_width:.2f}, {each.constant_half_width:.2f}"),
            )
        )
    columns = ("held out", "groups", "R²", "rank correlation", "right signs", "absolute error", "half of the interval")
    note = "Two numbers: of the forecast, and of the mean gain. p: by permutation of the gains."
    return Table("", columns, tuple(rows), (note,))


def coefficients_table(forecast):
    rows = tuple(
        (Cell(name), Cell(f"{coefficient:+.3f}"), Cell(f"{center:.3f}"), Cell(f"{low:.3f} to {high:.3f}"))
        for name, coefficient, center, low, high in zip(
            forecast.names, forecast.coefficients, forecast.center, forecast.lowest, forecast.highest, strict=True
        )
    )
    return Table("", ("signal", "points for a standard deviation", "mean", "range"), rows)


if __name__ == "__main__":
    main()
