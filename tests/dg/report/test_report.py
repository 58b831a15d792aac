import csv
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from synthetic_results import COMPARE, diverge, make_results

from disam_jax.dg.report import environment, figures, formats, sensitivity, tables, write
from disam_jax.dg.report.findings import findings
from disam_jax.dg.report.summary import summarise
from disam_jax.dg.report.tables import Cell, Table
from disam_jax.dg.sweep.model_selection import IN_EVERY_REPORT, select

GRID = tuple({"rho": rho, "lam": lam} for rho in (0.1, 0.01, 0.5) for lam in (1.0, 0.0, 3.0))
MANY = {"ERM": {"flops": 5.0e9}}
for number in range(10):
    MANY |= {f"M{number}": {"base": "ERM", "flops": 1.0e10}, f"M{number}+DISAM": {"base": f"M{number}"}}
del MANY["M9+DISAM"]


def texts(table):
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


@pytest.fixture(scope="module")
def results():
    return make_results(seeds=10, accuracy_gain={"DISAM": 0.0005}, spread_factor={"DISAM": 0.8}, grid=({"rho": 0.1},))


def test_the_compare_table_has_a_row_for_each_target_and_quantity(results):
    summary = summarise(results, "last")
    table = tables.compare_table(summary)
    assert table.columns == ("", "ERM", "SAM", "DISAM", "DISAM - SAM")
    assert [row[0].text for row in table.rows] == [
        "held-out accuracy",
        "  clean",
        "  rotation",
        "  inversion",
        "  mean",
        "spread at w",
        "spread at w + e",
        "mean domain loss",
        "worst domain loss",
    ]
    mean, error = (each[0] for each in summary.overall["spread"])
    assert texts(table)["spread at w"][0] == f"{mean:.3f} ± {error:.3f}"
    difference = summary.comparison("spread", "DISAM", "SAM").difference
    assert texts(table)["spread at w"][3] == f"{difference.mean:+.4f} ± {difference.error:.4f}"
    accuracy = summary.scores.accuracy
    assert texts(table)["  rotation"][0].startswith(f"{accuracy[0, :, 1].mean():.1f} ± ")
    assert texts(table)["  rotation"][3].startswith(f"{(accuracy[2] - accuracy[1])[:, 1].mean():+.2f} ± ")


def test_the_accuracy_table_marks_the_best_and_what_is_level_with_it(results):
    summary = summarise(results, "last")
    table = tables.accuracy_table(summary)
    assert table.columns == ("method", "clean", "rotation", "inversion", "average")
    marks = {row[0].text: (row[-1].best, row[-1].level) for row in table.rows}
    best = summary.methods[int(summary.overall["accuracy"].mean.argmax())]
    other = "SAM" if best == "DISAM" else "DISAM"
    level = not summary.comparison("accuracy", "DISAM", "SAM").p < 0.05
    assert marks == {"ERM": (False, False), best: (True, False), other: (False, level)}
    assert level
    assert not any(cell.best or cell.level for row in table.rows for cell in row[:-1])


def test_a_method_alone_is_not_the_best():
    table = tables.accuracy_table(summarise(make_results({"ERM": {}}), "last"))
    assert not table.rows[0][-1].best
    assert not any("Bold" in note for note in table.notes)


def test_diverged_runs_are_counted_in_their_cells():
    results = make_results()
    diverge(results, "DISAM", 0, 1)
    diverge(results, "DISAM", 3, 2)
    diverge(results, "DISAM", 2, 2)
    summary = summarise(results, "last")
    accuracy = texts(tables.accuracy_table(summary))["DISAM"]
    assert accuracy[1:] == ["diverged (1 of 4)", "diverged (2 of 4)", "diverged (3 of 12)"]
    assert "±" in accuracy[0]
    assert not tables.accuracy_table(summary).rows[2][-1].level
    assert texts(tables.losses_table(summary))["DISAM"] == ["diverged (3 of 12)"] * 6
    compared = texts(tables.comparisons_table(summary))
    assert compared["  DISAM - SAM"] == ["diverged (3 of 24)", "-", "-", "-"]
    assert "±" in compared["  SAM - ERM"][0]
    diverge(results, "SAM", 1, 0)
    small = texts(tables.compare_table(summarise(results, "last")))
    assert small["  mean"][1:] == ["diverged (1 of 12)", "diverged (3 of 12)", "diverged (4 of 24)"]
    assert small["  clean"][3] == "diverged (1 of 8)"


