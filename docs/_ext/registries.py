"""Tables of what is registered, made while the site is built.

A page takes in a table by a comment of its own line: `<!-- registry: methods -->`.
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

SAM_FAMILY_COST = pathlib.Path(__file__).parents[2] / "benchmarks" / "results" / "sam_family_cost.json"
PLACE = re.compile(r"^<!-- registry: (.+?) -->$", re.MULTILINE)


def table(header: str, notes: Mapping[str, str]) -> str:
    """Names and what they stand for, in Markdown."""
    rows = [f"| `{name}` | {note.replace('|', '/')} |" for name, note in notes.items()]
    return "\n".join([f"| {header} | what it is |", "|---|---|", *rows])


def methods() -> str:
    """Name, description and hyperparameters of each method."""
    from disam_jax.dg.methods import METHODS

    rows = [
        f"| `{name}` | {method.note} | {', '.join(f'`{each}`' for each in method.hparams)} |"
        for name, method in METHODS.items()
    ]
    return "\n".join(["| `--method` | what it is | hyperparameters |", "|---|---|---|", *rows])


def formulas() -> str:
    """Formula, source, hyperparameters, cost and needs of each method; what the registry derives stands in its row."""
    from disam_jax.dg.methods import METHODS, Method

    def hyperparameters(method: Method) -> str:
        each = (f"`{name}` {given.default:g}, {given.range_text}" for name, given in method.hparams.items())
        return "; ".join(each) or "none"

    forms = {name: [f"{name}+{form}" for form in method.sharpness] for name, method in METHODS.items()}
    derived = {form for made in forms.values() for form in made}
    rows = [
        f"| `{name}` | `{method.formula}` | {method.source} | {hyperparameters(method)} | {method.cost:.3g} | "
        f"{', '.join(method.needs) or 'nothing'} | {', '.join(f'`{form}`' for form in forms[name])} |"
        for name, method in METHODS.items()
        if name not in derived
    ]
    header = "| method | minimised, or the gradient | source | hyperparameters: default, range | cost | needs | forms |"
    return "\n".join([header, "|---|---|---|---|---:|---|---|", *rows])


def networks() -> str:
    """Name and description of each network."""
    from disam_jax.dg.models.registry import MODELS

    return table("`--model`", {name: model.summary for name, model in MODELS.items()})


def data_sets() -> str:
    """Name and description of each data set."""
    from disam_jax.dg.data.registry import DATASETS, option_name

    return table("`--data`", {option_name(name): data_set.summary for name, data_set in DATASETS.items()})


def sources() -> str:
    """Name and description of each data set that can be fetched."""
    from disam_jax.dg.data.sources.registry import SOURCES

    rows = [
        f"| `{name}` | {source.summary} | {source.megabytes} MB | [{source.url.rpartition('/')[2]}]({source.url}) |"
        for name, source in SOURCES.items()
    ]
    return "\n".join(["| `disam-jax data` | what it is | to fetch | repository |", "|---|---|---:|---|", *rows])


def finetuning() -> str:
    """Name and description of each way of fine-tuning."""
    from disam_jax.dg.peft.registry import FINETUNING

    return table("`--peft`", {name: way.summary for name, way in FINETUNING.items()})


def metrics() -> str:
    """Name and description of each metric."""
    from disam_jax.dg.training.metrics import METRICS

    return table("metric", {name: metric.note for name, metric in METRICS.items()})


def logit_metrics() -> str:
    """Name, description, formula and needs of each metric of kept logits."""
    from disam_jax.dg.metrics.registry import LOGIT_METRICS

    rows = [
        f"| `{name}` | {metric.note} | {metric.formula} | {metric.needs or 'any classes'} |"
        for name, metric in LOGIT_METRICS.items()
    ]
    return "\n".join(["| `--metrics` | what it is | formula | needs |", "|---|---|---|---|", *rows])


def sam_family_cost() -> str:
    """Cost of a step of each relative of SAM, as it is stored: the dear kind of step, and the cheap one."""
    stored = json.loads(SAM_FAMILY_COST.read_text())["steps of ERM"]
    cell = lambda kinds: " or ".join(f"{each:.2f}" for each in kinds)
    names = [name for name in next(iter(stored.values())) if name != "forward pass"]
    rows = [f"| `{name}` | {' | '.join(cell(of[name]) for of in stored.values())} |" for name in names]
    return "\n".join([f"| `--method` | {' | '.join(stored)} |", f"|---|{'---:|' * len(stored)}", *rows])


TABLES: dict[str, Callable[[], str]] = {
    "methods": methods,
    "formulas of methods": formulas,
    "metrics": metrics,
    "metrics of kept logits": logit_metrics,
    "networks": networks,
    "data sets": data_sets,
    "data sets to fetch": sources,
    "ways of fine-tuning": finetuning,
    "cost of SAM's relatives": sam_family_cost,
}


def filled(text: str) -> str:
    """The text with the tables for which it asks.

    Raises:
        ExtensionError: If there is no such table.
    """

    def made(match: re.Match) -> str:
        if match[1] not in TABLES:
            raise ExtensionError(f"no registry is called {match[1]}: the registries are {', '.join(TABLES)}")
        return TABLES[match[1]]()

    return PLACE.sub(made, text)


def fill(app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts the tables into a page."""
    if pathlib.Path(app.env.doc2path(docname)).suffix == ".md":
        source[0] = filled(source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects to the build."""
    app.connect("source-read", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
