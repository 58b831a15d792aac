"""The ascent on a part of each domain's examples: explicit float64 computations, cost, and what it leaves alone."""

import importlib
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from support import slow

import disam_jax
import disam_jax.nnx
from disam_jax import variants
from disam_jax.dg import methods

pytestmark = pytest.mark.dealt

RHO, LAM, FRACTION = 0.3, 0.7, 0.25


@pytest.mark.parametrize(
    ("n", "fraction", "kept"),
    [
        (8, 0.25, [0, 4]),
        (8, 0.5, [0, 2, 4, 6]),
        (8, 1, list(range(8))),
        (8, 0.75, [0, 1, 2, 3, 4, 5]),
        (10, 0.25, [0, 3, 6]),
        (7, 0.3, [0, 2, 4]),
        (100, 0.07, [0, 14, 28, 42, 56, 70, 84]),
        (3, 1e-12, [0]),
        (1, 0.25, [0]),
    ],
)
@pytest.mark.parametrize("axis", [0, 1])
def test_the_part_is_spread_evenly_over_the_examples(n, fraction, kept, axis):
    shape = (n, 2) if axis == 0 else (2, n)
    batch = {"x": np.arange(2 * n).reshape(shape), "y": jnp.arange(2.0 * n).reshape(shape)}
    part = disam_jax.ascent_subset(batch, fraction, axis=axis)
    assert isinstance(part["x"], np.ndarray)
    for name, leaf in part.items():
        np.testing.assert_array_equal(leaf, np.take(np.asarray(batch[name]), kept, axis))
    assert len(kept) == max(1, math.ceil(fraction * n - 1e-6))


@pytest.mark.parametrize(
    ("batch", "fraction", "axis", "error", "words"),
    [
        (np.zeros((2, 4)), 0, 1, ValueError, "got 0"),
        (np.zeros((2, 4)), 1.5, 1, ValueError, "got 1.5"),
        (np.zeros((2, 4)), float("nan"), 1, ValueError, "got nan"),
        (np.zeros((2, 4)), jnp.float32(0.5), 1, TypeError, "static number"),
        (np.zeros((2, 4)), True, 1, TypeError, "static number"),
        (np.zeros(4), 0.5, 1, ValueError, r"batch \(4,\).*axis=0"),
        ({"x": np.zeros((2, 4)), "y": np.zeros((2, 3))}, 0.5, 1, ValueError, r"batch\['x'\] \(2, 4\), batch\['y'\]"),
        ({}, 0.5, 1, ValueError, "no arrays"),
    ],
)
def test_a_part_that_cannot_be_taken_is_an_error(batch, fraction, axis, error, words):
    with pytest.raises(error, match=words):
        disam_jax.ascent_subset(batch, fraction, axis=axis)


def part_of(batch):
    return disam_jax.ascent_subset(batch, FRACTION)


def transform(problem, rho, lam, part, **options):
    tx = disam_jax.disam(rho, lam, num_domains=problem.num_domains, **options)
    losses = disam_jax.per_domain(problems.loss)
    grads, state = tx.update(
        None,
        tx.init(problem.params),
        problem.params,
        domain_loss_fn=lambda p: losses(p, problem.batch),
        ascent_loss_fn=lambda p: losses(p, part(problem.batch)),
    )
    return grads, {name: optax.tree.get(state, name) for name in disam_jax.DisamInfo._fields[:-1]}


def transform_flat(problem, rho, lam, part, **options):
    tx = disam_jax.disam(rho, lam, num_domains=problem.num_domains, **options)
    flat = lambda batch: problems.Problem(problem.params, batch).flat

    def losses(p, batch):
        return disam_jax.mean_by_domain(problems.example_losses(p, batch), batch["domain"], problem.num_domains)

    grads, state = tx.update(
        None,
        tx.init(problem.params),
        problem.params,
        domain_loss_fn=lambda p: losses(p, flat(problem.batch)),
        ascent_loss_fn=lambda p: losses(p, flat(part(problem.batch))),
    )
    return grads, {name: optax.tree.get(state, name) for name in disam_jax.DisamInfo._fields[:-1]}


