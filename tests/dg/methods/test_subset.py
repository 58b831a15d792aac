"""Methods that perturb on a fraction of the examples, and from some step on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from support import quick

import disam_jax
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import METHODS, Method, no_update
from disam_jax.dg.methods.subset import check_subset, unperturbed
from disam_jax.dg.models.network import Network, Output
from disam_jax.dg.sweep.run import Plan, prepare_sweep
from disam_jax.dg.testing import toy
from disam_jax.dg.training.config import TrainConfig, check_config
from disam_jax.dg.training.step import RunSpec, start, train_step

PERTURBED = [name for name, method in METHODS.items() if "rho" in method.hparams]
PROBLEM = problems.make_problem(seed=3, num_domains=3, per_domain=8)
VALUES = {"rho": 0.3, "lam": 0.5, "alpha": 0.2, "descent_lam": 0.5}


EXAMPLE = jax.ShapeDtypeStruct(PROBLEM.batch["x"].shape[2:], jnp.float32)


def head(params, state, features):
    return features @ params["out"]["w"] + params["out"]["b"][None]


def apply(params, state, x, key, train):
    features = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"][None])
    # The number of examples tells whose statistics the network keeps.
    seen = {"examples": jnp.float32(len(x))} if train else state
    return Output(head(params, state, features), features, seen)


NETWORK = Network(lambda key: (PROBLEM.params, {"examples": jnp.float32(0)}), apply, head=head)


def spec_of(method):
    own = {name: VALUES.get(name, each.default) for name, each in method.hparams.items()}
    hparams = {name: jnp.float32(value) for name, value in {**own, "learning_rate": 0.1, "weight_decay": 0.0}.items()}
    return RunSpec(jax.random.key(0), jnp.int32(0), jnp.int32(3), hparams)


def train(name, steps=1, batch=PROBLEM.batch, **config):
    method, config = METHODS[name], TrainConfig(**{"momentum": 0.5, "steps": 10, **config})
    spec, fixed = spec_of(method), {"network": NETWORK, "method": method, "config": config}
    runs = [start(spec, **fixed, num_sources=3, example=EXAMPLE)]
    step = jax.jit(lambda run, number: train_step(run, spec, number, batch["x"], batch["y"], **fixed))
    for number in range(steps):
        runs.append(step(runs[-1], jnp.int32(number)))
    return runs


def gradient(run):
    # What momentum has gathered in one step is the gradient.
    return optax.tree.get(run.optimizer, "trace")


def near(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, wanted)


@pytest.mark.parametrize("fraction", [0.25, 0.75])
@pytest.mark.parametrize(
    "name", quick(["SAM", "DISAM", "DISAM-std", "ASAM+DISAM", "GSAM", "SAGM+DISAM-std"], "DISAM-std")
)
def test_a_step_is_the_subset_value_and_grad_of_the_library(name, fraction):
    method = METHODS[name]
    hparams = spec_of(method).hparams

    def losses(params, batch):
        logits = apply(params, {}, batch["x"].reshape(-1, batch["x"].shape[-1]), None, False).logits
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"].reshape(-1))
        return each.reshape(batch["y"].shape).mean(1)

    of_library = disam_jax.subset_value_and_grad(
        losses, hparams["rho"], hparams.get("lam", 0.0), fraction=fraction, **method.ascent(hparams)
    )
    _, wanted = of_library(PROBLEM.params, PROBLEM.batch)
    run = train(name, fraction=fraction)[1]
    near(gradient(run), wanted)
    assert run.state["examples"] == 3 * 6


@pytest.mark.parametrize("name", quick(PERTURBED, "CORAL+DISAM", "DISAM-own-std"))
def test_steps_before_begin_are_those_of_the_method_without_a_perturbation(name):
    plain = next(each for each, method in METHODS.items() if method is unperturbed(METHODS[name]))
    late, early = train(name, 3, begin=2, fraction=0.5), train(plain, 3)
    for run, wanted in zip(late[:3], early[:3], strict=True):
        jax.tree.map(np.testing.assert_array_equal, run.params, wanted.params)
    apart = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), late[3].params, early[3].params)
    assert max(jax.tree.leaves(apart)) > 1e-6


@pytest.mark.parametrize("name", quick(PERTURBED, "CORAL+DISAM"))
def test_a_method_takes_both_sides_in_proportion(name):
    """Each side by a step of its own: of the method on the subset, of the method without a perturbation on the rest."""
    subset, rest = disam_jax.split_examples(PROBLEM.batch, 0.25)
    plain = next(each for each, method in METHODS.items() if method is unperturbed(METHODS[name]))
    inside, outside = train(name, batch=subset)[1], train(plain, batch=rest)[1]
    wanted = jax.tree.map(lambda g, h: 0.25 * g + 0.75 * h, gradient(inside), gradient(outside))
    run = train(name, fraction=0.25)[1]
    near(gradient(run), wanted)
    jax.tree.map(np.testing.assert_array_equal, run.method_state, inside.method_state)


@pytest.mark.parametrize("name", ["ERM", "VREx", "CORAL"])
def test_a_method_without_a_perturbation_is_as_it_was(name):
    jax.tree.map(
        np.testing.assert_array_equal, train(name, 2, fraction=0.25, begin=0.5)[2].params, train(name, 2)[2].params
    )


def test_runs_side_by_side_keep_the_conditional():
    method, config = METHODS["DISAM"], TrainConfig(steps=10, begin=5, fraction=0.25)
    fixed = {"network": NETWORK, "method": method, "config": config}
    spec = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), spec_of(method))
    runs = jax.vmap(lambda spec: start(spec, **fixed, num_sources=3, example=EXAMPLE))(spec)
    step = jax.vmap(
        lambda run, spec, number: train_step(run, spec, number, PROBLEM.batch["x"], PROBLEM.batch["y"], **fixed),
        in_axes=(0, 0, None),
    )
    assert "cond" in {each.primitive.name for each in jax.make_jaxpr(step)(runs, spec, jnp.int32(0)).eqns}


@pytest.mark.parametrize(("begin", "step"), [(0, 0), (0.5, 5), (0.25, 3), (1, 1), (7, 7)])
def test_begin_is_a_step_or_a_share_of_the_steps(begin, step):
    assert TrainConfig(steps=10, begin=begin).begin_step == step


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fraction": 0.0}, r"--fraction must be in \(0, 1\], got 0"),
        ({"fraction": 1.5}, r"--fraction must be in \(0, 1\], got 1.5"),
        ({"begin": -1}, "--begin must be finite and not negative, got -1"),
        ({"begin": 1.5}, "--begin must be a whole number of steps or a share of them below 1, got 1.5: write 1"),
        ({"begin": 400}, "--begin must leave steps with a perturbation: got 400 of 400 --steps"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        check_config(TrainConfig(**values))


def test_a_side_without_enough_examples_is_refused_before_training():
    data, config = toy(), TrainConfig(per_domain=4, fraction=0.25)
    plan = Plan({"CORAL+SAM": [{}]}, targets=(1,), seeds=(0, 1))
    with pytest.raises(InputError, match=r"leaves 1 and 3 examples of each domain, and CORAL\+SAM needs 2"):
        prepare_sweep(data, NETWORK, config, {"CORAL+SAM": METHODS["CORAL+SAM"]}, plan)
    check_subset("CORAL+SAM", METHODS["CORAL+SAM"], 4, 0.5)


def test_a_method_whose_base_is_unknown_is_refused():
    method = Method(no_update, METHODS["SAM"].hparams, base="Mine")
    with pytest.raises(InputError, match="the base of one that has rho is Mine: give its Method the base that has no"):
        unperturbed(method)


def test_a_record_has_them_only_where_they_act():
    record = TrainConfig().record()
    assert not {"fraction", "begin"} & set(record)
    assert TrainConfig(fraction=0.5, begin=0.5).record() == {**record, "fraction": 0.5, "begin": 0.5}
