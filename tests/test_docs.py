"""The documentation builds without a warning, its links lead somewhere, and it loads nothing from other hosts."""

import dataclasses
import html.parser
import importlib.util
import inspect
import itertools
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import typing
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
FIGURES = ("two_domains_plane", "two_domains_losses", "weights_1", "weights_2", "weights_3", "architecture", "cost")


class Page(html.parser.HTMLParser):
    """What a page refers to, and the anchors that it has."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.anchors, self.text = [], [], {""}, text
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors.update(values[key] for key in ("id", "name") if values.get(key))
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon"):
            self.loads.append(values["href"])
        elif tag in ("script", "img", "iframe", "source") and values.get("src"):
            self.loads.append(values["src"])


def load(path, monkeypatch):
    """A module of docs/, which is no package."""
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of a fresh build, by path."""
    for package in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(package, reason='pip install -e ".[docs]"')
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", out / "cache", DOCS, out]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment.pop("DISAM_JAX_DOCS_EXECUTE", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return {path: Page(path.read_text()) for path in sorted(out.rglob("*.html"))}


@pytest.mark.slow
def test_it_builds_and_every_link_leads_somewhere(site):
    assert len(site) > 40
    for path, page in site.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or path.name == "search.html":
                continue
            target = path if not parts.path else (path.parent / urllib.parse.unquote(parts.path)).resolve()
            assert target.exists(), (path.name, link)
            if target in site:
                assert urllib.parse.unquote(parts.fragment) in site[target].anchors, (path.name, link)


@pytest.mark.slow
def test_nothing_is_loaded_from_other_hosts(site):
    for path, page in site.items():
        for source in page.loads:
            assert not urllib.parse.urlsplit(source).netloc, (path.name, source)
            assert (path.parent / urllib.parse.urlsplit(source).path).exists(), (path.name, source)


@pytest.mark.slow
def test_no_markup_is_left_over(site):
    for path, page in site.items():
        article = page.text.partition('role="main"')[2].partition("</article>")[0]
        prose = re.sub(r"<(pre|code)\b.*?</\1>", "", article, flags=re.DOTALL)
        prose = re.sub(r'(<strong>|"pre">)\*\*\w', "", prose)  # the name of an argument, **options
        assert not re.search(r"\$\$|<!-- include|(?<![\w)])\*\*\w|^:::|\]\(|\\frac|``", prose, re.MULTILINE), path.name
        assert "include: ../" not in article, path.name


@pytest.mark.slow
def test_titles_are_unique_and_pages_are_described(site):
    titles = {}
    for path, page in site.items():
        titles.setdefault(re.search(r"<title>([^<]*)</title>", page.text)[1], []).append(path.name)
        listed = {"genindex", "index", "py-modindex", "search"}
        if "_modules" not in path.parts and path.stem not in listed and path.parent.name != "results":
            assert '<meta name="description" content="' in page.text, path.name
    assert not {title: pages for title, pages in titles.items() if len(pages) > 1}


@pytest.mark.slow
def test_api_pages_have_tables_of_names_formulas_and_sources(site):
    pages = {path.stem: page for path, page in site.items() if path.parent.name == "api" and path.stem != "index"}
    assert len(pages) > 10
    for name, page in pages.items():
        assert "Alias for field number" not in page.text, name
        assert "typing.Any" not in page.text, name
        assert "&lt;function" not in page.text, name
        assert "[source]" in page.text, name
    core = pages["core"]
    table = re.search(r'<table class="names.*?</table>', core.text, re.DOTALL)[0]
    assert 'href="#disam_jax.value_and_grad"' in table
    assert "<code" in table
    assert "<math" in core.text
    assert "rho g / ||g||" not in core.text


