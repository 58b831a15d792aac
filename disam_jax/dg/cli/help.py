"""What `disam-jax compare --help` and `sweep --help` print: options by subject, and examples."""

import argparse
import inspect
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from disam_jax.dg.cli.options import Compare

SUBJECTS = ("data", "method", "training", "pretrained", "running", "report")
# By the dataclass that has an option first; these are apart from the others of theirs.
APART = {
    "model": "method",
    "candidates": "method",
    "draws": "method",
    "search": "method",
    "grid": "method",
    "averaging": "method",
    "memory": "running",
    "compilation_cache": "running",
    "select": "report",
    "evaluations": "training",
    "eval_every": "training",
    "schedule": "training",
    "warmup": "training",
    "fraction": "method",
    "begin": "method",
    "dtype": "training",
    "remat": "training",
    "out": "report",
    "overwrite": "report",
    "log": "report",
}
EXAMPLES = {
    "compare": (
        ("three methods on the digits, in half a minute", "disam-jax compare"),
        ("your own images, DIR/domain/class/*.jpg", "disam-jax compare --data DIR --model conv"),
        ("what would be run, and nothing more", "disam-jax compare --data DIR --model resnet18 --dry-run"),
        ("every method on one held-out domain", "disam-jax compare --method all --target noise --out all"),
    ),
    "sweep": (
        ("all methods, each with ten choices of hyperparameters", "disam-jax sweep --candidates 10"),
        ("a grid of rho and lam", "disam-jax sweep --method erm sam disam-std --grid rho=0.05,0.1,0.2 lam=0.2,0.4,0.6"),
        ("four processes", "disam-jax sweep --workers 4"),
        ("more seeds in the same folder", "disam-jax sweep --seeds 40"),
    ),
}


def subjects(options: "type[Compare]") -> dict[str, str]:
    """The subject of each option, by its name.

    Args:
        options: Dataclass of the options.

    Returns:
        For each name one of `SUBJECTS`.

    Example:
        >>> from disam_jax.dg.cli.options import Compare
        >>> found = subjects(Compare)
        >>> found["target"], found["rho"], found["checkpoint"], found["workers"], found["out"]
        ('data', 'training', 'pretrained', 'running', 'report')
    """
    from disam_jax.dg.cli.options import DataOptions, MethodOptions, ModelOptions, OpenClassOptions, OptimizerOptions

    of_class = {
        DataOptions: "data",
        MethodOptions: "method",
        OptimizerOptions: "training",
        ModelOptions: "pretrained",
        OpenClassOptions: "pretrained",
    }
    first = {each.name: subject for kind, subject in of_class.items() for each in fields(kind)}
    return {each.name: APART.get(each.name) or first.get(each.name, "running") for each in fields(options)}


def help_text(command: str, options: "type[Compare]", width: int) -> str | None:
    """The help of a command, with its options by subject.

    Args:
        command: Name of the command.
        options: Dataclass of its options.
        width: Columns of the terminal.

    Returns:
        Lines of text; None where this version of tyro does not tell what the options are.
    """
    actions = _actions(options)
    if actions is None:
        return None
    of_option = subjects(options)
    formatter = argparse.HelpFormatter(f"disam-jax {command}", max_help_position=26, width=width)
    for subject in SUBJECTS:
        formatter.start_section(subject)
        formatter.add_arguments(each for each in actions if of_option.get(_name(each)) == subject)
        formatter.end_section()
    wide = max(len(line) for _, line in EXAMPLES[command])
    examples = "\n".join(f"  {line:{wide}}  # {what}" for what, line in EXAMPLES[command])
    usage = f"usage: disam-jax {command} [options]"
    return f"{usage}\n\n{inspect.getdoc(options)}\n\n{formatter.format_help()}\nexamples:\n{examples}\n"


def _name(action: argparse.Action) -> str:
    return action.option_strings[0].removeprefix("--").replace("-", "_")


def _actions(options: "type[Compare]") -> Sequence[argparse.Action] | None:
    import tyro

    make: Any = getattr(tyro.extras, "get_parser", None)
    if make is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = make(options, config=(tyro.conf.DisallowNone,))
    for action in parser._actions:
        if action.metavar and action.nargs == "*":
            # The name says already that there may be several.
            action.nargs = None
        action.help = str(action.help).replace(" (default: )", "")
    return parser._actions


def asked_for(arguments: Sequence[str], commands: Iterable[str] = EXAMPLES) -> str | None:
    """The command whose help is asked for, if it has one here.

    Example:
        >>> asked_for(["sweep", "--seeds", "3", "-h"]), asked_for(["list", "--help"]), asked_for(["sweep"])
        ('sweep', None, None)
    """
    wanted = {"-h", "--help"} & {*arguments[1:]}
    return arguments[0] if wanted and arguments[0] in commands else None
