"""The figures, at the size at which a paper prints them: 3.5 inches are a column, 7 a page."""

import io
import textwrap
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from disam_jax._labels import curve_label, name_legend, visible
from disam_jax.dg.report.scores import QUANTITIES
from disam_jax.dg.report.sensitivity import Grid, stretches, usable
from disam_jax.dg.report.statistics import Estimate
from disam_jax.dg.report.summary import PLAIN, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart, without its yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", ":", "-.")
COLUMN, PAGE = 3.5, 7.0
FOREST = (("accuracy", "accuracy, points"), ("spread", "spread at w, nats"), ("worst_loss", "worst loss, nats"))
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "figure.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    # A dollar in the name of a domain is no formula.
    "text.parse_math": False,
    # Fonts as printers ask for them, instead of bitmaps of letters.
    "pdf.fonttype": 42,
    # Names of parts that do not change from one drawing to the next.
    "svg.hashsalt": "disam-jax",
}


@contextmanager
def look() -> Generator[None]:
    """Matplotlib's own defaults and `STYLE`, whatever the user's settings, until the end of the block.

    Example:
        >>> from matplotlib import rcParams
        >>> with look():
        ...     rcParams["font.size"]
        8.0
    """
    from matplotlib import rc_context, style

    with rc_context(), style.context(["default", STYLE]):
        yield


def render(figure: "Figure", suffix: str) -> bytes:
    """The figure as the bytes of a file, the same bytes for the same figure.

    Args:
        figure: to save.
        suffix: "png", "pdf" or "svg".

    Returns:
        Contents of the file.

    Example:
        >>> from matplotlib.figure import Figure
        >>> render(Figure(), "pdf")[:5]
        b'%PDF-'
    """
    buffer = io.BytesIO()
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(suffix)
    with look():
        figure.savefig(buffer, format=suffix, metadata=metadata, dpi=200)
    return buffer.getvalue()


def _style(place: int) -> dict[str, Any]:
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": LINES[place // len(COLOURS) % len(LINES)]}


def _band(panel: "Axes", x: np.ndarray, each: Estimate, place: int, label: str, **more: Any) -> None:
    """A line of means in a band of one standard error to either side."""
    panel.plot(x, each.mean, **_style(place), label=curve_label(label), **more)
    low, high = each.mean - each.error, each.mean + each.error
    panel.fill_between(x, low, high, color=COLOURS[place % len(COLOURS)], alpha=0.2, linewidth=0)


def _new(width: float, height: float, title: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(textwrap.fill(visible(title), int(16 * width)))
    return figure


def _legend(figure: "Figure", panel: "Axes", width: float, title: str | None = None) -> None:
    """Under the panels, in as many columns as the longest label allows."""
    handles, labels = panel.get_legend_handles_labels()
    if handles:
        columns = max(1, min(len(labels), int(14 * width / (5 + max(map(len, labels))))))
        name_legend(
            figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title, columnspacing=1.2)
        )


