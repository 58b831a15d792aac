"""What must hold of every step, form by form and variant by variant."""

import functools

import chex
import forms
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from support import enable_x64, rest, slow

import disam_jax
from disam_jax import variants

pytestmark = pytest.mark.dealt


def closure(problem):
    return lambda p: disam_jax.per_domain(problems.loss)(p, problem.batch)


def one_update(tx, problem, **extra):
    extra = extra or {"domain_loss_fn": closure(problem)}
    return tx.update(None, tx.init(problem.params), problem.params, **extra)


# --- lam = 0 is SAM ---------------------------------------------------------------------------------------------------


def optax_sam(rho, base):
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
    return optax.contrib.sam(base, adversary, opaque_mode=True)


@pytest.mark.parametrize("form", ["transform", *rest("sam", "value_and_grad", "accumulated")])
def test_lam_zero_is_optax_sam_over_fifty_steps(form, x64):
    problem = problems.make_problem(seed=3, dtype=jnp.float64)
    # optax divides by the bare norm, so eps, which would show at 1e-12, is 0 here.
    rho, base = 0.1, optax.sgd(0.1, momentum=0.9)
    mean_loss = lambda p: jnp.mean(closure(problem)(p))

    def theirs(params, tx):
        def step(carry, _):
            params, state = carry
            grad_fn = jax.grad(lambda p, _: mean_loss(p))
            updates, state = tx.update(grad_fn(params, 0), state, params, grad_fn=grad_fn)
            return (optax.apply_updates(params, updates), state), params

        return jax.lax.scan(step, (params, tx.init(params)), length=50)[0][0]

    def ours(params):
        if form in ("transform", "sam"):
            first = disam_jax.disam(rho, 0.0, eps=0.0) if form == "transform" else disam_jax.sam(rho, eps=0.0)
            gradient, tx = None, optax.chain(first, base)
        elif form == "value_and_grad":
            gradient, tx = disam_jax.value_and_grad(lambda p, _: closure(problem)(p), rho, 0.0, eps=0.0), base
        else:
            gradient, tx = disam_jax.accumulated_value_and_grad(problems.loss, rho, 0.0, eps=0.0), base

        def step(carry, _):
            params, state = carry
            if gradient is None:
                updates, state = tx.update(None, state, params, domain_loss_fn=closure(problem))
            else:
                updates, state = tx.update(gradient(params, problem.batch)[1], state, params)
            return (optax.apply_updates(params, updates), state), params

        return jax.lax.scan(step, (params, tx.init(params)), length=50)[0][0]

    with jax.numpy_dtype_promotion("standard"):
        want = jax.jit(functools.partial(theirs, tx=optax_sam(rho, base)))(problem.params)
    got = jax.jit(ours)(problem.params)
    assert problems.relative_error(got, want) < 1e-12
    moved = problems.relative_error(got, problem.params)
    assert moved > 0.1


# --- rho = 0 is the plain gradient, bitwise ---------------------------------------------------------------------------


def plain_gradient(form, problem):
    mean_loss = lambda p: jnp.mean(closure(problem)(p))
    if form == "transform_flat":
        flat = problem.flat
        losses = lambda p: disam_jax.mean_by_domain(
            problems.example_losses(p, flat), flat["domain"], problem.num_domains
        )
        mean_loss = lambda p: jnp.sum(losses(p).values * (losses(p).weights / jnp.sum(losses(p).weights)))
    if form == "accumulated":
        # Plain accumulation over the domains, in the same order.
        def add(total, one):
            return jax.tree.map(jnp.add, total, jax.grad(problems.loss)(problem.params, one)), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, problem.params), problem.batch)
        return jax.tree.map(lambda g: g / 3, total)
    if form == "subset_begun":
        # A branch of a conditional is one program.
        return jax.jit(jax.grad(mean_loss))(problem.params)
    return jax.grad(mean_loss)(problem.params)


