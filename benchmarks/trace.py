"""How long a step takes to trace, lower and compile, beside `optax.contrib.sam`: `python -m benchmarks trace`.

The user waits for this once for each shape of a step. It should grow with the loss function, which is traced twice,
and with the number of parameter arrays, not with what the library checks; and not with the number of domains.
"""

import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import disam_jax
from benchmarks import report
from benchmarks.clock import order, ratios, spread

NAME, TITLE, COMMAND = "trace_time", "How long a step takes to trace and compile", "python -m benchmarks trace"
LEAVES, DOMAINS = (10, 100, 1_000, 10_000), (1, 16, 256, 1024)
RHO, LAM, RATE = 0.05, 0.1, 0.1
WIDTH, PER_DOMAIN = 4, 2
# A program of which more seconds of compilation are to be expected is traced and lowered only.
MOST_COMPILE_SECONDS = 60.0
# Rounds of a case begin until so many seconds have gone; the second one until three times as many have.
SECONDS_PER_CASE = 60.0


class Case(NamedTuple):
    """A perceptron with so many parameter arrays, a kernel and a bias for each layer, and a batch of M domains."""

    leaves: int
    num_domains: int


class Program(NamedTuple):
    """What tracing and lowering gave.

    Attributes:
        seconds: of the processor, for `trace` and `lower`.
        equations: in the traced program, those of the programs that it calls included.
        lowered: to be compiled.
    """

    seconds: Mapping[str, float]
    equations: int
    lowered: Any


def loss(params: Any, batch: Any) -> jax.Array:
    """Of one domain: a product, a sum and a tanh for each layer."""
    x = batch["x"]
    for layer in params:
        x = jnp.tanh(x @ layer["w"] + layer["b"][None])
    return jnp.mean((x - batch["y"]) ** 2)


