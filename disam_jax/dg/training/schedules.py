"""How the learning rate changes along a run: factors on the rate of every method and candidate."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Schedule(NamedTuple):
    """A registered schedule.

    Attributes:
        summary: What it is, in a line.
        make: Number of steps after the warmup -> factor on the learning rate at each of them, counted from 0.
    """

    summary: str
    make: Callable[[int], optax.Schedule]


def _step(steps: int) -> optax.Schedule:
    # Where the residual networks of He et al. were trained so on CIFAR: after 32 and 48 of 64 thousand steps.
    return optax.piecewise_constant_schedule(1.0, {-(-steps // 2): 0.1, -(-3 * steps // 4): 0.1})


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        "constant": Schedule("the learning rate itself", lambda _: optax.constant_schedule(1.0)),
        "cosine": Schedule(
            "half a period of a cosine, down to zero", lambda steps: optax.cosine_decay_schedule(1.0, steps)
        ),
        "step": Schedule("a tenth of it after half of the steps, a hundredth after three quarters", _step),
    }
)


def rate_factor(name: str, steps: int, warmup: int) -> optax.Schedule:
    """The factor on the learning rate at each step.

    Over the W steps of the warmup it is (t + 1) / (W + 1), then that of the schedule over the rest of the run.

    Args:
        name: Name of the schedule, a key of `SCHEDULES`.
        steps: Number of steps of the run.
        warmup: Number W of steps over which the rate rises, less than `steps`.

    Returns:
        Function from the number of the step, counted from 0, to a factor, float32 [].

    Example:
        >>> factor = rate_factor("cosine", steps=8, warmup=2)
        >>> [round(float(factor(jnp.int32(step))), 3) for step in range(8)]
        [0.333, 0.667, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067]
    """
    schedule = SCHEDULES[name].make(steps - warmup)
    if warmup:
        rise = optax.linear_schedule(1.0 / (warmup + 1), 1.0, warmup)
        schedule = optax.join_schedules([rise, schedule], [warmup])

    def factor(count: jax.typing.ArrayLike) -> jax.Array:
        return jnp.asarray(schedule(jnp.asarray(count, jnp.float32)), jnp.float32)

    return factor
