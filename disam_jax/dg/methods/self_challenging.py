"""A method that mutes the features on which an answer rests: RSC."""

import jax
import jax.numpy as jnp
import optax

from disam_jax.dg.methods.base import (
    Batch,
    HParams,
    Hyperparameter,
    Method,
    MethodState,
    Outputs,
    from_objective,
    head_of,
)
from disam_jax.dg.methods.combinations import BOTH


def rsc_mask(outputs: Outputs, labels: jax.Array, feature_drop: jax.Array, batch_drop: jax.Array) -> jax.Array:
    """Which features of which examples stay.

    In each example the features whose gradient of the label's logit is among the highest feature_drop of them are
    muted; this is done to the examples whose probability of the label it lowers most, batch_drop of all.

    Args:
        outputs: Outputs with features [M, n, F] and a head.
        labels: int [M, n].
        feature_drop: Share of the features, float [].
        batch_drop: Share of the examples, float [].

    Returns:
        float [M, n, F] of 0 and 1.

    Example:
        >>> outputs = Outputs(None, jnp.array([[[2.0, 3.0]]]), jnp.array([[[2.0, 3.0]]]), {}, head=lambda z: z)
        >>> rsc_mask(outputs, jnp.array([[1]]), jnp.float32(0.5), jnp.float32(0.5)).tolist()
        [[[1.0, 0.0]]]
    """
    head, features = head_of(outputs), jax.lax.stop_gradient(outputs.features)
    right = jax.nn.one_hot(labels, outputs.logits.shape[-1], dtype=features.dtype)
    slopes = jax.grad(lambda z: (head(z) * right).sum())(features)
    kept = slopes < jnp.quantile(slopes, 1.0 - feature_drop, axis=-1, keepdims=True)
    probability = lambda logits: (jax.nn.softmax(logits) * right).sum(-1)
    lost = probability(outputs.logits) - probability(head(features * kept.astype(features.dtype)))
    whole = lost < jnp.quantile(lost, 1.0 - batch_drop)
    return jax.lax.stop_gradient((kept | whole[..., None]).astype(features.dtype))


def rsc(outputs: Outputs, batch: Batch, hparams: HParams, state: MethodState) -> tuple[jax.Array, MethodState]:
    """Representation self-challenging: the loss of the features that `rsc_mask` leaves.

    Returns:
        Domain losses, float [M], and the state.

    Example:
        >>> outputs = Outputs(None, jnp.array([[[2.0, 3.0]]]), jnp.array([[[2.0, 3.0]]]), {}, head=lambda z: z)
        >>> batch, hparams = Batch(None, jnp.array([[1]]), None), {"feature_drop": 0.5, "batch_drop": 0.5}
        >>> losses, _ = rsc(outputs, batch, hparams, ())  # of the logits 2 and 0
        >>> round(float(losses[0]), 4)
        2.1269

    References:
        Huang et al., Self-Challenging Improves Cross-Domain Generalization, ECCV 2020, as in DomainBed.
    """
    mask = rsc_mask(outputs, batch.y, hparams["feature_drop"], hparams["batch_drop"])
    logits = head_of(outputs)(outputs.features * mask)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.y).mean(1), state


METHODS = {
    "RSC": Method(
        from_objective(rsc),
        {
            "feature_drop": Hyperparameter(1 / 3, 0.0, 0.5, uniform=True),
            "batch_drop": Hyperparameter(1 / 3, 0.0, 0.5, uniform=True),
        },
        note="representation self-challenging: the features that an answer rests on are muted",
        formula="CE(head(mask * z), y), mask 0 for the feature_drop of z with the highest d logit_y / dz, in the "
        "batch_drop of examples that lose most by it",
        source="Huang et al., Self-Challenging Improves Cross-Domain Generalization, ECCV 2020",
        needs=("last layer",),
        extra=True,
        sharpness=BOTH,
    ),
}
