"""A table at the head of each API page: every name of the page with the first sentence of its docstring."""

import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

SENTENCE_END = re.compile(r"(?<![A-Z.\s])\.(?=\s|$)")


def first_sentence(paragraph: nodes.paragraph) -> nodes.paragraph:
    """The paragraph up to the end of its first sentence, with its code and formulas."""
    kept = nodes.paragraph()
    for child in paragraph.children:
        end = SENTENCE_END.search(child.astext()) if isinstance(child, nodes.Text) else None
        if end is not None:
            kept += nodes.Text(child.astext()[: end.start()] + ".")
            break
        kept += child.deepcopy()
    return kept


def entries(section: nodes.Element) -> Iterator[tuple[str, str, nodes.paragraph]]:
    """Anchor, name and first sentence of what a section describes, without the members of classes."""
    for description in section.findall(addnodes.desc):
        signature = next(iter(description.findall(addnodes.desc_signature)))
        content = description[-1]
        text = next((child for child in content.children if isinstance(child, nodes.paragraph)), None)
        if isinstance(description.parent, addnodes.desc_content) or text is None or not signature["ids"]:
            continue
        yield signature["ids"][0], signature["fullname"].rpartition(".")[2], first_sentence(text)


def cell(*content: nodes.Node, **attributes: Any) -> nodes.entry:
    """A cell of a table."""
    return nodes.entry("", *content, **attributes)


def link(anchor: str, *content: nodes.Node) -> nodes.paragraph:
    """A paragraph with a link to a place of the same page."""
    return nodes.paragraph("", "", nodes.reference("", "", *content, refid=anchor, internal=True))


def rows(page: nodes.section) -> Iterator[nodes.row]:
    """A row for each section that describes something, and below it one for each name; those of no section first."""
    for part in page.children:
        found = list(entries(nodes.section("", part.deepcopy()) if isinstance(part, addnodes.desc) else part))
        if isinstance(part, nodes.section) and found:
            title = nodes.strong("", part.next_node(nodes.title).astext())
            yield nodes.row("", cell(link(part["ids"][0], title), morecols=1))
        for anchor, name, text in found:
            yield nodes.row("", cell(link(anchor, nodes.literal("", name))), cell(text))


def add_table(app: Sphinx, doctree: nodes.document) -> None:
    """Puts the table before the first section of an API page."""
    if not app.env.docname.startswith("api/") or app.env.docname == "api/index":
        return
    page = doctree.next_node(nodes.section)
    body = list(rows(page))
    if len(body) < 4:
        return
    columns = [nodes.colspec(colwidth=width) for width in (30, 70)]
    table = nodes.table("", nodes.tgroup("", *columns, nodes.tbody("", *body), cols=2), classes=["names"])
    described = (nodes.section, addnodes.desc, addnodes.index)
    place = next(at for at, child in enumerate(page.children) if isinstance(child, described))
    page.insert(place, table)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects to the build, after the formulas of the docstrings are set."""
    app.connect("doctree-read", add_table, priority=700)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
