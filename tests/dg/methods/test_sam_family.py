"""SAM's relatives against their formulas in numpy over several steps, at the ends of their ranges, and out of them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
import sam_relatives
from sam_relatives import STEPS
from support import enable_x64, quick, slow

from disam_jax.dg.data import keys
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import METHODS, Batch, Outputs, Start, efficient_sam, look_sam
from disam_jax.dg.methods.sam_family import random_order, random_weights, value_of
from disam_jax.dg.models.network import Network, Output
from disam_jax.dg.sweep.hparams import check_grid, default_hparams, random_candidates
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.step import RunSpec, start, train_step

WITH_DISAM = [f"{name}+DISAM" for name in STEPS]
# Binary fractions, which are the same numbers in float32 and in float64.
HYPER = {
    "rho": 0.25,
    "lam": 0.5,
    "sigma": 0.75,
    "decay": 0.625,
    "alpha": 0.5,
    "esam_beta": 0.5,
    "delta": 0.75,
    "gate": 2.0,
    "gate_steps": 8.0,
    "fad_alpha": 0.25,
    "fad_beta": 0.5,
}
KEY, RATE, NUMBER = keys.run_key(0, 3), 0.25, 7
EXAMPLE = jax.ShapeDtypeStruct((4,), jnp.float32)


@functools.cache
def problem(num_domains=3):
    return problems.make_problem(seed=3, num_domains=num_domains, per_domain=5)


def hparams_of(name, **values):
    given = {"learning_rate": RATE, "weight_decay": 0.0, **HYPER, **values}
    return {each: jnp.float32(given[each]) for each in ("learning_rate", "weight_decay", *METHODS[name].hparams)}


def batch_of(data, step):
    return Batch(data.batch["x"], data.batch["y"], keys.method_key(keys.step_key(KEY, step)), step)


def forward_of(data):
    """Of a network whose running statistics are one number of the batch at w."""

    def forward(params, x=data.batch["x"], y=data.batch["y"]):
        logits = problems.logits(params, x.reshape(y.size, -1))
        # As the networks of the benchmark, whose logits are float32 whatever computes them.
        logits = logits.astype(jnp.float64 if logits.dtype == jnp.float64 else jnp.float32).reshape(*y.shape, -1)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(1)
        return Outputs(losses, logits, logits, {"first": logits[0, 0, 0]})

    return forward


@functools.cache
def draws(steps):
    """What DGSAM and ESAM draw at each step."""
    key = lambda step: batch_of(problem(), step).key
    order = jax.jit(jax.vmap(lambda step: random_order(key(step), 3)))
    weights = jax.jit(
        jax.vmap(lambda step: random_weights(key(step), problem().params, jnp.float32(HYPER["esam_beta"])))
    )
    perturbed = jax.device_get(weights(jnp.arange(steps)))
    return np.asarray(order(jnp.arange(steps))), [
        problems.flatten(jax.tree.map(lambda leaf, step=step: leaf[step], perturbed)) for step in range(steps)
    ]


def at(step):
    """The problem in numpy, with what is drawn at a step."""
    data = problem()
    alone = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, 1, *leaf.shape[2:]), data.batch)
    each = problems.reference(problems.Problem(data.params, alone))
    order, weights = (drawn[step] for drawn in draws(NUMBER))
    return sam_relatives.At(problems.reference(data), each.losses_at, each.gradients_at, order, weights)


def expected(name, number, **values):
    """Points after each step of a run in numpy, and what the method kept at the end."""
    w, kept, points = problems.flatten(problem().params), None, []
    for step in range(number):
        gradient, kept = sam_relatives.step(name, at(step), w, {**HYPER, **values}, kept, step)
        w = w - RATE * gradient
        points.append(w)
    return points, kept


def network():
    def apply(params, state, x, key, train):
        features = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"][None])
        logits = features @ params["out"]["w"] + params["out"]["b"][None]
        return Output(logits, features, {"mean": features.mean(0)} if train else state)

    return Network(lambda key: (problem().params, {"mean": jnp.zeros(6, jnp.float32)}), apply)


@functools.cache
def trained(name, number=NUMBER, rhos=(0.25, 0.5)):
    """Runs side by side with some rho, after each step: leaves [steps, runs, ...]."""
    fixed = {"network": network(), "method": METHODS[name], "config": TrainConfig(momentum=0.0)}
    batch = problem().batch

    def run(hparams):
        spec = RunSpec(KEY, jnp.int32(0), jnp.int32(3), hparams)

        def body(run, step):
            run = train_step(run, spec, step, batch["x"], batch["y"], **fixed)
            return run, run

        return jax.lax.scan(body, start(spec, **fixed, num_sources=3, example=EXAMPLE), jnp.arange(number))[1]

    hparams = [hparams_of(name, rho=rho) for rho in rhos]
    return jax.device_get(jax.jit(jax.vmap(run, out_axes=1))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *hparams)))


def of_run(tree, step, place):
    return jax.tree.map(lambda leaf: leaf[step, place], tree)


@pytest.mark.parametrize("name", [*quick(STEPS, "LookSAM", "DGSAM"), *slow(*WITH_DISAM)])
def test_runs_side_by_side_are_those_of_the_formula(name):
    """Seven steps, so that LookSAM perturbs twice and AE-SAM takes both kinds of step."""
    runs = trained(name)
    for place, rho in enumerate((0.25, 0.5)):
        points, kept = expected(name, NUMBER, rho=rho)
        for step, w in enumerate(points):
            assert problems.relative_error(of_run(runs.params, step, place), w) < 1e-5
        state = of_run(runs.method_state, -1, place)
        if name.startswith("AE-SAM"):
            assert 0 < sum(kept[2]) < NUMBER
            np.testing.assert_allclose([state["mean"], state["variance"]], kept[:2], rtol=1e-4)
        elif kept is not None:
            assert problems.relative_error(state, kept) < 1e-4
    # What the network keeps of a batch is that at w, not at another point on the way.
    hidden = problem().params["hidden"]
    seen = np.tanh(np.asarray(problem().batch["x"]).reshape(15, -1) @ np.asarray(hidden["w"]) + np.asarray(hidden["b"]))
    np.testing.assert_allclose(of_run(runs.state["mean"], 0, 0), seen.mean(0), rtol=1e-5, atol=1e-6)


def in_dtype(dtype, num_domains=3):
    data = problem(num_domains)
    return problems.Problem(
        jax.tree.map(lambda leaf: leaf.astype(dtype), data.params),
        {"x": data.batch["x"].astype(dtype), "y": data.batch["y"]},
    )


def first_state(name, data):
    method = METHODS[name]
    start = Start(data.num_domains, data.params)
    return method.state(data.num_domains) if method.init is None else method.init(start)


@pytest.mark.parametrize("name", ["LookSAM+DISAM", *slow(*STEPS, *(each for each in WITH_DISAM if "Look" not in each))])
def test_in_float64_all_digits_are_those_of_the_formula(name):
    points, _ = expected(name, NUMBER)
    with enable_x64(True):
        data = in_dtype(np.float64)
        hparams = {each: jnp.float32(HYPER[each]) for each in METHODS[name].hparams}

        def body(carry, step):
            params, state = carry
            gradient, _, state = METHODS[name].gradient(params, batch_of(data, step), forward_of(data), hparams, state)
            params = jax.tree.map(lambda w, g: w - RATE * g, params, gradient)
            return (params, state), params

        start = data.params, first_state(name, data)
        found = jax.jit(lambda start: jax.lax.scan(body, start, jnp.arange(NUMBER, dtype=jnp.int32))[1])(start)
        for step, w in enumerate(points):
            assert problems.relative_error(jax.tree.map(lambda leaf, step=step: leaf[step], found), w) < 1e-11


def gradient_of(method, data, step=0, state=None, **values):
    """The gradient of a method at the parameters of a problem, and its state after that."""
    hparams = {**HYPER, "lam": 0.0, **values}
    state = () if state is None else state
    compute = jax.jit(lambda params, state: method(params, batch_of(data, step), forward_of(data), hparams, state))
    gradient, _, state = compute(data.params, state)
    return gradient, state


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STEPS, *WITH_DISAM])
def test_half_precision_is_computed_in_single_and_rounded_once(name):
    wanted, _ = sam_relatives.step(name, at(0), problems.flatten(problem().params), HYPER)
    data = in_dtype(jnp.bfloat16)
    start = first_state(name, data)
    gradient, state = gradient_of(METHODS[name].gradient, data, state=start, lam=HYPER["lam"])
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state))
    if not name.startswith("ESAM"):  # which examples it takes turns on the last digit
        assert problems.relative_error(gradient, wanted) < 0.1


FAMILY = {name: METHODS[name].gradient for name in [*STEPS, *WITH_DISAM, "SAM", "ERM"]}
ZEROS, LONG = {"mean": 0.0, "variance": 0.0}, {"mean": 1e6, "variance": 0.0}
SOME = "gradients of another problem"


# A method, the state and the step at which it is, and the values at which it is another one.
ENDS = [
    (efficient_sam(fraction=1.0), (), 3, {"esam_beta": 1.0}, "SAM"),
    ("F-SAM", SOME, 3, {"sigma": 0.0}, "SAM"),
    (look_sam(every=1), SOME, 3, {}, "SAM"),
    ("LookSAM", SOME, 5, {}, "SAM"),
    ("LookSAM", SOME, 4, {"alpha": 0.0}, "ERM"),
    ("AE-SAM", ZEROS, 0, {}, "SAM"),
    ("AE-SAM", LONG, 4, {"delta": 0.999}, "ERM"),
    ("FAD", (), 3, {"fad_alpha": 1.0, "fad_beta": 1.0}, "SAM"),
    ("FAD", (), 3, {"rho": 0.0}, "ERM"),
    ("DGSAM", (), 3, {"rho": 0.0}, "ERM"),
    *(
        (f"{name}+DISAM", state, 3, {"lam": 0.0}, name)
        for name, state in zip(STEPS, (SOME, SOME, (), ZEROS, (), ()), strict=True)
    ),
]


@pytest.mark.parametrize(
    ("method", "state", "step", "values", "other"),
    [ENDS[0], *(pytest.param(*end, marks=pytest.mark.slow) for end in ENDS[1:])],
)
def test_a_method_at_the_end_of_its_range_is_another_one(method, state, step, values, other):
    data = problem()
    state = problems.make_problem(seed=8).params if state is SOME else jax.tree.map(jnp.float32, state)
    # The states of a method and of its form with DISAM are alike.
    of_other = () if other in ("SAM", "ERM") else state
    got, _ = gradient_of(FAMILY.get(method, method) if isinstance(method, str) else method, data, step, state, **values)
    wanted, _ = gradient_of(FAMILY[other], data, step, of_other, **values)
    assert problems.relative_error(got, wanted) < 1e-5


@pytest.mark.slow
def test_gradual_perturbation_of_one_domain_is_sam():
    one = problem(num_domains=1)
    got, wanted = (gradient_of(FAMILY[name], one)[0] for name in ("DGSAM", "SAM"))
    assert problems.relative_error(got, wanted) < 1e-5


@pytest.mark.parametrize("name", ["LookSAM", *slow(*(each for each in STEPS if each != "LookSAM"))])
@pytest.mark.parametrize("step", [0, *slow(1)])
def test_a_zero_gradient_is_not_divided_by_its_norm(name, step):
    data = problem()
    constant = lambda params, x=data.batch["x"], y=data.batch["y"]: jax.tree.map(
        lambda leaf: 0 * leaf, forward_of(data)(params, x, y)
    )
    hparams = {each: jnp.float32(HYPER[each]) for each in METHODS[name].hparams}
    batch, method = batch_of(data, step), METHODS[name]
    compute = jax.jit(lambda params, state: method.gradient(params, batch, constant, hparams, state)[0])
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(compute(data.params, first_state(name, data))))


@pytest.mark.parametrize(("name", "stays"), [("LookSAM", True), ("AE-SAM", False)])
def test_runs_side_by_side_skip_the_pass_that_none_of_them_takes(name, stays):
    """All runs of a program are at the same step, and each has a gradient of its own."""
    fixed = {"network": network(), "method": METHODS[name], "config": TrainConfig(momentum=0.0)}
    batch = problem().batch

    def step_all(hparams, step):
        spec = RunSpec(KEY, jnp.int32(0), jnp.int32(3), hparams)
        run = start(spec, **fixed, num_sources=3, example=EXAMPLE)
        return train_step(run, spec, step, batch["x"], batch["y"], **fixed)

    hparams = jax.tree.map(lambda value: jnp.stack([value, value]), hparams_of(name))
    alone = jax.make_jaxpr(step_all)(hparams_of(name), jnp.int32(0))
    together = jax.make_jaxpr(jax.vmap(step_all, in_axes=(0, None)))(hparams, jnp.int32(0))
    assert " cond[" in str(alone)
    assert (" cond[" in str(together)) == stays


def test_the_gate_falls_over_the_steps_of_a_run():
    for candidate in [
        default_hparams(METHODS["AE-SAM"], TrainConfig(steps=300)),
        *random_candidates(METHODS["AE-SAM"], TrainConfig(steps=300), 3, seed=0),
    ]:
        assert candidate["gate_steps"] == pytest.approx(300, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "value", "words"),
    [
        (look_sam, 0, r"every must be a whole number of at least 1, got 0: write look_sam\(every=5\)"),
        (look_sam, 2.0, "every must be a whole number"),
        (look_sam, True, "every must be a whole number"),
        (efficient_sam, 0.0, r"fraction must be in \(0, 1\], got 0.0: write efficient_sam\(fraction=0.5\)"),
        (efficient_sam, 1.5, "fraction must be in"),
        (efficient_sam, float("nan"), "fraction must be in"),
        (efficient_sam, "half", "fraction must be in"),
    ],
)
def test_a_wrong_argument_is_named(make, value, words):
    with pytest.raises(ValueError, match=words):
        make(value)


WRONG = [
    ("rho", -0.1, "finite and not negative"),
    ("sigma", -1.0, "finite and not negative"),
    ("decay", -0.5, "in [0, 1)"),
    ("decay", 1.0, "in [0, 1)"),
    ("delta", 1.0, "in [0, 1)"),
    ("alpha", float("inf"), "finite and not negative"),
    ("esam_beta", 0.0, "in (0, 1]"),
    ("esam_beta", 1.5, "in (0, 1]"),
    ("fad_alpha", 1.5, "in [0, 1]"),
    ("fad_beta", float("nan"), "finite and not negative"),
    ("gate_steps", 0.0, "positive and finite"),
]


@pytest.mark.parametrize(("name", "value", "wanted"), WRONG)
def test_a_hyperparameter_out_of_range_is_refused(name, value, wanted, nans_allowed):
    """Where it is known: on the command line, and in a call; one that is traced makes the gradient NaN."""
    with pytest.raises(InputError, match=re.escape(f"--grid {name} must be ")) as caught:
        check_grid({name: [value]}, METHODS)
    assert wanted in str(caught.value)
    with pytest.raises(InputError, match=re.escape(f"hparams['{name}'] must be ")):
        value_of({name: value}, name)
    assert np.isnan(jax.jit(lambda value: value_of({name: value}, name))(jnp.float32(value)))


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_a_gradient_of_a_wrong_rho_is_nan(name, nans_allowed):
    data = problem()
    hparams = {each: jnp.float32(HYPER[each]) for each in METHODS[name].hparams}

    def compute(params, rho, state):
        options = {**hparams, "rho": rho}
        return METHODS[name].gradient(params, batch_of(data, 0), forward_of(data), options, state)[0]

    gradient = jax.jit(compute)(data.params, jnp.float32(-0.1), first_state(name, data))
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_orders_and_weights_are_drawn_evenly():
    made = jax.random.split(KEY, 3000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: random_order(key, 3)))(made))
    orders, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(orders) == 6
    assert (np.abs(counts - 500) < 5 * np.sqrt(500)).all()
    drawn = jax.jit(lambda key, share: random_weights(key, {"a": jnp.zeros(4000), "b": jnp.zeros(4000)}, share))
    found = drawn(KEY, jnp.float32(0.3))
    assert abs(float(found["a"].mean()) - 0.3) < 5 * np.sqrt(0.21 / 4000)
    assert abs(float((found["a"] == found["b"]).mean()) - 0.58) < 5 * np.sqrt(0.25 / 4000)
