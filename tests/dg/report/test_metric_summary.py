"""Metrics of kept logits over seeds and targets, against loops: what is defined counts, what diverged does not hide."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
from synthetic_results import diverge, make_results

from disam_jax.dg.errors import InputError
from disam_jax.dg.metrics.base import LogitMetric
from disam_jax.dg.metrics.registry import LOGIT_METRICS
from disam_jax.dg.report import figures, write
from disam_jax.dg.report.findings import findings
from disam_jax.dg.report.metric_figures import LOOKS, metric_figures
from disam_jax.dg.report.metric_summary import measure_run, summarise_metric
from disam_jax.dg.report.metric_tables import metric_csv, metric_tables
from disam_jax.dg.report.statistics import permutation_test
from disam_jax.dg.report.summary import summarise
from disam_jax.dg.results import RunLogits
from disam_jax.dg.sweep.model_selection import CRITERIA

NUMBER = LogitMetric(lambda logits, labels: 0.0, "a number", "none")
LOWEST = NUMBER._replace(over_targets="lowest")
PARTS = NUMBER._replace(part_names=("class",), parts=lambda classes: [(name,) for name in classes])


def texts(table):
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def summary_of(*diverged, seeds=7):
    """Three methods, three targets, and the runs of DISAM that diverged."""
    results = make_results(seeds=seeds)
    for seed, target in diverged:
        diverge(results, "DISAM", seed, target)
    return summarise(results, "last"), results


def values_of(shape, seed=0):
    return np.random.default_rng(seed).uniform(0.0, 100.0, shape)


@pytest.mark.parametrize("metric", [NUMBER, LOWEST, PARTS], ids=["mean", "lowest", "parts"])
@pytest.mark.parametrize("undefined", [0.0, 0.3])
def test_means_and_differences_are_over_what_is_defined(metric, undefined):
    summary, results = summary_of()
    parts = 10 if metric.parts else 1
    values = values_of((3, 7, 3, parts))
    # Labels decide for all methods alike.
    values[:, np.random.default_rng(1).uniform(size=values.shape[1:]) < undefined] = np.nan
    # In one seed it is defined nowhere.
    if undefined:
        values[:, 2] = np.nan
    made = summarise_metric("x", metric, values, summary, results)
    family = []
    for k in range(3):
        for part in range(parts):
            of_seed = []
            for s in range(7):
                there = [value for value in values[k, s, :, part] if value == value]
                if there:
                    of_seed.append(min(there) if metric is LOWEST else sum(there) / len(there))
            assert made.overall.mean[k, part] == pytest.approx(np.mean(of_seed))
            assert made.overall.error[k, part] == pytest.approx(scipy.stats.sem(of_seed))
            assert made.undefined[k, part] == np.isnan(values[k, ..., part]).sum()
    for part in range(parts):
        for place, compared in enumerate(made.comparisons[part]):
            assert compared[:2] == summary.comparisons["accuracy"][place][:2]
            k, j = (summary.methods.index(name) for name in compared[:2])
            differences = []
            for s in range(7):
                at = [t for t in range(3) if values[k, s, t, part] == values[k, s, t, part]]
                if at:
                    one, other = ([values[of, s, t, part] for t in at] for of in (k, j))
                    over = min if metric is LOWEST else np.mean
                    differences.append(over(one) - over(other))
            assert compared.difference.mean == pytest.approx(np.mean(differences))
            assert compared.difference.error == pytest.approx(scipy.stats.sem(differences))
            low, high = scipy.stats.t.interval(
                0.95, len(differences) - 1, np.mean(differences), scipy.stats.sem(differences)
            )
            assert (compared.interval.low, compared.interval.high) == pytest.approx((low, high))
            assert compared.p == pytest.approx(permutation_test(np.array(differences)))
            family.append(compared)
    # Holm's method, over all parts and pairs.
    assert len(family) == 3 * parts
    ordered, largest = sorted(family, key=lambda each: each.p), 0.0
    for place, each in enumerate(ordered):
        largest = max(largest, min(1.0, (len(family) - place) * each.p))
        assert each.corrected == pytest.approx(largest)


def test_a_run_that_diverged_is_never_left_out():
    summary, results = summary_of((1, 0), (4, 2))
    values = values_of((3, 7, 3, 1))
    values[summary.scores.diverged] = np.nan
    # And one that is not defined.
    values[0, 0, 0] = np.nan
    made = summarise_metric("x", NUMBER, values, summary, results)
    assert np.isnan(made.overall.mean).ravel().tolist() == [False, False, True]
    assert made.undefined.ravel().tolist() == [1, 0, 0]
    assert [np.isnan(each.p) for each in made.comparisons[0]] == [True, False, True]
    full = dataclasses.replace(summary, metrics=(made,))
    table = metric_tables(full)["kept_metrics"]
    assert texts(table)["DISAM"] == ["diverged (2 of 21)"]
    said = findings(full)
    assert "x is not defined for 1 of 21 runs of ERM; its means are over the others." in said
    assert "Whether DISAM and SAM differ in a number cannot be said: a run diverged." in said


def test_a_metric_that_is_nowhere_defined_is_said_and_no_end():
    summary, results = summary_of()
    made = summarise_metric("auroc", NUMBER, np.full((3, 7, 3, 1), np.nan), summary, results)
    full = dataclasses.replace(summary, metrics=(made,))
    tables = metric_tables(full)
    assert texts(tables["kept_metrics"])["SAM"] == ["not defined"]
    assert texts(tables["kept_comparisons"])["  DISAM - SAM"] == ["not defined", "-", "-", "-"]
    said = findings(full)
    every = ", ".join(f"21 of 21 runs of {name}" for name in ("ERM", "SAM", "DISAM"))
    assert f"auroc is not defined for {every}; its means are over the others." in said
    assert "Whether DISAM and SAM differ in a number cannot be said: auroc is not defined." in said


@pytest.mark.parametrize(("shift", "claimed"), [(-30.0, True), (0.0, False)])
def test_a_difference_is_claimed_as_one_of_the_accuracy_is(shift, claimed):
    summary, results = summary_of(seeds=10)
    values = 50.0 + 0.01 * values_of((3, 10, 3, 1))
    values[2] += shift
    made = summarise_metric("x", NUMBER, values, summary, results)
    (said,) = (line for line in findings(dataclasses.replace(summary, metrics=(made,))) if "a number" in line)
    assert said.startswith("DISAM's a number is lower than SAM's here" if claimed else "No difference in a number")
    assert "points" in said


def test_parts_have_a_row_each_and_one_seed_has_no_error():
    summary, results = summary_of(seeds=1)
    made = summarise_metric("class_accuracy", PARTS, values_of((3, 1, 3, 10)), summary, results)
    table = metric_tables(dataclasses.replace(summary, metrics=(made,)))["metric_class_accuracy"]
    assert table.columns == ("class", "ERM", "SAM", "DISAM", "DISAM - SAM", "corrected p")
    assert len(table.rows) == 10
    assert all(cell.text.endswith("± -") for row in table.rows for cell in row[1:4])


# Of one run.


def test_what_is_reported_is_on_the_split_that_the_accuracy_is_of():
    logits = np.float16([[[0, -1], [-1, 0], [0, -1], [0, -1]], [[-1, 0], [-1, 0], [-1, 0], [0, -1]]])
    kept = RunLogits(np.array([2, 5]), logits, np.array([0, 0, 1, 0]), np.array([False, False, True, False]))
    metrics = {name: LOGIT_METRICS[name] for name in ("worst_domain", "class_accuracy")}
    assert measure_run(kept, 2, metrics, "DIR")["worst_domain"].tolist() == pytest.approx([200 / 3])
    assert measure_run(kept, 5, metrics, "DIR")["worst_domain"].tolist() == pytest.approx([100 / 3])
    np.testing.assert_allclose(measure_run(kept, 5, metrics, "DIR")["class_accuracy"], [100 / 3, np.nan])


@pytest.mark.parametrize(
    ("of_run", "parts"), [(lambda *_: [1.0], None), (lambda *_: 1.0, PARTS.parts), (lambda *_: [1.0] * 3, PARTS.parts)]
)
def test_a_metric_that_breaks_its_contract_is_named(of_run, parts):
    kept = RunLogits(np.array([0]), np.zeros((1, 4, 2), np.float16), np.arange(4) % 2, np.zeros(4, bool))
    with pytest.raises(InputError, match="metric mine must return an array of shape"):
        measure_run(kept, 0, {"mine": NUMBER._replace(of_run=of_run, parts=parts)}, "DIR")


# Figures.


def with_figures(classes, methods, seeds=3):
    results = make_results({name: {} for name in methods}, seeds=seeds)
    results.header["data"]["classes"] = [f"a class {number}" for number in range(classes)]
    summary = summarise(results, "last")
    made, rng = [], np.random.default_rng(0)
    for name in ("confusion", "reliability"):
        metric = LOGIT_METRICS[name]
        shape = (len(methods), seeds, 3)
        values = np.empty((*shape, len(metric.parts(results.header["data"]["classes"]))))
        for place in np.ndindex(shape):
            labels = rng.integers(0, max(1, classes - 1), 300)
            logits = rng.normal(size=(300, classes)) + 2.0 * np.eye(classes)[labels]
            values[place] = 100.0 * np.asarray(metric.of_run(logits, labels))
        made.append(summarise_metric(name, metric, values, summary, results))
    return results, dataclasses.replace(summary, metrics=tuple(made))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "methods"), [(2, ("ERM",)), (10, ("ERM", "SAM", "DISAM")), (65, ("_$x", "SAM", "A", "B", "C"))]
)
def test_figures_are_drawn_for_light_and_dark_pages(classes, methods):
    _, summary = with_figures(classes, methods)
    for name, colours in LOOKS.items():
        drawn = metric_figures(summary.metrics, colours)
        assert list(drawn) == ["metric_confusion", "metric_reliability"]
        again = metric_figures(summary.metrics, colours)
        for file, figure in drawn.items():
            png = figures.render(figure, "png")
            assert png.startswith(b"\x89PNG")
            if classes == 2:
                assert png == figures.render(again[file], "png")
            titles = [panel.get_title() for panel in figure.axes if panel.get_visible() and panel.get_title()]
            assert titles == [*methods]
            background = figure.get_facecolor()
            assert (background[0] > 0.9) == (name == "light")
    matrix = drawn["metric_confusion"].axes[0]
    # Rows go down, as in a table.
    assert matrix.yaxis_inverted()
    # A class without examples has no numbers.
    assert len(matrix.texts) == {2: 2, 10: 90, 65: 0}[classes]


def test_the_files_of_a_report_have_all_cells_and_bins():
    results, summary = with_figures(2, ("ERM", "SAM"))
    summaries = dict.fromkeys(CRITERIA, summary)
    contents = write.text_files(results, summaries, "last")
    lines = contents["metric_confusion.csv"].decode().splitlines()
    assert lines[0] == "method,class,answer,mean,se"
    assert len(lines) == 1 + 2 * 4
    # Of the class without examples nothing is known.
    assert lines[3].startswith("ERM,a class 1,a class 0,")
    assert lines[3].endswith(",NaN,NaN")
    bins = metric_csv(summary.metrics[1]).splitlines()
    assert len(bins) == 1 + 2 * 45
    assert bins[0] == "method,bin,what,mean,se"
    shares = [float(line.split(",")[3]) for line in bins[1:46] if ",share," in line]
    assert sum(shares) == pytest.approx(100.0, abs=1e-3)