def test_all_three_selections_stand_side_by_side():
    results = make_results(grid=GRID[:2])
    summaries = {criterion: summarise(results, criterion) for criterion in IN_EVERY_REPORT}
    table = tables.selection_table(summaries)
    assert table.columns == ("method", *IN_EVERY_REPORT)
    for place, criterion in enumerate(IN_EVERY_REPORT):
        mean = summaries[criterion].scores.accuracy[2].mean()
        assert texts(table)["DISAM"][place].startswith(f"{mean:.1f} ± ")


def test_two_domains_are_said_to_have_no_spread():
    for domains, said in ((("a", "b"), True), (("a", "b", "c"), False)):
        summary = summarise(make_results(domains=domains), "last")
        for table in (tables.compare_table(summary), tables.losses_table(summary)):
            assert any("DISAM is SAM" in note for note in table.notes) is said


def test_the_cost_table():
    results = make_results()
    cost = {"ERM": {"flops": 2.0e6, "seconds_per_run": 0.5}, "SAM": {"flops": 5.0e6, "seconds_per_run": None}}
    table = tables.cost_table(results, cost)
    assert table.columns == ("method", "MFLOPs per step", "ratio to ERM", "seconds per run")
    assert texts(table) == {
        "ERM": ["2.00", "1.00", "0.500"],
        "SAM": ["5.00", "2.50", "-"],
        "DISAM": ["2.01", "1.00", "-"],
    }
    assert tables.cost_table(results).columns[-1] == "ratio to ERM"
    assert set(texts(tables.cost_table(make_results({"SAM": {}})))["SAM"]) == {"-"}


AWKWARD = Table(
    "50 % of_A & B",
    ("", "a|b", "c_d$"),
    (
        (Cell("first, in nats"),),
        (Cell("  x*y"), Cell("1.0 ± 0.2", {"": 1.0, "se": 0.25}, best=True), Cell("-", {"": float("nan")})),
        (Cell("  z"), Cell("+2.0 ± -", {"": 2.0, "se": float("nan")}, level=True), Cell("<0.001", {"": 1e-5})),
        (Cell("last"), Cell("diverged (1 of 2)", {"": float("nan")}), Cell("[-1.0, +2.0]", {"low": -1.0, "high": 2.0})),
    ),
    ("one ± two",),
)


def test_markdown_parses_back():
    lines = formats.to_markdown(AWKWARD).splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[:6]]
    assert cells == [
        ["", r"a\|b", r"c_d\$"],
        ["---", "---:", "---:"],
        ["first, in nats", "", ""],
        [r"&emsp;x\*y", "**1.0 ± 0.2**", "-"],
        ["&emsp;z", "+2.0 ± -†", "<0.001"],
        ["last", "diverged (1 of 2)", "[-1.0, +2.0]"],
    ]
    assert lines[6:] == ["", "- one ± two"]


def test_latex_parses_back():
    text = formats.to_latex(AWKWARD)
    assert len(re.findall(r"\\begin\{(\w+)\}", text)) == 2
    assert re.findall(r"\\begin\{(\w+)\}", text) == re.findall(r"\\end\{(\w+)\}", text)[::-1]
    plain = re.sub(r"\\[\\{}%&$_#]", "", text)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert text.isascii()
    assert r"\caption{50 \% of\_A \& B}" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line.removesuffix(r" \\").split(" & ") for line in body.splitlines() if line.endswith(r"\\")]
    assert rows == [
        ["", r"a\textbar{}b", r"c\_d\$"],
        ["first, in nats", "", ""],
        [r"\quad x*y", r"$\mathbf{1.0} \pm 0.2$", "-"],
        [r"\quad z", r"$+2.0^{\dagger}$", r"$<0.001$"],
        ["last", "diverged (1 of 2)", r"$[-1.0, +2.0]$"],
    ]
    assert body.count(r"\midrule") == 2


