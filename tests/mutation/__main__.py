"""`python -m tests.mutation`: puts faults into the core, one at a time, and reports which of them the tests notice."""

import argparse
import hashlib
import itertools
import json
import math
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import equivalents
from .harness import Fault, Order, Outcome, Run, compiled_programs, import_what_tests_need, run_all
from .operators import Mutant, mutants

ROOT = Path(__file__).parents[2]
PACKAGE = "disam_jax"
COMMON = ("test_guards", "test_bad_input", "test_against_reference", "test_properties")
# The tests that answer for a module, besides its own examples.
TESTS: Mapping[str, tuple[str, ...]] = {
    "_dtypes": (*COMMON, "test_precision", "test_inputs"),
    "_weights": ("test_weights", *COMMON),
    "_perturbation": (*COMMON, "test_precision"),
    "_passes": (
        *COMMON,
        "test_accumulation",
        "test_precision",
        "test_sharding",
        "test_inputs",
        "test_descent",
        "test_domain_gradients",
        "test_begin",
    ),
    "_m_sharpness": ("test_domain_gradients", *COMMON),
    "_gradient": (
        *COMMON,
        "test_ascent_subset",
        "test_inputs",
        "test_descent",
        "test_domain_gradients",
        "test_begin",
    ),
    "_transform": (*COMMON, "test_ascent_subset", "test_inputs", "test_wrappers", "test_begin"),
    "_domains": ("test_domains", "test_weights", *COMMON),
    "_grouping": ("test_domains", "test_guards", "test_bad_input"),
    "_examples": ("test_subset", "test_ascent_subset", "test_guards", "test_bad_input"),
    "_sharding": ("test_sharding", "test_accumulation", "test_subset", "test_ascent_subset"),
    "_subset": ("test_subset", "test_guards", "test_bad_input", "test_begin"),
    "variants": (*COMMON, "test_precision"),
    "nnx": ("test_nnx", "test_guards", "test_nnx_parity"),
}
PACKAGES = ("jax", "numpy", "optax", "flax.nnx", "flax.linen", "chex", "hypothesis", "pytest", "xdist")
LEAST = 0.95


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation",
        description="Mutates the core and runs the quick tests of the mutated module against every mutant. Exit "
        f"status 1 when fewer than {LEAST:.0%} are killed.",
    )
    parser.add_argument("--modules", nargs="+", choices=list(TESTS), default=list(TESTS))
    parser.add_argument("--sample", type=int, default=240, help="number of mutants over all modules; 0 takes all")
    parser.add_argument("--seed", type=int, default=0, help="selects another sample")
    parser.add_argument("--match", default="", help="take only mutants whose changed lines contain this text")
    parser.add_argument("--again", type=Path, help="take only those that survived according to this file of --out")
    parser.add_argument("--timeout", type=float, default=120, help="seconds that a mutant may take longer than thrice")
    parser.add_argument("--clean", type=Path, help="file for the times of the unchanged tests, which run if it is new")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds of tests for each; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--out", type=Path, help="write one JSON line for each mutant to this file")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    return parser.parse_args(arguments)


