"""A multilayer perceptron."""

import jax
from flax import nnx

# Normal with variance 2 / fan-in, which suits rectified units.
he_normal = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


class MLP(nnx.Module):
    """Linear layers with rectified units between them and dropout after each hidden one.

    Kernels start normal with variance 2 / fan-in, biases at zero.

    Args:
        in_features: numbers per example.
        hidden: units of each hidden layer; empty for a linear classifier.
        num_classes: C.
        dropout: fraction of each hidden layer's units that is dropped in training.
        rngs: random streams.

    Example:
        >>> module = MLP(64, (32,), 10, rngs=nnx.Rngs(0))
        >>> logits, features = module(jax.numpy.ones((5, 64)), jax.random.key(0))
        >>> logits.shape, features.shape
        ((5, 10), (5, 32))
    """

    def __init__(
        self, in_features: int, hidden: tuple[int, ...], num_classes: int, *, dropout: float = 0.0, rngs: nnx.Rngs
    ):
        widths = (in_features, *hidden)
        self.hidden = nnx.data(
            [nnx.Linear(m, n, kernel_init=he_normal, rngs=rngs) for m, n in zip(widths[:-1], hidden, strict=True)]
        )
        self.dropout = nnx.Dropout(dropout)
        self.fc = nnx.Linear(widths[-1], num_classes, kernel_init=he_normal, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits and the last hidden layer.

        Args:
            x: float [N, in_features].
            key: decides what dropout drops.

        Returns:
            (logits [N, C], features [N, hidden[-1]]).
        """
        for place, layer in enumerate(self.hidden):
            x = self.dropout(jax.nn.relu(layer(x)), rngs=jax.random.fold_in(key, place))
        return self.classify(x), x

    def classify(self, features: jax.Array) -> jax.Array:
        """Logits [N, C] of features [N, F]: the last layer."""
        return self.fc(features)
