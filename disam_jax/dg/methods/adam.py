"""Adam for the parameters that a method owns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Moments(NamedTuple):
    """What Adam carries from step to step.

    Attributes:
        first: Moving average of the gradients.
        second: Moving average of their squares.
        count: Number of steps, float32 [].
    """

    first: Any
    second: Any
    count: jax.Array


def start_moments(params: Any) -> Moments:
    """The moments before the first step.

    Example:
        >>> float(start_moments(jnp.ones(2)).count)
        0.0
    """
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Moments(zeros, zeros, jnp.zeros((), jnp.float32))


def adam_step(
    params: Any, gradient: Any, moments: Moments, rate: jax.Array, beta1: jax.Array | float, beta2: float = 0.999
) -> tuple[Any, Moments]:
    """A step of Adam with eps 1e-8, in which every number may be traced.

    Args:
        params: Pytree of float32 arrays.
        gradient: Pytree like them.
        moments: Moments before the step.
        rate: Learning rate.
        beta1: Decay of the gradients' average.
        beta2: Decay of the squares' average.

    Returns:
        Parameters and moments after the step.

    Example:
        >>> params, moments = adam_step(jnp.float32(1.0), jnp.float32(5.0), start_moments(jnp.float32(1.0)), 0.25, 0.9)
        >>> round(float(params), 3), float(moments.count)
        (0.75, 1.0)

    References:
        Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015.
    """
    count = moments.count + 1.0
    first = jax.tree.map(lambda m, g: beta1 * m + (1.0 - beta1) * g, moments.first, gradient)
    second = jax.tree.map(lambda v, g: beta2 * v + (1.0 - beta2) * jnp.square(g), moments.second, gradient)
    of_first, of_second = 1.0 - beta1**count, 1.0 - beta2**count
    step = lambda w, m, v: w - rate * (m / of_first) / (jnp.sqrt(v / of_second) + 1e-8)
    return jax.tree.map(step, params, first, second), Moments(first, second, count)
