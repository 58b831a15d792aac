"""Optax wrappers around, before and after disam: what is right, and what is wrong and has a right form instead.

Every row trains the same problem for a few steps. "right" rows are compared with the gradient of ``value_and_grad``
handed to the same optimizer, which no wrapper can see into.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from support import slow

import disam_jax

RHO, LAM, LR = 0.1, 0.5, 0.05
PROBLEM = problems.make_problem(seed=40)
LABELS = {"hidden": "train", "out": "other"}


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def losses_at(params):
    return disam_jax.per_domain(problems.loss)(params, PROBLEM.batch)


def mean_loss(params):
    return jnp.mean(losses_at(params))


gradient = jax.jit(disam_jax.value_and_grad(losses_at, RHO, LAM))


def run(tx, steps=5, use_closure=True, **extra):
    """The parameters after a few steps, with disam inside tx or with its gradient handed to tx."""

    @jax.jit
    def step(params, state, grads):
        kwargs = {k: f(params) for k, f in extra.items()}
        if use_closure:
            grads, kwargs["domain_loss_fn"] = jax.grad(mean_loss)(params), losses_at
        updates, state = tx.update(grads, state, params, **kwargs)
        return optax.apply_updates(params, updates), state

    params, state = PROBLEM.params, tx.init(PROBLEM.params)
    for _ in range(steps):
        grads = None if use_closure else gradient(params)[1]  # one program for every optimizer
        params, state = step(params, state, grads)
    return params


def disam():
    return disam_jax.disam(RHO, LAM)


frozen = {"train": optax.sgd(LR), "other": optax.set_to_zero()}
RIGHT = {
    # name: (with disam inside, the same optimizer without it)
    "chain": (lambda: optax.chain(disam(), optax.sgd(LR)), lambda: optax.sgd(LR)),
    "named_chain": (lambda: optax.named_chain(("disam", disam()), ("sgd", optax.sgd(LR))), lambda: optax.sgd(LR)),
    "inject_hyperparams": (
        lambda: optax.chain(optax.inject_hyperparams(disam_jax.disam)(rho=RHO, lam=LAM), optax.sgd(LR)),
        lambda: optax.sgd(LR),
    ),
    "inject_hyperparams with a schedule": (
        lambda: optax.chain(
            optax.inject_hyperparams(disam_jax.disam)(rho=optax.constant_schedule(RHO), lam=LAM), optax.sgd(LR)
        ),
        lambda: optax.sgd(LR),
    ),
    "inject_hyperparams, static arguments": (
        lambda: optax.chain(
            optax.inject_hyperparams(disam_jax.disam, static_args=("refresh_every", "num_domains"))(
                rho=RHO, lam=LAM, num_domains=3
            ),
            optax.sgd(LR),
        ),
        lambda: optax.sgd(LR),
    ),
    "clip after": (
        lambda: optax.chain(disam(), optax.clip_by_global_norm(0.05), optax.sgd(LR)),
        lambda: optax.chain(optax.clip_by_global_norm(0.05), optax.sgd(LR)),
    ),
    "weight decay after": (
        lambda: optax.chain(disam(), optax.add_decayed_weights(0.1), optax.sgd(LR)),
        lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(LR)),
    ),
    "adamw": (lambda: optax.chain(disam(), optax.adamw(LR)), lambda: optax.adamw(LR)),
    "partition after": (
        lambda: optax.chain(disam(), optax.partition(frozen, LABELS)),
        lambda: optax.partition(frozen, LABELS),
    ),
    "masked after": (
        lambda: optax.chain(disam(), optax.masked(optax.add_decayed_weights(0.1), LABELS_MASK), optax.sgd(LR)),
        lambda: optax.chain(optax.masked(optax.add_decayed_weights(0.1), LABELS_MASK), optax.sgd(LR)),
    ),
    "MultiSteps after": (
        lambda: optax.chain(disam(), optax.MultiSteps(optax.sgd(LR), 2).gradient_transformation()),
        lambda: optax.MultiSteps(optax.sgd(LR), 2).gradient_transformation(),
    ),
    "apply_if_finite after": (
        lambda: optax.chain(disam(), optax.apply_if_finite(optax.sgd(LR), 3)),
        lambda: optax.apply_if_finite(optax.sgd(LR), 3),
    ),
    "snapshot": (
        lambda: optax.chain(disam(), optax.snapshot("g", lambda g: g), optax.sgd(LR)),
        lambda: optax.sgd(LR),
    ),
    "schedule_free inside a chain": (
        lambda: optax.chain(disam(), optax.contrib.schedule_free(optax.sgd(LR), LR)),
        lambda: optax.contrib.schedule_free(optax.sgd(LR), LR),
    ),
    "schedule_free around": (
        lambda: optax.contrib.schedule_free(optax.chain(disam(), optax.sgd(LR)), LR),
        lambda: optax.contrib.schedule_free(optax.sgd(LR), LR),
    ),
    "prodigy": (
        lambda: optax.chain(disam(), optax.contrib.prodigy(estim_lr0=1e-2)),
        lambda: optax.contrib.prodigy(estim_lr0=1e-2),
    ),
    "muon": (
        lambda: optax.chain(disam(), optax.contrib.muon(LR)),
        lambda: optax.contrib.muon(LR),
    ),
    "dog": (
        lambda: optax.chain(disam(), optax.contrib.dog(LR, ("distance", 1.0))),
        lambda: optax.contrib.dog(LR, ("distance", 1.0)),
    ),
    "cocob": (lambda: optax.chain(disam(), optax.contrib.cocob()), lambda: optax.contrib.cocob()),
    "galore": (lambda: optax.chain(disam(), optax.contrib.galore(LR)), lambda: optax.contrib.galore(LR)),
    "momo, with the clean loss as value": (
        lambda: optax.chain(disam(), optax.contrib.momo(LR)),
        lambda: optax.contrib.momo(LR),
    ),
    "monitor": (
        lambda: optax.chain(disam(), optax.monitor({"g": optax.measure_with_ema(optax.tree.norm, 0.9)}), optax.sgd(LR)),
        lambda: optax.sgd(LR),
    ),
    "polyak, with the clean loss as value": (
        lambda: optax.chain(disam(), optax.polyak_sgd()),
        lambda: optax.polyak_sgd(),
    ),
    "reduce_on_plateau, with the clean loss as value": (
        lambda: optax.chain(disam(), optax.sgd(LR), optax.contrib.reduce_on_plateau(patience=1)),
        lambda: optax.chain(optax.sgd(LR), optax.contrib.reduce_on_plateau(patience=1)),
    ),
}
LABELS_MASK = {"hidden": True, "out": False}


OTHER_OPTIMIZERS = (
    "prodigy",
    "muon",
    "dog",
    "cocob",
    "galore",
    "momo",
    "monitor",
    "snapshot",
    "named_chain",
    "adamw",
    "schedule_free inside",
    "polyak",
    "reduce_on_plateau",
    "schedule_free around",
    "inject_hyperparams with",
    "inject_hyperparams, static",
    "apply_if_finite",
    "partition",
)


@pytest.mark.parametrize("name", [slow(name)[0] if name.startswith(OTHER_OPTIMIZERS) else name for name in RIGHT])
def test_right(name):
    ours, plain = RIGHT[name]
    extra = {"value": mean_loss} if "value" in name else {}
    got, want = run(ours(), **extra), run(plain(), use_closure=False, **extra)
    assert problems.relative_error(got, want) < 1e-5
    assert problems.relative_error(got, PROBLEM.params) > 1e-3


@pytest.mark.parametrize("before", [optax.clip_by_global_norm(1e-3), optax.add_decayed_weights(10.0)])
def test_what_stands_before_disam_has_no_effect(before):
    got = run(optax.chain(before, disam(), optax.sgd(LR)))
    assert problems.relative_error(got, run(optax.chain(disam(), optax.sgd(LR)))) == 0


@pytest.mark.slow
def test_conditionally_transform_runs_disam_on_active_steps_only():
    tx = optax.chain(optax.transforms.conditionally_transform(disam(), lambda step: step >= 2), optax.sgd(LR))
    plain = optax.sgd(LR)
    params, state = PROBLEM.params, plain.init(PROBLEM.params)
    for step in range(4):
        grads = jax.grad(mean_loss)(params) if step < 2 else gradient(params)[1]
        updates, state = plain.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert problems.relative_error(run(tx, steps=4), params) < 1e-5


@pytest.mark.slow
@pytest.mark.rest
def test_lbfgs_takes_the_gradient_of_value_and_grad():
    # As the last of a chain it fails on the unconsumed argument; as the optimizer of a gradient function it is right.
    tx = optax.lbfgs(linesearch=None)
    params = run(tx, steps=3, use_closure=False)
    assert mean_loss(params) < mean_loss(PROBLEM.params)


# --- wrong, silently or not, with the form to use instead -------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["masked", "partition"])
def test_masks_around_disam_are_an_error_that_says_so(wrapper):
    """The loss function would be handed parameters with holes. Right: disam first, the mask after it."""
    tx = {
        "masked": lambda: optax.masked(optax.chain(disam(), optax.sgd(LR)), LABELS_MASK),
        "partition": lambda: optax.partition(
            {"train": optax.chain(disam(), optax.sgd(LR)), "other": optax.set_to_zero()}, LABELS
        ),
    }[wrapper]()
    with pytest.raises(TypeError, match=r"(?s)mask.*disam first"):
        run(tx)


@pytest.mark.slow
def test_multi_steps_around_disam_ignores_the_accumulated_gradients():
    """Two different micro-batches: only the last one counts. Right: chain(disam, MultiSteps(...)), above."""
    tx = optax.MultiSteps(optax.chain(disam(), optax.sgd(LR)), 2)
    params, state = PROBLEM.params, tx.init(PROBLEM.params)
    other = problems.make_problem(seed=41).batch
    for batch in (other, PROBLEM.batch):
        f = lambda p, batch=batch: disam_jax.per_domain(problems.loss)(p, batch)
        updates, state = tx.update(jax.grad(lambda p: jnp.mean(f(p)))(params), state, params, domain_loss_fn=f)
        params = optax.apply_updates(params, updates)
    last_only = run(optax.chain(disam(), optax.sgd(LR)), steps=1)
    assert problems.relative_error(params, last_only) < 1e-5


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.usefixtures("nans_allowed")
def test_apply_if_finite_around_disam_misses_a_gradient_that_is_not_finite():
    """It looks at the incoming gradient, which disam does not use. Right: chain(disam, apply_if_finite(...)), above."""
    tx = optax.apply_if_finite(optax.chain(disam(), optax.sgd(LR)), 3)
    state = tx.init(PROBLEM.params)
    poisoned = lambda p: losses_at(p) * jnp.float32(np.nan)
    grads = jax.grad(mean_loss)(PROBLEM.params)
    updates, _ = tx.update(grads, state, PROBLEM.params, domain_loss_fn=poisoned)
    assert np.isnan(problems.flatten(updates)).all()


def test_a_closure_argument_of_a_jitted_update_fails():
    """``jax.jit(tx.update)`` cannot take a function. Right: jit the step around it."""
    tx = disam()
    with pytest.raises(TypeError):
        jax.jit(tx.update)(None, tx.init(PROBLEM.params), PROBLEM.params, domain_loss_fn=losses_at)


def test_lbfgs_after_disam_fails_on_the_argument_that_it_does_not_know():
    with pytest.raises(TypeError):
        run(optax.chain(disam(), optax.lbfgs()), value=mean_loss)


AROUND = {
    # name: (wrapper, what the error says)
    "lookahead": (lambda tx: optax.lookahead(tx, 2, 0.5), "unexpected keyword argument 'domain_loss_fn'"),
    "contrib.sam": (lambda tx: optax.contrib.sam(tx, optax.sgd(0.1)), "unexpected keyword argument 'domain_loss_fn'"),
    "split_real_and_imaginary": (
        optax.contrib.split_real_and_imaginary,
        "unexpected keyword argument 'domain_loss_fn'",
    ),
    "flatten": (optax.flatten, "string indexing"),  # the loss function is handed one long vector
    "selective_transform": (
        lambda tx: optax.transforms.selective_transform(tx, freeze_mask=LABELS_MASK),
        "Put disam first and the mask after it",
    ),
}


@pytest.mark.parametrize("name", AROUND)
def test_wrappers_that_cannot_stand_around_disam_fail_and_take_the_gradient_instead(name):
    wrapper, message = AROUND[name]
    with pytest.raises(TypeError, match=message):
        run(wrapper(optax.chain(disam(), optax.sgd(LR))))
    if name == "lookahead":  # this one wants parameters of its own kind
        return
    got, want = run(wrapper(optax.sgd(LR)), steps=1, use_closure=False), run(optax.sgd(LR), steps=1, use_closure=False)
    if name == "selective_transform":  # its mask freezes: only the other part moves
        got, want = got["out"], want["out"]
    if name != "contrib.sam":  # which ascends first
        assert problems.relative_error(got, want) < 1e-5