# Names that mean something to Matplotlib, Markdown, HTML, LaTeX or a terminal.
NAMES = (
    "_background",
    "__init__",
    "_nolegend_",
    "$x$",
    r"$\no$",
    "a$b",
    "100 %",
    "a\\b",
    "<b>bold</b>",
    "c|d",
    "[x]",
    "*",
    "~out~",
    "&amp;",
    "[a](http://b)",
    "`code`",
    "{",
    "é日",
)
IN_LINES = {"new\nline": "new line", "tab\there": "tab here", "bell\a": r"bell\x07", "to\u202eleft": r"to\u202eleft"}
SHOWN = {**{name: name for name in NAMES}, **IN_LINES}


@pytest.mark.parametrize("name", SHOWN, ids=ascii)
def test_a_name_reads_the_same_in_a_markdown_table_and_in_a_sentence(name):
    from markdown_it import MarkdownIt

    table = Table("", ("method", name), ((Cell(name), Cell(name, best=True)), (Cell(f"  {name}"), Cell("-"))), (name,))
    page = f"# {formats.markdown_text(name)}\n\n{formats.to_markdown(table)}"
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(page)
    found = ["".join(each.content for each in token.children) for token in tokens if token.type == "inline"]
    shown = SHOWN[name]
    assert found == [shown, "method", shown, shown, shown, f"\N{EM SPACE}{shown}", "-", shown]


@pytest.mark.parametrize("name", SHOWN, ids=ascii)
def test_a_name_has_no_command_in_latex(name):
    text = formats.latex_text(name)
    plain = re.sub(r"\\[{}%&$_#]|\\text\w+\{\}", "", text)
    assert not re.search(r"[\\$%&#_^~<>|]", plain)
    assert plain.count("{") == plain.count("}")
    assert not text.startswith(("[", "*"))
    assert text.isprintable()


@pytest.mark.parametrize("name", SHOWN, ids=ascii)
def test_a_name_is_one_line_of_a_terminal(name):
    file = io.StringIO()
    formats.print_table(Table(name, ("method", name), ((Cell(name), Cell(name)),)), file)
    assert all(line.isprintable() for line in file.getvalue().split("\n"))
    assert file.getvalue().count(SHOWN[name]) >= 2


def test_csv_parses_back():
    header, *rows = csv.reader(io.StringIO(formats.to_csv(AWKWARD)))
    assert header == ["", "a|b", "a|b se", "c_d$", "c_d$ low", "c_d$ high"]
    assert rows == [
        ["first, in nats: x*y", "1", "0.25", "NaN", "", ""],
        ["first, in nats: z", "2", "NaN", "1e-05", "", ""],
        ["last", "NaN", "", "", "-1", "2"],
    ]


def test_json_has_no_nan():
    found = json.loads(json.dumps(formats.to_json(AWKWARD), allow_nan=False))
    assert found["rows"][1][1] == {"text": "1.0 ± 0.2", "value": 1.0, "se": 0.25}
    assert found["rows"][1][2]["value"] is None
    assert found["notes"] == ["one ± two"]


def printed(table, encoding="utf-8"):
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding) as file:
        formats.print_table(table, file)
        file.flush()
        return raw.getvalue().decode(encoding)


@pytest.mark.dealt
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("methods", [COMPARE, MANY], ids=["three", "twenty"])
def test_every_table_fits_80_columns_and_no_number_is_cut(methods, encoding):
    names = ("a", "a domain with a long name that has to be folded", *"cdef")
    made = make_results(methods, domains=names, seeds=2, points=2)
    diverge(made, "ERM", 1, 2, point=1)
    summaries = {criterion: summarise(made, criterion) for criterion in IN_EVERY_REPORT}
    every = write.report_tables(made, summaries, "last")
    assert len(every) >= 7
    for table in every.values():
        text = printed(table, encoding)
        assert max(map(len, text.splitlines())) <= 80
        assert "…" not in text
        found = text
        for row in table.rows:
            for cell in row[1:]:
                shown = cell.text + "†" * cell.level
                shown = shown if encoding == "utf-8" else shown.replace("±", "+-").replace("†", "~")
                assert shown in found


