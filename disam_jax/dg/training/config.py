"""What all runs of a sweep share: static, so that they go through one compiled program."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import optax

from disam_jax.dg.data.domains import Domains
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import HParams
from disam_jax.dg.ranges import RANGES, check_range
from disam_jax.dg.training.averaging import AVERAGING

OPTIMIZERS = ("sgd", "adam")


# How a pretrained model is fine-tuned: `peft.TRAINABLE` has what each one trains.
PEFT = ("full", "probe", "lora", "coop", "norm-bias")


@dataclass(frozen=True)
class FineTuneConfig:
    """What is trained of a pretrained model.

    Attributes:
        peft: one of `PEFT`.
        context: number of learned context vectors of "coop".
        class_contexts: whether each class has its own.
        initial: words from which they start; "" for random ones.
        rank: of "lora".
        template: sentence with {} for the name of a class, for what is classified by sentences.
        cached: whether the image tower's features are computed once; None: wherever it is frozen.
    """

    peft: str
    context: int = 16
    class_contexts: bool = False
    initial: str = ""
    rank: int = 4
    template: str = "a photo of a {}."
    cached: bool | None = None


@dataclass(frozen=True)
class TrainConfig:
    """How every run is trained and measured.

    Attributes:
        model: name of the network, see `models.registry`.
        steps: optimizer steps of a run.
        learning_rate: default of the hyperparameter.
        weight_decay: default of the hyperparameter, added to the gradient.
        rho: default length of the perturbation, also of that with which methods without one are measured.
        lam: default weight of the penalty; None for each method's own.
        optimizer: "sgd" with momentum or "adam".
        momentum: of "sgd".
        per_domain: examples of each source domain in a batch.
        hidden: units of the multilayer perceptron's hidden layer.
        dropout: probability, before the last layer.
        norm: what the small convolutional network normalises by: "none", "batch" or "group".
        frozen_norm: whether batch normalisation keeps the statistics that it started with, as in DomainBed.
        standardise: whether inputs are standardised feature by feature over the source domains' training splits.
        augment: whether images are augmented in training.
        averaging: of the weights: "none", "ema" or "swad".
        ema_decay: of "ema".
        holdout: share of each domain that is set aside for validation.
        evaluations: how many times the runs are measured, evenly spaced over training, besides once before it.
        probe: the largest number of training examples of each domain on which w + e is measured.
        block: examples that are evaluated at once.
        sharpness_rho: length of the step by which each domain's sharpness is measured after training.
        tuning: what is trained of a pretrained model; None for a network from scratch.
    """

    model: str = "mlp"
    steps: int = 400
    learning_rate: float = 0.1
    weight_decay: float = 0.0
    rho: float = 0.1
    lam: float | None = None
    optimizer: str = "sgd"
    momentum: float = 0.9
    per_domain: int = 16
    hidden: int = 64
    dropout: float = 0.0
    norm: str = "none"
    frozen_norm: bool = False
    standardise: bool = False
    augment: bool = False
    averaging: str = "none"
    ema_decay: float = 0.995
    holdout: float = 0.2
    evaluations: int = 20
    probe: int = 256
    block: int = 256
    sharpness_rho: float = 0.05
    tuning: FineTuneConfig | None = None

    @property
    def segment(self) -> int:
        """Steps between two measurements."""
        return -(-self.steps // self.evaluations)

    @property
    def measured_at(self) -> tuple[int, ...]:
        """The steps after which the runs are measured, from 0 to `steps`."""
        return (*range(0, self.steps, self.segment), self.steps)

    @property
    def defaults(self) -> dict[str, float]:
        """Values that hyperparameters of these names have by default, and the number of steps."""
        lam = {} if self.lam is None else {"lam": self.lam}
        own = {"learning_rate": self.learning_rate, "weight_decay": self.weight_decay, "rho": self.rho}
        return {**own, **lam, "steps": self.steps}

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        record = asdict(self)
        return record if self.tuning else {name: value for name, value in record.items() if name != "tuning"}


# By the kind of data: where ERM and SAM learn, from a few tries on the last step (docs/benchmark.md).
DEFAULTS: Mapping[str, TrainConfig] = MappingProxyType(
    {
        "digits": TrainConfig(),
        "features": TrainConfig(steps=2000, learning_rate=0.03, rho=0.5, standardise=True),
        "pixels": TrainConfig(model="conv", norm="batch", steps=600, learning_rate=0.05, rho=0.05, probe=128),
    }
)


# Of pretrained models, by what is trained: the usual optimizer and rate of each, not searched for here.
TUNED: Mapping[str, TrainConfig] = MappingProxyType(
    {
        "coop": TrainConfig(steps=500, learning_rate=2e-3, rho=0.05, probe=128, block=64),
        "probe": TrainConfig(optimizer="adam", steps=500, learning_rate=1e-3, rho=0.05, probe=128, block=64),
        "lora": TrainConfig(optimizer="adam", steps=500, learning_rate=1e-4, rho=0.05, probe=128, block=64),
        "norm-bias": TrainConfig(optimizer="adam", steps=500, learning_rate=1e-4, rho=0.05, probe=128, block=64),
        "full": TrainConfig(optimizer="adam", steps=500, learning_rate=5e-5, rho=0.05, probe=128, block=64),
    }
)


def kind_of(data: Domains) -> str:
    """Which of `DEFAULTS` suits a data set: "pixels" for images, "digits" for the bundled ones, else "features".

    Example:
        >>> import numpy as np
        >>> pixels, zeros = np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int32)
        >>> kind_of(Domains("toy", pixels, zeros, zeros, ("photo",), ("dog",)))
        'pixels'
    """
    if data.inputs.ndim == 4:
        return "pixels"
    return "digits" if data.name.startswith("digits") else "features"


def check_setting(setting: TrainConfig) -> None:
    """Checks that the values make sense.

    Raises:
        InputError: naming the option of the command line.

    Example:
        >>> check_setting(TrainConfig(rho=-1.0))
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: --rho must be finite and not negative, got -1.0
    """
    for name in RANGES:
        value = getattr(setting, name, None)
        if value is not None:
            check_range(name, value)
    for name, choices in {"optimizer": OPTIMIZERS, "averaging": tuple(AVERAGING)}.items():
        if getattr(setting, name) not in choices:
            raise InputError(f"--{name} must be one of {', '.join(choices)}, got {getattr(setting, name)}")


def make_optimizer(setting: TrainConfig, hyper: HParams) -> optax.GradientTransformation:
    """The optimizer behind every method.

    Args:
        setting: says which.
        hyper: "learning_rate" and "weight_decay", which may be traced.

    Returns:
        Weight decay added to the gradient, then stochastic gradient descent or Adam, as PyTorch's and DomainBed's are.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = make_optimizer(TrainConfig(), {"learning_rate": 0.5, "weight_decay": 0.25})
        >>> params, gradient = jnp.array([4.0]), jnp.array([2.0])
        >>> updates, state = optimizer.update(gradient, optimizer.init(params), params)
        >>> updates.tolist()
        [-1.5]
    """
    rate = hyper["learning_rate"]
    descend = optax.sgd(rate, setting.momentum) if setting.optimizer == "sgd" else optax.adam(rate)
    return optax.chain(optax.add_decayed_weights(hyper["weight_decay"]), descend)
