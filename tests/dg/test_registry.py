"""Registries: entries of the package's files, entry points of other packages, and what is wrong with either."""

import importlib
import sys

import pytest
from installed import install

from disam_jax.dg.errors import InputError
from disam_jax.dg.registry import Registry

GROUP = "toy_shelf.entries"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Writes a package and, where asked, other installed packages with entry points; returns a registry of them."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(files, points=(), first=(), derive=None):
        package = tmp_path / "toy_shelf"
        package.mkdir()
        for name, text in {"__init__": "", **files}.items():
            (package / f"{name}.py").write_text(text)
        for number, (name, text) in enumerate(points):
            (tmp_path / f"toy_other{number}.py").write_text(text)
            install(tmp_path, f"toy-other{number}", f"[{GROUP}]\n{name} = toy_other{number}:entry\n")
        importlib.invalidate_caches()
        return Registry("toy", int, "toy_shelf", "TOYS", GROUP, first, derive)

    yield make
    for name in [name for name in sys.modules if name.startswith("toy_")]:
        del sys.modules[name]


def test_a_file_of_the_package_is_all_that_an_entry_needs(shelf):
    registry = shelf({"bears": "TOYS = {'bear': 1}", "cars": "TOYS = {'car': 2}", "words": "nothing = 0"})
    assert dict(registry) == {"bear": 1, "car": 2}
    assert repr(registry) == "Registry of toys: bear, car"


def test_the_files_that_come_first(shelf):
    registry = shelf({name: f"TOYS = {{'{name}': 1}}" for name in ("a", "b", "c")}, first=("c", "missing"))
    assert list(registry) == ["c", "a", "b"]


def test_an_entry_point_adds_an_entry_of_its_name(shelf):
    registry = shelf({"bears": "TOYS = {'bear': 1}"}, [("duck", "entry = 7")])
    assert dict(registry) == {"bear": 1, "duck": 7}
    assert registry.failures == ()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import toy_that_nobody_has", "ModuleNotFoundError: No module named 'toy_that_nobody_has'"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("def entry(:", "SyntaxError"),
        ("other = 1", "AttributeError"),
        ("entry = 'text'", "must be a int, got str"),
    ],
)
def test_an_entry_point_that_fails_is_named_and_the_rest_goes_on(shelf, text, why):
    registry = shelf({"bears": "TOYS = {'bear': 1}"}, [("duck", text), ("hen", "entry = 8")])
    assert dict(registry) == {"bear": 1, "hen": 8}
    (line,) = registry.failures
    assert line.startswith("toy duck of the package toy-other0")
    assert why in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("files", "points", "sources"),
    [
        ({"a": "TOYS = {'bear': 1}", "b": "TOYS = {'bear': 2}"}, [], ["toy_shelf.a", "toy_shelf.b"]),
        ({"a": "TOYS = {'bear': 1}"}, [("bear", "entry = 2")], ["toy_shelf.a", "the package toy-other0"]),
        ({}, [("bear", "entry = 1"), ("bear", "entry = 2")], ["the package toy-other0", "the package toy-other1"]),
    ],
)
def test_two_entries_of_one_name_are_an_error_that_names_both(shelf, files, points, sources):
    registry = shelf(files, points)
    with pytest.raises(InputError, match="two toys are called bear") as error:
        registry["bear"]
    assert all(source in str(error.value) for source in sources)


def test_a_file_may_call_the_registry_by_the_name_of_its_tables(shelf):
    registry = shelf({"bears": "TOYS = {'bear': 1}", "uses": "TOYS = None"})
    importlib.import_module("toy_shelf.uses").TOYS = registry
    assert dict(registry) == {"bear": 1}


def test_an_entry_of_the_package_of_another_type_is_an_error(shelf):
    registry = shelf({"bears": "TOYS = {'bear': 'text'}"})
    with pytest.raises(TypeError, match=r"toy bear of toy_shelf.bears must be a int, got str"):
        len(registry)


def twice(name, entry):
    return {f"{name}-twice": 2 * entry} if entry % 2 else {}


def test_what_is_made_of_an_entry_follows_it(shelf):
    registry = shelf({"bears": "TOYS = {'bear': 1, 'cub': 2}"}, [("duck", "entry = 7")], derive=twice)
    assert dict(registry) == {"bear": 1, "bear-twice": 2, "cub": 2, "duck": 7, "duck-twice": 14}


def test_two_entries_of_one_name_of_which_one_is_made_of_another(shelf):
    registry = shelf({"bears": "TOYS = {'bear': 1}", "cars": "TOYS = {'bear-twice': 4}"}, derive=twice)
    with pytest.raises(
        InputError, match=r"called bear-twice: one of toy_shelf.bears, made of bear, one of toy_shelf.cars"
    ):
        len(registry)
