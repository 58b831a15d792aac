"""A model from its files, in any process: a function from inputs to logits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from disam_jax.dg.data.load import expand
from disam_jax.dg.errors import InputError
from disam_jax.dg.pretrained.tensors import Tensors, shapes
from disam_jax.dg.reading import exists, reason, shown
from disam_jax.dg.saving.files import RECORD, TENSORS, digest_of, digests_in, frozen_name, read_record
from disam_jax.dg.saving.module import SavedNetwork, arrays_of, skeleton
from disam_jax.dg.training.metrics import is_right
from disam_jax.dg.training.step import example_losses

# Of a message about tensors.
_LISTED = 3


class Judged(NamedTuple):
    """Predictions of a model for N examples, and how they compare with the labels.

    Attributes:
        logits: float32 [N, C].
        losses: Cross-entropy in nats, float32 [N].
        right: 1 where the largest logit is that of the label, float32 [N].
    """

    logits: jax.Array
    losses: jax.Array
    right: jax.Array


class SavedModel:
    """A model that was saved: a function from inputs to logits.

    Args:
        path: Path of its record.
        record: What its record says.
        module: Its network with its arrays, as it evaluates.

    Attributes:
        module: `SavedNetwork`, a Flax NNX module from inputs to logits; its parameters are those that were trained and,
            of a pretrained network, those that were not.
        classes: C names, in the order of the logits.
        record: What the JSON file says: the network, its inputs, the data and the run, and what was measured.
        path: Path of the JSON file.
    """

    def __init__(self, path: Path, record: Mapping[str, Any], module: SavedNetwork):
        self.path, self.record, self.module = path, record, module
        self.classes: tuple[str, ...] = tuple(record["classes"])
        graph, state = nnx.split(module)
        # A tuple of arrays is passed to a program faster than a tree of variables.
        leaves, tree = jax.tree.flatten(state)
        self._leaves = tuple(leaves)

        def logits(leaves: tuple[jax.Array, ...], inputs: jax.Array) -> jax.Array:
            network: Any = nnx.merge(graph, jax.tree.unflatten(tree, leaves))
            return network(inputs)

        def probabilities(leaves: tuple[jax.Array, ...], inputs: jax.Array) -> jax.Array:
            return jax.nn.softmax(logits(leaves, inputs))

        def judged(leaves: tuple[jax.Array, ...], inputs: jax.Array, labels: jax.Array) -> Judged:
            found = logits(leaves, inputs)
            return Judged(found, example_losses(found, labels), is_right(found, labels))

        self._logits, self._probabilities, self._judged = map(jax.jit, (logits, probabilities, judged))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.record["inputs"]["shape"])

    @property
    def input_dtype(self) -> np.dtype:
        """Type of the inputs: uint8 for images, otherwise float32."""
        return np.dtype(self.record["inputs"]["dtype"])

    def __call__(self, inputs: Any) -> jax.Array:
        """Logits of examples, by a compiled program.

        Args:
            inputs: uint8 images or floating-point numbers as the model was trained on, [N, ...].

        Returns:
            float32 [N, C], not normalised.

        Raises:
            InputError: If the inputs have another shape or type.
        """
        return self._logits(self._leaves, self._checked(inputs))

    def probabilities(self, inputs: Any) -> jax.Array:
        """The probability of each class, float32 [N, C]; see `__call__`."""
        return self._probabilities(self._leaves, self._checked(inputs))

    def judge(self, inputs: Any, labels: Any) -> Judged:
        """Logits, losses and right answers of labelled examples.

        Args:
            inputs: As for `__call__`.
            labels: int32 [N], indices into `classes`.

        Returns:
            Judged.
        """
        return self._judged(self._leaves, self._checked(inputs), jnp.asarray(labels, jnp.int32))

    def _checked(self, inputs: Any) -> Any:
        check_inputs(np.shape(inputs), inputs.dtype if hasattr(inputs, "dtype") else np.asarray(inputs).dtype, self)
        return inputs if isinstance(inputs, (np.ndarray, jax.Array)) else jnp.asarray(inputs, self.input_dtype)


def check_inputs(shape: tuple[int, ...], dtype: Any, model: SavedModel, where: str = "inputs") -> None:
    """Checks that inputs are such as a model takes.

    Args:
        shape: Shape of the inputs, [N, ...].
        dtype: Their type.
        model: SavedModel.
        where: What the inputs are called, for messages.

    Raises:
        InputError: If they are others.
    """
    wanted, of_images = model.input_shape, model.input_dtype == np.uint8
    if of_images != (dtype == np.uint8):
        kind = "uint8, images of 0 to 255" if of_images else "floating point"
        raise InputError(f"{where} must be {kind}, as the model was trained on, got {dtype}")
    if tuple(shape[1:]) == wanted:
        return
    size = " x ".join(map(str, wanted))
    if of_images and len(shape) == 4 and shape[3] != wanted[2]:
        raise InputError(f"{where} must be images with {wanted[2]} channels, got {list(shape)}: the model takes {size}")
    if of_images:
        raise InputError(f"{where} must be images of {size}, got {list(shape)}: scale them, or give a folder of images")
    raise InputError(f"{where} must be [N, {', '.join(map(str, wanted))}], got {list(shape)}: the model takes {size}")


def load(path: str | Path) -> SavedModel:
    """Loads a model that `--save` wrote; see `disam_jax.dg.load_model`.

    Args:
        path: Path of one of its two files, or their common name without an ending.

    Returns:
        SavedModel.

    Raises:
        InputError: If a file cannot be read, is damaged or of a later version, or the files do not fit each other.
    """
    given = expand(Path(path))
    stem = given.with_suffix("") if given.suffix in (RECORD, TENSORS) else given
    file, tensors = (stem.with_name(f"{stem.name}{ending}") for ending in (RECORD, TENSORS))
    if not exists(file):
        there = exists(tensors) or exists(given)
        raise InputError(
            f"{shown(file)} is not there, " + ("but belongs to a model: put it beside it" if there else _how(given))
        )
    record = read_record(file)
    digests = digests_in(record, shown(file))
    files = {tensors: digests.own}
    if digests.frozen is not None:
        files[file.parent / frozen_name(digests.frozen)] = digests.frozen
    for each in files:
        if not exists(each):
            raise InputError(f"{shown(each)} is not there, but belongs to {shown(file)}: copy it into the same folder")
    try:
        module = skeleton(record["network"], record["classes"])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        wrong = f"{type(error).__name__}: {reason(error)}"
        raise InputError(f"{shown(file)}: its network cannot be built ({wrong}): get it anew") from error
    found = Tensors(list(files))
    check_fit(arrays_of(module), found, tensors, record)
    arrays = {name: found[name] for name in found}
    for each, digest in files.items():
        own = {name: arrays[name] for name, entry in found.entries.items() if entry.file == each}
        if digest_of(own) != digest:
            raise InputError(
                f"{shown(each)} has other numbers than {shown(file)} says: they were not saved together, or a file is "
                "damaged; get both anew"
            )
    paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(nnx.state(module))}
    nnx.update(module, nnx.from_flat_state({paths[name]: jnp.asarray(each) for name, each in arrays.items()}))
    return SavedModel(file, record, module)


def _how(path: Path) -> str:
    return f"and {shown(path)} is not a model: give NAME.json or NAME.safetensors of a folder models that --save wrote"


def check_fit(wanted: Mapping[str, Any], found: Tensors, file: Path, record: Mapping[str, Any]) -> None:
    """Checks that tensors are those of a network.

    Args:
        wanted: Arrays of the network, or what stands in their place, by name.
        found: Tensors.
        file: File of the tensors, for messages.
        record: Record of the model.

    Raises:
        InputError: If one is missing, has another shape or type, or belongs to no variable.
    """
    there = shapes(found)
    lacking = [name for name in wanted if name not in there]
    foreign = [name for name in there if name not in wanted]
    others = [
        f"{name} is {list(there[name])} and must be {list(leaf.shape)}"
        for name, leaf in wanted.items()
        if name in there and there[name] != leaf.shape
    ]
    faults = [("it lacks", lacking), ("it has, for no variable,", foreign), ("shapes differ:", others)]
    said = [f"{title} {', '.join(map(shown, names[:_LISTED]))}{_more(names)}" for title, names in faults if names]
    if said:
        model = shown(record["network"].get("model"))
        raise InputError(f"{shown(file)} is of another network than its record describes, {model}: {'; '.join(said)}")


def _more(names: list[str]) -> str:
    return f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
