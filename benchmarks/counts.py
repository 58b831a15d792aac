"""What XLA counts of a compiled step: exact for a version of jax, and the same on a busy machine."""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxpr_as_fun

from benchmarks.steps import SIDES, Step, refreshed
from benchmarks.workloads import Workload, make_batch
from disam_jax.dg.runners.memory import program_bytes


class Counts(NamedTuple):
    """Of one step.

    Attributes:
        flops: floating point operations. The body of a loop is counted once, and of a conditional the larger branch.
        bytes: read and written by the instructions of the program.
        temp: bytes of temporary memory.
        peak: bytes of arguments, results and temporaries together.
        in_place: bytes of arguments whose memory the results take over.
    """

    flops: float
    bytes: float
    temp: int
    peak: int
    in_place: int


def start(work: Workload, step: Step) -> tuple[Any, Any, Any, Any]:
    """The first arguments of a step, in memory of their own, so that each side may overwrite them."""
    params, stats = jax.jit(work.network.init)(jax.random.key(0))
    return params, jax.jit(step.init)(params), stats, jax.tree.map(jax.numpy.asarray, make_batch(work))


def abstract(work: Workload, step: Step) -> tuple[Any, Any, Any, Any]:
    """The same without values: enough to compile."""
    params, stats = jax.eval_shape(work.network.init, jax.random.key(0))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_batch(work))
    return params, jax.eval_shape(step.init, params), stats, batch


def lower(work: Workload, step: Step) -> Any:
    return jax.jit(step.step, donate_argnums=(0, 1, 2)).lower(*abstract(work, step))


def counts(compiled: Any) -> Counts:
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    # A backend that leaves its work to a library may count nothing of it: a zero would be a wrong answer.
    flops, moved = (float(cost.get(name, 0.0)) or math.nan for name in ("flops", "bytes accessed"))
    return Counts(
        flops,
        moved,
        int(memory.temp_size_in_bytes),
        program_bytes(compiled),
        int(memory.alias_size_in_bytes),
    )


@cache
def phases(work: Workload) -> tuple[float, float]:
    """FLOPs of a step that computes its perturbation and of one that reuses it."""
    found = (counts(lower(work, refreshed(work, 2, phase)).compile()).flops for phase in (0, 1))
    first, second = found
    return first, second


def in_pairs(jaxpr: Any, place: int) -> Any:
    """The same program, with two turns of the scan of that place among its equations in the body of one."""
    eqns = list(jaxpr.jaxpr.eqns)
    eqns[place] = eqns[place].replace(params={**eqns[place].params, "unroll": 2})
    return jaxpr.replace(jaxpr=jaxpr.jaxpr.replace(eqns=eqns))


def scan_flops(work: Workload, step: Step, counted: float, options: Mapping[str, Any] | None = None) -> float:
    """FLOPs of all turns of a step's scans over the domains, where XLA counted one of each.

    A program with two turns in a body, and a third after it if their number is odd, has one or two turns more.
    """
    jaxpr, shape = jax.make_jaxpr(step.step, return_shape=True)(*abstract(work, step))

    def flops_in_pairs(place: int) -> float:
        run = jaxpr_as_fun(in_pairs(jaxpr, place))
        paired = lambda *args: jax.tree.unflatten(jax.tree.structure(shape), run(*jax.tree.leaves(args)))
        return counts(lower(work, Step(step.init, paired)).compile(options)).flops

    turns = {place: eqn.params["length"] for place, eqn in enumerate(jaxpr.eqns) if eqn.primitive.name == "scan"}
    more = {place: (flops_in_pairs(place) - counted) / (1 + n % 2) for place, n in turns.items() if n > 1}
    return counted + sum((turns[place] - 1) * of_a_turn for place, of_a_turn in more.items())


def true_flops(name: str, work: Workload, counted: float) -> float:
    """FLOPs of a step on average, from XLA's count: `refresh_every=k` has one step in k of the dear kind."""
    side = SIDES[name]
    if side.period > 1:
        dear, cheap = phases(work)
        return (dear + (side.period - 1) * cheap) / side.period
    return scan_flops(work, side.make(work), counted) if side.scanned else counted
