"""The command line: `disam-jax compare`, `sweep`, `report` and `list`."""

import datetime
import importlib.util
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disam_jax.dg.errors import InputError

if TYPE_CHECKING:
    from disam_jax.dg.methods import Method
    from disam_jax.dg.options import Compare, Report
    from disam_jax.dg.results import Results
    from disam_jax.dg.setting import Setting

# Of a report with too many methods for one table.
PRINTED = ("accuracy", "comparisons", "losses", "selection", "flops")
PACKAGES = ("rich", "matplotlib", "scipy", "sklearn", "skimage", "PIL", "flax", "grain")


def check(options: "Compare") -> None:
    """Checks what can be checked without looking at the data.

    Args:
        options: from the command line.

    Raises:
        InputError: naming the option.
    """
    from disam_jax.dg.report.write import check_out

    if options.seeds < 2:
        raise InputError(f"--seeds must be at least 2, got {options.seeds}: one seed has no standard error")
    if options.rho is not None and not (math.isfinite(options.rho) and options.rho >= 0):
        raise InputError(f"--rho must be finite and not negative, got {options.rho}")
    if options.candidates < 1:
        raise InputError(f"--candidates must be at least 1, got {options.candidates}")
    if options.grid and options.candidates > 1:
        raise InputError("--grid and --candidates exclude each other: a grid is no random search")
    if options.runs_at_once is not None and options.runs_at_once < 1:
        raise InputError(f"--runs-at-once must be at least 1, got {options.runs_at_once}")
    if options.memory is not None and not options.memory > 0:
        raise InputError(f"--memory must be positive, got {options.memory}")
    if takes_features(options):
        from disam_jax.dg.data.features import check_image_size

        check_image_size(options.image_size)
    elif options.image_size < 1:
        raise InputError(f"--image-size must be at least 1, got {options.image_size}")
    check_out(options.out)
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise InputError(_missing(package))


def _missing(package: str) -> str:
    return f'the package {package} is missing: pip install "disam-jax[dg]"'


def takes_features(options: "Compare") -> bool:
    """Whether images are turned into features for the network."""
    return options.model in ("mlp", "linear")


