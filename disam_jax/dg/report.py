"""The table, the sentences under it, and the files."""

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import disam_jax
from disam_jax.dg import figure, summary
from disam_jax.dg.domains import Domains
from disam_jax.dg.errors import InputError
from disam_jax.dg.protocol import Method, Training
from disam_jax.dg.statistics import Estimate

SCHEMA = 1
COLUMNS = ("ERM", "SAM", "DISAM", "DISAM - SAM")
# Fits the 80 columns of a plain terminal and of a log.
WIDTH = 80


def notes(num_domains: int, evaluations: int) -> list[str]:
    """What each row of the table means.

    Args:
        num_domains: D.
        evaluations: number of points of training that are averaged.

    Returns:
        Lines for under the table.
    """
    lines = [
        "mean ± standard error over seeds; DISAM - SAM is paired by seed: the same initial weights "
        "and the same batches.",
        "held-out accuracy: in percent, on all examples of the domain left out of training, after the last step; "
        "nothing is selected by it.",
        "spread: standard deviation of the source domains' losses on all their examples, in nats, "
        f"averaged over {evaluations} points of training.",
        "w + e: the weights with the method's own perturbation; for ERM, with SAM's.",
        "mean and worst domain loss: mean and largest loss of the source domains at w after the last step, in nats.",
    ]
    if num_domains == 2:
        lines.append("With two domains there is one source domain: DISAM is SAM, and no spread.")
    return lines


def title(data: Domains, training: Training, rho: float, lam: float, num_seeds: int) -> str:
    """One line that says what was run."""
    return f"{data.name}, leave one domain out: {num_seeds} seeds, {training.steps} steps, rho {rho:g}, lam {lam:g}"


def machine() -> dict[str, Any]:
    """Processor, number of cores and JAX's device."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    device = jax.devices()[0]
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "device": device.device_kind,
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    found = {"python": platform.python_version(), "disam_jax": disam_jax.__version__}
    for package in ("jax", "jaxlib", "numpy", "optax", "scikit-learn", "scikit-image"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def results(
    data: Domains,
    training: Training,
    methods: Sequence[Method],
    summarised: summary.Summary,
    command: str,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that was run and found, as plain numbers for a file.

    Args:
        data: the data set.
        training: what the methods share.
        methods: in the order of the summary.
        summarised: the scores and their means.
        command: what was typed.
        extra: further settings.

    Returns:
        A dictionary that JSON can hold. NaN is None.
    """
    names = [data.domain_names[target] for target in summarised.targets]
    seeds = len(next(iter(summarised.scores.values())).accuracy)
    settings = {
        field: getattr(training, field)
        for field in training.__dataclass_fields__  # in the order of the definition
    }
    return {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": versions(),
        "machine": machine(),
        "data": {
            "name": data.name,
            "domains": dict(zip(data.domain_names, data.counts.tolist(), strict=True)),
            "classes": list(data.class_names),
            "features": data.inputs.shape[1],
        },
        "settings": {**settings, **extra},
        "units": {
            "accuracy": "percent",
            "spread": "nats",
            "perturbed_spread": "nats",
            "mean_loss": "nats",
            "worst_loss": "nats",
        },
        "seeds": list(range(seeds)),
        "targets": names,
        "methods": {
            method.name: {
                "rho": method.rho if method.perturbed else 0.0,
                "lam": method.lam,
                **{q: _plain(getattr(scores, q)) for q in summary.QUANTITIES},
                "diverged": scores.diverged.tolist(),
                "curves": _curves(summarised, method.name, data.domain_names),
            }
            for method, scores in zip(methods, summarised.scores.values(), strict=True)
        },
        "summary": {
            name: {
                "accuracy_by_target": {
                    target: _estimate(Estimate(mean, error))
                    for target, mean, error in zip(names, *by_target, strict=True)
                },
                **{q: _estimate(each) for q, each in summarised.overall[name].items()},
            }
            for name, by_target in summarised.by_target.items()
        },
        "findings": summary.findings(summarised),
    }


def _curves(summarised: summary.Summary, method: str, domain_names: Sequence[str]) -> dict[str, Any]:
    curve = summarised.curves[method]
    return {
        "steps": summarised.steps.tolist(),
        "loss": {
            name: {"mean": _plain(curve.mean[:, d]), "error": _plain(curve.error[:, d])}
            for d, name in enumerate(domain_names)
        },
    }


def _estimate(each: Estimate) -> dict[str, Any]:
    return {"mean": _plain(each.mean), "error": _plain(each.error)}


