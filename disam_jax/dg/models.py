"""A small classifier: a multilayer perceptron in plain JAX."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Layers = list[dict[str, jax.Array]]


def init_mlp(key: jax.Array, sizes: Sequence[int]) -> Layers:
    """Draws the weights of a multilayer perceptron.

    Weights are normal with variance 2 / fan-in, as suits rectified units; biases are zero.

    Args:
        key: random key.
        sizes: number of inputs, of units in each hidden layer, and of outputs.

    Returns:
        One {"kernel": float32 [in, out], "bias": float32 [out]} per layer.

    Example:
        >>> [layer["kernel"].shape for layer in init_mlp(jax.random.key(0), (64, 32, 10))]
        [(64, 32), (32, 10)]
    """
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {
            "kernel": jax.random.normal(k, (m, n), jnp.float32) * (2.0 / m) ** 0.5,
            "bias": jnp.zeros(n, jnp.float32),
        }
        for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def apply_mlp(layers: Layers, inputs: jax.Array) -> jax.Array:
    """Class scores of a multilayer perceptron with rectified hidden units.

    Args:
        layers: as from `init_mlp`.
        inputs: float32 [N, F].

    Returns:
        float32 [N, C], not normalised.
    """
    *hidden, last = layers
    for layer in hidden:
        inputs = jax.nn.relu(inputs @ layer["kernel"] + layer["bias"][None, :])
    return inputs @ last["kernel"] + last["bias"][None, :]
