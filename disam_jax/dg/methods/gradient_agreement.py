"""Methods that make the gradients of the domains agree: Fishr, IGA and AND-mask."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from disam_jax.dg.methods.base import (
    Batch,
    Forward,
    HParams,
    Hyperparameter,
    Method,
    MethodState,
    Outputs,
    Start,
    from_loss,
    from_objective,
    restart_at,
)
from disam_jax.dg.methods.bottleneck import switched_on
from disam_jax.dg.methods.combinations import BOTH
from disam_jax.dg.models.network import Params, State


class DomainGradients(NamedTuple):
    """What a pass over each domain by itself leaves.

    Attributes:
        losses: Domain losses, float [M].
        gradients: Their gradients, leaves [M, ...].
        state: Mean of the running statistics that the passes leave.
    """

    losses: jax.Array
    gradients: Params
    state: State


def mean_state(states: list[State]) -> State:
    """The mean of running statistics.

    Example:
        >>> mean_state([{"mean": jnp.array([1.0])}, {"mean": jnp.array([3.0])}])["mean"].tolist()
        [2.0]
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves).mean(0).astype(leaves[0].dtype), *states)


def domain_gradients(params: Params, batch: Batch, forward: Forward) -> DomainGradients:
    """The gradient of each domain's loss; the domains go through the network one after the other, as in DomainBed.

    BatchNorm normalises each domain by itself, and dropout has the same masks for each. All of them together cost one
    gradient of the batch.

    Example:
        >>> forward = lambda w, x, y: Outputs((w * x).mean((1, 2)), logits=None, features=None, state={})
        >>> batch = Batch(jnp.array([[[1.0]], [[3.0]]]), jnp.zeros((2, 1), jnp.int32), key=None)
        >>> domain_gradients(jnp.float32(1.0), batch, forward).gradients.tolist()
        [1.0, 3.0]
    """

    def loss(params: Params, x: jax.Array, y: jax.Array) -> tuple[jax.Array, State]:
        outputs = forward(params, x[None], y[None])
        return outputs.losses[0], outputs.state

    of_domain = jax.value_and_grad(loss, has_aux=True)
    found = [of_domain(params, x, y) for x, y in zip(batch.x, batch.y, strict=True)]
    losses = jnp.stack([value for (value, _), _ in found])
    gradients = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(gradient for _, gradient in found))
    return DomainGradients(losses, gradients, mean_state([state for (_, state), _ in found]))


def head_gradient_variances(outputs: Outputs, labels: jax.Array) -> jax.Array:
    """Variances within each domain of the gradients of the examples with respect to a linear last layer.

    The gradient of example k is z_k (p_k - onehot(y_k))^T for the kernel and p_k - onehot(y_k) for the bias, so no
    further pass is needed: of the kernel, var = E[z^2 r^2] - E[z r]^2 with r = p - onehot(y).

    Args:
        outputs: Outputs with logits [M, n, C] and features [M, n, F].
        labels: int [M, n].

    Returns:
        float [M, (F + 1) C]: kernel, then bias.

    Example:
        >>> outputs = Outputs(None, jnp.zeros((1, 2, 2)), jnp.array([[[1.0], [3.0]]]), {})
        >>> head_gradient_variances(outputs, jnp.array([[0, 0]])).tolist()
        [[0.25, 0.25, 0.0, 0.0]]
    """
    z, number = outputs.features, labels.shape[1]
    residuals = jax.nn.softmax(outputs.logits) - jax.nn.one_hot(labels, outputs.logits.shape[-1])
    mean = jnp.einsum("mnf,mnc->mfc", z, residuals) / number
    square = jnp.einsum("mnf,mnc->mfc", jnp.square(z), jnp.square(residuals)) / number
    kernel = square - jnp.square(mean)
    return jnp.concatenate([kernel.reshape(len(z), -1), residuals.var(1)], -1)


def _fishr_start(start: Start) -> MethodState:
    size = (start.num_features + 1) * start.num_classes
    return jnp.zeros((), jnp.int32), jnp.zeros((start.num_sources, size), jnp.float32)


def fishr(outputs: Outputs, batch: Batch, hparams: HParams, state: MethodState) -> tuple[jax.Array, MethodState]:
    """Fishr: L_i + fishr_lambda * mean_i mean_k (v_ik - mean_j v_jk)^2, `switched_on` at step fishr_anneal.

    v is the moving average of `head_gradient_variances`, v <- fishr_ema v + (1 - fishr_ema) var, divided by
    1 - fishr_ema, so that the size of its gradient does not depend on fishr_ema.

    Args:
        outputs: Outputs of the network, whose last layer is taken as linear in the features, with a bias.
        batch: Batch.
        hparams: fishr_lambda, fishr_ema and fishr_anneal.
        state: Number of steps, int32 [], and v before the division, float32 [M, (F + 1) C].

    Returns:
        Domain losses, float [M], and the state.

    Example:
        >>> outputs = Outputs(jnp.array([1.0, 2.0]), jnp.zeros((2, 2, 2)), jnp.ones((2, 2, 1)), {})
        >>> batch = Batch(x=None, y=jnp.zeros((2, 2), jnp.int32), key=None)
        >>> hparams = {"fishr_lambda": 1000.0, "fishr_ema": 0.95, "fishr_anneal": 0.0}
        >>> fishr(outputs, batch, hparams, (jnp.int32(0), jnp.zeros((2, 4))))[0].tolist()
        [1.0, 2.0]

    References:
        Rame et al., Fishr: Invariant Gradient Variances for Out-of-Distribution Generalization, ICML 2022, as in
        DomainBed.
    """
    step, average = state
    ema = hparams["fishr_ema"]
    new = ema * average + (1.0 - ema) * head_gradient_variances(outputs, batch.y)
    variances = new / (1.0 - ema)
    penalty = jnp.square(variances - variances.mean(0, keepdims=True)).mean()
    weight = switched_on(hparams["fishr_lambda"], hparams["fishr_anneal"], step)
    return outputs.losses + weight * penalty, (step + 1, jax.lax.stop_gradient(new))


