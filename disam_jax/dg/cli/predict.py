"""`disam-jax predict` and `evaluate`: a model that was saved, on examples of the user's."""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import is_folder, shown

if TYPE_CHECKING:
    from pathlib import Path

    from disam_jax.dg.cli.options import Evaluate, Predict
    from disam_jax.dg.saving.predict import Evaluation


def run_predict(options: "Predict") -> None:
    """Classifies examples and writes the CSV file.

    Raises:
        InputError: If the model or the data cannot be used, or the file cannot be written.
    """
    from disam_jax.dg.cli.progress import progress
    from disam_jax.dg.ranges import check_range
    from disam_jax.dg.report.formats import print_lines
    from disam_jax.dg.saving.examples import unlabelled
    from disam_jax.dg.saving.load import load
    from disam_jax.dg.saving.predict import write_predictions

    if options.batch is not None:
        check_range("batch", options.batch)
    check_file(options.out)
    model = load(options.model)
    examples = unlabelled(options.data, model)
    with progress() as told:
        counts = write_predictions(
            model, examples, options.out, options.batch, lambda done, total: told.show("predicting", done, total)
        )
    most = sorted(counts.items(), key=lambda item: -item[1])
    said = ", ".join(f"{shown(name)} {number}" for name, number in most[:10] if number)
    print_lines([f"{len(examples.labels)} examples: {said}", f"written to {shown(options.out)}"])


def run_evaluate(options: "Evaluate") -> None:
    """Evaluates a model on a domain and prints accuracy and loss.

    Raises:
        InputError: If the model or the data cannot be used, or the file cannot be written.
    """
    from disam_jax.dg.cli.progress import progress
    from disam_jax.dg.ranges import check_range
    from disam_jax.dg.report.formats import print_lines
    from disam_jax.dg.saving.examples import labelled
    from disam_jax.dg.saving.load import load
    from disam_jax.dg.saving.predict import evaluate
    from disam_jax.dg.sweep.results_folder import write_files

    if options.batch is not None:
        check_range("batch", options.batch)
    if options.out is not None:
        check_file(options.out)
    model = load(options.model)
    examples = labelled(options.data, options.domain, model)
    with progress() as told:
        found = evaluate(model, examples, options.batch, lambda done, total: told.show("evaluating", done, total))
    print_lines(evaluation_lines(examples.name, model.record, found), wrap=False)
    if options.out is not None:
        numbers = {name: finite(each) for name, each in found.items()}
        content = {"model": str(model.path), "data": options.data, "domain": examples.name, "measured": numbers}
        write_files(options.out.absolute().parent, {options.out.name: (json.dumps(content, indent=1) + "\n").encode()})


def check_file(path: "Path") -> None:
    """Checks, before anything takes long, that a path is none of a folder.

    Raises:
        InputError: If it is.
    """
    if is_folder(path):
        raise InputError(f"--out {shown(path)} is a folder: give the path of a file")


def evaluation_lines(name: str, record: Mapping[str, Any], found: Mapping[str, "Evaluation"]) -> list[str]:
    """Accuracy and loss of a domain, and of its splits where there are any.

    Args:
        name: Name of the domain.
        record: Record of the model.
        found: From `evaluate`.

    Returns:
        Lines of text.

    Example:
        >>> from disam_jax.dg.saving.predict import Evaluation
        >>> run = {"method": "DISAM", "seed": 3, "target": "sketch"}
        >>> evaluation_lines("photo", {"run": run}, {"all": Evaluation(240, 0.8375, 0.0238, 0.512345, 0.07)})[1]
        '  all, 240 examples: accuracy 83.75 % (2.38), loss 0.5123 nats (0.0700)'
    """
    run = record["run"]
    of = f"{run['method']}, seed {run['seed']}, trained without {run['target']}"
    lines = [f"{shown(name)}, by {shown(of)} (standard errors in brackets)"]
    for part, each in found.items():
        accuracy = f"accuracy {100 * each.accuracy:.2f} % ({100 * each.accuracy_error:.2f})"
        loss = f"loss {each.loss:.4f} nats ({each.loss_error:.4f})"
        lines.append(f"  {part}, {each.examples} examples: {accuracy}, {loss}")
    if len(found) > 1:
        lines.append("the tables of its sweep report the accuracy on the training split")
    return lines


def finite(found: "Evaluation") -> dict[str, float | None]:
    """The numbers of an evaluation as JSON values.

    Example:
        >>> from disam_jax.dg.saving.predict import Evaluation
        >>> finite(Evaluation(1, 1.0, float("nan"), 0.5, float("nan")))["loss_error"] is None
        True
    """
    return {name: value if math.isfinite(value) else None for name, value in found._asdict().items()}