def _plain(values: np.ndarray) -> Any:
    """Nested lists of numbers of six digits; None where not finite, which JSON has no word for."""
    if np.ndim(values):
        return [_plain(value) for value in values]
    return float(f"{float(values):.6g}") if math.isfinite(values) else None


def markdown(found: Mapping[str, Any], rows: Sequence[tuple[str, list[str]]], heading: str) -> str:
    """The printed table for a file, with date, versions and machine.

    Args:
        found: as from `results`.
        rows: as from `summary.table_rows`.
        heading: the title.

    Returns:
        Markdown.
    """
    lines = [f"# {heading}", "", f"    {found['command']}", ""]
    lines += ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for label, cells in rows:
        padded = [*cells, *[""] * (len(COLUMNS) - len(cells))]
        indented = label.replace("  ", "&emsp;")
        lines.append(f"| {indented} | " + " | ".join(padded) + " |")
    lines.append("")
    lines += [f"- {line}" for line in found["findings"]]
    lines.append("")
    counts = found["data"]["domains"]
    lines += [f"- {line}" for line in notes(len(counts), found["settings"]["evaluations"])]
    packages = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    device = found["machine"]
    lines += [
        "",
        f"Data: {', '.join(f'{name} {count}' for name, count in counts.items())}; "
        f"{len(found['data']['classes'])} classes, {found['data']['features']} features.",
        "",
        f"{found['date']}, {found['seconds']} s. {packages}. "
        f"{device['cpu']}, {device['cores']} cores, {device['device']}, {device['system']}.",
        "",
    ]
    return "\n".join(lines)


def print_table(rows: Sequence[tuple[str, list[str]]], heading: str, lines: Sequence[str], file: Any = None) -> None:
    """Prints the table and the lines under it, never cutting a number.

    Args:
        rows: as from `summary.table_rows`.
        heading: over the table.
        lines: under the table.
        file: where to; standard output by default.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(file=file, highlight=False, markup=False, emoji=False)
    # A narrower terminal wraps lines by itself; a pipe gets what a plain terminal would.
    console.width = max(console.width, WIDTH) if console.is_terminal else WIDTH
    encoding = console.encoding.lower()

    def writable(text: str) -> str:
        return text if encoding.startswith("utf") else text.replace("±", "+-")

    table = Table(
        title=writable(heading),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 0, 0, 1),
    )
    table.add_column("", overflow="fold")
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for place, (label, cells) in enumerate(rows):
        ends = place + 1 == len(rows) or label.strip() == "mean"
        table.add_row(label, *map(writable, cells), end_section=ends)
    console.print(table)
    for line in ["", *lines]:
        console.print(writable(line) if line else "", soft_wrap=False)


def check_out(out: Path) -> None:
    """Checks that files can be written to a folder, before there is anything to write.

    Args:
        out: the folder, which need not exist.

    Raises:
        InputError: naming the path that stands in the way.
    """
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"--out {out}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: {existing} is not writable")


def write_files(out: Path, contents: Mapping[str, bytes]) -> None:
    """Writes files into a folder, each whole or not at all.

    Args:
        out: the folder, made if it does not exist.
        contents: for each file's name, its bytes.

    Raises:
        InputError: if the system refuses.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Beside their final places, so that moving them there is one step of the file system.
        with tempfile.TemporaryDirectory(dir=out, prefix=".unfinished-") as unfinished:
            for name, content in contents.items():
                Path(unfinished, name).write_bytes(content)
            for name in contents:
                os.replace(Path(unfinished, name), out / name)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from error


def files(
    found: Mapping[str, Any],
    summarised: summary.Summary,
    domain_names: Sequence[str],
    rows: Sequence[tuple[str, list[str]]],
    heading: str,
) -> dict[str, bytes]:
    """All files of a report: `results.json`, `table.md` and the figure twice.

    Args:
        found: as from `results`.
        summarised: the summary.
        domain_names: D names.
        rows: as from `summary.table_rows`.
        heading: the title.

    Returns:
        For each file's name, its bytes.
    """
    curves = {name: summarised.curves[name] for name in ("SAM", "DISAM")}
    drawn = figure.draw_losses(curves, summarised.steps, domain_names, heading)
    return {
        "results.json": (json.dumps(found, indent=1, allow_nan=False) + "\n").encode(),
        "table.md": markdown(found, rows, heading).encode(),
        "domain_losses.png": figure.render(drawn, "png"),
        "domain_losses.pdf": figure.render(drawn, "pdf"),
    }
