"""From an NNX module to a network: two pure functions of plain arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from disam_jax.dg.models.inputs import to_float
from disam_jax.dg.models.network import Network, Output, Params, State


def from_nnx(
    make_module: Callable[[nnx.Rngs], nnx.Module], prepare: Callable[[jax.Array], jax.Array] = to_float
) -> Network:
    """A network from an NNX module.

    Parameters are the module's `nnx.Param`, state is all its other variables; both are nested dicts of arrays,
    named as the attributes are. `train` calls the module as `module.train()` sets it, otherwise as `module.eval()`
    does: BatchNorm and Dropout follow by themselves. A network starts from other weights, pretrained ones say,
    with `network._replace(init=...)`.

    Args:
        make_module: makes the module from its random streams. The module is called as `module(inputs, key)` and
            returns (logits [N, C], features [N, F]). It draws from that key alone: `nnx.Dropout(rate)` called as
            `dropout(x, rngs=key)`.
        prepare: from the inputs of a data set to those of the module, see `inputs`.

    Returns:
        Network.

    Raises:
        ValueError: if the module keeps random state of its own.

    Example:
        >>> class Centroids(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.centres = nnx.Param(jax.random.normal(rngs.params(), (3, 4)))
        ...     def __call__(self, x, key):
        ...         distances = x[:, None, :] - self.centres[...][None, :, :]
        ...         return -(distances**2).sum(-1), x
        >>> network = from_nnx(Centroids)
        >>> params, state = network.init(jax.random.key(0))
        >>> network.apply(params, state, jnp.ones((5, 4)), jax.random.key(1), True).logits.shape
        (5, 3)
    """
    graphs = _graphs(make_module)

    def init(key: jax.Array) -> tuple[Params, State]:
        return _variables(make_module(nnx.Rngs(key)))

    def apply(params: Params, state: State, inputs: jax.Array, key: jax.Array, train: bool) -> Output:
        module: Any = nnx.merge(graphs[train], params, state)
        logits, features = module(prepare(inputs), key)
        return Output(logits.astype(jnp.float32), features.astype(jnp.float32), _variables(module)[1])

    return Network(init, apply)


def _graphs(make_module: Callable[[nnx.Rngs], nnx.Module]) -> dict[bool, nnx.GraphDef]:
    """The module without its arrays, as it evaluates and as it trains."""
    module = nnx.eval_shape(lambda: make_module(nnx.Rngs(0)))
    own = nnx.to_flat_state(nnx.state(module, nnx.RngState))
    if own:
        raise ValueError(
            f"the module keeps random state in {'.'.join(map(str, own[0][0]))}; write nnx.Dropout(rate) without rngs "
            "and call it as dropout(x, rngs=key), with the key of the call"
        )
    graphs = {}
    for train in (False, True):
        module.train() if train else module.eval()
        graphs[train] = nnx.graphdef(module)
    return graphs


def _variables(module: nnx.Module) -> tuple[Params, State]:
    params, state = nnx.state(module, nnx.Param, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(state)
