"""A network as a chain of named stages, so that it can be cut: what lies before a stage, and the rest.

A network of images has `stages`: from images to features, one function after the other. Its `features` is their
composition, and so is the front of a cut followed by the rest: the operations are the same, in the same order.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from disam_jax.dg.models.recompute import recomputed

# What follows the last stage: dropout, where there is any, and the last layer.
CLASSIFIER = "classifier"


class Block(nnx.Module):
    """A layer of many in a chain, called with activations alone; a network of blocks can be trained with --remat.

    Attributes:
        remat: Whether what is computed inside is computed again for the gradient, in the place of being kept.
    """

    remat = False


class NamedStage(NamedTuple):
    """A stage of a network.

    Attributes:
        name: Name, by which a network is cut.
        apply: Function from the activations of the stage before to those of this one.
        owns: Paths of the attributes that it computes with, from the network on.
    """

    name: str
    apply: Callable[[jax.Array], jax.Array]
    owns: tuple[tuple[str | int, ...], ...] = ()


def chained(layers: Sequence[Any]) -> Callable[[jax.Array], jax.Array]:
    """Layers as one function; a `Block` with `remat` keeps its input alone for the gradient.

    Example:
        >>> chained([lambda x: x + 1, lambda x: 2 * x])(3)
        8
    """

    def apply(x: jax.Array) -> jax.Array:
        for layer in layers:
            x = recomputed(layer, x) if isinstance(layer, Block) and layer.remat else layer(x)
        return x

    return apply


def run_stages(stages: Sequence[NamedStage], x: jax.Array) -> jax.Array:
    """What stages make of images or activations, one after the other.

    Example:
        >>> run_stages([NamedStage("stem", lambda x: x + 1), NamedStage("head", lambda x: 2 * x)], 3)
        8
    """
    return chained([stage.apply for stage in stages])(x)


def stage_names(network: Any) -> tuple[str, ...]:
    """The stages at which a network can be cut: all but the first, before which there is nothing, and the classifier.

    Args:
        network: Network with `stages`.

    Returns:
        Names, in order; the last one is "classifier".

    Example:
        >>> from disam_jax.dg.models.resnet import BasicBlock, ResNet
        >>> make = lambda: ResNet((1, 1), BasicBlock, None, width=8, rngs=nnx.Rngs(0))
        >>> stage_names(nnx.eval_shape(make))
        ('layer1', 'layer2', 'head', 'classifier')
    """
    return (*(stage.name for stage in network.stages[1:]), CLASSIFIER)


def _cut(network: Any, stage: str) -> tuple[Sequence[NamedStage], Sequence[NamedStage]]:
    names = stage_names(network)
    if stage not in names:
        raise ValueError(f"stage must be one of {', '.join(names)}, got {stage!r}")
    place = 1 + names.index(stage)
    return network.stages[:place], network.stages[place:]


def front(network: Any, stage: str, x: jax.Array) -> jax.Array:
    """Activations that reach a stage.

    Args:
        network: Network with `stages`.
        stage: One of `stage_names`.
        x: float [N, H, W, C], as the network gets images.

    Returns:
        Activations, float [N, ...].

    Raises:
        ValueError: If there is no such stage.

    Example:
        >>> from disam_jax.dg.models.resnet import BasicBlock, ResNet
        >>> make = lambda: ResNet((1, 1), BasicBlock, None, width=8, rngs=nnx.Rngs(0))
        >>> jax.eval_shape(lambda x: front(make(), "layer2", x), jax.numpy.ones((2, 32, 32, 3))).shape
        (2, 8, 8, 8)
    """
    return run_stages(_cut(network, stage)[0], x)


def rest(network: Any, stage: str, activations: jax.Array) -> jax.Array:
    """Output of a given stage and all after it.

    `rest(network, stage, front(network, stage, x))` is `network.features(x)`, operation by operation.

    Args:
        network: Network with `stages`; those before `stage` are not needed, see `without_front`.
        stage: One of `stage_names`.
        activations: float [N, ...].

    Returns:
        Features, float [N, F], before dropout.

    Raises:
        ValueError: If there is no such stage.

    Example:
        >>> from disam_jax.dg.models.resnet import BasicBlock, ResNet
        >>> make = lambda: ResNet((1, 1), BasicBlock, None, width=8, rngs=nnx.Rngs(0))
        >>> jax.eval_shape(lambda x: rest(make(), "layer2", x), jax.numpy.ones((2, 8, 8, 8))).shape
        (2, 16)
    """
    return run_stages(_cut(network, stage)[1], activations)


def in_front(network: Any, stage: str) -> Callable[[tuple[Any, ...], Any], bool]:
    """An NNX filter of the variables of the front.

    Args:
        network: Network with `stages`.
        stage: One of `stage_names`.

    Returns:
        Filter, for paths from the network on.

    Example:
        >>> from disam_jax.dg.models.resnet import BasicBlock, ResNet
        >>> network = nnx.eval_shape(lambda: ResNet((1, 1), BasicBlock, None, width=8, rngs=nnx.Rngs(0)))
        >>> sorted(nnx.state(network, in_front(network, "layer1")))
        ['bn1', 'conv1']
    """
    owned = [path for each in _cut(network, stage)[0] for path in each.owns]

    def among(path: tuple[Any, ...], variable: Any) -> bool:
        del variable
        return any(path[: len(each)] == each for each in owned)

    return among


def without_front(network: Any, stage: str) -> Any:
    """A copy of a network with only the variables of a given stage and of all after it.

    Args:
        network: Network with `stages`.
        stage: One of `stage_names`.

    Returns:
        Copy, for `rest` with the same stage. It shares no variable with the network.

    Example:
        >>> from disam_jax.dg.models.resnet import BasicBlock, ResNet
        >>> network = nnx.eval_shape(lambda: ResNet((1, 1), BasicBlock, None, width=8, rngs=nnx.Rngs(0)))
        >>> sorted(nnx.state(without_front(network, "layer2")))
        ['layer2']
    """
    return _without(network, _cut(network, stage)[0])


def front_only(network: Any, stage: str) -> Any:
    """A copy of a network without what the stages from a given one on compute with; what no stage owns stays.

    Args:
        network: Network with `stages`.
        stage: One of `stage_names`.

    Returns:
        Copy, for `front` with the same stage. It shares no variable with the network.

    Example:
        >>> from disam_jax.dg.models.resnet import BasicBlock, ResNet
        >>> network = nnx.eval_shape(lambda: ResNet((1, 1), BasicBlock, None, width=8, rngs=nnx.Rngs(0)))
        >>> sorted(nnx.state(front_only(network, "layer2")))
        ['bn1', 'conv1', 'layer1']
    """
    return _without(network, _cut(network, stage)[1])


def _without(network: Any, stages: Sequence[NamedStage]) -> Any:
    copy = nnx.merge(*nnx.split(network))
    for each in stages:
        for *parents, last in each.owns:
            holder = copy
            for key in parents:
                holder = getattr(holder, key) if isinstance(key, str) else holder[key]
            if isinstance(last, str):
                setattr(holder, last, nnx.data(None))
            else:
                holder[last] = None
    return copy
