"""From an NNX module to a network: two pure functions of plain arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from disam_jax.dg.models.compute import Compute, apply_module, classify, set_remat
from disam_jax.dg.models.inputs import to_float
from disam_jax.dg.models.network import Network, Output, Params, State

FLOAT32 = Compute()


def from_nnx(
    make_module: Callable[[nnx.Rngs], nnx.Module],
    prepare: Callable[[jax.Array], jax.Array] = to_float,
    compute: Compute = FLOAT32,
) -> Network:
    """A network from an NNX module.

    Parameters are the module's `nnx.Param`, state is all its other variables; both are nested dicts of arrays,
    named as the attributes are. `train` calls the module as `module.train()` sets it, otherwise as `module.eval()`
    does: BatchNorm and Dropout follow by themselves. A network starts from other weights, pretrained ones say,
    with `network._replace(init=...)`.

    Args:
        make_module: makes the module from its random streams. The module is called as `module(inputs, key)` and
            returns (logits [N, C], features [N, F]). It draws from that key alone: `nnx.Dropout(rate)` called as
            `dropout(x, rngs=key)`. A method `classify(features) -> logits`, its last layer, is `Network.head`.
        prepare: from the inputs of a data set to those of the module, see `inputs`.
        compute: how the module computes.

    Returns:
        Network.

    Raises:
        ValueError: if the module keeps random state of its own.
        InputError: if it has no blocks and `compute` has `remat`.

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
    graphs, has_head = _graphs(make_module, compute.remat)

    def init(key: jax.Array) -> tuple[Params, State]:
        return _variables(make_module(nnx.Rngs(key)))

    def apply(params: Params, state: State, inputs: jax.Array, key: jax.Array, train: bool) -> Output:
        module: Any = nnx.merge(graphs[train], params, state)
        return Output(*apply_module(module, prepare(inputs), key, compute), _variables(module)[1])

    def module(params: Params, state: State) -> Any:
        return nnx.merge(graphs[False], params, state)

    def head(params: Params, state: State, features: jax.Array) -> jax.Array:
        return classify(nnx.merge(graphs[False], params, state), features, compute)

    return Network(init, apply, module=module, head=head if has_head else None)


def from_weights(
    module: nnx.Module,
    extend: Callable[[nnx.Module, nnx.Rngs], nnx.Module],
    trained: Any,
    prepare: Callable[[jax.Array], jax.Array] = to_float,
    compute: Compute = FLOAT32,
) -> Network:
    """A network from a module that has its weights: those that are trained are parameters, all runs share the others.

    State is the running statistics. What else the extended module has, class embeddings say, is made once.

    Args:
        module: as it was loaded.
        extend: from the module and random streams to the one that is trained and called as in `from_nnx`, see `peft`.
            The streams start what it adds; it leaves the weights as they are.
        trained: NNX filter of the variables of the extended module that are parameters.
        prepare: from the inputs of a data set to those of the module, see `inputs`.
        compute: how the extended module computes.

    Returns:
        Network.

    Raises:
        InputError: if it has no blocks and `compute` has `remat`.

    Example:
        >>> module = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 3, rngs=nnx.Rngs(1)))
        >>> class Last(nnx.Module):
        ...     def __init__(self, layers):
        ...         self.layers = layers
        ...     def __call__(self, x, key):
        ...         return self.layers(x), x
        >>> network = from_weights(module, lambda module, rngs: Last(module), nnx.PathContains("bias"))
        >>> params, state = network.init(jax.random.key(0))
        >>> sorted(leaf.shape for leaf in jax.tree.leaves(params))
        [(3,), (8,)]
    """
    graph, variables = nnx.split(module)
    kinds = (trained, nnx.BatchStat, nnx.Param, ...)

    def split(loaded: Any, key: jax.Array, train: bool) -> tuple[Any, ...]:
        extended = extend(nnx.merge(graph, loaded), nnx.Rngs(key))
        extended.train() if train else extended.eval()
        if compute.remat:
            set_remat(extended)
        return nnx.split(extended, *kinds)

    loaded = nnx.to_pure_dict(variables)
    first = split(loaded, jax.random.key(0), False)
    derived, has_head = nnx.to_pure_dict(first[-1]), hasattr(nnx.merge(*first), "classify")
    own = (loaded, derived)

    def init(key: jax.Array, weights: Any = own) -> tuple[Params, State]:
        _, params, state, _, _ = split(weights[0], key, False)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(state)

    def apply(
        params: Params, state: State, inputs: jax.Array, key: jax.Array, train: bool, weights: Any = own
    ) -> Output:
        loaded, derived = weights
        # What the streams start here is replaced at once, and no part of a compiled program.
        extended, _, _, shared, _ = split(loaded, jax.random.key(0), train)
        model: Any = nnx.merge(extended, params, state, shared, derived)
        outputs = apply_module(model, prepare(inputs), key, compute)
        return Output(*outputs, nnx.to_pure_dict(nnx.state(model, *kinds)[1]))

    def with_weights(params: Params, state: State, weights: Any = own) -> Any:
        loaded, derived = weights
        extended, _, _, shared, _ = split(loaded, jax.random.key(0), False)
        return nnx.merge(extended, params, state, shared, derived)

    def head(params: Params, state: State, features: jax.Array, weights: Any = own) -> jax.Array:
        return classify(with_weights(params, state, weights), features, compute)

    return Network(init, apply, own, with_weights, head=head if has_head else None)


def untrained(network: Network) -> Network:
    """The network as it starts, with one parameter that does nothing: a baseline that goes through the same program.

    Args:
        network: without parameters.

    Returns:
        Network.

    Example:
        >>> network = Network(lambda key: ({}, {}), lambda params, state, x, key, train: Output(x, x, state))
        >>> params, state = untrained(network).init(jax.random.key(0))
        >>> untrained(network).apply(params, state, jnp.ones((5, 3)), jax.random.key(1), False).logits.shape
        (5, 3)
    """

    def init(key: jax.Array, **weights: Any) -> tuple[Params, State]:
        return {"unused": jnp.zeros(1, jnp.float32)}, network.init(key, **weights)[1]

    def apply(params: Params, *rest: Any, **weights: Any) -> Output:
        del params
        return network.apply({}, *rest, **weights)

    def module(params: Params, state: State, **weights: Any) -> Any:
        del params
        assert network.module is not None
        return network.module({}, state, **weights)

    return Network(init, apply, network.weights, None if network.module is None else module)


def _graphs(make_module: Callable[[nnx.Rngs], nnx.Module], remat: bool) -> tuple[dict[bool, nnx.GraphDef], bool]:
    """The module without its arrays, as it evaluates and as it trains, and whether it has a head."""
    module = nnx.eval_shape(lambda: make_module(nnx.Rngs(0)))
    own = nnx.to_flat_state(nnx.state(module, nnx.RngState))
    if own:
        raise ValueError(
            f"the module keeps random state in {'.'.join(map(str, own[0][0]))}; write nnx.Dropout(rate) without rngs "
            "and call it as dropout(x, rngs=key), with the key of the call"
        )
    if remat:
        set_remat(module)
    graphs = {}
    for train in (False, True):
        module.train() if train else module.eval()
        graphs[train] = nnx.graphdef(module)
    return graphs, hasattr(module, "classify")


def _variables(module: nnx.Module) -> tuple[Params, State]:
    params, state = nnx.state(module, nnx.Param, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(state)
