"""`disam-jax diagnose`: trials of each held-out domain, their signals, and what these predict."""

import datetime
import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disam_jax.dg.cli.checks import check_training, flag
from disam_jax.dg.cli.compare import put_together, with_own_checkpoint
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import exists, read_json, shown

if TYPE_CHECKING:
    import numpy as np

    from disam_jax.dg.cli.options import Diagnose
    from disam_jax.dg.data.domains import Domains
    from disam_jax.dg.diagnosis.forecast import Forecast
    from disam_jax.dg.diagnosis.trial import Diagnosis
    from disam_jax.dg.report.tables import Table
    from disam_jax.dg.training.config import TrainConfig

SIGNALS_FILE = "signals.csv"
RECORD_FILE = "diagnosis.json"
WRITER = "disam-jax diagnose"


def run_diagnose(options: "Diagnose", command: str) -> None:
    """Measures the signals, prints them and what they predict, and writes the files.

    Args:
        options: Options of the command line.
        command: What was typed, for the record.

    Raises:
        InputError: If the options or the data cannot be used; nothing has been written then.
    """
    given, options = options, with_own_checkpoint(options)
    check_training(options)
    if options.out is not None:
        check_folder(options.out)

    from disam_jax.dg.cli.compiled import keep_programs
    from disam_jax.dg.cli.progress import progress, say
    from disam_jax.dg.data.splits import small_domains, split
    from disam_jax.dg.diagnosis.forecast import own_forecasts
    from disam_jax.dg.diagnosis.trial import diagnose, find_arm
    from disam_jax.dg.report import formats
    from disam_jax.dg.sweep.results_folder import write_files

    arm = find_arm(options.method)
    forecast = own_forecasts().get(arm)
    keep_programs(options.compilation_cache, say)
    with progress() as told:
        runs, config, targets = put_together(options, {}, options.out, told.show)
        found = diagnose(runs.data, runs.network, config, arm, targets, range(options.seeds), told.show, told.say)
    if options.out is not None:
        contents = {
            SIGNALS_FILE: signals_csv(found, runs.data.name, config, arm).encode(),
            RECORD_FILE: record(found, runs.data, config, arm, forecast, command),
        }
        write_files(options.out, contents)
    formats.print_table(signals_table(found, runs.data.name, arm, forecast))
    notes = [*runs.data.notes, *small_domains(runs.data, split(runs.data, 0, config.holdout), config.per_domain)]
    said = meaning(found, arm, regime(config), forecast)
    formats.print_lines([*notes, "", *said, "", "Next, measure it:", ""])
    # Not wrapped, so that it can be copied.
    formats.print_lines([f"  {next_command(given, arm)}"], wrap=False)
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


def record(
    found: "Diagnosis", data: "Domains", config: "TrainConfig", arm: str, forecast: "Forecast | None", command: str
) -> bytes:
    """What was measured and how, and what it predicts, as a JSON file."""
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
            "forecast": None if forecast is None else forecast_record(found, forecast),
        }
    )


def forecast_record(found: "Diagnosis", forecast: "Forecast") -> dict[str, Any]:
    """The predicted gains, in points, and the model that predicts them, as JSON values."""
    from disam_jax.dg.report.formats import plain

    predicted = forecast.predict(means_of(found))
    gains = {name: plain(getattr(predicted, name)) for name in predicted._fields}
    return {**gains, "foretells": forecast.foretells, "model": forecast.record()}


def means_of(found: "Diagnosis") -> "dict[str, np.ndarray]":
    """Means of the signals over the seeds, float64 [T] by name."""
    return {name: each.mean for name, each in found.estimates().items()}


def signals_table(found: "Diagnosis", data: str, arm: str, forecast: "Forecast | None") -> "Table":
    """The signals of each target, mean ± standard error over the seeds, and the gain that they predict."""
    from disam_jax.dg.diagnosis.reliability import COVERAGE
    from disam_jax.dg.report.tables import Cell, Table, estimate_cell

    estimates = found.estimates()
    columns = {
        name.replace("_", " "): [
            estimate_cell(float(mean), float(error), ".3f") for mean, error in zip(each.mean, each.error, strict=True)
        ]
        for name, each in estimates.items()
    }
    notes = [f"Mean ± standard error over {len(found.seeds)} seeds. Nothing of the held-out domain enters."]
    if forecast is not None:
        predicted = zip(*forecast.predict(means_of(found)), strict=True)
        columns[f"{arm} - SAM"] = [Cell(f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]") for gain, low, high in predicted]
        notes.append(
            f"{arm} - SAM: forecast of the gain in points of held-out accuracy, and an interval for "
            f"{100 * COVERAGE:.0f} % of the gains."
        )
    return Table(
        f"{data}: signals of the source domains after {found.steps} plain steps",
        ("held out", *columns),
        tuple((Cell(target), *cells) for target, *cells in zip(found.targets, *columns.values(), strict=True)),
        tuple(notes),
    )


def meaning(found: "Diagnosis", arm: str, what: str, forecast: "Forecast | None") -> list[str]:
    """What the table says, and how far it can be relied on, in sentences.

    Args:
        found: Signals.
        arm: Method whose gain over SAM is in question.
        what: What is trained, from `regime`.
        forecast: Fitted model, if there is one.

    Returns:
        Lines of text.
    """
    if forecast is None:
        return [f"There is no forecast yet: this version has no fitted model of the gain of {arm} over SAM."]
    lines = forecast.sentences(arm)
    known = forecast.provenance.get("regimes", [])
    if forecast.foretells:
        _, low, high = forecast.predict(means_of(found))
        lines.insert(0, decided(arm, int((low > 0).sum()), int((high < 0).sum()), len(low)))
        if beyond := forecast.beyond(means_of(found)):
            names = ", ".join(name.replace("_", " ") for name in beyond)
            lines.append(
                f"Outside the range of the data that the model was fitted on, and set to its nearest value: {names}."
            )
    if known and what not in known:
        lines.append(f"The model was not fitted on this training ({what}), but on: {', '.join(known)}.")
    return lines


def decided(arm: str, gains: int, losses: int, targets: int) -> str:
    """For how many of the targets the forecast says something.

    Example:
        >>> decided("DISAM", gains=1, losses=0, targets=4)
        'Of 4 held-out domains, DISAM should gain over SAM on 1 and lose on 0; on 3 the interval contains both.'
    """
    return (
        f"Of {targets} held-out domains, {arm} should gain over SAM on {gains} and lose on {losses}; on "
        f"{targets - gains - losses} the interval contains both."
    )


def next_command(options: "Diagnose", arm: str) -> str:
    """The command that measures the gain: `compare` with the same data and training.

    Example:
        >>> from disam_jax.dg.cli.options import Diagnose
        >>> next_command(Diagnose(data="my images", target=("art", "photo"), augment=True), "DISAM-std")
        "disam-jax compare --data 'my images' --target art photo --augment --method sam disam-std"
    """
    from disam_jax.dg.cli.options import TrainingOptions

    words = ["disam-jax", "compare"]
    for each in fields(TrainingOptions):
        value = getattr(options, each.name)
        if value == each.default:
            continue
        if isinstance(value, bool):
            words.append(flag(each.name) if value else flag(f"no_{each.name}"))
        else:
            words += [flag(each.name), *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join([*words, "--method", "sam", arm.lower()])
