"""What a step of SAM's relatives takes, read from the compiled program; nothing is run.

    python benchmarks/sam_family_cost.py

Compiles one training step of the benchmark, gradient and Adam, of every relative of SAM, for a network without running
statistics and for one with BatchNorm, and counts FLOPs as XLA does, in steps of ERM. Where a method chooses between
two kinds of step, both are counted. Writes sam_family_cost.json, from which the table of the documentation is made.
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from benchmarks.workloads import SIZES, Workload, make_batch
from disam_jax.dg.data import keys
from disam_jax.dg.methods import METHODS
from disam_jax.dg.methods.sam_family import RELATIVES
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.step import RunSpec, start, train_step

PATH = pathlib.Path(__file__).parent / "results" / "sam_family_cost.json"
# With batches that outweigh the parameters, as images do those of a ResNet.
WORKS: Mapping[str, Callable[[], Workload]] = {
    "MLP": lambda: SIZES["tiny"]["mlp"]()._replace(per_domain=256),
    "conv net": SIZES["tiny"]["conv"],
}
NAMES = ("SAM", "DISAM", *(each for name in RELATIVES for each in (name, f"{name}+DISAM")))
# LLVM comes after all that is counted.
OPTIONS = {"xla_llvm_disable_expensive_passes": True, "xla_backend_optimization_level": 0}


def flops(function: Callable[..., Any], *shapes: Any) -> float:
    """Of a compiled function, as XLA counts them."""
    analysis = jax.jit(function).lower(*shapes).compile(OPTIONS).cost_analysis()
    return float((analysis or {}).get("flops", 0.0))


def step_of(name: str, work: Workload) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A training step, and the shapes of its arguments."""
    method = METHODS[name]
    config = TrainConfig(optimizer="adam", momentum=0.9, per_domain=work.per_domain)
    fixed = {"network": work.network, "method": method, "config": config}
    hparams = {each: jnp.float32(0.5) for each in ("learning_rate", "weight_decay", *method.hparams)}
    spec = RunSpec(keys.run_key(0, 0), jnp.int32(0), jnp.int32(0), hparams)
    batch = {
        each: jnp.asarray(value).reshape(work.num_domains, work.per_domain, *value.shape[1:])
        for each, value in make_batch(work).items()
    }
    example = jax.ShapeDtypeStruct(batch["x"].shape[2:], batch["x"].dtype)
    run = jax.eval_shape(lambda: start(spec, **fixed, num_sources=work.num_domains, example=example))
    step = lambda run, spec, step, x, y: train_step(run, spec, step, x, y, **fixed)
    return step, (run, spec, jnp.int32(0), batch["x"], batch["y"])


def counted(name: str, work: Workload) -> list[float]:
    """FLOPs of a step: of the only kind, or of the dear and of the cheap one.

    Of a conditional, XLA counts the branch with more FLOPs; a step that takes the other one has those of that one.
    """
    step, arguments = step_of(name, work)
    total = flops(step, *arguments)
    conditionals = [eqn for eqn in jax.make_jaxpr(step)(*arguments).eqns if eqn.primitive.name == "cond"]
    if not conditionals:
        return [total]
    (conditional,) = conditionals
    shapes = [jax.ShapeDtypeStruct(each.aval.shape, each.aval.dtype) for each in conditional.invars[1:]]
    of_branches = [flops(jaxpr_as_fun(branch), *shapes) for branch in conditional.params["branches"]]
    return [total, total - max(of_branches) + min(of_branches)]


def in_steps_of_erm(work: Workload, names: tuple[str, ...] = NAMES) -> dict[str, list[float]]:
    """FLOPs of each kind of step of each method, divided by those of a step of ERM, and those of a forward pass."""
    (plain,) = counted("ERM", work)
    _, (run, spec, _, x, _) = step_of("ERM", work)
    forward = lambda params, state, x: work.network.apply(params, state, x, spec.key, True).logits
    flat = jax.ShapeDtypeStruct((x.shape[0] * x.shape[1], *x.shape[2:]), x.dtype)
    found = {name: [each / plain for each in counted(name, work)] for name in names}
    return {**found, "forward pass": [flops(forward, run.params, run.state, flat) / plain]}


def main() -> None:
    """Counts, and stores the counts."""
    found = {
        network: {name: [round(each, 4) for each in kinds] for name, kinds in in_steps_of_erm(make()).items()}
        for network, make in WORKS.items()
    }
    PATH.write_text(json.dumps({"jax": jax.__version__, "steps of ERM": found}, indent=1) + "\n")
    print(PATH)


if __name__ == "__main__":
    main()