def test_a_wide_table_is_turned_if_it_fits_then_and_split_if_not():
    def made(methods, targets):
        rows = tuple((Cell(f"m{k}"), *(Cell(f"{k}{t}.25 ± 0.11") for t in range(targets))) for k in range(methods))
        return Table("", ("method", *(f"t{t}" for t in range(targets))), rows)

    (whole,) = formats.fit(made(20, 4), 80)
    assert len(whole.rows) == 20
    (turned,) = formats.fit(made(3, 9), 80)
    assert [row[0].text for row in turned.rows] == [f"t{t}" for t in range(9)]
    assert turned.rows[4][2].text == "14.25 ± 0.11"
    parts = formats.fit(made(20, 9), 80)
    assert len(parts) == 3
    assert sum(len(part.columns) - 1 for part in parts) == 9
    assert all(len(part.rows) == 20 and part.columns[0] == "method" for part in parts)


def test_grids_are_paired_with_erm_by_seed():
    results = make_results(grid=GRID, seeds=5)
    found = {grid.method: grid for grid in sensitivity.grids(results)}
    assert set(found) == {"SAM", "DISAM"}
    grid = found["DISAM"]
    np.testing.assert_array_equal(grid.rho, np.repeat([0.01, 0.1, 0.5], 3))
    np.testing.assert_array_equal(grid.lam, np.tile([0.0, 1.0, 3.0], 3))
    assert grid.default_lam == 1.0
    np.testing.assert_array_equal(found["SAM"].rho, [0.01, 0.1, 0.5])

    def accuracy(method, candidate):
        values = [
            [
                100.0 * results.accuracy[i, -1, 0, run.target]
                for i, run in enumerate(results.runs)
                if (run.method, run.seed, run.candidate) == (method, seed, candidate)
            ]
            for seed in range(5)
        ]
        return np.mean(values, axis=1)

    gain = accuracy("DISAM", 5) - accuracy("ERM", 0)  # rho 0.01, lam 3
    assert GRID[5] == {"rho": 0.01, "lam": 3.0}
    assert grid.gain.mean[2] == pytest.approx(gain.mean())
    assert grid.gain.error[2] == pytest.approx(gain.std(ddof=1) / np.sqrt(5))
    assert grid.accuracy.mean[2] == pytest.approx(accuracy("DISAM", 5).mean())


def test_a_grid_differs_in_nothing_but_rho_and_lam():
    grid = ({"rho": 0.1, "lr": 0.1}, {"rho": 0.2, "lr": 0.1}, {"rho": 0.3, "lr": 0.2})
    (sam, disam) = sensitivity.grids(make_results(grid=grid))
    np.testing.assert_array_equal(sam.rho, [0.1, 0.2])
    assert disam.default_lam == 0.0
    assert sensitivity.grids(make_results()) == ()


def test_the_usable_range_has_the_lam_with_the_most_rho():
    grid = ({"rho": 0.1, "lam": 1.0}, {"rho": 0.1, "lam": 3.0}, {"rho": 0.2, "lam": 3.0})
    (_, disam) = sensitivity.grids(make_results(grid=grid))
    assert (disam.default_lam, disam.drawn_lam) == (1.0, 3.0)
    (_, even) = sensitivity.grids(make_results(grid=(*grid, {"rho": 0.2, "lam": 1.0})))
    assert even.drawn_lam == 1.0


def lines_of(panel):
    return {line.get_label(): line for line in panel.lines if not line.get_label().startswith("_")}


@pytest.mark.slow
def test_the_losses_have_a_panel_for_each_method_and_a_line_for_each_source():
    summary = summarise(make_results(targets=[0]), "last")
    drawn = figures.draw_losses(summary, ["SAM", "DISAM"])
    left, right = drawn.axes
    assert [left.get_title(), right.get_title()] == ["SAM", "DISAM"]
    assert list(lines_of(left)) == ["rotation", "inversion"]
    np.testing.assert_array_equal(right.lines[1].get_ydata(), summary.curves.domain_losses.mean[2, :, 2])
    assert left.get_ylim() == right.get_ylim()


