"""The figure: the domains' losses over training, SAM and DISAM side by side."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from disam_jax.dg.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart, without its yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", ":", "-.")


def draw_losses(curves: Mapping[str, Estimate], steps: np.ndarray, domain_names: Sequence[str], title: str) -> "Figure":
    """Draws a panel for each method, a line for each domain, on one axis of losses.

    Args:
        curves: for each method, Estimate [P, D] of the losses; NaN where a domain has none.
        steps: int [P].
        domain_names: D names.
        title: over the panels.

    Returns:
        A figure that belongs to no window.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(9.0, 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for panel, (method, curve) in zip(panels, curves.items(), strict=True):
        for d, name in enumerate(domain_names):
            mean, error = curve.mean[:, d], curve.error[:, d]
            if not np.isfinite(mean).any():
                continue
            look = {"color": COLOURS[d % len(COLOURS)]}
            line = LINES[d // len(COLOURS) % len(LINES)]
            panel.plot(steps, mean, line, **look, label=name, linewidth=1.5)
            panel.fill_between(steps, mean - error, mean + error, **look, alpha=0.25, linewidth=0)
        panel.set_title(method)
        panel.set_xlabel("optimizer steps")
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_xlim(0, steps[-1])
        panel.grid(alpha=0.3, which="both", linewidth=0.5)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mean loss of a source domain at w, in nats")
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", frameon=False, title="domain")
    figure.suptitle(title, fontsize="medium")
    return figure


def render(figure: "Figure", suffix: str) -> bytes:
    """The figure as the bytes of a file, the same bytes for the same figure.

    Args:
        figure: to save.
        suffix: "png" or "pdf".

    Returns:
        Contents of the file.
    """
    buffer = io.BytesIO()
    metadata = {"CreationDate": None} if suffix == "pdf" else None
    figure.savefig(buffer, format=suffix, metadata=metadata)
    return buffer.getvalue()
