"""How long something will take, told from how long it has taken so far."""

import time
from collections.abc import Callable, Mapping

# (what is going on, how much is done, how much there is in all)
OnProgress = Callable[[str, float, float], None]


class TimeLeft:
    """Tells from the time so far how long the rest takes, compilation included.

    Args:
        done: How much is done at the start, in no time.
        total: How much there is in all.
        clock: Seconds since some moment; one that nobody can set back.

    Example:
        >>> seconds = iter([0.0, 30.0])
        >>> left = TimeLeft(10, 40, clock=lambda: next(seconds))
        >>> left.text(20)
        'about 1 min left'
    """

    def __init__(self, done: float, total: float, clock: Callable[[], float] = time.monotonic):
        self.start, self.total, self.clock = done, total, clock
        self.began = clock()

    def text(self, done: float) -> str:
        """How long the rest takes; nothing before anything is done."""
        elapsed, made = self.clock() - self.began, done - self.start
        if made <= 0 or done >= self.total:
            return ""
        return f"about {duration(elapsed / made * (self.total - done))} left"


class TimeToGo:
    """Tells how long the rest of a sweep takes: the programs that are still to be compiled, and the runs to be trained.

    A method of which nothing is known yet is taken to need as long for each pass of a step as the others do, and as
    long to be compiled.

    Args:
        missing: For each method, the number of runs to train.
        passes: For each method, the number of forward and backward passes in a step.
        clock: Seconds since some moment; one that nobody can set back.

    Example:
        >>> left = TimeToGo({"ERM": 20, "SAM": 10}, {"ERM": 1, "SAM": 2}, clock=lambda: 0.0)
        >>> left.compiled("ERM", 5.0)
        >>> left.trained("ERM", 10, 30.0)
        >>> left.text()  # 10 runs of 3 s, 10 runs of 6 s, and 5 s
        'about 2 min left, with 1 program to compile'
    """

    def __init__(
        self, missing: Mapping[str, int], passes: Mapping[str, float], clock: Callable[[], float] = time.monotonic
    ):
        self.missing, self.passes, self.clock = (
            {name: number for name, number in missing.items() if number},
            passes,
            clock,
        )
        self._compiled: dict[str, float] = {}
        self._trained: dict[str, tuple[float, int]] = {}
        self._told = clock()

    def compiled(self, method: str, seconds: float) -> None:
        """Takes note of the time in which something was compiled for a method."""
        self._compiled[method] = self._compiled.get(method, 0.0) + seconds
        self._told = self.clock()

    def trained(self, method: str, runs: int, seconds: float) -> None:
        """Takes note of the time in which runs of a method were trained. The last ones tell most: the first compile."""
        self._trained[method] = (seconds, runs)
        self.missing[method] -= runs
        self._told = self.clock()

    def seconds(self) -> float | None:
        """Seconds from now on; None before any run was trained."""
        if not self._trained:
            return None
        each = {name: seconds / runs for name, (seconds, runs) in self._trained.items()}
        of_a_pass = sum(seconds / self.passes[name] for name, seconds in each.items()) / len(each)
        training = sum(number * each.get(name, of_a_pass * self.passes[name]) for name, number in self.missing.items())
        compiling = sum(self._compiled.values()) / max(1, len(self._compiled)) * len(self._to_compile())
        return max(0.0, training + compiling - (self.clock() - self._told))

    def text(self) -> str:
        """How long the rest takes; nothing before any run was trained, or when all are."""
        seconds = self.seconds()
        if seconds is None or not any(self.missing.values()):
            return ""
        programs = len(self._to_compile())
        compiling = f", with {programs} program{'s' if programs > 1 else ''} to compile" if programs else ""
        return f"about {duration(seconds)} left{compiling}"

    def _to_compile(self) -> list[str]:
        return [name for name, number in self.missing.items() if number and name not in self._compiled]


def duration(seconds: float) -> str:
    """A time in words, to two digits or so.

    Example:
        >>> duration(7.4), duration(90), duration(4000), duration(200_000)
        ('7 s', '2 min', '1 h 7 min', '2 d 7 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
