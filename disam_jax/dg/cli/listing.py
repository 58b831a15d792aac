"""`disam-jax list`: the entries of all registries."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from disam_jax.dg.cli.progress import say

if TYPE_CHECKING:
    from disam_jax.dg.methods import Method
    from disam_jax.dg.registry import Registry


def describe(method: "Method") -> str:
    """What a method is, and its hyperparameters in brackets, if it has any.

    Example:
        >>> from disam_jax.dg.methods import METHODS
        >>> describe(METHODS["SAM"])
        'sharpness-aware minimisation (rho)'
    """
    return " ".join([method.note, *([f"({', '.join(method.hparams)})"] if method.hparams else [])])


def registries() -> "dict[str, tuple[Registry[Any], Callable[[Any], str]]]":
    """Every registry by its title, and what is said of an entry.

    Example:
        >>> list(registries())[-3:]
        ['metrics', 'metrics of kept logits', 'ways of fine-tuning']
    """
    from disam_jax.dg.data.registry import DATASETS
    from disam_jax.dg.data.sources.registry import SOURCES
    from disam_jax.dg.methods import METHODS
    from disam_jax.dg.metrics.registry import LOGIT_METRICS
    from disam_jax.dg.models.registry import MODELS
    from disam_jax.dg.peft.registry import FINETUNING
    from disam_jax.dg.training.metrics import METRICS

    return {
        "methods": (METHODS, describe),
        "networks": (MODELS, lambda model: model.summary),
        "data sets": (DATASETS, lambda data_set: data_set.summary),
        "data sets to fetch": (SOURCES, lambda source: source.summary),
        "metrics": (METRICS, lambda metric: metric.note),
        "metrics of kept logits": (LOGIT_METRICS, lambda metric: metric.note),
        "ways of fine-tuning": (FINETUNING, lambda way: way.summary),
    }


def lists() -> dict[str, dict[str, str]]:
    """What there is: for each title, what each name stands for.

    Example:
        >>> lists()["networks"]["conv"]
        'small convolutional network, for images of 32 to 96 pixels'
    """
    return {
        title: {name: said(entry) for name, entry in registry.items()}
        for title, (registry, said) in registries().items()
    }


def say_failures() -> None:
    """Prints a line on standard error for each entry point of another package that cannot be used."""
    for registry, _ in registries().values():
        for line in registry.failures:
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
