"""The code of the README and the docs runs, from top to bottom, as a reader would paste it; its commands exist."""

import contextlib
import csv
import inspect
import pathlib
import re
import subprocess
import sys
import tomllib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import disam_jax
from disam_jax.dg.cli.main import parse

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"
COST = (RESULTS / "compare_digits" / "table.md").read_text()
CLUSTERS = (ROOT / "docs" / "clusters.md").read_text()


def blocks(text, language="python"):
    """The blocks of code of a page, from top to bottom."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run(code, scope):
    """Runs a block as a reader would, without the tests' strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(code, "page", "exec"), scope)


def test_the_readme_is_short():
    assert len(README.split()) <= 750


@pytest.mark.slow
def test_code_runs_when_pasted(capsys):
    (block,) = blocks(README)
    scope = {}
    run(block, scope)
    weights = np.fromstring(re.search(r"domain weights \[(.*)\]", capsys.readouterr().out)[1], sep=" ")
    assert weights.shape == (3,)
    assert abs(weights.sum() - 1) < 1e-5
    assert abs(weights - 1 / 3).max() > 0.05  # lam acts
    start = scope["loss"](jnp.zeros(5), jax.tree.map(jnp.concatenate, scope["batch"]))
    assert scope["loss"](scope["w"], jax.tree.map(jnp.concatenate, scope["batch"])) < start


LOOP = """
def loss_fn(params, batch):
    losses = (batch["x"] @ params - batch["y"]) ** 2
RETURN

CALL
"""


@pytest.mark.slow
def test_the_three_lines_switch_a_loop():
    (block,) = blocks(README, "diff")
    lines = {sign: [line[1:] for line in block.splitlines() if line.startswith(sign)] for sign in "-+"}
    (before_return, before_call), (imported, after_return, after_call) = lines["-"], lines["+"]
    x = jax.random.normal(jax.random.key(0), (12, 5))
    domain = jnp.arange(12) % 3
    given = {
        "jax": jax,
        "params": jnp.ones(5),
        "batch": {"x": x, "y": x.sum(1) * (1 + jnp.arange(12.0) % 3), "domain": domain},
    }
    plain, disam = dict(given), dict(given)
    run(LOOP.replace("RETURN", before_return).replace("CALL", before_call), plain)
    run(imported + LOOP.replace("RETURN", after_return).replace("CALL", after_call), disam)
    np.testing.assert_allclose(disam["value"], plain["value"], rtol=1e-6)
    assert jax.tree.map(jnp.shape, disam["grads"]) == jax.tree.map(jnp.shape, plain["grads"])
    assert not np.allclose(disam["grads"], plain["grads"])
    at_zero = after_call.replace("rho=0.05", "rho=0.0")
    run(imported + LOOP.replace("RETURN", after_return).replace("CALL", at_zero), disam)
    np.testing.assert_allclose(disam["grads"], plain["grads"], rtol=1e-6)


@pytest.mark.slow
def test_both_sides_of_the_migration_diff_run():
    page = (ROOT / "docs" / "coming_from.md").read_text()
    (diff,) = blocks(page, "diff")
    assert all(line[0] in "-+ " for line in diff.splitlines())
    before, after = ("\n".join(line[1:] for line in diff.splitlines() if line[0] in f"{side} ") for side in "-+")
    stepped = {}
    for name, code in {"before": before, "after": after, "at lam 0": after.replace("lam=0.4", "lam=0.0")}.items():
        scope = {}
        run(blocks(page)[0], scope)
        run(code + "\nfor _ in range(4):\n    params, state = step(params, state, batch)", scope)
        stepped[name] = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(scope["params"])])
    np.testing.assert_allclose(stepped["at lam 0"], stepped["before"], rtol=1e-4)
    assert not np.allclose(stepped["after"], stepped["before"], rtol=1e-4)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow, id=page.stem) for page in sorted((ROOT / "docs").glob("*.md"))],
)
def test_code_of_the_docs_runs_from_top_to_bottom(page, capsys):
    scope = {}
    for block in blocks(page.read_text()):
        run(block, scope)
    out = capsys.readouterr().out
    losses = {name: float(value) for name, value in re.findall(r"^(linen|nnx|equinox) ([\d.]+)", out, re.MULTILINE)}
    assert losses.keys() == ({"linen", "nnx", "equinox"} if page.stem == "loops" else set())
    assert all(loss < 1.09 for loss in losses.values())  # log(3) is that of guessing


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


def comparison(regime, arm, selection="validation_loss"):
    """The row of the verdict's table of comparisons: tuned, accuracy, minus SAM."""
    with (RESULTS / "verdict" / "confirmation" / "comparisons.csv").open(newline="") as file:
        wanted = {"regime": regime, "how": "tuned", "selection": selection, "quantity": "accuracy", "minus": "SAM"}
        (row,) = (row for row in csv.DictReader(file) if {**row, **wanted, "arm": arm} == row)
    return row


def mean_and_error(row):
    return f"{float(row['mean']):+.2f} ± {float(row['error']):.2f}"


