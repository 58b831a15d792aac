"""How long something will take, told from how long it has taken so far."""

import time
from collections.abc import Callable

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
