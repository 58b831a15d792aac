"""Examples for a model that was saved: images in a folder or arrays, with or without labels."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from disam_jax.dg.data.arrays import load_domain, load_inputs
from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.folder import ImageIndex, check_folder, list_classes, load_features
from disam_jax.dg.data.load import expand
from disam_jax.dg.data.names import hint
from disam_jax.dg.data.registry import DATASETS, find_data_set
from disam_jax.dg.data.splits import drawn
from disam_jax.dg.data.streaming import Block, eval_blocks, filled
from disam_jax.dg.data.walk import all_images, places, subfolders
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import is_folder, shown
from disam_jax.dg.saving.blueprint import labels_hash
from disam_jax.dg.saving.load import SavedModel, check_inputs


class Examples(NamedTuple):
    """Examples that a model takes.

    Attributes:
        name: What they are called.
        source: Arrays, or images that stay in their files until they are needed.
        labels: int32 [N], indices into the classes of the model; zeros where there are none.
        rows: What each one is called: the path of an image from the folder on, or the number of a row.
        image_size: Side to which images in files are scaled.
    """

    name: str
    source: Domains | ImageIndex
    labels: np.ndarray
    rows: tuple[str, ...]
    image_size: int

    def blocks(self, size: int) -> Iterator[Block]:
        """The examples in their order, in blocks of one size, of which the last is filled up.

        Raises:
            InputError: When the iteration meets an image that cannot be read.
        """
        if isinstance(self.source, Domains):
            return slices(self.source.inputs, self.labels, size)
        threads = os.cpu_count() or 1
        every = np.arange(len(self.labels))
        return eval_blocks(self.source, every, size, image_size=self.image_size, threads=threads, prefetch=2 * threads)


def slices(inputs: np.ndarray, labels: np.ndarray, size: int) -> Iterator[Block]:
    """Examples in memory in blocks of one size, of which all but the last are not copied.

    Example:
        >>> blocks = slices(np.arange(6.0).reshape(3, 2), np.zeros(3, np.int32), 2)
        >>> [(block.x[:, 0].tolist(), block.valid.tolist()) for block in blocks]
        [([0.0, 2.0], [True, True]), ([4.0, 0.0], [True, False])]
    """
    for first in range(0, len(inputs), size):
        x, y = inputs[first : first + size], labels[first : first + size]
        valid = np.arange(size) < len(x)
        yield Block(filled(x, size), filled(y, size), valid)


def unlabelled(data: str, model: SavedModel) -> Examples:
    """Examples to classify.

    Args:
        data: A folder of images, in class folders or not, or an npz file with an array `x`.
        model: SavedModel that takes them.

    Returns:
        Examples, without labels.

    Raises:
        InputError: If there are none, they cannot be read, or the model takes others.
    """
    path = expand(Path(data))
    if is_folder(path):
        _check_takes_images(path, model)
        images = all_images(path)
        return _of_images(path, [(each, 0) for each in images], model)
    return _of_arrays(path.name, _inputs_of(path, model), model)


def labelled(data: str, domain: str | None, model: SavedModel) -> Examples:
    """The examples of one domain, with labels.

    Args:
        data: A folder DIR/class/*.jpg, an npz file with `x` and `y`, or the name of a data set that is built in.
        domain: Name of the domain, where the data have several; of a folder, a folder inside it. None for the target
            of the model where the data are a data set with such a domain.
        model: SavedModel whose classes the labels are.

    Returns:
        Examples.

    Raises:
        InputError: If they cannot be read, a class is none of the model's, or the model takes other inputs.
    """
    name = find_data_set(data)
    entry = None if name is None else DATASETS[name]
    path = expand(Path(data))
    if entry is not None and entry.load is not None:
        return _of_domain(entry.load(), domain, model)
    if is_folder(path):
        folder = path if domain is None else path / domain
        check_folder(folder)
        _check_takes_images(folder, model)
        return _of_images(folder, _of_classes(folder, model), model)
    if path.suffix != ".npz":
        meant = f"{shown(data)} is neither a folder nor an .npz file"
        raise InputError(f"{meant}: give DIR/class/*.jpg, an .npz file with x and y, or one of {_built_in()}")
    inputs, labels = load_domain(path, model.classes, domain)
    check_inputs(inputs.shape, inputs.dtype, model, f"{shown(path)}: x")
    return _of_arrays(domain or path.stem, inputs, model, labels)


def splits_of(examples: Examples, model: SavedModel) -> dict[str, np.ndarray]:
    """The rows of both splits, where the examples are those of the domain that the model was not trained on.

    Args:
        examples: Labelled examples.
        model: SavedModel.

    Returns:
        Rows by the name of the split; nothing where the examples are others: of another name, number or labels.
    """
    data, run = model.record["data"], model.record["run"]
    target = data["of_target"]
    known = {"examples": len(examples.labels), "labels": labels_hash(examples.labels)}
    if examples.name != data["target"] or any(target[key] != value for key, value in known.items()):
        return {}
    if target["validation"] is None:
        training, validation = drawn(target["examples"], run["seed"], target["place"], target["holdout"])
    else:
        validation = np.array(target["validation"], int)
        training = np.setdiff1d(np.arange(target["examples"]), validation)
    return {"training": training, "validation": validation}


def _built_in() -> str:
    return ", ".join(name for name, entry in DATASETS.items() if entry.load is not None)


def _of_domain(data: Domains, domain: str | None, model: SavedModel) -> Examples:
    chosen = model.record["data"]["target"] if domain is None else domain
    if chosen not in data.domain_names:
        near = hint(chosen, data.domain_names)
        what = f"has no domain {shown(chosen)}"
        raise InputError(f"{data.name} {what}: write --domain and one of {', '.join(data.domain_names)}{near}")
    unknown = [name for name in data.class_names if name not in model.classes]
    if unknown:
        raise InputError(f"{data.name}: {_unknown(unknown[0], model)}")
    rows = data.domain_ids == data.domain_names.index(chosen)
    place = np.array([model.classes.index(name) for name in data.class_names], np.int32)
    inputs = data.inputs[rows]
    check_inputs(inputs.shape, inputs.dtype, model, data.name)
    return _of_arrays(chosen, inputs, model, place[data.labels[rows]])


def _inputs_of(path: Path, model: SavedModel) -> np.ndarray:
    if path.suffix != ".npz":
        raise InputError(f"{shown(path)} is neither a folder of images nor an .npz file")
    inputs = load_inputs(path)
    check_inputs(inputs.shape, inputs.dtype, model, f"{shown(path)}: x")
    return inputs


def _check_takes_images(folder: Path, model: SavedModel) -> None:
    if model.record["inputs"]["kind"] == "arrays":
        size = " x ".join(map(str, model.input_shape))
        raise InputError(f"{shown(folder)} has images, but the model takes arrays of {size}: give an .npz file")


def _unknown(name: str, model: SavedModel) -> str:
    known = ", ".join(map(shown, model.classes[:20])) + (", ..." if len(model.classes) > 20 else "")
    return f"the model does not know the class {shown(name)}: it has {known}{hint(name, model.classes)}"


def _of_classes(folder: Path, model: SavedModel) -> list[tuple[Path, int]]:
    """The images of a domain's class folders, with their labels, in the order of the model's classes."""
    found = {each.name: each for each in subfolders(folder)}
    if not found:
        raise InputError(
            f"{shown(folder)} has no class folders (expected DIR/class/*.jpg): predict takes images without labels"
        )
    unknown = [name for name in found if name not in model.classes]
    if unknown:
        inside = [each for each in found.values() if any(one.name in model.classes for one in subfolders(each))]
        domain = f"; is --domain {shown(inside[0].name)} meant?" if inside and len(unknown) == len(found) else ""
        raise InputError(f"{shown(folder)}: {_unknown(unknown[0], model)}{domain}")
    wanted = [(found[name], label) for label, name in enumerate(model.classes) if name in found]
    (images,), _ = list_classes([wanted], places([folder]))
    return list(images)


def _of_images(folder: Path, images: list[tuple[Path, int]], model: SavedModel) -> Examples:
    name = Path(os.path.abspath(folder)).name
    size = model.record["inputs"]["image_size"] or model.input_shape[0]
    index = ImageIndex(folder, name, (name,), model.classes, (tuple(images),))
    rows = tuple(str(path.relative_to(folder)) for path, _ in images)
    labels = np.array([label for _, label in images], np.int32)
    source = load_features(index, size) if model.record["inputs"]["kind"] == "features" else index
    return Examples(name, source, labels, rows, size)


def _of_arrays(name: str, inputs: np.ndarray, model: SavedModel, labels: np.ndarray | None = None) -> Examples:
    number = len(inputs)
    labels = np.zeros(number, np.int32) if labels is None else labels
    source = Domains("examples", inputs, labels, np.zeros(number, np.int32), ("all",), model.classes)
    return Examples(name, source, labels, tuple(map(str, range(number))), model.input_shape[0])