def _log_losses(panel: "Axes", losses: np.ndarray) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if not np.isfinite(losses).any():
        return  # every run diverged before it was measured, and an empty axis cannot be logarithmic
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def draw_losses(summary: Summary, methods: Sequence[str]) -> "Figure":
    """Draws a panel for each method, a line for each domain, on one axis of losses.

    Args:
        summary: of the runs.
        methods: names of those to draw.

    Returns:
        A figure that belongs to no window.

    Example:
        >>> from disam_jax.dg.report.summary import summarise
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM")
        >>> [panel.get_title() for panel in draw_losses(summarise(results, "last"), ["ERM"]).axes]
        ['ERM']
    """
    curves = summary.curves
    columns = min(len(methods), 2 if len(methods) <= 2 else 4)
    rows = -(-len(methods) // columns)
    width = COLUMN if columns <= 2 else PAGE
    with look():
        figure = _new(width, 0.7 + 1.7 * rows + 0.12 * len(summary.domains), f"{summary.title}; band: ± standard error")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for panel, method in zip(panels.flat, methods, strict=False):
            k = summary.methods.index(method)
            for d, name in enumerate(summary.domains):
                each = Estimate(curves.domain_losses.mean[k, :, d], curves.domain_losses.error[k, :, d])
                if np.isfinite(each.mean).any():
                    _band(panel, curves.steps, each, d, name)
            panel.set_title(_with_diverged(summary, method))
            _log_losses(panel, curves.domain_losses.mean[[summary.methods.index(name) for name in methods]])
            panel.set_xlim(0, curves.steps[-1])
            panel.grid(which="both")
        for panel in panels.flat[len(methods) :]:
            panel.set_visible(False)
        for place, panel in enumerate(panels.flat[: len(methods)]):
            if place + columns >= len(methods):
                panel.tick_params(labelbottom=True)
        for panel in panels[-1]:
            panel.set_xlabel("optimizer steps")
        figure.supylabel("loss of a source domain at w, nats", fontsize=8)
        _legend(figure, panels.flat[0], width, "domain")
    return figure


def _with_diverged(summary: Summary, method: str) -> str:
    diverged = summary.scores.diverged[summary.methods.index(method)]
    return visible(summary.labels[method]) + (
        f" ({diverged.sum()} of {diverged.size} diverged)" if diverged.any() else ""
    )


def convergence_groups(summary: Summary, at_most: int = 7) -> list[list[str]]:
    """Which methods share a pair of panels: all if they are few; else each base with its variants and ERM.

    Args:
        summary: of the runs.
        at_most: lines in a panel.

    Returns:
        Names; every method is in one group at least.

    Example:
        >>> from types import SimpleNamespace
        >>> summary = SimpleNamespace(methods=("ERM", "SAM", "ASAM", "DISAM"), variants=(("DISAM", "SAM"),))
        >>> convergence_groups(summary, at_most=3)
        [['ERM', 'SAM', 'DISAM'], ['ERM', 'ASAM']]
    """
    if len(summary.methods) <= at_most:
        return [list(summary.methods)]
    plain = [PLAIN] if PLAIN in summary.methods else []
    bases = dict.fromkeys(base for _, base in summary.variants)
    families = [[base, *(name for name, of in summary.variants if of == base)] for base in bases]
    alone = [name for name in summary.methods if name != PLAIN and not any(name in family for family in families)]
    room = at_most - len(plain)
    families += [alone[first : first + room] for first in range(0, len(alone), room)]
    return [[*plain, *family[first : first + room]] for family in families for first in range(0, len(family), room)]


def draw_convergence(summary: Summary, groups: Sequence[Sequence[str]] | None = None) -> "Figure":
    """Draws the mean source loss and the held-out accuracy of the chosen runs along training.

    Args:
        summary: of the runs.
        groups: for each row of panels, the names of its methods; all methods by default.

    Returns:
        A figure that belongs to no window.

    Example:
        >>> from disam_jax.dg.report.summary import summarise
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM")
        >>> [panel.get_ylabel() for panel in draw_convergence(summarise(results, "last")).axes]
        ['source loss, nats', 'accuracy, %']
    """
    groups = convergence_groups(summary) if groups is None else groups
    curves = summary.curves
    with look():
        figure = _new(
            PAGE, 0.5 + (2.1 if len(groups) <= 4 else 1.4) * len(groups), f"{summary.title}; band: ± standard error"
        )
        panels = figure.subplots(len(groups), 2, squeeze=False, sharex=True, sharey="col")
        for (left, right), group in zip(panels, groups, strict=True):
            for place, method in enumerate(group):
                k = summary.methods.index(method)
                label = _with_diverged(summary, method)
                _band(left, curves.steps, Estimate(curves.loss.mean[k], curves.loss.error[k]), place, label)
                _band(right, curves.steps, Estimate(curves.accuracy.mean[k], curves.accuracy.error[k]), place, label)
            _log_losses(left, curves.loss.mean)
            left.set_ylabel("source loss, nats")
            right.set_ylabel("accuracy, %")
            name_legend(right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5)))
            for panel in (left, right):
                panel.set_xlim(0, curves.steps[-1])
                panel.grid()
        for panel, what in zip(panels[0], ("mean loss of the sources", "accuracy on the held-out domain"), strict=True):
            panel.set_title(what)
        for panel in panels[-1]:
            panel.set_xlabel("optimizer steps")
    return figure


