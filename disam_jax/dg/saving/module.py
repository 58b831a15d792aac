"""A network that was trained, as one module: from the inputs of a data set to logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from disam_jax.dg.models.compute import Compute, apply_module
from disam_jax.dg.models.inputs import IMAGENET_MEAN, IMAGENET_STD, images, to_float
from disam_jax.dg.models.network import Network, by_name
from disam_jax.dg.models.registry import make_module
from disam_jax.dg.models.stages import front, front_only
from disam_jax.dg.peft.features import tower_features
from disam_jax.dg.peft.finetuning import Normalize, Pretrained, make_networks
from disam_jax.dg.peft.texts import Buffer
from disam_jax.dg.saving.architecture import make_architecture
from disam_jax.dg.training.config import FineTuneConfig


@dataclass(frozen=True)
class Preprocessing:
    """What is done to inputs before the network sees them.

    Attributes:
        mean: Of each channel of images in [0, 1], taken away; None: inputs are not normalised.
        std: Of each channel, by which they are then divided.
        flatten: Whether an example becomes a vector.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    flatten: bool = False

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """From uint8 in 0..255 or floating point [N, ...] to float32."""
        if self.mean is not None and self.std is not None:
            return images(inputs, self.mean, self.std)
        return to_float(inputs).reshape(len(inputs), -1) if self.flatten else to_float(inputs)


def preprocessing_of(prepare: Any, flatten: bool = False) -> Preprocessing:
    """The preprocessing of a pretrained network, or of one by name.

    Args:
        prepare: `Normalize`, or `models.inputs.images` for the normalisation of ImageNet, or anything else for none.
        flatten: Whether an example becomes a vector.

    Returns:
        Preprocessing.

    Example:
        >>> preprocessing_of(Normalize((0.5,), (0.25,)))
        Preprocessing(mean=(0.5,), std=(0.25,), flatten=False)
    """
    if isinstance(prepare, Normalize):
        return Preprocessing(prepare.mean, prepare.std)
    return Preprocessing(IMAGENET_MEAN, IMAGENET_STD) if prepare is images else Preprocessing(flatten=flatten)


class Front(nnx.Module):
    """What no run trained and was computed once: a frozen tower, or what is before a cut.

    Args:
        tower: Tower with its weights.
        stage: Stage before which it is cut; "" for all of it.
        dtype: Type in which its activations were kept.
    """

    def __init__(self, tower: nnx.Module, stage: str, dtype: str):
        self.tower, self.stage, self.dtype = front_only(tower, stage) if stage else tower, stage, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """From images as the tower gets them to what the network was trained on."""
        if not self.stage:
            return tower_features(self.tower, x, jax.random.key(0)).astype(jnp.float32)
        # Rounded as it was for training.
        return front(self.tower, self.stage, x).astype(jnp.float32).astype(self.dtype)


