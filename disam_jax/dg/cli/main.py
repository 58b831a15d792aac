"""The command line: arguments are parsed, a command is run, errors become exit codes."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from disam_jax.dg.cli.checks import PACKAGES, missing
from disam_jax.dg.cli.output import ClosedError, standard_output
from disam_jax.dg.cli.progress import say
from disam_jax.dg.errors import InputError

if TYPE_CHECKING:
    from disam_jax.dg.cli.options import Compare, Data, Diagnose, Evaluate, List, Merge, Predict, Report, Status


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
        kept = arguments[:1] in (["compare"], ["sweep"])
        say("interrupted" + kept * "; what was finished is kept, and the same command goes on from there")
        return 130
    say(f"error: {message}")
    return 2


def parse(
    arguments: Sequence[str],
) -> "Compare | Diagnose | Predict | Evaluate | Report | Status | Merge | Data | List":
    """The options that the arguments give.

    Raises:
        SystemExit: if they cannot be parsed, with status 2, or ask for help, with status 0.
    """
    import tyro

    from disam_jax.dg.cli.options import Compare, Data, Diagnose, Evaluate, List, Merge, Predict, Report, Status, Sweep

    return tyro.extras.subcommand_cli_from_dict(
        {
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
        },
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
