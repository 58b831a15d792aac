import io
import json
import math
import os

import numpy as np
import pytest
from PIL import Image

from disam_jax.dg import figure, report, summary
from disam_jax.dg.errors import InputError
from disam_jax.dg.protocol import History, Training, three_methods
from disam_jax.dg.statistics import Estimate

TRAINING = Training(steps=8, learning_rate=0.1, evaluations=2)


@pytest.fixture
def summarised():
    rng = np.random.default_rng(0)

    def history():
        losses = rng.uniform(0.5, 2.0, (3, 12, 3, 3))
        return History(np.array([0, 4, 8]), rng.uniform(0, 1, losses.shape), losses, losses + 1, np.eye(3, dtype=bool))

    return summary.summarise({name: history() for name in ("ERM", "SAM", "DISAM")})


@pytest.fixture
def found(toy, summarised):
    methods = three_methods(0.1, 1.0)
    return report.results(toy, TRAINING, methods, summarised, "disam-jax compare", {"rho": 0.1, "lam": 1.0})


def test_results_say_what_was_run_and_where(found):
    assert found["schema"] == report.SCHEMA
    assert found["date"].endswith("+00:00")
    assert {"python", "jax", "jaxlib", "numpy", "optax", "disam_jax"} <= set(found["versions"])
    assert {"cpu", "cores", "device"} <= set(found["machine"])
    assert found["data"]["domains"] == {"a": 5, "b": 11, "c": 8}
    assert found["settings"]["steps"] == 8
    assert found["settings"]["rho"] == 0.1
    assert found["seeds"] == list(range(12))
    assert found["methods"]["ERM"]["rho"] == 0.0
    assert found["methods"]["SAM"]["lam"] == 0.0
    assert found["methods"]["DISAM"]["lam"] == 1.0


def test_results_survive_json(found, summarised):
    read = json.loads(json.dumps(found, allow_nan=False))
    assert read == found
    for name, scores in summarised.scores.items():
        np.testing.assert_allclose(read["methods"][name]["accuracy"], scores.accuracy, rtol=1e-5)
        np.testing.assert_allclose(read["methods"][name]["spread"], scores.spread, rtol=1e-5)
    # The summary can be computed again from the raw numbers.
    raw = [np.array(read["methods"][name]["worst_loss"]).mean(1) for name in ("DISAM", "SAM")]
    difference = read["summary"]["DISAM - SAM"]["worst_loss"]
    assert difference["mean"] == pytest.approx((raw[0] - raw[1]).mean(), abs=1e-5)
    assert difference["error"] == pytest.approx((raw[0] - raw[1]).std(ddof=1) / math.sqrt(12), abs=1e-5)


def test_what_is_not_finite_is_null(toy, summarised):
    summarised.scores["SAM"].accuracy[0, 0] = np.nan
    found = report.results(toy, TRAINING, three_methods(0.1, 1.0), summarised, "", {})
    assert json.loads(json.dumps(found, allow_nan=False))["methods"]["SAM"]["accuracy"][0][0] is None


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_table_fits_80_columns_and_no_number_is_cut(summarised, encoding):
    names = ("a", "a domain with a long name that has to be folded", "c")
    rows = summary.table_rows(summarised, names)
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding) as file:
        report.print_table(rows, "title", ["one ± two"], file)
        file.flush()
        printed = raw.getvalue().decode(encoding)
    assert max(map(len, printed.splitlines())) <= 80
    sign = "±" if encoding == "utf-8" else "+-"
    for _, cells in rows:
        for cell in cells:
            assert cell.replace("±", sign) in printed
    assert f"one {sign} two" in printed
    assert "…" not in printed


def test_markdown_has_the_table_its_date_versions_and_machine(found, summarised):
    rows = summary.table_rows(summarised, ("a", "b", "c"))
    text = report.markdown({**found, "seconds": 1.5}, rows, "title")
    for _, cells in rows:
        assert all(cell in text for cell in cells)
    for part in (found["date"], found["machine"]["cpu"], "jaxlib " + found["versions"]["jaxlib"], *found["findings"]):
        assert part in text
    width = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert width == {6}


def test_two_domains_are_said_to_have_no_spread():
    assert "DISAM is SAM" in report.notes(2, 20)[-1]
    assert "DISAM is SAM" not in report.notes(3, 20)[-1]


def test_the_figure_has_a_line_for_each_source_in_both_panels(summarised):
    curves = {name: summarised.curves[name] for name in ("SAM", "DISAM")}
    curves["SAM"].mean[:, 1] = np.nan
    curves["DISAM"].mean[:, 1] = np.nan
    drawn = figure.draw_losses(curves, summarised.steps, ("a", "b", "c"), "title")
    left, right = drawn.axes
    assert [left.get_title(), right.get_title()] == ["SAM", "DISAM"]
    assert [line.get_label() for line in left.lines] == ["a", "c"]
    np.testing.assert_array_equal(right.lines[1].get_ydata(), curves["DISAM"].mean[:, 2])
    assert left.get_ylim() == right.get_ylim()
    image = Image.open(io.BytesIO(figure.render(drawn, "png")))
    assert image.size[0] > 1000
    assert figure.render(drawn, "pdf").startswith(b"%PDF")


def test_lines_of_many_domains_differ():
    names = [str(d) for d in range(12)]
    curve = Estimate(np.ones((2, 12)), np.zeros((2, 12)))
    drawn = figure.draw_losses({"SAM": curve}, np.array([0, 1]), names, "")
    looks = {(line.get_color(), line.get_linestyle()) for line in drawn.axes[0].lines}
    assert len(looks) == 12


def test_the_same_figure_is_the_same_bytes(summarised):
    one, two = (figure.draw_losses(summarised.curves, summarised.steps, "abc", "t") for _ in range(2))
    for suffix in ("png", "pdf"):
        assert figure.render(one, suffix) == figure.render(two, suffix)
    assert b"CreationDate" not in figure.render(one, "pdf")


def test_files_are_written_whole_and_replace_older_ones(tmp_path):
    out = tmp_path / "deep" / "out"
    report.write_files(out, {"a": b"1", "b": b"2"})
    report.write_files(out, {"a": b"3"})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"a": b"3", "b": b"2"}


def test_a_failing_write_leaves_the_older_files(tmp_path, monkeypatch):
    report.write_files(tmp_path, {"a": b"1", "b": b"1"})

    def full(path, content):
        if path.name == "b":
            raise OSError(28, "No space left on device")
        return path.open("wb").close()

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match=r"cannot write to .*: No space left on device"):
        report.write_files(tmp_path, {"a": b"2", "b": b"2"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"1", "b": b"1"}


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "x").write_text("")
    for out in (tmp_path / "x", tmp_path / "x" / "y"):
        with pytest.raises(InputError, match=f"{tmp_path / 'x'} is not a folder"):
            report.check_out(out)
    report.check_out(tmp_path)
    report.check_out(tmp_path / "new" / "er")
    assert os.listdir(tmp_path) == ["x"]
