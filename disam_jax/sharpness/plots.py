"""The measures as figures, at the size at which a paper prints them: 3.5 inches are a column, 7 a page.

Every function returns a ``matplotlib.figure.Figure`` that belongs to no window and no pyplot: save it with
``figure.savefig(path)``, or leave it as the last line of a notebook's cell. The user's settings are not read.
"""

import textwrap
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from disam_jax._labels import curve_label, name_legend, visible
from disam_jax.sharpness._hessian import HessianEigenvalues
from disam_jax.sharpness._landscape import Landscape
from disam_jax.sharpness._similarity import GradientSimilarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart, without its yellow and its black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINES = ("-", "--", ":", "-.")
COLUMN, PAGE = 3.5, 7.0
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
    "savefig.dpi": 200,
}


def draw_landscape(landscape: Landscape, *, levels: Sequence[float] | int = 14, title: str = "") -> "Figure":
    """Draws the losses over a plane: a panel for each domain and one for the mixture, with the same contour levels.

    Args:
      landscape: Over a plane.
      levels: Losses at which there is a contour, ascending; or how many, spaced by ratio from the smallest loss to the
        largest where all are positive, else evenly. Shared by the panels, so that their colours can be compared.
      title: Over the panels.

    Returns:
      A figure. The cross is w; white is where the loss is not finite.

    Raises:
      ValueError: For a landscape along a line, or without two different finite losses.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from disam_jax import sharpness
      >>> loss_fn = lambda w, x: jnp.sum((w[None] - x) ** 2, axis=1)
      >>> surface = sharpness.loss_surface(loss_fn, jnp.array([[0.0, 1.0], [2.0, 1.0]]), [0, 1], names=("art", "photo"))
      >>> directions = sharpness.random_directions(jnp.ones(2), jax.random.key(0), vectors="norm")
      >>> plane = sharpness.loss_landscape(surface, jnp.ones(2), directions, points=5)
      >>> [panel.get_title() for panel in sharpness.plots.draw_landscape(plane).axes[:3]]
      ['art', 'photo', 'mixture']
    """
    _, y = _need(landscape, dimensions=2)
    names, values = _panels(landscape)
    edges = _levels(values, levels)
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    with look():
        from matplotlib.colors import BoundaryNorm

        # Square panels fill the width that the colour bar and the labels leave.
        figure = _new(PAGE, 0.6 + rows * (0.25 + (PAGE - 1.5) / columns), title)
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        # Each band between two levels has its own colour, on every panel the same one.
        beyond = "neither" if isinstance(levels, int) else "both"
        norm = BoundaryNorm(edges, 256, extend=beyond)
        drawn: Any = None
        for panel, name, losses in zip(panels.flat, names, values, strict=False):
            masked = np.ma.masked_invalid(losses)
            drawn = panel.contourf(landscape.x, y, masked, levels=edges, norm=norm, cmap="cividis", extend=beyond)
            panel.contour(landscape.x, y, masked, levels=edges, colors="black", linewidths=0.3, alpha=0.6)
            panel.plot(0, 0, "+", color="white", markersize=6, markeredgewidth=1.2)
            panel.set_aspect("equal")
            panel.set_title(name)
        for place, panel in enumerate(panels.flat):
            panel.set_visible(place < len(names))
            # What stands under the last row may be hidden, so the panel above it has the numbers.
            panel.tick_params(labelbottom=place + columns >= len(names))
        figure.colorbar(drawn, ax=panels, label="loss", format="{x:.3g}", shrink=0.9, aspect=30)
        figure.supxlabel("step along the first direction", fontsize=8)
        figure.supylabel("along the second", fontsize=8)
    return figure