def test_every_domain_is_named_in_the_legend():
    names = tuple(SHOWN)
    summary = summarise(make_results({"SAM": {}}, domains=names, targets=[0, 1], seeds=2, points=2), "last")
    drawn = figures.draw_losses(summary, ["SAM"])
    assert len(drawn.axes[0].lines) == len(names)
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == list(SHOWN.values())
    assert not any(text.get_parse_math() for text in drawn.legends[0].get_texts())


def test_every_method_is_named():
    methods = {"ERM": {}, "_SAM": {"base": "ERM"}, "$x$": {"base": "_SAM"}}
    grid = ({"rho": 0.1, "lam": 1.0}, {"rho": 0.2, "lam": 1.0})
    results = make_results(methods, seeds=2, points=2, grid=grid)
    summary, grids = summarise(results, "last"), sensitivity.grids(results)
    of = lambda legend: [text.get_text() for text in legend.get_texts()]
    assert of(figures.draw_convergence(summary).axes[1].get_legend()) == list(methods)
    assert [panel.get_title() for panel in figures.draw_losses(summary, ["_SAM", "$x$"]).axes] == ["_SAM", "$x$"]
    used = figures.draw_usable_range(grids, summary.labels, "title")
    assert of(used.legends[0]) == [f"{grid.method}, lam 1" for grid in grids]
    ticks = figures.draw_differences(summary).axes[0].get_yticklabels()
    assert {tick.get_text() for tick in ticks} >= {"_SAM - ERM", "$x$ - _SAM"}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_any_name_can_be_drawn(suffix):
    names = tuple(name for name in SHOWN if "日" not in name)
    summary = summarise(make_results(domains=names, targets=[0, 1], seeds=2, points=2), "last")
    assert len(figures.render(figures.draw_losses(summary, ["SAM"]), suffix)) > 1000


def test_lines_of_many_domains_differ():
    names = [str(d) for d in range(12)]
    summary = summarise(make_results({"SAM": {}}, domains=names, targets=[0, 1], seeds=2, points=2), "last")
    drawn = figures.draw_losses(summary, ["SAM"])
    looks = {(line.get_color(), line.get_linestyle()) for line in drawn.axes[0].lines}
    assert len(looks) == 12


@pytest.mark.slow
@pytest.mark.parametrize("methods", [COMPARE, MANY], ids=["three", "twenty"])
def test_convergence_shows_every_method(methods):
    summary = summarise(make_results(methods, seeds=2, points=2), "last")
    groups = figures.convergence_groups(summary)
    assert {name for group in groups for name in group} == set(methods)
    assert max(map(len, groups)) <= 7
    drawn = figures.draw_convergence(summary)
    assert {label for panel in drawn.axes for label in lines_of(panel)} == set(methods)
    np.testing.assert_array_equal(lines_of(drawn.axes[1])["ERM"].get_ydata(), summary.curves.accuracy.mean[0])


def test_sensitivity_has_a_line_for_each_lam_and_each_rho():
    results = make_results(grid=GRID)
    grids = sensitivity.grids(results)
    drawn = figures.draw_sensitivity(grids, summarise(results, "last").labels, "title")
    sam, no_lam, by_rho, by_lam = drawn.axes
    assert not no_lam.get_visible()
    assert by_rho.get_xscale() == "log"
    legends = [[text.get_text() for text in panel.get_legend().get_texts()] for panel in (sam, by_rho, by_lam)]
    assert legends == [["lam 0"], ["lam 0", "lam 1", "lam 3"], ["rho 0.01", "rho 0.1", "rho 0.5"]]
    np.testing.assert_array_equal(by_rho.containers[1][0].get_xdata(), [0.01, 0.1, 0.5])
    np.testing.assert_array_equal(by_rho.containers[1][0].get_ydata(), grids[1].accuracy.mean[[1, 4, 7]])


