"""Methods that align the features of the domains: CORAL, also at the perturbed point."""

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax.dg.methods.base import (
    Batch,
    HParams,
    Hyperparameter,
    Method,
    MethodState,
    Outputs,
    from_objective,
)
from disam_jax.dg.methods.sharpness_aware import LAM, RHO, sharpness_aware


def coral_penalty(features: jax.Array) -> jax.Array:
    """Correlation alignment: how far means and covariances of the domains' features are from each other.

    The mean over pairs of domains of mean((mu_i - mu_j)^2) + mean((C_i - C_j)^2).

    Args:
        features: float [M, n, F], n at least 2.

    Returns:
        float [].

    Example:
        >>> float(coral_penalty(jnp.array([[[0.0], [2.0]], [[1.0], [3.0]]])))
        1.0

    References:
        Sun and Saenko, Deep CORAL, ECCV workshops 2016; with the means as in DomainBed.
    """
    number, size = features.shape[:2]
    if number < 2:
        return jnp.zeros((), features.dtype)
    means = features.mean(1)
    centred = features - means[:, None]
    covariances = jnp.einsum("mni,mnj->mij", centred, centred) / (size - 1)
    first, second = np.triu_indices(number, 1)
    apart = lambda values: jnp.square(values[first] - values[second]).mean()
    return apart(means) + apart(covariances)


def coral(outputs: Outputs, batch: Batch, hparams: HParams, state: MethodState) -> tuple[jax.Array, MethodState]:
    """L_i + gamma * `coral_penalty`: a term shared by all domains, which leaves the spread of their losses unchanged.

    Returns:
        Domain losses, float [M], and the state.

    Example:
        >>> features = jnp.array([[[0.0], [2.0]], [[1.0], [3.0]]])
        >>> outputs = Outputs(jnp.array([1.0, 2.0]), logits=None, features=features, state={})
        >>> losses, _ = coral(outputs, None, {"gamma": 0.5}, ())
        >>> losses.tolist()
        [1.5, 2.5]
    """
    del batch
    return outputs.losses + hparams["gamma"] * coral_penalty(outputs.features), state


# DomainBed's default and range.
GAMMA = {"gamma": Hyperparameter(1.0, -1.0, 1.0)}

METHODS = {
    # One example has no covariance.
    "CORAL": Method(
        from_objective(coral), GAMMA, min_per_domain=2, note="correlation alignment of the domains' features"
    ),
    "CORAL+SAM": Method(
        sharpness_aware(coral), {**GAMMA, **RHO}, base="CORAL", min_per_domain=2, note="CORAL at SAM's w + e"
    ),
    "CORAL+DISAM": Method(
        sharpness_aware(coral),
        {**GAMMA, **RHO, **LAM["variance"]},
        base="CORAL+SAM",
        min_per_domain=2,
        note="CORAL at DISAM's w + e, a row of the paper's table",
    ),
}
