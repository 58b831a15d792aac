"""A step of the search for cheaper ways against the library's, and what its plan says."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import slow

import disam_jax
from benchmarks.fast import plan, rules, tables, trainer
from benchmarks.fast.plan import SEARCHED, SETTINGS, Way, numbers
from benchmarks.fast.run import Raw, best_rhos, changed, path_of, read, runs_of
from benchmarks.verdict.plan import DataSet

ROOT = pathlib.Path(__file__).parents[1]
SETTING = plan.Setting(DataSet("toy"), 0, "sgd", 0.1, 10, (0.1, 0.2), per_domain=8)
PENALTIES = {"std": {"penalty": "std", "lam": 0.7}, "variance": {"penalty": "variance", "lam": 1.0}}


def problem():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 8, 4)) * np.arange(1, 4)[:, None, None], jnp.float32)
    y = jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)
    params = {"w": jnp.asarray(rng.normal(size=4), jnp.float32), "b": jnp.float32(0.5)}
    losses = lambda params, batch: (jnp.tanh(batch[0] @ params["w"]) + params["b"] - batch[1]) ** 2
    return params, (x, y), losses


def of_trainer(way, step, rho=0.3, before=None):
    params, batch, losses = problem()
    values = {name: jnp.float32(each) for name, each in numbers(SETTING, rho, way).items()}
    before = optax.tree.zeros_like(params) if before is None else before
    return jax.jit(
        lambda params: trainer.gradient(params, lambda w: losses(w, batch), jnp.int32(step), values, before)
    )(params)


@pytest.mark.dealt
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("fraction", [0.25, *slow(1.0, 0.5, 0.125)])
def test_a_step_is_that_of_the_library(fraction, penalty):
    params, batch, losses = problem()
    mean = lambda params, batch: losses(params, batch).mean(1)
    # The library takes examples spread over the batch, the trainer the first ones of a batch that is drawn at random.
    kept = int(8 * fraction)
    order = np.full(8, -1)
    order[:: 8 // kept] = np.arange(kept)
    order[order < 0] = np.arange(kept, 8)
    of_library = disam_jax.subset_value_and_grad(mean, 0.6, fraction=fraction, **PENALTIES[penalty])
    _, wanted = of_library(params, jax.tree.map(lambda leaf: leaf[:, order], batch))
    way = Way(fraction, begin=0.5, times=2.0, penalty=penalty)
    found, direction, _ = of_trainer(way, step=5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)
    assert optax.tree.norm(direction) == pytest.approx(1.0, rel=1e-5)
    plain = jax.grad(lambda params: mean(params, batch).mean())(params)
    found, *_ = of_trainer(way, step=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, plain)


def test_the_norm_of_the_whole_batch_makes_the_perturbation_of_a_part_longer_by_their_ratio():
    params, batch, losses = problem()
    part = lambda params: losses(params, batch)[:, :2].mean(1)
    rest = lambda params: losses(params, batch)[:, 2:].mean()
    weights = disam_jax.domain_weights(part(params), 0.7, penalty="std")
    of_part = jax.grad(lambda params: weights @ part(params))(params)
    whole = jax.tree.map(lambda g, h: 0.25 * g + 0.75 * h, of_part, jax.grad(rest)(params))
    ratio = float(optax.tree.norm(of_part) / optax.tree.norm(whole))
    assert abs(ratio - 1.0) > 0.05
    found, *_ = of_trainer(Way(0.25, whole=True), step=0)
    wanted, *_ = of_trainer(Way(0.25), step=0, rho=0.3 * ratio)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)


def test_the_direction_of_the_step_before_takes_one_pass_and_finds_the_next():
    params, batch, losses = problem()
    before = trainer.unit({"w": jnp.arange(1.0, 5.0), "b": jnp.float32(-1.0)})
    found, direction, cosine = of_trainer(Way(before=True), step=0, before=before)
    there = jax.tree.map(lambda w, d: w + 0.3 * d, params, before)
    mean = lambda params: losses(params, batch).mean(1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        jax.grad(lambda params: mean(params).mean())(there),
    )
    weighted = lambda point: jax.grad(
        lambda params: disam_jax.domain_weights(mean(point), 0.7, penalty="std") @ mean(params)
    )(point)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), direction, trainer.unit(weighted(there))
    )
    assert cosine == pytest.approx(float(optax.tree.vdot(before, trainer.unit(weighted(params)))), abs=1e-5)


@pytest.mark.parametrize(
    ("decay", "cosine", "wanted"),
    [
        (0.0, 0.0, [1.0, 1.0, 1.0]),
        (0.5, 0.0, [1.0, 1.0, 0.2]),
        (1.0, 0.0, [1.0, 0.5, 0.1]),
        (0.5, 1.0, [1.0, 0.5, 0.5 * (1 + np.cos(0.9 * np.pi))]),
    ],
)
def test_the_rate_falls_as_it_should(decay, cosine, wanted):
    values = {"decay": jnp.float32(decay), "cosine": jnp.float32(cosine)}
    found = [float(trainer.factor(jnp.int32(step), 10, values)) for step in (0, 5, 9)]
    assert found == pytest.approx(wanted, abs=1e-6)


def test_no_two_ways_are_the_same_and_the_costs_are_those_of_the_examples():
    assert len({way.title for way in SEARCHED}) == len(set(SEARCHED)) == len(SEARCHED)
    assert {(way.fraction, way.begin): way.cost for way in SEARCHED if not way.before}[0.0625, 0.5] == 1.03125
    assert Way(before=True).cost == 1.0


def test_the_best_rho_is_that_of_the_unseen_domains_and_none_that_diverged():
    names = ("ERM", *["SAM"] * 3, *["std"] * 3, *["variance"] * 3)
    values = np.zeros((10, 2, 2, len(trainer.FIELDS)), np.float32)
    values[:, :, :, 0] = np.array([9, 1, 3, 2, 5, 4, 3, 1, 2, 3])[:, None, None]
    values[9, 1, 1] = np.nan
    raw = Raw(values, names, np.array([0.0, *[0.1, 0.2, 0.3] * 3]), (0, 1), ("a", "b"))
    assert best_rhos(raw) == {"SAM": 0.2, "std": 0.1, "variance": 0.2}


def test_a_file_of_other_fields_is_refused_and_one_of_these_is_read(tmp_path):
    found = Raw(np.zeros((1, 1, 1, len(trainer.FIELDS)), np.float32), ("ERM",), np.zeros(1), (3,), ("a",))
    for fields in (trainer.FIELDS, trainer.FIELDS[:-1]):
        np.savez(tmp_path / f"{len(fields)}.npz", fields=np.array(fields), **found._asdict())
    assert read(tmp_path / "7.npz")[1:] == found[1:]
    with pytest.raises(ValueError, match="has other fields than"):
        read(tmp_path / "6.npz")


def test_what_is_kept_of_a_run():
    accuracy, losses = np.zeros((2, 2, 3)), np.ones((2, 2, 3))
    accuracy[0, 0, 2], accuracy[0, 1, :2] = 0.6, [0.5, 0.7]
    losses[0, 0, :2], losses[0, 1, :2] = [1.0, 3.0], [0.25, 0.75]
    losses[1, 1, 0] = np.inf
    kept, diverged = trainer.summarised(accuracy, losses, np.array([0.5, 0.5]), target=2)
    assert kept == pytest.approx([60.0, 0.5, 60.0, 1.0, 3.0, 2.0, 0.5])
    assert np.isnan(diverged).all()


@pytest.mark.parametrize("phase", ["reach", "search"])
def test_runs_of_a_phase_have_the_same_numbers_by_name(phase):
    runs = runs_of(SETTINGS["digits"], phase, {"SAM": 0.1, "std": 0.2, "variance": 0.3})
    assert len({frozenset(values) for _, values in runs}) == 1
    rhos = {name: values["rho"] for name, values in runs}
    if phase == "search":
        assert (rhos["SAM"], rhos["std"], rhos["variance"], rhos["ERM"]) == (0.1, 0.2, 0.3, 0.0)
        assert rhos[Way(0.25, times=4.0, penalty="variance").title] == pytest.approx(1.2)


# What the page says of runs that are made up: K names, S seeds, T targets, of which each seed has its own level.


def made_up(values, seeds=4, targets=3, other=1):
    """Runs whose accuracy and spread are {name: (accuracy, spread)}, and a level of seed and target that they share."""
    rng = np.random.default_rng(other)
    levels = rng.normal(size=(seeds, targets))
    found = np.zeros((len(values), seeds, targets, len(trainer.FIELDS)), np.float32)
    for row, (accuracy, spread) in enumerate(values.values()):
        found[row, ..., 0] = accuracy + levels + 0.1 * rng.normal(size=(seeds, targets))
        found[row, ..., 3] = spread + 0.01 * rng.normal(size=(seeds, targets))
    return Raw(found, tuple(values), np.full(len(values), 0.1), tuple(range(seeds)), ("a", "b", "c")[:targets])


def of_search(better=()):
    """Runs of all ways, which lose a point to full DISAM, but for some."""
    values = {"ERM": (50.0, 0.1), "SAM": (52.0, 0.2), "std": (52.0, 0.1), "variance": (52.0, 0.1)}
    return made_up(values | {way.title: (52.0 if way in better else 51.0, 0.1) for way in SEARCHED})


def test_the_rule_of_a_budget_is_the_best_within_it_and_the_cheapest_of_equals():
    cheap, dear = Way(0.0625, begin=0.8, times=2.0), Way(0.25, times=2.0)
    runs = {name: of_search([cheap, dear]) for name in ("one", "two")}
    assert rules.choose(runs, 1.02) == cheap
    assert rules.choose(runs, 1.25) in (cheap, dear)
    assert rules.choose({"one": of_search([dear])}, 1.25) == dear
    assert all(way.cost <= 1.05 and way.decay == 0.3 and not way.cosine for way in rules.candidates(1.05))


def test_a_score_is_capped_above_and_counts_a_wider_spread_and_a_diverged_run():
    way, usual = Way(0.25), {"std": (52.0, 0.1)}
    score = lambda accuracy, spread: rules.score({"one": made_up({**usual, way.title: (accuracy, spread)})}, way)
    assert score(60.0, 0.0) == 1.0
    assert score(60.0, 0.2) < -1.0
    values = made_up({**usual, way.title: (51.99, 0.0)})
    difference = (values.of(way.title, "accuracy") - values.of("std", "accuracy")).reshape(-1)
    error = difference.std(ddof=1) / np.sqrt(difference.size)
    assert rules.score({"one": values}, way) == pytest.approx(difference.mean() / error)
    values.values[1, 0, 0] = np.nan
    assert rules.score({"one": values}, way) == -np.inf


@pytest.mark.parametrize(
    ("accuracy", "spread", "wanted"), [(52.0, 0.1, True), (60.0, 0.05, True), (51.0, 0.1, False), (52.0, 0.2, False)]
)
def test_the_goal_is_met_within_one_standard_error_in_both(accuracy, spread, wanted):
    way = Way(0.25)
    raw = made_up({"std": (51.95, 0.105), way.title: (accuracy, spread)}, seeds=20)
    assert tables.meets(raw, way) is wanted
    raw.values[1, 0, 0] = np.nan
    assert tables.meets(raw, way) is False


def test_a_table_has_the_differences_paired_by_seed():
    way = Way(0.25)
    raw = made_up({"ERM": (50.0, 0.1), "std": (52.0, 0.1), way.title: (51.0, 0.1)})
    difference = (raw.of(way.title, "accuracy") - raw.of("std", "accuracy"))[0].mean(1)
    cell = f"{difference.mean():+.2f} ± {difference.std(ddof=1) / 2:.2f}"
    assert f"| {way.title} | 1.25 | {cell} |" in tables.ways_table({"one": raw}, [way], "accuracy", 2)
    assert "| no | 0 of 1 |" in tables.goals_table({"one": raw}, [way])


def test_a_page_has_all_phases_that_are_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no runs of the search"):
        tables.page(tmp_path)
    confirmed = of_search()
    record = {"runs": 12, "machine": {"cpu": "some", "cores": 2}, "versions": {"jax": "1"}}
    for phase, suffix in [("reach", ""), ("search", ""), ("confirmation", ""), ("elsewhere", "-cosine")]:
        path = path_of(tmp_path, phase, f"digits{suffix}")
        path.parent.mkdir()
        np.savez(path, fields=np.array(trainer.FIELDS), **confirmed._asdict())
        path.with_suffix(".json").write_text(json.dumps(record))
    page = tables.page(tmp_path)
    assert "48 runs" in page
    for title in ("On fresh seeds", "Other optimizers", "The best within 1.05", "Which factor on rho"):
        assert title in page
    for way in plan.confirmed():
        assert f"| {way.title} |" in page


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("change", plan.ELSEWHERE)
def test_another_setting_differs_in_what_it_says(name, change):
    setting, usual = changed(name, change), SETTINGS[name]
    names = [field for field in usual._fields if getattr(setting, field) != getattr(usual, field)]
    assert set(names) <= {
        *plan.ELSEWHERE[change].setting,
        *(["optimizer", "learning_rate"] * (change == "other-optimizer")),
    }
    rhos = {"SAM": 0.1, "std": 0.2, "variance": 0.3}
    runs = dict(runs_of(setting, "elsewhere", rhos, change))
    assert {values["decay"] for values in runs.values()} == {0.0 if change == "constant" else 0.3}
    assert {values["cosine"] for values in runs.values()} == {float(change == "cosine")}
    assert list(runs) == ["ERM", "SAM", "std", "variance", *(way.title for way in plan.confirmed())]


def test_the_stored_pages_are_made_of_the_stored_runs():
    folder = ROOT / "benchmarks" / "results" / "fast"
    assert (folder / "README.md").read_text() == tables.page(folder)
    assert tables.summary(folder) in (ROOT / "docs" / "fast.md").read_text()


@pytest.mark.parametrize("budget", plan.BUDGETS)
def test_the_rules_are_those_that_the_stored_search_chooses(budget):
    runs = tables.runs_of_phase(ROOT / "benchmarks" / "results" / "fast", "search")
    assert list(runs) == list(SETTINGS)
    assert rules.choose(runs, budget) == plan.RULES[budget]


@pytest.mark.parametrize("phase", ["confirmation", "larger"])
def test_no_seed_that_judges_has_chosen(phase):
    chosen = {seed for name in ("reach", "rates", "search") for seed in plan.SEEDS[name]}
    suffix = "-batch-32" * (phase == "larger")
    for raw in tables.runs_of_phase(ROOT / "benchmarks" / "results" / "fast", phase, suffix).values():
        assert raw.seeds == tuple(plan.SEEDS[phase])
        assert not chosen & set(raw.seeds)