def sample(found: Mapping[str, Sequence[Mutant]], size: int, seed: int) -> list[Mutant]:
    """A share of each module's mutants, at least ten of each; which ones does not depend on the other lines."""

    def rank(mutant: Mutant) -> str:
        return hashlib.sha256(repr((seed, *mutant.key)).encode()).hexdigest()

    total = sum(map(len, found.values()))
    chosen: list[Mutant] = []
    for of_module in found.values():
        wanted = len(of_module) if not size else max(-(-size * len(of_module) // max(total, 1)), 10)
        chosen += sorted(sorted(of_module, key=rank)[:wanted], key=lambda mutant: mutant.line)
    return chosen


def collect(options: argparse.Namespace) -> tuple[list[Mutant], list[tuple[Mutant, str]], list[Any]]:
    """The mutants to run, the equivalent ones with their reasons, and the entries that match no mutant any more."""
    reasons = equivalents.read()
    everything = {m: mutants((ROOT / PACKAGE / f"{m}.py").read_text(), m) for m in options.modules}
    alike = [(each, reasons[each.key]) for of in everything.values() for each in of if each.key in reasons]
    known = {each.key for each, _ in alike}
    stale = [key for key in reasons if key[0] in options.modules and key not in known]
    left = {
        module: [each for each in of if each.key not in reasons and options.match in f"{each.before}\n{each.after}"]
        for module, of in everything.items()
    }
    if options.again:
        earlier = [json.loads(line) for line in options.again.read_text().splitlines()]
        kept = {(e["module"], e["function"], e["before"], e["after"]) for e in earlier if e["status"] == "survived"}
        return [each for of in left.values() for each in of if each.key in kept], alike, stale
    return sample(left, options.sample, options.seed), alike, stale


def arguments_of(module: str) -> list[str]:
    files = [f"tests/{name}.py" for name in TESTS[module]]
    return [*(name for name in files if (ROOT / name).exists()), f"{PACKAGE}/{module}.py"]


def place(mutant: Mutant) -> str:
    return f"{PACKAGE}/{mutant.module}.py:{mutant.line} {mutant.function} ({mutant.operator})"


def table(results: Sequence[tuple[Mutant, Outcome]]) -> str:
    lines = [f"{'module':16}{'mutants':>9}{'killed':>9}{'survived':>10}{'timed out':>11}{'rate':>8}{'s each':>8}"]
    modules = list(dict.fromkeys(mutant.module for mutant, _ in results))
    for name in [*modules, "all"]:
        of = [outcome for mutant, outcome in results if name in ("all", mutant.module)]
        count = Counter(outcome.status for outcome in of)
        lines.append(
            f"{name:16}{len(of):9}{count['killed']:9}{count['survived']:10}{count['timeout']:11}"
            f"{rate(of):8.1%}{sum(outcome.seconds for outcome in of) / len(of):8.1f}"
        )
    return "\n".join(lines)


def rate(outcomes: Sequence[Outcome]) -> float:
    """The share of mutants that did not survive; a run without an end counts as killed."""
    return sum(outcome.status != "survived" for outcome in outcomes) / len(outcomes)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    chosen, alike, stale = collect(options)
    if options.list:
        for mutant in chosen:
            print(f"{place(mutant)}\n  - {mutant.before}\n  + {mutant.after}")
    for key in stale:
        print(f"{equivalents.PATH.name}: no such mutant any more: {key}", file=sys.stderr)
    if options.list or not chosen:
        print(f"{len(chosen)} mutants, {len(alike)} known to be equivalent")
        return 0
    # So that what runs is ended, and the cache removed, when the command is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with compiled_programs():
        results = measure(chosen, options)
    print(f"\n{table(results)}")
    survivors = [mutant for mutant, outcome in results if outcome.status == "survived"]
    if survivors:
        print("\nsurvivors:")
    for mutant in survivors:
        print(f"{place(mutant)}\n  - {mutant.before}\n  + {mutant.after}")
    if alike:
        print("\nequivalent, not counted:")
    for mutant, reason in alike:
        print(f"{place(mutant)}\n  - {mutant.before}\n  + {mutant.after}\n  {reason}")
    return 0 if rate([outcome for _, outcome in results]) >= LEAST else 1


def clean_times(files: Sequence[str], order: Order) -> dict[str, float]:
    """Seconds of each test of the package as it is; all must pass, or nothing could be said of a mutant."""
    found: list[Outcome] = []
    run_all([lambda: Run(None, files, ROOT, order, 3600)], 1, lambda _, outcome: found.append(outcome))
    if found[0].status != "survived":
        sys.exit(f"The tests must pass before any mutant is tried; {found[0].by or 'something'} does not.")
    print(f"unchanged: {len(found[0].times)} tests pass in {found[0].seconds:.0f} s", flush=True)
    return found[0].times


def measure(chosen: Sequence[Mutant], options: argparse.Namespace) -> list[tuple[Mutant, Outcome]]:
    """The outcome of every mutant, after a run of all tests against the package as it is."""
    import_what_tests_need(PACKAGES)
    order = Order()
    modules = list(dict.fromkeys(mutant.module for mutant in chosen))
    arguments = {module: arguments_of(module) for module in modules}
    everything = list(dict.fromkeys(itertools.chain(*arguments.values())))
    if options.clean and options.clean.exists():
        order.times = json.loads(options.clean.read_text())
    else:
        order.times = clean_times(everything, order)
        if options.clean:
            options.clean.write_text(json.dumps(order.times))

    order.budget = options.budget

    def start(mutant: Mutant) -> Run:
        of = arguments[mutant.module]
        usual = sum(seconds for test, seconds in order.times.items() if test.partition("::")[0] in of)
        fault = Fault(f"{PACKAGE}.{mutant.module}", ROOT / PACKAGE / f"{mutant.module}.py", mutant.source)
        return Run(fault, of, ROOT, order, options.timeout + 3 * usual)

    # The modules take turns, so that the first half of a run tells of all of them.
    sequence = sorted(range(len(chosen)), key=lambda number: hashlib.sha256(repr(chosen[number].key).encode()).digest())
    results: dict[int, tuple[Mutant, Outcome]] = {}
    began = time.monotonic()
    with open(options.out or os.devnull, "w") as lines:

        def done(number: int, outcome: Outcome) -> None:
            mutant = chosen[sequence[number]]
            order.learn(outcome)
            results[sequence[number]] = mutant, outcome
            entry = {**mutant._asdict(), **outcome._asdict()}
            del entry["source"], entry["times"]
            lines.write(json.dumps(entry) + "\n")
            lines.flush()
            print(
                f"{len(results)}/{len(chosen)} {time.monotonic() - began:.0f} s {outcome.status:9} "
                f"{outcome.seconds:5.1f} s {place(mutant)} {outcome.by}",
                flush=True,
            )

        run_all([lambda mutant=chosen[number]: start(mutant) for number in sequence], options.jobs, done)
    return [results[number] for number in sorted(results)]


if __name__ == "__main__":
    sys.exit(main())
