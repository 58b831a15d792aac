"""Numbers with errors on the pages, such as +0.26 ± 0.04, are those of the stored results."""

import csv
import pathlib
import re

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_ERROR = re.compile(r"(?<![\d.])[+-]?(\d+(?:\.\d+)?) ± (\d*\.\d+)")


def rows(*path):
    with RESULTS.joinpath(*path).open(newline="") as file:
        return list(csv.DictReader(file))


def in_tables():
    """What stands in tables, rounded as there."""
    for path in RESULTS.rglob("*.md"):
        yield from ((float(mean), float(error)) for mean, error in WITH_ERROR.findall(path.read_text()))


def of_the_verdict():
    for phase in ("confirmation", "added"):
        for row in rows("verdict", phase, "comparisons.csv"):
            yield abs(float(row["mean"])), float(row["error"])


def of_the_forecast():
    """The mean gain, and half of the interval that holds what is foretold by it."""
    text = (ROOT / "disam_jax" / "dg" / "diagnosis" / "forecast.json").read_text()
    means, widths = (re.findall(rf'"{name}": ([\d.]+)', text) for name in ("mean_gain", "constant_half_width"))
    yield from ((float(mean), float(width)) for mean in means for width in widths)


def above_erm():
    """Accuracy minus ERM's by method, rho and lam in the grid of rho, paired by seed, at the last step."""
    seeds = {}
    for row in rows("pacs96_rho", "runs.csv"):
        key = row["method"], row["rho"] if row["method"] != "ERM" else "", row["lam"]
        seeds.setdefault(key, {}).setdefault(row["seed"], []).append(float(row["accuracy"]))
    (erm,) = (of for (method, *_), of in seeds.items() if method == "ERM")
    for of in seeds.values():
        difference = np.array([np.mean(of[seed]) - np.mean(erm[seed]) for seed in erm])
        yield abs(difference.mean()), difference.std(ddof=1) / np.sqrt(len(difference))


@pytest.fixture(scope="module")
def stored():
    """All pairs, [N, 2]."""
    return np.array([*in_tables(), *of_the_verdict(), *of_the_forecast(), *above_erm()])


def is_stored(stored, mean, error):
    """Whether a pair of the stored ones is rounded to this one; signs may be in words."""
    for place, text in enumerate((mean, error)):
        near = 0.5 * 10.0 ** -len(text.partition(".")[2]) + 1e-9
        stored = stored[abs(stored[:, place] - float(text)) <= near]
    return len(stored) > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_number_with_an_error_is_a_stored_one(page, stored):
    missing = [
        f"{mean} ± {error}"
        for mean, error in WITH_ERROR.findall(page.read_text())
        if not is_stored(stored, mean, error)
    ]
    assert not missing


def test_numbers_that_are_not_stored_are_found(stored):
    assert is_stored(stored, "0.26", "0.04")
    assert not is_stored(stored, "0.26", "0.94")
    assert not is_stored(stored, "7.77", "0.04")
