"""The command line: `disam-jax compare`."""

import importlib.util
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from disam_jax.dg.errors import InputError

if TYPE_CHECKING:
    from disam_jax.dg.options import Compare

PACKAGES = ("rich", "matplotlib", "scipy", "sklearn", "skimage", "PIL")


def check(options: "Compare") -> None:
    """Checks what can be checked without looking at the data.

    Args:
        options: from the command line.

    Raises:
        InputError: naming the option.
    """
    from disam_jax.dg.features import check_image_size
    from disam_jax.dg.report import check_out

    if options.seeds < 2:
        raise InputError(f"--seeds must be at least 2, got {options.seeds}: one seed has no standard error")
    if options.steps is not None and options.steps < 1:
        raise InputError(f"--steps must be at least 1, got {options.steps}")
    if options.rho is not None and not (math.isfinite(options.rho) and options.rho >= 0):
        raise InputError(f"--rho must be finite and not negative, got {options.rho}")
    if options.lam is not None and not math.isfinite(options.lam):
        raise InputError(f"--lam must be finite, got {options.lam}")
    check_image_size(options.image_size)
    check_out(options.out)
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise InputError(_missing(package))


def _missing(package: str) -> str:
    return f'the package {package} is missing: pip install "disam-jax[dg]"'


def target_indices(targets: Sequence[str], domain_names: Sequence[str], where: str) -> tuple[int, ...]:
    """Indices of the domains to hold out.

    Args:
        targets: their names; empty means all.
        domain_names: D names.
        where: what has the domains, for the error.

    Returns:
        Indices, in the order given, each once.

    Raises:
        InputError: on a name that is no domain's.

    Example:
        >>> target_indices(["sketch"], ["photo", "sketch"], "DIR")
        (1,)
    """
    for name in targets:
        if name not in domain_names:
            raise InputError(f"unknown --target {name}: the domains of {where} are {', '.join(domain_names)}")
    return tuple(dict.fromkeys(map(domain_names.index, targets))) or tuple(range(len(domain_names)))


def compare(options: "Compare", command: str) -> None:
    """Runs the comparison, prints the table and writes the files.

    Args:
        options: from the command line.
        command: what was typed, for the record.

    Raises:
        InputError: if the options or the data cannot be used; nothing has been written then.
    """
    check(options)
    began = time.perf_counter()

    from disam_jax.dg import digits, folder, protocol, report, summary
    from disam_jax.dg.progress import progress_bar

    with progress_bar() as show:
        if options.data is None:
            targets = target_indices(options.target, tuple(digits.SHIFTS), "the digits")
            data = digits.load_digits()
            defaults = protocol.DIGITS
        else:
            listed = folder.list_images(options.data)
            targets = target_indices(options.target, listed.domain_names, str(options.data))
            data = folder.load_folder(
                listed,
                options.image_size,
                lambda done, total: show("reading images", done, total),
            )
            defaults = protocol.FOLDER
        rho = defaults.rho if options.rho is None else options.rho
        lam = defaults.lam[options.penalty] if options.lam is None else options.lam
        steps = defaults.training.steps if options.steps is None else options.steps
        training = replace(defaults.training, steps=steps, penalty=options.penalty)
        methods = protocol.three_methods(rho, lam)
        names = [method.name for method in methods]
        runs = options.seeds * len(targets)

        def on_progress(name: str, done: int) -> None:
            before = names.index(name) * steps
            show(f"training {name}, {runs} runs at once", before + done, len(names) * steps)

        histories = protocol.compare(data, training, methods, options.seeds, targets, on_progress)

    summarised = summary.summarise(histories)
    heading = report.title(data, training, rho, lam, options.seeds)
    rows = summary.table_rows(summarised, data.domain_names)
    extra = {"rho": rho, "lam": lam}
    if options.data is not None:
        extra["image_size"] = options.image_size
    found = report.results(data, training, methods, summarised, command, extra)
    found["seconds"] = round(time.perf_counter() - began, 1)
    contents = report.files(found, summarised, data.domain_names, rows, heading)
    report.write_files(options.out, contents)

    definitions = report.notes(len(data.domain_names), len(summarised.steps) - 1)
    written = f"written to {options.out}: {', '.join(contents)}"
    report.print_table(rows, heading, [*found["findings"], "", *definitions, "", written])


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `disam-jax`.

    Args:
        arguments: those of the command line by default.

    Returns:
        Exit status: 0, 2 after an error that the user can mend, 130 after an interruption.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
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

    from disam_jax.dg.options import Compare

    options = tyro.extras.subcommand_cli_from_dict(
        {"compare": Compare},
        prog="disam-jax",
        description="Domain-inspired sharpness-aware minimisation (DISAM), measured.",
        args=arguments,
        # Not giving an option is how to ask for its default; "None" is a path like any other.
        config=(tyro.conf.DisallowNone,),
    )
    compare(options, shlex.join(["disam-jax", *arguments]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