def arguments(case: Case) -> tuple[Any, Any]:
    """Parameters and batch, as shapes."""
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    layers = [{"w": array(WIDTH, WIDTH), "b": array(WIDTH)} for _ in range(case.leaves // 2)]
    examples = array(case.num_domains, PER_DOMAIN, WIDTH)
    return layers, {"x": examples, "y": examples}


def mean_loss(params: Any, batch: Any) -> jax.Array:
    return jnp.mean(disam_jax.per_domain(loss)(params, batch))


def plain(tx: Any) -> Callable[..., Any]:
    def step(params, state, batch):
        value, grads = jax.value_and_grad(mean_loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def optax_sam(tx: Any) -> Callable[..., Any]:
    def step(params, state, batch):
        value, grads = jax.value_and_grad(mean_loss)(params, batch)
        updates, state = tx.update(grads, state, params, grad_fn=lambda p, _: jax.grad(mean_loss)(p, batch))
        return optax.apply_updates(params, updates), state, value

    return step


def transformation(tx: Any) -> Callable[..., Any]:
    def step(params, state, batch):
        domain_losses = lambda p: disam_jax.per_domain(loss)(p, batch)
        updates, state = tx.update(None, state, params, domain_loss_fn=domain_losses)
        return optax.apply_updates(params, updates), state, optax.tree.get(state, "loss")

    return step


def gradient_function(tx: Any) -> Callable[..., Any]:
    def step(params, state, batch):
        value, grads = disam_jax.value_and_grad(disam_jax.per_domain(loss), RHO, LAM)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def sgd() -> optax.GradientTransformation:
    """The cheapest optimizer to trace, so that it hides nothing."""
    return optax.sgd(RATE)


# A step from its transformation, and the transformation.
SIDES: Mapping[str, tuple[str, Callable[[Any], Callable[..., Any]], Callable[[], Any]]] = {
    "plain": ("a plain gradient step", plain, sgd),
    "optax_sam": (
        "optax.contrib.sam, opaque",
        optax_sam,
        lambda: optax.contrib.sam(
            sgd(), optax.chain(optax.contrib.normalize(), optax.sgd(RHO)), sync_period=2, opaque_mode=True
        ),
    ),
    "disam": ("disam in an optax.chain", transformation, lambda: optax.chain(disam_jax.disam(RHO, LAM), sgd())),
    "value_and_grad": ("disam_jax.value_and_grad", gradient_function, sgd),
}
REFERENCE = "optax_sam"


def program(case: Case, side: str) -> Program:
    """Traces and lowers a new step: jax remembers what it traced before by the function."""
    _, make, transform = SIDES[side]
    params, batch = arguments(case)
    tx = transform()
    state = jax.eval_shape(tx.init, params)
    began = time.process_time()
    traced = jax.jit(make(tx)).trace(params, state, batch)
    then = time.process_time()
    lowered = traced.lower()
    return Program({"trace": then - began, "lower": time.process_time() - then}, equations(traced.jaxpr.jaxpr), lowered)


def equations(jaxpr: Any) -> int:
    """Of a program and of all programs in it, each as often as it is called."""
    inside = jax.tree.leaves([eqn.params for eqn in jaxpr.eqns], is_leaf=lambda x: hasattr(x, "eqns"))
    return len(jaxpr.eqns) + sum(equations(each) for each in inside if hasattr(each, "eqns"))


def compile_seconds(lowered: Any) -> float:
    """Wall clock: XLA compiles on several threads. The persistent cache is left aside."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        began = time.perf_counter()
        lowered.compile()
        return time.perf_counter() - began
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def measure(case: Case, repeats: int, compiles: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """All sides in turn, round by round, then each compiled.

    Args:
        case: the size.
        repeats: rounds, fewer where they take long.
        compiles: whether to compile.
        say: told what is being done.

    Returns:
        For each side its seconds, its ratios to `optax.contrib.sam`, and its equations.
    """
    label = label_of(case)
    taken: dict[str, dict[str, list[float]]] = {name: {"trace": [], "lower": []} for name in SIDES}
    counted: dict[str, int] = {}
    lowered: dict[str, Any] = {}
    for name in SIDES:  # what jax keeps of its own functions is there from now on
        say(f"{label}: warm up")
        program(case._replace(leaves=min(case.leaves, 10)), name)
    began, number = time.perf_counter(), 0
    while number < repeats and (
        not number or time.perf_counter() - began < SECONDS_PER_CASE * (3 if number < 2 else 1)
    ):
        say(f"{label}: round {number + 1}")
        gc.collect()
        for name in order(tuple(SIDES), number):
            found = program(case, name)
            counted[name], lowered[name] = found.equations, found.lowered
            for what, seconds in found.seconds.items():
                taken[name][what].append(seconds)
        number += 1
    compiled: dict[str, float | None] = dict.fromkeys(SIDES)
    for name in SIDES if compiles else ():
        say(f"{label}: compile {name}")
        compiled[name] = compile_seconds(lowered[name])
    return {
        name: {
            "equations": counted[name],
            "rounds": number,
            **{what: spread(each)._asdict() for what, each in taken[name].items()},
            **{f"{what}_ratio": ratios(each, taken[REFERENCE][what])._asdict() for what, each in taken[name].items()},
            "trace_ratio_to_plain": ratios(taken[name]["trace"], taken["plain"]["trace"])._asdict(),
            "compile": compiled[name],
        }
        for name in SIDES
    }


def cases(leaves: Sequence[int] = LEAVES, domains: Sequence[int] = DOMAINS) -> list[Case]:
    """Growing leaves with 4 domains, then growing domains with 10 leaves."""
    return [*(Case(n, 4) for n in leaves), *(Case(10, m) for m in domains)]


def label_of(case: Case) -> str:
    return f"{case.leaves:,} leaves, {case.num_domains} domains"


def run(
    wanted: Sequence[Case],
    repeats: int,
    say: Callable[[str], None],
    recorded: Callable[[Callable[[], dict[str, Any]]], dict[str, Any]],
) -> dict[str, Any]:
    """Every case with its record; a program is compiled unless the one before lets expect that it takes too long."""
    found: dict[str, Any] = {}
    per_leaf = MOST_COMPILE_SECONDS / 100 if wanted and wanted[0].leaves > 100 else 0.0
    for case in wanted:
        compiles = per_leaf * case.leaves < MOST_COMPILE_SECONDS
        entry = recorded(lambda case=case, compiles=compiles: {"sides": measure(case, repeats, compiles, say)})
        if compiles:
            per_leaf = max(each["compile"] for each in entry["sides"].values()) / case.leaves
        found[label_of(case)] = entry
    return found


def page(results: Mapping[str, Any]) -> str:
    """Markdown of the stored results."""
    entries = results["measured"]
    rows = [
        (
            f"{name}: {SIDES[side][0]}",
            f"{each['equations']:,}",
            report.triple(each["trace"], 1, 1e3),
            report.triple(each["trace_ratio"]),
            report.triple(each["trace_ratio_to_plain"]),
            report.triple(each["lower"], 1, 1e3),
            report.triple(each["lower_ratio"]),
            "not compiled" if each["compile"] is None else f"{each['compile']:.2f}",
            str(each["rounds"]),
        )
        for name, entry in entries.items()
        for side, each in entry["sides"].items()
    ]
    head = (
        *("", "equations", "trace, ms", "trace / optax.contrib.sam", "trace / plain", "lower, ms"),
        *("lower / optax.contrib.sam", "compile, s", "rounds"),
    )
    lines = [
        f"# {results.get('title', TITLE)}",
        "",
        f"    {results.get('command', COMMAND)}",
        "",
        "A step of gradient descent on a perceptron of 4 units a layer, each with a kernel and a bias; grouped batch,",
        "jitted. Tracing and lowering: seconds of the processor, median (quartiles) over rounds in which all sides",
        "take turns; a ratio is taken round by round. Equations are those of the traced program and have no noise.",
        "Compilation: once, on the wall clock, without the persistent cache; not where more than "
        f"{MOST_COMPILE_SECONDS:.0f} s are to be",
        "expected.",
        "",
        *report.table(head, rows),
        "",
        *dict.fromkeys(report.record(_with_load(entry, list(entries.values()))) for entry in entries.values()),
    ]
    return "\n".join(lines) + "\n"


def _with_load(entry: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record of a case, with the load before the first and after the last that were measured alike."""
    alike = [each for each in entries if all(each[name] == entry[name] for name in ("machine", "versions", "date"))]
    return {**entry, "load": [alike[0]["load"][0], alike[-1]["load"][1]]}


def store(found: Mapping[str, Any], folder: Path) -> Path:
    """Puts the cases in the place of what is stored of them, and writes the page; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.json"
    stored = {**(json.loads(path.read_text())["measured"] if path.exists() else {}), **found}
    known = list(map(label_of, cases()))
    order_of = {name: known.index(name) if name in known else len(known) for name in stored}
    results = {"measured": {name: stored[name] for name in sorted(stored, key=order_of.__getitem__)}}
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(results))
    return path.with_suffix(".md")
