"""What XLA counts of a compiled step: exact for a version of jax, and the same on a busy machine."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

from benchmarks.steps import SIDES, Step, optimizer, refreshed
from benchmarks.workloads import Workload, make_batch
from disam_jax.dg.memory import program_bytes


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
    return Counts(
        float(cost["flops"]),
        float(cost["bytes accessed"]),
        int(memory.temp_size_in_bytes),
        program_bytes(compiled),
        int(memory.alias_size_in_bytes),
    )


def phases(work: Workload) -> tuple[float, float]:
    """FLOPs of a step that computes its perturbation and of one that reuses it."""
    found = (counts(lower(work, refreshed(work, 2, phase)).compile()).flops for phase in (0, 1))
    first, second = found
    return first, second


def optimizer_flops(work: Workload) -> float:
    """What AdamW does in a step, outside of the passes."""
    tx = optimizer()

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state, _, _ = abstract(work, Step(tx.init, step))
    return counts(jax.jit(step).lower(params, state, params).compile()).flops


def true_flops(name: str, work: Workload, counted: Mapping[str, Counts], both: tuple[float, float] | None) -> float:
    """FLOPs of a step on average, from XLA's counts.

    `refresh_every=k` has one step in k of the dear kind. Of a scan over M domains one turn is counted: M times the
    count without AdamW, and AdamW once, is the truth from above, for a few operations on the sums stand outside too.
    """
    side = SIDES[name]
    if side.period > 1:
        if both is None:
            raise ValueError(f"{name} has two kinds of steps: give the FLOPs of both, phases(work)")
        return (both[0] + (side.period - 1) * both[1]) / side.period
    if side.scanned:
        outside = optimizer_flops(work)
        return work.num_domains * (counted[name].flops - outside) + outside
    return counted[name].flops
