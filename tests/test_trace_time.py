"""The benchmark of trace time: its sides take the same step, its counts are exact, and the command stores a page."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import slow

from benchmarks import __main__ as command
from benchmarks import trace

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _as_a_user_runs_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.debug_nans(False):
        yield


def test_equations_are_those_of_every_program_inside():
    step = jax.jit(lambda x: jnp.sin(x) * 2)
    twice = jax.make_jaxpr(lambda x: step(step(x)) + 1)(1.0)
    assert trace.equations(twice.jaxpr) == 2 + 2 * 2 + 1
    scan = jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, _: (c * 2, None), x, length=9)[0])(1.0)
    assert trace.equations(scan.jaxpr) == 2


@pytest.mark.slow
def test_the_equations_of_a_step_grow_with_the_leaves_and_not_with_the_domains():
    count = lambda leaves, domains, side: trace.program(trace.Case(leaves, domains), side).equations
    for side in ("disam", "value_and_grad"):
        first, second, third = (count(leaves, 3, side) for leaves in (4, 8, 12))
        assert third - second == second - first
        # What each further leaf costs is no more than in the step of optax.contrib.sam.
        assert second - first <= count(8, 3, trace.REFERENCE) - count(4, 3, trace.REFERENCE)
        assert count(4, 64, side) == first


@pytest.mark.slow
@pytest.mark.parametrize("side", ["value_and_grad", *slow("disam")])
def test_the_sides_take_the_step_of_optax_sam_where_lam_is_zero(side, monkeypatch):
    monkeypatch.setattr(trace, "LAM", 0.0)
    rng = np.random.default_rng(0)
    params, batch = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), trace.arguments(trace.Case(4, 3))
    )

    def after_a_step(name):
        _, make, transform = trace.SIDES[name]
        tx = transform()
        return jax.jit(make(tx))(params, tx.init(params), batch)[::2]

    (got, loss), (want, _) = after_a_step(side), after_a_step(trace.REFERENCE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    np.testing.assert_allclose(loss, trace.mean_loss(params, batch), rtol=1e-6)


@pytest.mark.slow
def test_the_command_measures_some_sizes_and_stores_them_with_their_page(tmp_path, monkeypatch):
    # 12.5 s a leaf with 2 leaves and 6.25 with 4, so that 62.5 are to be expected of 10, more than the bound.
    arguments = ["trace", "--leaves", "2", "4", "--domains", "2", "--repeats", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(trace, "compile_seconds", lambda lowered: 25.0)
    command.main(arguments)
    results = json.loads((tmp_path / "trace_time.json").read_text())
    assert list(results["measured"]) == ["2 leaves, 4 domains", "4 leaves, 4 domains", "10 leaves, 2 domains"]
    for entry in results["measured"].values():
        sides = entry["sides"]
        assert list(sides) == list(trace.SIDES)
        assert sides[trace.REFERENCE]["trace_ratio"] == {"median": 1.0, "lower": 1.0, "upper": 1.0}
        assert all(each["trace"]["lower"] > 0 and each["rounds"] == 2 for each in sides.values())
    assert [entry["sides"]["disam"]["compile"] for entry in results["measured"].values()] == [25.0, 25.0, None]
    page = (tmp_path / "trace_time.md").read_text()
    assert page == trace.page(results)
    assert "disam_jax.value_and_grad" in page
    assert jax.__version__ in page
    assert not (tmp_path / "step_speed.json").exists()


def test_the_stored_page_is_that_of_the_stored_results():
    path = ROOT / "benchmarks" / "results" / f"{trace.NAME}.json"
    assert path.with_suffix(".md").read_text() == trace.page(json.loads(path.read_text()))
