"""The report as one page of HTML: safe with any name, whole without a network, and usable in a browser at any width."""

import dataclasses
import functools
import html
import html.parser
import json
import re
import shutil
import subprocess

import pytest
from synthetic_results import COMPARE, make_results

from disam_jax._labels import visible
from disam_jax.dg.report import write
from disam_jax.dg.report.findings import findings
from disam_jax.dg.report.html_page import figure_html, html_page, to_html
from disam_jax.dg.report.summary import summarise
from disam_jax.dg.report.tables import Cell, Table
from disam_jax.dg.sweep.model_selection import CRITERIA

HOSTILE = (
    "</td></table></section><script>document.title = 'owned'</script>",
    '" onmouseover="alert(1)',
    "<!--",
    "a\nb\u202e&amp;'",
)
# On every line that a name of a method could reach.
METHODS = {**COMPARE, "<img src=x onerror=alert(1)>": {"base": "SAM", "flops": 2.0e6}}


class Parsed(html.parser.HTMLParser):
    """The tags of a page, and the text within some of them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.items, self._inside = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        kept = {"td": self.cells, "th": self.cells, "li": self.items, "dd": self.items, "pre": self.items}.get(tag)
        if kept is not None:
            kept.append("")
            self._inside.append((tag, kept))

    def handle_endtag(self, tag):
        if self._inside and self._inside[-1][0] == tag:
            self._inside.pop()

    def handle_data(self, data):
        for _, kept in self._inside:
            kept[-1] += data


@functools.cache
def hostile():
    results = make_results(METHODS, seeds=2, points=2, domains=HOSTILE)
    header = {**results.header, "command": f"disam-jax compare --target {HOSTILE[0]}", "notes": [HOSTILE[1]]}
    results = dataclasses.replace(results, header=header)
    summaries = {each: summarise(results, each) for each in CRITERIA}
    made = write.report_tables(results, summaries, "last")
    return results, summaries["last"], html_page(results, summaries["last"], made, {}).decode()


def test_no_name_becomes_markup():
    _, summary, page = hostile()
    parsed = Parsed(page)
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("script") == tags.count("style") == tags.count("main") == 1
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    for name in (*HOSTILE, "<img src=x onerror=alert(1)>"):
        assert visible(name) in map(str.strip, parsed.cells)
    assert HOSTILE[1] in parsed.items
    assert [line for line in findings(summary) if line not in parsed.items] == []


def test_the_findings_come_first_and_the_command_last():
    _, _, page = hostile()
    sections = re.findall(r'<section id="(\w+)">', page)
    assert sections[0] == "findings"
    assert sections[-1] == "setting"
    assert Parsed(page).items[-1] == f"disam-jax compare --target {HOSTILE[0]}"


def test_nothing_is_loaded_and_no_other_script_may_run():
    _, _, page = hostile()
    for tag, attributes in Parsed(page).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_a_group_of_rows_is_a_body_of_its_own_and_a_number_is_its_value():
    cell = lambda value: Cell(f"{value} ± 1", {"": value, "se": 1.0})
    rows = (
        (Cell("accuracy"),),
        (Cell("  a"), cell(2.0)),
        (Cell("  b"), Cell("diverged (1 of 2)", {"": float("nan")})),
        (Cell("spread"), cell(-0.5)),
        (Cell("mean"), Cell("-")),
    )
    bodies = to_html(Table("", ("", "x"), rows)).split("<tbody>")[1:]
    assert [body.count("<tr>") for body in bodies] == [3, 2]
    assert re.findall(r'data-value="([^"]*)"', "".join(bodies)) == ["2", "-0.5"]


def test_parts_of_two_figures_have_different_names():
    svg = b'<svg><!-- <b> --><path id="p" clip-path="url(#c)"/><use xlink:href="#p" style="fill: #ffffff"/></svg>'
    one, other = (figure_html(name, svg) for name in ("convergence", "differences"))
    assert 'id="convergence-p"' in one
    assert 'xlink:href="#convergence-p"' in one
    assert "url(#convergence-c)" in one
    assert "convergence-" not in other
    assert "<!--" not in one
    assert "#ffffff" not in one


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# Frames of the same origin, whose insides a page may measure; none is narrower than it asks for, as windows are.
MEASURE = """
const found = [];
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument;
  const column = (table) => [...table.tBodies].map((group) => [...group.rows].map((row) => row.cells[0].textContent));
  const table = page.querySelector("#accuracy table");
  const head = table.tHead.rows[0].cells[1];
  const sorted = [column(table)];
  for (let click = 0; click < 3; click++) {
    head.querySelector("button").click();
    sorted.push([...column(table), head.getAttribute("aria-sort")]);
  }
  found.push({
    width: page.defaultView.innerWidth,
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    buttons: page.querySelectorAll("thead button").length === page.querySelectorAll("thead th").length,
    boxes: [...page.querySelectorAll(".box")].some((box) => box.scrollWidth > box.clientWidth),
    title: page.title,
    sorted,
  });
}
document.body.textContent = JSON.stringify(found);
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_it_at_any_width_and_sorts_its_tables(tmp_path):
    results = make_results(METHODS, seeds=3, points=2, domains=HOSTILE, accuracy_gain={"SAM": 0.2, "ERM": 0.1})
    page = write.report_files(results, "last")["report.html"].decode()
    frames = "".join(f'<iframe width="{width}" srcdoc="{html.escape(page)}"></iframe>' for width in (390, 1280))
    script = f"<script>addEventListener('load', () => {{{MEASURE}}})</script>"
    (tmp_path / "frames.html").write_text(f"<!doctype html><meta charset=utf-8><body>{frames}{script}")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900", "--dump-dom"]
    command = [CHROMIUM, *options, (tmp_path / "frames.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert said == []
    narrow, wide = json.loads(html.unescape(re.search(r"<body>(\[.*\])</body>", done.stdout, re.DOTALL).group(1)))
    assert (narrow["width"], wide["width"]) == (390, 1280)
    assert narrow["boxes"]  # what is too wide scrolls by itself
    for found in (narrow, wide):
        assert found["overflow"] == 0
        assert found["buttons"]
        assert found["title"].startswith("digits")
        first, falling, rising, again = found["sorted"]
        values = dict(
            zip(summarise(results, "last").methods, summarise(results, "last").accuracy.mean[:, 0], strict=True)
        )
        order = sorted(values, key=values.get)
        assert first == [list(values)]
        assert falling == [order[::-1], "descending"]
        assert rising == [order, "ascending"]
        assert again == [*first, None]
