"""Options of a network's computation: in which type, and which activations it keeps for the gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from disam_jax.dg.errors import InputError
from disam_jax.dg.models.stages import Block

NORMS = (nnx.BatchNorm, nnx.LayerNorm, nnx.GroupNorm, nnx.RMSNorm)


class Compute(NamedTuple):
    """Options of a network's computation. Parameters, running statistics, logits and features are float32 in any case.

    Attributes:
        dtype: Type of activations, and of the parameters that they are multiplied by: "float32" or "bfloat16".
        remat: Whether only the inputs of each `Block` are kept for the gradient, and what is inside is computed again.
    """

    dtype: str = "float32"
    remat: bool = False


def set_remat(module: nnx.Module) -> None:
    """Makes every block of a module compute its activations again for the gradient, in the module itself.

    Args:
        module: Module that has some `Block`.

    Raises:
        InputError: If it has none.

    Example:
        >>> set_remat(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: --remat is for networks of blocks, and what is trained here has none: ...
    """
    blocks = [node for _, node in nnx.iter_graph(module) if isinstance(node, Block)]
    if not blocks:
        raise InputError("--remat is for networks of blocks, and what is trained here has none: leave it out")
    for block in blocks:
        block.remat = True


def rounded(module: nnx.Module, dtype: str) -> nnx.Module:
    """A module with its parameters in another type, those of normalisations and scalars such as temperatures excepted.

    Gradients go through the rounding: with respect to parameters in float32 they are float32.

    Args:
        module: Module, whose variables are changed.
        dtype: Name of the type.

    Returns:
        The module.

    Example:
        >>> module = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.LayerNorm(2, rngs=nnx.Rngs(0)))
        >>> [str(layer.bias.dtype) for layer in rounded(module, "bfloat16").layers]
        ['bfloat16', 'float32']
    """
    norms = {path for path, node in nnx.iter_graph(module) if isinstance(node, NORMS)}
    cast = [
        (path, variable.replace(variable[...].astype(dtype)))
        for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param))
        if path[:-1] not in norms and variable[...].ndim > 0
    ]
    nnx.update(module, nnx.from_flat_state(cast))
    return module


def apply_module(module: Any, inputs: jax.Array, key: jax.Array, compute: Compute) -> tuple[jax.Array, jax.Array]:
    """Logits and features of a module that has its parameters in float32.

    Args:
        module: Called as in `from_nnx`; its parameters are rounded if `compute` says so.
        inputs: float32 [N, ...], as the module wants them.
        key: Decides what dropout drops.
        compute: How the module computes.

    Returns:
        (logits [N, C], features [N, F]), float32.

    Example:
        >>> from disam_jax.dg.models.linear import LinearHead
        >>> head, key = LinearHead(4, 3, rngs=nnx.Rngs(0)), jax.random.key(0)
        >>> logits, features = apply_module(head, jnp.full((1, 4), 1.001), key, Compute("bfloat16"))
        >>> logits.dtype.name, float(features[0, 0])
        ('float32', 1.0)
    """
    if compute.dtype != "float32":
        module, inputs = rounded(module, compute.dtype), inputs.astype(compute.dtype)
    logits, features = module(inputs, key)
    return logits.astype(jnp.float32), features.astype(jnp.float32)


def classify(module: Any, features: jax.Array, compute: Compute) -> jax.Array:
    """Logits of features: the last layer of a module that has a method `classify`.

    Args:
        module: Module that has its parameters in float32.
        features: float32 [N, F].
        compute: How the module computes.

    Returns:
        float32 [N, C].

    Example:
        >>> from disam_jax.dg.models.linear import LinearHead
        >>> head = LinearHead(4, 3, rngs=nnx.Rngs(0))
        >>> classify(head, jnp.ones((5, 4)), Compute()).shape
        (5, 3)
    """
    if compute.dtype != "float32":
        module, features = rounded(module, compute.dtype), features.astype(compute.dtype)
    return module.classify(features).astype(jnp.float32)
