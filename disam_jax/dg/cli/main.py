"""The command line: arguments are parsed, a command is run, errors become exit codes."""

import itertools
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import disam_jax
from disam_jax.dg.cli.checks import PACKAGES, missing
from disam_jax.dg.cli.help import asked_for, help_text
from disam_jax.dg.cli.output import ClosedError, standard_output
from disam_jax.dg.cli.progress import say
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import shown

if TYPE_CHECKING:
    from disam_jax.dg.cli.options import Compare, Data, Diagnose, Evaluate, List, Merge, Predict, Report, Status


def use_all_cores() -> None:
    """Lets jax see a device for each core of a CPU, over which runs are dealt, unless the user has XLA_FLAGS.

    As one device, a CPU trains small networks on little more than one core.
    """
    if "XLA_FLAGS" not in os.environ:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={os.cpu_count()}"


def silence_alarms() -> None:
    """Keeps XLA's alarms about slow compilation from the user, here and in processes that this one starts.

    What stops a program is raised as an exception all the same, and what jax itself says is said. Where the user has
    TF_CPP_MIN_LOG_LEVEL or JAX_LOGGING_LEVEL, nothing changes.
    """
    import jax

    # jax sets it to 1 where it is not set.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "1" or "JAX_LOGGING_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    # XLA reads that variable once, when jax is imported, and this package imports it.
    jax.config.update("jax_logging_level", "CRITICAL")
    for name in ("jax", "jaxlib"):
        logging.getLogger(name).setLevel(logging.WARNING)


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
    silence_alarms()
    try:
        with standard_output():
            return run(arguments)
    except ClosedError:
        # As of a program that the signal SIGPIPE ends.
        return 141
    except InputError as error:
        # One line; spaces in names stay.
        message = re.sub(r"\s*\n\s*", " ", str(error).strip())
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in (*PACKAGES, "tyro"):
            raise
        message = missing(error.name)
    except KeyboardInterrupt:
        say(f"interrupted{saved(arguments)}")
        return 130
    say(f"error: {message}")
    return 2


def saved(arguments: Sequence[str]) -> str:
    """How many runs a command that was interrupted has saved, and how to go on; nothing for one that saves no runs."""
    from disam_jax.dg.cli.options import Compare
    from disam_jax.dg.sweep.results_file import planned, read_written

    options = parse(arguments)
    if not isinstance(options, Compare) or options.dry_run:
        return ""
    try:
        written = read_written(options.out)
        runs = f"{len(written.records)} of {len(planned(written.header))} runs are saved in {options.out}"
    except InputError:
        runs = "no run is saved yet"
    return f"; {runs}; go on with: {shlex.join(['disam-jax', *arguments])}"


def commands() -> dict[str, Any]:
    """The options of each command, by its name."""
    from disam_jax.dg.cli.options import Compare, Data, Diagnose, Evaluate, List, Merge, Predict, Report, Status, Sweep

    return {
        "compare": Compare,
        "sweep": Sweep,
        "diagnose": Diagnose,
        "predict": Predict,
        "evaluate": Evaluate,
        "report": Report,
        "status": Status,
        "merge": Merge,
        "data": Data,
        "list": List,
    }


def parse(
    arguments: Sequence[str],
) -> "Compare | Diagnose | Predict | Evaluate | Report | Status | Merge | Data | List":
    """The options that the arguments give.

    Raises:
        SystemExit: if they cannot be parsed, with status 2, or ask for help, with status 0.
    """
    import tyro

    return tyro.extras.subcommand_cli_from_dict(
        commands(),
        prog="disam-jax",
        description="Domain-inspired sharpness-aware minimisation (DISAM), measured. --version prints the version.",
        args=arguments,
        # Not giving an option is how to ask for its default; "None" is a path like any other.
        config=(tyro.conf.DisallowNone,),
    )


def check_known(arguments: Sequence[str]) -> None:
    """Checks that the command, and what has to be one of a few names, is not nearly one of those that there are.

    Raises:
        InputError: If it is. What is near to nothing is left to the parser, which says what there is.
    """
    from disam_jax.dg.data.names import hint
    from disam_jax.dg.methods.registry import SIMILAR
    from disam_jax.dg.models.registry import MODELS
    from disam_jax.dg.peft.registry import FINETUNING
    from disam_jax.dg.sweep.model_selection import CRITERIA
    from disam_jax.dg.training.averaging import AVERAGING
    from disam_jax.dg.training.config import OPTIMIZERS

    known = {"--model": MODELS, "--peft": FINETUNING, "--select": CRITERIA}
    known |= {"--averaging": AVERAGING, "--optimizer": OPTIMIZERS}
    words = [word for each in arguments for word in each.split("=", 1)]
    asked = [("command", name, [*commands()]) for name in arguments[:1]]
    asked += [(option, name, known[option]) for option, name in itertools.pairwise(words) if option in known]
    for what, name, names in asked:
        meant = hint(name, names, SIMILAR)
        if meant and name not in names:
            raise InputError(f"unknown {what} {shown(name)}: write one of {', '.join(names)}{meant}")


def run(arguments: Sequence[str]) -> int:
    """Parses the arguments and does what they ask."""
    for argument in arguments:
        check_argument(argument)
    if arguments[:1] == ["--version"]:
        print(f"disam-jax {disam_jax.__version__}")
        return 0
    check_known(arguments)
    if (command := asked_for(arguments)) is not None:
        text = help_text(command, commands()[command], shutil.get_terminal_size().columns - 2)
        if text is not None:
            print(text, end="")
            return 0
    from disam_jax.dg.cli.listing import run_list, say_failures

    try:
        options = parse(arguments)
    except SystemExit as end:
        if end.code:
            say_failures()
        raise
    from disam_jax.dg.cli.options import Data, Diagnose, Evaluate, List, Merge, Predict, Report, Status

    command = shlex.join(["disam-jax", *arguments])
    match options:
        case List():
            run_list()
            say_failures()
        case Report():
            from disam_jax.dg.cli.report import run_report

            run_report(options, command)
        case Predict():
            from disam_jax.dg.cli.predict import run_predict

            run_predict(options)
        case Evaluate():
            from disam_jax.dg.cli.predict import run_evaluate

            run_evaluate(options)
        case Merge():
            from disam_jax.dg.cli.report import run_merge

            run_merge(options)
        case Status():
            from disam_jax.dg.cli.status import run_status

            run_status(options)
        case Data():
            from disam_jax.dg.cli.data import run_data

            say_failures()
            run_data(options)
        case Diagnose():
            from disam_jax.dg.cli.diagnose import run_diagnose

            say_failures()
            run_diagnose(options, command)
        case _:
            from disam_jax.dg.cli.compare import run_compare

            say_failures()
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