class SavedNetwork(nnx.Module):
    """From the inputs of a data set, uint8 images or numbers, to logits.

    Args:
        network: Module that was trained, called as (prepared inputs, key).
        prepare: What is done to inputs before.
        front: What stands before the network and was not trained with it, if there is anything.
        standardise: Shape of an example whose features are standardised; None if they are not.
        dtype: Type in which the network computes; its parameters are float32.
    """

    def __init__(
        self,
        network: nnx.Module,
        prepare: Preprocessing,
        front: Front | None = None,
        standardise: Sequence[int] | None = None,
        dtype: str = "float32",
    ):
        self.network, self.prepare, self.dtype = network, prepare, dtype
        self.front = nnx.data(front)
        self.shift = nnx.data(None if standardise is None else Buffer(jnp.zeros(tuple(standardise), jnp.float32)))
        self.scale = nnx.data(None if standardise is None else Buffer(jnp.ones(tuple(standardise), jnp.float32)))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits float32 [N, C] of inputs [N, ...]."""
        x = inputs
        if self.shift is not None and self.scale is not None:
            x = (x - self.shift[...][None]) / self.scale[...][None]
        x = self.prepare(x)
        if self.front is not None:
            x = to_float(self.front(x))
        # Rounding changes the module that it is given.
        network = self.network if self.dtype == "float32" else nnx.merge(*nnx.split(self.network))
        return apply_module(network, x, jax.random.key(0), Compute(self.dtype))[0]


class RecordedTokens:
    """Token ids of the texts that a network reads, in the place of its tokenizer.

    Args:
        texts: Ids of each text from its start token to its end token.
        words: Ids of each text without these two.
    """

    def __init__(self, texts: Mapping[str, Sequence[int]], words: Mapping[str, Sequence[int]]):
        self._texts, self._words = texts, words

    def tokenize(self, texts: Sequence[str], context_length: int) -> np.ndarray:
        """As of `Tokenizer`: int32 [n, L].

        Raises:
            KeyError: If a text was not recorded.
        """
        ids = np.zeros((len(texts), context_length), np.int32)
        for row, text in zip(ids, texts, strict=True):
            row[: len(self._texts[text])] = self._texts[text]
        return ids

    def words(self, text: str) -> list[int]:
        """As of `Tokenizer`.

        Raises:
            KeyError: If the text was not recorded.
        """
        return list(self._words[text])


def build(made: Mapping[str, Any], classes: Sequence[str]) -> SavedNetwork:
    """The module of a record, with initial weights; inside `nnx.eval_shape` without any.

    Args:
        made: What the network was made of, JSON values, see `blueprint`.
        classes: C names.

    Returns:
        SavedNetwork, as it evaluates.

    Raises:
        InputError: If the network is not known here.
        KeyError: If an entry is missing or a name unknown.
        TypeError: If an entry is of another type.
        ValueError: If entries do not go together.
    """
    shape = tuple(made["input_shape"])
    given = made["preprocessing"]
    numbers = [None if given[name] is None else tuple(map(float, given[name])) for name in ("mean", "std")]
    prepare = Preprocessing(*numbers, flatten=bool(given["flatten"]))
    standardise = shape if given["standardise"] else None
    if made["architecture"] is None:
        options = {name: tuple(each) if isinstance(each, list) else each for name, each in made["options"].items()}
        module = make_module(made["model"], shape, len(classes), made["dropout"], options)(nnx.Rngs(0))
        module.eval()
        return SavedNetwork(module, prepare, standardise=standardise, dtype=made["dtype"])
    finetune = FineTuneConfig(**made["finetune"])
    tokens = None if made["tokens"] is None else RecordedTokens(**made["tokens"])
    pretrained = Pretrained(make_architecture(made["architecture"]), None, prepare, cast(Any, tokens))
    trained, untrained = make_networks(pretrained, finetune, classes)
    network = untrained if made["zero_shot"] else trained
    if network is None or network.module is None:
        raise ValueError(f"a {made['architecture']['kind']} classifies by no texts")
    module = network.module(*network.init(jax.random.key(0)))
    return SavedNetwork(module, prepare, front_of(pretrained, finetune), standardise, made["dtype"])


def front_of(pretrained: Pretrained, finetune: FineTuneConfig) -> Front | None:
    """What stands before the network that is trained and was computed once, if anything does.

    Args:
        pretrained: Pretrained model.
        finetune: What is trained of it.

    Returns:
        Front, as it evaluates, which shares the weights of the tower; or None.
    """
    if not (finetune.cache_features or finetune.train_from):
        return None
    tower = nnx.merge(*nnx.split(pretrained.tower))
    tower.eval()
    return Front(tower, finetune.train_from, finetune.cache_dtype)


def skeleton(made: Mapping[str, Any], classes: Sequence[str]) -> SavedNetwork:
    """The module of a record without arrays: shapes and types in their place. The arguments are those of `build`.

    Returns:
        SavedNetwork, to be filled with `nnx.update`.

    Example:
        >>> plain = {"mean": None, "std": None, "flatten": True, "standardise": False}
        >>> made = {"model": "mlp", "input_shape": [4], "dropout": 0.0, "dtype": "float32", "options": {"hidden": [8]}}
        >>> module = skeleton({**made, "architecture": None, "preprocessing": plain}, ["cat", "dog"])
        >>> sorted(arrays_of(module))[:2], arrays_of(module)["network.fc.kernel"].shape
        (['network.fc.bias', 'network.fc.kernel'], (8, 2))
    """
    return nnx.eval_shape(lambda: build(made, classes))


def arrays_of(module: nnx.Module) -> dict[str, Any]:
    """The arrays of a module, or what stands in their place, by the dotted path of their variable.

    Example:
        >>> sorted(arrays_of(nnx.eval_shape(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)))))
        ['bias', 'kernel']
    """
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(module))}


def trained_names(network: Network) -> tuple[str, ...]:
    """The paths of the parameters and running statistics of a run in its module.

    Example:
        >>> from disam_jax.dg.models.registry import make_network
        >>> trained_names(make_network("linear", (4,), 2))
        ('fc.bias', 'fc.kernel')
    """
    params, state = jax.eval_shape(network.init, jax.random.key(0))
    return (*by_name(params), *by_name(state))