@pytest.mark.parametrize("dtype", [jnp.float32, *slow(jnp.bfloat16)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("variant", ["sam", *slow("asam")])  # whose result is the perturbed gradient itself
@pytest.mark.parametrize("form", ["value_and_grad", *rest(*(form for form in forms.FORMS if form != "value_and_grad"))])
@pytest.mark.parametrize("traced", [True, *slow(False)])
def test_rho_zero_is_bitwise_the_plain_gradient(form, variant, dtype, traced):
    if form == "accumulated" and dtype == jnp.bfloat16:
        pytest.skip("this form sums in float32 before it rounds to bfloat16, on purpose")
    problem = problems.make_problem(seed=4, dtype=dtype)
    rho = jnp.zeros((), jnp.float32) if traced else 0.0
    _, options = forms.VARIANTS[variant]
    got = forms.FORMS[form](problem, rho, 0.3, **options)["gradient"]
    chex.assert_trees_all_equal(got, plain_gradient(form, problem))


# --- one domain is SAM for every lam ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", forms.FORMS)
@pytest.mark.parametrize("penalty", ["std", *slow("variance", "weighted_variance")])
def test_one_domain_is_sam_for_every_lam(form, penalty):
    problem = problems.make_problem(seed=5, num_domains=1)
    step = forms.program(form, penalty=penalty)
    want = step(problem, 0.1, 0.0)["gradient"]
    for lam in (0.1, 10.0, -3.0):
        got = step(problem, 0.1, lam)["gradient"]
        chex.assert_trees_all_equal(got, want)


def test_a_scalar_loss_is_one_domain():
    problem = problems.make_problem(seed=5, num_domains=1)
    tx = disam_jax.disam(0.1, 0.7)
    scalar, _ = one_update(tx, problem, domain_loss_fn=lambda p: closure(problem)(p)[0])
    vector, _ = one_update(tx, problem)
    chex.assert_trees_all_equal(scalar, vector)


# --- domains: order, absence ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "variant"), forms.table())
def test_the_order_of_the_domains_does_not_matter(form, variant, x64):
    problem = problems.make_problem(seed=6, num_domains=4, dtype=jnp.float64)
    order = np.array([2, 0, 3, 1])
    permuted = problems.Problem(problem.params, jax.tree.map(lambda x: x[order], problem.batch))
    _, options = forms.VARIANTS[variant]
    step = forms.program(form, **options)
    one, other = step(problem, 0.2, 0.4), step(permuted, 0.2, 0.4)
    assert problems.relative_error(other["gradient"], one["gradient"]) < 1e-13
    np.testing.assert_allclose(other["domain_weights"], np.asarray(one["domain_weights"])[order], rtol=1e-12)


def shared_forms(problem, weights, present, rho, lam, **options):
    """The forms that take weights: closure and stacked, each on all domains and on the present ones alone."""
    batch = jax.tree.map(lambda x: x[present], problem.batch)
    whole = lambda p: disam_jax.per_domain(problems.loss)(p, problem.batch)
    part = lambda p: disam_jax.per_domain(problems.loss)(p, batch)

    def stacked(f, weights):
        tx = disam_jax.disam(rho, lam, **options)
        mean = lambda p: jnp.sum(jnp.asarray(weights) / np.sum(weights) * f(p))

        @jax.jit
        def step(params):
            given = {"domain_losses": disam_jax.DomainLosses(f(params), weights), "grad_fn": jax.grad(mean)}
            return tx.update(jax.jacrev(f)(params), tx.init(params), params, **given)[0]

        return step(problem.params)

    def closed(f, weights):
        fn = disam_jax.value_and_grad(lambda p: disam_jax.DomainLosses(f(p), weights), rho, lam, **options)
        return jax.jit(fn)(problem.params)[1]

    weights = np.asarray(weights, np.float64)
    return [(form(whole, weights), form(part, weights[present])) for form in (closed, stacked)]


@pytest.mark.parametrize("penalty", ["variance", *slow("weighted_variance", "std")])
@pytest.mark.parametrize("variant", ["sam", "gsam_clean", *slow("asam", "gsam", "sagm", "sagm_clean", "sagm_adaptive")])
def test_an_absent_domain_is_as_if_left_out(variant, penalty, x64):
    problem = problems.make_problem(seed=7, num_domains=4, dtype=jnp.float64)
    _, options = forms.VARIANTS[variant]
    weights, present = np.array([2.0, 0.0, 5.0, 1.0]), np.array([0, 2, 3])
    for whole, part in shared_forms(problem, weights, present, 0.2, 0.4, penalty=penalty, **options):
        assert problems.relative_error(whole, part) < 1e-13


@pytest.mark.usefixtures("nans_allowed")
@pytest.mark.parametrize("penalty", ["variance", "weighted_variance", "std"])
def test_the_value_of_an_absent_domain_is_never_read(penalty):
    problem = problems.make_problem(seed=7)

    @jax.jit
    def run(value):
        f = lambda p: disam_jax.DomainLosses(closure(problem)(p).at[1].set(value), jnp.array([1.0, 0.0, 2.0]))
        return disam_jax.value_and_grad(f, 0.2, 0.4, penalty=penalty, with_info=True)(problem.params)

    chex.assert_trees_all_equal(run(jnp.nan), run(0.0))
    assert np.isfinite(run(jnp.nan)[0][0])


@pytest.mark.usefixtures("nans_allowed")
def test_the_stacked_gradient_of_an_absent_domain_is_never_read():
    problem = problems.make_problem(seed=7)
    losses, grads = disam_jax.per_domain_value_and_grad(problems.loss)(problem.params, problem.batch)
    weights = jnp.array([1.0, 0.0, 2.0])
    grad_at = jax.grad(lambda p: jnp.sum(weights / 3 * closure(problem)(p)))
    tx = disam_jax.disam(0.2, 0.4)

    def run(value):
        rows = jax.tree.map(lambda g: g.at[1].set(value), grads)
        state = tx.init(problem.params)
        given = disam_jax.DomainLosses(losses, weights)
        return tx.update(rows, state, problem.params, domain_losses=given, grad_fn=grad_at)[0]

    chex.assert_trees_all_equal(run(jnp.nan), run(0.0))
    assert np.isfinite(problems.flatten(run(jnp.nan))).all()


@pytest.mark.slow
@pytest.mark.rest
def test_a_flat_batch_without_a_domain_is_as_if_the_domain_did_not_exist(x64):
    problem = problems.make_problem(seed=8, num_domains=2, dtype=jnp.float64)
    flat = problem.flat
    f = lambda ids, m: lambda p: disam_jax.mean_by_domain(problems.example_losses(p, flat), ids, m)
    _, two = jax.jit(disam_jax.value_and_grad(f(flat["domain"], 2), 0.2, 0.5))(problem.params)
    _, five = jax.jit(disam_jax.value_and_grad(f(flat["domain"] * 3, 5), 0.2, 0.5))(problem.params)
    assert problems.relative_error(five, two) < 1e-13


@pytest.mark.parametrize("variant", forms.VARIANTS)
def test_all_domains_absent_is_a_zero_gradient(variant):
    problem = problems.make_problem(seed=9)
    _, options = forms.VARIANTS[variant]
    fn = disam_jax.value_and_grad(
        lambda p: disam_jax.DomainLosses(closure(problem)(p), jnp.zeros(3)), 0.1, 0.5, with_info=True, **options
    )
    (loss, info), grads = fn(problem.params)
    assert loss == 0
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, problem.params))
    assert all(np.isfinite(x).all() for x in info)


