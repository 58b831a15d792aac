"""The cost as the domains and the parameters grow, and of grouping a batch by its domains."""

from collections.abc import Callable
from typing import Any

from benchmarks.speed import measure
from benchmarks.workloads import Workload, conv, mlp, native_conv

DOMAINS = (1, 4, 16, 64, 256)
WIDTHS = (64, 256, 1024, 2048)
GROUPS = (4, 16, 64)
BATCH = 256


def domains(repeats: int, least_seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """1 to 256 domains in a batch of 256."""
    forms = ("disam", "disam_grouped", "disam_accumulated", "disam_stacked")
    makers: dict[str, Callable[[int], Workload]] = {
        "mlp": lambda m: mlp(256, (256, 256), m, BATCH // m),
        "conv": lambda m: conv(16, (16, 32), m, BATCH // m),
    }
    return {
        f"{name} {m}": measure(
            make(m), forms, repeats, least_seconds, lambda text, at=f"{name}, {m} domains": say(f"{at}: {text}")
        )
        for name, make in makers.items()
        for m in DOMAINS
    }


def parameters(repeats: int, least_seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Perceptrons of growing width, 64 examples: from a step of products to a step of memory."""
    sides = ("optax_sam_opaque", "disam", "refresh_5", "ascent_1/4")
    return {
        f"width {width}": measure(
            mlp(width, (width, width), 4, 16),
            sides,
            repeats,
            least_seconds,
            lambda text, at=width: say(f"width {at}: {text}"),
        )
        for width in WIDTHS
    }


def grouping(repeats: int, least_seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Flat against grouped, for both kinds of convolution, with few domains and with many."""
    makers = {"XLA's convolution": native_conv, "as a product": conv}
    return {
        f"{name}, {m} domains": measure(
            make(32, (32, 64, 128), m, 128 // m),
            ("disam", "disam_grouped"),
            repeats,
            least_seconds,
            lambda text, at=f"{name}, {m} domains": say(f"{at}: {text}"),
        )
        for name, make in makers.items()
        for m in GROUPS
    }
