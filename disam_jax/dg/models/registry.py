"""Networks by name. A new model is one more entry of `MODELS`; see `from_nnx` for its module."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from flax import nnx

from disam_jax.dg.errors import InputError
from disam_jax.dg.models.adapter import from_nnx
from disam_jax.dg.models.convnet import ConvNet
from disam_jax.dg.models.inputs import images, vectors
from disam_jax.dg.models.linear import LinearHead
from disam_jax.dg.models.mlp import MLP
from disam_jax.dg.models.network import Network
from disam_jax.dg.models.norm import NORMS
from disam_jax.dg.models.resnet import BasicBlock, Bottleneck, ResNet

Shape = tuple[int, ...]


class Model(NamedTuple):
    """A model that has a name.

    Attributes:
        summary: what it is, in one line.
        make: (input shape, number of classes, dropout, options) -> module maker, see `from_nnx`.
        options: names and defaults of its options.
        of_images: whether it wants images [H, W, C]; the others take any shape as a vector.
    """

    summary: str
    make: Callable[[Shape, int, float, Mapping[str, Any]], Callable[[nnx.Rngs], nnx.Module]]
    options: Mapping[str, Any]
    of_images: bool


def _mlp(shape: Shape, num_classes: int, dropout: float, options: Mapping[str, Any]):
    hidden = _widths("mlp", "hidden", options["hidden"], least=0)
    return lambda rngs: MLP(math.prod(shape), hidden, num_classes, dropout=dropout, rngs=rngs)


def _conv(shape: Shape, num_classes: int, dropout: float, options: Mapping[str, Any]):
    widths = _widths("conv", "widths", options["widths"], least=1)
    norm = options["norm"]
    if norm not in NORMS:
        raise InputError(f"model conv: norm is {norm!r}; write one of {', '.join(NORMS)}")
    if options["frozen_norm"]:
        if norm not in ("batch", "frozen"):
            raise InputError(f"model conv: frozen_norm needs BatchNorm, but norm is {norm!r}; write norm='batch'")
        norm = "frozen"
    return lambda rngs: ConvNet(num_classes, widths, in_channels=shape[-1], dropout=dropout, norm=norm, rngs=rngs)


def _resnet(stages: tuple[int, ...], block: type[BasicBlock] | type[Bottleneck]):
    def make(shape: Shape, num_classes: int, dropout: float, options: Mapping[str, Any]):
        return lambda rngs: ResNet(
            stages, block, num_classes, in_channels=shape[-1], dropout=dropout, rngs=rngs, **options
        )

    return make


def _linear(shape: Shape, num_classes: int, dropout: float, options: Mapping[str, Any]):
    del options
    return lambda rngs: LinearHead(math.prod(shape), num_classes, dropout=dropout, rngs=rngs)


_RESNET_OPTIONS = MappingProxyType({"small_input": False, "frozen_norm": False})

MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "mlp": Model("multilayer perceptron", _mlp, MappingProxyType({"hidden": (64,)}), of_images=False),
        "conv": Model(
            "small convolutional network, for images of 32 to 96 pixels",
            _conv,
            MappingProxyType({"widths": (16, 32, 64), "norm": "none", "frozen_norm": False}),
            of_images=True,
        ),
        "resnet18": Model("ResNet-18", _resnet((2, 2, 2, 2), BasicBlock), _RESNET_OPTIONS, of_images=True),
        "resnet50": Model("ResNet-50", _resnet((3, 4, 6, 3), Bottleneck), _RESNET_OPTIONS, of_images=True),
        "linear": Model("linear head on given features", _linear, MappingProxyType({}), of_images=False),
    }
)


def make_network(
    name: str,
    input_shape: Shape,
    num_classes: int,
    *,
    dropout: float = 0.0,
    frozen_norm: bool = False,
    **options: Any,
) -> Network:
    """A network by name, for inputs of one shape.

    Args:
        name: one of `MODELS`.
        input_shape: of one example: (H, W, C) for images, (F,) for vectors.
        num_classes: C.
        dropout: fraction that is dropped in training, in [0, 1): of the features before the last layer, for an mlp of
            every hidden layer.
        frozen_norm: whether BatchNorm keeps its running statistics and normalises by them in training too, as in
            DomainBed, which starts from pretrained weights; of little use without those.
        **options: of the model, see `MODELS[name].options`: `hidden` of an mlp, `widths` and `norm` of a conv,
            `small_input` of a ResNet.

    Returns:
        Network.

    Raises:
        InputError: on an unknown name or option, a value that cannot be, inputs that are no images for a model of
            images, or `frozen_norm` for a model without BatchNorm.

    Example:
        >>> import jax
        >>> network = make_network("mlp", (8, 8), 10, hidden=(32,))
        >>> params, state = network.init(jax.random.key(0))
        >>> network.apply(params, state, jax.numpy.ones((5, 8, 8)), jax.random.key(1), False).logits.shape
        (5, 10)
    """
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}; write one of {', '.join(MODELS)}")
    model = MODELS[name]
    if model.of_images and len(input_shape) != 3:
        takers = ", ".join(other for other, entry in MODELS.items() if not entry.of_images)
        raise InputError(
            f"model {name} needs images [H, W, C], but an example has shape {list(input_shape)}; write one of {takers}"
        )
    if not 0.0 <= dropout < 1.0:
        raise InputError(f"model {name}: dropout is {dropout}; write a number from 0 to less than 1")
    if "frozen_norm" in model.options:
        options["frozen_norm"] = frozen_norm
    elif frozen_norm:
        raise InputError(f"model {name} has no BatchNorm to freeze; leave frozen_norm out")
    unknown = [option for option in options if option not in model.options]
    if unknown:
        known = [option for option in model.options if option != "frozen_norm"]
        raise InputError(
            f"model {name} has no option {unknown[0]!r}; it has {', '.join(known) if known else 'none of its own'}"
        )
    make_module = model.make(tuple(input_shape), num_classes, dropout, {**model.options, **options})
    return from_nnx(make_module, images if model.of_images else vectors)


def _widths(name: str, option: str, value: Any, least: int) -> Shape:
    widths = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(widths) < least or not all(isinstance(width, int) and width > 0 for width in widths):
        raise InputError(f"model {name}: {option} is {value!r}; write positive integers, one for each layer")
    return widths