def test_unequal_weights_against_the_reference(x64):
    problem = problems.make_problem(seed=10, num_domains=3, dtype=jnp.float64)
    weights = np.array([5.0, 12.0, 19.0])
    reference = problems.reference(problem, weights)
    for penalty in ("variance", "weighted_variance", "std"):
        fn = disam_jax.value_and_grad(
            lambda p: disam_jax.DomainLosses(closure(problem)(p), weights), 0.2, 0.5, penalty=penalty, with_info=True
        )
        (loss, info), grads = jax.jit(fn)(problem.params)
        want = reference.step(problems.flatten(problem.params), 0.2, 0.5, penalty)
        assert problems.relative_error(grads, want["gradient"]) < 1e-12
        np.testing.assert_allclose(loss, want["loss"], rtol=1e-13)
        np.testing.assert_allclose(info.domain_weights, want["domain_weights"], rtol=1e-12)


# --- zero and non-finite gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-12, 0.0])
@pytest.mark.parametrize("variant", forms.VARIANTS)
def test_zero_gradient_gives_zero_perturbation_and_no_nan(variant, eps):
    _, options = forms.VARIANTS[variant]
    params = {"w": jnp.ones(3)}
    every = jnp.ones((), jnp.int32)  # an array: the perturbation is held in the state
    tx = disam_jax.disam(0.1, 0.5, refresh_every=every, eps=eps, **options)
    flat_loss = lambda p: jnp.stack([jnp.sum(p["w"] * 0.0) + 1.0, jnp.sum(p["w"] * 0.0) + 2.0])
    grads, state = tx.update(None, tx.init(params), params, domain_loss_fn=flat_loss)
    chex.assert_trees_all_equal(grads, {"w": jnp.zeros(3)})
    chex.assert_trees_all_equal(state.perturbation, {"w": jnp.zeros(3)})


@pytest.mark.slow
@pytest.mark.parametrize("point", ["minimum", "elsewhere"])
@pytest.mark.parametrize("variant", ["gsam", *slow("sagm_adaptive", "sam", "asam", "sagm", "gsam_clean", "sagm_clean")])
def test_differentiating_through_the_transformation_has_no_nan(variant, point):
    _, options = forms.VARIANTS[variant]
    tx = disam_jax.disam(0.1, 0.5, **options)
    targets = jnp.array([1.0, 1.0])

    def after_one_step(w):
        f = lambda w: jnp.stack([jnp.sum((w - targets) ** 2), 3 * jnp.sum((w - targets) ** 2)])
        updates, _ = tx.update(None, tx.init(w), w, domain_loss_fn=f)
        return jnp.sum((w - 0.1 * updates) ** 2)

    w = targets if point == "minimum" else jnp.array([0.3, 2.0])
    derivative = jax.grad(after_one_step)(w)
    assert np.isfinite(derivative).all()
    assert np.isfinite(jax.hessian(after_one_step)(w)).all()
    if point == "elsewhere":
        # Central differences in float64 say that the derivative is not only finite but right.
        with enable_x64(True):
            targets, w = np.array([1.0, 1.0]), np.array([0.3, 2.0])
            numeric = [
                (after_one_step(jnp.asarray(w + h)) - after_one_step(jnp.asarray(w - h))) / 2e-6
                for h in 1e-6 * np.eye(2)
            ]
        np.testing.assert_allclose(derivative, numeric, rtol=1e-3)


