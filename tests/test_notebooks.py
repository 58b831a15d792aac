"""The notebooks as they are stored; `pytest --nbmake notebooks` runs them."""

import base64
import importlib.util
import json
import pathlib
import re
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def load_store():
    spec = importlib.util.spec_from_file_location("store", ROOT / "notebooks" / "store.py")
    store = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(store)
    return store


@each
def test_outputs_are_stored_and_are_those_of_the_code(path):
    store, notebook = load_store(), json.loads(path.read_text())
    assert notebook["metadata"][store.KEY] == store.code_of(notebook), f"write python notebooks/store.py {path.stem}"
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    for cell in cells:
        assert not any(output["output_type"] == "error" for output in cell["outputs"])
        drawn = [output for output in cell["outputs"] if "image/png" in output.get("data", {})]
        assert len(drawn) == "".join(cell["source"]).count("plt.show()")
        for output in drawn:
            assert base64.b64decode(output["data"]["image/png"]).startswith(b"\x89PNG")


@each
def test_outputs_say_nothing_of_the_machine(path):
    store = load_store()
    assert path.read_text() == store.text_of(store.cleaned(json.loads(path.read_text())))
    texts = "".join(
        "".join(text)
        for cell in code_cells(path)
        for output in cell["outputs"]
        for text in (output.get("text", ""), output.get("data", {}).get("text/plain", ""))
    )
    own = {str(ROOT), str(pathlib.Path.home()), sys.prefix, "/tmp", "/home", "/Users"}
    assert not re.search(rf"({'|'.join(map(re.escape, own))})\b", texts)
    assert not re.search(r"\d (?:s|seconds|min|ms)\b", texts)


@each
def test_the_first_cell_installs_what_is_missing_from_the_clone_or_the_repository(path, tmp_path, monkeypatch):
    (cell, *others) = ("".join(cell["source"]) for cell in code_cells(path))
    assert not any("pip install" in source for source in others)
    before, _, after = cell.partition('if importlib.util.find_spec("disam_jax") is None:\n')
    # Colab's own jax must stay: a plain install, without -U, of what is not there.
    assert "pip install" not in before
    guarded = "".join(line[4:] for line in after.splitlines(keepends=True)[:3])
    code, _, requirement = guarded.partition("%pip install -q ")
    extras = re.fullmatch(r'"disam-jax\[([a-z,]+)\] @ \{source\}"\n', requirement)[1].split(",")
    assert {*extras} <= tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    for where, source in ((ROOT / "notebooks", ROOT.as_uri()), (tmp_path, f"git+{ADDRESS}")):
        monkeypatch.chdir(where)
        scope = {}
        exec(before + code, scope)
        assert scope["source"] == source


def test_the_quickstart_has_five_cells():
    (quickstart,) = (path for path in NOTEBOOKS if path.stem == "quickstart")
    assert len(code_cells(quickstart)) == 5


def test_every_notebook_is_listed_and_has_a_badge_that_opens_it_in_colab():
    place = ADDRESS.removeprefix("https://github.com/")
    page = (ROOT / "notebooks" / "README.md").read_text()
    badges = re.findall(r"colab\.research\.google\.com/github/(\S+)\)", page)
    assert sorted(badges) == [f"{place}/blob/main/notebooks/{path.name}" for path in NOTEBOOKS]
    assert re.findall(r"^\| \[[a-z ]+\]\((\w+\.ipynb)\)", page, re.MULTILINE)[0] == "quickstart.ipynb"
    sidebar = re.findall(r"^gathered/notebooks/(\w+)$", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)
    assert sidebar[0] == "quickstart"
    assert sorted(sidebar) == [path.stem for path in NOTEBOOKS]
