"""The first sentences of a page as its description, which search engines and link previews show."""

import html
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

LONGEST = 160


def description(doctree: nodes.document | None) -> str:
    """The first paragraph of a page, cut at the end of a word."""
    paragraphs = doctree.findall(nodes.paragraph) if doctree is not None else ()
    text = next((" ".join(node.astext().split()) for node in paragraphs if isinstance(node.parent, nodes.section)), "")
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + " …"


def add(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Puts the description into the head of a page."""
    del app, pagename, templatename
    text = description(doctree)
    if text:
        context["metatags"] += f'\n<meta name="description" content="{html.escape(text)}" />'


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects to the build."""
    app.connect("html-page-context", add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