@pytest.mark.usefixtures("nans_allowed")
@pytest.mark.parametrize(("form", "variant", "bad"), forms.table([np.nan, np.inf]))
def test_a_domain_that_is_not_finite_surfaces(form, variant, bad):
    problem = problems.make_problem(seed=11)
    offset = jnp.zeros((3, 8)).at[1, 0].set(bad)  # one example's loss; its gradient alone stays finite
    broken = problems.Problem(problem.params, {**problem.batch, "offset": offset})
    _, options = forms.VARIANTS[variant]
    got = forms.FORMS[form](broken, 0.1, 0.5, **options)
    assert not np.isfinite(got["loss"])
    assert not np.isfinite(problems.flatten(got["gradient"])).all()


@pytest.mark.usefixtures("nans_allowed")
def test_apply_if_finite_after_disam_recovers():
    problem = problems.make_problem(seed=12)
    tx = optax.chain(disam_jax.disam(0.1, 0.5), optax.apply_if_finite(optax.sgd(0.1), max_consecutive_errors=5))

    def step(params, state, poison):
        f = lambda p: closure(problem)(p) + jnp.where(jnp.arange(3) == 1, poison, 0.0)
        updates, state = tx.update(None, state, params, domain_loss_fn=f)
        return optax.apply_updates(params, updates), state

    params, state = step(problem.params, tx.init(problem.params), np.float32(np.nan))
    chex.assert_trees_all_equal(params, problem.params)
    params, state = step(params, state, np.float32(0.0))
    assert problems.relative_error(params, problem.params) > 1e-3
    assert np.isfinite(problems.flatten(params)).all()


# --- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e4, 1.0, 1e-6])
@pytest.mark.parametrize("variant", ["sam", "asam", "gsam"])
def test_fp16_gradients_neither_overflow_nor_vanish_in_the_norm(variant, size):
    n = 4096  # the norm of the gradient is size * 64: 6.4e5 is beyond fp16, and so is the square of 1e-6
    _, options = forms.VARIANTS[variant]
    w = jnp.full(n, 0.5, jnp.float16)
    gradient = jnp.full(n, size, jnp.float16)
    every = jnp.ones((), jnp.int32)
    tx = disam_jax.disam(1.0, 0.0, refresh_every=every, **options)
    updates, state = tx.update(
        gradient[None], tx.init(w), w, domain_losses=jnp.ones(1, jnp.float32), grad_fn=lambda p: gradient
    )
    assert updates.dtype == jnp.float16
    assert state.ascent_norm.dtype == jnp.float32
    np.testing.assert_allclose(state.ascent_norm, 64 * np.float32(np.float16(size)), rtol=1e-3)
    # All entries are equal, so the perturbation has rho / sqrt(n) in each; ASAM stretches it by |w|.
    want = 1 / 64 * (0.5 if variant == "asam" else 1.0)
    np.testing.assert_allclose(np.float32(state.perturbation), want, rtol=2e-3)


@pytest.mark.parametrize("form", ["transform_grouped", *slow(*list(forms.FORMS)[1:])])
def test_parameters_of_mixed_dtypes_keep_theirs(form):
    problem = problems.make_problem(seed=13)
    params = {**problem.params, "hidden": jax.tree.map(lambda x: x.astype(jnp.bfloat16), problem.params["hidden"])}
    mixed = problems.Problem(params, problem.batch)
    with jax.numpy_dtype_promotion("standard"):
        got = forms.program(form)(mixed, 0.1, 0.5)
    assert jax.tree.map(lambda x: x.dtype, got["gradient"]) == jax.tree.map(lambda x: x.dtype, params)
    assert got["ascent_norm"].dtype == jnp.float32


# --- jit, scan, vmap, grad, cond --------------------------------------------------------------------------------------


@pytest.mark.parametrize("refresh_every", [1, 3])
@pytest.mark.parametrize("form", ["closure", "stacked"])
def test_state_is_stable_and_one_trace_serves_many_steps(form, refresh_every):
    problem = problems.make_problem(seed=14)
    tx = disam_jax.disam(0.1, 0.5, num_domains=3, refresh_every=refresh_every)

    def extra(params, batch):
        f = lambda p: disam_jax.per_domain(problems.loss)(p, batch)
        if form == "closure":
            return None, {"domain_loss_fn": f}
        losses, grads = disam_jax.per_domain_value_and_grad(problems.loss)(params, batch)
        return grads, {"domain_losses": losses, "grad_fn": jax.grad(lambda p: jnp.mean(f(p)))}

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, batch):
        grads, kwargs = extra(params, batch)
        updates, state = tx.update(grads, state, params, **kwargs)
        return jax.tree.map(lambda w, g: w - 0.1 * g, params, updates), state

    params, state = problem.params, tx.init(problem.params)
    chex.clear_trace_counter()
    for _ in range(5):
        params, new = step(params, state, problem.batch)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, new)
        state = new
    assert state.count == 5
    assert state.count.dtype == jnp.int32


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("refresh_every", [1, *slow(2)])
def test_scan_equals_the_loop_and_checks_for_tracer_leaks(refresh_every):
    problem = problems.make_problem(seed=15)
    tx = optax.chain(disam_jax.disam(0.1, 0.5, num_domains=3, refresh_every=refresh_every), optax.sgd(0.1))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(None, state, params, domain_loss_fn=closure(problem))
        return (optax.apply_updates(params, updates), state), optax.tree.get(state, "loss")

    start = (problem.params, tx.init(problem.params))
    with jax.checking_leaks():
        (params, state), losses = jax.lax.scan(step, start, length=6)
    carry = start
    for _ in range(6):
        carry, _ = step(carry, None)
    chex.assert_trees_all_close((params, state), carry, rtol=1e-4, atol=1e-6)
    assert losses[-1] < losses[0]


