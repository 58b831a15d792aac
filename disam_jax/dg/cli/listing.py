"""`disam-jax list`: the entries of all registries."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from disam_jax.dg.cli.progress import say

if TYPE_CHECKING:
    from disam_jax.dg.methods import Method


def describe(method: "Method") -> str:
    """What a method is, and its hyperparameters in brackets, if it has any.

    Example:
        >>> from disam_jax.dg.methods import METHODS
        >>> describe(METHODS["SAM"])
        'sharpness-aware minimisation (rho)'
    """
    return " ".join([method.note, *([f"({', '.join(method.hparams)})"] if method.hparams else [])])


def lists() -> dict[str, dict[str, str]]:
    """What there is: for each title, what each name stands for.

    Example:
        >>> lists()["networks"]["conv"]
        'small convolutional network, for images of 32 to 96 pixels'
    """
    from disam_jax.dg.data.registry import DATASETS
    from disam_jax.dg.methods import METHODS
    from disam_jax.dg.models.registry import MODELS
    from disam_jax.dg.peft.registry import FINETUNING
    from disam_jax.dg.training.metrics import METRICS

    return {
        "methods": {name: describe(method) for name, method in METHODS.items()},
        "networks": {name: model.summary for name, model in MODELS.items()},
        "data sets": {name: data_set.summary for name, data_set in DATASETS.items()},
        "metrics": {name: metric.note for name, metric in METRICS.items()},
        "ways of fine-tuning": {name: way.summary for name, way in FINETUNING.items()},
    }


def say_failures() -> None:
    """Prints a line on standard error for each entry point of another package that cannot be used."""
    from disam_jax.dg.data.registry import DATASETS
    from disam_jax.dg.methods import METHODS
    from disam_jax.dg.models.registry import MODELS
    from disam_jax.dg.peft.registry import FINETUNING
    from disam_jax.dg.training.metrics import METRICS

    registries: tuple[Mapping, ...] = (METHODS, MODELS, FINETUNING, DATASETS, METRICS)
    for registry in registries:
        for line in getattr(registry, "failures", ()):
            say(line)


def run_list() -> None:
    """Prints the entries of all registries."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    for title, entries in lists().items():
        table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
        for name, note in entries.items():
            table.add_row(name, note)
        console.print(table)
        console.print()