def test_the_usable_range_is_where_the_gain_is_above_its_error():
    results = make_results(grid=({"rho": 0.0}, {"rho": 0.05}, {"rho": 0.1}, {"rho": 0.9}))
    (sam, _) = grids = sensitivity.grids(results)
    usable = sensitivity.usable(sam.gain)
    np.testing.assert_array_equal(usable, sam.gain.mean > sam.gain.error)
    assert usable.tolist()[1:] == [True, True, False]
    drawn = figures.draw_usable_range(grids, summarise(results, "last").labels, "title")
    upper, lower = drawn.axes
    np.testing.assert_array_equal(lines_of(upper)["SAM, lam 0"].get_ydata(), sam.gain.mean)
    assert lower.get_xscale() == "symlog"
    bars = [line for line in lower.lines if line.get_linewidth() == 4.0 and line.get_ydata()[0] == 0]
    assert [line.get_xdata()[1] for line in bars][-1] == 0.1
    without = make_results({"SAM": {}}, grid=GRID[:4])
    with pytest.raises(ValueError, match="no ERM among the results"):
        figures.draw_usable_range(sensitivity.grids(without), {"SAM": "SAM"}, "")


def test_a_difference_is_a_dot_with_its_interval_filled_if_shown():
    results = make_results(seeds=10, spread_factor={"DISAM": 0.5})
    diverge(results, "ERM", 0, 0)
    summary = summarise(results, "last")
    drawn = figures.draw_differences(summary)
    panel = drawn.axes[1]
    _, interval, dot = panel.lines
    compared = summary.comparison("spread", "DISAM", "SAM")
    np.testing.assert_array_equal(interval.get_xdata(), np.array(compared.interval))
    assert dot.get_xdata()[0] == compared.difference.mean
    assert compared.shown
    assert dot.get_markerfacecolor() == dot.get_color()
    assert [text.get_text() for text in panel.texts] == ["diverged", "diverged"]
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()] == [
        "DISAM - SAM",
        "SAM - ERM",
        "DISAM - ERM",
    ]


def text_files(results, criterion, drawn=(), cost=None):
    summaries = {each: summarise(results, each) for each in IN_EVERY_REPORT}
    return write.text_files(results, summaries, criterion, drawn, cost)


@pytest.fixture(scope="module")
def contents():
    results = make_results(grid=GRID[:4], seeds=3, domains=("a$b", "b_c", "c|d"))
    diverge(results, "SAM", 1, 1)
    return results, text_files(results, "validation", ("domain_losses", "usable_range"))


def test_the_same_results_are_the_same_bytes(contents):
    results, first = contents
    cost = {"ERM": {"flops": 1.0e6, "seconds_per_run": 1.5}}
    again = text_files(results, "validation", ("domain_losses", "usable_range"), cost)
    assert set(again) - set(first) == {"cost.md", "cost.tex", "cost.csv"}
    assert [name for name in first if first[name] != again[name]] == []


@pytest.mark.slow
def test_the_same_figure_is_the_same_bytes_whatever_the_user_set():
    from matplotlib import rc_context

    summary = summarise(make_results(seeds=2, points=2, domains=("a$b$", "b")), "last")
    for suffix in ("png", "svg", "pdf"):
        one = figures.render(figures.draw_losses(summary, ["SAM"]), suffix)
        with rc_context({"font.size": 20, "lines.linewidth": 9, "savefig.bbox": "tight"}):
            assert figures.render(figures.draw_losses(summary, ["SAM"]), suffix) == one
    assert b"CreationDate" not in one
    assert b"/Type3" not in one
    names = figures.draw_losses(summary, ["SAM"]).legends[0].get_texts()
    assert [name.get_text() for name in names] == ["a$b$", "b"]
    assert not names[0].get_parse_math()


@pytest.mark.slow
def test_a_report_has_every_file(contents):
    results, _ = contents
    files = write.report_files(results)
    assert write.report_files(results, cost={}).items() >= files.items()
    names = {"compare", "accuracy", "comparisons", "loss_comparisons", "losses", "sharpness", "selection", "flops"}
    drawn = {"domain_losses", "convergence", "differences", "sensitivity", "usable_range"}
    expected = {"report.html", "table.md", "runs.csv", "results.json"}
    expected |= {f"{name}.{suffix}" for name in names for suffix in ("tex", "csv")}
    expected |= {f"{name}.{suffix}" for name in drawn for suffix in ("png", "pdf")}
    assert set(files) == expected
    for name in drawn:
        assert Image.open(io.BytesIO(files[f"{name}.png"])).size[0] >= 700  # a column of 3.5 inches
        assert files[f"{name}.pdf"].startswith(b"%PDF")