def transform_stacked(problem, rho, lam, part, **options):
    tx = disam_jax.disam(rho, lam, num_domains=problem.num_domains, **options)
    of_part = disam_jax.per_domain_value_and_grad(problems.loss)(problem.params, part(problem.batch))
    mean_loss = lambda p: jnp.mean(disam_jax.per_domain(problems.loss)(p, problem.batch))
    state = tx.init(problem.params)
    losses, stacked = of_part
    grads, state = tx.update(stacked, state, problem.params, domain_losses=losses, grad_fn=jax.grad(mean_loss))
    return grads, {name: optax.tree.get(state, name) for name in disam_jax.DisamInfo._fields[:-2]}


def value_and_grad(problem, rho, lam, part, **options):
    losses = disam_jax.per_domain(problems.loss)
    ascent = lambda p, batch: losses(p, part(batch))
    fn = disam_jax.value_and_grad(losses, rho, lam, ascent_loss_fn=ascent, with_info=True, **options)
    (_, info), grads = fn(problem.params, problem.batch)
    return grads, info._asdict()


def accumulated(problem, rho, lam, part, **options):
    def ascent(p, one_domain):
        return problems.loss(p, jax.tree.map(lambda x: part(x[None])[0], one_domain))

    fn = disam_jax.accumulated_value_and_grad(problems.loss, rho, lam, ascent_loss_fn=ascent, with_info=True, **options)
    (_, info), grads = fn(problem.params, problem.batch)
    return grads, info._asdict()


FORMS = {f.__name__: f for f in (value_and_grad, transform, transform_flat, transform_stacked, accumulated)}


def expected(problem, adaptive, variant, take=part_of):
    """The step in float64 numpy: losses and gradients of the part at w, of the whole batch at w + e."""
    part = problems.Problem(problem.params, take(problem.batch))
    w = problems.flatten(problem.params)
    found = problems.reference(part).step(w, RHO, LAM, adaptive=adaptive, variant=variant and (*variant, "ascent"))
    whole = problems.reference(problem)
    h = whole.gradients_at(w + found["perturbation"]).mean(0)
    found["perturbed_domain_losses"] = whole.losses_at(w + found["perturbation"])
    found["gradient"] = h
    if variant:
        r = found["domain_weights"] @ problems.reference(part).gradients_at(w)
        kind, alpha = variant
        found["gradient"] = (r + h) / 2 if kind == "sagm" else h - alpha * (r - (r @ h) / (h @ h) * h)
    return found


@pytest.mark.parametrize(
    "form", ["value_and_grad", "transform", *slow("transform_flat", "transform_stacked", "accumulated")]
)
@pytest.mark.parametrize(
    ("variant", "options"),
    [
        (None, {}),
        pytest.param(None, {"adaptive": True}, marks=pytest.mark.slow),
        pytest.param(("gsam", 0.3), {"variant": variants.gsam(0.3)}, marks=pytest.mark.slow),
        pytest.param(("sagm", 0.01), {"variant": variants.sagm(0.01)}, marks=pytest.mark.slow),
    ],
    ids=["sam", "asam", "gsam", "sagm"],
)
def test_ascent_is_of_the_part_and_descent_of_the_whole_batch(form, variant, options):
    problem = problems.make_problem(seed=3)
    grads, seen = jax.jit(lambda problem: FORMS[form](problem, RHO, LAM, part_of, **options))(problem)
    want = expected(problem, options.get("adaptive", False), variant)
    assert problems.relative_error(grads, want["gradient"]) < 2e-6
    for name in set(seen) & set(want):
        np.testing.assert_allclose(seen[name], want[name], rtol=3e-6, err_msg=name)
    # What the whole batch gives instead is another direction, so the comparison above has something to tell.
    plain = expected(problem, options.get("adaptive", False), variant, lambda batch: batch)
    assert problems.relative_error(plain["gradient"], want["gradient"]) > 1e-3


def square(w, x):
    """A loss of one domain of so few operations that running it one by one, for equal bits, is quick."""
    return jnp.mean((x @ w) ** 2)


def plain_examples():
    return np.random.default_rng(5).normal(size=(3, 8, 5)).astype(np.float32), jnp.ones(5)


