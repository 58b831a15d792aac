"""Every side on every network: counts of the compiled step, and seconds side by side."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import jax

from benchmarks.clock import Runner, in_turn, ratios, spread
from benchmarks.counts import counts, lower, start, true_flops
from benchmarks.steps import SIDES
from benchmarks.workloads import Workload, describe

REFERENCE = "adamw"
GROUPED = ("disam_grouped", "disam")


def runner(compiled: Any, args: tuple[Any, Any, Any, Any], period: int) -> Runner:
    def call(state, batch):
        *state, loss = compiled(*state, batch)
        return tuple(state), loss

    return Runner(call, args[:3], args[3], period)


def measure(
    work: Workload,
    sides: Iterable[str],
    repeats: int,
    least_seconds: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Counts, seconds per step, and ratios to the plain step and to that of the same form, which are measured too."""
    sides = list(sides)
    names = list(dict.fromkeys([REFERENCE, *(SIDES[name].plain for name in sides), *sides]))
    found, counted, runners = {}, {}, {}
    for name in names:
        say(f"compile {name}")
        step = SIDES[name].make(work)
        began = time.perf_counter()
        compiled = lower(work, step).compile()
        found[name] = {"compile_seconds": time.perf_counter() - began}
        counted[name] = counts(compiled)
        runners[name] = runner(compiled, start(work, step), SIDES[name].period)
    done = iter(range(1, len(names) * repeats + 1))
    taken = in_turn(runners, repeats, least_seconds, lambda: say(f"sample {next(done)} of {len(names) * repeats}"))
    say("count")
    flops = {name: true_flops(name, work, counted[name].flops) for name in names}

    def against(name: str, plain: str) -> dict[str, Any]:
        found: dict[str, Any] = {"flops_ratio": flops[name] / flops[plain]}
        for kind, field in (("wall", "time_ratio"), ("cores", "cores_ratio")):
            own, others = ([getattr(sample, kind) for sample in taken[side]] for side in (name, plain))
            found[field] = ratios(own, others)._asdict()
        return found

    for name in names:
        seconds = spread([sample.wall for sample in taken[name]])
        found[name] |= {
            **counted[name]._asdict(),
            "counted_flops": counted[name].flops,
            "flops": flops[name],
            **against(name, REFERENCE),
            "seconds": seconds._asdict(),
            "flops_per_second": flops[name] / seconds.median,
            "samples": len(taken[name]),
        }
        if SIDES[name].plain != REFERENCE:
            found[name]["own"] = {"plain": SIDES[name].plain, **against(name, SIDES[name].plain)}
    if GROUPED[0] in found and GROUPED[1] in found:
        to_flat = against(*GROUPED)
        found[GROUPED[0]] |= {f"{field}_to_flat": to_flat[field] for field in ("time_ratio", "cores_ratio")}
    return {"workload": describe(work), "backend": jax.default_backend(), "sides": found}
