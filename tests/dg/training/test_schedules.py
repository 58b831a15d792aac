"""Learning-rate schedules against their formulas, and when runs are measured."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disam_jax.dg.errors import InputError
from disam_jax.dg.testing import toy
from disam_jax.dg.training.config import TrainConfig, check_config, make_config, make_optimizer
from disam_jax.dg.training.schedules import SCHEDULES

FORMULAS = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "step": lambda done: 0.1 ** ((done >= 0.5) + (done >= 0.75)),
}


def wanted(name, steps, warmup):
    rise = [(t + 1) / (warmup + 1) for t in range(warmup)]
    return np.array(rise + [FORMULAS[name](t / (steps - warmup)) for t in range(steps - warmup)])


def rates(config, base):
    """What each step multiplies a gradient by, of runs with these learning rates, [R, steps]."""

    def of_run(rate):
        optimizer = make_optimizer(config, {"learning_rate": rate, "weight_decay": jnp.float32(0)})
        params = jnp.zeros(1)

        def step(state, _):
            updates, state = optimizer.update(jnp.ones(1), state, params)
            return state, -updates[0]

        return jax.lax.scan(step, optimizer.init(params), length=config.steps)[1]

    return jax.jit(jax.vmap(of_run))(base)


@pytest.mark.parametrize("warmup", [0, 3, 0.25, 11])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_multiplies_the_rate_of_each_run(name, warmup):
    config = TrainConfig(steps=12, schedule=name, warmup=warmup, momentum=0.0)
    factors = wanted(name, 12, 3 if warmup == 0.25 else warmup)
    found = rates(config, jnp.array([0.1, 2.0]))
    np.testing.assert_allclose(found, np.outer([0.1, 2.0], factors), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_short_run_has_a_schedule_too(name, steps):
    found = rates(TrainConfig(steps=steps, schedule=name, momentum=0.0), jnp.ones(1))
    np.testing.assert_allclose(found[0], wanted(name, steps, 0), rtol=1e-5)


def test_what_is_not_asked_for_is_in_no_record():
    """Results that an earlier version wrote are found by these names and values."""
    assert list(TrainConfig().record()) == [
        *("model", "steps", "learning_rate", "weight_decay", "rho", "lam", "optimizer", "momentum", "per_domain"),
        *("hidden", "dropout", "norm", "frozen_norm", "standardise", "augment", "averaging", "ema_decay", "holdout"),
        *("evaluations", "probe", "block", "sharpness_rho"),
    ]
    config = TrainConfig(schedule="cosine", warmup=0.1, eval_every=5)
    added = {"schedule": "cosine", "warmup": 0.1, "eval_every": 5}
    assert config.record() == {**TrainConfig().record(), **added}


@pytest.mark.parametrize(
    ("steps", "every", "points"),
    [(10, 4, (0, 4, 8, 10)), (8, 4, (0, 4, 8)), (100, 60, (0, 60, 100)), (5, 9, (0, 5)), (3, 1, (0, 1, 2, 3))],
)
def test_runs_are_measured_every_so_many_steps_and_after_the_last(steps, every, points):
    config = make_config(toy(), "mlp", steps=steps, eval_every=every)
    assert config.measured_at == points
    # Whatever the command's own number of measurements is, the folder is the same.
    assert config == make_config(toy(), "mlp", steps=steps, eval_every=every, evaluations=7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "--schedule must be one of constant, cosine, step, got linear"),
        ({"warmup": 1.5}, "--warmup must be a whole number of steps or a share of them below 1, got 1.5: write 1"),
        ({"warmup": 400}, "--warmup must leave steps to train at the full rate: got 400 of 400 --steps"),
        ({"warmup": 0.999}, "--warmup must leave steps to train at the full rate: got 0.999 of 400 --steps"),
        ({"warmup": -1}, "--warmup must be finite and not negative, got -1"),
        ({"eval_every": 0}, "--eval-every must be at least 1, got 0"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(changes, message):
    with pytest.raises(InputError) as error:
        check_config(dataclasses.replace(TrainConfig(), **changes))
    assert message in str(error.value)
