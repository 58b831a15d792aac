"""Methods that take steps within a step: Fish and MLDG."""

import jax
import jax.numpy as jnp

from disam_jax.dg.methods.base import Batch, Forward, HParams, Hyperparameter, Method, MethodState, choice
from disam_jax.dg.methods.gradient_agreement import mean_state
from disam_jax.dg.models.network import Params, State


def _gradient(params: Params, forward: Forward, x: jax.Array, y: jax.Array) -> tuple[Params, State]:
    def loss(params: Params) -> tuple[jax.Array, State]:
        outputs = forward(params, x, y)
        return outputs.losses.mean(), outputs.state

    return jax.grad(loss, has_aux=True)(params)


def _descended(params: Params, gradient: Params, rate: jax.Array) -> Params:
    return jax.tree.map(lambda w, g: w - rate * g, params, gradient)


def fish(
    params: Params, batch: Batch, forward: Forward, hparams: HParams, state: MethodState
) -> tuple[Params, State, MethodState]:
    """Fish: meta_lr * sum_i grad L_i(w_i), w_1 = w and w_(i+1) = w_i - learning_rate * grad L_i(w_i).

    A step of SGD with this gradient is w + meta_lr (w_(M+1) - w): one plain step after the other on the domains, of
    which the share meta_lr is kept. In DomainBed the inner steps are Adam's, whose moments go on from step to step;
    here they are plain, and the optimizer of the run takes the outer one. The domains come in their order.

    Example:
        >>> from disam_jax.dg.methods import Outputs
        >>> forward = lambda w, x, y: Outputs((w**2 * x).mean((1, 2)), logits=None, features=None, state={})
        >>> batch = Batch(jnp.ones((2, 1, 1)), jnp.zeros((2, 1), jnp.int32), key=None)
        >>> gradient, _, _ = fish(jnp.float32(1.0), batch, forward, {"meta_lr": 0.5, "learning_rate": 0.25}, ())
        >>> float(gradient)  # 0.5 * (2 + 1)
        1.5

    References:
        Shi et al., Gradient Matching for Domain Generalization, ICLR 2022, algorithm 1.
    """
    at, total, states = params, jax.tree.map(jnp.zeros_like, params), []
    for x, y in zip(batch.x, batch.y, strict=True):
        gradient, network_state = _gradient(at, forward, x[None], y[None])
        at = _descended(at, gradient, hparams["learning_rate"])
        total = jax.tree.map(jnp.add, total, gradient)
        states.append(network_state)
    return jax.tree.map(lambda leaf: hparams["meta_lr"] * leaf, total), mean_state(states), state


def mldg(
    params: Params, batch: Batch, forward: Forward, hparams: HParams, state: MethodState
) -> tuple[Params, State, MethodState]:
    """Meta-learning: grad F(w) + mldg_beta * grad G(w'), w' = w - learning_rate * grad F(w), of first order.

    G is the loss of one domain, drawn for each step, and F the mean loss of the others. The running statistics are
    those of the others. DomainBed takes the inner step by Adam, from one domain to one of two held-out ones.

    Example:
        >>> from disam_jax.dg.methods import Outputs
        >>> forward = lambda w, x, y: Outputs((w**2 * x).mean((1, 2)), logits=None, features=None, state={})
        >>> batch = Batch(jnp.ones((2, 1, 1)), jnp.zeros((2, 1), jnp.int32), jax.random.key(0))
        >>> gradient, _, _ = mldg(jnp.float32(1.0), batch, forward, {"mldg_beta": 1.0, "learning_rate": 0.25}, ())
        >>> float(gradient)  # 2 + 1
        3.0

    References:
        Li et al., Learning to Generalize: Meta-Learning for Domain Generalization, AAAI 2018, algorithm 1; without
        second derivatives, as in DomainBed.
    """
    order = jax.random.permutation(batch.key, jnp.arange(len(batch.x), dtype=jnp.int32))
    held_out, others = order[:1], order[1:]
    training, network_state = _gradient(params, forward, batch.x[others], batch.y[others])
    at = _descended(params, training, hparams["learning_rate"])
    test, _ = _gradient(at, forward, batch.x[held_out], batch.y[held_out])
    gradient = jax.tree.map(lambda f, g: f + hparams["mldg_beta"] * g, training, test)
    return gradient, network_state, state


METHODS = {
    "Fish": Method(
        fish,
        {"meta_lr": choice(0.5, 0.05, 0.1, 0.5)},
        note="gradient matching by steps on one domain after the other",
        formula="meta_lr * sum_i grad L_i(w_i), w_(i+1) = w_i - learning_rate * grad L_i(w_i)",
        source="Shi et al., Gradient Matching for Domain Generalization, ICLR 2022",
        needs=("domain labels",),
        min_sources=2,
        extra=True,
    ),
    "MLDG": Method(
        mldg,
        {"mldg_beta": Hyperparameter(1.0, -1.0, 1.0)},
        note="meta-learning: a step on all domains but one must help that one",
        formula="grad F(w) + mldg_beta * grad G(w - learning_rate * grad F(w)), G = L_j of a random j, F the others",
        source="Li et al., Learning to Generalize: Meta-Learning for Domain Generalization, AAAI 2018",
        needs=("domain labels",),
        min_sources=2,
        extra=True,
    ),
}