@pytest.mark.parametrize("form", ["value_and_grad", *slow("transform", "accumulated")])
def test_the_whole_batch_as_its_part_changes_no_bit(form):
    x, w = plain_examples()
    losses = disam_jax.per_domain(square)

    def gradient(ascent):
        if form == "transform":
            tx = disam_jax.disam(RHO, LAM)
            of_batch = None if ascent is None else lambda w: losses(w, disam_jax.ascent_subset(x, 1))
            return tx.update(None, tx.init(w), w, domain_loss_fn=lambda w: losses(w, x), ascent_loss_fn=of_batch)[0]
        if form == "accumulated":
            return disam_jax.accumulated_value_and_grad(square, RHO, LAM, ascent_loss_fn=ascent)(w, x)[1]
        of_batch = None if ascent is None else lambda w, x: losses(w, disam_jax.ascent_subset(x, 1))
        return disam_jax.value_and_grad(losses, RHO, LAM, ascent_loss_fn=of_batch)(w, x)[1]

    whole = lambda w, one: square(w, disam_jax.ascent_subset(one, 1, axis=0))
    np.testing.assert_array_equal(gradient(whole), gradient(None))


def test_rho_zero_is_bitwise_the_gradient_of_the_whole_batch():
    x, w = plain_examples()
    losses = disam_jax.per_domain(square)
    _, grads = disam_jax.value_and_grad(losses, 0.0, LAM, ascent_loss_fn=lambda w, x: losses(w, part_of(x)))(w, x)
    np.testing.assert_array_equal(grads, jax.grad(lambda w: losses(w, x).mean())(w))


@pytest.mark.slow
def test_a_held_perturbation_is_that_of_the_part():
    problem, k, rate = problems.make_problem(seed=6), 2, 0.1
    losses = disam_jax.per_domain(problems.loss)
    tx = optax.chain(disam_jax.disam(RHO, LAM, refresh_every=k), optax.sgd(rate))

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(
            None,
            state,
            w,
            domain_loss_fn=lambda w: losses(w, problem.batch),
            ascent_loss_fn=lambda w: losses(w, part_of(problem.batch)),
        )
        return (optax.apply_updates(w, updates), state), None

    (got, _), _ = jax.lax.scan(step, (problem.params, tx.init(problem.params)), length=3)
    part, whole = problems.Problem(problem.params, part_of(problem.batch)), problems.reference(problem)
    w = problems.flatten(problem.params)
    e = np.zeros_like(w)
    for i in range(3):
        e = problems.reference(part).step(w, RHO, LAM)["perturbation"] if i % k == 0 else e
        w = w - rate * whole.gradients_at(w + e).mean(0)
    assert problems.relative_error(got, w) < 1e-6


