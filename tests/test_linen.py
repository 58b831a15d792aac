"""Flax Linen with a stock TrainState: statistics of the clean pass, once; one dropout mask; any optimizer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from flax.training.train_state import TrainState

import disam_jax

RHO, LAM = 0.1, 0.5
M, N = 3, 16


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Network(nn.Module):
    dropout: float = 0.5

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(jnp.tanh(x))
        return nn.Dense(3)(x)


def make(dropout=0.5):
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(M, dtype=np.int32), N)
    x = (rng.normal(size=(M * N, 4)) * (1 + ids[:, None])).astype(np.float32)
    batch = {"x": x, "y": rng.integers(0, 3, M * N).astype(np.int32), "domain": ids}
    network = Network(dropout)
    variables = network.init(jax.random.key(0), batch["x"], train=False)
    state = TrainState.create(apply_fn=network.apply, params=variables["params"], tx=optax.adamw(1e-2))
    return state, variables["batch_stats"], batch


def losses_and_statistics(params, apply_fn, statistics, batch, key):
    """Domain losses, and the running statistics as aux, as a Linen user writes them."""
    logits, updates = apply_fn(
        {"params": params, "batch_stats": statistics},
        batch["x"],
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": key},
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    return disam_jax.mean_by_domain(losses, batch["domain"], M), updates["batch_stats"]


@jax.jit
def disam_step(state, statistics, batch, key):
    gradient = disam_jax.value_and_grad(losses_and_statistics, RHO, LAM, has_aux=True)
    (loss, statistics), grads = gradient(state.params, state.apply_fn, statistics, batch, key)
    return state.apply_gradients(grads=grads), statistics, loss


@jax.jit
def plain_step(state, statistics, batch, key):
    def loss(params):
        losses, new = losses_and_statistics(params, state.apply_fn, statistics, batch, key)
        return jnp.mean(losses.values), new

    (value, statistics), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads), statistics, value


@pytest.mark.slow
def test_running_statistics_move_once_and_are_bitwise_those_of_the_plain_step():
    state, statistics, batch = make()
    key = jax.random.key(1)
    _, ours, loss = disam_step(state, statistics, batch, key)
    _, plain, plain_loss = plain_step(state, statistics, batch, key)
    for a, b, old in zip(*map(jax.tree.leaves, (ours, plain, statistics)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, old)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)
    # Once: from a mean of 0, momentum 0.9 leaves a tenth of the batch's mean; twice would leave 0.19 of it.
    hidden = batch["x"] @ state.params["Dense_0"]["kernel"] + state.params["Dense_0"]["bias"]
    np.testing.assert_allclose(ours["BatchNorm_0"]["mean"], 0.1 * hidden.mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_dropout_mask_is_the_same_in_both_passes():
    state, statistics, batch = make(dropout=0.7)
    fn = disam_jax.value_and_grad(losses_and_statistics, 0.0, LAM, has_aux=True, with_info=True)
    (_, (_, info)), _ = fn(state.params, state.apply_fn, statistics, batch, jax.random.key(1))
    # At rho = 0 the parameters are the same, so equal losses mean equal masks; another key gives others.
    np.testing.assert_array_equal(info.domain_losses, info.perturbed_domain_losses)
    (_, (_, other)), _ = fn(state.params, state.apply_fn, statistics, batch, jax.random.key(2))
    assert not np.array_equal(info.domain_losses, other.domain_losses)


@pytest.mark.slow
def test_a_stock_train_state_trains_and_counts_one_step_per_step():
    state, statistics, batch = make(dropout=0.0)
    losses = []
    for step in range(20):
        state, statistics, loss = disam_step(state, statistics, batch, jax.random.fold_in(jax.random.key(3), step))
        losses.append(float(loss))
    assert state.step == 20
    assert losses[-1] < losses[0] - 0.1


def test_the_gradient_is_that_of_the_optax_form():
    state, statistics, batch = make()
    key = jax.random.key(4)
    gradient = disam_jax.value_and_grad(losses_and_statistics, RHO, LAM, has_aux=True)
    tx = disam_jax.disam(RHO, LAM)

    @jax.jit
    def both(params):
        _, grads = gradient(params, state.apply_fn, statistics, batch, key)
        losses = lambda p: losses_and_statistics(p, state.apply_fn, statistics, batch, key)[0]
        return grads, tx.update(None, tx.init(params), params, domain_loss_fn=losses)[0]

    grads, want = both(state.params)
    assert problems.relative_error(grads, want) < 1e-6


@pytest.mark.slow
def test_a_missing_dropout_key_is_an_error_that_names_the_stream():
    state, statistics, batch = make()

    def forgotten(params):
        variables = {"params": params, "batch_stats": statistics}
        logits, _ = state.apply_fn(variables, batch["x"], train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return disam_jax.mean_by_domain(losses, batch["domain"], M)

    with pytest.raises(Exception, match="dropout"):
        disam_jax.value_and_grad(forgotten)(state.params)
