"""What the benchmark knows of a network: how to start it and how to apply it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Params = Any
State = Any


class Output(NamedTuple):
    """Output of a network for N examples.

    Attributes:
        logits: float [N, C], not normalised.
        features: float [N, F], what the last layer sees.
        state: running statistics after these examples; as they came in if `train` is False or they are frozen.
    """

    logits: jax.Array
    features: jax.Array
    state: State


class Network(NamedTuple):
    """A network as two pure functions, so that many of them can be trained side by side under `vmap`.

    Attributes:
        init: random key -> (parameters, state): pytrees of arrays. State is what is not trained by gradients
            (running statistics); it may be empty.
        apply: (parameters, state, inputs [N, ...], key, train) -> Output. `train` is a Python bool; `key`
            decides what dropout drops and is not used if `train` is False. Inputs are float32, or uint8
            images, which the network scales and normalises itself.
        weights: arrays that all runs share and none trains, of a pretrained network; nothing by default. If there are
            any, all functions have a keyword argument `weights` with these as its default.
        module: (parameters, state) -> the NNX module with these, as it evaluates: called as (prepared inputs, key), it
            returns (logits, features). None: the network is made of functions, and its runs cannot be saved.
        with_dropout: Fraction that is dropped in training -> the same network with that. None: it has no dropout.
        head: (parameters, state, features [N, F]) -> logits [N, C], the last layer alone, for methods that change what
            it sees. None: the network cannot be split there. It has `weights` too, as the other functions have.
    """

    init: Callable[..., tuple[Params, State]]
    apply: Callable[..., Output]
    weights: Any = ()
    module: Callable[..., Any] | None = None
    with_dropout: "Callable[[float], Network] | None" = None
    head: Callable[..., jax.Array] | None = None

    def given(self, weights: Any) -> "Network":
        """The same network with other arrays as its weights, traced ones for instance.

        A compiled program takes them as an argument; as constants they would be compiled into each one anew.
        """
        if not jax.tree.leaves(weights):
            return self
        partial = functools.partial
        head = None if self.head is None else partial(self.head, weights=weights)
        return Network(partial(self.init, weights=weights), partial(self.apply, weights=weights), head=head)


def by_name(tree: Any) -> dict[str, Any]:
    """The leaves of nested dictionaries by the dotted path of their keys, as parameters and state are.

    Example:
        >>> by_name({"fc": {"bias": 1, "kernel": 2}})
        {'fc.bias': 1, 'fc.kernel': 2}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in leaves}