@pytest.mark.parametrize(
    ("code", "tex"),
    [
        ("e = rho g / ||g||", r"e = \rho g / \lVert g\rVert"),
        ("|| |w| g || <= rho", r"\lVert |w| g \rVert \le \rho"),
        ("grad sum_i a_i L_i", r"\nabla \sum_{i} \alpha_{i} L_{i}"),
        ("sum_i b_i - lam * penalty(L)", r"\sum_{i} b_{i} - \lambda \, \operatorname{penalty}(L)"),
        ("lam < 1 / sqrt(|P| - 1)", r"\lambda < 1 / \sqrt{ |P| - 1}"),
        ("f grad L_subset(w + e)", r"f \nabla L_{\text{subset}}(w + e)"),
        ("||h||^2", r"\lVert h\rVert ^{2}"),
        ("L_i = sum_{n: d_n = i} l_n / n_i", r"L_{i} = \sum_{n : d_n = i} l_{n} / n_{i}"),
        ("sum_i [answer_i = y_i] / n", r"\sum_{i} [\hat{y_i} = y_{i}] / n"),
        ("rho", None),
        ("rho=0.05", None),
        ("lam", None),
        ("[M, n - m, ...]", None),
        ("fn(params, batch) -> (loss, grads)", None),
        ("L_i(w) = loss_fn(w, batch[i])", None),
        ("sqrt(w", None),
    ],
)
def test_formulas_of_docstrings_become_mathematics_and_other_code_stays(code, tex, monkeypatch):
    pytest.importorskip("sphinx")
    found = load(DOCS / "_ext" / "formulas.py", monkeypatch).as_tex(code)
    assert (found and " ".join(found.split())) == tex


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Turns losses into weights. More of it.", "Turns losses into weights."),
        ("About 2.5 steps, as in v0.1. More.", "About 2.5 steps, as in v0.1."),
        ("One pass: the other is free. More.", "One pass: the other is free."),
        ("The cosine g . h of both. More.", "The cosine g . h of both."),
    ],
)
def test_a_table_of_names_has_the_first_sentence(text, sentence, monkeypatch):
    pytest.importorskip("sphinx")
    from docutils import nodes

    tables = load(DOCS / "_ext" / "api_tables.py", monkeypatch)
    assert tables.first_sentence(nodes.paragraph("", text)).astext() == sentence


def test_types_are_named_as_the_source_names_them(monkeypatch):
    pytest.importorskip("sphinx")
    from disam_jax.dg.methods import Forward, Outputs

    docstrings = load(DOCS / "_ext" / "docstrings.py", monkeypatch)
    assert docstrings.annotations_as_written(Outputs)["state"] == "State"
    assert docstrings.annotations_as_written(Forward.__call__)["params"] == "Params"
    assert docstrings.annotations_as_written(Forward.__call__)["return"] == "Outputs"
    assert docstrings.annotations_as_written(3) == {}


Tree = typing.Any  # an alias of which nothing is left at run time


def leaves(tree: Tree) -> list[Tree]:
    """What a default value is."""
    return [tree]


@dataclasses.dataclass
class Walk:
    """What a documented class is."""

    tree: Tree
    over: typing.Callable[[Tree], list[Tree]] = leaves
    names: dict[str, Tree] = dataclasses.field(default_factory=dict)


class Walks(typing.Protocol):
    """What nobody constructs."""

    def __call__(self, tree: Tree) -> Tree: ...


def test_signatures_show_names_and_no_objects(monkeypatch):
    pytest.importorskip("sphinx")
    from disam_jax.dg.models.vit import ViT

    docstrings = load(DOCS / "_ext" / "docstrings.py", monkeypatch)
    shown = lambda obj, text="(x: Any)": docstrings.types_as_written(None, "", "", obj, None, text, "")
    assert shown(leaves) == ("(tree: Tree)", "list[Tree]")
    assert shown(Walk) == (
        "(tree: Tree, over: Callable[[Tree], list[Tree]] = leaves, names: dict[str, Tree] = ...)",
        None,
    )
    assert shown(Walks) == ("", None)
    assert shown(ViT) == ("(config: ViTConfig, *, rngs: Rngs)", None)  # those of __init__, not of the metaclass
    assert shown(leaves, "(tree: int)") is None  # what says enough stays


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a.f", "a.f"),
        ("other.C", "a.b.C"),
        ("other.C.method", "a.b.C.method"),
        ("other.on_another_page", None),
        ("other.nowhere", None),
    ],
)
def test_a_page_of_source_code_links_back_to_what_a_page_shows(name, shown, monkeypatch):
    pytest.importorskip("sphinx")
    pages = {"a.f": "api/a", "a.b.C": "api/a", "a.b.C.method": "api/a", "c.on_another_page": "api/c"}
    sources = load(DOCS / "_ext" / "sources.py", monkeypatch)
    assert sources.shown_name(name, "../api/a.html", pages) == shown


def test_tables_of_results_are_named_as_they_are_listed(monkeypatch):
    pytest.importorskip("sphinx")
    gathered = load(DOCS / "_ext" / "gathered.py", monkeypatch)
    page = DOCS / "gathered" / "benchmarks" / "results" / "digits"
    assert gathered.title_of(page / "table.md") == "digits, tuned"
    assert gathered.title_of(page / "other.md") is None
    assert gathered.with_title("# 20 seeds\n\nText.", "digits") == "# digits\n\n20 seeds\n\nText."
    assert gathered.with_title("# 20 seeds\n", None) == "# 20 seeds\n"


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_there_for_light_and_dark_pages(name):
    pages = "".join(page.read_text() for page in DOCS.glob("*.md"))
    for theme in ("light", "dark"):
        assert (DOCS / "figures" / f"{name}_{theme}.svg").read_text().lstrip().startswith("<?xml")
        assert f"figures/{name}_{theme}.svg\n:class: only-{theme}" in pages


