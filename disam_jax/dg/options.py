"""The options of the command line; their documentation is what `--help` shows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg


@dataclass(frozen=True)
class Compare:
    """Train ERM, SAM and DISAM by leave-one-domain-out and print what differs.

    Without --data, on scikit-learn's handwritten digits under six shifts: nothing is downloaded, and
    it takes about half a minute. With it, on a folder of images.

    Every method starts from the same weights and sees the same batches. Prints one table and writes
    results.json, table.md, domain_losses.png and domain_losses.pdf.
    """

    data: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: the digits)")] = None
    """Folder of images, DIR/domain/class/*.jpg (or .jpeg, .png)."""

    image_size: Annotated[int, arg(metavar="PIXELS")] = 64
    """Side to which the images of --data are scaled, a multiple of 4."""

    target: Annotated[
        tuple[str, ...],
        arg(metavar="DOMAIN [DOMAIN ...]", help_behavior_hint="(default: each in turn)"),
    ] = ()
    """Domains to hold out, one after the other."""

    rho: Annotated[
        float | None,
        arg(metavar="FLOAT", help_behavior_hint="(default: 0.1 for digits, 0.5 for --data)"),
    ] = None
    """Length of the perturbation of SAM and DISAM."""

    lam: Annotated[
        float | None,
        arg(metavar="FLOAT", help_behavior_hint="(default: 1, 0.4 for --penalty std)"),
    ] = None
    """Weight of the penalty in DISAM's ascent objective; negative for a control of wrong sign."""

    penalty: Literal["variance", "weighted_variance", "std"] = "variance"
    """How the ascent objective measures differences between the domain losses."""

    seeds: Annotated[int, arg(metavar="N")] = 10
    """Number of seeds, at least 2."""

    steps: Annotated[
        int | None,
        arg(metavar="N", help_behavior_hint="(default: 400 for digits, 2000 for --data)"),
    ] = None
    """Optimizer steps of each run."""

    out: Annotated[Path, arg(metavar="DIR")] = Path("disam-jax-results")
    """Folder for the files, made if need be; those of an earlier run are replaced."""
