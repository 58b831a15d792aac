"""Methods that minimise another objective than the mean loss: V-REx, GroupDRO, IRM, Mixup and SD.

Defaults and ranges are those of DomainBed's `hparams_registry`, which are meant for Adam. The weights of V-REx and IRM
have smaller ones with stochastic gradient descent, which diverges with those (docs/domainbed.md).
"""

import jax
import jax.numpy as jnp
import optax

from disam_jax.dg.methods.base import (
    Batch,
    Forward,
    HParams,
    Hyperparameter,
    Method,
    MethodError,
    MethodState,
    Outputs,
    count_steps,
    from_objective,
    restart_at,
)
from disam_jax.dg.models.inputs import to_float
from disam_jax.dg.models.network import Params, State


def annealed(weight: jax.Array, hparams: HParams, step: jax.Array) -> jax.Array:
    """The weight of a penalty: 1 for the first `anneal` steps, then its full value.

    As in DomainBed, the optimizer is made new when that changes, see `Method.restart`.

    Example:
        >>> [float(annealed(10.0, {"anneal": 5.0}, jnp.int32(step))) for step in (4, 5)]
        [1.0, 10.0]
    """
    return jnp.where(step.astype(jnp.float32) < hparams["anneal"], 1.0, weight)


def vrex(outputs: Outputs, batch: Batch, hparams: HParams, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Risk extrapolation: mean_i L_i + beta * mean_i (L_i - mean L)^2, with beta `annealed`.

    Example:
        >>> outputs = Outputs(jnp.array([1.0, 3.0]), logits=None, features=None, state={})
        >>> loss, step = vrex(outputs, None, {"beta": 10.0, "anneal": 5.0}, jnp.int32(5))
        >>> float(loss), int(step)
        (12.0, 6)

    References:
        Krueger et al., Out-of-Distribution Generalization via Risk Extrapolation, ICML 2021.
    """
    del batch
    return outputs.losses.mean() + annealed(hparams["beta"], hparams, step) * outputs.losses.var(), step + 1


def group_dro(outputs: Outputs, batch: Batch, hparams: HParams, shares: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Distributionally robust optimisation over groups: sum_i q_i L_i with q_i <- q_i exp(eta L_i) / sum_j (...).

    Example:
        >>> outputs = Outputs(jnp.log(jnp.array([1.0, 3.0])), logits=None, features=None, state={})
        >>> _, shares = group_dro(outputs, None, {"eta": 1.0}, jnp.array([0.5, 0.5]))
        >>> [round(share, 3) for share in shares.tolist()]
        [0.25, 0.75]

    References:
        Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, ICLR 2020.
    """
    del batch
    # A softmax of logarithms, so that no loss is large enough to overflow.
    shares = jax.nn.softmax(jnp.log(shares) + hparams["eta"] * jax.lax.stop_gradient(outputs.losses))
    return jnp.dot(shares, outputs.losses), shares


def irm_penalty(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Squared gradient of each domain's loss with respect to a factor on the logits, estimated without bias.

    With D(z, y) = d/ds CE(s z, y) at s = 1, which is sum_c softmax(z)_c z_c - z_y: the mean of D over the examples at
    even places times its mean over those at odd places.

    Args:
        logits: float [M, n, C], n at least 2.
        labels: int [M, n].

    Returns:
        float [M]. It may be negative.

    Example:
        >>> irm_penalty(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2), jnp.int32)).tolist()
        [0.0]
    """
    of_label = jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
    slopes = (jax.nn.softmax(logits) * logits).sum(-1) - of_label
    return slopes[:, ::2].mean(1) * slopes[:, 1::2].mean(1)


def irm(outputs: Outputs, batch: Batch, hparams: HParams, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Invariant risk minimisation (IRMv1): L_i + irm_lambda * `irm_penalty`, with irm_lambda `annealed`.

    Returns:
        Domain losses, float [M], and the number of steps.

    Example:
        >>> outputs = Outputs(jnp.array([1.0]), logits=jnp.array([[[0.0, 1.0]] * 2]), features=None, state={})
        >>> batch = Batch(x=None, y=jnp.array([[0, 0]]), key=None)
        >>> losses, step = irm(outputs, batch, {"irm_lambda": 100.0, "anneal": 0.0}, jnp.int32(0))
        >>> [round(loss, 2) for loss in losses.tolist()], int(step)
        ([54.44], 1)

    References:
        Arjovsky et al., Invariant Risk Minimization, 2019, section 3; half batches and annealing as in DomainBed.
    """
    weight = annealed(hparams["irm_lambda"], hparams, step)
    return outputs.losses + weight * irm_penalty(outputs.logits, batch.y), step + 1


def sd(outputs: Outputs, batch: Batch, hparams: HParams, state: MethodState) -> tuple[jax.Array, MethodState]:
    """Spectral decoupling: L_i + sd_reg * the mean square of the domain's logits.

    Returns:
        Domain losses, float [M], and the state.

    Example:
        >>> outputs = Outputs(jnp.array([1.0]), logits=jnp.array([[[0.0, 2.0]]]), features=None, state={})
        >>> losses, _ = sd(outputs, None, {"sd_reg": 0.5}, ())
        >>> losses.tolist()
        [2.0]

    References:
        Pezeshki et al., Gradient Starvation: A Learning Proclivity in Neural Networks, NeurIPS 2021, as in DomainBed.
    """
    del batch
    return outputs.losses + hparams["sd_reg"] * jnp.square(outputs.logits).mean((1, 2)), state


