"""Methods that squeeze the features: IB-ERM and IB-IRM."""

import jax
import jax.numpy as jnp

from disam_jax.dg.methods.base import (
    Batch,
    HParams,
    Hyperparameter,
    Method,
    Outputs,
    count_steps,
    from_objective,
    restart_at,
)
from disam_jax.dg.methods.combinations import BOTH
from disam_jax.dg.methods.objectives import ANNEAL, irm


def switched_on(weight: jax.Array, start: jax.Array, step: jax.Array) -> jax.Array:
    """The weight of a penalty that is off before a step.

    Example:
        >>> [float(switched_on(10.0, 5.0, jnp.int32(step))) for step in (4, 5)]
        [0.0, 10.0]
    """
    return jnp.where(step.astype(jnp.float32) < start, 0.0, weight)


def feature_variance(features: jax.Array) -> jax.Array:
    """Variance of each feature within a domain, without bias, its mean over the features: [M, n, F] -> [M].

    Example:
        >>> feature_variance(jnp.array([[[0.0, 1.0], [2.0, 1.0]]])).tolist()
        [1.0]
    """
    return features.var(1, ddof=1).mean(-1)


def ib_erm(outputs: Outputs, batch: Batch, hparams: HParams, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Information bottleneck: L_i + ib_lambda * `feature_variance`, with ib_lambda `switched_on` at ib_anneal.

    Returns:
        Domain losses, float [M], and the number of steps.

    Example:
        >>> outputs = Outputs(jnp.array([1.0]), logits=None, features=jnp.array([[[0.0], [2.0]]]), state={})
        >>> losses, step = ib_erm(outputs, None, {"ib_lambda": 0.5, "ib_anneal": 0.0}, jnp.int32(0))
        >>> losses.tolist(), int(step)
        ([2.0], 1)

    References:
        Ahuja et al., Invariance Principle Meets Information Bottleneck for Out-of-Distribution Generalization, NeurIPS
        2021, as in DomainBed.
    """
    del batch
    weight = switched_on(hparams["ib_lambda"], hparams["ib_anneal"], step)
    return outputs.losses + weight * feature_variance(outputs.features), step + 1


def ib_irm(outputs: Outputs, batch: Batch, hparams: HParams, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`irm` with the penalty of `ib_erm` beside its own.

    Example:
        >>> features, logits = jnp.array([[[0.0], [2.0]]]), jnp.zeros((1, 2, 3))
        >>> batch = Batch(x=None, y=jnp.array([[0, 0]]), key=None)
        >>> hparams = {"irm_lambda": 1.0, "anneal": 0.0, "ib_lambda": 0.5, "ib_anneal": 0.0}
        >>> losses, _ = ib_irm(Outputs(jnp.array([1.0]), logits, features, {}), batch, hparams, jnp.int32(0))
        >>> losses.tolist()
        [2.0]
    """
    squeezed, _ = ib_erm(outputs, batch, hparams, step)
    return irm(outputs._replace(losses=squeezed), batch, hparams, step)


IB = {
    "ib_lambda": Hyperparameter(100.0, -1.0, 5.0),
    "ib_anneal": Hyperparameter(500.0, 0.0, 4.0, of_steps=True),
}
AHUJA = "Ahuja et al., Invariance Principle Meets Information Bottleneck, NeurIPS 2021"

METHODS = {
    "IB-ERM": Method(
        from_objective(ib_erm),
        IB,
        state=count_steps,
        restart=restart_at("ib_anneal"),
        min_per_domain=2,
        note="information bottleneck: small variance of the features",
        formula="L + ib_lambda * mean_i mean var(z_i), from step ib_anneal on",
        source=AHUJA,
        needs=("domain labels",),
        extra=True,
        sharpness=BOTH,
    ),
    "IB-IRM": Method(
        from_objective(ib_irm),
        {"irm_lambda": Hyperparameter(100.0, -1.0, 5.0), **ANNEAL, **IB},
        state=count_steps,
        restart=restart_at("anneal", "ib_anneal"),
        min_per_domain=2,
        note="IRMv1 with an information bottleneck",
        formula="IRM's objective + ib_lambda * mean_i mean var(z_i), from step ib_anneal on",
        source=AHUJA,
        needs=("domain labels",),
        extra=True,
        sharpness=BOTH,
    ),
}