def iga(
    params: Params, batch: Batch, forward: Forward, hparams: HParams, state: MethodState
) -> tuple[jax.Array, tuple[State, MethodState]]:
    """Inter-environment gradient alignment: mean_i L_i + iga_penalty * sum_i norm(grad L_i - grad L)^2.

    Returns:
        Scalar, and the states of the network and of the method.

    Example:
        >>> forward = lambda w, x, y: Outputs((w * x).mean((1, 2)), logits=None, features=None, state={})
        >>> batch = Batch(jnp.array([[[1.0]], [[3.0]]]), jnp.zeros((2, 1), jnp.int32), key=None)
        >>> value, _ = iga(jnp.float32(1.0), batch, forward, {"iga_penalty": 10.0}, ())
        >>> float(value)
        22.0

    References:
        Koyama and Yamaguchi, When Is Invariance Useful in an Out-of-Distribution Generalization Problem?, 2020, as in
        DomainBed.
    """
    found = domain_gradients(params, batch, forward)
    apart = jax.tree.map(lambda leaf: jnp.square(leaf - leaf.mean(0, keepdims=True)).sum(), found.gradients)
    penalty = jnp.stack(jax.tree.leaves(apart)).sum()
    return found.losses.mean() + hparams["iga_penalty"] * penalty, (found.state, state)


def masked_mean(gradients: jax.Array, tau: jax.Array) -> jax.Array:
    """The mean of the domains' gradients of one array where enough of their signs agree, 0 elsewhere.

    mask = (|mean_i sign g_i| >= tau), and the result is mask * mean_i g_i / mean(mask).

    Args:
        gradients: float [M, ...].
        tau: In [0, 1], float [].

    Returns:
        float [...].

    Example:
        >>> masked_mean(jnp.array([[1.0, 3.0], [3.0, -1.0]]), jnp.float32(1.0)).tolist()
        [4.0, 0.0]
    """
    mask = (jnp.abs(jnp.sign(gradients).mean(0)) >= tau).astype(gradients.dtype)
    return mask * gradients.mean(0) / (1e-10 + mask.mean())


def and_mask(
    params: Params, batch: Batch, forward: Forward, hparams: HParams, state: MethodState
) -> tuple[Params, State, MethodState]:
    """AND-mask: `masked_mean` of each parameter array's gradients.

    Example:
        >>> forward = lambda w, x, y: Outputs((w * x).mean((1, 2)), logits=None, features=None, state={})
        >>> batch = Batch(jnp.array([[[1.0]], [[3.0]]]), jnp.zeros((2, 1), jnp.int32), key=None)
        >>> gradient, _, _ = and_mask(jnp.float32(1.0), batch, forward, {"tau": jnp.float32(1.0)}, ())
        >>> float(gradient)
        2.0

    References:
        Parascandolo et al., Learning Explanations that are Hard to Vary, ICLR 2021, as in DomainBed.
    """
    found = domain_gradients(params, batch, forward)
    masked: Any = jax.tree.map(lambda leaf: masked_mean(leaf, hparams["tau"]), found.gradients)
    return masked, found.state, state


METHODS = {
    "Fishr": Method(
        from_objective(fishr),
        {
            "fishr_lambda": Hyperparameter(1000.0, 1.0, 4.0),
            "fishr_ema": Hyperparameter(0.95, 0.90, 0.99, uniform=True),
            "fishr_anneal": Hyperparameter(1500.0, 0.0, 5000.0, of_steps=True, uniform=True),
        },
        init=_fishr_start,
        restart=restart_at("fishr_anneal"),
        min_per_domain=2,
        note="equal variances of the last layer's gradients in all domains",
        formula="L + fishr_lambda * mean_i mean((v_i - v)^2), v_i the moving average of var of d CE / d last layer, "
        "from step fishr_anneal on",
        source="Rame et al., Fishr, ICML 2022",
        needs=("domain labels",),
        min_sources=2,
        extra=True,
        sharpness=BOTH,
    ),
    "IGA": Method(
        from_loss(iga),
        {"iga_penalty": Hyperparameter(1000.0, 1.0, 5.0)},
        note="inter-environment gradient alignment",
        cost=3.0,
        formula="L + iga_penalty * sum_i norm(grad L_i - grad L)^2",
        source="Koyama and Yamaguchi, When Is Invariance Useful in an Out-of-Distribution Generalization Problem?, "
        "2020",
        needs=("domain labels",),
        min_sources=2,
        extra=True,
    ),
    "AND-mask": Method(
        and_mask,
        {"tau": Hyperparameter(1.0, 0.5, 1.0, uniform=True)},
        note="the gradient where the domains' signs agree",
        formula="mask * grad L / mean(mask), mask = (abs(mean_i sign(grad L_i)) >= tau)",
        source="Parascandolo et al., Learning Explanations that are Hard to Vary, ICLR 2021",
        needs=("domain labels",),
        min_sources=2,
        extra=True,
    ),
}
