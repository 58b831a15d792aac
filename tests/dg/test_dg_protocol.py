import dataclasses
import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disam_jax.dg import models, protocol

TRAINING = protocol.Training(steps=7, learning_rate=0.1, hidden=5, per_domain=3, standardise=True, evaluations=3)


def arrays(data):
    return protocol.Data(*map(jnp.asarray, (data.inputs, data.labels, data.domain_ids, data.starts, data.counts)))


@pytest.fixture(scope="module", autouse=True)
def _two_programs():
    """One for ERM and one for all perturbed methods, whatever rho, lam and data: in this whole file."""
    with pytest.MonkeyPatch.context() as patch:
        chex.clear_trace_counter()
        patch.setattr(protocol, "advance", chex.assert_max_traces(protocol.advance, n=2))
        yield


@pytest.fixture(scope="module")
def progress():
    return []


@pytest.fixture(scope="module")
def computed():
    return {}


@pytest.fixture
def histories(toy, progress, computed):
    """Computed by the first test that asks, inside a test since jax is strict only there."""
    if not computed:
        methods = (*protocol.three_methods(0.3, 0.5), protocol.Method("rho 0", True, 0.0, 0.5))
        computed.update(
            protocol.compare(
                toy, TRAINING, methods, num_seeds=3, on_progress=lambda name, done: progress.append((name, done))
            )
        )
    return computed


def test_progress_is_told_at_every_point(histories, progress):
    assert progress == [(name, done) for name in histories for done in (0, 3, 6, 7)]


def test_shapes_and_points(histories):
    assert list(histories) == ["ERM", "SAM", "DISAM", "rho 0"]
    assert TRAINING.measured_at == (0, 3, 6, 7)
    for history in histories.values():
        assert history.steps.tolist() == [0, 3, 6, 7]
        assert history.losses.shape == history.perturbed_losses.shape == history.accuracy.shape == (4, 3, 3, 3)
        np.testing.assert_array_equal(history.held_out, np.eye(3, dtype=bool))
        assert history.losses.dtype == np.float32


@pytest.mark.parametrize(
    ("steps", "evaluations", "points"),
    [(4, 2, (0, 2, 4)), (5, 2, (0, 3, 5)), (1, 20, (0, 1)), (3, 20, (0, 1, 2, 3)), (400, 20, tuple(range(0, 401, 20)))],
)
def test_measured_at(steps, evaluations, points):
    assert protocol.Training(steps=steps, learning_rate=1.0, evaluations=evaluations).measured_at == points


def test_all_methods_start_from_the_same_weights(histories):
    for history in histories.values():
        np.testing.assert_array_equal(history.losses[0], histories["ERM"].losses[0])
    start = histories["ERM"].losses[0]
    assert len(np.unique(start[..., 0])) == start[..., 0].size


def test_a_perturbation_of_length_zero_is_erm(histories):
    np.testing.assert_allclose(histories["rho 0"].losses, histories["ERM"].losses, rtol=2e-6)
    perturbed = histories["rho 0"].perturbed_losses
    is_source = np.broadcast_to(~np.eye(3, dtype=bool), perturbed.shape)
    np.testing.assert_allclose(perturbed[is_source], histories["rho 0"].losses[is_source], rtol=2e-6)


def test_the_methods_differ(histories):
    assert np.abs(histories["SAM"].losses[-1] - histories["ERM"].losses[-1]).max() > 1e-3
    assert np.abs(histories["SAM"].losses[-1] - histories["DISAM"].losses[-1]).max() > 1e-3


def test_a_run_among_others_is_the_run_alone(toy, histories):
    """Neither the other runs nor the chunks, the last of which is cut, make a difference."""
    seed, place = 2, 1
    every = protocol.make_targets(toy, range(3), True)
    target = jax.tree.map(lambda leaf: leaf[place], every)
    key = protocol.run_keys(3, every.index)[place, seed]
    run = protocol.start(key, (4, TRAINING.hidden, 3), TRAINING)
    rho, lam = jnp.float32(0.3), jnp.float32(0.5)
    step = jax.jit(functools.partial(protocol.train_step, training=TRAINING, perturbed=True))
    one, other = (step(run, key, target, jnp.int32(t), rho, lam, arrays(toy)) for t in (0, 1))
    assert jnp.abs(one.params[0]["kernel"] - other.params[0]["kernel"]).max() > 1e-4  # each step has its batch
    for t in range(TRAINING.steps):
        run = step(run, key, target, jnp.int32(t), rho, lam, arrays(toy))
    alone = protocol.measure(run.params, target, rho, lam, arrays(toy), penalty="variance")
    among = histories["DISAM"]
    np.testing.assert_allclose(alone.losses, among.losses[-1, seed, place], rtol=1e-5)
    np.testing.assert_allclose(
        alone.perturbed_losses[np.array([0, 2])], among.perturbed_losses[-1, seed, place, [0, 2]], rtol=1e-5
    )
    np.testing.assert_allclose(alone.accuracy, among.accuracy[-1, seed, place])


