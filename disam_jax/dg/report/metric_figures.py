"""Figures of the metrics of kept logits, for light and for dark pages."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from disam_jax._labels import visible
from disam_jax.dg.report.figures import COLUMN, PAGE, look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from disam_jax.dg.report.metric_summary import MetricSummary


class Look(NamedTuple):
    """Colours on one background.

    Attributes:
        ink: Of text and axes.
        paper: Of the background.
        colour: Of what is drawn.
        other: Of what it is compared with; the two can be told apart by colour-blind readers.
    """

    ink: str
    paper: str
    colour: str
    other: str


LOOKS: Mapping[str, Look] = MappingProxyType(
    {
        "light": Look("#000000", "#ffffff", "#0072B2", "#D55E00"),
        "dark": Look("#e6edf3", "#131416", "#56B4E9", "#EE8A3A"),
    }
)
# Above these, numbers do not fit into cells, names not beside them, and cells are drawn as pixels.
MOST_NUMBERS, MOST_NAMES, MOST_SHAPES = 12, 40, 60


@contextmanager
def themed(colours: Look) -> Generator[None]:
    """The style of the report's figures in the colours of a look, until the end of the block.

    Example:
        >>> from matplotlib import rcParams
        >>> with themed(LOOKS["dark"]):
        ...     rcParams["figure.facecolor"]
        '#131416'
    """
    from matplotlib import rc_context

    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    paper = ("figure.facecolor", "axes.facecolor")
    style = {**dict.fromkeys(ink, colours.ink), **dict.fromkeys(paper, colours.paper)}
    with look(), rc_context(style):
        yield


def draw_confusion(summary: "MetricSummary", colours: Look) -> "Figure":
    """Draws a confusion matrix for each method: of each class, in a row, the percentages of the answers.

    Args:
        summary: Metric of C * C parts, in percent.
        colours: The look.

    Returns:
        A figure that belongs to no window.

    Example:
        >>> from types import SimpleNamespace
        >>> from disam_jax.dg.report.statistics import Estimate
        >>> mean = np.array([[90.0, 10.0, 30.0, 70.0]])
        >>> summary = SimpleNamespace(methods=("SAM",), classes=("cat", "dog"), overall=Estimate(mean, mean / 9))
        >>> draw_confusion(summary, LOOKS["light"]).axes[0].get_title()
        'SAM'
    """
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    number = len(summary.classes)
    # Transparent where there is nothing, so that it lies on a page of any colour.
    colour = to_rgb(colours.colour)
    scale = LinearSegmentedColormap.from_list("share", [(*colour, 0.0), (*colour, 1.0)])
    scale = scale.with_extremes(bad=(0.5, 0.5, 0.5, 0.25))
    columns = min(len(summary.methods), 2 if number <= MOST_NUMBERS else 3)
    rows = -(-len(summary.methods) // columns)
    width = COLUMN if columns == 1 else PAGE
    with themed(colours):
        figure = _new(width, 0.7 + rows * (width / columns), "Answers to the examples of each class, in percent")
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for panel, method, mean, error in zip(
            panels.flat, summary.methods, summary.overall.mean, summary.overall.error, strict=False
        ):
            matrix = np.ma.masked_invalid(mean.reshape(number, number))
            panel.pcolormesh(matrix, cmap=scale, vmin=0.0, vmax=100.0, rasterized=number > MOST_SHAPES)
            panel.set_title(visible(method))
            panel.set_aspect("equal")
            panel.set_box_aspect(1)
            if number <= MOST_NUMBERS:
                _numbers(panel, matrix, error.reshape(number, number), colours)
            _names(panel, summary.classes)
        panels.flat[0].invert_yaxis()
        for panel in panels.flat[len(summary.methods) :]:
            panel.set_visible(False)
        figure.supxlabel("answer", fontsize=8)
        figure.supylabel("class", fontsize=8)
    return figure


def _numbers(panel: "Axes", matrix: np.ma.MaskedArray, error: np.ndarray, colours: Look) -> None:
    """The numbers of a matrix in its cells, with their standard errors where there is room."""
    errors = len(matrix) <= 4 and np.isfinite(error).any()
    for (row, column), mean in np.ma.ndenumerate(matrix):
        text = f"{mean:.0f}" + (f"\n± {error[row, column]:.1f}" if errors else "")
        ink = colours.paper if mean > 60.0 else colours.ink
        size = 7 if len(matrix) <= 7 else 5
        panel.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontsize=size)


def _names(panel: "Axes", classes: tuple[str, ...]) -> None:
    number = len(classes)
    at = np.arange(number) + 0.5
    if number > MOST_NAMES:
        panel.set_xticks([])
        panel.set_yticks([])
        return
    names = [visible(name) for name in classes]
    # Long names and many names stand upright.
    upright = number > MOST_NUMBERS or max(map(len, names)) > 4
    size = 7 if number <= MOST_NUMBERS else 4
    panel.set_xticks(at, names, rotation=90 if upright else 0, fontsize=size)
    panel.set_yticks(at, names, fontsize=size)
    panel.tick_params(length=0)


def draw_reliability(summary: "MetricSummary", colours: Look) -> "Figure":
    """Draws how often the answers of each method are right by how sure they are, and how many are so sure.

    Args:
        summary: Metric with parts (bin, "share"), (bin, "confidence"), (bin, "accuracy"), in percent.
        colours: The look.

    Returns:
        A figure that belongs to no window.

    Example:
        >>> from types import SimpleNamespace
        >>> from disam_jax.dg.report.statistics import Estimate
        >>> parts = [(each, what) for each in ("low", "high") for what in ("share", "confidence", "accuracy")]
        >>> mean = np.array([[20.0, 40.0, 50.0, 80.0, 90.0, 70.0]])
        >>> summary = SimpleNamespace(methods=("SAM",), parts=parts, overall=Estimate(mean, mean / 9))
        >>> [panel.get_ylabel() for panel in draw_reliability(summary, LOOKS["dark"]).axes]
        ['right answers, %', 'examples, %']
    """
    what = np.array([part[1] for part in summary.parts])
    at = {name: what == name for name in ("share", "confidence", "accuracy")}
    bins = int(at["share"].sum())
    edges = np.linspace(0.0, 100.0, bins + 1)
    columns = min(len(summary.methods), 4)
    rows = -(-len(summary.methods) // columns)
    width = COLUMN if columns <= 2 else PAGE
    with themed(colours):
        figure = _new(width, 0.6 + 2.2 * rows, "Accuracy by confidence; error bars: ± standard error over seeds")
        panels = figure.subplots(
            2 * rows, columns, squeeze=False, sharex=True, sharey="row", height_ratios=[3.0, 1.0] * rows
        )
        for place, method in enumerate(summary.methods):
            upper, lower = (panels[2 * (place // columns) + below, place % columns] for below in (0, 1))
            mean, error = summary.overall.mean[place], summary.overall.error[place]
            upper.plot([0, 100], [0, 100], color=colours.ink, linewidth=0.8, linestyle="--")
            upper.errorbar(
                mean[at["confidence"]],
                mean[at["accuracy"]],
                error[at["accuracy"]],
                color=colours.colour,
                marker="o",
                capsize=2,
                elinewidth=0.8,
                clip_on=False,
            )
            lower.bar(edges[:-1], np.nan_to_num(mean[at["share"]]), 100.0 / bins, align="edge", color=colours.other)
            upper.set_title(visible(method))
            upper.set_xlim(0, 100)
            upper.set_ylim(0, 100)
            upper.grid()
            if place % columns == 0:
                upper.set_ylabel("right answers, %")
                lower.set_ylabel("examples, %")
            if place + columns >= len(summary.methods):
                lower.tick_params(labelbottom=True)
        for panel in panels.reshape(rows, 2, columns).swapaxes(1, 2).reshape(-1, 2)[len(summary.methods) :].flat:
            panel.set_visible(False)
        figure.supxlabel("confidence, %", fontsize=8)
    return figure


def _new(width: float, height: float, title: str) -> "Figure":
    import textwrap

    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(textwrap.fill(visible(title), int(16 * width)))
    return figure


def metric_figures(metrics: "tuple[MetricSummary, ...]", colours: Look) -> "dict[str, Figure]":
    """The figures of metrics that have one, by the names of their files.

    Args:
        metrics: Metrics.
        colours: The look.

    Returns:
        Figures.

    Example:
        >>> metric_figures((), LOOKS["dark"])
        {}
    """
    from disam_jax.dg.sweep.results_folder import metric_file

    return {metric_file(each.name): each.metric.draw(each, colours) for each in metrics if each.metric.draw is not None}
