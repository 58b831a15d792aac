"""What the models of a method have in common: how their network is built, and the weights that no run trains."""

import hashlib
import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import numpy as np

from disam_jax.dg.data.domains import Domains
from disam_jax.dg.errors import InputError
from disam_jax.dg.models.inputs import images
from disam_jax.dg.models.network import Network
from disam_jax.dg.models.registry import MODELS, network_options
from disam_jax.dg.peft.finetuning import Pretrained
from disam_jax.dg.pretrained.tokenizer import class_prompts
from disam_jax.dg.saving.architecture import architecture_of
from disam_jax.dg.saving.module import arrays_of, front_of, preprocessing_of, skeleton, trained_names
from disam_jax.dg.training.config import TrainConfig

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "optax")
# What standardises the features of a run, beside its parameters.
STANDARDISATION = ("shift", "scale")


class Blueprint(NamedTuple):
    """What the models of a method have in common.

    Attributes:
        made: What the network is made of, JSON values; `module.build` makes it again.
        classes: C names.
        inputs: What the network takes, from `inputs_of`.
        targets: For each domain, which of its examples validate, from `targets_of`.
        trained: Bytes of each array that a run has of its own, by the dotted path of its variable.
        frozen: Arrays that all runs share.
        versions: Versions of the packages that train.
    """

    made: Mapping[str, Any]
    classes: tuple[str, ...]
    inputs: Mapping[str, Any]
    targets: Mapping[str, Mapping[str, Any]]
    trained: Mapping[str, int]
    frozen: Mapping[str, np.ndarray]
    versions: Mapping[str, str]


def inputs_of(data: Domains, image_size: int | None) -> dict[str, Any]:
    """What a network takes, as JSON values.

    Args:
        data: Data set.
        image_size: Side to which images in files are scaled; None where the data are arrays.

    Returns:
        "kind": "images", "features" of images, or "arrays"; "shape" and "dtype" of an example; "image_size".

    Example:
        >>> from disam_jax.dg.testing import toy
        >>> inputs_of(toy(images=True), image_size=8)
        {'kind': 'images', 'shape': [8, 8, 3], 'dtype': 'uint8', 'image_size': 8}
    """
    shape, dtype = list(data.inputs.shape[1:]), str(data.inputs.dtype)
    of_images = dtype == "uint8" and len(shape) == 3
    kind = "images" if of_images else "arrays" if image_size is None else "features"
    return {"kind": kind, "shape": shape, "dtype": dtype, "image_size": image_size}


def targets_of(data: Domains, holdout: float) -> dict[str, dict[str, Any]]:
    """By what the examples of each domain are known again, and which of them validate.

    Args:
        data: Data set.
        holdout: Share of each domain that is set aside.

    Returns:
        For each domain, JSON values: "place" among the domains, number of "examples", "labels", a hash of them in their
        order, "holdout", and "validation": the rows that validate, None where the seed decides.

    Example:
        >>> from disam_jax.dg.testing import toy
        >>> sorted(targets_of(toy(), 0.2)["photo"])
        ['examples', 'holdout', 'labels', 'place', 'validation']
    """
    found = {}
    for place, (name, first, count) in enumerate(zip(data.domain_names, data.starts, data.counts, strict=True)):
        rows = slice(int(first), int(first) + int(count))
        given = None if data.validation is None else np.flatnonzero(data.validation[rows]).tolist()
        known = {"examples": int(count), "labels": labels_hash(data.labels[rows])}
        found[name] = {"place": place, **known, "holdout": holdout, "validation": given}
    return found


def labels_hash(labels: np.ndarray) -> str:
    """A hash of labels in their order.

    Example:
        >>> labels_hash(np.array([0, 1])) == labels_hash(np.array([1, 0]))
        False
    """
    return hashlib.sha256(np.ascontiguousarray(labels, np.int32).data).hexdigest()[:16]


