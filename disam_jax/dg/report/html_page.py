"""The report as one page of HTML that needs nothing beside it: figures, style and script are in the file."""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from disam_jax._labels import visible
from disam_jax.dg.report.findings import findings
from disam_jax.dg.report.formats import csv_number
from disam_jax.dg.report.summary import Summary
from disam_jax.dg.report.tables import INDENT, Cell, Table
from disam_jax.dg.results import Results
from disam_jax.dg.sweep.model_selection import CRITERIA

CAPTIONS = {
    "domain_losses": "Domain losses along training",
    "convergence": "Convergence",
    "differences": "Paired differences with their intervals",
    "sensitivity": "Sensitivity to rho and lam",
    "usable_range": "Usable range of rho",
    "metric_confusion": "Confusion matrices",
    "metric_reliability": "Reliability",
}
# How much larger than on paper a figure may be on a screen, and how small it may become before it scrolls.
LARGEST, SMALLEST = 1.4, 0.9
# Colours of the figures that follow the page's. Matplotlib writes them in lower case.
FOLLOWING = {"#ffffff": "var(--paper)", "#000000": "currentColor", "#0072b2": "var(--blue)"}


def html_page(results: Results, summary: Summary, made: Mapping[str, Table], drawn: Mapping[str, bytes]) -> bytes:
    """The report as one page: the findings first, then tables and figures, and last how it was made.

    Args:
        results: Results of the sweep.
        summary: Summary under the criterion that is reported.
        made: Tables by name.
        drawn: Figures by name, each as SVG.

    Returns:
        HTML that loads nothing, follows the reader's choice of light or dark, and can be read without its script.

    Example:
        >>> from disam_jax.dg.report.summary import summarise
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM")
        >>> page = html_page(results, summarise(results, "last"), {}, {})
        >>> page[:15], b"With 1 seed there is no standard error" in page
        (b'<!doctype html>', True)
    """
    sections = {"findings": ("Findings", _list([*findings(summary), *results.header.get("notes", ())], "findings"))}
    said: set[str] = set()
    tables = {}
    for name, table in made.items():
        # What a note says it says once.
        new = tuple(note for note in table.notes if note not in said)
        said.update(table.notes)
        title = "Comparison" if table.title == summary.title else table.title
        tables[name] = (title, to_html(replace(table, notes=new)))
    if drawn:
        # After the first table, which tells most.
        figures = {"figures": ("Figures", "\n".join(figure_html(name, svg) for name, svg in drawn.items()))}
        tables = {**dict(list(tables.items())[:1]), **figures, **dict(list(tables.items())[1:])}
    sections |= tables
    sections["setting"] = ("How it was run", setting_html(results))
    contents = "".join(f'<li><a href="#{name}">{text(title)}</a></li>' for name, (title, _) in sections.items())
    style, script = (Path(__file__).with_name(f"page.{each}").read_text(encoding="utf-8") for each in ("css", "js"))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{policy(script)}
