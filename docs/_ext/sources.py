"""The pages of source code that viewcode makes: titles that no API page has, and links back that lead somewhere.

viewcode links every name of a module as if the API pages showed all of them under one module.
"""

import re
from collections.abc import Mapping
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

BACK = re.compile(r'<a class="viewcode-back" href="([^"#]*)#([^"]+)">\[docs\]</a>')


def shown_name(name: str, page: str, pages: Mapping[str, str]) -> str | None:
    """The name under which a page shows an object that viewcode calls differently; None if it does not.

    Args:
        name: Dotted name as viewcode has it, whose first parts may be those of another module.
        page: Address of the page.
        pages: The page of each documented object, without a suffix.
    """
    if name in pages:
        return name
    parts = name.split(".")
    for start in range(1, len(parts)):
        end = "." + ".".join(parts[start:])
        found = [each for each, place in pages.items() if each.endswith(end) and page.endswith(f"{place}.html")]
        if found:
            return found[0]
    return None


def correct(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document) -> None:
    """Corrects a page of source code."""
    del templatename, doctree
    if not pagename.startswith("_modules/") or pagename == "_modules/index":
        return
    pages = {name: entry.docname for name, entry in app.env.get_domain("py").objects.items()}

    def back(match: re.Match) -> str:
        name = shown_name(match[2], match[1], pages)
        return f'<a class="viewcode-back" href="{match[1]}#{name}">[docs]</a>' if name else ""

    context["title"] = f"Source of {context['title']}"
    context["body"] = BACK.sub(back, context["body"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects to the build."""
    app.connect("html-page-context", correct)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
