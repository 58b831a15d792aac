"""Descent on the penalised objective at w + e, ``descent_lam``: what must hold of it beside its formula.

The formula itself is in ``test_against_reference.py``, its cost in ``test_cost.py``, wrong values of it in
``test_bad_input.py``.
"""

import functools

import chex
import forms
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from support import rest, slow

import disam_jax

pytestmark = pytest.mark.dealt

PENALTIES = ("variance", "weighted_variance", "std")
PROBLEM = problems.make_problem(seed=40, num_domains=4)


def losses(params, batch=PROBLEM.batch):
    return disam_jax.per_domain(problems.loss)(params, batch)


def penalised(losses, lam, penalty):
    """The objective itself, for equal shares: both variances are the same then."""
    spread = jnp.std(losses) if penalty == "std" else jnp.var(losses)
    return jnp.mean(losses) - lam * spread


@pytest.mark.parametrize("zero", [0, *rest(0.0, -0.0, np.float32(0)), np.zeros(())], ids=repr)
@pytest.mark.parametrize("form", ["value_and_grad", *slow("transform_grouped", "accumulated", "transform_stacked")])
def test_zero_is_the_program_of_the_mean_loss(form, zero):
    program = lambda **options: str(jax.make_jaxpr(lambda p: forms.FORMS[form](p, 0.1, 0.3, **options))(PROBLEM))
    assert program(descent_lam=zero) == program() != program(penalty="std")
    if form != "transform_stacked":
        assert program() != program(descent_lam=1e-3)


@pytest.mark.parametrize("penalty", ["std", *slow("variance", "weighted_variance")])
def test_a_traced_zero_descends_on_the_mean_loss(penalty):
    step = lambda **options: disam_jax.value_and_grad(losses, 0.1, 0.3, penalty=penalty, **options)(PROBLEM.params)
    with_zero = jax.jit(lambda lam: step(descent_lam=lam))(jnp.float32(0))
    assert problems.relative_error(with_zero, jax.jit(step)()) < 1e-6


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("form", ["value_and_grad", *slow("transform_grouped", "transform_flat", "accumulated")])
def test_without_a_perturbation_it_is_the_gradient_of_the_objective(form, penalty):
    got = forms.program(form, penalty=penalty, descent_lam=0.7)(PROBLEM, 0.0, 0.3)["gradient"]
    want = jax.jit(jax.grad(lambda p: penalised(losses(p), 0.7, penalty)))(PROBLEM.params)
    assert problems.relative_error(got, want) < 2e-5


