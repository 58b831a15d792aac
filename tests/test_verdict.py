"""The verdict's one program against the library's methods, and what its tables make of runs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.verdict import raw
from benchmarks.verdict.inputs import for_target, principal_components
from benchmarks.verdict.method import VERDICT
from benchmarks.verdict.plan import ARMS, BUDGET, REGIMES, DataSet, candidates, tried
from benchmarks.verdict.trainer import Curves, Fixed, train
from disam_jax.dg.data.splits import split
from disam_jax.dg.methods import METHODS, Batch, Outputs
from disam_jax.dg.models.network import Network, Output
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.testing import toy
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.step import example_losses, make_arrays

DOMAINS, EXAMPLES, INPUTS, CLASSES = 3, 4, 5, 3


def problem():
    """A network's parameters, a batch of three domains, and its forward pass."""
    network = make_network("mlp", (INPUTS,), CLASSES, hidden=(6,))
    params, state = network.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    x = jnp.asarray(
        rng.normal(size=(DOMAINS, EXAMPLES, INPUTS)) * np.arange(1, DOMAINS + 1)[:, None, None], jnp.float32
    )
    batch = Batch(x, jnp.asarray(rng.integers(CLASSES, size=(DOMAINS, EXAMPLES)), jnp.int32), jax.random.key(1))

    def forward(params, x=batch.x, y=batch.y):
        output = network.apply(params, state, x.reshape(-1, INPUTS), batch.key, True)
        losses = example_losses(output.logits, y.reshape(-1)).reshape(y.shape)
        by_domain = lambda values: values.reshape(*y.shape, -1)
        return Outputs(losses.mean(1), by_domain(output.logits), by_domain(output.features), output.state)

    return params, batch, forward


IN_THE_DEFAULT_RUN = ("own e, std, lam 0.7", "descent 0.5, std, lam 0.7")
EACH_ARM = [pytest.param(name, marks=() if name in IN_THE_DEFAULT_RUN else pytest.mark.slow) for name in ARMS]


@pytest.mark.parametrize("name", EACH_ARM)
def test_each_arm_is_the_method_of_its_name(name):
    arm = ARMS[name]
    candidate = [each for each in candidates(REGIMES["mlp"]) if each.arm == name][3]
    method = METHODS[arm.method[0]]
    numbers = {key: each.default for key, each in method.hparams.items()}
    numbers |= {"anneal": candidate.hparams["anneal"], **arm.method[1], arm.varied: candidate.varied}
    as_arrays = lambda numbers: {key: jnp.float32(number) for key, number in numbers.items()}
    params, batch, forward = problem()
    # The first step, and one after the annealing of V-REx.
    of_method, of_arm = method.state(DOMAINS), VERDICT.state(DOMAINS)
    for step in (0, 40):
        if arm.varied == "beta":
            of_method, of_arm = jnp.int32(step), (jnp.int32(step), of_arm[1])
        program = lambda gradient: jax.jit(gradient, static_argnums=2)
        wanted, _, of_method = program(method.gradient)(params, batch, forward, as_arrays(numbers), of_method)
        hparams = as_arrays(candidate.hparams)
        found, _, of_arm = program(VERDICT.gradient)(params, batch, forward, hparams, of_arm)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), found, wanted)


@pytest.mark.slow
def test_arms_differ():
    params, batch, forward = problem()
    program = jax.jit(VERDICT.gradient, static_argnums=2)
    seen = {}
    for each in candidates(REGIMES["mlp"]):
        if each.varied in (0.2, 2.0) and ARMS[each.arm].varied == "rho":
            hparams = {key: jnp.float32(number) for key, number in each.hparams.items()}
            gradient, *_ = program(params, batch, forward, hparams, VERDICT.state(DOMAINS))
            seen[each.arm] = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
    names = list(seen)
    for place, one in enumerate(names):
        for other in names[:place]:
            assert np.abs(seen[one] - seen[other]).max() > 1e-5, (one, other)


@pytest.mark.parametrize("regime", REGIMES)
def test_every_arm_has_the_same_budget_and_the_same_rhos(regime):
    for name, arm in ARMS.items():
        values = tried(arm, REGIMES[regime])
        assert len(set(values)) == BUDGET, name
        if arm.varied == "rho":
            assert values == tuple(arm.times * rho for rho in REGIMES[regime].rhos), name


