"""The values that each numeric option may have: one declared range for each, and one check of it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import brief

# Runs are trained in float32. What is larger, times ten for adaptive methods or drawn from a range about it, is inf.
MOST = 1e30
# What is smaller is zero in float32.
LEAST = 1e-30


class Range(NamedTuple):
    """What a number may be.

    Attributes:
        least: Smallest value.
        most: Largest value.
        wanted: How a message calls what is right, where a value is below the range or no number.
    """

    least: float
    most: float
    wanted: str


def _whole(least: int, most: int) -> Range:
    return Range(least, most, f"at least {least}")


# Also of a hyperparameter that no option sets.
NOT_NEGATIVE = Range(0.0, MOST, "finite and not negative")


RANGES: Mapping[str, Range] = MappingProxyType(
    {
        "image_size": _whole(1, 8192),
        "context": _whole(1, 1000),
        "rank": _whole(1, 100_000),
        "views": _whole(0, 1000),
        "rho": NOT_NEGATIVE,
        "sharpness_rho": NOT_NEGATIVE,
        "lam": Range(-MOST, MOST, "finite"),
        "descent_lam": Range(-MOST, MOST, "finite"),
        # The parameters of a Beta distribution.
        "mixup_alpha": Range(LEAST, MOST, "positive and finite"),
        # A probability strictly inside, and shares.
        "quantile": Range(LEAST, 1.0 - 2.0**-24, "between 0 and 1"),
        "fishr_ema": Range(0.0, 1.0 - 2.0**-24, "in [0, 1)"),
        "beta1": Range(0.0, 1.0 - 2.0**-24, "in [0, 1)"),
        "tau": Range(0.0, 1.0, "in [0, 1]"),
        "feature_drop": Range(0.0, 1.0, "in [0, 1]"),
        "batch_drop": Range(0.0, 1.0, "in [0, 1]"),
        # Of F-SAM and AE-SAM: decays of moving averages.
        "decay": Range(0.0, 1.0 - 2.0**-24, "in [0, 1)"),
        "delta": Range(0.0, 1.0 - 2.0**-24, "in [0, 1)"),
        # A probability by which something is divided, and a share.
        "esam_beta": Range(LEAST, 1.0, "in (0, 1]"),
        "fad_alpha": Range(0.0, 1.0, "in [0, 1]"),
        "gate_steps": Range(LEAST, MOST, "positive and finite"),
        "learning_rate": Range(LEAST, MOST, "positive and finite"),
        "weight_decay": NOT_NEGATIVE,
        "warmup": Range(0.0, 1_000_000_000, "finite and not negative"),
        "fraction": Range(LEAST, 1.0, "in (0, 1]"),
        "begin": Range(0.0, 1_000_000_000, "finite and not negative"),
        "momentum": Range(0.0, 1.0, "in [0, 1]"),
        "candidates": _whole(1, 10_000),
        "dropout": Range(0.0, 1.0 - 2.0**-24, "in [0, 1)"),
        "ema_decay": Range(0.0, 1.0 - 2.0**-24, "in [0, 1)"),
        "holdout": Range(LEAST, 1.0 - 2.0**-24, "between 0 and 1"),
        "hidden": _whole(1, 1_000_000),
        "per_domain": _whole(1, 1_000_000),
        "probe": _whole(1, 1_000_000_000),
        "block": _whole(1, 1_000_000_000),
        "seeds": _whole(2, 10_000),
        # Steps are counted in int32.
        "steps": _whole(1, 1_000_000_000),
        "evaluations": _whole(1, 100_000),
        "eval_every": _whole(1, 1_000_000_000),
        "checkpoint_every": _whole(1, 1_000_000_000),
        "runs_at_once": _whole(1, 1_000_000),
        "batch": _whole(1, 1_000_000),
        "workers": _whole(1, 10_000),
        "memory": Range(LEAST, 1_000_000.0, "positive and finite"),
    }
)
# Of the whole sweep, all of which is listed in its results file.
MOST_RUNS = 1_000_000


def check_range(name: str, value: float, where: str | None = None) -> None:
    """Checks that a number is in its range.

    Args:
        name: Name of the number; one that `RANGES` has not must be finite and not negative.
        value: Number to check.
        where: How a message calls it; the option of the command line by default.

    Raises:
        InputError: If it is not, or is NaN.

    Example:
        >>> check_range("rho", 0.05)
        >>> check_range("rho", 1e300)
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: --rho must be at most 1e+30, got 1e+300
    """
    least, most, wanted = RANGES.get(name, NOT_NEGATIVE)
    if least <= value <= most:
        return
    # A range that ends at 1 names both of its ends.
    if 1.0 < most < value < float("inf"):
        wanted = f"at most {most:,}" if isinstance(most, int) else f"at most {most:g}"
    raise InputError(f"{where or '--' + name.replace('_', '-')} must be {wanted}, got {brief(value, 40)}")
