"""A table as Markdown, LaTeX, CSV, JSON, and in the terminal."""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import IO, Any

from disam_jax._labels import visible
from disam_jax.dg.report.tables import INDENT, NOTHING, Cell, Table

# Fits the 80 columns of a plain terminal and of a log.
WIDTH = 80
LABEL_WIDTH = 24
HEADER_WIDTH = 12
# Spaces between two columns.
GAP = 2


def full_rows(table: Table) -> list[tuple[Cell, ...]]:
    """The rows, headings filled up with empty cells."""
    return [(*row, *[Cell("")] * (len(table.columns) - len(row))) for row in table.rows]


def to_markdown(table: Table) -> str:
    r"""The table and its notes in GitHub's Markdown, without the title.

    Args:
        table: any.

    Returns:
        Lines, each with its end.

    Example:
        >>> print(to_markdown(Table("", ("method", "a|b"), ((Cell("SAM"), Cell("1 ± 2", best=True)),))), end="")
        | method | a\|b |
        |---|---:|
        | SAM | **1 ± 2** |
    """

    def text(cell: Cell) -> str:
        escaped = markdown_text(cell.text)
        return (f"**{escaped}**" if cell.best else escaped) + ("†" if cell.level else "")

    def line(texts: Sequence[str]) -> str:
        return "| " + " | ".join(texts) + " |"

    lines = [
        line([markdown_text(column) for column in table.columns]).replace("|  |", "| |", 1),
        "|---|" + "---:|" * (len(table.columns) - 1),
        *(line([text(cell) for cell in row]) for row in full_rows(table)),
    ]
    if table.notes:
        lines += ["", *(f"- {markdown_text(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


# Each would begin something in Markdown: code, emphasis, a cell, a formula, what is crossed out, a tag, a link, an
# entity; a bracket or a letter that stands alone begins nothing.
_MARKS = re.compile(r"([\\`*|$~]|<(?=[A-Za-z/!?])|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|&(?=#?\w+;))")


def markdown_text(text: str) -> str:
    r"""Text in one line with all that Markdown would read as a mark made plain.

    Args:
        text: Any; two spaces at its beginning stay an indent.

    Returns:
        Markdown for a cell or a line.

    Example:
        >>> print(markdown_text("_a|b <i>"))
        \_a\|b \<i>
    """
    escaped = _MARKS.sub(r"\\\1", visible(text))
    return "&emsp;" + escaped if text.startswith(INDENT) else escaped


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "†": r"$^{\dagger}$",
}


def latex_text(text: str) -> str:
    r"""Text with all that LaTeX would read as a command made plain.

    Example:
        >>> print(latex_text("50 % of A_1"))
        50 \% of A\_1
    """
    plain_text = "".join(_LATEX.get(letter, letter) for letter in visible(text))
    # After the end of a row, either would be read as an option of that end.
    return f"{{{plain_text[0]}}}{plain_text[1:]}" if plain_text.startswith(("[", "*")) else plain_text


def to_latex(table: Table) -> str:
    """The table as a `table` environment that needs the package booktabs alone.

    Args:
        table: any.

    Returns:
        Lines, each with its end; the notes stand under the table.
    """

    def text(cell: Cell) -> str:
        if not re.fullmatch(r"[<\[]?[+-]?\d[\d.,+\-e± \]]*", cell.text):
            return latex_text(cell.text)
        mean, sign, error = cell.text.partition(" ± ")
        number = rf"\mathbf{{{mean}}}" if cell.best else mean
        number += rf" \pm {error}" if sign and error != NOTHING else ""
        return f"${number}" + (r"^{\dagger}$" if cell.level else "$")

    def label(cell: Cell) -> str:
        return (r"\quad " if cell.text.startswith(INDENT) else "") + latex_text(cell.text)

    def line(texts: Sequence[str]) -> str:
        return " & ".join(texts) + r" \\"

    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(table.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\toprule",
        line([latex_text(column) for column in table.columns]),
        r"\midrule",
    ]
    for place, row in enumerate(full_rows(table)):
        if place and (len(table.rows[place]) == 1 or _ends_group(table, place - 1)):
            lines.append(r"\midrule")
        lines.append(line([label(row[0]), *map(text, row[1:])]))
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip\footnotesize {latex_text(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _ends_group(table: Table, place: int) -> bool:
    """Whether an indented row is followed by one that is not."""
    labels = [row[0].text.startswith(INDENT) for row in table.rows]
    return labels[place] and (place + 1 == len(labels) or not labels[place + 1])


def to_csv(table: Table) -> str:
    """The numbers of the table; a mean and its standard error are two columns, a heading is part of its rows' labels.

    Args:
        table: any.

    Returns:
        CSV with a header line. What is not finite is NaN.

    Example:
        >>> cell = Cell("1.0 ± 0.2", {"": 1.0, "se": 0.25})
        >>> print(to_csv(Table("", ("method", "a"), ((Cell("SAM"), cell),))), end="")
        method,a,a se
        SAM,1,0.25
    """
    names: list[list[str]] = [[] for _ in table.columns]
    for row in table.rows:
        for place, cell in enumerate(row):
            names[place] += [name for name in cell.values if name not in names[place]]
    header = [
        f"{column} {name}".strip()
        for column, of_column in zip(table.columns, names, strict=True)
        for name in of_column or [""]
    ]
    lines, heading = [header], ""
    for row in table.rows:
        label = row[0].text
        if len(row) == 1:
            heading = label
            continue
        if label.startswith(INDENT) and heading:
            label = f"{heading}: {label.strip()}"
        fields = [label]
        for cell, of_column in zip(row[1:], names[1:], strict=True):
            fields += [csv_number(cell.values.get(name)) for name in of_column] or [cell.text]
        lines.append(fields)
    return write_csv(lines)


def write_csv(lines: Sequence[Sequence[str]]) -> str:
    """Lines of fields as CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()


def csv_number(value: float | None) -> str:
    """Ten digits, which hold what is measured in float32 without the noise of a mean; NaN as such, None as nothing."""
    if value is None:
        return ""
    return f"{value:.10g}" if math.isfinite(value) else "NaN"


def to_json(table: Table) -> dict[str, Any]:
    """The table as a dictionary that JSON can hold; what is not finite is None."""

    def value(cell: Cell) -> Any:
        if not cell.values:
            return cell.text
        return {"text": cell.text, **{name or "value": plain(number) for name, number in cell.values.items()}}

    return {
        "title": table.title,
        "columns": list(table.columns),
        "rows": [[value(cell) for cell in row] for row in table.rows],
        "notes": list(table.notes),
    }


def plain(values: Any) -> Any:
    """Numbers of ten digits, in nested lists for an array; None where not finite, for which JSON has no word."""
    if getattr(values, "ndim", 0) or isinstance(values, list | tuple):
        return [plain(value) for value in values]
    return float(f"{float(values):.10g}") if math.isfinite(values) else None


def print_table(table: Table, file: IO[str] | None = None) -> None:
    """Prints the table and its notes, never cutting a number.

    A table that is too wide is transposed if it then fits, and split by columns if not.

    Args:
        table: any.
        file: where to; standard output by default.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=file, highlight=False, markup=False, emoji=False)
    # A narrower terminal wraps lines by itself; a pipe gets what a plain terminal would.
    console.width = max(console.width, WIDTH) if console.is_terminal else WIDTH
    for number, part in enumerate(fit(_writable_table(table, console.encoding), console.width)):
        printed = RichTable(
            title=part.title if number == 0 else None,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 0, 0, 1),
        )
        widths = column_widths(part, console.width)
        printed.add_column(part.columns[0], overflow="fold", width=widths[0])
        for column, width in zip(part.columns[1:], widths[1:], strict=True):
            printed.add_column(column, justify="right", overflow="fold", width=width)
        for place, row in enumerate(full_rows(part)):
            printed.add_row(
                row[0].text,
                *(Text(cell.text, style="bold" if cell.best else "") for cell in row[1:]),
                end_section=place + 1 == len(part.rows) or _ends_group(part, place),
            )
        if number:
            console.print()
        console.print(printed)
    print_lines(["", *table.notes], file)


def print_lines(lines: Sequence[str], file: IO[str] | None = None, wrap: bool = True) -> None:
    """Prints lines of text, wrapped between words or as they are, in what the file can encode."""
    from rich.console import Console

    console = Console(file=file, highlight=False, markup=False, emoji=False)
    console.width = max(console.width, WIDTH) if console.is_terminal else WIDTH
    for line in lines:
        console.print(_writable(line, console.encoding), soft_wrap=not wrap)


def _writable(text: str, encoding: str) -> str:
    """The text in what the encoding has, without what would control a terminal; an indent stays."""
    text = INDENT * text.startswith(INDENT) + visible(text)
    if not encoding.lower().startswith("utf"):
        text = text.replace("±", "+-").replace("†", "~")
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _writable_table(table: Table, encoding: str) -> Table:
    """The table with every mark as a letter of its text, in what the encoding has."""
    rows = tuple(
        tuple(replace(cell, text=_writable(cell.text + "†" * cell.level, encoding), level=False) for cell in row)
        for row in table.rows
    )
    columns = tuple(_writable(column, encoding) for column in table.columns)
    return replace(table, title=_writable(table.title, encoding), columns=columns, rows=rows)


def column_widths(table: Table, available: int) -> list[int]:
    """Widths in which no cell but a label and no header of one short word is folded.

    Args:
        table: any.
        available: columns of the terminal.

    Returns:
        A width for each column. Their sum, with the gaps between columns, is more than `available` only if the
        table has to be split.
    """
    from rich.cells import cell_len

    rows = full_rows(table)
    widths = [
        max(*(cell_len(row[place].text) for row in rows), min(cell_len(column), HEADER_WIDTH))
        for place, column in enumerate(table.columns)
        if place > 0
    ]
    longest = max(cell_len(text) for text in (table.columns[0], *(row[0].text for row in rows)))
    left = available - sum(widths) - GAP * len(widths)
    return [min(longest, max(LABEL_WIDTH, left)), *widths]


def _fits(table: Table, available: int) -> bool:
    widths = column_widths(table, available)
    return sum(widths) + GAP * (len(widths) - 1) <= available


def fit(table: Table, available: int) -> list[Table]:
    """Tables that hold the same cells and fit the width: as it is, transposed, or split by columns.

    Args:
        table: any.
        available: columns of the terminal.

    Returns:
        One or more tables. A single column that is too wide is left so.
    """
    if _fits(table, available):
        return [table]
    if all(len(row) == len(table.columns) for row in table.rows):
        turned = transposed(table)
        if _fits(turned, available):
            return [turned]
    parts, chosen = [], [0]
    for place in range(1, len(table.columns)):
        if len(chosen) > 1 and not _fits(_columns(table, [*chosen, place]), available):
            parts.append(_columns(table, chosen))
            chosen = [0]
        chosen.append(place)
    return [*parts, _columns(table, chosen)]


def transposed(table: Table) -> Table:
    """Columns as rows; the table must have no headings."""
    columns = ("", *(row[0].text for row in table.rows))
    rows = tuple(
        (Cell(name), *(row[place] for row in table.rows)) for place, name in enumerate(table.columns) if place > 0
    )
    return Table(table.title, columns, rows, table.notes)


def _columns(table: Table, places: Sequence[int]) -> Table:
    rows = tuple(row if len(row) == 1 else tuple(row[place] for place in places) for row in table.rows)
    return Table(table.title, tuple(table.columns[place] for place in places), rows, table.notes)
