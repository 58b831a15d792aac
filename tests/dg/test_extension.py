"""What a user does in ten minutes: a method, a variant or a metric of one's own, in a file or in another package.

Each follows CONTRIBUTING.md in a copy of the package, or in a folder of installed packages, and runs the command line
in a process of its own.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from installed import install

ROOT = pathlib.Path(__file__).parent.parent.parent
QUICK = ["--seeds", "2", "--steps", "2", "--evaluations", "1", "--target", "noise"]

# A method that needs what the domain losses do not tell: the logits, the labels and a state.
ENTROPY = '''
"""Low entropy of the answers, in a file of its own."""

import jax
import jax.numpy as jnp

from disam_jax.dg.methods.base import Hyperparameter, Method, count_steps, from_objective


def entropy(outputs, batch, hparams, step):
    """L_i + entropy_weight * the entropy of the domain's answers that are right."""
    answers = jax.nn.softmax(outputs.logits)
    of_each = -(answers * jnp.log(answers + 1e-6)).sum(-1)
    right = (outputs.logits.argmax(-1) == batch.y).astype(jnp.float32)
    return outputs.losses + hparams["entropy_weight"] * (right * of_each).mean(1), step + 1


METHODS = {
    "LowEntropy": Method(
        from_objective(entropy),
        {"entropy_weight": Hyperparameter(0.1, -2.0, 0.0)},
        state=count_steps,
        note="small entropy of right answers",
    )
}
'''

# A variant, which becomes three methods.
HALFWAY = '''
"""The mean of the gradients at w and at w + e."""

import jax

from disam_jax import variants
from disam_jax.dg.methods.base import Hyperparameter
from disam_jax.dg.methods.sharpness_aware import Family, variant_methods


def halfway(alpha, reference="ascent"):
    """Hands over (1 - alpha) times the perturbed gradient and alpha times the one at w."""
    combine = lambda base, perturbed: jax.tree.map(lambda g, h: alpha * g + (1.0 - alpha) * h, base, perturbed)
    return variants.Variant(lambda rho, norm: rho / norm, combine, reference)


METHODS = variant_methods("Halfway", Family("a mixture", {"alpha": Hyperparameter(0.5, -1.0, 0.0)}, halfway))
'''

BRIER = '''
"""The Brier score."""

import jax
import jax.numpy as jnp

from disam_jax.dg.training.metrics import Metric


def brier(logits, labels):
    """Squared distance of the probabilities from the label."""
    return jnp.square(jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])).sum(-1)


EXAMPLE_METRICS = {"brier": Metric(brier, "Brier score")}
'''

# A metric of all examples together, of kept logits.
NLL = '''
"""The mean loss, in bits."""

import numpy as np

from disam_jax.dg.metrics.base import LogitMetric, probabilities


def bits(logits, labels):
    """- mean log2 p of the label."""
    return -np.log2(probabilities(logits)[np.arange(len(labels)), labels]).mean()


