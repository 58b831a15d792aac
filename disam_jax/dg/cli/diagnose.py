"""`disam-jax diagnose`: trials of each held-out domain, their signals, and what these foretell."""

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disam_jax.dg.cli.checks import check_training
from disam_jax.dg.cli.compare import put_together, with_own_checkpoint
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import exists, read_json, shown

if TYPE_CHECKING:
    from disam_jax.dg.cli.options import Diagnose
    from disam_jax.dg.data.domains import Domains
    from disam_jax.dg.diagnosis.trial import Diagnosis
    from disam_jax.dg.report.tables import Table
    from disam_jax.dg.training.config import TrainConfig

SIGNALS_FILE = "signals.csv"
RECORD_FILE = "diagnosis.json"
WRITER = "disam-jax diagnose"


def run_diagnose(options: "Diagnose", command: str) -> None:
    """Measures the signals, prints them, and writes the files.

    Args:
        options: Options of the command line.
        command: What was typed, for the record.

    Raises:
        InputError: If the options or the data cannot be used; nothing has been written then.
    """
    options = with_own_checkpoint(options)
    check_training(options)
    if options.out is not None:
        check_folder(options.out)

    from disam_jax.dg.cli.progress import progress
    from disam_jax.dg.diagnosis.trial import diagnose, find_arm, trial_steps
    from disam_jax.dg.report import formats
    from disam_jax.dg.sweep.results_folder import write_files

    arm = find_arm(options.method)
    with progress() as (show, say):
        runs, config, targets = put_together(options, {}, options.out, show)
        steps, trials = trial_steps(config), len(targets) * options.seeds
        say(
            f"{runs.data.name}: {trials} trials of {steps} plain steps, {trials * steps} steps in all; held out: "
            f"{', '.join(runs.data.domain_names[target] for target in targets)}; {options.seeds} seeds"
        )
        found = diagnose(runs.data, runs.network, config, arm, targets, range(options.seeds), show)
    if options.out is not None:
        contents = {
            SIGNALS_FILE: signals_csv(found, runs.data.name, config, arm).encode(),
            RECORD_FILE: record(found, runs.data, config, arm, command),
        }
        write_files(options.out, contents)
    formats.print_table(signals_table(found, runs.data.name))
    if options.out is not None:
        formats.print_lines(["", f"written to {shown(options.out)}: {RECORD_FILE}, {SIGNALS_FILE}"])


def check_folder(out: Path) -> None:
    """Checks that the files can be written to a folder, and that none of them belongs to the user.

    Raises:
        InputError: If a path stands in the way, or a file that is not ours has the name of one that we write.
    """
    from disam_jax.dg.sweep.results_folder import check_out

    check_out(out)
    record, signals = out / RECORD_FILE, out / SIGNALS_FILE
    if exists(record):
        if read_json(record).get("writer") != WRITER:
            raise InputError(f"{shown(record)} is not from {WRITER}: give another --out, or move it")
    elif exists(signals):
        raise InputError(f"{shown(signals)} is not from {WRITER}: give another --out, or move it")


def regime(config: "TrainConfig") -> str:
    """What is trained, in a few words.

    Example:
        >>> from disam_jax.dg.training.config import FineTuneConfig, TrainConfig
        >>> regime(TrainConfig(model="mlp"))
        'mlp'
        >>> regime(TrainConfig(model="vit", finetune=FineTuneConfig("full", train_from="head")))
        'vit full from head'
    """
    if config.finetune is None:
        return config.model
    stage = config.finetune.train_from
    return " ".join([config.model, config.finetune.peft, *(["from", stage] if stage else [])])


def signals_csv(found: "Diagnosis", data: str, config: "TrainConfig", arm: str) -> str:
    """The means of the signals over the seeds, a line for each target; with gains, the table of `diagnosis.forecast`.

    Args:
        found: Signals.
        data: Name of the data set.
        config: How it is trained.
        arm: Method whose gain over SAM is in question.

    Returns:
        CSV with a header line.
    """
    from disam_jax.dg.report.formats import csv_number, write_csv

    estimates = found.estimates()
    lines = [["data", "regime", "target", "method", *estimates]]
    for place, target in enumerate(found.targets):
        means = [csv_number(float(each.mean[place])) for each in estimates.values()]
        lines.append([data, regime(config), target, arm, *means])
    return write_csv(lines)


def record(found: "Diagnosis", data: "Domains", config: "TrainConfig", arm: str, command: str) -> bytes:
    """What was measured and how, as a JSON file."""
    from disam_jax.dg.data.load import fingerprint
    from disam_jax.dg.report import environment
    from disam_jax.dg.report.formats import plain
    from disam_jax.dg.report.numbers import json_bytes

    signals: dict[str, Any] = {
        name: {"mean": plain(each.mean), "error": plain(each.error), "by_seed": plain(found.signals[name])}
        for name, each in found.estimates().items()
    }
    return json_bytes(
        {
            "writer": WRITER,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": command,
            "machine": environment.machine(),
            "versions": environment.versions(),
            "data": {
                "name": data.name,
                "domains": dict(zip(data.domain_names, data.counts.tolist(), strict=True)),
                "classes": list(data.class_names),
                "shape": list(data.inputs.shape[1:]),
                "fingerprint": fingerprint(data),
            },
            "regime": regime(config),
            "setting": config.record(),
            "method": arm,
            "targets": list(found.targets),
            "seeds": list(found.seeds),
            "steps": found.steps,
            "signals": signals,
        }
    )


def signals_table(found: "Diagnosis", data: str) -> "Table":
    """The signals of each target, mean ± standard error over the seeds."""
    from disam_jax.dg.report.tables import Cell, Table, estimate_cell

    estimates = found.estimates()
    rows = tuple(
        (
            Cell(target),
            *(estimate_cell(float(each.mean[place]), float(each.error[place]), ".3f") for each in estimates.values()),
        )
        for place, target in enumerate(found.targets)
    )
    return Table(
        f"{data}: signals of the source domains after {found.steps} plain steps",
        ("held out", *(name.replace("_", " ") for name in estimates)),
        rows,
        (f"Mean ± standard error over {len(found.seeds)} seeds. Nothing of the held-out domain enters.",),
    )
