"""Every side on every network: counts of the compiled step, and seconds side by side."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import jax

from benchmarks.clock import Runner, Sample, in_turn, ratios, spread
from benchmarks.counts import counts, lower, phases, start, true_flops
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
    """Counts, seconds per step and ratios to the plain step, which is always one of the sides."""
    names = list(dict.fromkeys([REFERENCE, *sides]))
    found, counted, runners = {}, {}, {}
    for name in names:
        say(f"compile {name}")
        step = SIDES[name].make(work)
        began = time.perf_counter()
        compiled = lower(work, step).compile()
        found[name] = {"compile_seconds": time.perf_counter() - began}
        counted[name] = counts(compiled)
        runners[name] = runner(compiled, start(work, step), SIDES[name].period)
    both = phases(work) if any(SIDES[name].period > 1 for name in names) else None
    done = iter(range(1, len(names) * repeats + 1))
    taken = in_turn(runners, repeats, least_seconds, lambda: say(f"sample {next(done)} of {len(names) * repeats}"))
    plain_flops = counted[REFERENCE].flops
    for name in names:
        flops = true_flops(name, work, counted, both)
        seconds, cores = ([getattr(sample, kind) for sample in taken[name]] for kind in Sample._fields)
        plain, plain_cores = ([getattr(sample, kind) for sample in taken[REFERENCE]] for kind in Sample._fields)
        found[name] |= {
            **counted[name]._asdict(),
            "counted_flops": counted[name].flops,
            "flops": flops,
            "flops_ratio": flops / plain_flops,
            "seconds": spread(seconds)._asdict(),
            "time_ratio": ratios(seconds, plain)._asdict(),
            "cores_ratio": ratios(cores, plain_cores)._asdict(),
            "flops_per_second": flops / spread(seconds).median,
            "samples": len(taken[name]),
        }
    if GROUPED[0] in found and GROUPED[1] in found:
        for kind, field in (("wall", "time"), ("cores", "cores")):
            grouped, flat = ([getattr(sample, kind) for sample in taken[name]] for name in GROUPED)
            found[GROUPED[0]][f"{field}_ratio_to_flat"] = ratios(grouped, flat)._asdict()
    return {"workload": describe(work), "backend": jax.default_backend(), "sides": found}
