"""Equinox modules and plain pytrees, through the same functions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import disam_jax

RHO, LAM = 0.1, 0.5
M, N = 3, 16


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def make():
    rng = np.random.default_rng(0)
    model = eqx.nn.MLP(4, 3, width_size=8, depth=1, key=jax.random.key(0))
    x = rng.normal(size=(M, N, 4)).astype(np.float32) * np.array([0.5, 1, 2], np.float32)[:, None, None]
    return model, {"x": x, "y": rng.integers(0, 3, (M, N)).astype(np.int32)}


def domain_losses(params, static, batch):
    """A module is its arrays and everything else: the first are the parameters."""
    model = eqx.combine(params, static)

    def loss(model, one):
        logits = jax.vmap(model)(one["x"])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, one["y"]))

    return jax.vmap(lambda one: loss(model, one))(batch)


@pytest.mark.slow
def test_equinox_with_the_gradient_function():
    model, batch = make()
    tx = optax.adamw(1e-2)
    gradient = disam_jax.value_and_grad(domain_losses, RHO, LAM)

    @eqx.filter_jit
    def step(model, state, batch):
        params, static = eqx.partition(model, eqx.is_inexact_array)
        loss, grads = gradient(params, static, batch)
        updates, state = tx.update(grads, state, params)
        return eqx.apply_updates(model, updates), state, loss

    state, losses = tx.init(eqx.filter(model, eqx.is_inexact_array)), []
    for _ in range(30):
        model, state, loss = step(model, state, batch)
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.slow
def test_equinox_with_the_transformation_gives_the_same_gradient():
    model, batch = make()
    params, static = eqx.partition(model, eqx.is_inexact_array)
    tx = optax.chain(disam_jax.disam(RHO, LAM, num_domains=M), optax.sgd(0.1))
    losses = lambda p: domain_losses(p, static, batch)
    updates, state = tx.update(None, tx.init(params), params, domain_loss_fn=losses)
    _, grads = disam_jax.value_and_grad(domain_losses, RHO, LAM)(params, static, batch)
    assert problems.relative_error(updates, jax.tree.map(lambda g: -0.1 * g, grads)) < 1e-6
    np.testing.assert_allclose(optax.tree.get(state, "domain_losses"), losses(params), rtol=1e-6)


@pytest.mark.slow
def test_a_plain_pytree_of_lists_and_scalars():
    params = [jnp.ones((2, 3)), (jnp.zeros(3), jnp.float32(2.0)), {"unused": None}]

    def losses(p):
        w, (b, scale), _ = p
        return jnp.stack([jnp.sum((w * k).sum(0) + b) * scale for k in (1.0, 2.0)]) ** 2

    loss, grads = disam_jax.value_and_grad(losses, RHO, LAM)(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    np.testing.assert_allclose(loss, jnp.mean(losses(params)), rtol=1e-6)


@pytest.mark.parametrize("entry", ["value_and_grad", "accumulated", "part", "init", "update"])
def test_a_whole_model_is_refused_with_the_leaf_and_the_way_to_split_it(entry):
    model, batch = make()
    losses = lambda model, batch: domain_losses(model, None, batch)
    tx = disam_jax.disam(RHO, LAM)
    calls = {
        "value_and_grad": lambda: disam_jax.value_and_grad(losses)(model, batch),
        "accumulated": lambda: disam_jax.accumulated_value_and_grad(losses)(model, batch),
        "part": lambda: disam_jax.subset_value_and_grad(losses)(model, batch),
        "init": lambda: tx.init(model),
        "update": lambda: tx.update(None, None, model, domain_loss_fn=losses),
    }
    with pytest.raises(TypeError) as error:
        calls[entry]()
    assert "params.activation" in str(error.value)
    assert "eqx.partition(model, eqx.is_inexact_array)" in str(error.value)
