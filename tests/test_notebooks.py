"""The notebooks as they are stored; `pytest --nbmake notebooks` runs them."""

import json
import pathlib
import re
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_no_outputs_are_stored(path):
    assert code_cells(path)
    for cell in code_cells(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


def test_the_quickstart_has_five_cells_and_installs_only_what_is_missing():
    (quickstart,) = (path for path in NOTEBOOKS if path.name == "quickstart.ipynb")
    first, *rest = ("".join(cell["source"]) for cell in code_cells(quickstart))
    assert len(rest) == 4
    # Colab's own jax must stay: a plain install, without -U, of what is not there.
    guard, _, install = first.partition('if importlib.util.find_spec("disam_jax") is None:\n')
    assert "%pip" not in guard
    assert install.startswith('    %pip install -q "disam-jax[')
    assert not any("pip install" in source for source in rest)


def test_every_notebook_has_a_badge_that_opens_it_in_colab():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    place = urls["Repository"].removeprefix("https://github.com/")
    badges = re.findall(r"colab\.research\.google\.com/github/(\S+)\)", (ROOT / "README.md").read_text())
    assert sorted(badges) == [f"{place}/blob/main/notebooks/{path.name}" for path in NOTEBOOKS]
