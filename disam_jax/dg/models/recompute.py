"""Blocks that keep nothing but their inputs for the gradient, and compute the rest again."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# (parameters, other variables, activations) -> (activations, other variables after that)
Function = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]


def recomputed(block: Any, x: jax.Array) -> jax.Array:
    """What a block makes of activations; its own activations are computed again for the gradient.

    Args:
        block: NNX module, which may update its running statistics.
        x: Activations.

    Returns:
        Activations.

    Example:
        >>> layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        >>> x = jnp.ones((1, 3))
        >>> bool((recomputed(layer, x) == layer(x)).all())
        True
    """
    graph, *variables = nnx.split(block, nnx.Param, ...)
    params, others = map(nnx.to_pure_dict, variables)

    def apply(params: Any, others: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        merged: Any = nnx.merge(graph, params, others)
        y = merged(x)
        return y, nnx.to_pure_dict(nnx.state(merged, nnx.Not(nnx.Param)))

    again = _in_a_conditional if jax.default_backend() == "cpu" else jax.checkpoint
    y, after = again(apply)(params, others, x)
    nnx.update(block, after)
    return y


def _in_a_conditional(function: Function) -> Function:
    """`jax.checkpoint` for CPUs, where XLA finds that the two computations are one and keeps its result after all.

    Inside a conditional it does not look, if it cannot know how that turns out.
    """

    def backward(kept: tuple[Any, Any, jax.Array], cotangents: tuple[jax.Array, Any]) -> tuple[Any, None, jax.Array]:
        def gradient(params: Any, others: Any, x: jax.Array, cotangent: jax.Array) -> tuple[Any, jax.Array]:
            _, back, _ = jax.vjp(lambda params, x: function(params, others, x), params, x, has_aux=True)
            return back(cotangent)

        def nothing(params: Any, others: Any, x: jax.Array, cotangent: jax.Array) -> tuple[Any, jax.Array]:
            del others, cotangent
            return jax.tree.map(jnp.zeros_like, (params, x))

        always = jax.lax.rng_uniform(jnp.float32(0.0), jnp.float32(1.0), ()) < 2.0
        of_params, of_x = jax.lax.cond(always, gradient, nothing, *kept, cotangents[0])
        return of_params, None, of_x

    again = jax.custom_vjp(function)
    again.defvjp(lambda *arguments: (function(*arguments), arguments), backward)
    return again
