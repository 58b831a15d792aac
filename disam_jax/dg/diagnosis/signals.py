"""What the source domains show before training: how far their losses and their gradients differ.

All of it is made of the domain losses `L_i` and of the gradients `g_ik` of the two halves k of each domain's examples,
of which the inner products suffice.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from disam_jax.dg.models.network import Network, Params, State
from disam_jax.dg.training.step import example_losses

HALVES = 2
MATRIX_PRODUCT = jax.lax.Precision.HIGHEST


class Signals(NamedTuple):
    """What is seen of M source domains at the parameters w, float32 [] each.

    Attributes:
        loss_spread: Relative spread of the domain losses, see `relative_spread`.
        spread_growth: How the perturbation of SAM changes the spread of the domain losses, see `spread_growth`.
        gradient_cosine: Mean cosine between the gradients of two domains, see `mean_cosine`.
        gradient_coherence: How much of the domain gradients is left in their mean, see `coherence`.
        gradient_noise: Noise of the domain gradients relative to their differences, see `noise_ratio`.
        perturbation_change: How far DISAM turns the perturbation of SAM, see `perturbation_change`.
        source_accuracy: Fraction of right answers on the validation splits of the source domains, their mean.
    """

    loss_spread: jax.Array
    spread_growth: jax.Array
    gradient_cosine: jax.Array
    gradient_coherence: jax.Array
    gradient_noise: jax.Array
    perturbation_change: jax.Array
    source_accuracy: jax.Array


class Examples(NamedTuple):
    """Examples of M source domains, as the network gets them.

    Attributes:
        inputs: [M, 2, h, ...]: two halves of h training examples each.
        labels: int32 [M, 2, h].
        validation_inputs: [M, v, ...].
        validation_labels: int32 [M, v].
    """

    inputs: jax.Array
    labels: jax.Array
    validation_inputs: jax.Array
    validation_labels: jax.Array


def relative_spread(losses: jax.Array) -> jax.Array:
    """The coefficient of variation of the domain losses, sd(L) / mean(L), with M in the sd.

    Args:
        losses: Domain losses, float32 [M].

    Returns:
        float32 [].

    Example:
        >>> round(float(relative_spread(jnp.array([1.0, 2.0, 3.0]))), 3)
        0.408
    """
    return jnp.std(losses) / jnp.mean(losses)


def spread_growth(losses: jax.Array, perturbed: jax.Array) -> jax.Array:
    """How the spread at w + e differs from that at w, ln(sd(L(w + e)) / sd(L(w))).

    Args:
        losses: Domain losses at w, float32 [M].
        perturbed: Domain losses at w + e, where e = rho g / ||g|| is SAM's perturbation, float32 [M].

    Returns:
        float32 []; 0 where both spreads are 0.

    Example:
        >>> round(float(spread_growth(jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 4.0, 6.0]))), 3)
        0.693
    """
    before, after = jnp.std(losses), jnp.std(perturbed)
    nothing = (before == 0) & (after == 0)
    return jnp.where(nothing, 0.0, jnp.log(after / jnp.where(nothing, 1.0, before)))


def domain_gram(gram: jax.Array) -> jax.Array:
    """The inner products of the domains' gradients, g_i = (g_i1 + g_i2) / 2.

    Args:
        gram: Inner products of the gradients of the halves, float32 [M, 2, M, 2].

    Returns:
        float32 [M, M].

    Example:
        >>> domain_gram(jnp.ones((3, 2, 3, 2))).tolist()[0]
        [1.0, 1.0, 1.0]
    """
    return gram.mean((1, 3))


def mean_cosine(gram: jax.Array) -> jax.Array:
    """The mean over all pairs of domains of the cosine between their gradients, g_i . g_j / (||g_i|| ||g_j||).

    Args:
        gram: Inner products of the domains' gradients, float32 [M, M].

    Returns:
        float32 []; NaN with a single domain.

    Example:
        >>> float(mean_cosine(jnp.array([[1.0, 1.0], [1.0, 4.0]])))
        0.5
    """
    norms = jnp.sqrt(jnp.diagonal(gram))
    cosines = gram / (norms[:, None] * norms[None])
    number = len(norms)
    return (cosines.sum() - jnp.trace(cosines)) / (number * (number - 1))


def coherence(gram: jax.Array) -> jax.Array:
    """How much of the gradients is left in their mean, ||mean_i g_i||^2 / mean_i ||g_i||^2.

    It is 1 where all domains have the same gradient, and 1 / M where they are orthogonal.

    Args:
        gram: Inner products of the domains' gradients, float32 [M, M].

    Returns:
        float32 [].

    References:
        Chatterjee and Zielinski, Making Coherence Out of Nothing At All, 2020 (coherence). Yin et al., Gradient
        Diversity, AISTATS 2018 (its reciprocal, divided by M).

    Example:
        >>> float(coherence(jnp.eye(4)))
        0.25
    """
    return gram.mean() / jnp.diagonal(gram).mean()


def noise_ratio(gram: jax.Array) -> jax.Array:
    """The noise of the domains' gradients relative to their differences.

    Noise is how far the halves of a domain differ, mean_i ||g_i1 - g_i2||^2 / 4; differences are sum_i ||g_i - mean_j
    g_j||^2 / (M - 1). Both estimate the same variance where the domains have one distribution: the ratio is then about
    1, and small where the domains differ. It is the reciprocal of the F of an analysis of variance.

    Args:
        gram: Inner products of the gradients of the halves, float32 [M, 2, M, 2].

    Returns:
        float32 [].

    Example:
        >>> halves = jnp.array([[[1.0], [3.0]], [[-3.0], [-1.0]]])
        >>> float(noise_ratio(jnp.einsum("mkp,nlp->mknl", halves, halves)))
        0.125
    """
    number = len(gram)
    own = jnp.einsum("mkml->mkl", gram)
    within = (own[:, 0, 0] + own[:, 1, 1] - 2 * own[:, 0, 1]).mean() / 4
    domains = domain_gram(gram)
    between = (jnp.trace(domains) - number * domains.mean()) / (number - 1)
    return within / between


def perturbation_change(gram: jax.Array, weights: jax.Array) -> jax.Array:
    """How far other weights of the domains turn the perturbation of SAM, || u(sum_i b_i g_i) - u(mean_i g_i) ||.

    u(g) = g / ||g||: the result is the distance between the two perturbations in units of rho. It is 0 where DISAM does
    what SAM does, and 2 where it goes the opposite way.

    Args:
        gram: Inner products of the domains' gradients, float32 [M, M].
        weights: Domain weights b of the ascent, float32 [M]; see `disam_jax.domain_weights`.

    Returns:
        float32 [].

    Example:
        >>> round(float(perturbation_change(jnp.eye(2), jnp.array([1.0, 0.0]))), 3)
        0.765
    """
    plain = jnp.full_like(weights, 1.0 / len(weights))
    unit = lambda each: each / jnp.sqrt(each @ gram @ each)
    # From the difference of the units: 2 - 2 cos loses all digits where the two are close.
    difference = unit(weights) - unit(plain)
    return jnp.sqrt(jnp.maximum(difference @ gram @ difference, 0.0))


def inner_products(gradients: Params) -> jax.Array:
    """Inner products of stacked gradients.

    Args:
        gradients: Tree like the parameters with leaves [U, ...].

    Returns:
        float32 [U, U].

    Example:
        >>> inner_products({"w": jnp.array([[1.0, 0.0], [1.0, 2.0]])}).tolist()
        [[1.0, 1.0], [1.0, 5.0]]
    """
    flat = [leaf.reshape(len(leaf), -1).astype(jnp.float32) for leaf in jax.tree.leaves(gradients)]
    return sum(
        (jnp.matmul(each, each.T, precision=MATRIX_PRODUCT) for each in flat[1:]),
        jnp.matmul(flat[0], flat[0].T, precision=MATRIX_PRODUCT),
    )


def measure_signals(
    params: Params,
    state: State,
    examples: Examples,
    *,
    network: Network,
    rho: float,
    domain_weights: Callable[[jax.Array], jax.Array],
) -> Signals:
    """All signals at given parameters, with the running statistics as they are and nothing dropped.

    Args:
        params: Parameters w.
        state: Running statistics of the network.
        examples: Examples of M source domains.
        network: Network that was trained.
        rho: Length of SAM's perturbation.
        domain_weights: Domain losses [M] -> weights [M] of the domains in DISAM's ascent.

    Returns:
        Signals; NaN or infinite where a loss is not finite or a gradient is zero.

    Example:
        >>> import disam_jax
        >>> from disam_jax.dg.models.registry import make_network
        >>> network = make_network("linear", (1,), 2)
        >>> params, state = network.init(jax.random.key(0))
        >>> inputs, labels = jnp.arange(8.0).reshape(2, 2, 2, 1), jnp.array([[[0, 1], [0, 1]], [[0, 0], [1, 1]]])
        >>> examples = Examples(inputs, labels, inputs[:, 0], labels[:, 0])
        >>> weights = lambda losses: disam_jax.domain_weights(losses, 0.4, penalty="std")
        >>> options = {"network": network, "rho": 0.1, "domain_weights": weights}
        >>> signals = jax.jit(lambda: measure_signals(params, state, examples, **options))()
        >>> round(float(signals.source_accuracy), 3)
        0.75
    """
    key = jax.random.key(0)

    def logits(params: Params, inputs: jax.Array) -> jax.Array:
        return network.apply(params, state, inputs, key, False).logits

    def loss(params: Params, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        return example_losses(logits(params, inputs), labels).mean()

    number, _, half = examples.labels.shape
    # One half after the other: what a large network keeps for its gradient does not grow with the domains.
    halves = (
        examples.inputs.reshape(number * HALVES, half, *examples.inputs.shape[3:]),
        examples.labels.reshape(number * HALVES, half),
    )
    losses, gradients = jax.lax.map(lambda each: jax.value_and_grad(loss)(params, *each), halves)
    losses = losses.reshape(number, HALVES).mean(1)
    gram = inner_products(gradients).reshape(number, HALVES, number, HALVES)
    domains = domain_gram(gram)
    scale = rho / jnp.sqrt(domains.mean())
    perturbed_params = jax.tree.map(lambda w, g: w + (scale * g.mean(0)).astype(w.dtype), params, gradients)
    perturbed = jax.lax.map(lambda each: loss(perturbed_params, *each), halves).reshape(number, HALVES).mean(1)
    right = jax.lax.map(
        lambda each: (logits(params, each[0]).argmax(-1).astype(jnp.int32) == each[1]).mean(dtype=jnp.float32),
        (examples.validation_inputs, examples.validation_labels),
    )
    return Signals(
        loss_spread=relative_spread(losses),
        spread_growth=spread_growth(losses, perturbed),
        gradient_cosine=mean_cosine(domains),
        gradient_coherence=coherence(domains),
        gradient_noise=noise_ratio(gram),
        perturbation_change=perturbation_change(domains, domain_weights(losses)),
        source_accuracy=right.mean(),
    )