def from_scratch(
    network: Network, config: TrainConfig, data: Domains, inputs: Mapping[str, Any] | None = None
) -> Blueprint:
    """The blueprint of a network by name.

    Args:
        network: Network, as `make_network` makes it for the configuration and the data.
        config: What all runs share.
        data: Data set.
        inputs: What the network takes, from `inputs_of`; by default that of data in arrays.

    Returns:
        Blueprint.

    Raises:
        InputError: If the network is another one than the configuration names.

    Example:
        >>> from disam_jax.dg.models.registry import make_network
        >>> from disam_jax.dg.testing import toy
        >>> blueprint = from_scratch(make_network("linear", (2,), 2), TrainConfig(model="linear"), toy())
        >>> blueprint.trained
        {'network.fc.bias': 8, 'network.fc.kernel': 16}
    """
    model = MODELS.get(config.model)
    if config.finetune is not None or model is None or model.make is None:
        raise InputError("--save: this network is none that is trained from scratch: give the blueprint of its own")
    shape = tuple(data.inputs.shape[1:])
    options = network_options(config.model, frozen_norm=config.frozen_norm, **model.options_of(config, shape))
    preprocessing = preprocessing_of(images if model.of_images else None, flatten=not model.of_images)
    made = {
        "model": config.model,
        "input_shape": list(shape),
        "dropout": config.dropout,
        "options": options,
        "architecture": None,
        "preprocessing": {**asdict(preprocessing), "standardise": config.standardise},
        "dtype": config.dtype,
    }
    return _blueprint(network, made, data, inputs or inputs_of(data, None), config, {})


def fine_tuned(
    network: Network,
    pretrained: Pretrained,
    config: TrainConfig,
    data: Domains,
    inputs: Mapping[str, Any],
    checkpoint: str,
    zero_shot: bool = False,
) -> Blueprint:
    """The blueprint of a pretrained network.

    Args:
        network: From `make_networks`.
        pretrained: Pretrained model as it was loaded.
        config: What all runs share, of which `finetune` says what is trained.
        data: Data set, whatever stands in it in the place of images.
        inputs: What the whole network takes, from `inputs_of`.
        checkpoint: Where the weights came from, for the record.
        zero_shot: Whether the network is CLIP's zero-shot classifier.

    Returns:
        Blueprint.

    Raises:
        InputError: If the model is none that can be built again.
    """
    finetune = config.finetune
    assert finetune is not None
    tokens, tokenizer = None, pretrained.tokenizer
    if tokenizer is not None:
        texts = {text for form in (finetune.template, "{}.") for text in class_prompts(data.class_names, form)}
        words = [finetune.context_words] if finetune.context_words else []
        ends = (tokenizer.start, tokenizer.end)
        tokens = {
            "texts": {text: [ends[0], *tokenizer.words(text), ends[1]] for text in sorted(texts)},
            "words": {text: tokenizer.words(text) for text in words},
        }
    preprocessing = preprocessing_of(pretrained.prepare)
    made = {
        "model": config.model,
        "input_shape": list(inputs["shape"]),
        "checkpoint": checkpoint,
        "architecture": architecture_of(pretrained.module),
        "finetune": asdict(finetune),
        "tokens": tokens,
        "zero_shot": zero_shot,
        "preprocessing": {**asdict(preprocessing), "standardise": config.standardise},
        "dtype": config.dtype,
    }
    front = front_of(pretrained, finetune)
    frozen = {} if front is None else {f"front.{name}": each for name, each in arrays_of(front).items()}
    return _blueprint(network, made, data, inputs, config, frozen)


def _blueprint(
    network: Network,
    made: Mapping[str, Any],
    data: Domains,
    inputs: Mapping[str, Any],
    config: TrainConfig,
    frozen: Mapping[str, Any],
) -> Blueprint:
    if network.module is None:
        raise InputError(f"--save: model {config.model} is made of functions and no module: leave --save out")
    wanted = arrays_of(skeleton(made, data.class_names))
    trained = {f"network.{name}" for name in trained_names(network)} | {*STANDARDISATION}
    shared = dict(frozen)
    if wanted.keys() - trained - shared.keys():
        module = network.module(*network.init(jax.random.key(0)))
        shared |= {f"network.{name}": each for name, each in arrays_of(module).items()}
    shared = {name: np.asarray(each) for name, each in shared.items() if name in wanted and name not in trained}
    own = {name: leaf for name, leaf in wanted.items() if name in trained}
    fits = all(wanted[name].shape == each.shape for name, each in shared.items())
    if not fits or wanted.keys() - own.keys() - shared.keys():
        raise InputError(f"--save: the network of model {config.model} is not built again by its options: leave it out")
    return Blueprint(
        made,
        data.class_names,
        inputs,
        targets_of(data, config.holdout),
        {name: math.prod(leaf.shape) * leaf.dtype.itemsize for name, leaf in own.items()},
        shared,
        {name: importlib.metadata.version(name) for name in PACKAGES},
    )
