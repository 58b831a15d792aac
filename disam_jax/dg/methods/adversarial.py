"""Methods with a second player: a discriminator tells the domains apart, and the features must not let it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from disam_jax.dg.methods.adam import Moments, adam_step, start_moments
from disam_jax.dg.methods.base import (
    Batch,
    HParams,
    Hyperparameter,
    Method,
    Outputs,
    Start,
    choice,
    from_objective,
)
from disam_jax.dg.methods.combinations import BOTH

# Units of the two hidden layers of the discriminator, as in DomainBed.
WIDTH = 256


class Discriminator(NamedTuple):
    """The second player: a network F -> 256 -> 256 -> M of rectified units.

    Attributes:
        layers: Kernel and bias of each layer.
        embeddings: What is added to the features of each class, float32 [C, F]; None without classes.
    """

    layers: tuple[tuple[jax.Array, jax.Array], ...]
    embeddings: jax.Array | None


class Player(NamedTuple):
    """The discriminator and the moments of its optimizer."""

    discriminator: Discriminator
    moments: Moments


def start_discriminator(start: Start, conditional: bool) -> Player:
    """The second player before the first step: uniform weights up to 1 / sqrt(inputs), normal embeddings.

    Example:
        >>> start = Start(3, None, num_features=8, num_classes=2, key=jax.random.key(0))
        >>> player = start_discriminator(start, conditional=True)
        >>> [kernel.shape for kernel, _ in player.discriminator.layers], player.discriminator.embeddings.shape
        ([(8, 256), (256, 256), (256, 3)], (2, 8))
    """
    sizes = (start.num_features, WIDTH, WIDTH, start.num_sources)
    of_embeddings, *of_layers = jax.random.split(start.key, len(sizes))
    layers = []
    for key, inputs, units in zip(of_layers, sizes[:-1], sizes[1:], strict=True):
        of_kernel, of_bias = jax.random.split(key)
        draw = lambda key, shape, most=inputs**-0.5: jax.random.uniform(key, shape, jnp.float32, -most, most)
        layers.append((draw(of_kernel, (inputs, units)), draw(of_bias, (units,))))
    shape = (start.num_classes, start.num_features)
    embeddings = jax.random.normal(of_embeddings, shape, jnp.float32) if conditional else None
    discriminator = Discriminator(tuple(layers), embeddings)
    return Player(discriminator, start_moments(discriminator))


def domain_logits(layers: tuple[tuple[jax.Array, jax.Array], ...], features: jax.Array) -> jax.Array:
    """What the discriminator answers, float [M, n, M], for features [M, n, F].

    Example:
        >>> domain_logits(((jnp.ones((2, 3)), jnp.zeros(3)),), jnp.ones((3, 4, 2))).shape
        (3, 4, 3)
    """
    *hidden, (kernel, bias) = layers
    for w, b in hidden:
        features = jax.nn.relu(features @ w + b[None, None])
    return features @ kernel + bias[None, None]


def discriminator_loss(
    discriminator: Discriminator, features: jax.Array, labels: jax.Array, grad_penalty: jax.Array
) -> jax.Array:
    """Cross-entropy of the discriminator, and grad_penalty times its mean squared gradient by the inputs.

    With embeddings, the features of each example get that of its class, and every class has the same weight.

    Args:
        discriminator: Second player.
        features: float [M, n, F].
        labels: int [M, n].
        grad_penalty: Weight, float [].

    Returns:
        float [].

    Example:
        >>> discriminator = Discriminator(((jnp.zeros((4, 2)), jnp.zeros(2)),), None)
        >>> loss = discriminator_loss(discriminator, jnp.ones((2, 3, 4)), jnp.zeros((2, 3), jnp.int32), 0.0)
        >>> round(float(loss), 4)  # log 2
        0.6931
    """
    domains = jnp.broadcast_to(jnp.arange(len(labels), dtype=jnp.int32)[:, None], labels.shape)
    shares = jnp.full(labels.shape, 1.0 / labels.size, features.dtype)
    if discriminator.embeddings is not None:
        features = features + discriminator.embeddings[labels]
        classes = jax.nn.one_hot(labels, len(discriminator.embeddings), dtype=features.dtype)
        shares = 1.0 / ((classes @ classes.sum((0, 1))) * len(discriminator.embeddings))
    losses = lambda inputs: optax.softmax_cross_entropy_with_integer_labels(
        domain_logits(discriminator.layers, inputs), domains
    )
    slopes = jax.grad(lambda inputs: losses(inputs).sum())(features)
    return (shares * losses(features)).sum() + grad_penalty * jnp.square(slopes).sum(-1).mean()


def dann(outputs: Outputs, batch: Batch, hparams: HParams, player: Player) -> tuple[jax.Array, Player]:
    """Domain-adversarial training: L_i - dann_lambda * D, while a step of Adam takes the discriminator down D.

    D is `discriminator_loss`. Both players step at once, each against the other as it was, which is what the paper's
    reversal of the gradient does; DomainBed lets them take turns.

    Returns:
        Domain losses, float [M], and the second player after its step.

    Example:
        >>> start = Start(2, None, num_features=4, num_classes=3, key=jax.random.key(0))
        >>> outputs = Outputs(jnp.array([1.0, 2.0]), None, jnp.ones((2, 3, 4)), {})
        >>> batch = Batch(x=None, y=jnp.zeros((2, 3), jnp.int32), key=None)
        >>> hparams = {"dann_lambda": 0.0, "lr_d": 0.1, "weight_decay_d": 0.0, "grad_penalty": 0.0, "beta1": 0.5}
        >>> losses, player = dann(outputs, batch, hparams, start_discriminator(start, conditional=False))
        >>> losses.tolist(), float(player.moments.count)
        ([1.0, 2.0], 1.0)

    References:
        Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016; Li et al., Domain Generalization via
        Conditional Invariant Representations, AAAI 2018, with embeddings, as in DomainBed.
    """
    discriminator, moments = player
    penalty = hparams["grad_penalty"]
    loss = discriminator_loss(discriminator, outputs.features, batch.y, penalty)
    seen = jax.lax.stop_gradient(outputs.features)
    gradient: Any = jax.grad(discriminator_loss)(discriminator, seen, batch.y, penalty)
    decayed = jax.tree.map(lambda g, w: g + hparams["weight_decay_d"] * w, gradient, discriminator)
    after = adam_step(discriminator, decayed, moments, hparams["lr_d"], hparams["beta1"], beta2=0.9)
    return outputs.losses - hparams["dann_lambda"] * loss, Player(*after)


# DomainBed's, for its small images where it has other ones for those.
PLAYER = {
    "dann_lambda": Hyperparameter(1.0, -2.0, 2.0),
    "lr_d": Hyperparameter(1e-3, -4.5, -2.5),
    "weight_decay_d": Hyperparameter(0.0, -6.0, -2.0),
    "grad_penalty": Hyperparameter(0.0, -2.0, 1.0),
    "beta1": choice(0.5, 0.0, 0.5),
}


def _adversarial(conditional: bool, note: str, formula: str, source: str) -> Method:
    return Method(
        from_objective(dann),
        PLAYER,
        init=lambda start: start_discriminator(start, conditional),
        note=note,
        formula=formula,
        source=source,
        needs=("domain labels", "second player"),
        min_sources=2,
        extra=True,
        sharpness=BOTH,
    )


METHODS = {
    "DANN": _adversarial(
        conditional=False,
        note="features that do not tell a discriminator the domain",
        formula="L - dann_lambda * D, D = CE(d(z), domain) + grad_penalty * mean norm(d CE / dz)^2, while d descends D",
        source="Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016",
    ),
    "CDANN": _adversarial(
        conditional=True,
        note="features that do not tell a discriminator the domain within a class",
        formula="as DANN, with d(z + embedding of y) and the same weight for each class",
        source="Li et al., Domain Generalization via Conditional Invariant Representations, AAAI 2018",
    ),
}
