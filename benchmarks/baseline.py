"""The stored counts of every network and form, at tiny sizes, and what a later count says against them.

XLA's counts of one version of jax are exact, so a difference is a change of the program, not noise.
"""

import json
import platform
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax

from benchmarks.counts import Counts, counts, lower, scan_flops
from benchmarks.steps import SIDES
from benchmarks.workloads import SIZES

PATH = Path(__file__).parents[1] / "tests" / "data" / "cost_baseline.json"
# More than this is a regression.
TOLERANCE = 0.01
COMMAND = "python -m benchmarks baseline"

# A program takes a second or few to compile, so the deep networks have the forms alone.
PLAIN = ("adamw", "adamw_grouped", "adamw_accumulated")
FORMS = (*PLAIN, "optax_sam_opaque", "disam", "disam_grouped", "disam_accumulated", "disam_stacked")
TABLE: Mapping[str, tuple[str, ...]] = {
    "mlp": tuple(name for name in SIDES if name not in ("refresh_5", "refresh_10")),
    "conv": (*FORMS, "gsam", "refresh_2", "ascent_1/4", "part_1/4"),
    "resnet18": FORMS,
    "resnet50": FORMS,
    "vit": FORMS,
}
# LLVM comes after everything that is counted: without its dear passes the counts are the same, in half of the time.
OPTIONS = {"xla_llvm_disable_expensive_passes": True, "xla_backend_optimization_level": 0}


@cache
def program(network: str, side: str) -> Any:
    """One tiny step, compiled."""
    work = SIZES["tiny"][network]()
    return lower(work, SIDES[side].make(work)).compile(OPTIONS)


def cost(network: str, side: str) -> Counts:
    """The counts of one tiny step."""
    return counts(program(network, side))


@cache
def scanned_flops(network: str, side: str) -> float:
    """FLOPs of one tiny step with a scan over the domains, all turns of it."""
    work = SIZES["tiny"][network]()
    return scan_flops(work, SIDES[side].make(work), cost(network, side).flops, OPTIONS)


def count(networks: Iterable[str], say: Callable[[str], None]) -> dict[str, dict[str, dict[str, float]]]:
    """FLOPs and temporary memory of some networks' part of the table."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for network in networks:
        for side in TABLE[network]:
            say(f"{network} {side}")
            seen = cost(network, side)
            found.setdefault(network, {})[side] = {"flops": seen.flops, "temp": seen.temp}
    return found


def row() -> str:
    """What the counts depend on: the version of jax and the processor's architecture."""
    return f"jax {jax.__version__} {platform.machine()}"


def read(path: Path = PATH) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def store(found: Mapping[str, Any], path: Path = PATH) -> None:
    """Writes these networks into the row of this version; all else stays."""
    stored = read(path)
    stored[row()] = {**stored.get(row(), {}), **found}
    path.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")


def regressions(network: str, side: str, stored: Mapping[str, float], seen: Counts) -> list[str]:
    """What grew by more than `TOLERANCE`, by how much, and what to do; nothing if all is well."""
    now = {"flops": seen.flops, "temp": seen.temp}
    unit = {"flops": "FLOPs", "temp": "bytes of temporary memory"}
    return [
        f"{network}, {side}: {unit[what]} grew by {100 * (now[what] / stored[what] - 1):.1f} %, from "
        f"{stored[what]:.0f} to {now[what]:.0f} ({row()}). If that is meant, store the new counts and say why: "
        f"{COMMAND}"
        for what in now
        if now[what] > (1 + TOLERANCE) * stored[what]
    ]
