"""Extending the benchmark: a network and a data set in one file each, from inside and outside of the package.

The files are those that CONTRIBUTING.md shows.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from installed import install
from support import slow

import disam_jax

ROOT = pathlib.Path(__file__).parents[2]
CODE = re.compile(r"^```python\n# (disam_jax/\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = dict(CODE.findall((ROOT / "CONTRIBUTING.md").read_text()))
MODEL, DATA = "disam_jax/dg/models/entries/wide.py", "disam_jax/dg/data/hospitals.py"
# What the command line says, with its exit status, and a page of the documentation with the tables.
LOOK = """
import contextlib, io, json, sys
from disam_jax.dg.cli.main import main

def said(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
    return status, out.getvalue(), err.getvalue()

found = {"help": said("compare", "--help"), "list": said("list")}
try:
    import registries
    assert found["list"][0] == 0
    page = "".join(f"<!-- registry: {title} -->" + chr(10) for title in ("networks", "data sets"))
    found["docs"] = registries.filled(page)
except (AssertionError, ModuleNotFoundError):
    found["docs"] = None
print(json.dumps(found))
"""


def python(path, *arguments):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT / "docs" / "_ext"])),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, *map(str, arguments)]
    # In the folder of the copy: Python looks for modules where it is started.
    options = {"cwd": path[0], "env": environment, "timeout": 300}
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def look(path):
    done = python(path, "-c", LOOK)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def inside(folder, files):
    """A copy of the package with more files in it; where Python finds it."""
    package = pathlib.Path(disam_jax.__file__).parent
    shutil.copytree(package, folder / "disam_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in files.items():
        assert not (folder / name).exists()
        (folder / name).write_text(text)
    return [folder]


def outside(folder, entries):
    """An installed package with entry points, (group, name, value) each; where Python finds it and ours."""
    for name, text in FILES.items():
        table = "MODELS" if "models" in name else "DATASETS"
        (folder / f"my_{pathlib.Path(name).stem}.py").write_text(
            f"{text}\nentry = {table}['{pathlib.Path(name).stem}']\n"
        )
    lines = [line for group, name, value in entries for line in (f"[{group}]", f"{name} = {value}")]
    install(folder, "my-package", "\n".join(lines) + "\n")
    return [folder, pathlib.Path(disam_jax.__file__).parents[1]]


WAYS = {
    "inside": lambda folder: inside(folder, FILES),
    "outside": lambda folder: outside(
        folder, [("disam_jax.models", "wide", "my_wide:entry"), ("disam_jax.data", "hospitals", "my_hospitals:entry")]
    ),
}


def test_contributing_shows_the_files():
    assert list(FILES) == [MODEL, DATA]


@pytest.mark.parametrize("way", ["inside", *slow("outside")])
def test_an_entry_is_in_help_list_and_documentation_at_once(tmp_path, way):
    found = look(WAYS[way](tmp_path))
    status, text, _ = found["help"]
    assert status == 0
    unwrapped = " ".join(re.sub(r"[│\n]", " ", text).split())
    assert re.search(r"--model \{mlp,[a-z0-9_, ]+,vit,wide\}", unwrapped)
    assert "digits, digits-rotated, hospitals; pacs" in unwrapped
    status, text, err = found["list"]
    assert (status, err) == (0, "")
    assert re.search(r"^wide +one wide hidden layer", text, re.MULTILINE)
    assert re.search(r"^hospitals +three hospitals of forty patients", text, re.MULTILINE)
    if found["docs"] is not None:
        assert "| `wide` | one wide hidden layer |" in found["docs"]
        assert "| `hospitals` | three hospitals of forty patients |" in found["docs"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_an_entry_trains(tmp_path, way):
    out = tmp_path / "out"
    options = ["--seeds", "2", "--steps", "3", "--evaluations", "1", "--method", "erm,disam", "--out", out]
    command = ["-m", "disam_jax.dg.cli", "compare", "--model", "wide", "--data", "hospitals", *options]
    done = python(WAYS[way](tmp_path), *command)
    assert done.returncode == 0, done.stderr
    header = json.loads((out / "results.json").read_text())["header"]
    assert header["setting"]["model"] == "wide"
    assert header["setting"]["learning_rate"] == 0.1
    assert list(header["data"]["domains"]) == ["A", "B", "C"]


@pytest.mark.slow
def test_two_entries_of_one_name_are_an_error_that_names_both(tmp_path):
    found = look(inside(tmp_path, {MODEL: FILES[MODEL].replace('"wide"', '"mlp"')}))
    for status, out, err in (found["help"], found["list"]):
        assert (status, out) == (2, "")
        assert err.count("\n") == 1
        assert "two models are called mlp: one of disam_jax.dg.models.entries.mlp, one of" in err
        assert "disam_jax.dg.models.entries.wide. Rename one." in err


@pytest.mark.slow
def test_an_entry_point_that_fails_is_named_and_the_rest_goes_on(tmp_path):
    entries = [
        ("disam_jax.models", "tall", "my_missing:entry"),
        ("disam_jax.data", "clinics", "my_hospitals:nothing"),
        ("disam_jax.methods", "MINE", "my_hospitals:entry"),
    ]
    path = outside(tmp_path, entries)
    status, out, err = look(path)["list"]
    assert status == 0
    assert "resnet50" in out
    assert "tall" not in out
    assert "clinics" not in out
    assert "disam-jax: model tall of the package my-package is left out: my_missing:entry cannot be imported" in err
    assert "disam-jax: data set clinics of the package my-package is left out: my_hospitals:nothing" in err


@pytest.mark.slow
def test_compare_goes_on_without_an_entry_point_that_fails(tmp_path):
    path = outside(tmp_path, [("disam_jax.models", "tall", "my_missing:entry")])
    options = ["--seeds", "2", "--steps", "2", "--evaluations", "1", "--method", "erm", "--target", "clean"]
    done = python(path, "-m", "disam_jax.dg.cli", "compare", *options, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "model tall of the package my-package is left out" in done.stderr.splitlines()[0]
    assert (tmp_path / "out" / "results.json").exists()