def test_state_survives_cond():
    problem = problems.make_problem(seed=16)
    tx = disam_jax.disam(0.1, 0.5, num_domains=3, refresh_every=2)

    @jax.jit
    def maybe(on, state):
        run = lambda s: tx.update(None, s, problem.params, domain_loss_fn=closure(problem))
        skip = lambda s: (jax.tree.map(jnp.zeros_like, problem.params), s)
        return jax.lax.cond(on, run, skip, state)

    state = tx.init(problem.params)
    _, off = maybe(False, state)
    chex.assert_trees_all_equal(off, state)
    grads, on = maybe(True, state)
    assert on.count == 1
    assert problems.flatten(grads).any()


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("refresh_every", [1, 2])
def test_vmap_over_rho_and_lam_trains_a_sweep_in_one_program(refresh_every):
    problem = problems.make_problem(seed=17)
    rhos, lams = jnp.array([0.0, 0.05, 0.1, 0.2]), jnp.array([0.0, 0.1, 0.5, -0.5])

    def train(rho, lam):
        tx = optax.chain(disam_jax.disam(rho, lam, refresh_every=refresh_every), optax.sgd(0.1))

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(None, state, params, domain_loss_fn=closure(problem))
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (problem.params, tx.init(problem.params)), length=5)[0][0]

    swept = jax.jit(jax.vmap(train))(rhos, lams)
    for i in range(4):
        alone = jax.jit(train)(rhos[i], lams[i])
        assert problems.relative_error(jax.tree.map(lambda x, i=i: x[i], swept), alone) < 1e-5


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("form", ["value_and_grad", "accumulated"])
def test_gradient_functions_under_jit_vmap_and_rho_as_an_argument(form):
    problem = problems.make_problem(seed=18)
    gradient = lambda rho, lam: forms.FORMS[form](problem, rho, lam)["gradient"]
    together = jax.jit(jax.vmap(gradient, in_axes=(0, None)))(jnp.array([0.0, 0.1]), 0.3)
    one = jax.jit(gradient)
    for i, rho in enumerate((0.0, 0.1)):
        alone = one(rho, 0.3)
        assert problems.relative_error(jax.tree.map(lambda x, i=i: x[i], together), alone) < 1e-5


# --- schedules, refresh, mask, info -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.rest
def test_schedules_of_rho_and_lam_follow_the_count():
    problem = problems.make_problem(seed=19)
    rho = optax.linear_schedule(0.0, 0.2, 4)
    lam = optax.piecewise_constant_schedule(0.1, {2: 5.0})
    tx = disam_jax.disam(rho, lam)
    state = tx.init(problem.params)
    scheduled = jax.jit(lambda state: tx.update(None, state, problem.params, domain_loss_fn=closure(problem)))
    with_numbers = jax.jit(lambda rho, lam: one_update(disam_jax.disam(rho, lam), problem)[0])
    for step in range(4):
        with jax.numpy_dtype_promotion("standard"):  # optax.piecewise_constant_schedule subtracts an int from a float
            grads, state = scheduled(state)
            fixed = with_numbers(float(rho(step)), float(lam(step)))
            chex.assert_trees_all_close(grads, fixed, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_refresh_every_reuses_the_perturbation_between(x64):
    problem = problems.make_problem(seed=20, dtype=jnp.float64)
    rho, lam, lr = 0.1, 0.5, 0.05
    reference = problems.reference(problem)
    tx = disam_jax.disam(rho, lam, refresh_every=3)
    params, state = problem.params, tx.init(problem.params)
    w, e = problems.flatten(params), None
    for step in range(7):
        grads, state = tx.update(None, state, params, domain_loss_fn=closure(problem))
        if step % 3 == 0:
            e = reference.step(w, rho, lam)["perturbation"]
        want = reference.gradients_at(w + e).mean(axis=0)
        assert problems.relative_error(grads, want) < 1e-11
        assert problems.relative_error(state.perturbation, e) < 1e-11
        params = jax.tree.map(lambda p, g: p - lr * g, params, grads)
        w = w - lr * want


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["gsam", "sagm"])
def test_refresh_every_hands_over_the_perturbed_gradient_where_there_is_no_reference(variant, x64):
    problem = problems.make_problem(seed=21, dtype=jnp.float64)
    _, options = forms.VARIANTS[variant]
    tx = disam_jax.disam(0.1, 0.5, refresh_every=2, **options)
    _, state = one_update(tx, problem)
    grads, _ = tx.update(None, state, problem.params, domain_loss_fn=closure(problem))
    w = problems.flatten(problem.params) + problems.flatten(state.perturbation)
    assert problems.relative_error(grads, problems.reference(problem).gradients_at(w).mean(axis=0)) < 1e-11


