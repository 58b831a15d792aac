"""The data sets of the verdict as arrays: features of frozen networks, and principal components."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.verdict.plan import DataSet
from disam_jax.dg.cli.compare import finetune_of, frozen_activations, load_checkpoint, read_data, with_own_checkpoint
from disam_jax.dg.cli.options import Compare
from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.load import open_data
from disam_jax.dg.models.stages import CLASSIFIER

IMAGE_SIZE = 128


def load(entry: DataSet, folder: Path, cache: Path, say: Callable[[str], None] = print) -> Domains:
    """A data set with vectors as inputs: its own, or what the frozen network makes of its images.

    Args:
        entry: Data set of the plan.
        folder: Folder of the data sets.
        cache: Folder in which features are kept.
        say: Called with lines of text.

    Returns:
        Domains.
    """
    path = str(folder / entry.data) if (folder / entry.data).exists() else entry.data
    if not entry.model:
        return open_data(path)
    kept = cache / f"{entry.data}.npz"
    if kept.exists():
        return open_data(str(kept))
    say(f"{entry.data}: reading images and computing features")
    show = lambda *_: None
    options = with_own_checkpoint(Compare(data=path, model=entry.model, train_from=CLASSIFIER, cache=cache))
    pretrained, finetune = load_checkpoint(options), finetune_of(options)
    assert pretrained is not None
    assert finetune is not None
    images = read_data(options, IMAGE_SIZE, None, show, None)
    data = frozen_activations(pretrained, images, finetune, options, show, None)
    names = {"domain_names": data.domain_names, "class_names": data.class_names}
    np.savez(kept, x=data.inputs, y=data.labels, domain=data.domain_ids, **names)
    return data


def principal_components(inputs: np.ndarray, seen: np.ndarray, number: int) -> np.ndarray:
    """The first principal components of the inputs, in units of the root mean square of those that were seen.

    Args:
        inputs: [N, F].
        seen: Whether each example decides on mean, directions and unit, bool [N]: those of the source domains.
        number: Number of components.

    Returns:
        float32 [N, number].

    Example:
        >>> inputs = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 9.0]])
        >>> np.abs(principal_components(inputs, np.array([True, True, False]), 1)).tolist()
        [[1.0], [1.0], [0.0]]
    """
    inputs = np.asarray(inputs, np.float64)
    centred = inputs - inputs[seen].mean(0)
    _, directions = np.linalg.eigh(centred[seen].T @ centred[seen])
    projected = centred @ directions[:, ::-1][:, :number]
    return (projected / np.sqrt(np.square(projected[seen]).mean())).astype(np.float32)


def for_target(data: Domains, entry: DataSet, target: int) -> Domains:
    """The data set as the runs see it that hold out a target. No example of the target decides on anything."""
    if not entry.components:
        return data
    seen = data.domain_ids != target
    inputs = principal_components(data.inputs.reshape(len(data.labels), -1), seen, entry.components)
    return replace(data, inputs=inputs)