def test_nothing_of_the_held_out_domain_is_used(toy, histories):
    inputs, labels = toy.inputs.copy(), toy.labels.copy()
    inputs[toy.domain_ids == 1] = 50.0 * np.random.default_rng(0).normal(size=(11, 4))
    labels[toy.domain_ids == 1] = 0
    other = dataclasses.replace(toy, inputs=inputs, labels=labels)
    again = protocol.compare(other, TRAINING, protocol.three_methods(0.3, 0.5)[2:], 3)["DISAM"]
    before = histories["DISAM"]
    for field in ("losses", "perturbed_losses"):
        mine, its = getattr(again, field)[:, :, 1], getattr(before, field)[:, :, 1]
        np.testing.assert_array_equal(mine[..., [0, 2]], its[..., [0, 2]])
    assert (np.abs(again.losses[:, :, 1, 1] - before.losses[:, :, 1, 1]) > 0.1).all()


def test_the_program_scans_over_steps(toy):
    targets = protocol.make_targets(toy, range(3), True)
    keys = protocol.run_keys(2, targets.index)
    one_run = jax.eval_shape(lambda: protocol.start(keys[0, 0], (4, 5, 3), TRAINING))
    runs = jax.tree.map(lambda leaf: jnp.zeros((3, 2, *leaf.shape), leaf.dtype), one_run)
    one = jnp.float32(1.0)
    program = functools.partial(inspect.unwrap(protocol.advance), training=TRAINING, perturbed=True)
    jaxpr = jax.make_jaxpr(program)(runs, keys, targets, jnp.int32(0), one, one, arrays(toy))
    scans = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
    assert [scan.params["length"] for scan in scans] == [TRAINING.chunk]


def test_batches_come_from_the_sources_alone_and_reach_every_example(toy):
    sources = jnp.array([0, 2], jnp.int32)
    draw = jax.vmap(lambda key: protocol.draw_batch(key, arrays(toy), sources, 4))
    rows = np.asarray(draw(jax.random.split(jax.random.key(0), 500)))
    assert rows.shape == (500, 2, 4)
    for place, domain in enumerate((0, 2)):
        drawn, counts = np.unique(rows[:, place], return_counts=True)
        np.testing.assert_array_equal(drawn, np.flatnonzero(toy.domain_ids == domain))
        expected = 2000 / len(drawn)
        assert (np.abs(counts - expected) < 5.0 * np.sqrt(expected)).all()


def test_standardising_uses_the_sources_alone(toy):
    targets = protocol.make_targets(toy, [2, 0], True)
    seen = toy.inputs[toy.domain_ids != 2]
    np.testing.assert_allclose(targets.shift[0], seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(targets.scale[0], seen.std(0), rtol=1e-5)
    np.testing.assert_array_equal(targets.sources, [[0, 1], [1, 2]])
    flat = dataclasses.replace(toy, inputs=np.ones_like(toy.inputs))
    np.testing.assert_array_equal(protocol.make_targets(flat, [0], True).scale, np.ones((1, 4)))
    np.testing.assert_array_equal(protocol.make_targets(toy, [0], False).shift, np.zeros((1, 4)))


@pytest.mark.parametrize("lam", [0.0, 0.5, -0.5])
def test_measuring_against_a_loop_over_domains(toy, lam):
    """Unequal domains: means over a domain's own examples, each source counted once in the perturbation."""
    held_out, rho = 1, 0.4
    target = jax.tree.map(lambda leaf: leaf[0], protocol.make_targets(toy, [held_out], True))
    params = models.init_mlp(jax.random.key(3), (4, 5, 3))
    seen = toy.inputs[toy.domain_ids != held_out]
    inputs = (toy.inputs - seen.mean(0)) / seen.std(0)

    def loss_and_accuracy(params, domain):
        mine = toy.domain_ids == domain
        hidden = np.maximum(inputs[mine] @ params[0]["kernel"] + params[0]["bias"], 0.0)
        scores = hidden @ params[1]["kernel"] + params[1]["bias"]
        scores = scores - scores.max(1, keepdims=True)
        logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        right = toy.labels[mine]
        return -logs[np.arange(len(right)), right].mean(), (scores.argmax(1) == right).mean()

    plain = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    losses, accuracy = np.array([loss_and_accuracy(plain, domain) for domain in range(3)]).T

    def gradient(domain):
        mine = toy.domain_ids == domain
        batch = (jnp.asarray(inputs[mine], jnp.float32), jnp.asarray(toy.labels[mine]))
        return jax.grad(protocol.batch_loss)(params, batch)

    sources = [0, 2]
    mean = losses[sources].mean()
    weights = [1 / 2 - (2 * lam / 2) * (losses[domain] - mean) for domain in sources]
    combine = lambda one, two: weights[0] * np.asarray(one, np.float64) + weights[1] * np.asarray(two, np.float64)
    ascent = jax.tree.map(combine, *map(gradient, sources))
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(ascent)))
    perturbed = jax.tree.map(lambda w, g: w + rho * g / norm, plain, ascent)
    expected = [loss_and_accuracy(perturbed, domain)[0] for domain in sources]

    found = protocol.measure(params, target, jnp.float32(rho), jnp.float32(lam), arrays(toy), penalty="variance")
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    np.testing.assert_allclose(found.accuracy, accuracy, rtol=1e-6)
    np.testing.assert_allclose(found.perturbed_losses[np.array(sources)], expected, rtol=1e-4)


def test_the_mlp_is_rectified_and_scaled():
    layers = models.init_mlp(jax.random.key(0), (400, 300, 2))
    assert float(layers[0]["kernel"].std()) == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    one = [{"kernel": jnp.eye(2), "bias": jnp.array([0.0, -1.0])}, {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}]
    np.testing.assert_allclose(models.apply_mlp(one, jnp.array([[3.0, 4.0], [-2.0, 0.5]])), [[7.0], [1.0]])
