"""A linear head: on given features, or the last layer of a network."""

import jax
from flax import nnx

# Uniform in +-1 / sqrt(fan-in), as torch starts a linear layer.
head_init = nnx.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def make_head(in_features: int, num_classes: int, rngs: nnx.Rngs) -> nnx.Linear:
    """The last layer of a network: kernel uniform in +-1 / sqrt(in_features), bias zero.

    Args:
        in_features: F.
        num_classes: C.
        rngs: random streams.

    Returns:
        A module from float [N, F] to [N, C].

    Example:
        >>> make_head(8, 3, nnx.Rngs(0))(jax.numpy.ones((5, 8))).shape
        (5, 3)
    """
    return nnx.Linear(in_features, num_classes, kernel_init=head_init, rngs=rngs)


class LinearHead(nnx.Module):
    """A linear classifier on given features.

    Args:
        in_features: F.
        num_classes: C.
        dropout: fraction of the features that is dropped in training.
        rngs: random streams.

    Example:
        >>> head = LinearHead(8, 3, rngs=nnx.Rngs(0))
        >>> logits, features = head(jax.numpy.ones((5, 8)), jax.random.key(0))
        >>> logits.shape, features.shape
        ((5, 3), (5, 8))
    """

    def __init__(self, in_features: int, num_classes: int, *, dropout: float = 0.0, rngs: nnx.Rngs):
        self.dropout = nnx.Dropout(dropout)
        self.fc = make_head(in_features, num_classes, rngs)

    def __call__(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits [N, C] and what the last layer sees.

        Args:
            x: float [N, ...] of F numbers per example.
            key: decides what dropout drops.

        Returns:
            (logits [N, C], features [N, F]).
        """
        features = self.dropout(x.reshape(x.shape[0], -1), rngs=key)
        return self.classify(features), features

    def classify(self, features: jax.Array) -> jax.Array:
        """Logits [N, C] of features [N, F]: the last layer."""
        return self.fc(features)
