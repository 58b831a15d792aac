"""Links, blocks of code and commands of every page, as they are in the repository."""

import importlib.util
import pathlib
import re
import shlex
import subprocess
import tomllib
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *(ROOT / ".github").glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "examples").glob("*.md"),
        *(ROOT / "notebooks").glob("*.md"),
        *(ROOT / "benchmarks").glob("**/*.md"),
    }
)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
NEEDED = {re.split(r"[^\w-]", needed)[0] for extra in EXTRAS.values() for needed in extra}
each = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
FENCE = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"^\(([\w-]+)\)=$", re.MULTILINE)
# What becomes of a block: `run` by tests/test_readme.py, or by a test that the block's page names.
RUN = {"python", "diff", "{code-block} python"}
SHOWN = {"text", "bibtex"}
SHELL = {"sh", "bash"}
PARSED = {"toml", "yaml", "py", *SHELL}
OF_SPHINX = {"{image}", "{toctree}", "{figure}", "{eval-rst}"}


def prose(text):
    """The text without blocks of code and without code in a line, in which a bracket is no link."""
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", FENCE.sub("", text))


def anchors(path):
    """Anchors of a page, as GitHub and the site make them of headings; and those that are written."""
    text = path.read_text()
    found, seen = {"", *re.findall(r"\{#([\w-]+)\}", text), *TARGET.findall(text)}, {}
    for heading in re.findall(r"^#{1,6} (.+?)(?: \{#.*\})?$", FENCE.sub("", text), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        seen[slug] = seen.get(slug, -1) + 1
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
    for included in re.findall(r"^<!-- include: ([^#\n]+?)(?:#.+?)? -->$", text, re.MULTILINE):
        found |= anchors((path.parent / included).resolve())
    return found


def links(text):
    """Targets of links and pictures, in Markdown and HTML."""
    text = prose(text)
    found = re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", text)
    return [*found, *re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", text)]


TARGETS = {name for page in (ROOT / "docs").glob("*.md") for name in TARGET.findall(page.read_text())}


@each
def test_links_lead_to_files_and_anchors(page):
    for link in links(page.read_text()):
        parts = urllib.parse.urlsplit(link)
        if parts.scheme:
            assert parts.scheme in ("https", "mailto"), link
            continue
        if parts.fragment and not parts.path and parts.fragment in TARGETS:
            continue  # the site knows where it is
        target = (page.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else page
        assert target.exists(), link
        if parts.fragment and target.suffix == ".md":
            assert parts.fragment in anchors(target), link


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[a](b.md#c) and ![d](e.png)", ["b.md#c", "e.png"]),
        ("[![a](b.svg)](https://c.d)", ["b.svg", "https://c.d"]),
        ('<source srcset="a.svg"> `f[0](x)`', ["a.svg"]),
        ("```python\nf[0](x)\n```\n", []),
    ],
)
def test_links_are_found_on_a_page(text, found):
    assert sorted(links(text)) == sorted(found)


def test_anchors_are_those_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        '# The "title", `code`\n\n```python\n# no heading\n```\n\n## A\n\n## A\n\n## B {#own}\n\n(target)=\n'
    )
    assert anchors(page) == {"", "the-title-code", "a", "a-1", "b", "own", "target"}


@each
def test_no_block_of_code_is_of_a_kind_that_no_test_reads(page):
    for language, code in FENCE.findall(page.read_text()):
        kind = language.strip() if language.startswith("{code-block}") else language.split(" ")[0].strip()
        assert kind in RUN | SHOWN | PARSED | OF_SPHINX, f"```{language}\n{code[:80]}"
        if kind == "toml":
            tomllib.loads(code)
        elif kind == "py":
            compile(code, page.name, "exec")
        elif kind == "yaml":
            [*pytest.importorskip("yaml").safe_load_all(code)]
        elif kind in SHELL:
            subprocess.run(["bash", "-n"], input=code, text=True, check=True)


def commands(text):
    """Lines of shells: indented by four, in blocks of shells, or in code within a line."""
    without = FENCE.sub("", text)
    lines = re.findall(r"^    (?! )(\S.*)$", without, re.MULTILINE) + re.findall(r"(?<!`)`([^`\n]+)`(?!`)", without)
    for language, code in FENCE.findall(text):
        if language in SHELL:
            lines += code.replace("\\\n", " ").splitlines()
    programs = ("python ", "pip ", "pytest", "bash ", "ruff ", "pyrefly ")
    return [part.strip() for line in lines for part in line.split("&&") if part.strip().startswith(programs)]


def is_there(name):
    """Whether a file of the repository exists, or what a pattern or a word in capitals stands for."""
    return bool(re.search(r"[*<>{}]|\.\.\.|^\$|^-|^[A-Z_/.]+$", name)) or (ROOT / name.split("::")[0]).exists()


@each
def test_programs_files_and_extras_of_commands_exist(page):
    for command in commands(page.read_text()):
        words = shlex.split(command, comments=True)
        for extras in re.findall(r"(?:disam-jax|\.)\[([\w,-]+)\]", command):
            assert {*extras.split(",")} <= EXTRAS.keys(), command
        if words[0] == "python" and len(words) > 1 and words[1] == "-m":
            module = words[2].split(".")
            ours = (ROOT / module[0]).is_dir()
            there = (ROOT.joinpath(*module)).is_dir() or ROOT.joinpath(*module).with_suffix(".py").exists()
            assert there if ours else module[0] in {"domainbed", *NEEDED} or importlib.util.find_spec(module[0]), (
                command
            )
        elif words[0] in ("python", "bash") and len(words) > 1:
            assert is_there(words[1]), command
        elif words[0] == "pytest":
            paths = [word for word in words[1:] if "/" in word and not word.startswith("-")]
            assert all(map(is_there, paths)), command


def test_commands_of_other_programs_are_found():
    assert commands(
        '    pip install -e ".[dev]" && pytest  # a\n\n`python -m benchmarks trace`\n\n```sh\nbash .ci/run\n```\n'
    ) == [
        'pip install -e ".[dev]"',
        "pytest  # a",
        "python -m benchmarks trace",
        "bash .ci/run",
    ]
