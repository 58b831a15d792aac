"""Seconds per step: all sides in one process, in turn, compiled and warm before the first is timed.

The clock on the wall, and beside it the seconds that all cores together spent on this process: on a machine that does
other work too, the second says more.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax


class Spread(NamedTuple):
    """The middle and the quartiles."""

    median: float
    lower: float
    upper: float


class Sample(NamedTuple):
    """Seconds per call: on the wall, and of the cores."""

    wall: float
    cores: float


class Runner:
    """A step that keeps what it returns for its next call.

    Args:
        call: (state, constants) -> (state, result).
        state: of the first call; it may be donated.
        constants: given to every call.
        period: the number of calls that make a whole turn of its work.
        wait: returns when all work is done that JAX does not know of.
    """

    def __init__(
        self,
        call: Callable[[Any, Any], tuple[Any, Any]],
        state: Any,
        constants: Any,
        period: int = 1,
        wait: Callable[[], None] = lambda: None,
    ):
        self.call, self.state, self.constants, self.period, self.wait = call, state, constants, period, wait

    def seconds(self, calls: int) -> Sample:
        """Of one call, from so many in a row, with the wait for the last result."""
        began, began_cores = time.perf_counter(), time.process_time()
        for _ in range(calls):
            self.state, result = self.call(self.state, self.constants)
        jax.block_until_ready((self.state, result))
        self.wait()
        return Sample((time.perf_counter() - began) / calls, (time.process_time() - began_cores) / calls)


def in_turn(
    runners: Mapping[str, Runner],
    repeats: int,
    least_seconds: float = 0.1,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, list[Sample]]:
    """Seconds per call of each runner, `repeats` of them.

    Every round times every runner once; the order turns and reverses from round to round, so that what else the
    machine does falls on all alike.

    Args:
        runners: the sides.
        repeats: rounds.
        least_seconds: a sample is as many calls as take about this long, whole periods of them.
        tick: called after each sample.

    Returns:
        For each side the samples in the order of the rounds.
    """
    calls = {}
    for name, runner in runners.items():
        runner.seconds(runner.period)
        turn = runner.period * runner.seconds(runner.period).wall
        calls[name] = runner.period * max(math.ceil(least_seconds / turn), 1)
    taken: dict[str, list[Sample]] = {name: [] for name in runners}
    for number in range(repeats):
        for name in order(tuple(runners), number):
            taken[name].append(runners[name].seconds(calls[name]))
            tick()
    return taken


def order(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: forwards, then backwards, then from one further on."""
    start = number // 2 % len(names)
    turned = [*names[start:], *names[:start]]
    return turned[::-1] if number % 2 else turned


def spread(samples: Sequence[float]) -> Spread:
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, lower, upper)


def ratios(samples: Sequence[float], reference: Sequence[float]) -> Spread:
    """Of two sides, round by round: a slow minute of the machine falls on both."""
    return spread([a / b for a, b in zip(samples, reference, strict=True)])
