"""Shards: the runs of a sweep in several parts, for machines that need not know of each other."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import shown

R = TypeVar("R", bound=tuple)


class Shard(NamedTuple):
    """One of several parts of a sweep.

    Attributes:
        index: Which one, counted from 0.
        count: Number of shards.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


# The place of a job, and how many there are: in a job array of SLURM, and in an indexed job of Kubernetes, which has no
# variable for the number of completions. JOB_COMPLETIONS is one that the user sets.
SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
KUBERNETES = ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS")
MOST_SHARDS = 100_000


def parse_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """A shard from I/N, or from what a scheduler tells its jobs.

    Args:
        text: "I/N", I from 0, or "auto".
        environment: Variables of the environment.

    Returns:
        Shard.

    Raises:
        InputError: If it is neither, or the environment has no such variables.

    Example:
        >>> parse_shard("0/4", {}), parse_shard("auto", {"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "3"})
        (Shard(index=0, count=4), Shard(index=2, count=3))
    """
    if text == "auto":
        return _auto(environment)
    index, slash, count = text.partition("/")
    if not slash or not all(each.isascii() and each.isdecimal() and len(each) < 10 for each in (index, count)):
        raise InputError(f"--shard must be I/N with I from 0 to N - 1, as 0/8, or auto, got {shown(text[:40])!r}")
    return _checked(int(index), int(count), f"got {text}")


def _auto(environment: Mapping[str, str]) -> Shard:
    if SLURM[0] in environment:
        index, count = (_number(environment, name, "submit the job with --array=0-{N - 1}") for name in SLURM)
        least = int(environment.get("SLURM_ARRAY_TASK_MIN", "0") or 0)
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1") or 1)
        place, rest = divmod(index - least, step)
        if rest or not 0 <= place < count:
            raise InputError(
                f"--shard auto wants a job array without gaps, got task {index} of {count} from {least} on: write "
                f"--shard I/N with the numbers of the whole array, as --shard ${SLURM[0]}/8"
            )
        return _checked(place, count, f"got {place}/{count}")
    if KUBERNETES[0] in environment:
        how = f"set {KUBERNETES[1]} to the completions of the job, or write --shard ${KUBERNETES[0]}/N"
        index, count = (_number(environment, name, how) for name in KUBERNETES)
        return _checked(index, count, f"got {index}/{count} from {' and '.join(KUBERNETES)}")
    raise InputError(
        f"--shard auto reads {' and '.join(SLURM)}, or {' and '.join(KUBERNETES)}, and none is set: write --shard I/N"
    )


def _number(environment: Mapping[str, str], name: str, how: str) -> int:
    value = environment.get(name)
    if value is None or not (value.isascii() and value.isdecimal() and len(value) < 10):
        got = "it is not set" if value is None else f"got {shown(value[:40])!r}"
        raise InputError(f"--shard auto needs {name} to be a whole number, {got}: {how}")
    return int(value)


def _checked(index: int, count: int, got: str) -> Shard:
    if not 0 <= index < count <= MOST_SHARDS:
        raise InputError(f"--shard must be I/N with I from 0 to N - 1 and N up to {MOST_SHARDS:,}, {got}")
    return Shard(index, count)


def in_shard(runs: Sequence[R], turn: int, shard: Shard | None) -> list[R]:
    """The runs of a method that fall to a shard.

    Every shard has some of every method, since methods take different times. Runs of one seed and target stay
    together, which read the same images.

    Args:
        runs: Runs of the method, tuples of (method, target, seed, candidate) and more.
        turn: Number of the method, so that it is not always the same shard that has one more.
        shard: Shard; None for all.

    Returns:
        Some of the runs, in their order.

    Example:
        >>> runs = [("ERM", target, seed, 0) for target in (0, 1) for seed in (0, 1)]
        >>> in_shard(runs, 0, Shard(1, 2))
        [('ERM', 0, 1, 0), ('ERM', 1, 1, 0)]
    """
    if shard is None:
        return list(runs)
    place = (shard.index + turn) % shard.count
    first, last = (each * len(runs) // shard.count for each in (place, place + 1))
    mine = {run[:4] for run in sorted(runs, key=lambda run: (run[2], run[1], run[3]))[first:last]}
    return [run for run in runs if run[:4] in mine]


def merged_command(command: str, out: Path) -> str:
    """The command of the whole sweep, from that of a shard.

    Args:
        command: Command of a shard.
        out: Folder of the whole.

    Returns:
        The command without --shard, and with the folder for --out.

    Example:
        >>> merged_command("disam-jax sweep --shard 0/2 --steps 5 --out a0", Path("a"))
        'disam-jax sweep --steps 5 --out a'
    """
    return with_options(command, {"--shard": None, "--out": str(out)})


def with_options(command: str, values: Mapping[str, str | None]) -> str:
    """A command with other values for some of its options.

    Args:
        command: Command as it was typed.
        values: For each option that takes one value, the new one; None to leave it out. Options that the command has
            not are not added.

    Returns:
        Command.

    Example:
        >>> with_options("disam-jax sweep --workers=4 --steps 5", {"--workers": None, "--steps": "6"})
        'disam-jax sweep --steps 6'
    """
    words, kept = iter(shlex.split(command)), []
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in values:
            kept.append(word)
            continue
        if not equals:
            next(words, None)
        value = values[name]
        if value is not None:
            kept += [f"{name}={value}"] if equals else [name, value]
    return shlex.join(kept)
