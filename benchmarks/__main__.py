"""The one command of the speed benchmarks."""

import argparse
import datetime
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import baseline, devices, growth, report, speed, torch_peer, trace
from benchmarks.rates import rates
from benchmarks.steps import SIDES
from benchmarks.workloads import NETWORKS, SIZES, describe
from disam_jax.dg.cli.progress import progress
from disam_jax.dg.report.environment import machine, versions

PARTS = ("steps", "domains", "parameters", "grouping", "devices", "peer", "trace", "baseline")
# These are asked for by name and have results of their own.
APART = ("trace", "baseline")
RESULTS = Path(__file__).parent / "results"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures steps side by side and writes step_speed.json and step_speed.md. Parts that are measured "
        "again replace what is stored of them. `trace` measures how long a step takes to trace and compile, with "
        "results of its own; `baseline` stores the counts that the tests hold on to.",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all but the last two by default")
    parser.add_argument("--list", action="store_true", help="print the networks and the sides, and stop")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--leaves", nargs="*", type=int, default=trace.LEAVES, help="of `trace`: parameter arrays")
    parser.add_argument(
        "--domains", nargs="*", type=int, default=trace.DOMAINS, help="of `trace`: domains of 10 leaves"
    )
    parser.add_argument("--size", choices=list(SIZES), help="gpu: the paper's; by default what suits the device")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="in which networks compute")
    parser.add_argument("--repeats", type=int, default=15, help="rounds")
    parser.add_argument("--seconds", type=float, default=0.2, help="a sample is as many steps as take about this long")
    parser.add_argument("--name", help="of the results' files; by default step_speed, step_speed_gpu on a GPU")
    parser.add_argument("--title", help="of the results' page, when it is new")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; write some of {', '.join(PARTS)}")
    if options.repeats < 2:
        parser.error(f"--repeats is {options.repeats}: write at least 2, a spread needs them")
    return options


def listing(size: str) -> str:
    lines = [f"networks, at size {size}:"]
    for name in NETWORKS:
        work = describe(SIZES[size][name]())
        lines.append(f"  {name:22} {work['parameters']:>11,} parameters, batch {work['batch']}")
    return "\n".join([*lines, "sides:", *(f"  {name:22} {side.summary}" for name, side in SIDES.items())])


def recorded(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured, with the machine, the versions, the date, and how busy the machine was."""
    before = os.getloadavg()[0]
    found = measure()
    return {
        **found,
        "machine": machine(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "load": [before, os.getloadavg()[0]],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    on_cpu = jax.default_backend() == "cpu"
    size = options.size or ("cpu" if on_cpu else "gpu")
    if options.list:
        print(listing(size))
        return
    parts = options.parts or [part for part in PARTS if part not in APART]
    name = options.name or ("step_speed" if on_cpu else f"step_speed_{jax.default_backend()}")
    path = options.out / f"{name}.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if not results and options.title:
        words = sys.argv[1:] if arguments is None else arguments
        results = {"title": options.title, "command": f"{report.COMMAND} {shlex.join(words)}"}

    def keep(part: str, entry: dict[str, Any], of: str | None = None) -> None:
        if of is None:
            results[part] = entry
        else:
            stored = {**results.get(part, {}), of: entry}
            results[part] = {each: stored[each] for each in sorted(stored, key=_place)}
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_name(f"{name}.md").write_text(report.page(results))

    with progress() as (show, *_):
        say = lambda text: show(text, 0.0, 1.0)
        if "steps" in parts:
            for network in options.networks:
                work = SIZES[size][network]()._replace(dtype=options.dtype)
                entry = recorded(
                    lambda work=work, network=network: {
                        **speed.measure(
                            work,
                            options.sides,
                            options.repeats,
                            options.seconds,
                            lambda text: say(f"{network}: {text}"),
                        ),
                        "rates": rates(options.dtype),
                    }
                )
                keep("steps", entry, network if options.dtype == "float32" else f"{network} {options.dtype}")
        for part in ("domains", "parameters", "grouping"):
            if part in parts:
                grow = getattr(growth, part)
                keep(part, recorded(lambda grow=grow: {"measured": grow(options.repeats, options.seconds, say)}))
        if "devices" in parts:
            say("devices")
            keep("devices", recorded(lambda: {"measured": devices.in_a_process()}))
        if "peer" in parts:
            try:
                import torch  # noqa: F401
            except ModuleNotFoundError:
                print("peer: skipped, torch is not installed: pip install torch", file=sys.stderr)
            else:
                keep(
                    "peer",
                    recorded(lambda: {"measured": torch_peer.peers(size, options.repeats, options.seconds, say)}),
                )
        if "trace" in parts:
            wanted = trace.cases(options.leaves, options.domains)
            print(trace.store(trace.run(wanted, options.repeats, say, recorded), options.out))
        if "baseline" in parts:
            if not on_cpu:
                sys.exit("baseline: the stored counts are of a CPU: run it with JAX_PLATFORMS=cpu")
            baseline.store(baseline.count(options.networks, say))
            print(f"stored the counts of {baseline.row()} in {baseline.PATH}")
    if not set(parts) <= set(APART):
        print(path.with_name(f"{name}.md"))


def _place(name: str) -> tuple[int, str]:
    network, _, dtype = name.partition(" ")
    return NETWORKS.index(network), dtype


if __name__ == "__main__":
    main()
