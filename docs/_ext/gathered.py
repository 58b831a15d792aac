"""Pages that live elsewhere in the repository, in docs/gathered while the site is built.

Tables of results stand beside their runs, and notebooks where Colab finds them; Sphinx reads one folder only. Links are
written as they are in the repository, where GitHub follows them, and lead to the page of the site. A page takes in
a section of another file, or all of it, by a comment of its own line: `<!-- include: ../README.md#In your loop -->`.
"""

import filecmp
import os
import pathlib
import re
import shutil
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ROOT = pathlib.Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
INTO = DOCS / "gathered"
SOURCES = {
    "benchmarks/results": (".md", ".png", ".svg", ".csv", ".json"),
    "benchmarks/fast": (".md", ".py"),
    "benchmarks/verdict": (".md", ".py"),
    "examples": (".md", ".py"),
    "notebooks": (".ipynb",),
}
# Folders that a page links to, and the page that stands for them.
RESULTS = DOCS / "results.md"
FOLDERS = {"benchmarks/results": RESULTS, "examples": INTO / "examples/README.md"}
# An entry of the page of results: title and target.
LISTED = re.compile(r"^(.+) <(gathered/.+)>$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)")
INCLUDE = re.compile(r"^<!-- include: ([^#\n]+?)(?:#(.+?))? -->$", re.MULTILINE)


def gather(app: Sphinx, config: Any) -> None:
    """Copies what is new, so that a second build reads only what has changed; and forgets what is gone."""
    del app, config
    wanted = {
        INTO / path.relative_to(ROOT): path
        for source, suffixes in SOURCES.items()
        for path in sorted((ROOT / source).rglob("*"))
        if path.suffix in suffixes and ".ipynb_checkpoints" not in path.parts
    }
    for old in [path for path in INTO.rglob("*") if path.is_file() and path not in wanted]:
        old.unlink()
    for copy, original in wanted.items():
        if not copy.exists() or not filecmp.cmp(copy, original, shallow=False):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(original, copy)


def on_the_site(path: pathlib.Path) -> pathlib.Path | None:
    """Where a file or folder of the repository is in docs/; None where it is not."""
    if path.is_relative_to(DOCS):
        return path
    if not path.is_relative_to(ROOT):
        return None
    inside = path.relative_to(ROOT)
    if inside.as_posix() in FOLDERS:
        return FOLDERS[inside.as_posix()]
    return INTO / inside if (INTO / inside).is_file() else None


def with_links(text: str, folder: pathlib.Path, page: pathlib.Path) -> str:
    """The text of a file in a folder of the repository, with links as a page of the site needs them."""

    def relative(match: re.Match) -> str:
        target = on_the_site(pathlib.Path(os.path.normpath(folder / match[1])))
        if target is None:
            return match[0]
        return f"]({os.path.relpath(target, page.parent)}{match[2] or ''})"

    return LINK.sub(relative, text)


def section(path: pathlib.Path, heading: str | None) -> str:
    """The text below a heading up to the next one of its level, or all text below the title."""
    body = path.read_text().partition("\n")[2]
    if heading is None:
        return body
    _, found, rest = body.partition(f"\n## {heading}\n")
    if not found:
        raise ExtensionError(f"{path.name} has no section '{heading}' for the documentation to include")
    return rest.partition("\n## ")[0]


def title_of(page: pathlib.Path) -> str | None:
    """The name by which the page of results lists a table; None for other pages."""
    wanted = page.relative_to(DOCS).with_suffix("").as_posix()
    return {target: title for title, target in LISTED.findall(RESULTS.read_text())}.get(wanted)


def with_title(text: str, title: str | None) -> str:
    """The text under a title of its own; the one that it had, which other tables may have too, comes below."""
    heading, _, body = text.partition("\n")
    if title is None or not heading.startswith("# "):
        return text
    return f"# {title}\n\n{heading.removeprefix('# ')}\n{body}"


def take_in(app: Sphinx, docname: str, source: list[str]) -> None:
    """Does the includes of a page, turns its links, and names a table of results as the list of them does."""
    page = pathlib.Path(app.env.doc2path(docname))
    if page.suffix != ".md":
        return
    home = ROOT / page.relative_to(INTO) if page.is_relative_to(INTO) else page

    def included(match: re.Match) -> str:
        path = (page.parent / match[1]).resolve()
        app.env.note_dependency(str(path))
        return with_links(section(path, match[2]), path.parent, page)

    if page.is_relative_to(INTO / "benchmarks"):
        source[0] = with_title(source[0], title_of(page))
    source[0] = INCLUDE.sub(included, with_links(source[0], home.parent, page))


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects to the build."""
    app.connect("config-inited", gather)
    app.connect("source-read", take_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