def test_the_figure_of_the_cost_draws_what_was_measured(monkeypatch):
    pytest.importorskip("matplotlib")
    cost = load(DOCS / "figures" / "cost.py", monkeypatch)
    rows = re.findall(
        r"^\| `(value_and_grad`, flat|subset_value_and_grad`, a quarter) \| (.+) \| (.+) \|$",
        (DOCS / "performance.md").read_text(),
        re.MULTILINE,
    )
    for (name, resnet, vit), sides in zip(
        rows, (cost.METHODS["DISAM"], cost.METHODS["DISAM on a quarter"]), strict=True
    ):
        drawn = [f"{each['median']:.2f}" for each in cost.ratios(sides)]
        assert drawn[:2] == [vit, resnet], name


def test_figures_of_the_sharpness_page_are_those_that_its_code_names(monkeypatch):
    sharpness = load(DOCS / "figures" / "sharpness.py", monkeypatch)
    page = (DOCS / "sharpness.md").read_text()
    for name in sharpness.FIGURES:
        assert f"\n{name} = sharpness.plots.draw_" in page
        assert f"](figures/sharpness_{name}.png)" in page
        assert (DOCS / "figures" / f"sharpness_{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_arrows_of_the_architecture_point_up(monkeypatch):
    pytest.importorskip("matplotlib")
    architecture = load(DOCS / "figures" / "architecture.py", monkeypatch)
    modules = architecture.MODULES
    helpers = {"__init__", "_dtypes", "_labels", "_sharding", "_types"}
    private = {path.stem for path in (ROOT / "disam_jax").glob("*.py")} - helpers
    assert private | {"sharpness", "dg"} == modules.keys()
    assert ("_m_sharpness", "_passes") in architecture.arrows()
    assert ("_passes", "_m_sharpness") not in architecture.arrows()
    assert ("_gradient", "_passes") not in architecture.arrows()  # follows from two others
    for module in modules:
        for imported in architecture.imports_of(module):
            assert modules[imported][1] < modules[module][1], (module, imported)


def test_a_public_name_without_a_page_is_found(monkeypatch):
    pytest.importorskip("sphinx")
    coverage = load(DOCS / "_ext" / "api_coverage.py", monkeypatch)
    monkeypatch.setattr(coverage, "modules", lambda: iter([importlib.import_module("disam_jax")]))
    found = coverage.missing({"disam_jax.disam"})
    assert "disam_jax.sam" in found
    assert "disam_jax.disam" not in found
    assert "disam_jax.variants" not in found  # a module, with a page of its own


def test_every_public_function_has_an_example(monkeypatch):
    """The examples run with the default tests (`--doctest-modules`)."""
    pytest.importorskip("sphinx")
    coverage = load(DOCS / "_ext" / "api_coverage.py", monkeypatch)
    names = [(module, name) for module in coverage.modules() for name in coverage.public_names(module)]
    assert len(names) > 200
    without = {
        f"{module.__name__}.{name}"
        for module, name in names
        if inspect.isfunction(getattr(module, name)) and ">>>" not in (getattr(module, name).__doc__ or "")
    }
    assert without <= coverage.INTERNAL_NAMES


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md", "notebooks/README.md")),
    *sorted(DOCS.glob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
    *sorted((ROOT / "benchmarks").glob("**/*.md")),
]
# Where a page means that something else stands in the place of a word.
NOT_GIVEN = re.compile(r"\.\.\.|…")


def text_of(path):
    """What a reader sees of a page, the cells of a notebook one after the other."""
    if path.suffix != ".ipynb":
        return path.read_text()
    return "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])


def commands(text):
    """The arguments of every `disam-jax` of a text: in blocks and cells, after other commands, in code within a line.

    Continued lines are joined; comments, and what a pipe or another command takes over, are left out.
    """
    joined = re.sub(r"\\\n\s*", " ", text)
    # A command stands alone in its line, or between marks of code.
    lines = re.findall(r"^(?: {4,}|[ \t]*[!%$>] ?|)(?:.*&& |)(disam-jax(?: .*)?)$", joined, re.MULTILINE)
    within = re.findall(r"`(disam-jax [^`\n]+)`", joined) + re.findall(
        r"""shell\(["'](disam-jax [^"'\n]+)["']\)""", joined
    )
    blocks = re.findall(r"^ {4,}.*?&& (disam-jax.*)$", joined, re.MULTILINE)
    found = []
    for line in dict.fromkeys([*lines, *within, *blocks]):
        words = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        words.whitespace_split, words.commenters = True, "#"
        arguments = list(itertools.takewhile(lambda word: word[0] not in "|&;<>", words))[1:]
        if not any(NOT_GIVEN.search(word) for word in arguments):
            found.append(arguments)
    return found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("    disam-jax compare --seeds 3   # three", [["compare", "--seeds", "3"]]),
        ("```bash\n$ disam-jax list | head -3\n```", [["list"]]),
        ('    pip install -e ".[dg]" && disam-jax compare', [["compare"]]),
        ("    disam-jax sweep \\\n        --candidates 10", [["sweep", "--candidates", "10"]]),
        ("so does `disam-jax report DIR`, and `disam-jax list`.", [["report", "DIR"], ["list"]]),
        ('shell("disam-jax compare --rho 0.1 --out hospitals")', [["compare", "--rho", "0.1", "--out", "hospitals"]]),
        ("!disam-jax compare", [["compare"]]),
        ("the command disam-jax is installed, and `disam-jax compare ...` runs it", []),
    ],
)
def test_commands_are_found_on_a_page(text, found):
    assert commands(text) == found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_page_parses_and_its_options_go_together(page):
    from disam_jax.dg.cli import checks
    from disam_jax.dg.cli import main as cli
    from disam_jax.dg.cli.compare import chosen_methods, with_own_checkpoint
    from disam_jax.dg.cli.options import Compare, Data, Diagnose, TrainingOptions
    from disam_jax.dg.data.sources.registry import find_source
    from disam_jax.dg.diagnosis.trial import find_arm
    from disam_jax.dg.sweep import hparams

    for arguments in commands(text_of(page)):
        if "--help" in arguments:
            with pytest.raises(SystemExit, match="0"):
                cli.parse(arguments)
            continue
        options = cli.parse(arguments)
        if isinstance(options, Data):
            find_source(options.name)
        if isinstance(options, TrainingOptions):
            options = with_own_checkpoint(options)
            checks.check_numbers(options)
            checks.check_checkpoint(options)
            checks.check_model_options(options)
        if isinstance(options, Diagnose):
            find_arm(options.method)
        if isinstance(options, Compare):
            hparams.check_grid(checks.parse_grid(options.grid), chosen_methods(options))