LOGIT_METRICS = {"mean_bits": LogitMetric(bits, "loss in bits", "", unit="bits", digits=3, better="lower")}
'''

# The same contract from outside of the package.
OTHER = """
from disam_jax.dg.methods import Method, from_objective, mean_loss

worst = Method(from_objective(lambda outputs, batch, hparams, state: (outputs.losses.max(), state)), note="worst")
number = 7
short = Method(lambda params, batch, forward, hparams, state: (params, forward(params).state), note="broken")
"""
POINTS = """[disam_jax.methods]
Worst = other_methods:worst
Absent = module_that_nobody_has:method
Number = other_methods:number
Short = other_methods:short
"""


def disam_jax(folder, *arguments, status=0):
    """Output and errors of the command line, with a folder in front of the path."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "COLUMNS": "200"}
    command = [sys.executable, "-m", "disam_jax.dg.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def methods_of(folder):
    return list(json.loads((folder / "results.json").read_text())["header"]["methods"])


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of the package with four more files."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "disam_jax", folder / "disam_jax", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "disam_jax/dg/methods/entropy.py").write_text(ENTROPY)
    (folder / "disam_jax/dg/methods/halfway.py").write_text(HALFWAY)
    (folder / "disam_jax/dg/training/brier.py").write_text(BRIER)
    (folder / "disam_jax/dg/metrics/bits.py").write_text(NLL)
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder of installed packages, with one that has methods."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "other_methods.py").write_text(OTHER)
    install(folder, "other-methods", POINTS)
    return folder


@pytest.mark.slow
def test_a_file_is_all_that_a_method_a_variant_or_a_metric_needs_to_be_listed(copied):
    listed, _ = disam_jax(copied, "list")
    assert "LowEntropy" in listed
    assert "small entropy of right answers (entropy_weight)" in listed
    # After those that are there.
    assert listed.index("CORAL+DISAM") < listed.index("LowEntropy")
    assert "Brier score" in listed
    assert "loss in bits" in listed
    for name in ("Halfway", "Halfway+DISAM", "Halfway+DISAM-std"):
        assert f"\n{name} " in listed


@pytest.mark.slow
def test_a_file_is_all_that_a_method_a_variant_or_a_metric_needs_to_be_trained_and_reported(copied):
    arguments = ["--method", "low-entropy", "halfway+disam", "erm", *QUICK, "--keep-logits", "--out", copied / "out"]
    disam_jax(copied, "compare", *arguments)
    assert methods_of(copied / "out") == ["LowEntropy", "Halfway+DISAM", "ERM"]
    page = (copied / "out" / "table.md").read_text()
    assert "LowEntropy" in page
    assert "## Further metrics" in page
    assert "| method | brier, held-out | brier, sources |" in page
    assert "mean_bits: loss in bits, in bits; lower is better" in page
    assert "mean_bits,mean_bits se" in (copied / "out" / "kept_metrics.csv").read_text()
    before = (copied / "out" / "metrics.csv").read_bytes()
    # From the file alone, by a command of its own.
    disam_jax(copied, "report", copied / "out")
    assert (copied / "out" / "metrics.csv").read_bytes() == before
    # Alone, of the logits that are there.
    disam_jax(copied, "report", copied / "out", "--metrics", "mean-bits")
    assert (copied / "out" / "kept_metrics.csv").read_text().startswith("method,mean_bits,mean_bits se\n")
    # Where the metric is not installed, its numbers are still there.
    disam_jax(ROOT, "report", copied / "out")
    assert "a metric that is not installed here" in (copied / "out" / "table.md").read_text()


@pytest.mark.slow
def test_a_file_is_all_that_a_method_a_variant_or_a_metric_needs_to_be_documented(copied):
    pytest.importorskip("sphinx")
    script = "import registries; print(*(table() for table in registries.TABLES.values()))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(copied), str(ROOT / "docs/_ext")])}
    done = subprocess.run([sys.executable, "-c", script], cwd=copied, env=environment, capture_output=True, text=True)
    assert "| `LowEntropy` | small entropy of right answers | `entropy_weight` |" in done.stdout, done.stderr
    assert "| `brier` | Brier score |" in done.stdout
    assert "| `mean_bits` | loss in bits |" in done.stdout
    assert "| `Halfway+DISAM` |" in done.stdout


@pytest.mark.slow
def test_methods_of_another_package_are_compared_and_broken_ones_are_named(installed):
    out, errors = disam_jax(installed, "compare", "--method", "worst,erm", *QUICK, "--out", installed / "out")
    assert methods_of(installed / "out") == ["Worst", "ERM"]
    assert "Worst" in out
    lines = [line for line in errors.splitlines() if "left out" in line]
    assert len(lines) == 2
    assert any("method Absent of the package other-methods is left out" in line for line in lines)
    assert any("ModuleNotFoundError: No module named 'module_that_nobody_has'" in line for line in lines)
    assert any("method Number of the package other-methods must be a Method, got int" in line for line in lines)


@pytest.mark.slow
def test_a_method_that_breaks_the_contract_is_named(installed):
    arguments = ["--method", "short", *QUICK, "--out", installed / "broken"]
    _, errors = disam_jax(installed, "compare", *arguments, status=2)
    last = errors.splitlines()[-1]
    assert last.startswith("disam-jax: error: --method Short: a method must return (gradient, state of the network, ")
    assert "got a tuple of 2" in last


@pytest.mark.parametrize(("name", "page"), [("methods", "benchmark"), ("metrics of kept logits", "metrics")])
def test_the_table_of_the_documentation_has_every_entry(name, page):
    pytest.importorskip("sphinx")
    from disam_jax.dg.methods import METHODS
    from disam_jax.dg.metrics.registry import LOGIT_METRICS

    spec = importlib.util.spec_from_file_location("registries", ROOT / "docs/_ext/registries.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = module.TABLES[name]().splitlines()[2:]
    registry = METHODS if name == "methods" else LOGIT_METRICS
    assert [row.split("`")[1] for row in rows] == list(registry)
    assert f"<!-- registry: {name} -->" in (ROOT / f"docs/{page}.md").read_text()
    assert module.filled(f"before\n<!-- registry: {name} -->\nafter").splitlines()[3:-1] == rows
