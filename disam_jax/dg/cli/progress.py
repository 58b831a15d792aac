"""What is going on, and how long it will take: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from disam_jax.dg.progress import OnProgress, TimeLeft, duration
from disam_jax.dg.reading import shown

Say = Callable[[str], None]

# Between two lines, where neither the start nor the end of a chunk has one.
SECONDS = 10.0
# After which something is said, whatever is going on.
MOST_SECONDS = 60.0


class Progress(NamedTuple):
    """How progress is shown.

    Attributes:
        show: Function of a description, how much is done and how much there is in all. A new total starts anew.
        say: Function of a line that is kept.
        log: Function of a line that says no more than a bar shows, and is kept where there is no bar.
        estimate: Function of how long the rest takes, in words, for what is shown next, empty where that is not known.
            Until it is called, the time so far tells.
    """

    show: OnProgress
    say: Say
    log: Say
    estimate: Say


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Progress on standard error for as long as the context lasts: a bar on a terminal, plain lines elsewhere.

    Yields:
        Progress.
    """
    if sys.stderr is not None and sys.stderr.isatty():
        with progress_bar() as shown_by_bar:
            yield shown_by_bar
    else:
        pulse, told = Pulse(say), Told()
        lines = some_lines(pulse.say, told=told)

        def show(description: str, done: float, total: float) -> None:
            pulse.begin(description)
            lines(description, done, total)

        with pulse.beating():
            yield Progress(show, pulse.say, pulse.say, told.estimate)


class Told:
    """How long the rest takes, as somebody told who knows better than the clock.

    Example:
        >>> told = Told()
        >>> told.estimate("about 5 min left")
        >>> told.rest(TimeLeft(0, 10), done=5)
        'about 5 min left'
    """

    def __init__(self) -> None:
        self.text: str | None = None

    def estimate(self, text: str) -> None:
        """Takes note of it."""
        self.text = text

    def rest(self, left: TimeLeft, done: float) -> str:
        """This, or what the time so far tells where nobody told anything."""
        return left.text(done) if self.text is None else self.text


class Pulse:
    """Says what is going on where nothing else was said for a while.

    Args:
        say: Prints a line.
        every: Seconds of silence after which it is said.
        clock: Seconds since some moment.

    Example:
        >>> seconds = iter([0.0, 0.0, 1.0, 59.0, 61.0, 61.0])
        >>> pulse = Pulse(print, clock=lambda: next(seconds))
        >>> pulse.begin("compiling SAM")
        >>> pulse.beat()  # after 59 seconds
        >>> pulse.beat()
        still compiling SAM, for 1 min
    """

    def __init__(self, say: Say, every: float = MOST_SECONDS, clock: Callable[[], float] = time.monotonic):
        self._say, self._every, self._clock = say, every, clock
        self._what, self._since, self._last = "", clock(), clock()

    def begin(self, what: str) -> None:
        """Takes note of what is going on."""
        if what != self._what:
            self._what, self._since = what, self._clock()

    def say(self, line: str) -> None:
        """Prints a line, after which there is silence."""
        self._last = self._clock()
        self._say(line)

    def beat(self) -> None:
        """Says what is going on if it is time to."""
        now = self._clock()
        if self._what and now - self._last >= self._every:
            self.say(f"still {self._what}, for {duration(now - self._since)}")

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Beats once a second in a thread of its own, for as long as the context lasts."""
        ended = threading.Event()

        def beats() -> None:
            while not ended.wait(1.0):
                self.beat()

        thread = threading.Thread(target=beats, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


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


def some_lines(
    say: Say, every: float = SECONDS, clock: Callable[[], float] = time.monotonic, told: Told | None = None
) -> OnProgress:
    """A function that shows progress in a line now and then.

    Args:
        say: Prints a line.
        every: Seconds between two lines.
        clock: Seconds since some moment.
        told: How long the rest takes, if somebody tells.

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
    last, told = clock(), told or Told()

    def show(description: str, done: float, total: float) -> None:
        nonlocal left, last
        if left is None or left.total != total:
            left = TimeLeft(done, total, clock)
        now = clock()
        if now - last >= every:
            last = now
            rest = told.rest(left, done)
            say(f"{description}: {done:.4g} of {total:g}" + (f", {rest}" if rest else ""))

    return show


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on standard error for as long as the context lasts; lines that are kept stand above it.

    Yields:
        Progress.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    bar = Bar(
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
        told = Told()

        def show(description: str, done: float, total: float) -> None:
            nonlocal task, left
            if left is None or left.total != total:
                if task is not None:
                    bar.remove_task(task)
                task, left = bar.add_task(shown(description), total=total, left=""), TimeLeft(done, total)
            bar.update(task, description=shown(description), completed=done, left=told.rest(left, done))

        def say_above(line: str) -> None:
            bar.console.print(f"disam-jax: {shown(line)}", markup=False, highlight=False, soft_wrap=True)

        yield Progress(show, say_above, lambda _: None, told.estimate)