def test_results_of_the_readme_are_the_stored_ones():
    linear, mlp = (comparison(regime, "DISAM-std, lam 0.4") for regime in ("linear", "mlp"))
    sets = [name for name in linear if name in ("PACS160", "OfficeCaltech10", "RSSCN7", "heart4", "reviews4")]
    others = [float(linear[name]) for name in (*sets, "digits-rotated")]
    assert len(others) == 6
    shown = f"{float(linear['digits']):+.2f} on digits under heavy shifts, {min(others):+.2f} to {max(others):+.2f}"
    assert re.search(rf"{re.escape(f'{mean_and_error(linear)} | one data set: {shown}')} elsewhere", README)
    assert mlp["verdict"] == "tie"
    assert f"| {mean_and_error(mlp)} | a tie |" in README
    table = (RESULTS / "last_convolution_pacs160" / "table.md").read_text()
    for quantity, digits in (("&emsp;mean", 2), ("worst domain loss", 3)):
        cell = re.search(rf"^\| {quantity} \|.*$", table, re.MULTILINE).group().split("|")[-3].strip()
        mean, error = map(float, cell.split(" ± "))
        assert f"{mean:+.{digits}f} ± {error:.{digits}f}" in README


def test_the_printed_table_is_the_stored_one():
    (sample,) = blocks(README, "text")
    table = (RESULTS / "compare_digits_std" / "table.md").read_text()
    assert "\n    disam-jax compare --out compare_digits_std\n" in table
    rows = [re.split(r" {2,}", line.strip()) for line in sample.splitlines()]
    assert [row[0] for row in rows if len(row) == 5] == ["mean", "spread at w", "worst domain loss"]
    header, *rows = [row for row in rows if len(row) > 1]
    assert f"| | {' | '.join(header)} |" in table
    for row in rows:
        assert re.search(rf"^\| (&emsp;)?{re.escape(' | '.join(row))} \|$", table, re.MULTILINE), row


def test_one_recommendation_everywhere():
    from disam_jax.dg.cli.options import Compare
    from disam_jax.dg.methods import METHODS, find_methods

    (recommended,) = (METHODS[name] for name in find_methods(Compare().method) if METHODS[name].base == "SAM")
    words = f'lam={recommended.hparams["lam"].default}, penalty="std"'
    turned = f'penalty="std", lam={recommended.hparams["lam"].default}'
    assert recommended is METHODS["DISAM-std"]
    for name in ("README.md", "docs/choosing.md", "docs/loops.md", "examples/README.md"):
        text = (ROOT / name).read_text()
        assert words in text or turned in text, name
    for path in (ROOT / "examples").glob("*.py"):
        assert words in path.read_text(), path.name
    for function in (disam_jax.disam, disam_jax.value_and_grad):
        assert turned in function.__doc__
        paper = {name: inspect.signature(function).parameters[name].default for name in ("rho", "lam", "penalty")}
        assert paper == {"rho": 0.05, "lam": 0.1, "penalty": "variance"}
    assert "rho=0.05, lam=0.1" in README


def test_evidence_for_the_recommendation_is_the_stored_one():
    arms = {"variance, lam 0.1": "DISAM, lam 0.1", "variance, lam 1": "DISAM, lam 1"}
    arms |= {f"std, lam {lam}": f"DISAM-std, lam {lam}" for lam in (0.4, 0.7)}
    page = (ROOT / "docs" / "choosing.md").read_text()
    wins = 0
    columns = [(regime, f"validation_{by}") for regime in ("linear", "mlp") for by in ("loss", "accuracy")]
    for shown, arm in arms.items():
        cells = [mean_and_error(comparison(regime, arm, selection)) for regime, selection in columns]
        assert f"| {shown} | {' | '.join(cells)} |" in page
    for regime, selection in columns:
        means = {arm: float(comparison(regime, arm, selection)["mean"]) for arm in arms.values()}
        wins += max(means, key=means.get) == "DISAM-std, lam 0.4"
    assert wins == 3
    assert "highest in three of four comparisons" in page


def test_numbers_on_the_page_of_the_paper_agree_with_each_other_and_with_the_stored_tables():
    page = (ROOT / "docs" / "paper.md").read_text()
    rows = re.findall(r"^\| (?:Table 1|tables of each data set) \|(.*)\|$", page, re.MULTILINE)
    (first, second) = ([float(cell) for cell in row.split("|")] for row in rows)
    for *each, average in (first, second):
        assert abs(np.mean(each) - average) < 0.05
    differences = re.search(r"^\| difference \|(.*)\|$", page, re.MULTILINE)[1].split("|")
    np.testing.assert_allclose([float(cell) for cell in differences], np.subtract(first, second), atol=1e-9)
    gains = first[-1] - 64.5, second[-1] - 64.5
    assert "is {:.1f} points by Table 1 and {:.1f} points by the other tables".format(*gains) in page
    assert f"| {gains[0]:+.1f} | [{gains[1]:+.1f} by its own per-domain tables](docs/paper.md) |" in README
    for regime in ("linear", "mlp"):
        for arm in ("DISAM-std, lam 0.4", "DISAM, lam 0.1"):
            assert mean_and_error(comparison(regime, arm)) in page
    ours = re.search(r"FLOPs per step \| ratio.*?^\| DISAM \|[^|]*\| ([\d.]+) \|", COST, re.MULTILINE | re.DOTALL)[1]
    assert f"{ours} times the FLOPs" in page