def test_components_know_nothing_of_the_target():
    data = toy()
    entry = DataSet("toy", components=2)
    before = for_target(data, entry, 1)
    seen = data.domain_ids != 1
    data.inputs[~seen] += 100.0
    after = for_target(data, entry, 1)
    np.testing.assert_array_equal(before.inputs[seen], after.inputs[seen])
    assert not np.allclose(before.inputs[~seen], after.inputs[~seen])


def test_components_keep_distances():
    inputs = np.random.default_rng(0).normal(size=(20, 4))
    seen = np.arange(20) < 15
    found = principal_components(inputs, seen, 4)
    apart = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)
    ratio = apart(found)[0, 1] / apart(inputs)[0, 1]
    np.testing.assert_allclose(apart(found), ratio * apart(inputs), atol=1e-4)
    assert np.square(found[seen]).mean() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.slow
def test_runs_are_those_of_the_library():
    # ERM and SAM, a step of the trainer at a time, against the library's own runner.
    from disam_jax.dg.results import Run
    from disam_jax.dg.runners.in_memory import InMemoryRunner

    data = toy(examples=10)
    config = TrainConfig(model="linear", steps=6, evaluations=2, per_domain=3, averaging="swad", learning_rate=0.01)
    seeds = (3, 4)
    arrays = make_arrays(data, tuple(split(data, seed, 0.2) for seed in seeds), standardise=False)
    network = make_network("linear", (2,), 2)
    chosen = [each for each in candidates(REGIMES["linear"]) if each.arm in ("ERM", "SAM")]
    curves = train(chosen, 4, 1, 2, arrays, Fixed(network, config))
    for name in ("ERM", "SAM"):
        mine = [(place, each) for place, each in enumerate(chosen) if each.arm == name]
        runs = [Run(name, 2, 4, place, each.hparams) for place, each in mine]
        hparams = [{key: run.hparams[key] for key in ("learning_rate", "weight_decay", "rho")} for run in runs]
        runner = InMemoryRunner(network, METHODS[name], config, arrays, seeds, probe=2)
        found = runner.train([run._replace(hparams=each) for run, each in zip(runs, hparams, strict=True)])
        places = [place for place, _ in mine]
        # The library's last point is that of SWAD's weights.
        np.testing.assert_allclose(curves.losses[places, 0], found["losses"][:, 1], rtol=1e-5)
        np.testing.assert_allclose(curves.swad_losses[places], found["losses"][:, -1], rtol=1e-5)
        np.testing.assert_array_equal(curves.swad_accuracy[places], found["accuracy"][:, -1])


def test_a_run_is_summarised_by_its_best_points():
    accuracy, losses = np.zeros((1, 3, 2, 3)), np.ones((1, 3, 2, 3))
    accuracy[0, :, 1, :2] = [[0.1, 0.3], [0.8, 0.6], [0.4, 0.4]]  # validation splits of the sources
    losses[0, :, 1, :2] = [[0.3, 0.1], [0.5, 0.5], [0.9, 0.9]]
    losses[0, -1, 0, :2] = [1.0, 3.0]  # training splits of the sources
    accuracy[0, :, 0, 2] = [0.5, 0.6, 0.7]  # the target
    accuracy[0, -1, 1, 2] = 0.25
    swad_accuracy, swad_losses = np.full((1, 2, 3), 0.5), np.full((1, 2, 3), 2.0)
    table = raw.summarised(Curves(accuracy, losses, swad_accuracy, swad_losses), target=2)[0]
    found = dict(zip(raw.FIELDS, table.tolist(), strict=True))
    assert found == pytest.approx(
        {
            "validation_accuracy_score": 0.7,
            "validation_accuracy_accuracy": 60.0,
            "validation_loss_score": -0.2,
            "validation_loss_accuracy": 50.0,
            "oracle_score": 0.25,
            "oracle_accuracy": 70.0,
            "last_score": 0.4,
            "last_accuracy": 70.0,
            "swad_accuracy_score": 0.5,
            "swad_accuracy_accuracy": 50.0,
            "swad_loss_score": -2.0,
            "swad_loss_accuracy": 50.0,
            "spread": 1.0,
            "worst_loss": 3.0,
            "mean_loss": 2.0,
        }
    )


def test_a_run_that_diverged_has_no_numbers():
    ones = np.ones((2, 3, 2, 3))
    losses = ones.copy()
    losses[1, 2, 0, 0] = np.nan
    table = raw.summarised(Curves(ones, losses, ones[:, 0], ones[:, 0]), target=0)
    assert np.isfinite(table[0]).all()
    assert np.isnan(table[1]).all()


