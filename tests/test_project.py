"""What surrounds the code: addresses, versions, CI, and the packages that a release consists of."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile

import pytest

import disam_jax

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CI = (ROOT / ".ci" / "run").read_text()
FOLDERS = (".github", "benchmarks", "conda", "disam_jax", "docs", "examples", "notebooks")
TEXTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("*.cff"),
    *(
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".md", ".py", ".rst", ".ipynb", ".yml", ".yaml") and "gathered" not in path.parts
    ),
]


def read_yaml(path):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / path).read_text())


def test_the_address_of_the_repository_is_everywhere_that_of_pyproject():
    address = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
    found = {
        path.relative_to(ROOT).as_posix(): {
            *re.findall(r"github(?:\.com)?[/:]([\w.-]+/disam[_-]jax)\b", path.read_text())
        }
        for path in TEXTS
    }
    found = {path: places for path, places in found.items() if places}
    assert {"README.md", "notebooks/README.md", "notebooks/quickstart.ipynb"} <= found.keys()
    assert {place for places in found.values() for place in places} == {address}


def test_nothing_says_that_a_release_is_on_the_package_index():
    bare = re.compile(r"^.*pip install (?:-\S+ )*\"?disam-jax(?!\[)\"?(?![\w-]).*$", re.MULTILINE)
    lines = [line for path in TEXTS if path.suffix in (".md", ".ipynb") for line in bare.findall(path.read_text())]
    assert lines
    for line in lines:
        assert "after the first release" in line


def test_one_version():
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == disam_jax.__version__
    assert read_yaml("conda/recipe.yaml")["context"]["version"] == disam_jax.__version__
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0].startswith(disam_jax.__version__)


def test_the_conda_package_needs_what_the_wheel_needs():
    recipe = read_yaml("conda/recipe.yaml")
    needed = {each.replace(" ", "") for each in recipe["requirements"]["run"]}
    assert needed == {f"python{PROJECT['requires-python']}", *PROJECT["dependencies"]}
    assert recipe["about"]["summary"] == PROJECT["description"]
    assert recipe["about"]["license"] == PROJECT["license"]


def test_the_workflow_runs_the_script_of_ci_with_its_pythons():
    (job,) = read_yaml(".github/workflows/ci.yml")["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    (pythons,) = (
        step["with"]["python-version"].split() for step in job["steps"] if "setup-python" in step.get("uses", "")
    )
    asked = {*re.findall(r"^(?:fresh|row) \w+ (3\.\d+)", CI, re.MULTILINE)}
    assert asked == {*pythons}
    classified = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d", line)}
    assert asked <= classified


def test_pre_commit_runs_checks_of_ci():
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["hooks"]
    for hook in repository["hooks"]:
        program, *arguments = hook["entry"].split()
        assert f'"$bin/{program}" {" ".join(arguments)}' in CI


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_files_for_github_are_yaml(path):
    assert isinstance(read_yaml(path.relative_to(ROOT)), dict)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    for package in ("build", "hatchling", "twine"):
        pytest.importorskip(package, reason='pip install -e ".[dev]"')
    clean = tmp_path_factory.mktemp("source") / "disam_jax"
    ignored = shutil.ignore_patterns(".git", "__pycache__", "results", ".hypothesis", "gathered", "tests")
    shutil.copytree(ROOT, clean, ignore=ignored)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, clean]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_packages_are_well_formed_and_hold_the_whole_package(packages):
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *packages], check=True, capture_output=True)
    sdist, wheel = packages
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "disam_jax").rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(f"disam_jax-{disam_jax.__version__}.dist-info/METADATA").decode()
    assert held == package
    shown = metadata.partition("\n\n")[2]
    assert shown.startswith("# disam_jax")
    for link in re.findall(r"\]\(([^)]*)\)|src(?:set)?=\"([^\"]*)\"", shown):
        assert "".join(link).startswith("https://")
    assert f"]({PROJECT['urls']['Repository']}/blob/main/docs/choosing.md)" in shown
    assert f"Project-URL: Repository, {PROJECT['urls']['Repository']}\n" in metadata
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert package | {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"} <= inside


@pytest.mark.slow
def test_the_wheel_works_in_a_fresh_environment(packages, tmp_path):
    """What it depends on comes from here, by a .pth file: a fresh download would need the package index."""
    home = tmp_path / "fresh"
    venv.create(home)
    python = home / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}

    def run(*command):
        where = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        done = subprocess.run([python, *command], check=False, **where)
        assert done.returncode == 0, done.stderr
        return done.stdout

    pip = [sys.executable, "-m", "pip", "--python", python]
    subprocess.run([*pip, "install", "-q", "--no-index", "--no-deps", packages[1]], check=True, env=environment)
    own = pathlib.Path(run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = "import disam_jax, disam_jax.nnx, json; print(json.dumps([disam_jax.__file__, disam_jax.__version__]))"
    file, version = json.loads(run("-c", code))
    assert pathlib.Path(file).is_relative_to(own)
    assert version == disam_jax.__version__
    listed = subprocess.run([home / "bin" / "disam-jax", "list"], cwd=tmp_path, env=environment, capture_output=True)
    assert listed.returncode == 0, listed.stderr
    assert b"DISAM-std" in listed.stdout
