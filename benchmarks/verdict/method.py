"""Every arm of the verdict as one gradient with numbers for switches, so that one compiled program trains them all.

The library has these methods one by one, each with its own program. `tests/benchmarks/test_verdict.py` holds every arm
to the library's method of its name.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import disam_jax
from disam_jax.dg.methods import Batch, HParams, Method
from disam_jax.dg.methods.base import Forward
from disam_jax.dg.methods.objectives import annealed

# What an arm has unless it says something else: all together, the gradient of the mean loss.
PLAIN = {
    "rho": 0.0,
    "adaptive": 0.0,  # 1: e is measured relative to the weights, as in ASAM
    "variance": 0.0,  # lam of the variance of the domain losses, in the ascent
    "std": 0.0,  # lam of their standard deviation, in the ascent
    "normalised": 0.0,  # 1: the ascent sums gradients of the domains of length 1 each
    "own": 0.0,  # 1: each domain is perturbed by itself
    "descent": 0.0,  # lam of the standard deviation at w + e, in the descent
    "gap": 0.0,  # alpha of GSAM
    "matching": 0.0,  # alpha of SAGM
    "matched": 0.0,  # 1: the mean of the gradients at w and at w + e, as in SAGM
    "beta": 0.0,  # V-REx
    "anneal": 0.0,  # V-REx
    "eta": 0.0,  # GroupDRO
}


def penalised_weights(losses: jax.Array, variance: jax.Array, std: jax.Array) -> jax.Array:
    """The derivative of mean L - variance Var L - std Std L in the domain losses, [M]."""
    of_variance = disam_jax.domain_weights(losses, variance)
    of_std = disam_jax.domain_weights(losses, std, penalty="std")
    return of_variance + of_std - 1.0 / len(losses)


def weighted_sum(weights: jax.Array, stacked: Any) -> Any:
    """sum_i weights_i x_i for leaves [M, ...]."""
    return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, axes=1), stacked)


def over(number: jax.Array, norm: jax.Array) -> jax.Array:
    """number / norm, and 0 where the norm is 0."""
    return jnp.where(norm > 0.0, number / jnp.where(norm > 0.0, norm, 1.0), 0.0)


def gradient(
    params: Any, batch: Batch, forward: Forward, hparams: HParams, state: tuple[jax.Array, jax.Array]
) -> tuple[Any, Any, tuple[jax.Array, jax.Array]]:
    """The descent gradient of an arm. For networks without running statistics: domains go through them one by one."""
    step, shares = state
    number = len(batch.y)

    def domain_loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return forward(params, x[None], y[None]).losses[0]

    losses_and_gradients = lambda params, axis: jax.vmap(jax.value_and_grad(domain_loss), (axis, 0, 0))(
        params, batch.x, batch.y
    )
    losses, gradients = losses_and_gradients(params, None)
    weights = penalised_weights(losses, hparams["variance"], hparams["std"])

    norms = jax.vmap(optax.tree.norm)(gradients)
    lengths = jnp.where(hparams["normalised"] > 0.0, over(1.0, norms), 1.0)
    ascent = weighted_sum(weights * lengths, gradients)
    metric = jax.tree.map(lambda w: jnp.where(hparams["adaptive"] > 0.0, jnp.abs(w), 1.0), params)
    relative = jax.tree.map(jnp.multiply, metric, ascent)
    scale = over(hparams["rho"], optax.tree.norm(relative)) - hparams["matching"]
    shared = jax.tree.map(lambda m, r: scale * m * r, metric, relative)
    own_scales = over(hparams["rho"] * number * weights, norms)

    def perturbed(w: jax.Array, e: jax.Array, g: jax.Array) -> jax.Array:
        own = own_scales.reshape(-1, *[1] * w.ndim) * g
        return w[None] + jnp.where(hparams["own"] > 0.0, own, e[None])

    points = jax.tree.map(perturbed, params, shared, gradients)
    losses, gradients_there = losses_and_gradients(points, 0)

    # As in GroupDRO; with eta = 0 the shares stay equal.
    shares = jax.nn.softmax(jnp.log(shares) + hparams["eta"] * losses)
    beta = jnp.where(hparams["beta"] > 0.0, annealed(hparams["beta"], hparams, step), 0.0)
    down = shares + penalised_weights(losses, -beta, hparams["descent"]) - 1.0 / number
    there = weighted_sum(down, gradients_there)

    mean = weighted_sum(jnp.full(number, 1.0 / number), gradients)
    along = over(optax.tree.vdot(mean, there), optax.tree.vdot(there, there))

    def combined(g: jax.Array, h: jax.Array) -> jax.Array:
        matched = 0.5 * h + 0.5 * g
        return jnp.where(hparams["matched"] > 0.0, matched, h - hparams["gap"] * (g - along * h))

    result = jax.tree.map(combined, mean, there)
    return result, forward(params).state, (step + 1, shares)


def initial_state(sources: int) -> tuple[jax.Array, jax.Array]:
    """The number of steps, and GroupDRO's shares."""
    return jnp.int32(0), jnp.full(sources, 1.0 / sources, jnp.float32)


VERDICT = Method(gradient, {}, state=initial_state, note="every arm of the verdict")