def test_runs_are_read_as_they_were_written(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 3, 1, len(raw.FIELDS))).astype(np.float32)
    written = raw.Raw(values, ("ERM", "SAM"), np.array([0.1, 0.2]), np.arange(3), ("sketch",))
    raw.save(tmp_path / "runs.npz", written)
    found = raw.read(tmp_path / "runs.npz")
    np.testing.assert_array_equal(found.values, values)
    assert (found.arms, found.targets) == (written.arms, written.targets)
    np.testing.assert_array_equal(found.field("spread"), values[..., raw.FIELDS.index("spread")])
    assert not list(tmp_path.glob("*.partial"))


def test_arms_that_were_added_stand_beside_the_others_of_their_seeds():
    others = planted(0.0)["a"]
    added = others._replace(
        values=others.values[:8, 2:5], arms=("CORAL",) * 8, varied=others.varied[:8], seeds=others.seeds[2:5]
    )
    both = raw.joined(added, others)
    assert both.arms == (*added.arms, *others.arms)
    np.testing.assert_array_equal(both.values[8:], others.values[:, 2:5])
    assert (len(both.varied), both.seeds.tolist()) == (len(both.arms), [2, 3, 4])
    with pytest.raises(ValueError, match="have none beside them"):
        raw.joined(added._replace(seeds=added.seeds + 10), others)


def planted(gain, seeds=12, data=("a", "b", "c"), noise=0.05):
    """Runs of every arm on some data sets; DISAM-std 0.7 is better than the others by `gain` points."""
    from benchmarks.verdict import analysis

    rng, found = np.random.default_rng(0), {}
    tries = candidates(REGIMES["linear"])
    for name in data:
        shared = rng.normal(60.0, 3.0, (1, seeds, 3))
        noisy = lambda: shared + rng.normal(0.0, noise, (len(tries), seeds, 3))
        columns = {field: noisy() for field in raw.FIELDS}
        better = np.array([each.arm == analysis.STD for each in tries])[:, None, None] * gain
        columns = {field: each + better * field.endswith("accuracy") for field, each in columns.items()}
        values = np.stack([columns[field] for field in raw.FIELDS], -1)
        arms, varied = tuple(each.arm for each in tries), np.array([each.varied for each in tries])
        found[name] = raw.Raw(values, arms, varied, np.arange(seeds), ("x", "y", "z"))
    return found


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [
        (1.0, "win"),
        pytest.param(-1.0, "loss", marks=pytest.mark.slow),
        pytest.param(0.0, "tie", marks=pytest.mark.slow),
    ],
)
def test_what_is_planted_is_found(gain, verdict):
    from benchmarks.verdict import analysis

    found = analysis.family({"linear": planted(gain)})
    of = {(each.pair, each.selection): each for each in found}
    one = of[analysis.Pair(analysis.STD, "SAM"), "validation_loss"]
    assert one.verdict == verdict
    assert one.mean == pytest.approx(gain, abs=0.1)
    assert one.over_data.low < one.mean < one.over_data.high
    assert one.over_targets.low < one.mean < one.over_targets.high
    assert of[analysis.Pair("DISAM, lam 1", "SAM"), "validation_loss"].verdict == "tie"
    assert all(each.corrected >= each.p for each in found)


@pytest.mark.slow
def test_a_gain_on_one_data_set_is_not_evidence_for_others():
    from benchmarks.verdict import analysis

    runs = planted(0.0)
    runs["a"] = planted(9.0)["a"]
    found = analysis.family({"linear": runs})
    one = next(each for each in found if each.pair == analysis.Pair(analysis.STD, "SAM"))
    assert one.corrected < analysis.LEVEL
    assert one.verdict == "win on these data sets"


def test_candidates_are_chosen_by_their_scores_alone():
    from benchmarks.verdict import analysis

    runs = planted(0.0)["a"]
    rows = analysis.rows_of(runs, "SAM")
    score, accuracy = raw.FIELDS.index("validation_loss_score"), raw.FIELDS.index("validation_loss_accuracy")
    runs.values[rows, ..., score] = np.arange(len(rows))[:, None, None]
    runs.values[rows[-1], ..., score] = np.nan  # diverged
    runs.values[rows, ..., accuracy] = 10.0 * np.arange(len(rows))[:, None, None]
    assert (analysis.tuned(runs, "SAM", "validation_loss") == 10.0 * (len(rows) - 2)).all()