def test_the_page_has_the_tables_the_sentences_and_the_figures(contents):
    results, files = contents
    text = files["table.md"].decode()
    summary = summarise(results, "validation")
    assert text.startswith(f"# {summary.title}\n\n    disam-jax compare\n")
    for line in findings(summary):
        assert f"- {line}\n" in text
    for name in ("domain_losses", "usable_range"):
        assert f"]({name}.png)" in text
    notes = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(notes) == len(set(notes))
    tables_of_page = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]
    assert len(tables_of_page) == 8
    for lines in tables_of_page:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_every_run_is_a_line_of_the_csv(contents):
    results, files = contents
    rows = list(csv.DictReader(io.StringIO(files["runs.csv"].decode())))
    assert len(rows) == len(results.runs)
    index = next(i for i, run in enumerate(results.runs) if run[:4] == ("DISAM", 2, 1, 3))
    row = rows[index]
    assert (row["method"], row["target"], row["seed"], row["candidate"]) == ("DISAM", "c|d", "1", "3")
    assert (float(row["rho"]), float(row["lam"])) == (0.01, 1.0)
    assert float(row["accuracy"]) == pytest.approx(100.0 * results.accuracy[index, -1, 0, 2])
    assert float(row["worst_loss"]) == pytest.approx(results.losses[index, -1, 0, :2].max())
    for criterion in IN_EVERY_REPORT:
        chosen = {i for i, each in enumerate(rows) if each[f"step_{criterion}"]}
        assert chosen == set(select(results, criterion).run.flat)
    bad = [row for row in rows if row["diverged"] == "true"]
    assert len(bad) == 4
    assert all((row["method"], row["target"], row["seed"]) == ("SAM", "b_c", "1") for row in bad)
    assert {row["accuracy"] for row in bad} == {row["mean_loss"] for row in bad} == {"NaN"}


def test_the_json_has_all_three_selections(contents):
    results, files = contents
    found = json.loads(files["results.json"])
    assert set(found["criteria"]) == set(IN_EVERY_REPORT)
    for criterion in IN_EVERY_REPORT:
        summary = summarise(results, criterion)
        read = found["criteria"][criterion]["methods"]["DISAM"]
        np.testing.assert_allclose(read["scores"]["accuracy"], summary.scores.accuracy[2], rtol=1e-8)
        assert read["overall"]["spread"]["error"] == pytest.approx(summary.overall["spread"].error[2], rel=1e-8)
    assert found["criteria"]["last"]["methods"]["SAM"]["scores"]["spread"][1][1] is None
    assert found["criteria"]["last"]["divergence"]["SAM"] == {"diverged": 4, "runs": 36, "seeds": [1]}
    assert found["sensitivity"]["DISAM"]["rho"] == [0.01, 0.1, 0.1, 0.1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("methods", "more"),
    [
        ({"DISAM": {"base": "SAM"}}, {"seeds": 1, "domains": ("a", "b"), "targets": [0]}),
        pytest.param(COMPARE, {"seeds": 2, "domains": ("a", "b"), "targets": [1]}, marks=pytest.mark.slow),
        pytest.param(MANY, {"seeds": 3}, marks=pytest.mark.slow),
    ],
    ids=["one", "two", "twenty"],
)
@pytest.mark.parametrize("all_diverged", [False, True])
def test_small_and_large_reports_are_made(methods, more, all_diverged):
    results = make_results(methods, points=2, **more)
    if all_diverged:
        for method in methods:
            for seed in results.seeds:
                for target in results.targets:
                    diverge(results, method, seed, target, point=0)
    files = write.report_files(results, "last")
    assert {"table.md", "accuracy.tex", "runs.csv", "results.json", "convergence.png"} <= set(files)
    assert ("diverged (" in files["table.md"].decode()) is all_diverged


def test_an_unknown_criterion_is_named():
    with pytest.raises(ValueError, match=r"criterion must be one of validation, oracle, last, .*got 'best'"):
        write.report_files(make_results(), "best")


def test_machine_and_versions():
    assert {"cpu", "cores", "device", "system"} == set(environment.machine())
    assert {"python", "jax", "jaxlib", "numpy", "optax", "disam_jax"} <= set(environment.versions())