@pytest.mark.parametrize("adaptive", [True, *slow(False)])
@pytest.mark.parametrize("form", ["transform_grouped", *slow(*list(forms.FORMS)[1:])])
def test_mask_perturbs_a_subset_with_the_norm_over_it(form, adaptive, x64):
    problem = problems.make_problem(seed=22, dtype=jnp.float64)
    mask = {"hidden": True, "out": {"w": False, "b": True}}
    by_function = lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: path != (jax.tree_util.DictKey("out"), jax.tree_util.DictKey("w")), params
    )
    got = forms.program(form, mask=mask, adaptive=adaptive)(problem, 0.2, 0.5)
    same = forms.program(form, mask=by_function, adaptive=adaptive)(problem, 0.2, 0.5)
    chex.assert_trees_all_equal(got["gradient"], same["gradient"])

    reference, w = problems.reference(problem), problems.flatten(problem.params)
    keep = problems.flatten(
        {
            "hidden": jax.tree.map(jnp.ones_like, problem.params["hidden"]),
            "out": {"w": np.zeros((6, 3)), "b": np.ones(3)},
        }
    )
    g = keep * (reference.domain_weights(reference.losses_at(w), 0.5, "variance") @ reference.gradients_at(w))
    t = np.abs(w) if adaptive else np.ones_like(w)
    e = 0.2 * t * t * g / np.linalg.norm(t * g)
    assert problems.relative_error(got["gradient"], reference.gradients_at(w + e).mean(axis=0)) < 1e-11
    np.testing.assert_allclose(got["ascent_norm"], np.linalg.norm(g), rtol=1e-12)


def test_a_mask_that_selects_nothing_is_the_plain_gradient():
    problem = problems.make_problem(seed=23)
    got = forms.value_and_grad(problem, 0.2, 0.5, mask=False)["gradient"]
    chex.assert_trees_all_equal(got, plain_gradient("value_and_grad", problem))