def _rho_axis(panel: "Axes", values: np.ndarray) -> None:
    """A logarithmic axis with a tick at each rho that was run; rho 0 stands left of the smallest other one."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    values = np.unique(values)
    positive = values[values > 0.0]
    if len(positive) and values[0] <= 0.0:
        panel.set_xscale("symlog", linthresh=float(positive[0]), linscale=0.5)
    elif len(positive):
        panel.set_xscale("log")
    panel.set_xlabel("rho")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_locator(FixedLocator(values[:: -(-len(values) // 6)].tolist()))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def draw_sensitivity(grids: Sequence[Grid], labels: Mapping[str, str], title: str) -> "Figure":
    """Draws the accuracy against rho, a line for each lam, and against lam, a line for each rho.

    Args:
        grids: one row of panels for each.
        labels: what to call each method.
        title: over the panels.

    Returns:
        A figure that belongs to no window.

    Example:
        >>> each = Estimate(np.array([60.0, 61.0]), np.array([0.5, 0.5]))
        >>> grid = Grid("SAM", np.array([0.05, 0.1]), np.zeros(2), np.array([True, False]), each, None)
        >>> figure = draw_sensitivity([grid], {"SAM": "SAM"}, "toy")
        >>> [panel.get_xlabel() for panel in figure.axes if panel.get_visible()]
        ['rho']
    """
    from matplotlib.ticker import FixedLocator, StrMethodFormatter

    with look():
        figure = _new(
            PAGE, 0.5 + 2.2 * len(grids), f"{title}; last step, mean over the targets, bars: ± standard error"
        )
        panels = figure.subplots(len(grids), 2, squeeze=False, sharey="row")
        for pair, grid in zip(panels, grids, strict=True):
            for panel, along, other in zip(pair, ("rho", "lam"), ("lam", "rho"), strict=True):
                for place, value in enumerate(np.unique(getattr(grid, other))):
                    at = grid.line(other, value)
                    _dots(panel, getattr(grid, along)[at], _take(grid.accuracy, at), place, f"{other} {value:g}")
                panel.set_visible(len(np.unique(getattr(grid, along))) > 1)
                panel.set_xlabel(along)
                panel.set_title(visible(labels[grid.method]))
                panel.grid()
                name_legend(panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5)))
            _rho_axis(pair[0], grid.rho)
            lams = np.unique(grid.lam)
            pair[1].xaxis.set_major_locator(FixedLocator(lams[:: -(-len(lams) // 6)].tolist()))
            pair[1].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            pair[0].set_ylabel("held-out accuracy, %")
    return figure


def _take(each: Estimate, at: np.ndarray) -> Estimate:
    return Estimate(each.mean[at], each.error[at])


def _dots(panel: "Axes", x: np.ndarray, each: Estimate, place: int, label: str) -> None:
    # Points that were measured, with what is between them only drawn to guide the eye.
    panel.errorbar(
        x, each.mean, each.error, **_style(place), marker="o", capsize=2, elinewidth=0.8, label=curve_label(label)
    )


def draw_usable_range(grids: Sequence[Grid], labels: Mapping[str, str], title: str) -> "Figure":
    """Draws the gain over ERM against rho and, below, for which rho it is more than one standard error above zero.

    Each method has the lam with the most values of rho, its default if that has as many; ERM has its own defaults.

    Args:
        grids: of the methods to draw, each with a gain.
        labels: what to call each method.
        title: over the panels.

    Returns:
        A figure that belongs to no window.

    Example:
        >>> each = Estimate(np.array([1.0, 0.1]), np.array([0.5, 0.5]))
        >>> grid = Grid("SAM", np.array([0.05, 0.1]), np.zeros(2), np.array([True, False]), each, gain=each)
        >>> figure = draw_usable_range([grid], {"SAM": "SAM"}, "toy")
        >>> [label.get_text() for label in figure.axes[1].get_yticklabels()]
        ['SAM']
    """
    with look():
        width = COLUMN if len(grids) <= 7 else PAGE
        figure = _new(width, 2.9 + 0.32 * len(grids), f"{title}; last step, mean over targets, band: ± standard error")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.0, 0.2 + 0.17 * len(grids)))
        upper.axhline(0.0, color="black", linewidth=0.8)
        for place, grid in enumerate(grids):
            at = grid.line("lam", grid.drawn_lam)
            rho, gain = grid.rho[at], _take(_gain(grid), at)
            _band(upper, rho, gain, place, f"{labels[grid.method]}, lam {grid.drawn_lam:.3g}", marker="o")
            good = usable(gain)
            colour = COLOURS[place % len(COLOURS)]
            for first, end in stretches(good):
                lower.plot(
                    rho[[first, end]], [place, place], color=colour, linewidth=4, alpha=0.35, solid_capstyle="round"
                )
            lower.plot(rho[good], np.full(good.sum(), place), "o", color=colour)
            lower.plot(
                rho[~good], np.full((~good).sum(), place), "o", color=colour, fillstyle="none", markeredgewidth=0.8
            )
        _rho_axis(lower, np.concatenate([grid.rho for grid in grids]))
        upper.set_xlabel("")
        upper.set_ylabel(f"accuracy above {PLAIN}'s, points")
        upper.grid()
        lower.set_yticks(range(len(grids)), [visible(labels[grid.method]) for grid in grids])
        lower.set_ylim(len(grids) - 0.4, -0.6)
        lower.spines["left"].set_visible(False)
        lower.tick_params(axis="y", length=0)
        lower.set_xlabel(f"rho (filled: above {PLAIN} by more than a standard error)", fontsize=7)
        _legend(figure, upper, width)
    return figure


def _gain(grid: Grid) -> Estimate:
    if grid.gain is None:
        raise ValueError(f"no {PLAIN} among the results: {grid.method} has no gain over it")
    return grid.gain


def draw_differences(summary: Summary, quantities: Sequence[tuple[str, str]] = FOREST) -> "Figure":
    """Draws each paired difference as a dot with its 95 % interval, filled if the corrected p is below 0.05.

    Args:
        summary: with at least one comparison.
        quantities: for each panel, one of `scores.QUANTITIES` and its axis label.

    Returns:
        A figure that belongs to no window.

    Example:
        >>> from disam_jax.dg.report.summary import summarise
        >>> from disam_jax.dg.testing import toy_results
        >>> results = toy_results("ERM", "SAM")
        >>> [label.get_text() for label in draw_differences(summarise(results, "last")).axes[0].get_yticklabels()]
        ['SAM - ERM']
    """
    rows = [
        visible(f"{summary.labels[each.method]} - {summary.labels[each.baseline]}")
        for each in summary.comparisons[QUANTITIES[0]]
    ]
    with look():
        figure = _new(PAGE, 1.1 + 0.2 * len(rows), f"{summary.title}; paired by seed, 95 % intervals")
        panels = figure.subplots(1, len(quantities), sharey=True, squeeze=False)[0]
        for panel, (quantity, label) in zip(panels, quantities, strict=True):
            panel.axvline(0.0, color="black", linewidth=0.8)
            for place, each in enumerate(summary.comparisons[quantity]):
                mean, (low, high) = float(each.difference.mean), each.interval
                if not np.isfinite(mean):
                    panel.text(
                        0.5,
                        place,
                        "diverged",
                        transform=panel.get_yaxis_transform(),
                        ha="center",
                        va="center",
                        fontsize=7,
                    )
                    continue
                colour = COLOURS[0] if (each.method, each.baseline) in summary.variants else COLOURS[-1]
                panel.plot([low, high], [place, place], color=colour)
                panel.plot(mean, place, "o", color=colour, markerfacecolor=colour if each.shown else "white")
            panel.set_xlabel(label)
            panel.margins(x=0.1)
            panel.locator_params(axis="x", nbins=4)
            panel.grid(axis="x")
        panels[0].set_yticks(range(len(rows)), rows)
        panels[0].set_ylim(len(rows) - 0.4, -0.6)
        figure.supxlabel("difference; filled: corrected p below 0.05", fontsize=7)
    return figure
