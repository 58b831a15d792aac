"""Tables of what is registered, made while the site is built.

A page takes in a table by a comment of its own line: `<!-- registry: methods -->`.
"""

import pathlib
import re
from collections.abc import Callable
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

PLACE = re.compile(r"^<!-- registry: (.+?) -->$", re.MULTILINE)


def methods() -> str:
    """Name, description and hyperparameters of each method, in Markdown."""
    from disam_jax.dg.methods import METHODS

    rows = [
        f"| `{name}` | {method.note} | {', '.join(f'`{each}`' for each in method.hparams)} |"
        for name, method in METHODS.items()
    ]
    return "\n".join(["| `--method` | what it is | hyperparameters |", "|---|---|---|", *rows])


def metrics() -> str:
    """Name and description of each metric, in Markdown."""
    from disam_jax.dg.training.metrics import METRICS

    return "\n".join(["| metric | what it is |", "|---|---|", *(f"| `{n}` | {m.note} |" for n, m in METRICS.items())])


TABLES: dict[str, Callable[[], str]] = {"methods": methods, "metrics": metrics}


def filled(text: str) -> str:
    """The text with the tables for which it asks.

    Raises:
        ExtensionError: If there is no such table.
    """

    def table(match: re.Match) -> str:
        if match[1] not in TABLES:
            raise ExtensionError(f"no registry is called {match[1]}: the registries are {', '.join(TABLES)}")
        return TABLES[match[1]]()

    return PLACE.sub(table, text)


def fill(app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts the tables into a page."""
    if pathlib.Path(app.env.doc2path(docname)).suffix == ".md":
        source[0] = filled(source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects to the build."""
    app.connect("source-read", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
