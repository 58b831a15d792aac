"""Methods that keep a network near its first weights: L2-SP, MIRO and LP-FT."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from disam_jax.dg.methods.adam import Moments, adam_step, start_moments
from disam_jax.dg.methods.base import (
    Batch,
    Forward,
    HParams,
    Hyperparameter,
    Method,
    Outputs,
    Start,
    count_steps,
    from_loss,
    from_objective,
    head_of,
)
from disam_jax.dg.methods.combinations import BOTH
from disam_jax.dg.models.network import Params, State

# MIRO's variances start at 0.1 and are no smaller than this.
LEAST_VARIANCE = 1e-5


def squared_distance(params: Params, others: Params) -> jax.Array:
    """|w - w'|^2 over all arrays.

    Example:
        >>> float(squared_distance({"a": jnp.array([1.0, 2.0])}, {"a": jnp.array([1.0, 4.0])}))
        4.0
    """
    each = jax.tree.map(lambda w, other: jnp.square(w - other).sum(), params, others)
    return jnp.stack(jax.tree.leaves(each)).sum()


def l2_sp(
    params: Params, batch: Batch, forward: Forward, hparams: HParams, start: Params
) -> tuple[jax.Array, tuple[State, Params]]:
    """L_i + l2_sp / 2 * norm(w - w_0)^2, w_0 the parameters at the start of the run, a new last layer included.

    Returns:
        Domain losses, float [M]; the states of the network and of the method, which is w_0.

    Example:
        >>> forward = lambda w: Outputs(w * jnp.array([1.0, 3.0]), logits=None, features=None, state={})
        >>> losses, _ = l2_sp(jnp.float32(1.0), None, forward, {"l2_sp": 0.5}, jnp.float32(3.0))
        >>> losses.tolist()
        [2.0, 4.0]

    References:
        Li et al., Explicit Inductive Bias for Transfer Learning with Convolutional Networks, ICML 2018.
    """
    del batch
    outputs = forward(params)
    return outputs.losses + 0.5 * hparams["l2_sp"] * squared_distance(params, start), (outputs.state, start)


class Oracle(NamedTuple):
    """What MIRO carries: the first parameters, and the variances of the features with their optimizer's moments.

    Attributes:
        start: First parameters of the network.
        raw: Inverse softplus of the variances less `LEAST_VARIANCE`, float32 [F].
        moments: Moments of Adam.
    """

    start: Params
    raw: jax.Array
    moments: Moments


def start_oracle(start: Start) -> Oracle:
    """What MIRO carries at first: variances of 0.1.

    Example:
        >>> start = Start(num_sources=3, params={}, num_features=2)
        >>> [round(value, 3) for value in jax.nn.softplus(start_oracle(start).raw).tolist()]
        [0.1, 0.1]
    """
    raw = jnp.full(start.num_features, math.log(math.expm1(0.1 - LEAST_VARIANCE)), jnp.float32)
    return Oracle(start.params, raw, start_moments(raw))


def oracle_bound(raw: jax.Array, features: jax.Array, first: jax.Array) -> jax.Array:
    """Half the mean of (z - z_0)^2 / v + log v, v = softplus(raw) + 1e-5: minus a bound of the mutual information.

    Args:
        raw: float [F].
        features: z, float [M, n, F].
        first: z_0, float [M, n, F].

    Returns:
        float [].

    Example:
        >>> raw, features = jnp.full(3, 0.5413), jnp.ones((2, 4, 3))  # v = 1
        >>> round(float(oracle_bound(raw, features, 0.0 * features)), 3)
        0.5
    """
    variances = (jax.nn.softplus(raw) + LEAST_VARIANCE)[None, None]
    return 0.5 * (jnp.square(features - first) / variances + jnp.log(variances)).mean()


def miro(
    params: Params, batch: Batch, forward: Forward, hparams: HParams, oracle: Oracle
) -> tuple[jax.Array, tuple[State, Oracle]]:
    """MIRO: L_i + miro_lambda * `oracle_bound`, z_0 the features of the first parameters; Adam fits the variances.

    The features are those of the last layer; the paper adds the same of each block. z_0 is of a pass in training mode,
    with the same dropout masks.

    Returns:
        Domain losses, float [M], and the states of the network and of the method.

    Example:
        >>> def forward(w):
        ...     return Outputs(jnp.array([1.0, 2.0]), logits=None, features=w * jnp.ones((2, 3, 4)), state={})
        >>> oracle = start_oracle(Start(2, jnp.float32(1.0), num_features=4))
        >>> losses, _ = miro(jnp.float32(1.0), None, forward, {"miro_lambda": 0.0, "miro_lr": 0.1}, oracle)
        >>> losses.tolist()
        [1.0, 2.0]

    References:
        Cha et al., Domain Generalization by Mutual-Information Regularization with Pre-trained Models, ECCV 2022.
    """
    del batch
    outputs = forward(params)
    first = jax.lax.stop_gradient(forward(oracle.start).features)
    value = outputs.losses + hparams["miro_lambda"] * oracle_bound(oracle.raw, outputs.features, first)
    bound = lambda raw: hparams["miro_lambda"] * oracle_bound(raw, jax.lax.stop_gradient(outputs.features), first)
    raw, moments = adam_step(oracle.raw, jax.grad(bound)(oracle.raw), oracle.moments, hparams["miro_lr"], 0.9)
    return value, (outputs.state, Oracle(oracle.start, raw, moments))


def lp_ft(outputs: Outputs, batch: Batch, hparams: HParams, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Linear probing, then fine-tuning: CE(head(z), y) in which only the head has a gradient before step probe_steps.

    What the optimizer adds by itself, weight decay and what momentum has gathered, goes on; running statistics follow
    the batches from the first step.

    Returns:
        Domain losses, float [M], and the number of steps.

    Example:
        >>> def slope(step):
        ...     def loss(z):
        ...         outputs = Outputs(None, None, z, {}, head=lambda z: z)
        ...         batch = Batch(None, jnp.array([[1]]), None)
        ...         return lp_ft(outputs, batch, {"probe_steps": 5.0}, jnp.int32(step))[0].mean()
        ...     return jax.grad(loss)(jnp.zeros((1, 1, 2)))
        >>> slope(4).tolist(), slope(5).tolist()
        ([[[0.0, 0.0]]], [[[0.5, -0.5]]])

    References:
        Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution, ICLR 2022.
    """
    probing = step.astype(jnp.float32) < hparams["probe_steps"]
    features = jnp.where(probing, jax.lax.stop_gradient(outputs.features), outputs.features)
    losses = optax.softmax_cross_entropy_with_integer_labels(head_of(outputs)(features), batch.y)
    return losses.mean(1), step + 1


