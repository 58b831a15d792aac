"""The table of the metrics that have no table of their own."""

import numpy as np

from disam_jax.dg.report.scores import held_out_of, without
from disam_jax.dg.report.statistics import estimate
from disam_jax.dg.report.summary import Summary
from disam_jax.dg.report.tables import Cell, Table, estimate_cell
from disam_jax.dg.results import TRAIN, VALIDATION, Results
from disam_jax.dg.sweep.model_selection import select
from disam_jax.dg.training.metrics import METRICS


def metrics_table(results: Results, summary: Summary) -> Table:
    """Each metric of each method, on the held-out domain and on the validation splits of the source domains.

    Args:
        results: Results of the sweep.
        summary: Summary under the criterion that is reported.

    Returns:
        Table with two columns for each of `Results.metrics`.

    Example:
        >>> from disam_jax.dg.report.summary import summarise
        >>> from disam_jax.dg.results import Run
        >>> data = {"name": "toy", "domains": {"photo": 9, "sketch": 9}, "classes": 2}
        >>> header = {"data": data, "methods": {"ERM": {}}}
        >>> ones = np.ones((1, 2, 2, 2))
        >>> results = Results(header, (Run("ERM", 1, 0, 0, {}),), np.arange(2), ones, ones, *[ones[:, 0]] * 2,
        ...                   ones[:, 0, 0], metrics={"brier": ones})
        >>> metrics_table(results, summarise(results, "last")).columns
        ('method', 'brier, held-out', 'brier, sources')
    """
    run, point = select(results, summary.criterion)
    held_out = held_out_of(results, run)
    columns, cells, notes = ["method"], [[] for _ in summary.methods], []
    for name, values in results.metrics.items():
        metric = METRICS.get(name)
        at_point = np.where(summary.scores.diverged[..., None, None], np.nan, values[run, point])
        of_target = np.take_along_axis(at_point[..., TRAIN, :], held_out[..., None], -1)[..., 0]
        of_sources = without(at_point[..., VALIDATION, :], held_out).mean(-1)
        for each in (of_target, of_sources):
            found = estimate(each.mean(-1).T)
            for k, row in enumerate(cells):
                bad = summary.scores.diverged[k]
                form = f".{metric.digits if metric else 3}f"
                row.append(estimate_cell(float(found.mean[k]), float(found.error[k]), form, int(bad.sum()), bad.size))
        columns += [f"{name}, held-out", f"{name}, sources"]
        notes.append(f"{name}: {metric.note if metric else 'a metric that is not installed here'}.")
    notes.append(
        "held-out: on the training split of the domain left out of training; sources: mean over the validation splits "
        "of the other domains. Mean ± standard error over seeds."
    )
    rows = tuple((Cell(summary.labels[name]), *row) for name, row in zip(summary.methods, cells, strict=True))
    return Table("Further metrics", tuple(columns), rows, tuple(notes))