<title>{text(summary.title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{text(summary.title)}</h1>
<p class="faint">Runs and points of training chosen by {text(CRITERIA[summary.criterion].title)}.</p>
<nav aria-label="Sections"><ul>{contents}</ul></nav>
</header>
<main>
{"".join(_section(name, *section) for name, section in sections.items())}</main>
<script>
{script}</script>
</body>
</html>
""".encode()


def policy(script: str) -> str:
    """The tag that forbids the page to load anything, and to run any script but its own.

    Example:
        >>> "default-src 'none'" in policy("")
        True
    """
    # A browser hashes all that stands between the tags.
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    allowed = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'


def text(content: str) -> str:
    """Text in one line with all that HTML would read as a mark made plain.

    Example:
        >>> text("<b> & 'c'")
        '&lt;b&gt; &amp; &#x27;c&#x27;'
    """
    return html.escape(visible(content))


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}">\n<h2>{text(title)}</h2>\n{content}\n</section>\n'


def _list(lines: Iterable[str], kind: str) -> str:
    items = "\n".join(f"<li>{text(line)}</li>" for line in lines)
    return f'<ul class="{kind}">\n{items}\n</ul>' if items else ""


def to_html(table: Table) -> str:
    """The table in a box of its own that scrolls, and its notes, without the title.

    Args:
        table: Any table. A heading and the indented rows behind it are a group, in which rows are sorted.

    Returns:
        HTML. A cell with a number has it as `data-value`.

    Example:
        >>> print(to_html(Table("", ("method", "a"), ((Cell("SAM"), Cell("1.0", {"": 1.0})),))).splitlines()[3])
        <tr><th scope="row">SAM</th><td data-value="1">1.0</td></tr>
    """
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in table.columns)
    bodies: list[list[str]] = []
    inside = False
    for row in table.rows:
        inner, heading = row[0].text.startswith(INDENT), len(row) == 1
        if not bodies or heading or (inside and not inner):
            bodies.append([])
        inside = heading or inner
        bodies[-1].append(_row(row, len(table.columns), inner))
    groups = "\n".join("<tbody>\n" + "\n".join(rows) + "\n</tbody>" for rows in bodies)
    box = f'<div class="box" role="region" tabindex="0" aria-label="{text(table.title)}"><table>'
    notes = _list(table.notes, "notes")
    return f"{box}\n<thead><tr>{head}</tr></thead>\n{groups}\n</table></div>" + (f"\n{notes}" if notes else "")


def _row(row: tuple[Cell, ...], columns: int, inner: bool) -> str:
    label = text(row[0].text)
    if len(row) == 1:
        return f'<tr><th class="group" scope="rowgroup" colspan="{columns}">{label}</th></tr>'
    kind = ' class="inner"' if inner else ""
    return f'<tr><th{kind} scope="row">{label}</th>{"".join(map(_cell, row[1:]))}</tr>'


def _cell(cell: Cell) -> str:
    shown = f"<strong>{text(cell.text)}</strong>" if cell.best else text(cell.text)
    value = next(iter(cell.values.values()), math.nan)
    number = f' data-value="{csv_number(value)}"' if math.isfinite(value) else ""
    return f"<td{number}>{shown}{'†' * cell.level}</td>"


def figure_html(name: str, svg: bytes) -> str:
    """A figure in a box that scrolls where the figure would become too small to be read.

    Args:
        name: Name of the figure.
        svg: The figure, as Matplotlib writes it.

    Returns:
        HTML with the figure in it. Its black and white are those of the page, and no name in it is another figure's.

    Example:
        >>> figure_html("convergence", b'<svg><path id="a" style="fill: #000000"/></svg>').splitlines()[1]
        '<svg><path id="convergence-a" style="fill: currentColor"/></svg>'
    """
    title = text(CAPTIONS.get(name, name))
    # No comment: Matplotlib writes names into them.
    inner = re.sub(r"<!--.*?-->|<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", svg.decode(), flags=re.DOTALL)
    inner = re.sub(r'( id="| xlink:href="#|url\(#)', rf"\g<1>{name}-", inner).strip()
    for colour, own in FOLLOWING.items():
        inner = inner.replace(colour, own)

    inner = re.sub(r'<svg [^>]*viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>', _svg_tag, inner, count=1)
    box = f'<div class="box" role="img" tabindex="0" aria-label="{title}">'
    return f"<figure>{box}\n{inner}\n</div><figcaption>{title}</figcaption></figure>"


def _svg_tag(match: re.Match[str]) -> str:
    # A point has 4/3 pixels.
    pixels = float(match[1]) * 4 / 3
    size = f"width: 100%; max-width: {pixels * LARGEST:.0f}px; min-width: {pixels * SMALLEST:.0f}px"
    return f'<svg viewBox="0 0 {match[1]} {match[2]}" style="{size}">'


def setting_html(results: Results) -> str:
    """What was run, with which versions, and by which command.

    Args:
        results: Results of the sweep.

    Returns:
        HTML.
    """
    header = results.header
    data = header["data"]
    classes = data["classes"] if isinstance(data["classes"], int) else len(data["classes"])
    version = header.get("version", {})
    versions = version if isinstance(version, Mapping) else {"disam_jax": version}
    facts: dict[str, Any] = {
        "data": f"{data['name']}: {', '.join(f'{name} {count}' for name, count in data['domains'].items())}",
        "classes": classes,
        "runs": f"{len(results.runs)}, of {len(results.seeds)} seeds and {len(results.targets)} targets",
        **header.get("setting", {}),
        **versions,
        "fingerprint of the data": data.get("fingerprint"),
    }
    rows = "\n".join(
        f"<dt>{text(_words(name))}</dt><dd>{text(_value(each))}</dd>"
        for name, each in facts.items()
        if each is not None
    )
    return f"<dl>\n{rows}\n</dl>\n<pre>{text(header['command'])}</pre>"


def _words(name: str) -> str:
    return name if name == "disam_jax" else name.replace("_", " ")


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