def test_rhos_are_compared_in_units_of_sam():
    from benchmarks.verdict import analysis

    runs = planted(0.0)["a"]
    for arm, times in (("SAM", 1.0), ("ASAM", 10.0)):
        row = next(row for row in analysis.rows_of(runs, arm) if runs.varied[row] == times * 2.0)
        np.testing.assert_array_equal(analysis.at_rho(runs, arm, 2.0, "spread"), runs.field("spread")[row])


@pytest.mark.slow
def test_pages_are_made_from_the_files(tmp_path):
    import json

    from benchmarks.verdict import tables

    record = {"runs": 7, "machine": {"cpu": "x", "cores": 2}, "versions": {"jax": "0"}, "date": "2026-01-01"}
    for place, runs in enumerate(planted(1.0, data=("PACS160", "heart4", "digits")).items()):
        path = tables.runs_path(tmp_path, "confirmation", "linear", runs[0])
        raw.save(path, runs[1])
        path.with_suffix(".json").write_text(json.dumps(record | {"runs": place}))
    page, comparisons = tables.write(tmp_path, "confirmation")
    text = page.read_text()
    assert "3 runs, seeds 0 to 11" in text
    line = next(line for line in text.splitlines() if line.startswith("| DISAM-std, lam 0.7 - SAM |"))
    assert line.endswith("| win |")
    assert len(comparisons.read_text().splitlines()) == 1 + 38
    for name, runs in planted(0.0, data=("PACS160", "heart4", "digits")).items():
        path = tables.runs_path(tmp_path, "added", "linear", name)
        coral = np.array(runs.arms) == "ERM"
        raw.save(path, runs._replace(values=runs.values[coral], arms=("CORAL",) * 8, varied=runs.varied[coral]))
        path.with_suffix(".json").write_text(json.dumps(record))
    page, _ = tables.write(tmp_path, "added")
    assert "corrected for all 4 comparisons" in page.read_text()
    assert re.search(r"^\| CORAL - ERM \|.* tie \|$", page.read_text(), re.MULTILINE)
    with pytest.raises(FileNotFoundError, match="no runs of the phase screening"):
        tables.write(tmp_path, "screening")


def test_networks_compute_in_bfloat16_and_are_trained_in_float32():
    from benchmarks.verdict.whole import PreparedIn, computed_in

    seen = []

    def apply(params, state, x, key, train):
        hidden = PreparedIn(lambda x: x.astype(jnp.float32), "bfloat16")(x) @ params["kernel"] + state["shift"][None]
        seen.append(hidden.dtype)
        return Output(hidden, hidden, {"shift": hidden.mean(0)})

    network = Network(lambda key: ({"kernel": jax.random.normal(key, (INPUTS, CLASSES))}, {}), apply)
    params, _ = network.init(jax.random.key(0))
    state = {"shift": jnp.zeros(CLASSES)}
    x = np.random.default_rng(0).normal(size=(4, INPUTS)).astype(np.float32)
    narrow = computed_in(network, "bfloat16")
    output = narrow.apply(params, state, jnp.asarray(x), None, True)
    assert (seen[-1], output.logits.dtype, output.state["shift"].dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(output.logits, x @ np.asarray(params["kernel"]), atol=0.1)
    gradient = jax.grad(lambda params: narrow.apply(params, state, jnp.asarray(x), None, True).logits.sum())(params)
    assert gradient["kernel"].dtype == jnp.float32
    assert computed_in(network, "float32") is network


def test_whole_rounds_alone_are_counted():
    from benchmarks.verdict import whole

    one = lambda dtype, seed, arm, accuracy: whole.Row(dtype, seed, "x", arm, accuracy, 0.0, 0.1, 0.5, 1.0)
    gains = {arm: 0.0 if arm in ("ERM", "SAM") else 2.0 for arm in whole.ARMS}
    rows = [
        one(dtype, seed, arm, 50.0 + seed + gains[arm]) for dtype in whole.DTYPES for seed in (0, 1) for arm in gains
    ]
    text = whole.table([*rows, one("float32", 2, "SAM", 0.0)])
    assert text.startswith("2 pairs of seed and target.")
    assert "| DISAM-std, lam 0.7, float32 | 52.50 | +2.00 ± 0.00 |" in text
    assert "| SAM, bfloat16 | 50.50 | 0.00 ± 0.00 |" in text
