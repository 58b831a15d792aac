"""The code of the README and the docs runs, from top to bottom, as a reader would paste it; its commands exist."""

import contextlib
import pathlib
import re
import subprocess
import sys
import tomllib
from unittest import mock

import jax
import pytest

from disam_jax.dg.cli.main import parse

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CLUSTERS = (ROOT / "docs" / "clusters.md").read_text()


@pytest.mark.slow
def test_code_runs_when_pasted(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 5
    scope = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(compile(block, "README.md", "exec"), scope)
    out = capsys.readouterr().out
    losses = {
        name: float(value) for name, value in re.findall(r"^(loss|linen|nnx|equinox) ([\d.]+)", out, re.MULTILINE)
    }
    assert losses.keys() == {"loss", "linen", "nnx", "equinox"}
    assert losses.pop("loss") < 1.0  # the mean square of y
    assert all(loss < 1.09 for loss in losses.values())  # log(3) is that of guessing
    assert "domain losses" in out


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow, id=page.stem) for page in sorted((ROOT / "docs").glob("*.md"))],
)
def test_code_of_the_docs_runs_from_top_to_bottom(page):
    scope = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            exec(compile(block, page.name, "exec"), scope)


@pytest.mark.parametrize("block", re.findall(r"```{code-block} python\n(.*?)```", CLUSTERS, re.DOTALL))
def test_code_for_a_cluster_gives_its_scheduler_to_a_sweep(block, monkeypatch):
    """The four kinds of cluster stand in: none of them is where the tests run."""
    started, commands = [], []

    def start(*arguments, **options):
        started.append((arguments, options))
        return contextlib.nullcontext(mock.Mock(scheduler_address="tcp://10.0.0.1:8786"))

    monkeypatch.setitem(sys.modules, "dask_jobqueue", mock.Mock(SLURMCluster=start, PBSCluster=start))
    monkeypatch.setitem(sys.modules, "dask_kubernetes", mock.Mock())
    monkeypatch.setitem(sys.modules, "dask_kubernetes.operator", mock.Mock(KubeCluster=start))
    monkeypatch.setitem(sys.modules, "dask.distributed", mock.Mock(SSHCluster=start))
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    exec(compile(block, "clusters.md", "exec"), {})
    assert len(started) == 1
    for program, *arguments in commands:
        assert program == "disam-jax"
        assert parse(arguments).scheduler == "tcp://10.0.0.1:8786"
    assert len(commands) == ("subprocess" in block)


def test_there_is_code_for_four_clusters():
    assert re.findall(r"(\w+)Cluster\(", CLUSTERS) == ["SLURM", "PBS", "Kube", "SSH"]


@pytest.mark.parametrize(
    "command", ['pip install -e ".[dg]" && disam-jax compare', 'pip install -e ".[dev]" && pytest']
)
def test_the_two_commands_are_there(command):
    assert command in README


def test_commands_and_extras_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) == {
        "flax",
        "dg",
        "pretrained",
        "cluster",
        "imagenet",
        "tensorboard",
        "sharpness",
        "docs",
        "test",
        "dev",
    }
    assert project["scripts"] == {"disam-jax": "disam_jax.dg.cli.main:main"}


def test_numbers_are_those_of_the_stored_tables():
    rows = re.findall(r"\| \[[^]]*\]\((benchmarks/results/\w+/table\.md)\) \|(.*)\|", README)
    assert len(rows) == 4
    for path, cells in rows:
        table = (ROOT / path).read_text()
        for quantity, cell in zip(("&emsp;mean", "spread at w", "worst domain loss"), cells.split("|"), strict=True):
            line = re.search(rf"^\| {quantity} \|.*$", table, re.MULTILINE).group()
            assert line.endswith(f"| {cell.strip()} |"), (path, quantity)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
