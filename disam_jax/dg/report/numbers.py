"""All numbers of a report in `results.json`."""

import json
from collections.abc import Mapping
from typing import Any

from disam_jax.dg.report import formats, tables
from disam_jax.dg.report.findings import findings
from disam_jax.dg.report.scores import QUANTITIES
from disam_jax.dg.report.sensitivity import Grid
from disam_jax.dg.report.statistics import Estimate
from disam_jax.dg.report.summary import Comparison, Summary
from disam_jax.dg.results import Results

SCHEMA = 2


def as_json(
    results: Results,
    summaries: Mapping[str, Summary],
    criterion: str,
    made: Mapping[str, tables.Table],
    of_grid: tuple[Grid, ...],
) -> dict[str, Any]:
    """All numbers of the report, as a dictionary that JSON can hold. What is not finite is None.

    Args:
        results: of the sweep.
        summaries: one for each criterion.
        criterion: the one of the tables and findings.
        made: the tables.
        of_grid: from `sensitivity.grids`.

    Returns:
        A dictionary.

    Example:
        >>> import numpy as np
        >>> from disam_jax.dg.report.summary import summarise
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM")
        >>> found = as_json(results, {"last": summarise(results, "last")}, "last", made={}, of_grid=())
        >>> found["title"], found["targets"], found["units"]["accuracy"]
        ('toy, leave one domain out: 1 seed, 1 steps', ['sketch'], 'percent')
    """
    return {
        "schema": SCHEMA,
        "title": summaries[criterion].title,
        "header": dict(results.header),
        "units": {quantity: "percent" if quantity == "accuracy" else "nats" for quantity in QUANTITIES},
        "seeds": list(results.seeds),
        "targets": list(summaries[criterion].targets),
        "criterion": criterion,
        "findings": findings(summaries[criterion]),
        "criteria": {name: _plain_summary(each) for name, each in summaries.items()},
        "sensitivity": {
            grid.method: {
                "rho": formats.plain(grid.rho),
                "lam": formats.plain(grid.lam),
                "accuracy": _plain_estimate(grid.accuracy),
                "gain": None if grid.gain is None else _plain_estimate(grid.gain),
            }
            for grid in of_grid
        },
        **({"kept_metrics": of_metrics} if (of_metrics := _plain_metrics(summaries[criterion])) else {}),
        "tables": {name: formats.to_json(table) for name, table in made.items()},
    }


def _plain_summary(summary: Summary) -> dict[str, Any]:
    curves = summary.curves
    methods = {
        name: {
            "scores": {quantity: formats.plain(getattr(summary.scores, quantity)[k]) for quantity in QUANTITIES},
            "diverged": summary.scores.diverged[k].tolist(),
            "accuracy_by_target": _plain_estimate(_row(summary.accuracy, k)),
            "overall": {quantity: _plain_estimate(_row(each, k)) for quantity, each in summary.overall.items()},
            "domain_sharpness": _plain_estimate(_row(summary.domain_sharpness, k)),
            "curves": {
                "domain_losses": _plain_estimate(_row(curves.domain_losses, k)),
                "loss": _plain_estimate(_row(curves.loss, k)),
                "accuracy": _plain_estimate(_row(curves.accuracy, k)),
            },
        }
        for k, name in enumerate(summary.methods)
    }
    comparisons = {
        quantity: [_plain_comparison(each) for each in of_quantity]
        for quantity, of_quantity in summary.comparisons.items()
    }
    divergence = {name: each._asdict() for name, each in summary.divergence.items()}
    return {
        "methods": methods,
        "comparisons": comparisons,
        "divergence": divergence,
        "steps": [int(step) for step in curves.steps],
    }


def _plain_metrics(summary: Summary) -> dict[str, Any]:
    """The metrics by which methods are compared; the others have files of their own."""
    return {
        each.name: {
            "unit": each.metric.unit,
            "parts": [list(part) for part in each.parts],
            "methods": {
                name: {
                    "values": formats.plain(each.values[k]),
                    "overall": _plain_estimate(_row(each.overall, k)),
                    "by_target": _plain_estimate(_row(each.by_target, k)),
                    "undefined": each.undefined[k].tolist(),
                }
                for k, name in enumerate(summary.methods)
            },
            "comparisons": [[_plain_comparison(compared) for compared in of_part] for of_part in each.comparisons],
        }
        for each in summary.metrics
        if each.metric.tested
    }


def _plain_comparison(each: Comparison) -> dict[str, Any]:
    return {
        "method": each.method,
        "baseline": each.baseline,
        "difference": _plain_estimate(each.difference),
        "by_target": _plain_estimate(each.by_target),
        "interval": formats.plain(each.interval),
        "p": formats.plain(each.p),
        "corrected": formats.plain(each.corrected),
    }


def _row(each: Estimate, k: int) -> Estimate:
    return Estimate(each.mean[k], each.error[k])


def _plain_estimate(each: Estimate) -> dict[str, Any]:
    return {"mean": formats.plain(each.mean), "error": formats.plain(each.error)}


def json_bytes(contents: Mapping[str, Any]) -> bytes:
    """A dictionary as the bytes of a JSON file.

    Example:
        >>> print(json_bytes({"rho": 0.05, "gain": None}).decode(), end="")
        {
         "rho": 0.05,
         "gain": null
        }
    """
    return (json.dumps(contents, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
