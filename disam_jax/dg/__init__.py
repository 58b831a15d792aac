"""A domain generalization benchmark: data, networks, methods, training, sweeps and reports of `disam-jax`.

The modules are imported one by one where they are used, so importing this package is free. Imports point upwards in
this list only:

    errors, reading, ranges    what every file uses: the user's mistakes, files, ranges of numbers
    results                    what is measured of the runs of a sweep
    data                       readers, splits, batches, augmentation
    models                     networks as pure functions
    methods                    ways to compute a gradient; add yours here
    pretrained, peft           checkpoints, and what is trained of them
    training                   one run: configuration, training step, evaluation, weight averages
    saving                     models that are kept: written, loaded, applied to new data
    runners                    many runs in one compiled program
    sweep                      which runs, their results on disk, which one is reported
    report                     scores, statistics, tables, figures
    diagnosis                  whether DISAM will help, told before training
    cli                        the command line
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from disam_jax.dg.saving.load import SavedModel


def load_model(path: str | Path) -> "SavedModel":
    """Loads a model that `disam-jax sweep --save` kept, as a function from inputs to logits.

    Args:
        path: Path of one of the two files of the model, NAME.json or NAME.safetensors.

    Returns:
        SavedModel. `model(inputs)` are the logits [N, C] of inputs [N, ...], by a compiled program; `model.module` is
        the network as a Flax NNX module with its parameters, `model.classes` are the names of the classes, and
        `model.record` is what the JSON file says.

    Raises:
        InputError: If a file cannot be read, is damaged or of a later version, or the files do not fit each other.

    Example:
        >>> import tempfile
        >>> from disam_jax.dg.testing import save_toy_model, toy
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = load_model(save_toy_model(folder))
        >>> model.classes, model(toy().inputs).shape
        (('cat', 'dog'), (24, 2))
        >>> from flax import nnx
        >>> sorted(nnx.to_pure_dict(nnx.state(model.module, nnx.Param))["network"])
        ['fc', 'hidden']
    """
    from disam_jax.dg.saving.load import load

    return load(path)
