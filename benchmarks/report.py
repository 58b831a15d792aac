"""The page of the stored results."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.steps import SIDES

TITLE, COMMAND = "The speed of a step", "python -m benchmarks"
TITLES = {
    "steps": "A step against a plain one",
    "domains": "As domains grow, at a fixed batch",
    "parameters": "As parameters grow, at a fixed batch",
    "grouping": "Grouped against flat",
    "devices": "As devices grow with the batch",
    "peer": "Beside PyTorch",
}


# On a GPU, where XLA's count would mislead.
NOT_COUNTED = "-"


def page(results: Mapping[str, Any]) -> str:
    """Markdown of everything that is stored."""
    parts = [f"# {results.get('title', TITLE)}", "", f"    {results.get('command', COMMAND)}", "", *HEAD]
    for name, section in SECTIONS.items():
        if name in results:
            parts += ["", f"## {TITLES[name]}", "", *section(results[name])]
    return "\n".join(parts) + "\n"


HEAD = (
    "Whole optimizer steps, with gradient and AdamW. All sides run in one process and take turns; each is compiled and",
    "warm before it is timed, and every sample waits for its results. Times are medians (quartiles) over the rounds. A",
    'ratio compares a step with the plain step of the same round. "Cores" is the same ratio for the seconds that all',
    "cores together spent on the process, which other work on the machine affects less (on a GPU it says nothing).",
    "FLOPs, bytes and memory are XLA's counts for the compiled program and have no noise. On a GPU its FLOPs leave out",
    "the products and convolutions that a library computes, so they are not shown. FLOPs of `refresh_every` are the",
    "average over its steps; those of a scan over M domains cover all its turns. Bytes are those of one program: for",
    "`refresh_every` the more expensive step, for a scan one turn. A form other than the flat one is also compared",
    "with a plain step of the same form, which its user would take without DISAM.",
)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}", *(f"| {' | '.join(row)} |" for row in rows)]


def triple(spread: Mapping[str, float], digits: int = 2, scale: float = 1.0) -> str:
    median, lower, upper = (f"{scale * spread[name]:.{digits}f}" for name in ("median", "lower", "upper"))
    return f"{median} ({lower}, {upper})"


def mib(size: float) -> str:
    return f"{size / 2**20:.1f}"


def record(entry: Mapping[str, Any]) -> str:
    """Where and with what it was measured."""
    machine, load = entry["machine"], entry["load"]
    versions = ", ".join(f"{name} {version}" for name, version in entry["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['device']}; {entry['date']}; load average "
        f"{load[0]:.1f} before and {load[1]:.1f} after; {versions}."
    )


def _shape(work: Mapping[str, Any]) -> str:
    m, n, *shape = work["batch"]
    size = " x ".join(map(str, shape))
    return f"{work['parameters']:,} parameters, {m} domains x {n} examples of {size}, {work['dtype']}"


def _steps(entries: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, entry in entries.items():
        rates, counted = entry["rates"], entry["backend"] == "cpu"
        rows = [
            (
                f"{side}: {SIDES[side].summary}" if side in SIDES else side,
                *_ratios(each, counted),
                triple(each["seconds"], 1, 1e3),
                f"{each['flops'] / 1e9:.2f}" if counted else NOT_COUNTED,
                f"{each['bytes'] / 1e9:.2f}",
                mib(each["temp"]),
                mib(each["peak"]),
                f"{each['flops_per_second'] / 1e9:.0f}" if counted else NOT_COUNTED,
                f"{each['compile_seconds']:.0f}",
            )
            for side, each in entry["sides"].items()
        ]
        head = (
            *("", "time / plain", "cores / plain", "FLOPs / plain", "ms", "GFLOP", "GB", "temp, MiB", "peak, MiB"),
            *("GFLOP/s", "compile, s"),
        )
        samples = next(iter(entry["sides"].values()))["samples"]
        own = [
            (f"{side} / {each['own']['plain']}", *_ratios(each["own"], counted))
            for side, each in entry["sides"].items()
            if "own" in each
        ]
        if own:
            own = ["", *table(("against the plain step of the same form", "time", "cores", "FLOPs"), own)]
        lines += [
            f"### {name}: {_shape(entry['workload'])}",
            "",
            *table(head, rows),
            *own,
            "",
            f"{samples} rounds. Measured at best: {rates['flops'] / 1e9:.0f} GFLOP/s in a matrix product, "
            f"{rates['bytes'] / 1e9:.1f} GB/s in a sum of vectors. {record(entry)}",
            "",
        ]
    return lines[:-1]


def _ratios(each: Mapping[str, Any], counted: bool = True) -> tuple[str, str, str]:
    flops = f"{each['flops_ratio']:.3f}" if counted else NOT_COUNTED
    return triple(each["time_ratio"]), triple(each["cores_ratio"]), flops


def _growth(entries: Mapping[str, Any]) -> list[str]:
    entry = entries["measured"]
    forms = any("own" in each for found in entry.values() for each in found["sides"].values())
    rows = [
        (
            name,
            side,
            *_ratios(each),
            *(_ratios(each.get("own", each)) if forms else ()),
            triple(each["seconds"], 2, 1e3),
            mib(each["temp"]),
        )
        for name, found in entry.items()
        for side, each in found["sides"].items()
        if side != "adamw"
    ]
    own = ("time / its form's", "cores / its form's", "FLOPs / its form's") if forms else ()
    head = ("", "side", "time / plain", "cores / plain", "FLOPs / plain", *own, "ms", "temp, MiB")
    return [*table(head, rows), "", record(entries)]


def _grouping(entries: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, found in entries["measured"].items():
        grouped, flat = found["sides"]["disam_grouped"], found["sides"]["disam"]
        rows.append(
            (
                name,
                triple(grouped["time_ratio_to_flat"]),
                triple(grouped["cores_ratio_to_flat"]),
                f"{grouped['flops'] / flat['flops']:.3f}",
                f"{grouped['bytes'] / flat['bytes']:.3f}",
                triple(flat["cores_ratio"]),
                triple(found["sides"]["adamw"]["seconds"], 0, 1e3),
            )
        )
    head = ("", "time, grouped / flat", "cores", "FLOPs", "bytes", "cores, flat / plain", "plain step, ms")
    return [
        "The conv net with batch normalisation, 128 images of 32 pixels:",
        "",
        *table(head, rows),
        "",
        record(entries),
    ]


def _devices(entries: Mapping[str, Any]) -> list[str]:
    measured = entries["measured"]
    counts = list(next(iter(measured.values())))
    size = next(iter(measured.values()))[counts[0]]["parameter_bytes"]
    rows = [
        (
            side,
            *(f"{each[n]['bytes'] / size:.3f}" for n in counts),
            f"{each[counts[-1]]['bytes']:.0f}",
            f"{each[counts[-1]]['flops_per_device'] / each[counts[0]]['flops_per_device']:.3f}",
        )
        for side, each in measured.items()
    ]
    head = (
        "",
        *(f"{n} devices" for n in counts),
        f"bytes, {counts[-1]} devices",
        f"FLOPs per device, {counts[-1]} / {counts[0]}",
    )
    return [
        "What each device puts into the collectives of a step, over the bytes of the parameters (a perceptron of "
        f"{size / 4:,.0f} parameters; 4 domains, 4 examples of each on every device):",
        "",
        *table(head, rows),
        "",
        record(entries),
    ]


PEER_RATIOS = ("disam / plain", "disam / plain, cores")


def _peer(entries: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            name,
            *(
                triple(found["seconds"][f"{of} {side}"], 1, 1e3)
                for of in ("jax", "torch")
                for side in ("adamw", "disam")
            ),
            *(triple(found[what][of]) for what in PEER_RATIOS for of in ("jax", "torch")),
            *(triple(found["torch / jax"][side]) for side in ("adamw", "disam")),
        )
        for name, found in entries["measured"].items()
    ]
    head = (
        *("", "JAX plain, ms", "JAX disam, ms", "torch plain, ms", "torch disam, ms"),
        *(f"{what}, {of}" for what in PEER_RATIOS for of in ("JAX", "torch")),
        *("torch / JAX, plain", "torch / JAX, disam"),
    )
    first = next(iter(entries["measured"].values()))
    where = f"on {first['device']}, " if "device" in first else ""
    torch = f"torch {first['torch']}, {where}{first['threads']} threads, eager."
    return [*table(head, rows), "", f"{torch} {record(entries)}"]


SECTIONS = {
    "steps": _steps,
    "domains": _growth,
    "parameters": _growth,
    "grouping": _grouping,
    "devices": _devices,
    "peer": _peer,
}