METHODS = {
    "L2-SP": Method(
        from_loss(l2_sp),
        # The range is ours.
        {"l2_sp": Hyperparameter(0.01, -4.0, 0.0)},
        init=lambda start: start.params,
        note="a pull towards the first weights",
        formula="L + l2_sp / 2 * norm(w - w_0)^2, w_0 the weights from which the run starts",
        source="Li et al., Explicit Inductive Bias for Transfer Learning with Convolutional Networks, ICML 2018",
        needs=("pretrained weights",),
        extra=True,
        sharpness=BOTH,
    ),
    "MIRO": Method(
        from_loss(miro),
        # The default is the one of the released code for PACS and VLCS, the rate ten times DomainBed's for images.
        {"miro_lambda": Hyperparameter(0.01, -3.0, 0.0), "miro_lr": Hyperparameter(5e-4, -4.0, -2.5)},
        init=start_oracle,
        note="features that keep what the first weights' features say",
        formula="L + miro_lambda / 2 * mean((z - z_0)^2 / v + log v), z_0 of w_0, v of each feature descends it too",
        source="Cha et al., Domain Generalization by Mutual-Information Regularization, ECCV 2022",
        needs=("second player", "pretrained weights"),
        cost=4 / 3,
        extra=True,
        sharpness=BOTH,
    ),
    "LP-FT": Method(
        from_objective(lp_ft),
        # The default is the one of ERM++ in DomainBed, the range ours.
        {"probe_steps": Hyperparameter(500.0, 2.0, 3.5, of_steps=True)},
        state=count_steps,
        note="linear probing, then fine-tuning",
        formula="L, with a gradient for the last layer alone before step probe_steps",
        source="Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution, "
        "ICLR 2022",
        needs=("last layer", "pretrained weights"),
        extra=True,
        sharpness=BOTH,
    ),
}
