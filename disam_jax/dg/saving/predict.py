"""What a saved model says of many examples: batch by batch, through one compiled program."""

import collections
import csv
import io
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from disam_jax.dg.data.streaming import Block
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import reason, shown
from disam_jax.dg.saving.examples import Examples, splits_of
from disam_jax.dg.saving.load import SavedModel
from disam_jax.dg.unfinished import unfinished_folder

Progress = Callable[[int, int], None]
# Batches that the device has, beside the one that is fetched.
AHEAD = 3


def by_batches(
    program: Callable[[Block], Any], examples: Examples, batch: int, on_progress: Progress | None = None
) -> Iterator[Any]:
    """What a program makes of the examples, a batch at a time.

    The device works on batches while those before are fetched and the next ones are read. All batches have one size, so
    that the program is compiled once; the last is filled up.

    Args:
        program: Block -> arrays [B, ...], not waited for.
        examples: N examples.
        batch: B; at most N are taken.
        on_progress: Called with the number of examples that are done, and of all.

    Yields:
        The same as numpy arrays, of the examples alone.

    Raises:
        InputError: If an image cannot be read.
    """
    number = len(examples.labels)
    size, done = min(batch, number), 0
    waiting: collections.deque[tuple[tuple[Any, ...], int]] = collections.deque()
    for block in examples.blocks(size):
        waiting.append((tuple(program(block)), int(block.valid.sum())))
        # Several wait, so that the device never does.
        if len(waiting) > AHEAD:
            yield _fetched(*waiting.popleft())
        done += int(block.valid.sum())
        if on_progress is not None:
            on_progress(done, number)
    while waiting:
        yield _fetched(*waiting.popleft())


def _fetched(found: tuple[Any, ...], valid: int) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(each)[:valid] for each in found)


def batch_size(model: SavedModel) -> int:
    """Number of examples at a time where the user says nothing: as many as take 4 MiB, from 32 to 4096.

    Example:
        >>> import tempfile
        >>> from disam_jax.dg import load_model
        >>> from disam_jax.dg.testing import save_toy_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     batch_size(load_model(save_toy_model(folder)))
        4096
    """
    each = math.prod(model.input_shape) * model.input_dtype.itemsize
    return min(4096, max(32, 2**22 // each))


def write_predictions(
    model: SavedModel, examples: Examples, out: Path, batch: int | None = None, on_progress: Progress | None = None
) -> dict[str, int]:
    """Classifies examples and writes a CSV file: of each its name, its class, and the probability of each class.

    Args:
        model: SavedModel.
        examples: Examples that it takes.
        out: Path of the file, which is written whole or not at all.
        batch: Number of examples at a time; by default `batch_size`.
        on_progress: Called with the number of examples that are done, and of all.

    Returns:
        Number of examples of each class that was predicted.

    Raises:
        InputError: If an image cannot be read, or the file cannot be written.
    """
    counts = np.zeros(len(model.classes), int)
    names = iter(map(cell, examples.rows))
    classes = [cell(name) for name in model.classes]
    # One format for a whole row, which takes a fraction of the time of a CSV writer.
    form = f"%s,%s,{','.join(['%.6g'] * len(classes))}\n"
    program = lambda block: (model.probabilities(block.x),)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(out.parent) as unfinished:
            with (unfinished / out.name).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                file.write(",".join(["file", "class", *(cell(f"p_{name}") for name in model.classes)]) + "\n")
                for (found,) in by_batches(program, examples, batch or batch_size(model), on_progress):
                    chosen = found.argmax(-1)
                    rows = zip(itertools.islice(names, len(found)), chosen.tolist(), found.tolist(), strict=True)
                    file.write("".join([form % (name, classes[place], *row) for name, place, row in rows]))
                    counts += np.bincount(chosen, minlength=len(counts))
            os.replace(unfinished / out.name, out)
    except OSError as error:
        raise InputError(f"cannot write to {shown(out)}: {reason(error)}") from error
    return dict(zip(model.classes, counts.tolist(), strict=True))


def cell(text: str) -> str:
    """A text as a cell of a CSV file, in quotation marks where it needs them.

    Example:
        >>> cell("1.jpg"), cell("1, 2.jpg")
        ('1.jpg', '"1, 2.jpg"')
    """
    file = io.StringIO()
    csv.writer(file, lineterminator="").writerow([text])
    return file.getvalue()


class Evaluation(NamedTuple):
    """How a model does on examples.

    Attributes:
        examples: Number N of examples.
        accuracy: Fraction of right answers.
        accuracy_error: Standard error of that mean.
        loss: Mean cross-entropy in nats.
        loss_error: Standard error of that mean.
    """

    examples: int
    accuracy: float
    accuracy_error: float
    loss: float
    loss_error: float


def evaluation_of(right: np.ndarray, losses: np.ndarray) -> Evaluation:
    """Means and standard errors, s / sqrt(N), over examples.

    Args:
        right: 1 for a right answer, 0 for a wrong one, [N].
        losses: In nats, [N].

    Returns:
        Evaluation; the errors are NaN for a single example.

    Example:
        >>> evaluation_of(np.array([1.0, 0.0, 1.0, 1.0]), np.array([0.5, 1.5, 0.5, 0.5]))
        Evaluation(examples=4, accuracy=0.75, accuracy_error=0.25, loss=0.75, loss_error=0.25)
    """
    number = len(right)
    means = []
    for values in (np.asarray(right, np.float64), np.asarray(losses, np.float64)):
        with np.errstate(invalid="ignore"):
            error = values.std(ddof=1) / np.sqrt(number) if number > 1 else np.nan
        means += [float(values.mean()), float(error)]
    return Evaluation(number, *means)


def evaluate(
    model: SavedModel, examples: Examples, batch: int | None = None, on_progress: Progress | None = None
) -> Mapping[str, Evaluation]:
    """How a model does on a domain, and on the splits of the domain that it was not trained on.

    Args:
        model: SavedModel.
        examples: Labelled examples.
        batch: Number of examples at a time; by default `batch_size`.
        on_progress: Called with the number of examples that are done, and of all.

    Returns:
        For "all", and where the examples are those of the model's target for "training" and "validation", which are
        what the tables of its sweep are about.

    Raises:
        InputError: If an image cannot be read.
    """
    program = lambda block: model.judge(block.x, block.y)[1:]
    batches = list(by_batches(program, examples, batch or batch_size(model), on_progress))
    losses, right = map(np.concatenate, zip(*batches, strict=True))
    rows = {"all": np.arange(len(right)), **splits_of(examples, model)}
    return {name: evaluation_of(right[each], losses[each]) for name, each in rows.items()}
