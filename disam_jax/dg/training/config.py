"""What all runs of a sweep share: static, so that they go through one compiled program."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.registry import DATASETS
from disam_jax.dg.data.sampling import steps_of_epochs
from disam_jax.dg.data.splits import split
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import HParams, Hyperparameter
from disam_jax.dg.models.registry import MODELS
from disam_jax.dg.peft.registry import FINETUNING
from disam_jax.dg.ranges import RANGES, check_range
from disam_jax.dg.training.averaging import AVERAGING
from disam_jax.dg.training.schedules import SCHEDULES, rate_factor


@dataclass(frozen=True)
class FineTuneConfig:
    """Which part of a pretrained model is trained, and how. Each attribute is the command line option of its name.

    Attributes:
        peft: Way of fine-tuning, a key of `FINETUNING`.
        context: Number of learned context vectors of "coop".
        class_contexts: Whether each class has context vectors of its own.
        context_words: Words from which the context vectors start; "" for random vectors.
        rank: Rank of the updates of "lora".
        template: Sentence with {} for the name of a class, where classes are told apart by sentences.
        cache_features: Whether the image tower's features are computed once; None: wherever it is frozen.
        train_from: Stage of the image tower from which on it is trained, one of `models.stages.stage_names`; what is
            before it is frozen, and what that makes of the images is computed once. "": all of it is run.
        cache_dtype: Type in which that is kept, "float32" or "float16".
        views: Number of augmented views of each image of which it is kept.
    """

    peft: str
    context: int = 16
    class_contexts: bool = False
    context_words: str = ""
    rank: int = 4
    template: str = "a photo of a {}."
    cache_features: bool | None = None
    train_from: str = ""
    cache_dtype: Literal["float32", "float16"] = "float32"
    views: int = 0


# Options that have a meaning with `train_from` alone.
OF_A_CUT = ("cache_dtype", "views")


@dataclass(frozen=True)
class TrainConfig:
    """How every run is trained and measured. An attribute that the command line can set has the name of its option.

    Attributes:
        model: Name of the network, a key of `MODELS`.
        steps: Number of optimizer steps of a run.
        learning_rate: Default learning rate of the optimizer.
        weight_decay: Default weight decay, which is added to the gradient.
        rho: Default length of the perturbation. Methods without a perturbation are measured at this distance, too.
        lam: Default weight of the penalty; None for the default of each method.
        optimizer: Name of the optimizer, a key of `OPTIMIZERS`.
        momentum: Momentum of "sgd".
        schedule: How the learning rate changes along a run, a key of `SCHEDULES`.
        warmup: Steps over which the learning rate rises before that; below 1, their share of all steps.
        per_domain: Number of examples of each source domain in a batch.
        fraction: Share of each domain's examples on which methods with a rho perturb; the others do without.
        begin: Step from which on they do; below 1, its share of all steps.
        batches: What a batch is, a key of `BATCHES`.
        batch_size: Number of examples in a merged batch; None where batches are grouped.
        epochs: Number of times that a run sees its training examples in merged batches. `steps` are then those of the
            held-out domain that leaves the most examples; the runs of others end earlier and stand still. None: as
            many as `steps` make.
        hidden: Number of units in the hidden layer of the multilayer perceptron.
        dropout: Probability of dropout before the last layer.
        norm: Normalisation of the small convolutional network: "none", "batch" or "group".
        frozen_norm: Whether batch normalisation keeps the statistics that it started with, as in DomainBed.
        standardise: Whether inputs are standardised feature by feature over the source domains' training splits.
        augment: Whether images are augmented in training.
        averaging: Average of the weights, a key of `AVERAGING`.
        ema_decay: Decay of the exponential moving average.
        holdout: Share of each domain that is set aside for validation.
        evaluations: Number of times that runs are measured, evenly spaced over training, besides once before it.
        eval_every: Steps between two measurements; None for as many as `evaluations` makes them.
        dtype: Type in which the network computes, "float32" or "bfloat16"; parameters and losses are float32.
        remat: Whether the activations inside of the network's blocks are computed again for the gradient.
        data_parallel: Whether all devices share each batch, in the place of having runs of their own.
        probe: Largest number of training examples of each domain on which the losses at w + e are measured.
        block: Number of examples that are evaluated at once.
        sharpness_rho: Length of the step by which each domain's sharpness is measured after training.
        keep_logits: Whether the logits of the target's examples are kept at the points that a selection can choose.
        finetune: What is trained of a pretrained model; None for a network from scratch.
    """

    model: str = "mlp"
    steps: int = 400
    learning_rate: float = 0.1
    weight_decay: float = 0.0
    rho: float = 0.1
    lam: float | None = None
    optimizer: str = "sgd"
    momentum: float = 0.9
    schedule: str = "constant"
    warmup: float = 0.0
    per_domain: int = 16
    fraction: float = 1.0
    begin: float = 0.0
    batches: str = "grouped"
    batch_size: int | None = None
    epochs: int | None = None
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
    eval_every: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    data_parallel: bool = False
    probe: int = 256
    block: int = 256
    sharpness_rho: float = 0.05
    keep_logits: bool = False
    finetune: FineTuneConfig | None = None

    @property
    def augments_images(self) -> bool:
        """Whether a step augments its images; from a cut, views of them are there already."""
        return self.augment and not (self.finetune is not None and self.finetune.train_from)

    @property
    def segment(self) -> int:
        """Steps between two measurements."""
        return self.eval_every or -(-self.steps // self.evaluations)

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        return self._steps_of(self.warmup)

    @property
    def perturbs_all(self) -> bool:
        """Whether methods with a perturbation take it in every step and on all examples."""
        return self.fraction == 1.0 and self.begin == 0

    @property
    def begin_step(self) -> int:
        """The first step with a perturbation."""
        return self._steps_of(self.begin)

    def _steps_of(self, value: float) -> int:
        """A number of steps, or below 1 their share of all steps."""
        return math.ceil(value * self.steps) if value < 1 else int(value)

    @property
    def measured_at(self) -> tuple[int, ...]:
        """The steps after which the runs are measured, from 0 to `steps`."""
        return (*range(0, self.steps, self.segment), self.steps)

    @property
    def defaults(self) -> dict[str, float]:
        """Defaults of the hyperparameters that have these names, and the number of steps."""
        lam = {} if self.lam is None else {"lam": self.lam}
        own = {"learning_rate": self.learning_rate, "weight_decay": self.weight_decay, "rho": self.rho}
        return {**own, **lam, "steps": self.steps}

    def record(self) -> dict[str, Any]:
        """The configuration as JSON values, under the names that results files have had from the first version on.

        What an earlier version did not have is left out at its default, so that its sweeps go on.
        """
        record = {name: value for name, value in asdict(self).items() if name not in ADDED or value != ADDED[name]}
        finetune = record.pop("finetune")
        # Without logits, a run has the record that it had before they could be kept, so that its sweeps go on.
        if not self.keep_logits:
            del record["keep_logits"]
        if finetune is not None:
            # A run without a cut has the record that it had before there were cuts, so that its sweeps go on.
            if not finetune["train_from"]:
                finetune = {name: value for name, value in finetune.items() if name not in ("train_from", *OF_A_CUT)}
            record["tuning"] = {RECORDED.get(name, name): value for name, value in finetune.items()}
        return record


# What a batch is, by name.
BATCHES: Mapping[str, str] = MappingProxyType(
    {
        "grouped": "as many examples of each source domain, drawn with replacement as in DomainBed",
        "merged": "a fixed number of examples of all source domains, shuffled in each epoch, as the DISAM paper trains",
    }
)

# Attributes of `TrainConfig` that results files have only where they differ from these values.
ADDED: Mapping[str, Any] = MappingProxyType(
    {
        each.name: each.default
        for each in fields(TrainConfig)
        if each.name
        in (
            *("fraction", "begin", "schedule", "warmup", "eval_every", "dtype", "remat", "data_parallel"),
            *("batches", "batch_size", "epochs"),
        )
    }
)

# Names of attributes of `FineTuneConfig` in results files, where they differ.
RECORDED: Mapping[str, str] = MappingProxyType({"context_words": "initial", "cache_features": "cached"})


# By the kind of inputs: where ERM and SAM learn, from a few tries on the last step (docs/benchmark.md).
DEFAULTS: Mapping[str, TrainConfig] = MappingProxyType(
    {
        "features": TrainConfig(steps=2000, learning_rate=0.03, rho=0.5, standardise=True),
        "pixels": TrainConfig(model="conv", norm="batch", steps=600, learning_rate=0.05, rho=0.05, probe=128),
    }
)

# Of pretrained models, whatever is trained: the optimizer and its rate are those of the way of fine-tuning.
PRETRAINED = TrainConfig(steps=500, rho=0.05, probe=128, block=64)


def default_config(data: Domains) -> TrainConfig:
    """Default configuration for training from scratch on a data set.

    Args:
        data: Data set. One of the name of an entry of `DATASETS` has the values of that entry, others have those of
            `DEFAULTS` for "pixels", inputs [N, H, W, C], or "features".

    Returns:
        TrainConfig.

    Example:
        >>> from disam_jax.dg.testing import toy
        >>> default_config(toy(images=True)).model, default_config(toy()).standardise
        ('conv', True)
    """
    if data.inputs.ndim == 4:
        return DEFAULTS["pixels"]
    entry = DATASETS.get(data.name)
    return DEFAULTS["features"] if entry is None else replace(DEFAULTS["features"], **entry.training)


def make_config(
    data: Domains,
    model: str,
    finetune: FineTuneConfig | None = None,
    optimizer: str | None = None,
    **values: Any,
) -> TrainConfig:
    """How runs are trained: what is asked for, and the defaults of the data set, the model and the way of fine-tuning.

    Args:
        data: Data set.
        model: Name of the network.
        finetune: What is trained of a pretrained model; None for a network from scratch.
        optimizer: Name of the optimizer; None for the default. Another one than the default has another rate.
        **values: Values of `TrainConfig`; those that are None have their defaults.

    Returns:
        TrainConfig. There are at most as many `evaluations` as `steps`, and as many as `eval_every` makes, if given.

    Raises:
        InputError: If a value is out of its range, or the optimizer, the schedule or the averaging is unknown, or a
            merged batch has more examples than there are.

    Example:
        >>> from disam_jax.dg.data.digits import load_digits
        >>> config = make_config(load_digits(), "mlp", steps=10, rho=None)
        >>> config.steps, config.rho, config.evaluations
        (10, 0.1, 10)
    """
    by_data = default_config(data)
    if finetune is None:
        config = replace(by_data, **MODELS[model].training)
    else:
        config = replace(PRETRAINED, finetune=finetune, **FINETUNING[finetune.peft].training)
    if optimizer is not None and optimizer != config.optimizer:
        entry = find_optimizer(optimizer)
        rate = by_data.learning_rate if entry.learning_rate is None else entry.learning_rate
        config = replace(config, optimizer=optimizer, learning_rate=rate)
    given = {name: value for name, value in values.items() if value is not None}
    config = with_steps(replace(config, model=model, **given), data)
    check_config(config)
    if config.eval_every is not None:
        every = min(config.eval_every, config.steps)
        return replace(config, eval_every=every, evaluations=-(-config.steps // every))
    return replace(config, evaluations=min(config.evaluations, config.steps))


def with_steps(config: TrainConfig, data: Domains) -> TrainConfig:
    """The configuration with the size of its merged batches and the steps of its epochs, if it has any.

    Args:
        config: Configuration.
        data: Data set.

    Returns:
        Configuration. A merged batch has by default as many examples as a grouped one.

    Raises:
        InputError: If a batch has more examples than the sources of a held-out domain.

    Example:
        >>> from disam_jax.dg.testing import toy
        >>> with_steps(TrainConfig(batches="merged", batch_size=4, epochs=3), toy()).steps
        9
    """
    if config.batches != "merged":
        return config
    for name in ("batch_size", "epochs"):
        if (value := getattr(config, name)) is not None:
            check_range(name, value)
    size = config.batch_size or config.per_domain * (len(data.domain_names) - 1)
    counts = split(data, 0, config.holdout).train_counts
    least = int(counts.sum() - counts.max())
    if size > least:
        without = data.domain_names[int(counts.argmax())]
        raise InputError(
            f"--batch-size must be at most {least}, the number of examples to train on without {without}, got {size}"
        )
    config = replace(config, batch_size=size)
    if config.epochs is None:
        return config
    steps = [int(steps_of_epochs(counts, target, size, config.epochs)) for target in range(len(counts))]
    return replace(config, steps=max(steps))


def check_batches(config: TrainConfig) -> None:
    """Checks that the batches have what their kind needs, and nothing else.

    Raises:
        InputError: naming the option of the command line.

    Example:
        >>> check_batches(TrainConfig(epochs=3))
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: --epochs is for merged batches: write --batches merged too, or --steps
    """
    if config.batches not in BATCHES:
        raise InputError(f"--batches must be one of {', '.join(BATCHES)}, got {config.batches}")
    if config.batches == "merged":
        return
    for name, instead in (("batch_size", "--per-domain"), ("epochs", "--steps")):
        if getattr(config, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is for merged batches: write --batches merged too, or {instead}"
            )


def check_config(config: TrainConfig) -> None:
    """Checks that the values make sense.

    Raises:
        InputError: naming the option of the command line.

    Example:
        >>> check_config(TrainConfig(rho=-1.0))
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: --rho must be finite and not negative, got -1.0
    """
    for name in RANGES:
        value = getattr(config, name, None)
        if value is not None:
            check_range(name, value)
    check_batches(config)
    find_optimizer(config.optimizer)
    for name, known in (("averaging", AVERAGING), ("schedule", SCHEDULES)):
        if getattr(config, name) not in known:
            raise InputError(f"--{name} must be one of {', '.join(known)}, got {getattr(config, name)}")
    for name, steps, leave, write in (
        ("begin", config.begin_step, "steps with a perturbation", "0.5 for the second half of them"),
        ("warmup", config.warmup_steps, "steps to train at the full rate", "0.1 for a tenth of them"),
    ):
        value = getattr(config, name)
        if value >= 1 and not float(value).is_integer():
            raise InputError(
                f"--{name} must be a whole number of steps or a share of them below 1, got {value:g}: write "
                f"{int(value)}"
            )
        if steps >= config.steps:
            raise InputError(f"--{name} must leave {leave}: got {value:g} of {config.steps} --steps, write {write}")


class Optimizer(NamedTuple):
    """A registered optimizer.

    Attributes:
        make: (learning rate, which may be traced, configuration) -> gradient transformation.
        learning_rate: Default where the optimizer is asked for and is not the default; None for that of the data.
        ranges: Hyperparameters that random search draws.
        large_ranges: The same for large networks.
    """

    make: Callable[[Any, TrainConfig], optax.GradientTransformation]
    learning_rate: float | None
    ranges: Mapping[str, Hyperparameter]
    large_ranges: Mapping[str, Hyperparameter]


# Ours for stochastic gradient descent with momentum, about the data set's default.
SGD: Mapping[str, Hyperparameter] = MappingProxyType({"learning_rate": Hyperparameter(0.1, -0.7, 0.3, relative=True)})
# DomainBed's ranges for Adam, those for its data sets of small images first (weight decay 0 there).
SMALL_IMAGES: Mapping[str, Hyperparameter] = MappingProxyType({"learning_rate": Hyperparameter(1e-3, -4.5, -2.5)})
LARGE_IMAGES: Mapping[str, Hyperparameter] = MappingProxyType(
    {"learning_rate": Hyperparameter(5e-5, -5.0, -3.5), "weight_decay": Hyperparameter(0.0, -6.0, -2.0)}
)

OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType(
    {
        "sgd": Optimizer(lambda rate, config: optax.sgd(rate, config.momentum), None, SGD, SGD),
        "adam": Optimizer(lambda rate, _: optax.adam(rate), 1e-3, SMALL_IMAGES, LARGE_IMAGES),
    }
)


def find_optimizer(name: str) -> Optimizer:
    """An optimizer by its name.

    Raises:
        InputError: If there is none of this name.

    Example:
        >>> find_optimizer("adam").learning_rate
        0.001
    """
    if name not in OPTIMIZERS:
        raise InputError(f"--optimizer must be one of {', '.join(OPTIMIZERS)}, got {name}")
    return OPTIMIZERS[name]


def make_optimizer(
    config: TrainConfig, hparams: HParams, last: jax.Array | None = None
) -> optax.GradientTransformation:
    """The optimizer behind every method.

    Args:
        config: Configuration, of which the optimizer is used.
        hparams: "learning_rate" and "weight_decay", which may be traced.
        last: Number of steps of this run, int32 [], over which the schedule goes; None for those of the configuration.

    Returns:
        Weight decay added to the gradient, then stochastic gradient descent or Adam, as PyTorch's and DomainBed's are.
        The schedule multiplies the learning rate.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = make_optimizer(TrainConfig(), {"learning_rate": 0.5, "weight_decay": 0.25})
        >>> params, gradient = jnp.array([4.0]), jnp.array([2.0])
        >>> updates, state = optimizer.update(gradient, optimizer.init(params), params)
        >>> updates.tolist()
        [-1.5]
    """
    descend = OPTIMIZERS[config.optimizer].make(_scheduled(hparams["learning_rate"], config, last), config)
    return optax.chain(optax.add_decayed_weights(hparams["weight_decay"]), descend)


def _scheduled(rate: jax.Array, config: TrainConfig, last: jax.Array | None) -> Any:
    if config.schedule == "constant" and not config.warmup:
        return rate
    factor = rate_factor(config.schedule, config.steps, config.warmup_steps)
    if last is None:
        return lambda count: rate * factor(count)
    # A run that ends earlier goes through the schedule as much faster.
    faster = config.steps / last.astype(np.float32)
    return lambda count: rate * factor(count.astype(np.float32) * faster)