def mixup_pairs(key: jax.Array, number: int, alpha: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which domains are mixed: each with the next one in a random order, the last with the first.

    Args:
        key: Random key.
        number: Number M of domains.
        alpha: Both parameters of the Beta distribution of the shares, positive.

    Returns:
        First domain and second domain of each pair, int32 [M], and share of the first, float32 [M].

    Example:
        >>> first, second, shares = mixup_pairs(jax.random.key(0), 3, jnp.float32(0.2))
        >>> sorted(first.tolist()), sorted(second.tolist()), shares.shape
        ([0, 1, 2], [0, 1, 2], (3,))
    """
    of_order, of_shares = jax.random.split(key)
    order = jax.random.permutation(of_order, jnp.arange(number, dtype=jnp.int32))
    return order, jnp.roll(order, -1), jax.random.beta(of_shares, alpha, alpha, (number,), jnp.float32)


def mixup(
    params: Params, batch: Batch, forward: Forward, hparams: HParams, state: MethodState
) -> tuple[Params, State, MethodState]:
    """Mixup of the domains in `mixup_pairs`: mean over pairs of s CE(f(z), y_i) + (1 - s) CE(f(z), y_j).

    The inputs are z = s x_i + (1 - s) x_j, with one share s ~ Beta(mixup_alpha, mixup_alpha) for each pair; images are
    mixed as numbers in [0, 1].

    Example:
        >>> forward = lambda w, x: Outputs(None, logits=w * x, features=None, state={})
        >>> x = jnp.array([[[0.0, 4.0]], [[0.0, 4.0]]])
        >>> batch = Batch(x, jnp.zeros((2, 1), jnp.int32), jax.random.key(0))
        >>> gradient, _, _ = mixup(jnp.float32(0.0), batch, forward, {"mixup_alpha": jnp.float32(0.2)}, ())
        >>> float(gradient)
        2.0

    References:
        Yan et al., Improve Unsupervised Domain Adaptation with Mixup Training, 2020, as in DomainBed.
    """
    if not jnp.issubdtype(batch.y.dtype, jnp.integer):
        raise MethodError(
            f"Mixup takes the cross-entropy of two labels, so labels must be classes, int32, got {batch.y.dtype}: "
            "number the classes from 0"
        )
    x = to_float(batch.x)
    first, second, shares = mixup_pairs(batch.key, len(x), hparams["mixup_alpha"])
    along = shares.reshape(-1, *[1] * (x.ndim - 1))
    mixed = along * x[first] + (1.0 - along) * x[second]

    def loss(params):
        outputs = forward(params, mixed)
        of = lambda labels: optax.softmax_cross_entropy_with_integer_labels(outputs.logits, labels).mean(1)
        return (shares * of(batch.y[first]) + (1.0 - shares) * of(batch.y[second])).mean(), outputs.state

    grads, network_state = jax.grad(loss, has_aux=True)(params)
    return grads, network_state, state


ANNEAL = {"anneal": Hyperparameter(500.0, 0.0, 4.0, of_steps=True)}

METHODS = {
    "VREx": Method(
        from_objective(vrex),
        {"beta": Hyperparameter(10.0, -1.0, 5.0), **ANNEAL},
        sgd={"beta": Hyperparameter(1.0, -1.0, 0.0)},
        state=count_steps,
        restart=restart_at("anneal"),
        note="risk extrapolation: a variance penalty in the descent",
        formula="L + beta * var(L_i), beta 1 before step anneal",
        source="Krueger et al., Out-of-Distribution Generalization via Risk Extrapolation, ICML 2021",
        needs=("domain labels",),
    ),
    "GroupDRO": Method(
        from_objective(group_dro),
        {"eta": Hyperparameter(0.01, -3.0, -1.0)},
        state=lambda num_sources: jnp.full(num_sources, 1.0 / num_sources, jnp.float32),
        note="distributionally robust optimisation over domains",
        formula="sum_i q_i L_i, q_i <- q_i exp(eta L_i) / sum_j q_j exp(eta L_j)",
        source="Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, ICLR 2020",
        needs=("domain labels",),
    ),
    "IRM": Method(
        from_objective(irm),
        {"irm_lambda": Hyperparameter(100.0, -1.0, 5.0), **ANNEAL},
        sgd={"irm_lambda": Hyperparameter(1.0, -1.0, 0.0)},
        state=count_steps,
        restart=restart_at("anneal"),
        min_per_domain=2,
        note="invariant risk minimisation (IRMv1)",
        formula="L + irm_lambda * mean_i (d L_i(s * logits) / ds at s = 1)^2 of two half batches, "
        "irm_lambda 1 before step anneal",
        source="Arjovsky et al., Invariant Risk Minimization, 2019",
        needs=("domain labels",),
    ),
    "Mixup": Method(
        mixup,
        {"mixup_alpha": Hyperparameter(0.2, -1.0, 1.0)},
        note="Mixup of examples of different domains",
        formula="mean over pairs of s CE(f(x), y_i) + (1 - s) CE(f(x), y_j), x = s x_i + (1 - s) x_j, "
        "s ~ Beta(mixup_alpha, mixup_alpha)",
        source="Yan et al., Improve Unsupervised Domain Adaptation with Mixup Training, 2020",
        needs=("domain labels",),
    ),
    "SD": Method(
        from_objective(sd),
        {"sd_reg": Hyperparameter(0.1, -5.0, -1.0)},
        note="spectral decoupling: small logits",
        formula="L + sd_reg * mean logits^2",
        source="Pezeshki et al., Gradient Starvation, NeurIPS 2021",
    ),
}