def parse_grid(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Values by name, from NAME=V,V,... each.

    Raises:
        InputError: on anything else.

    Example:
        >>> parse_grid(["rho=0.05,0.1", "lam=1"])
        {'rho': (0.05, 0.1), 'lam': (1.0,)}
    """
    grid = {}
    for text in texts:
        name, equals, values = text.partition("=")
        try:
            grid[name.replace("-", "_")] = tuple(float(value) for value in values.split(","))
        except ValueError as error:
            raise InputError(f"--grid {text} must be NAME=V,V,... with numbers, as in rho=0.05,0.1") from error
        if not equals:
            raise InputError(f"--grid {text} must be NAME=V,V,... with numbers, as in rho=0.05,0.1")
    return grid


def chosen_methods(options: "Compare") -> dict[str, "Method"]:
    """The methods that the options name; with --penalty std, DISAM is the one with that penalty."""
    from disam_jax.dg.methods import METHODS, find_methods

    names = [name for each in options.method for name in each.split(",") if name]
    found = find_methods(names)
    if options.penalty != "variance":
        control = "-control"
        others = {
            name: name.removesuffix(control) + f"-{options.penalty}" + control * name.endswith(control)
            for name in found
        }
        found = {other if other in METHODS else name: METHODS.get(other, found[name]) for name, other in others.items()}
    if not found:
        raise InputError("--method names no method")
    return found


def make_setting(options: "Compare", kind: str) -> "Setting":
    """What all runs share, by the kind of data where the options do not say.

    Args:
        options: from the command line.
        kind: "digits", "features" or "pixels".

    Returns:
        Setting.
    """
    from disam_jax.dg.setting import DEFAULTS

    setting = DEFAULTS[kind]
    if options.model.startswith("resnet"):
        setting = replace(setting, optimizer="adam", learning_rate=5e-5)
    if options.optimizer is not None and options.optimizer != setting.optimizer:
        rate = 1e-3 if options.optimizer == "adam" else DEFAULTS[kind].learning_rate
        setting = replace(setting, optimizer=options.optimizer, learning_rate=rate)
    given = {
        name: value
        for name in ("rho", "steps", "learning_rate", "norm")
        if (value := getattr(options, name)) is not None
    }
    same = ("model", "lam", "weight_decay", "per_domain", "averaging", "augment", "dropout", "frozen_norm")
    given |= {name: getattr(options, name) for name in same}
    return replace(setting, **given, evaluations=min(options.evaluations, given.get("steps", setting.steps)))


def network_size(setting: "Setting", shape: Sequence[int]) -> dict[str, Any]:
    """Options of the network that follow from the setting and the inputs.

    Example:
        >>> from disam_jax.dg.setting import Setting
        >>> network_size(Setting(model="resnet18"), (64, 64, 3))
        {'small_input': True}
    """
    if setting.model == "mlp":
        return {"hidden": (setting.hidden,)}
    if setting.model == "conv":
        return {"norm": setting.norm}
    # A stem for 224 pixels leaves 2 x 2 of 64.
    return {"small_input": shape[0] <= 64} if setting.model.startswith("resnet") else {}


def run_compare(options: "Compare", command: str, resume_only: bool) -> None:
    """Runs the comparison, prints the table and writes the files.

    Args:
        options: from the command line.
        command: what was typed, for the record.
        resume_only: whether results of something else in the folder are an error instead of being replaced.

    Raises:
        InputError: if the options or the data cannot be used; nothing has been written then.
    """
    check(options)
    began = time.perf_counter()
    methods = chosen_methods(options)
    grid = parse_grid(options.grid)

    from disam_jax.dg import search, sweep
    from disam_jax.dg.data.open import StreamedImages, open_data
    from disam_jax.dg.models.registry import make_network
    from disam_jax.dg.progress import progress_bar
    from disam_jax.dg.setting import check_setting, kind_of
    from disam_jax.dg.streamed import pixel_budget

    memory_budget = None if options.memory is None else int(options.memory * 2**30)
    with progress_bar() as show:
        data = open_data(
            options.data,
            data_dir=options.data_dir,
            image_size=options.image_size,
            features=takes_features(options),
            split_files=options.split_files,
            duplicates=options.duplicates,
            allow_missing_classes=options.allow_missing_classes,
            stream=options.stream,
            most_bytes=pixel_budget(memory_budget),
            on_progress=lambda done, total: show("reading images", done, total),
        )
        if isinstance(data, StreamedImages):
            print(f"reading the images of {data.name} from disk as they are needed", file=sys.stderr)
        setting = make_setting(options, kind_of(data))
        check_setting(setting)
        search.check_grid(grid, methods)
        targets = sweep.check_targets(options.target, data.domain_names, data.name)
        size = network_size(setting, data.inputs.shape[1:])
        network = make_network(
            setting.model,
            data.inputs.shape[1:],
            len(data.class_names),
            dropout=setting.dropout,
            frozen_norm=setting.frozen_norm,
            **size,
        )
        candidates = {
            name: search.grid_candidates(method, setting, grid)
            if grid
            else search.random_candidates(method, setting, options.candidates, seed=0)
            for name, method in methods.items()
        }
        results, cost = sweep.run_sweep(
            data,
            network,
            setting,
            methods,
            sweep.Plan(candidates, targets, tuple(range(options.seeds))),
            options.out,
            command=command,
            replace=not resume_only,
            most_at_once=options.runs_at_once,
            memory_budget=memory_budget,
            on_progress=show,
        )
    report(results, options.select, options.out, cost, command, time.perf_counter() - began)


def report(
    results: "Results",
    criterion: str,
    out: Path,
    cost: Mapping[str, Mapping[str, Any]] | None,
    command: str,
    seconds: float | None,
) -> None:
    """Prints the table and writes all files of the report.

    Args:
        results: of the runs.
        criterion: by which runs and points are chosen.
        out: the folder.
        cost: of each method, if runs were trained just now.
        command: what was typed.
        seconds: that it took, if runs were trained just now.
    """
    from disam_jax.dg.report import formats, write
    from disam_jax.dg.report.summary import findings, summarise
    from disam_jax.dg.selection import CRITERIA

    contents = write.report_files(results, criterion, cost)
    if seconds is not None:
        record = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": command,
            "seconds": round(seconds, 1),
            "machine": write.machine(),
            "versions": write.versions(),
            "cost": cost,
        }
        contents["record.json"] = (json.dumps(record, indent=1) + "\n").encode()
    write.write_files(out, contents)
    summaries = {each: summarise(results, each) for each in CRITERIA}
    made = write.report_tables(results, summaries, criterion)
    for name in ("compare",) if "compare" in made else PRINTED:
        if name in made:
            formats.print_table(made[name])
            print()
    found = findings(summaries[criterion])
    formats.print_lines([*found, *results.header["notes"], "", f"written to {out}: {', '.join(sorted(contents))}"])


def run_report(options: "Report", command: str) -> None:
    """Makes the report of a folder's results again."""
    from disam_jax.dg.store import complete_part, load_results

    results = complete_part(load_results(options.out))
    report(results, options.select, options.out, None, command, None)


def describe(method: "Method") -> list[str]:
    """The names of a method's hyperparameters in brackets, if it has any."""
    return [f"({', '.join(method.hyper)})"] if method.hyper else []


def run_list() -> None:
    """Prints the methods, networks and data sets."""
    from rich.console import Console
    from rich.table import Table

    from disam_jax.dg.data.open import names
    from disam_jax.dg.methods import METHODS
    from disam_jax.dg.models.registry import MODELS

    console = Console(highlight=False, markup=False)
    lists = {
        "methods": {name: " ".join([method.note, *describe(method)]) for name, method in METHODS.items()},
        "networks": {name: entry.summary for name, entry in MODELS.items()},
        "data sets": dict.fromkeys(names(), ""),
    }
    for title, entries in lists.items():
        table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
        for name, note in entries.items():
            table.add_row(name, note)
        console.print(table)
        console.print()


def use_all_cores() -> None:
    """Lets jax see a device for each core of a CPU, over which runs are dealt, unless the user has XLA_FLAGS.

    As one device, a CPU trains small networks on little more than one core.
    """
    if "XLA_FLAGS" not in os.environ:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={os.cpu_count()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `disam-jax`.

    Args:
        arguments: those of the command line by default.

    Returns:
        Exit status: 0, 2 after an error that the user can mend, 130 after an interruption.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    use_all_cores()
    try:
        return run(arguments)
    except InputError as error:
        message = " ".join(str(error).split())
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in (*PACKAGES, "tyro"):
            raise
        message = _missing(error.name)
    except KeyboardInterrupt:
        print("disam-jax: interrupted", file=sys.stderr)
        return 130
    print(f"disam-jax: error: {message}", file=sys.stderr)
    return 2


def run(arguments: Sequence[str]) -> int:
    """Parses the arguments and does what they ask."""
    import tyro

    from disam_jax.dg.options import Compare, List, Report, Sweep

    options = tyro.extras.subcommand_cli_from_dict(
        {"compare": Compare, "sweep": Sweep, "report": Report, "list": List},
        prog="disam-jax",
        description="Domain-inspired sharpness-aware minimisation (DISAM), measured.",
        args=arguments,
        # Not giving an option is how to ask for its default; "None" is a path like any other.
        config=(tyro.conf.DisallowNone,),
    )
    command = shlex.join(["disam-jax", *arguments])
    match options:
        case List():
            run_list()
        case Report():
            run_report(options, command)
        case _:
            run_compare(options, command, resume_only=isinstance(options, Sweep))
    return 0


if __name__ == "__main__":
    sys.exit(main())