def draw_curves(landscape: Landscape, *, log: bool = False, title: str = "") -> "Figure":
    """Draws the losses along a line: a curve for each domain, the held-out one dashed, and a black one for the mixture.

    Args:
      landscape: Along a line.
      log: Whether the axis of losses is logarithmic.
      title: Over the panel.

    Returns:
      A figure; a curve has a gap where the loss is not finite.

    Raises:
      ValueError: For a landscape over a plane, or without finite losses.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from disam_jax import sharpness
      >>> loss_fn = lambda w, x: jnp.sum((w[None] - x) ** 2, axis=1)
      >>> surface = sharpness.loss_surface(loss_fn, jnp.array([[0.0, 1.0], [2.0, 1.0]]), [0, 1], names=("art", "photo"))
      >>> line = sharpness.loss_landscape(surface, jnp.ones(2), [jnp.array([1.0, 0.0])], points=5)
      >>> len(sharpness.plots.draw_curves(line).axes[0].lines)   # w, two domains, the mixture
      4
    """
    _need(landscape, dimensions=1)
    names, values = _panels(landscape)
    with look():
        figure = _new(COLUMN, 2.5 + 0.13 * -(-len(names) // 2), title)
        panel = figure.subplots()
        panel.axvline(0.0, color="black", linewidth=0.6, alpha=0.4)
        for place, (name, losses) in enumerate(zip(names, values, strict=True)):
            style: dict[str, Any] = {"color": COLOURS[place % len(COLOURS)], "linestyle": _line(place)}
            if place == landscape.held_out:
                style["linestyle"] = (0, (4, 1.5))
            if place == len(names) - 1:
                style = {"color": "black", "linewidth": 1.8, "zorder": 1.5}
            panel.plot(landscape.x, np.where(np.isfinite(losses), losses, np.nan), label=curve_label(name), **style)
        if log:
            _logarithmic(panel)
        panel.set_xlim(landscape.x[0], landscape.x[-1])
        panel.set_xlabel("step along the direction")
        panel.set_ylabel("loss")
        panel.grid()
        _legend(figure, panel, COLUMN)
    return figure


def draw_spectrum(eigenvalues: HessianEigenvalues, *, title: str = "") -> "Figure":
    """Draws the largest eigenvalues as bars, grouped by domain and descending, the mixture last.

    Args:
      eigenvalues: From `top_hessian_eigenvalues`.
      title: Over the panel.

    Returns:
      A figure. Whiskers: an eigenvalue lies within them; there are none where they would be too short to see.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from disam_jax import sharpness
      >>> loss_fn = lambda w, x: jnp.sum((w[None] - x) ** 2, axis=1)
      >>> surface = sharpness.loss_surface(loss_fn, jnp.array([[0.0, 1.0], [2.0, 1.0]]), [0, 1], names=("art", "photo"))
      >>> top = sharpness.top_hessian_eigenvalues(surface, jnp.ones(2), k=1, key=jax.random.key(0), num_matvecs=2)
      >>> len(sharpness.plots.draw_spectrum(top).axes[0].patches)   # a bar for each domain and one for the mixture
      3
    """
    values = np.concatenate([eigenvalues.values, eigenvalues.mixture[None]])
    errors = np.concatenate([eigenvalues.errors, eigenvalues.mixture_errors[None]])
    names = _labels(eigenvalues.names, eigenvalues.held_out)
    number, k = values.shape
    with look():
        width = COLUMN if number * k <= 20 else PAGE
        figure = _new(width, 2.6, title)
        panel = figure.subplots()
        bar = 0.8 / k
        for rank in range(k):
            at = np.arange(number) + (rank - (k - 1) / 2) * bar
            # Paler as they descend; the mixture grey, for it is no domain.
            white = 0.65 * rank / max(k - 1, 1)
            colours = [_paler(COLOURS[0], white)] * (number - 1) + [_paler("0.4", white)]
            panel.bar(at, values[:, rank], 0.92 * bar, color=colours)
            # A whisker that is thinner than its line says nothing.
            seen = errors[:, rank] > 0.005 * np.abs(values).max()
            panel.errorbar(at[seen], values[seen, rank], errors[seen, rank], fmt="none", ecolor="black", elinewidth=0.8)
        panel.axhline(0.0, color="black", linewidth=0.6)
        _name_ticks(panel, names, width)
        panel.set_ylabel("largest eigenvalue" + "s" * (k > 1) + " of the Hessian")
        panel.grid(axis="y")
        panel.set_axisbelow(True)
    return figure


def draw_similarity(similarity: GradientSimilarity, *, title: str = "") -> "Figure":
    """Draws the cosines between the domains' gradients as a heat map from -1 to 1, with their norms beside it.

    Args:
      similarity: From `gradient_similarity`.
      title: Over the panel.

    Returns:
      A figure; the last column is the cosine with the gradient of the mixture, and a cell without a number has a
      gradient that is zero.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from disam_jax import sharpness
      >>> loss_fn = lambda w, x: jnp.sum((w[None] - x) ** 2, axis=1)
      >>> surface = sharpness.loss_surface(loss_fn, jnp.array([[0.0, 1.0], [2.0, 1.0]]), [0, 1], names=("art", "photo"))
      >>> figure = sharpness.plots.draw_similarity(sharpness.gradient_similarity(surface, jnp.zeros(2)))
      >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
      ['art', 'photo', 'mixture']
    """
    values = np.concatenate([similarity.cosines, similarity.mixture_cosines[:, None]], 1)
    names = _labels(similarity.names, similarity.held_out)
    number = len(values)
    longest = max(map(len, names))
    # Inches: the names and norms at the left, the slanted names below, the colour bar at the right.
    left, below, right = 0.8 + 0.055 * longest, 0.25 + 0.04 * longest, 0.85
    cell = min(0.33, (PAGE - left - right) / (number + 1))
    with look():
        figure = _new(left + (number + 1) * cell + right, max(number * cell, 1.2) + below + 0.3, title)
        panel = figure.subplots()
        # White is a cosine near 0, so what has none is grey.
        panel.set_facecolor("0.8")
        drawn = panel.imshow(np.ma.masked_invalid(values), vmin=-1, vmax=1, cmap="RdBu_r")
        if number <= 12:
            for (i, j), value in np.ndenumerate(values):
                if np.isfinite(value):
                    colour = "white" if abs(value) > 0.6 else "black"
                    panel.text(
                        j,
                        i,
                        f"{value:.2f}".replace("-", "\N{MINUS SIGN}"),
                        ha="center",
                        va="center",
                        color=colour,
                        fontsize=6.5,
                    )
        panel.axvline(number - 0.5, color="white", linewidth=2)
        panel.set_xticks(range(number + 1), names, rotation=45, ha="right", rotation_mode="anchor")
        norms = [f"{name}  {norm:#.3g}" for name, norm in zip(names, similarity.norms, strict=False)]
        panel.set_yticks(range(number), norms)
        panel.set_ylabel("domain, gradient norm")
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        figure.colorbar(drawn, ax=panel, label="cosine of the gradients", ticks=[-1, -0.5, 0, 0.5, 1], shrink=0.8)
    return figure


@contextmanager
def look() -> Generator[None]:
    """Matplotlib's own defaults and `STYLE`, whatever the user's settings, until the end of the block.

    Example:
      >>> import matplotlib as mpl
      >>> with look():
      ...   mpl.rcParams["savefig.dpi"]
      200.0
    """
    try:
        from matplotlib import rc_context, style
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the figures of disam_jax.sharpness need Matplotlib: pip install "disam-jax[sharpness]"', name=error.name
        ) from error

    with rc_context(), style.context(["default", STYLE]):
        yield


def _new(width: float, height: float, title: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    if title:
        figure.suptitle(textwrap.fill(visible(title), int(16 * width)))
    return figure


def _legend(figure: "Figure", panel: "Axes", width: float) -> None:
    """Under the panel, in as many columns as the longest label allows."""
    handles, labels = panel.get_legend_handles_labels()
    columns = max(1, min(len(labels), int(14 * width / (5 + max(map(len, labels))))))
    name_legend(figure.legend(handles, labels, loc="outside lower center", ncols=columns, columnspacing=1.2))


def _name_ticks(panel: "Axes", names: Sequence[str], width: float) -> None:
    tight = sum(len(name) + 2 for name in names) > 16 * width
    slant: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if tight else {}
    panel.set_xticks(range(len(names)), names, **slant)


def _labels(names: Sequence[str], held_out: int | None) -> list[str]:
    return [visible(name) + (" (held out)" if d == held_out else "") for d, name in enumerate(names)] + ["mixture"]


def _line(place: int) -> str:
    return LINES[place // len(COLOURS) % len(LINES)]


def _paler(colour: str, white: float) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return tuple(x + white * (1 - x) for x in to_rgb(colour))


def _logarithmic(panel: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _need(landscape: Landscape, *, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    found = 1 if landscape.y is None else 2
    if found != dimensions:
        other = {1: "draw_curves", 2: "draw_landscape"}[found]
        raise ValueError(f"the landscape has {found} direction{'s' * (found > 1)}: draw it with {other}.")
    if not np.isfinite(landscape.losses).any():
        raise ValueError("the landscape has no finite loss: there is nothing to draw.")
    return landscape.x, landscape.x if landscape.y is None else landscape.y


def _panels(landscape: Landscape) -> tuple[list[str], np.ndarray]:
    """Names and losses ``[D + 1, ...]``, the mixture last."""
    values = np.concatenate([np.moveaxis(landscape.losses, -1, 0), landscape.mixture[None]])
    return _labels(landscape.names, landscape.held_out), values


def _levels(values: np.ndarray, levels: Sequence[float] | int) -> np.ndarray:
    if not isinstance(levels, int):
        return np.asarray(levels, np.float64)
    finite = values[np.isfinite(values)]
    low, high = finite.min(), finite.max()
    if not low < high:
        raise ValueError(f"every loss of the landscape is {low:g}: there is no contour to draw.")
    # Ratios, because a loss that is large far from w would leave no contour near it.
    return np.geomspace(low, high, levels) if low > 0 else np.linspace(low, high, levels)