def test_outputs_of_value_and_grad():
    problem = problems.make_problem(seed=24)

    def with_aux(p, batch, scale=1.0):
        return disam_jax.per_domain(problems.loss)(p, batch) * scale, {"seen": jnp.sum(batch["x"]), "w": p["out"]["b"]}

    plain = lambda p, batch, scale=1.0: with_aux(p, batch, scale)[0]
    make = functools.partial(disam_jax.value_and_grad, rho=0.1, lam=0.5)
    loss, grads = make(plain)(problem.params, problem.batch)
    (loss_a, aux), grads_a = make(with_aux, has_aux=True)(problem.params, problem.batch)
    (loss_i, info), grads_i = make(plain, with_info=True)(problem.params, problem.batch)
    (loss_b, (aux_b, info_b)), grads_b = make(with_aux, has_aux=True, with_info=True)(problem.params, problem.batch)
    chex.assert_trees_all_equal((loss, grads), (loss_a, grads_a), (loss_i, grads_i), (loss_b, grads_b))
    chex.assert_trees_all_equal(aux, aux_b)
    chex.assert_trees_all_equal(info, info_b)
    # aux is that of the clean pass: the parameters it saw are not perturbed.
    chex.assert_trees_all_equal(aux["w"], problem.params["out"]["b"])
    np.testing.assert_allclose(loss, jnp.mean(plain(problem.params, problem.batch)), rtol=1e-6)
    sharpness = info.perturbed_domain_losses - info.domain_losses
    np.testing.assert_array_equal(info.domain_sharpness, sharpness)
    doubled, _ = make(plain)(problem.params, problem.batch, scale=2.0)
    np.testing.assert_allclose(doubled, 2 * loss, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.rest
def test_argnums_selects_and_several_are_perturbed_together():
    problem = problems.make_problem(seed=25)
    losses = lambda hidden, batch, out: disam_jax.per_domain(problems.loss)({"hidden": hidden, "out": out}, batch)
    hidden, out = problem.params["hidden"], problem.params["out"]
    whole = forms.value_and_grad(problem, 0.1, 0.5)["gradient"]
    both = jax.jit(disam_jax.value_and_grad(losses, 0.1, 0.5, argnums=(0, 2)))(hidden, problem.batch, out)[1]
    chex.assert_trees_all_close(both, (whole["hidden"], whole["out"]), rtol=1e-5, atol=1e-7)
    one = jax.jit(disam_jax.value_and_grad(losses, 0.1, 0.5, argnums=2))(hidden, problem.batch, out)[1]
    masked = forms.program("value_and_grad", mask={"hidden": False, "out": True})(problem, 0.1, 0.5)["gradient"]
    chex.assert_trees_all_close(one, masked["out"], rtol=1e-5, atol=1e-7)

    one_domain = lambda batch, params: problems.loss(params, batch)
    accumulated = disam_jax.accumulated_value_and_grad(one_domain, 0.1, 0.5, argnums=1)
    swapped = jax.jit(accumulated)(problem.batch, problem.params)[1]
    chex.assert_trees_all_close(swapped, whole, rtol=1e-4, atol=1e-6)


def test_accumulated_returns_the_stacked_aux_of_the_clean_pass():
    problem = problems.make_problem(seed=26)
    loss = lambda p, batch: (problems.loss(p, batch), {"b": p["out"]["b"], "mean": jnp.mean(batch["x"])})
    accumulated = disam_jax.accumulated_value_and_grad(loss, 0.1, 0.5, has_aux=True)
    (_, aux), _ = jax.jit(accumulated)(problem.params, problem.batch)
    np.testing.assert_array_equal(aux["b"], np.tile(problem.params["out"]["b"], (3, 1)))
    np.testing.assert_allclose(aux["mean"], np.mean(problem.batch["x"], axis=(1, 2)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("num_domains", [1, 3])
def test_accumulated_takes_keys_and_flags_and_returns_whatever_scan_stacks(num_domains):
    rng = np.random.default_rng(27)
    batch = {
        "x": rng.normal(size=(num_domains, 4, 2)).astype(np.float32),
        "flag": np.arange(num_domains) > 0,
        "key": jax.random.split(jax.random.key(0), num_domains),
    }

    def loss(w, one):
        noise = jax.random.normal(one["key"], (4,))
        value = jnp.mean(jnp.where(one["flag"], 1.0, 2.0) * (one["x"] @ w + noise) ** 2)
        return value, {"number": 3, "none": None, "key": one["key"], "flag": one["flag"]}

    w = jnp.ones(2)
    (value, aux), grads = disam_jax.accumulated_value_and_grad(loss, 0.1, 0.5, has_aux=True)(w, batch)
    np.testing.assert_array_equal(aux["number"], [3] * num_domains)
    np.testing.assert_array_equal(aux["flag"], batch["flag"])
    np.testing.assert_array_equal(jax.random.key_data(aux["key"]), jax.random.key_data(batch["key"]))
    mapped = disam_jax.per_domain(lambda w, one: loss(w, one)[0])
    expected = jax.jit(disam_jax.value_and_grad(mapped, 0.1, 0.5))(w, batch)
    chex.assert_trees_all_close((value, grads), expected, rtol=1e-5)


@pytest.mark.parametrize("penalty", ["variance", "std"])
def test_accumulated_keeps_its_digits_when_the_losses_are_close(penalty):
    # sum L_i g_i - mean(L) sum g_i cancels if the losses are summed as they are: 2.3 and a spread of 1e-4 in float32.
    rng = np.random.default_rng(0)
    directions = jnp.asarray(rng.normal(size=(4, 10)), jnp.float32)
    batch = {"d": directions, "offset": jnp.asarray(1000 + 1e-2 * rng.normal(size=4), jnp.float32)}
    loss = lambda w, one: jnp.sum(w * one["d"]) + one["offset"]
    w = jnp.zeros(10)
    accumulated = disam_jax.accumulated_value_and_grad(loss, 1.0, 0.4, penalty=penalty, with_info=True)
    (_, info), info_grads = jax.jit(accumulated)(w, batch)
    g = np.asarray(info.domain_weights, np.float64) @ np.asarray(directions, np.float64)
    np.testing.assert_allclose(info.ascent_norm, np.linalg.norm(g), rtol=1e-5)
    assert np.isfinite(info_grads).all()


@pytest.mark.slow
@pytest.mark.rest
def test_unknown_extra_arguments_are_ignored_and_incoming_gradients_are_not_used():
    problem = problems.make_problem(seed=27)
    tx = disam_jax.disam(0.1, 0.5)
    state = tx.init(problem.params)
    want, _ = one_update(tx, problem)
    for grads in (problem.params, jax.tree.map(jnp.zeros_like, problem.params)):
        got, _ = tx.update(
            grads, state, problem.params, domain_loss_fn=closure(problem), value=1.0, loss_fn=print, anything=object()
        )
        chex.assert_trees_all_equal(got, want)


def test_your_own_variant():
    problem = problems.make_problem(seed=28)
    half = variants.Variant(
        scale=lambda rho, norm: 0.5 * rho / norm, combine=lambda g, h: jax.tree.map(lambda a, b: a - b, h, g)
    )
    got = forms.value_and_grad(problem, 0.2, 0.5, variant=half)
    plain = forms.value_and_grad(problem, 0.1, 0.5)
    ascent = forms.value_and_grad(problem, 0.0, 0.5, variant=variants.Variant(lambda r, n: 0 * n, lambda g, h: g))
    want = jax.tree.map(lambda h, g: h - g, plain["gradient"], ascent["gradient"])
    chex.assert_trees_all_close(got["gradient"], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["count", "loss", "loss_variance", "ascent_norm", "domain_losses", "domain_weights"])
def test_state_is_read_by_name(name):
    problem = problems.make_problem(seed=29)
    tx = optax.chain(disam_jax.disam(0.1, 0.5, num_domains=3), optax.sgd(0.1))
    _, state = one_update(tx, problem)
    assert np.all(np.asarray(optax.tree.get(state, name)) != 0)


# --- the science ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", ["variance", "std"])
def test_lam_and_minus_lam_move_the_spread_in_opposite_directions(penalty):
    spread = {}
    for lam in (0.5, 0.0, -0.5):
        got = forms.value_and_grad(problems.make_problem(seed=30), 0.3, lam, penalty=penalty)
        spread[lam] = float(np.std(got["perturbed_domain_losses"]))
    assert spread[0.5] < spread[0.0] < spread[-0.5]


# --- random trees, domains and weights --------------------------------------------------------------------------------


@st.composite
def linear_problems(draw):
    """Domains with losses 0.5 |A_i w - y_i|^2 on a random tree of parameters: the gradient is known in closed form."""
    shapes = draw(st.lists(st.sampled_from([(), (1,), (3,), (2, 2), (1, 4)]), min_size=1, max_size=4))
    nest = draw(st.sampled_from(["list", "dict", "tuple"]))
    m = draw(st.integers(1, 6))
    weights = np.array(draw(st.lists(st.integers(0, 9), min_size=m, max_size=m)), np.float64)
    hypothesis.assume(weights.sum() > 0)
    seed = draw(st.integers(0, 2**16))
    dtype = draw(st.sampled_from([np.float64, np.float32]))
    return shapes, nest, m, weights, seed, dtype


@pytest.mark.slow
@hypothesis.settings(max_examples=6)
@hypothesis.given(linear_problems(), st.floats(0, 0.5), st.floats(-1, 1), st.sampled_from(["variance", "std"]))
def test_random_trees_weights_and_domains(drawn, rho, lam, penalty):
    shapes, nest, m, weights, seed, dtype = drawn
    rng = np.random.default_rng(seed)
    size = sum(int(np.prod(s)) for s in shapes)
    a, y, w = rng.normal(size=(m, 2, size)), rng.normal(size=(m, 2)), rng.normal(size=size)
    splits = np.cumsum([int(np.prod(s)) for s in shapes])[:-1]

    def tree(vector, xp):
        leaves = [part.reshape(s) for part, s in zip(xp.split(vector, splits), shapes, strict=True)]
        return {"list": list, "tuple": tuple, "dict": lambda x: {str(i): v for i, v in enumerate(x)}}[nest](leaves)

    reference = problems.Reference(
        lambda w: 0.5 * ((a @ w - y) ** 2).sum(axis=1),
        lambda w: np.einsum("mij,mi->mj", a, a @ w - y),
        weights,
    )
    want = reference.step(w, rho, lam, penalty)
    # A gradient of rounding errors has no direction: there the perturbation differs from one precision to the next.
    hypothesis.assume(want["ascent_norm"] > 0.1 and np.linalg.norm(want["gradient"]) > 0.1)

    def losses(params):
        vector = jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(params)])
        values = 0.5 * jnp.sum((jnp.asarray(a, dtype) @ vector - jnp.asarray(y, dtype)) ** 2, axis=1)
        return disam_jax.DomainLosses(values, jnp.asarray(weights))

    with enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree(w, np))
        _, grads = disam_jax.value_and_grad(losses, rho, lam, penalty=penalty)(params)
        assert jax.tree.structure(grads) == jax.tree.structure(params)
        assert all(g.dtype == dtype for g in jax.tree.leaves(grads))
        assert problems.relative_error(grads, want["gradient"]) < (1e-8 if dtype == np.float64 else 2e-3)


@pytest.mark.slow
@hypothesis.given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 2**16))
def test_random_group_sizes_of_a_flat_batch(sizes, seed):
    hypothesis.assume(sum(sizes) > 0)
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    values = rng.normal(size=len(ids)).astype(np.float32)
    out = disam_jax.mean_by_domain(jnp.asarray(values), ids, len(sizes))
    np.testing.assert_array_equal(out.weights, sizes)
    want = [values[ids == i].mean() if n else 0.0 for i, n in enumerate(sizes)]
    np.testing.assert_allclose(out.values, want, rtol=1e-5, atol=1e-6)