def test_the_tables_of_the_benchmark_pages_are_those_of_the_registries(monkeypatch):
    pytest.importorskip("sphinx")
    from disam_jax.dg.cli.listing import lists

    registries = load(DOCS / "_ext" / "registries.py", monkeypatch)
    page = "\n".join((DOCS / name).read_text() for name in ("benchmark.md", "metrics.md"))
    assert sorted(registries.PLACE.findall(page)) == sorted(lists())
    made = registries.filled(page)
    for title, entries in lists().items():
        table = registries.TABLES[title]()
        rows = [row.split("`")[1] for row in table.splitlines()[2:]]
        same = lambda name: name.casefold().replace("_", "")
        assert list(map(same, rows)) == list(map(same, entries))
        assert table in made
    with pytest.raises(registries.ExtensionError, match="no registry is called animals: the registries are methods"):
        registries.filled("<!-- registry: animals -->")


def test_the_signals_of_the_diagnosis_page_are_those_that_are_measured():
    from disam_jax.dg.diagnosis.signals import Signals

    rows = re.findall(r"^\| ([a-z ]+) \| [^|]+ \| [^|]+ \|$", (DOCS / "diagnose.md").read_text(), re.MULTILINE)
    assert rows == ["signal", *(name.replace("_", " ") for name in Signals._fields)]


def test_there_are_commands_on_the_pages():
    found = [arguments for page in PAGES for arguments in commands(text_of(page))]
    wanted = {"compare", "sweep", "diagnose", "predict", "evaluate", "report", "status", "merge", "data", "list"}
    assert {arguments[0] for arguments in found} == wanted
    assert len(found) > 30


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "DIR"],
        ["report", "DIR", "--select", "oracle"],
        ["report", "--select", "oracle", "DIR"],
        ["report", "--out", "DIR"],
        ["report", "--select=oracle", "--out=DIR"],
        ["report", "--select", "oracle", "--", "DIR"],
    ],
)
def test_the_folder_of_a_report_may_stand_anywhere(arguments):
    from disam_jax.dg.cli import main as cli

    options = cli.parse(arguments)
    assert pathlib.Path("DIR") in (options.folder, options.out)
    assert options.select in (None, "oracle")


def test_numbers_of_the_choosing_page_are_those_of_the_stored_tables():
    rows = re.findall(
        r"\| \[[^]]*\]\(\.\./(benchmarks/results/\w+/table\.md)\) \|(.*)\|", (DOCS / "choosing.md").read_text()
    )
    assert len(rows) == 5
    for path, cells in rows:
        table = (ROOT / path).read_text()
        for quantity, cell in zip(("&emsp;mean", "spread at w"), cells.split("|"), strict=True):
            line = re.search(rf"^\| {quantity} \|.*$", table, re.MULTILINE).group()
            assert line.endswith(f"| {cell.strip()} |"), (path, quantity)
