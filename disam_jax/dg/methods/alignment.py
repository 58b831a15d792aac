"""Methods that align the features of the domains: CORAL, MMD, and CausIRL with either distance."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax.dg.methods.base import (
    Batch,
    HParams,
    Hyperparameter,
    Method,
    MethodState,
    Objective,
    Outputs,
    from_objective,
)
from disam_jax.dg.methods.combinations import BOTH, sharpness_forms

# Inverse squared widths of the Gaussian kernels, as in DomainBed.
MMD_WIDTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


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


def squared_distances(points: jax.Array) -> jax.Array:
    """Squared distances between N points [N, F], float [N, N].

    Example:
        >>> squared_distances(jnp.array([[0.0], [3.0]])).tolist()
        [[0.0, 9.0], [9.0, 0.0]]
    """
    squares = jnp.square(points).sum(-1)
    found = jnp.maximum(squares[:, None] + squares[None] - 2.0 * points @ points.T, 0.0)
    # A point's distance from itself would be a rounding error, which the narrowest kernels see.
    return jnp.where(jnp.eye(len(points), dtype=bool), 0.0, found)


def mmd_matrix(distances: jax.Array, weights: jax.Array, widths: tuple[float, ...]) -> jax.Array:
    """Squared maximum mean discrepancies between weighted samples, with a sum of Gaussian kernels.

    k(x, y) = sum_g exp(-g |x - y|^2) and MMD^2(P, Q) = E k(x, x') + E k(y, y') - 2 E k(x, y), the biased estimate.

    Args:
        distances: Squared distances between the points of all samples, float [N, N].
        weights: Weight of each point in each of G samples, float [G, N]; each row adds up to 1.
        widths: Inverse squared widths g.

    Returns:
        float [G, G].

    Example:
        >>> found = mmd_matrix(1.0 - jnp.eye(2), jnp.eye(2), (1.0,))  # 2 - 2 exp(-1)
        >>> round(float(found[0, 1]), 3)
        1.264

    References:
        Gretton et al., A Kernel Two-Sample Test, JMLR 2012.
    """
    means = weights @ sum(jnp.exp(-width * distances) for width in widths) @ weights.T
    own = jnp.diagonal(means)
    return own[:, None] + own[None] - 2.0 * means


def mmd_penalty(features: jax.Array) -> jax.Array:
    """The mean of `mmd_matrix` over pairs of domains, of features [M, n, F]; 0 for one domain.

    Example:
        >>> float(mmd_penalty(jnp.zeros((2, 3, 4))))
        0.0
    """
    number, size = features.shape[:2]
    if number < 2:
        return jnp.zeros((), features.dtype)
    weights = jnp.repeat(jnp.eye(number, dtype=features.dtype), size, axis=1) / size
    pairs = np.triu_indices(number, 1)
    return mmd_matrix(squared_distances(features.reshape(number * size, -1)), weights, MMD_WIDTHS)[pairs].mean()


def mmd(outputs: Outputs, batch: Batch, hparams: HParams, state: MethodState) -> tuple[jax.Array, MethodState]:
    """L_i + gamma * `mmd_penalty` of the features.

    Returns:
        Domain losses, float [M], and the state.

    Example:
        >>> outputs = Outputs(jnp.array([1.0, 2.0]), logits=None, features=jnp.zeros((2, 3, 4)), state={})
        >>> mmd(outputs, None, {"gamma": 0.5}, ())[0].tolist()
        [1.0, 2.0]

    References:
        Li et al., Domain Generalization with Adversarial Feature Learning, CVPR 2018; kernels as in DomainBed.
    """
    del batch
    return outputs.losses + hparams["gamma"] * mmd_penalty(outputs.features), state


def causal_split(key: jax.Array, number: int, size: int) -> jax.Array:
    """Which examples of each domain are in the first of two samples, bool [M, n]: the first 0, ..., n - 1 of them.

    Example:
        >>> causal_split(jax.random.key(0), 3, 4).shape
        (3, 4)
    """
    cuts = jax.random.randint(key, (number, 1), 0, size, jnp.int32)
    return jnp.arange(size, dtype=jnp.int32)[None] < cuts


def split_moments(points: jax.Array, members: jax.Array) -> jax.Array:
    """Distance of means and covariances of two samples: mean((mu - mu')^2) + mean((C - C')^2).

    Args:
        points: float [N, F].
        members: Whether a point is in a sample, float [2, N] of 0 and 1; at least two are in each.

    Returns:
        float [].

    Example:
        >>> float(split_moments(jnp.array([[0.0], [2.0], [1.0], [3.0]]), jnp.array([[1.0, 1, 0, 0], [0, 0, 1, 1]])))
        1.0
    """
    counts = members.sum(1)
    means = members @ points / counts[:, None]
    centred = (points[None] - means[:, None]) * members[..., None]
    covariances = jnp.einsum("gni,gnj->gij", centred, centred) / (counts - 1.0)[:, None, None]
    return jnp.square(means[0] - means[1]).mean() + jnp.square(covariances[0] - covariances[1]).mean()


def _causirl(distance: Callable[[jax.Array, jax.Array], jax.Array]) -> Objective:
    def objective(outputs: Outputs, batch: Batch, hparams: HParams, state: MethodState):
        number, size = outputs.features.shape[:2]
        first = causal_split(batch.key, number, size).reshape(-1)
        members = jnp.stack([first, ~first]).astype(jnp.float32)
        enough = members.sum(1).min() > 1.0
        # Two samples of which each has examples, so that no division by zero reaches the gradient.
        halves = (jnp.arange(number * size) % 2 == 0).astype(jnp.float32)
        members = jnp.where(enough, members, jnp.stack([halves, 1.0 - halves]))
        penalty = distance(outputs.features.reshape(number * size, -1), members)
        return outputs.losses + hparams["gamma"] * jnp.where(enough, penalty, 0.0), state

    return objective


def _split_mmd(points: jax.Array, members: jax.Array) -> jax.Array:
    return mmd_matrix(squared_distances(points), members / members.sum(1, keepdims=True), MMD_WIDTHS)[0, 1]


# DomainBed's default and range.
GAMMA = {"gamma": Hyperparameter(1.0, -1.0, 1.0)}

_CORAL = Method(
    from_objective(coral),
    GAMMA,
    min_per_domain=2,  # one example has no covariance
    note="correlation alignment of the domains' features",
    formula="L + gamma * mean over i < j of mean((mu_i - mu_j)^2) + mean((C_i - C_j)^2), means and covariances of z",
    source="Sun and Saenko, Deep CORAL, ECCV Workshops 2016",
    needs=("domain labels",),
)

CAUSIRL = "Chevalley et al., Invariant Causal Mechanisms through Distribution Matching, 2022"

METHODS = {
    "CORAL": _CORAL,
    # A row of the paper's table, so `--method all` trains them too.
    **sharpness_forms("CORAL", replace(_CORAL, sharpness=BOTH), extra=False),
    "MMD": Method(
        from_objective(mmd),
        GAMMA,
        note="maximum mean discrepancy between the domains' features",
        formula="L + gamma * mean over i < j of MMD^2(z_i, z_j), kernel sum_g exp(-g d^2), g = 0.001, ..., 1000",
        source="Li et al., Domain Generalization with Adversarial Feature Learning, CVPR 2018",
        needs=("domain labels",),
        min_sources=2,
        extra=True,
        sharpness=BOTH,
    ),
    **{
        f"CausIRL-{name}": Method(
            from_objective(_causirl(distance)),
            GAMMA,
            note=f"{name}'s distance between two random mixtures of the domains",
            formula=f"L + gamma * {name}(first, rest): a random number of each domain's z is in first",
            source=CAUSIRL,
            needs=("domain labels",),
            min_per_domain=2,
            min_sources=2,
            extra=True,
            sharpness=BOTH,
        )
        for name, distance in {"CORAL": split_moments, "MMD": _split_mmd}.items()
    },
}
