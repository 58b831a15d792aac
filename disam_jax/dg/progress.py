"""A progress bar with the time left, on a terminal only."""

import contextlib
from collections.abc import Callable, Iterator

Show = Callable[[str, float, float], None]


@contextlib.contextmanager
def progress_bar() -> Iterator[Show]:
    """A bar on standard error for as long as the context lasts; nothing where that is no terminal.

    Yields:
        A function of a description, how much is done and how much there is in all. A new total
        starts a new bar.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task, current = None, None

        def show(description: str, done: float, total: float) -> None:
            nonlocal task, current
            if task is None or current != total:
                if task is not None:
                    bar.remove_task(task)
                task, current = bar.add_task(description, total=total), total
            bar.update(task, description=description, completed=done)

        yield show
