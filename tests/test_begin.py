"""Training that begins with plain steps: plain before, DISAM from then on, bit for bit; the other branch is not run."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from support import slow

import disam_jax
from disam_jax import variants

pytestmark = pytest.mark.dealt

RHO, LAM, BEGIN = 0.3, 0.7, 2
PROBLEM = problems.make_problem(seed=2)
LOSSES = disam_jax.per_domain(problems.loss)
OPTIONS = {
    "sam": {},
    "asam": {"adaptive": True},
    "gsam_clean": {"variant": variants.gsam(0.3, "clean")},
    "sagm, std": {"variant": variants.sagm(0.01), "penalty": "std"},
    "descent": {"descent_lam": 0.5},
    "mask": {"mask": {"hidden": True, "out": False}},
}


def mean_loss(params, batch):
    return LOSSES(params, batch).mean()


# Forms: functions of the number of the step, the parameters and the batch that return a loss and a gradient.
def whole(step, params, batch, begin=BEGIN, **options):
    fn = disam_jax.subset_value_and_grad(LOSSES, RHO, LAM, fraction=1.0, begin=begin, **options)
    return fn(params, batch, step=step)


def subset(step, params, batch, begin=BEGIN, **options):
    return disam_jax.subset_value_and_grad(LOSSES, RHO, LAM, begin=begin, **options)(params, batch, step=step)


def update(tx, step, params, **extra):
    grads, state = tx.update(None, tx.init(params)._replace(count=jnp.asarray(step, jnp.int32)), params, **extra)
    return state.loss, grads


def transform(step, params, batch, begin=BEGIN, make=lambda **o: disam_jax.disam(RHO, LAM, **o), **options):
    return update(make(begin=begin, **options), step, params, domain_loss_fn=lambda p: LOSSES(p, batch))


def sam(*args, **options):
    return transform(*args, make=lambda **o: disam_jax.sam(RHO, **o), **options)


def ascent_on_a_subset(step, params, batch, begin=BEGIN, **options):
    tx = disam_jax.disam(RHO, LAM, begin=begin, **options)
    of_subset = lambda p: LOSSES(p, disam_jax.ascent_subset(batch, 0.25))
    return update(tx, step, params, domain_loss_fn=lambda p: LOSSES(p, batch), ascent_loss_fn=of_subset)


def accumulated(step, params, batch, begin=BEGIN, **options):
    return disam_jax.accumulated_value_and_grad(problems.loss, RHO, LAM, begin=begin, **options)(
        params, batch, step=step
    )


def own(*args, **options):
    """Each domain with its own perturbation, and an ascent on a subset."""
    of_subset = lambda p, one: problems.loss(p, disam_jax.ascent_subset(one, 0.5, axis=0))
    return accumulated(*args, domain_gradients="own", ascent_loss_fn=of_subset, **options)


FORMS = {f.__name__: f for f in (subset, whole, transform, sam, ascent_on_a_subset, accumulated, own)}


def plain_of(form):
    """The plain loss and gradient: of the batch, or added up over the domains."""
    if form not in ("accumulated", "own"):
        return jax.value_and_grad(mean_loss)

    def added_up(params, batch):
        def add(total, one):
            loss, grads = jax.value_and_grad(problems.loss)(params, one)
            return jax.tree.map(jnp.add, total, grads), loss

        total, values = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), batch)
        return values.mean(), jax.tree.map(lambda g: g / len(values), total)

    return added_up


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_no_bit_differs_from_the_plain_gradient_before_and_from_disam_after(form, options):
    step = functools.partial(FORMS[form], **OPTIONS[options])
    late, always = jax.jit(step), jax.jit(functools.partial(step, begin=None))
    given = PROBLEM.params, PROBLEM.batch
    loss, plain = jax.jit(plain_of(form))(*given)
    for number in (0, BEGIN - 1):
        value, grads = late(number, *given)
        chex.assert_trees_all_equal(grads, plain)  # of the whole batch
        np.testing.assert_allclose(value, loss, rtol=1e-6)
    want = always(0, *given)
    for number in (BEGIN, BEGIN + 7):
        chex.assert_trees_all_equal(late(number, *given), want)
    assert problems.relative_error(want[1], plain) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_bitwise_plain_too(dtype):
    problem = problems.make_problem(seed=2, dtype=dtype)
    _, grads = jax.jit(functools.partial(subset, 0))(problem.params, problem.batch)
    chex.assert_trees_all_equal(grads, jax.jit(jax.grad(mean_loss))(problem.params, problem.batch))
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(dtype)}


@pytest.mark.slow
@pytest.mark.rest
def test_stacked_gradients_are_summed_and_grad_fn_is_not_called_before():
    tx = disam_jax.disam(RHO, LAM, begin=BEGIN, num_domains=3)

    @jax.jit
    def step(count, grad_fn_factor):
        losses, grads = disam_jax.per_domain_value_and_grad(problems.loss)(PROBLEM.params, PROBLEM.batch)
        mean_grad = lambda p: jax.tree.map(lambda g: grad_fn_factor * g, jax.grad(mean_loss)(p, PROBLEM.batch))
        state = tx.init(PROBLEM.params)._replace(count=count)
        return tx.update(grads, state, PROBLEM.params, domain_losses=losses, grad_fn=mean_grad)

    want = jax.grad(mean_loss)(PROBLEM.params, PROBLEM.batch)
    grads, state = step(jnp.int32(BEGIN - 1), 100.0)
    assert problems.relative_error(grads, want) < 1e-6
    np.testing.assert_allclose(state.domain_losses, LOSSES(PROBLEM.params, PROBLEM.batch), rtol=1e-6)
    np.testing.assert_array_equal(state.perturbed_domain_losses, 0)
    assert problems.relative_error(step(jnp.int32(BEGIN), 100.0)[0], want) > 10


def test_before_begin_the_whole_batch_is_reported_and_nothing_is_perturbed():
    fn = jax.jit(disam_jax.subset_value_and_grad(LOSSES, RHO, LAM, begin=BEGIN, with_info=True))
    (loss, info), _ = fn(PROBLEM.params, PROBLEM.batch, step=1)
    tx = disam_jax.disam(RHO, LAM, begin=BEGIN, num_domains=3)
    losses_at = lambda p: LOSSES(p, PROBLEM.batch)
    _, state = jax.jit(lambda s: tx.update(None, s, PROBLEM.params, domain_loss_fn=losses_at))(tx.init(PROBLEM.params))
    want = problems.reference(PROBLEM).step(problems.flatten(PROBLEM.params), RHO, LAM)
    want["loss_variance"] = np.var(want["domain_losses"])
    for found in (info, state):
        for name in ("loss", "domain_losses", "domain_weights", "loss_variance"):
            np.testing.assert_allclose(getattr(found, name), want[name], rtol=1e-5, err_msg=name)
        assert found.ascent_norm == 0
        np.testing.assert_array_equal(found.perturbed_domain_losses, found.domain_losses)
    np.testing.assert_array_equal(info.domain_sharpness, 0)
    assert loss == info.loss
    (_, info), _ = fn(PROBLEM.params, PROBLEM.batch, step=BEGIN)
    assert info.ascent_norm > 0
    assert (info.domain_sharpness != 0).all()


@pytest.mark.slow
@pytest.mark.rest
def test_aux_before_begin_is_that_of_the_whole_batch_on_both_sides():
    def with_aux(params, batch):
        return LOSSES(params, batch), {"mean": batch["x"].mean(), "examples": jnp.float32(batch["y"].size)}

    for fraction, examples in ((0.25, (6, 18)), (1.0, (24, None))):
        fn = disam_jax.subset_value_and_grad(with_aux, RHO, LAM, fraction=fraction, begin=BEGIN, has_aux=True)
        for step in (0, BEGIN):
            (_, sides), _ = jax.jit(fn)(PROBLEM.params, PROBLEM.batch, step=step)
            seen = tuple(None if side is None else side["examples"] for side in sides)
            assert seen == (examples if step else tuple(n and 24 for n in examples))


@pytest.mark.slow
def test_aux_of_each_domain_is_stacked_before_and_after():
    of_one = lambda params, one: (problems.loss(params, one), one["x"].mean())
    fn = disam_jax.accumulated_value_and_grad(of_one, RHO, LAM, begin=BEGIN, has_aux=True, with_info=True)
    for step in (0, BEGIN):
        (_, (aux, info)), _ = jax.jit(fn)(PROBLEM.params, PROBLEM.batch, step=step)
        np.testing.assert_allclose(aux, PROBLEM.batch["x"].mean((1, 2)), rtol=1e-5)
        np.testing.assert_allclose(info.domain_losses, LOSSES(PROBLEM.params, PROBLEM.batch), rtol=1e-6)
        assert (info.ascent_norm > 0) == (step > 0)


def trained(tx_of, begin, steps=5):
    """Parameters after some steps, each with a batch of its own, and the program that made them."""
    batches = jax.tree.map(lambda *x: jnp.stack(x), *(problems.make_problem(seed=s).batch for s in range(steps)))

    def run(begin):
        tx = tx_of(begin)

        def step(carry, batch):
            params, state = carry
            updates, state = tx.update(None, state, params, domain_loss_fn=lambda p: LOSSES(p, batch))
            return (optax.apply_updates(params, updates), state), optax.tree.get(state, "ascent_norm")

        return jax.lax.scan(step, (PROBLEM.params, tx.init(PROBLEM.params)), batches)

    return jax.jit(run)(begin)


def by_hand(batches, plain, disam_from):
    """The optimizer's steps one by one, with the plain gradient first and DISAM's then."""
    params, state = PROBLEM.params, plain.init(PROBLEM.params)

    @functools.partial(jax.jit, static_argnums=0)
    def step(perturbs, params, state, batch):
        gradient = disam_jax.value_and_grad(LOSSES, RHO, LAM) if perturbs else jax.value_and_grad(mean_loss)
        updates, state = plain.update(gradient(params, batch)[1], state, params)
        return optax.apply_updates(params, updates), state

    for number in range(batches):
        params, state = step(number >= disam_from, params, state, problems.make_problem(seed=number).batch)
    return params


CHAINS = {
    "adamw": lambda begin: optax.chain(disam_jax.disam(RHO, LAM, begin=begin), optax.adamw(0.05)),
    "inject_hyperparams": lambda begin: optax.chain(
        optax.inject_hyperparams(disam_jax.disam)(rho=RHO, lam=LAM, begin=begin), optax.adamw(0.05)
    ),
    # The schedules count all updates, the plain ones included.
    "schedules": lambda begin: optax.chain(
        disam_jax.disam(lambda t: jnp.where(t < 3, np.nan, RHO), lambda t: jnp.where(t < 3, np.nan, LAM), begin=begin),
        optax.adamw(0.05),
    ),
}


@pytest.mark.usefixtures("nans_allowed")
@pytest.mark.parametrize("chain", ["adamw", *slow("inject_hyperparams", "schedules")])
def test_a_scan_with_a_traced_begin_is_the_plain_optimizer_and_then_disam(chain):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        (params, state), norms = trained(CHAINS[chain], jnp.int32(3))
        want = by_hand(5, optax.adamw(0.05), disam_from=3)
    assert problems.relative_error(params, want) < 1e-5
    np.testing.assert_array_equal(norms > 0, [False] * 3 + [True] * 2)
    assert optax.tree.get_all_with_path(state, "count")[0][1] == 5


def test_a_held_perturbation_is_first_computed_at_begin():
    tx = disam_jax.disam(RHO, LAM, begin=3, refresh_every=2)
    fresh = disam_jax.disam(RHO, LAM)
    step = jax.jit(lambda s, p: tx.update(None, s, p, domain_loss_fn=lambda p: LOSSES(p, PROBLEM.batch)))
    now = jax.jit(lambda p: fresh.update(None, fresh.init(p), p, domain_loss_fn=lambda p: LOSSES(p, PROBLEM.batch))[0])
    plain = jax.jit(jax.grad(mean_loss))
    state, params = tx.init(PROBLEM.params), PROBLEM.params
    for number in range(7):
        grads, state = step(state, params)
        if number < 3:
            want = plain(params, PROBLEM.batch)
            assert not problems.flatten(state.perturbation).any()
        elif number in (3, 5):
            want, held = now(params), state.perturbation
        else:
            chex.assert_trees_all_equal(state.perturbation, held)
            want = plain(jax.tree.map(jnp.add, params, held), PROBLEM.batch)
        assert problems.relative_error(grads, want) < 1e-5, number
        params = jax.tree.map(lambda p: 1.1 * p, params)


@pytest.mark.slow
def test_accumulated_updates_count_micro_batches_and_a_gradient_function_counts_what_it_is_told():
    """MultiSteps after disam: each micro-batch is an update of disam. The gradient function: steps of the optimizer."""
    halves = [jax.tree.map(lambda x, h=h: x[:, h::2], PROBLEM.batch) for h in (0, 1)]
    accumulate = lambda: optax.MultiSteps(optax.sgd(0.1), 2)
    tx = optax.chain(disam_jax.disam(RHO, LAM, begin=2), accumulate().gradient_transformation())
    multi, params, other = accumulate(), PROBLEM.params, PROBLEM.params
    state, multi_state = tx.init(params), multi.init(params)
    gradient = jax.jit(disam_jax.subset_value_and_grad(LOSSES, RHO, LAM, fraction=1.0, begin=1))
    update = jax.jit(lambda s, p, b: tx.update(None, s, p, domain_loss_fn=lambda p: LOSSES(p, b)))
    for half in halves * 2:
        with jax.numpy_dtype_promotion("standard"):  # optax.MultiSteps divides a float by an integer
            updates, state = update(state, params, half)
            params = optax.apply_updates(params, updates)
            _, grads = gradient(other, half, step=multi_state.gradient_step)
            updates, multi_state = multi.update(grads, multi_state, other)
            other = optax.apply_updates(other, updates)
    want = PROBLEM.params
    for number in range(2):
        of = disam_jax.value_and_grad(LOSSES, RHO, LAM) if number else jax.value_and_grad(mean_loss)
        first, second = (jax.jit(of)(want, half)[1] for half in halves)
        want = jax.tree.map(lambda w, a, b: w - 0.1 * (a + b) / 2, want, first, second)
    assert problems.relative_error(params, want) < 1e-5
    assert problems.relative_error(other, want) < 1e-5


# --- transformations of jax -------------------------------------------------------------------------------------------


def conditionals(fn, *args):
    """How many conditionals are left in the program."""
    return jax.jit(fn).lower(*args).as_text().count("stablehlo.case")


def sweep(begin):
    def train(rho, lam):
        tx = optax.chain(disam_jax.disam(rho, lam, begin=begin), optax.sgd(0.1))

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(None, state, params, domain_loss_fn=lambda p: LOSSES(p, PROBLEM.batch))
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (PROBLEM.params, tx.init(PROBLEM.params)), length=4)[0][0]

    return train


def test_one_step_for_all_keeps_the_conditional_and_steps_of_their_own_do_not():
    pairs = jnp.array([0.0, RHO]), jnp.array([0.0, LAM])
    assert conditionals(jax.vmap(sweep(BEGIN)), *pairs) == 1
    one = lambda step: subset(step, PROBLEM.params, PROBLEM.batch)[1]
    assert conditionals(one, 1) == 1
    assert conditionals(jax.vmap(one), jnp.arange(2)) == 0


@pytest.mark.slow
def test_a_sweep_over_rho_and_lam_trains_each_as_alone():
    pairs, train = (jnp.array([0.0, RHO]), jnp.array([0.0, LAM])), sweep(BEGIN)
    swept = jax.jit(jax.vmap(train))(*pairs)
    assert problems.relative_error(jax.tree.map(lambda x: x[1], swept), jax.jit(train)(RHO, LAM)) < 1e-5


@pytest.mark.slow
def test_steps_of_their_own_are_those_taken_alone():
    one = lambda step: subset(step, PROBLEM.params, PROBLEM.batch)[1]
    alone, steps = jax.jit(one), jnp.arange(BEGIN - 1, BEGIN + 1)
    got = jax.jit(jax.vmap(one))(steps)
    for place, step in enumerate(steps):
        assert problems.relative_error(jax.tree.map(lambda x, n=place: x[n], got), alone(step)) < 1e-6


MAPPED = {
    "vmap": lambda f: jax.vmap(f, in_axes=(None, 0), axis_name="data"),
    "shard_map": lambda f: jax.shard_map(
        lambda p, b: jax.tree.map(lambda x: x[None], f(p, jax.tree.map(lambda x: x[0], b))),
        mesh=Mesh(np.array(jax.devices()[:2]), ("data",)),
        in_specs=(P(), P("data")),
        out_specs=P("data"),
    ),
}


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("how", [*slow("vmap"), "shard_map"])
@pytest.mark.parametrize("form", ["subset", "transform"])
def test_every_device_of_a_mapped_axis_takes_the_same_branch(form, how):
    halves = jax.tree.map(lambda x: x.reshape(3, 2, 4, *x.shape[2:]).swapaxes(0, 1), PROBLEM.batch)
    of_device = lambda step: MAPPED[how](functools.partial(FORMS[form], step, axis_name="data"))
    mapped, alone = jax.jit(lambda step, p, b: of_device(step)(p, b)), jax.jit(FORMS[form])
    for step in (0, BEGIN):
        losses, grads = mapped(step, PROBLEM.params, halves)
        loss, want = alone(step, PROBLEM.params, PROBLEM.batch)
        for device in range(2):
            assert problems.relative_error(jax.tree.map(lambda g, d=device: g[d], grads), want) < 2e-6
            np.testing.assert_allclose(losses[device], loss, rtol=1e-6)


@pytest.mark.parametrize(
    "integers",
    [(300, np.uint8(1)), *slow((np.int64(300), 1), (jnp.uint16(300), np.array(1)), (np.array(300), jnp.uint32(1)))],
)
def test_begin_and_step_are_integers_of_any_dtype(integers):
    begin, step = integers
    got = jax.jit(functools.partial(subset, begin=begin))(step, PROBLEM.params, PROBLEM.batch)[1]
    chex.assert_trees_all_equal(got, jax.jit(jax.grad(mean_loss))(PROBLEM.params, PROBLEM.batch))


def test_step_has_no_effect_without_begin():
    def program(step):
        return str(jax.make_jaxpr(lambda p, b: subset(step, p, b, begin=None))(PROBLEM.params, PROBLEM.batch))

    assert program(7) == program(None)


# --- the cost of a training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, np.int64(1000)])
@pytest.mark.parametrize("begin", [None, 0, 3, np.int32(7), 5000])
@pytest.mark.parametrize("fraction", [0.125, 1, np.float32(0.5)])
def test_the_cost_is_the_mean_over_the_steps(steps, begin, fraction):
    each = [1.0 + (float(fraction) if step >= (begin or 0) else 0.0) for step in range(steps)]
    cost = disam_jax.training_cost(steps, begin, fraction)
    np.testing.assert_allclose(cost, np.mean(each), rtol=1e-12)
    assert isinstance(cost, float)


def test_the_defaults_of_the_cost_are_those_of_the_gradient_function():
    assert disam_jax.training_cost(1000) == 1.25
    assert disam_jax.training_cost(steps=1000, begin=500, fraction=1 / 8) == 1.0625
