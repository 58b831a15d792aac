"""The examples: what switching to DISAM takes, and that both versions of each train."""

import difflib
import importlib.util
import pathlib
import re

import jax
import numpy as np
import pytest
from support import slow

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
# The arguments for a run that is just long enough to learn something.
SHORT = {
    "digits_linen.py": {"num_epochs": 3, "batch_size": 50},
    "digits_nnx.py": {"num_steps": 60, "eval_every": 15},
    "images_batchnorm_linen.py": {"num_steps": 80, "batch_size": 40, "learning_rate": 0.2},
}
WITH_STATISTICS = {"digits_nnx.py", "images_batchnorm_linen.py"}
pairs = pytest.mark.parametrize("name", sorted(SHORT))
# To run the scripts takes seconds each: CI does it.
runs = pytest.mark.parametrize("name", slow(*sorted(SHORT)))


@pytest.fixture(autouse=True)
def _flax_promotes():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def load(name, plain=False):
    path = EXAMPLES / "plain" / name if plain else EXAMPLES / name
    spec = importlib.util.spec_from_file_location(f"{'plain_' if plain else ''}{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_perturbation(module, monkeypatch):
    """The example at rho = 0, where DISAM is the plain gradient."""
    where = module.disam_jax.nnx if "nnx" in module.__name__ else module.disam_jax
    original = where.value_and_grad
    monkeypatch.setattr(where, "value_and_grad", lambda f, rho, lam, **kw: original(f, 0.0 * rho, lam, **kw))
    return module


def diff(name):
    """The change from the plain version to the one with DISAM, with one line around each part."""
    plain, disam = (path.read_text().splitlines() for path in (EXAMPLES / "plain" / name, EXAMPLES / name))
    lines = difflib.unified_diff(plain, disam, f"plain/{name}", name, n=1, lineterm="")
    return "\n".join(lines) + "\n"


def running_statistics(result):
    """All running means and variances, one array."""
    if hasattr(result, "batch_stats"):
        leaves = jax.tree.leaves(result.batch_stats)
    else:
        leaves = [result.norm1.mean[...], result.norm1.var[...]]
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def test_each_example_has_a_plain_version():
    assert {p.name for p in EXAMPLES.glob("*.py")} == {p.name for p in EXAMPLES.glob("plain/*.py")} == set(SHORT)


@pairs
def test_switching_changes_at_most_ten_lines(name):
    _, _, *body = diff(name).splitlines()
    changed = [line for line in body if line[0] in "+-"]
    assert 0 < len(changed) <= 10, "\n".join(changed)


@pairs
def test_the_readme_shows_the_diff(name):
    shown = re.findall(r"```diff\n(.*?)```", (EXAMPLES / "README.md").read_text(), re.DOTALL)
    assert diff(name) in shown, f"examples/README.md should have this ```diff block:\n{diff(name)}"


@runs
def test_learns(name, capsys):
    result, history = load(name).train_and_evaluate(**SHORT[name])
    assert np.isfinite(history).all()
    few = max(len(history) // 6, 1)
    assert np.mean(history[-few:]) < 0.9 * np.mean(history[:few])
    assert "unseen" in capsys.readouterr().out
    if name in WITH_STATISTICS:
        statistics = running_statistics(result)
        # They start at mean 0 and variance 1.
        assert np.isfinite(statistics).all()
        assert (np.minimum(np.abs(statistics), np.abs(statistics - 1)) > 1e-4).mean() > 0.9


@runs
def test_the_diff_is_only_the_switch(name, monkeypatch):
    short = SHORT[name] | ({"num_epochs": 1} if "num_epochs" in SHORT[name] else {"num_steps": 15})
    plain, plain_history = load(name, plain=True).train_and_evaluate(**short)
    module = without_perturbation(load(name), monkeypatch)
    disam, disam_history = module.train_and_evaluate(**short)
    np.testing.assert_allclose(disam_history, plain_history, rtol=1e-3)
    if name in WITH_STATISTICS:
        # Two passes a step that both wrote would have moved them twice as far.
        np.testing.assert_allclose(running_statistics(disam), running_statistics(plain), rtol=1e-3, atol=1e-4)
