"""Tables of the benchmark's methods, networks, data sets and ways of fine-tuning, made from their registries.

A line `<!-- registry: networks -->` of a page becomes the table of what `disam-jax list` has under that title.
"""

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from disam_jax.dg.cli.listing import lists

TABLE = re.compile(r"^<!-- registry: ([\w -]+?) -->$", re.MULTILINE)


def table(title: str) -> str:
    """The entries of a registry as a Markdown table."""
    entries = lists().get(title)
    if entries is None:
        raise ExtensionError(f"no registry is called '{title}': write one of {', '.join(lists())}")
    cell = lambda text: text.replace("|", r"\|")
    return "\n".join(
        ["| name | what it is |", "|---|---|", *(f"| `{n}` | {cell(note)} |" for n, note in entries.items())]
    )


def with_tables(text: str) -> str:
    """The text of a page with the tables that it asks for."""
    return TABLE.sub(lambda match: table(match[1]), text)


def put_in(app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts the tables into a page."""
    del app, docname
    source[0] = with_tables(source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects to the build."""
    app.connect("source-read", put_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
