"""Networks by name. A new network is one file in `disam_jax/dg/models/entries`; see `from_nnx` for its module."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from disam_jax.dg.data.names import hint
from disam_jax.dg.errors import InputError
from disam_jax.dg.models.network import Network
from disam_jax.dg.registry import Registry

# --help reads this file, so it imports Flax in functions only.
if TYPE_CHECKING:
    from flax import nnx

    from disam_jax.dg.models.compute import Compute
    from disam_jax.dg.training.config import TrainConfig

Shape = tuple[int, ...]
Maker = Callable[["nnx.Rngs"], "nnx.Module"]


def _no_options(config: "TrainConfig", shape: Shape) -> Mapping[str, Any]:
    del config, shape
    return {}


@dataclass(frozen=True)
class Model:
    """A registered network, and everything that the benchmark must know about it.

    Attributes:
        summary: What it is, in one line.
        make: (input shape, number of classes, dropout, options) -> module maker, see `from_nnx`. None: the network
            exists with the weights of a checkpoint only.
        options: Names and defaults of its options, those of `make`.
        options_of: (configuration, input shape) -> options that the benchmark sets.
        of_images: Whether it takes images [H, W, C]. The others take any shape as a vector, and images as 176 features.
        checkpoints: Whether it takes pretrained weights: "none", "optional" or "required".
        checkpoint: Checkpoint that is taken where --checkpoint is not given; None: none is.
        image_size: Pixels on each side of an image, where neither the user nor the checkpoint says.
        checkpoint_options: Which of "dropout" and "frozen_norm" it takes with them.
        training: Values of `TrainConfig` that it changes where it is trained from scratch.
        large: Whether random search draws the optimizer's hyperparameters from DomainBed's ranges for large networks.
        one_at_a_time_on_cpu: Whether runs are trained one by one on CPUs, where XLA has only loops for convolutions
            whose kernels differ from run to run.
        text: Whether it classifies by texts, so that prompts can be learned.
        transformer: Whether it has the projections that LoRA updates.
        peft: Default of --peft, a key of `FINETUNING`.

    Raises:
        ValueError: If it can be made in no way.
    """

    summary: str
    make: Callable[[Shape, int, float, Mapping[str, Any]], Maker] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    options_of: Callable[["TrainConfig", Shape], Mapping[str, Any]] = _no_options
    of_images: bool = True
    checkpoints: Literal["none", "optional", "required"] = "none"
    checkpoint: str | None = None
    image_size: int = 64
    checkpoint_options: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    large: bool = False
    one_at_a_time_on_cpu: bool = False
    text: bool = False
    transformer: bool = False
    peft: str = "full"

    def __post_init__(self):
        if (self.make is None) != (self.checkpoints == "required"):
            raise ValueError(f"{self.summary}: make is None if and only if checkpoints is 'required'")


MODELS: Registry[Model] = Registry(
    "model",
    Model,
    "disam_jax.dg.models.entries",
    "MODELS",
    "disam_jax.models",
    first=("mlp", "linear", "conv", "resnet", "efficientnet", "clip", "vit"),
)


def find_model(name: str) -> Model:
    """A model by its name.

    Args:
        name: Name of an entry of `MODELS`.

    Returns:
        Model.

    Raises:
        InputError: If there is none of this name.

    Example:
        >>> find_model("resnet18").summary
        'ResNet-18'
        >>> find_model("resnet-18")
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: unknown model 'resnet-18'; write one of mlp, ...; is 'resnet18' meant?
    """
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}; write one of {', '.join(MODELS)}{hint(name, MODELS)}")
    return MODELS[name]


def make_network(
    name: str,
    input_shape: Shape,
    num_classes: int,
    *,
    dropout: float = 0.0,
    frozen_norm: bool = False,
    compute: "Compute | None" = None,
    **options: Any,
) -> Network:
    """A network by name, for inputs of one shape.

    Args:
        name: Name of an entry of `MODELS` that can be trained from scratch.
        input_shape: Shape of one example: (H, W, C) for images, (F,) for vectors.
        num_classes: C.
        dropout: Fraction that is dropped in training, in [0, 1): of the features before the last layer, for an mlp of
            every hidden layer.
        frozen_norm: Whether BatchNorm keeps its running statistics and normalises by them in training too, as in
            DomainBed, which starts from pretrained weights; of little use without those.
        compute: How it computes; None for float32, keeping all activations.
        **options: Options of the model, see `MODELS[name].options`: `hidden` of an mlp, `widths` and `norm` of a conv,
            `small_input` of a ResNet.

    Returns:
        Network.

    Raises:
        InputError: On an unknown name or option, a value that cannot be, inputs that are no images for a model of
            images, `frozen_norm` for a model without BatchNorm, or `remat` for one without blocks.

    Example:
        >>> import jax
        >>> network = make_network("mlp", (8, 8), 10, hidden=(32,))
        >>> params, state = network.init(jax.random.key(0))
        >>> network.apply(params, state, jax.numpy.ones((5, 8, 8)), jax.random.key(1), False).logits.shape
        (5, 10)
    """
    from disam_jax.dg.models.adapter import FLOAT32, from_nnx
    from disam_jax.dg.models.inputs import images, vectors

    prepare = images if find_model(name).of_images else vectors
    given = network_options(name, frozen_norm=frozen_norm, **options)
    network = from_nnx(make_module(name, input_shape, num_classes, dropout, given), prepare, compute or FLOAT32)
    again = functools.partial(
        make_network, name, input_shape, num_classes, frozen_norm=frozen_norm, compute=compute, **options
    )
    return network._replace(with_dropout=lambda rate: again(dropout=rate))


def network_options(name: str, *, frozen_norm: bool = False, **options: Any) -> dict[str, Any]:
    """All options of a model: those that are given, and the defaults of the others.

    Args:
        name: Name of an entry of `MODELS`.
        frozen_norm: As for `make_network`.
        **options: As for `make_network`.

    Returns:
        Options by name.

    Raises:
        InputError: On an unknown name or option, or `frozen_norm` for a model without BatchNorm.

    Example:
        >>> network_options("mlp"), network_options("mlp", hidden=(8, 8))
        ({'hidden': (64,)}, {'hidden': (8, 8)})
    """
    model = find_model(name)
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
    return {**model.options, **options}


def make_module(name: str, input_shape: Shape, num_classes: int, dropout: float, options: Mapping[str, Any]) -> Maker:
    """The maker of a model's module, for inputs of one shape.

    Args:
        name: Name of an entry of `MODELS` that can be trained from scratch.
        input_shape: Shape of one example.
        num_classes: C.
        dropout: As for `make_network`.
        options: All options of the model, from `network_options`.

    Returns:
        Maker, see `from_nnx`.

    Raises:
        InputError: On an unknown name, a value that cannot be, or inputs that are no images for a model of images.

    Example:
        >>> from flax import nnx
        >>> make = make_module("mlp", (4,), 3, 0.0, network_options("mlp", hidden=(8,)))
        >>> nnx.eval_shape(lambda: make(nnx.Rngs(0))).fc.kernel.shape
        (8, 3)
    """
    model = find_model(name)
    if model.make is None:
        raise InputError(f"model {name} exists with pretrained weights only; load it with peft.finetuning.load")
    if model.of_images and len(input_shape) != 3:
        takers = ", ".join(other for other, entry in MODELS.items() if not entry.of_images)
        raise InputError(
            f"model {name} needs images [H, W, C], but an example has shape {list(input_shape)}; write one of {takers}"
        )
    if not 0.0 <= dropout < 1.0:
        raise InputError(f"model {name}: dropout is {dropout}; write a number from 0 to less than 1")
    return model.make(tuple(input_shape), num_classes, dropout, options)


def check_widths(name: str, option: str, value: Any, least: int) -> Shape:
    """Numbers of units or channels, one for each layer.

    Args:
        name: Name of the model, for messages.
        option: Name of the option, for messages.
        value: Value of the option: a number or several.
        least: Smallest number of layers.

    Returns:
        The widths.

    Raises:
        InputError: If one of them is no positive integer, or there are too few.

    Example:
        >>> check_widths("mlp", "hidden", 64, least=0)
        (64,)
    """
    widths = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(widths) < least or not all(isinstance(width, int) and width > 0 for width in widths):
        raise InputError(f"model {name}: {option} is {value!r}; write positive integers, one for each layer")
    return widths