class Net(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(4, momentum=0.9, use_scale=False, use_bias=False, rngs=nnx.Rngs(0))
        self.out = nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.out(self.norm(x))


@pytest.mark.slow
@pytest.mark.rest
def test_nnx_writes_the_statistics_of_the_part_and_hands_over_the_gradient_of_the_whole():
    problem = problems.make_problem(seed=7)
    classify = lambda z, y: optax.softmax_cross_entropy_with_integer_labels(z, y).mean(-1)

    def domain_losses(model, batch):
        m, n = batch["y"].shape
        return classify(model(batch["x"].reshape(m * n, -1)).reshape(m, n, -1), batch["y"])

    def by_hand(kernel, batch):
        x = batch["x"]
        mean, variance = x.mean((0, 1)), x.var((0, 1))
        return classify((x - mean[None, None]) / jnp.sqrt(variance + 1e-5)[None, None] @ kernel, batch["y"])

    model = Net()
    kernel, part = jnp.array(model.out.kernel[...]), part_of(problem.batch)
    ascent = lambda model, batch: (domain_losses(model, part_of(batch)), jnp.float32(FRACTION))
    fn = disam_jax.nnx.value_and_grad(
        lambda *args: (domain_losses(*args), jnp.float32(1)), RHO, LAM, ascent_loss_fn=ascent, has_aux=True
    )
    (loss, aux), grads = nnx.jit(fn)(model, problem.batch)

    at_w, jac = jax.jit(lambda k: (by_hand(k, part), jax.jacrev(by_hand)(k, part)))(kernel)
    b = problems.reference_weights(at_w, np.full(3, 1 / 3), LAM, "variance")
    g = np.tensordot(b, np.asarray(jac, np.float64), 1)
    e = jnp.asarray(RHO * g / np.linalg.norm(g), jnp.float32)
    want = jax.jit(jax.grad(lambda k: by_hand(k, problem.batch).mean()))(kernel + e)
    np.testing.assert_allclose(grads["out"]["kernel"][...], want, rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(loss, at_w.mean(), rtol=1e-5)
    np.testing.assert_allclose(model.norm.mean[...], 0.1 * np.asarray(part["x"]).mean((0, 1)), rtol=1e-4, atol=1e-6)
    assert aux == FRACTION


def test_a_step_costs_one_and_the_fraction():
    w = {"in": np.zeros((64, 512), np.float32), "out": np.zeros((512, 512), np.float32)}
    batch = np.zeros((4, 64, 64), np.float32)
    losses = disam_jax.per_domain(lambda w, x: jnp.mean((jnp.tanh(x @ w["in"]) @ w["out"]) ** 2))
    flops = lambda fn: jax.jit(fn).lower(w, batch).compile().cost_analysis()["flops"]
    plain = flops(jax.value_and_grad(lambda w, x: losses(w, x).mean()))
    ascent = lambda w, x: losses(w, part_of(x))
    got = flops(disam_jax.value_and_grad(losses, RHO, LAM, ascent_loss_fn=ascent)) / plain
    # The perturbation itself is a few operations for each parameter, next to 64 * 4 examples.
    assert 1.24 < got < 1.27


def test_no_example_moves_between_devices():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    losses = disam_jax.per_domain(lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2))
    # 8 devices with 8 examples of each of 3 domains.
    batch = jax.device_put(np.zeros((3, 64, 5), np.float32), NamedSharding(mesh, PartitionSpec(None, "data")))
    w = jax.device_put(np.zeros((5, 2), np.float32), NamedSharding(mesh, PartitionSpec()))
    fn = disam_jax.value_and_grad(losses, RHO, LAM, ascent_loss_fn=lambda w, x: losses(w, part_of(x)))
    text = jax.jit(fn).lower(w, batch).compile().as_text()
    assert "all-reduce" in text
    assert not any(name in text for name in ("all-gather", "collective-permute", "all-to-all"))


ROOT = pathlib.Path(__file__).parent.parent
STORED = ROOT / "benchmarks" / "results" / "below_two"


def rows(text):
    """The rows of a page's tables with an error in them: the other cells by the first."""
    cells = lambda line: [cell.strip() for cell in line.strip("|").split("|")]
    return {cells(x)[0]: cells(x)[1:] for x in text.splitlines() if x[:1] == "|" and "±" in x}


@pytest.mark.parametrize(("name", "number"), [("", 16), ("_seeds_20", 11)])
def test_numbers_of_the_page_are_those_of_the_stored_tables(name, number):
    earlier = (ROOT / "docs" / "fast.md").read_text().split("## Earlier measurements")[1]
    first, second = earlier.split("### On fresh seeds")
    page = rows(second if name else first)
    stored = [rows((STORED / f"{data}{name}.md").read_text()) for data in ("digits", "PACS96")]
    assert page.keys() == stored[0].keys() == stored[1].keys()
    assert len(page) == number
    for row, (cost, *shown) in page.items():
        digits, pacs = (each[row] for each in stored)
        assert shown == [digits[2], pacs[2], digits[3], pacs[3], digits[4], pacs[4]], row
        # The work on the parameters themselves is half a per cent of a step of that network.
        assert abs(float(digits[0]) - float(cost)) < 0.007, row


@pytest.fixture
def below_two(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.below_two")


@pytest.mark.slow
@pytest.mark.parametrize("data", ["digits", "PACS96"])
def test_the_stored_command_makes_the_stored_rows(below_two, data):
    page = (STORED / f"{data}.md").read_text()
    assert f"    python benchmarks/below_two.py --data {data}" in page.splitlines()
    assert list(rows(page)) == ["ERM", "SAM", "**DISAM**", *below_two.FIRST]


@pytest.mark.slow
@pytest.mark.parametrize(("fraction", "alone"), [(1.0, False), (0.5, False), (0.25, False), (0.25, True)])
def test_the_methods_of_the_benchmark_are_the_public_api_on_the_batch(below_two, fraction, alone):
    m, n, classes = 3, 16, 5
    network = below_two.make_network("mlp", (4,), classes, hidden=(8,))
    params, _ = network.init(jax.random.key(0))
    rng = np.random.default_rng(8)
    x = jnp.asarray(rng.normal(size=(m, n, 4)), jnp.float32)
    y = jnp.asarray(rng.integers(0, classes, (m, n)), jnp.int32)

    def losses(network, params, x, y):
        output = network.apply(params, {}, x.reshape(-1, 4), jax.random.key(0), True)
        each = optax.softmax_cross_entropy_with_integer_labels(output.logits, y.reshape(-1))
        return output, each.reshape(y.shape).mean(1)

    def forward(params):
        output, of_domains = losses(below_two.on_parts(network, m), params, x, y)
        by_domain = lambda values: values.reshape(m, n, -1)
        return methods.Outputs(of_domains, by_domain(output.logits), by_domain(output.features), output.state)

    method = below_two.cheaper(below_two.Way(fraction, alone=alone), params, n, classes, steps=10)
    hparams = {"rho": jnp.float32(RHO), "lam": jnp.float32(LAM)}
    batch = methods.Batch(x, y, jax.random.key(1))
    got, _, _ = jax.jit(lambda p: method.gradient(p, batch, forward, hparams, method.state(m)))(params)
    whole = lambda p, batch: losses(network, p, *batch)[1]
    ascent = lambda p, batch: whole(p, disam_jax.ascent_subset(batch, fraction))
    if alone:
        fn = disam_jax.subset_value_and_grad(whole, RHO, LAM, fraction=fraction)
    else:
        fn = disam_jax.value_and_grad(whole, RHO, LAM, ascent_loss_fn=ascent)
    assert problems.relative_error(got, jax.jit(fn)(params, (x, y))[1]) < 1e-6


WHOLE = disam_jax.per_domain(problems.loss)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda p, x: disam_jax.value_and_grad(WHOLE, ascent_loss_fn=0.25),
            TypeError,
            "must be a function.*got float",
        ),
        (
            lambda p, x: disam_jax.accumulated_value_and_grad(problems.loss, ascent_loss_fn=0.25),
            TypeError,
            "must be a function.*got float",
        ),
        (lambda p, x: disam_jax.nnx.value_and_grad(WHOLE, ascent_loss_fn=0.25), TypeError, "must be a function"),
        (
            lambda p, x: disam_jax.disam().update(
                None, disam_jax.disam().init(p), p, domain_loss_fn=lambda p: WHOLE(p, x), ascent_loss_fn=0.25
            ),
            TypeError,
            "must be a function",
        ),
        (
            lambda p, x: disam_jax.disam().update(
                p, disam_jax.disam().init(p), p, domain_losses=jnp.ones(3), ascent_loss_fn=lambda p: WHOLE(p, x)
            ),
            TypeError,
            "goes with domain_loss_fn",
        ),
        (
            lambda p, x: disam_jax.value_and_grad(WHOLE, ascent_loss_fn=lambda p, x: WHOLE(p, x).mean())(p, x),
            ValueError,
            "ascent_loss_fn returned 1 domain losses and domain_loss_fn 3",
        ),
        (
            lambda p, x: disam_jax.disam().update(
                None,
                disam_jax.disam().init(p),
                p,
                domain_loss_fn=lambda p: WHOLE(p, x),
                ascent_loss_fn=lambda p: WHOLE(p, x)[:2],
            ),
            ValueError,
            "ascent_loss_fn returned 2 domain losses and domain_loss_fn 3",
        ),
        (
            lambda p, x: disam_jax.value_and_grad(WHOLE, ascent_loss_fn=lambda p, x: WHOLE(p, x)[None])(p, x),
            ValueError,
            r"ascent_loss_fn: the domain losses must be \[M\]",
        ),
    ],
)
def test_a_wrong_ascent_loss_fn_is_named(call, error, words):
    problem = problems.make_problem()
    with pytest.raises(error, match=words):
        jax.eval_shape(call, problem.params, problem.batch)