@pytest.mark.parametrize("penalty", PENALTIES)
def test_lam_and_minus_lam_move_the_spread_in_opposite_directions(penalty):
    """A step down the mean minus the penalty lets the losses part; of the wrong sign it brings them together."""

    def spread_after_a_step(lam):
        step = disam_jax.value_and_grad(losses, 0.1, 0.0, penalty=penalty, descent_lam=lam)
        _, gradient = step(PROBLEM.params)
        return jnp.std(losses(jax.tree.map(lambda w, g: w - 0.05 * g, PROBLEM.params, gradient)))

    below, plain, above = map(jax.jit(spread_after_a_step), (jnp.float32(-0.5), jnp.float32(0.0), jnp.float32(0.5)))
    assert below < plain - 1e-3 < above - 2e-3


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("form", ["value_and_grad", *slow("transform_grouped", "transform_flat"), "accumulated"])
def test_one_domain_has_no_penalty(form):
    problem = problems.make_problem(seed=5, num_domains=1)
    want = forms.program(form, penalty="std")(problem, 0.1, 0.3)["gradient"]
    for lam in (0.5, -3.0):
        got = forms.program(form, penalty="std", descent_lam=lam)(problem, 0.1, 0.3)["gradient"]
        chex.assert_trees_all_close(got, want, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("penalty", ["std", *slow("variance", "weighted_variance")])
def test_an_absent_domain_is_as_if_left_out(penalty, x64):
    problem = problems.make_problem(seed=7, num_domains=4, dtype=jnp.float64)
    weights, present = np.array([2.0, 0.0, 5.0, 1.0]), np.array([0, 2, 3])

    def gradient(batch, weights):
        given = lambda p: disam_jax.DomainLosses(losses(p, batch), weights)
        return jax.jit(disam_jax.value_and_grad(given, 0.2, 0.4, penalty=penalty, descent_lam=0.6))(problem.params)[1]

    whole = gradient(problem.batch, weights)
    assert (
        problems.relative_error(whole, gradient(jax.tree.map(lambda x: x[present], problem.batch), weights[present]))
        < 1e-13
    )
    want = problems.reference(problem, weights).step(
        problems.flatten(problem.params), 0.2, 0.4, penalty, descent_lam=0.6
    )
    assert problems.relative_error(whole, want["gradient"]) < 1e-12


@pytest.mark.usefixtures("nans_allowed")
def test_the_value_of_an_absent_domain_is_never_read_and_all_absent_is_zero():
    @jax.jit
    def gradient(value, weights):
        given = lambda p: disam_jax.DomainLosses(losses(p).at[1].set(value), weights)
        return disam_jax.value_and_grad(given, 0.2, 0.4, penalty="std", descent_lam=0.6)(PROBLEM.params)[1]

    one_absent = jnp.array([1.0, 0.0, 2.0, 1.0])
    chex.assert_trees_all_equal(gradient(jnp.nan, one_absent), gradient(0.0, one_absent))
    assert np.isfinite(problems.flatten(gradient(jnp.nan, one_absent))).all()
    assert not problems.flatten(gradient(0.0, jnp.zeros(4))).any()


@pytest.mark.usefixtures("nans_allowed")
@pytest.mark.parametrize("form", ["value_and_grad", *rest("accumulated")])
def test_a_domain_that_is_not_finite_surfaces(form):
    offset = jnp.zeros((4, 8)).at[1, 0].set(np.nan)
    broken = problems.Problem(PROBLEM.params, {**PROBLEM.batch, "offset": offset})
    got = forms.program(form, descent_lam=0.5)(broken, 0.1, 0.0)
    assert not np.isfinite(problems.flatten(got["gradient"])).any()


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("form", ["value_and_grad", "accumulated"])
def test_the_subset_of_an_ascent_leaves_the_descent_the_whole_batch(form, x64):
    problem = problems.make_problem(seed=41, dtype=jnp.float64)
    half = jax.tree.map(lambda x: x[:, :4], problem.batch)
    options = {"penalty": "std", "descent_lam": 0.6}
    if form == "accumulated":
        of_half = lambda p, one: problems.loss(p, jax.tree.map(lambda x: x[:4], one))
        step = disam_jax.accumulated_value_and_grad(problems.loss, 0.3, 0.4, ascent_loss_fn=of_half, **options)
    else:
        step = disam_jax.value_and_grad(losses, 0.3, 0.4, ascent_loss_fn=lambda p, _: losses(p, half), **options)
    w, whole = problems.flatten(problem.params), problems.reference(problem)
    ascent = problems.reference(problems.Problem(problem.params, half)).step(w, 0.3, 0.4, "std")
    at = w + ascent["perturbation"]
    want = whole.domain_weights(whole.losses_at(at), 0.6, "std") @ whole.gradients_at(at)
    assert problems.relative_error(jax.jit(step)(problem.params, problem.batch)[1], want) < 1e-12


@pytest.mark.slow
@pytest.mark.rest
def test_subset_value_and_grad_penalises_the_subset_alone(x64):
    problem = problems.make_problem(seed=42, dtype=jnp.float64)
    subset, rest = disam_jax.split_examples(problem.batch, 0.25)
    options = {"penalty": "std", "descent_lam": 0.6}
    got = jax.jit(disam_jax.subset_value_and_grad(losses, 0.3, 0.4, **options))(problem.params, problem.batch)[1]
    w, of = problems.flatten(problem.params), lambda batch: problems.reference(problems.Problem(problem.params, batch))
    perturbed, plain = of(subset).step(w, 0.3, 0.4, **options)["gradient"], of(rest).gradients_at(w).mean(0)
    assert problems.relative_error(got, 0.25 * perturbed + 0.75 * plain) < 1e-12


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("refresh_every", [1, 2])
def test_every_update_of_the_transformation_has_it_and_a_schedule_follows_the_count(refresh_every, x64):
    problem = problems.make_problem(seed=43, dtype=jnp.float64)
    reference, w = problems.reference(problem), problems.flatten(problem.params)
    schedule = lambda count: 0.3 * (count.astype(jnp.float64) + 1)
    tx = disam_jax.disam(0.2, 0.4, penalty="std", descent_lam=schedule, refresh_every=refresh_every)
    step = jax.jit(
        lambda state: tx.update(None, state, problem.params, domain_loss_fn=lambda p: losses(p, problem.batch))
    )
    state = tx.init(problem.params)
    at = w + reference.step(w, 0.2, 0.4, "std")["perturbation"]
    for count in range(3):
        got, state = step(state)
        want = reference.domain_weights(reference.losses_at(at), 0.3 * (count + 1), "std") @ reference.gradients_at(at)
        assert problems.relative_error(got, want) < 1e-11


@pytest.mark.parametrize("form", ["closure", *rest("stacked")])
def test_inject_hyperparams_may_make_an_array_of_the_zero(form):
    tx = optax.inject_hyperparams(disam_jax.disam, static_args=("num_domains", "refresh_every"))(rho=0.1, lam=0.5)
    assert "descent_lam" in tx.init(PROBLEM.params).hyperparams

    def step(tx):
        if form == "closure":
            return tx.update(None, tx.init(PROBLEM.params), PROBLEM.params, domain_loss_fn=losses)[0]
        values, stacked = disam_jax.per_domain_value_and_grad(problems.loss)(PROBLEM.params, PROBLEM.batch)
        given = {"domain_losses": values, "grad_fn": jax.grad(lambda p: jnp.mean(losses(p)))}
        return tx.update(stacked, tx.init(PROBLEM.params), PROBLEM.params, **given)[0]

    got, want = jax.jit(functools.partial(step, tx))(), jax.jit(functools.partial(step, disam_jax.disam(0.1, 0.5)))()
    chex.assert_trees_all_close(got, want, rtol=1e-6, atol=1e-8)


def of_parts(x, form, axis_name):
    options = {"penalty": "std", "descent_lam": 0.6, "axis_name": axis_name}
    if form == "accumulated":
        return disam_jax.accumulated_value_and_grad(problems.loss, 0.2, 0.4, **options)(PROBLEM.params, x)[1]
    return disam_jax.value_and_grad(losses, 0.2, 0.4, **options)(PROBLEM.params, x)[1]


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("form", ["value_and_grad", "accumulated"])
def test_the_weights_are_those_of_all_devices(form):
    halves = jax.tree.map(lambda x: jnp.stack([x[:, :4], x[:, 4:]]), PROBLEM.batch)
    by_device = jax.jit(jax.vmap(lambda x: of_parts(x, form, "devices"), axis_name="devices"))(halves)
    want = jax.jit(lambda: of_parts(PROBLEM.batch, form, None))()
    for device in range(2):
        assert problems.relative_error(jax.tree.map(lambda g, d=device: g[d], by_device), want) < 1e-5


@pytest.mark.slow
@pytest.mark.rest
def test_vmap_over_descent_lam_trains_a_sweep_in_one_program():
    step = lambda lam: disam_jax.value_and_grad(losses, 0.2, 0.4, penalty="std", descent_lam=lam)(PROBLEM.params)[1]
    together = jax.jit(jax.vmap(step))(jnp.array([-0.5, 0.0, 0.5]))
    alone = jax.jit(step)
    for place, lam in enumerate((-0.5, 0.0, 0.5)):
        assert problems.relative_error(jax.tree.map(lambda x, i=place: x[i], together), alone(lam)) < 1e-5
