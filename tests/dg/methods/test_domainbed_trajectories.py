"""Trajectories of DomainBed's own classes, recorded with torch, reproduced step by step by our training step."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import slow

from disam_jax.dg.data import keys
from disam_jax.dg.methods import DOMAINBED_COMMIT, METHODS, objectives
from disam_jax.dg.models.network import Network, Output
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.step import RunSpec, start, train_step

FILE = pathlib.Path(__file__).parents[2] / "data" / "domainbed" / "trajectories.npz"
PAGE = pathlib.Path(__file__).parents[3] / "docs" / "domainbed.md"
# Our names of DomainBed's hyperparameters.
NAMES = {
    "lr": "learning_rate",
    "weight_decay": "weight_decay",
    "vrex_lambda": "beta",
    "vrex_penalty_anneal_iters": "anneal",
    "irm_lambda": "irm_lambda",
    "irm_penalty_anneal_iters": "anneal",
    "groupdro_eta": "eta",
    "mmd_gamma": "gamma",
    "mixup_alpha": "mixup_alpha",
    "sd_reg": "sd_reg",
}
TOLERANCE = 1e-10
KEY = jax.random.key(0)


@functools.cache
def recorded():
    with np.load(FILE) as file:
        return {name: file[name] for name in file.files}


@functools.cache
def meta():
    return json.loads(str(recorded()["meta"]))


def perceptron(params, x):
    """DomainBed's: rectified units after each layer but the last of the features, then a linear classifier."""
    layer = lambda name, x: x @ params[f"{name}.weight"].T + params[f"{name}.bias"][None]
    hidden = jax.nn.relu(layer("0.hiddens.0", jax.nn.relu(layer("0.input", x))))
    features = layer("0.output", hidden)
    return layer("1", features), features


def parameters(name):
    return {key.partition("/")[2]: value for key, value in recorded().items() if key.startswith(f"{name}/")}


@functools.partial(jax.jit, static_argnames=("method", "network"))
def train(spec, x, y, *, method, network):
    """Our parameters after each step [T, ...]."""
    fixed = {"network": network, "method": method, "config": TrainConfig(optimizer="adam")}
    run = start(spec, **fixed, num_sources=x.shape[1])
    # The states of methods are float32; the integers among them stay what they are.
    widen = lambda leaf: leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    run = run._replace(method_state=jax.tree.map(widen, run.method_state))

    def step(run, batch):
        run = train_step(run, spec, *batch, **fixed)
        return run, run.params

    return jax.lax.scan(step, run, (jnp.arange(len(x), dtype=jnp.int32), x, y))[1]


def farthest(name, method=None, **changed):
    """The largest difference between our parameters and those of DomainBed's class, over all steps."""
    method = method or METHODS[name]
    x, y = recorded()["x"], recorded()["y"].astype(np.int32)
    own = {**meta()["shared"], **meta()["own"][name]}
    given = {NAMES[key]: value for key, value in own.items() if key in NAMES} | changed
    spec = RunSpec(KEY, np.int32(0), np.int32(len(x)), {key: np.float64(value) for key, value in given.items()})
    initial = parameters("initial")
    network = Network(lambda key: (initial, {}), lambda w, state, x, key, train: Output(*perceptron(w, x), state))
    found, theirs = train(spec, x, y, method=method, network=network), parameters(name)
    assert initial.keys() <= theirs.keys()
    return max(np.abs(np.asarray(found[key]) - theirs[key]).max() for key in initial)


@pytest.fixture(autouse=True)
def _standard_promotion():
    # Steps are counted in float32 beside hyperparameters in float64, and optax.adam mixes dtypes itself.
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("name", [*slow("ERM", "IRM", "GroupDRO", "CORAL", "MMD", "SD"), "VREx"])
def test_a_method_takes_the_steps_of_domainbeds_class(name, x64):
    assert farthest(name) < TOLERANCE


@pytest.fixture
def recorded_draws(monkeypatch):
    """The order and the shares that DomainBed drew at each step, found by the key of that step."""
    steps = jnp.arange(len(recorded()["x"]), dtype=jnp.int32)
    known = jax.random.key_data(jax.vmap(lambda step: keys.method_key(keys.step_key(KEY, step)))(steps))
    order, shares = recorded()["Mixup/order"].astype(np.int32), recorded()["Mixup/shares"]

    def pairs(key, number, alpha):
        step = (jax.random.key_data(key)[None] == known).all(1).argmax()
        first = jnp.asarray(order)[step]
        return first, jnp.roll(first, -1), jnp.asarray(shares)[step]

    monkeypatch.setattr(objectives, "mixup_pairs", pairs)


@pytest.mark.slow
def test_mixup_takes_the_steps_of_domainbeds_class_with_its_draws(recorded_draws, x64, monkeypatch):
    # Images are mixed in float32, which is what a run has.
    monkeypatch.setattr(objectives, "to_float", lambda x: x)
    assert farthest("Mixup") < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VREx", "IRM"])
def test_the_recorded_annealing_ends_within_the_trajectory_with_a_new_optimizer(name, x64):
    assert farthest(name, anneal=4) > 1e-3
    assert farthest(name, dataclasses.replace(METHODS[name], restart=None)) > 1e-3


def test_the_trajectories_and_the_page_are_of_the_commit_that_the_library_names():
    assert meta()["commit"] == DOMAINBED_COMMIT
    assert f"`{DOMAINBED_COMMIT}`" in PAGE.read_text()
