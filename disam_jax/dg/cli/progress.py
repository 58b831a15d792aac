"""What is going on, and how long it will take: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from disam_jax.dg.progress import OnProgress, TimeLeft
from disam_jax.dg.reading import shown

Say = Callable[[str], None]

# Between two lines, where neither the start nor the end of a chunk has one.
SECONDS = 10.0


class Progress(NamedTuple):
    """How progress is shown.

    Attributes:
        show: Function of a description, how much is done and how much there is in all. A new total starts anew.
        say: Function of a line that is kept.
    """

    show: OnProgress
    say: Say


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Progress on standard error for as long as the context lasts: a bar on a terminal, plain lines elsewhere.

    Yields:
        Progress.
    """
    if sys.stderr is not None and sys.stderr.isatty():
        with progress_bar() as show:
            yield Progress(show, lambda _: None)
    else:
        yield Progress(some_lines(say), say)


def say(line: str) -> None:
    r"""Prints a line on standard error, without anything that would control a terminal.

    Example:
        >>> with contextlib.redirect_stderr(sys.stdout):
        ...     say("training a\x1b[31m")
        disam-jax: training a\x1b[31m
    """
    # Training goes on where nobody can be told.
    with contextlib.suppress(OSError):
        if sys.stderr is not None:
            print(f"disam-jax: {shown(line)}", file=sys.stderr, flush=True)


def some_lines(say: Say, every: float = SECONDS, clock: Callable[[], float] = time.monotonic) -> OnProgress:
    """A function that shows progress in a line now and then.

    Args:
        say: Prints a line.
        every: Seconds between two lines.
        clock: Seconds since some moment.

    Returns:
        For `Progress.show`.

    Example:
        >>> seconds = iter([0.0, 0.0, 1.0, 12.0, 12.0])
        >>> show = some_lines(print, clock=lambda: next(seconds))
        >>> show("reading images", 10, 100)
        >>> show("reading images", 60, 100)
        reading images: 60 of 100, about 10 s left
    """
    left: TimeLeft | None = None
    last = clock()

    def show(description: str, done: float, total: float) -> None:
        nonlocal left, last
        if left is None or left.total != total:
            left = TimeLeft(done, total, clock)
        now = clock()
        if now - last >= every:
            last = now
            rest = left.text(done)
            say(f"{description}: {done:.4g} of {total:g}" + (f", {rest}" if rest else ""))

    return show


@contextlib.contextmanager
def progress_bar() -> Iterator[OnProgress]:
    """A bar on standard error for as long as the context lasts.

    Yields:
        A function of a description, how much is done and how much there is in all. A new total
        starts a new bar.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task: Any = None
        left: TimeLeft | None = None

        def show(description: str, done: float, total: float) -> None:
            nonlocal task, left
            if left is None or left.total != total:
                if task is not None:
                    bar.remove_task(task)
                task, left = bar.add_task(shown(description), total=total, left=""), TimeLeft(done, total)
            bar.update(task, description=shown(description), completed=done, left=left.text(done))

        yield show
