"""How the figures of the documentation look, once on light pages and once on dark ones."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

HERE = pathlib.Path(__file__).parent


class Look(NamedTuple):
    """Colours on one background; the pairs keep apart for colour-blind readers."""

    ink: str
    faint: str
    paper: str
    blue: str
    orange: str
    green: str


LOOKS = {
    "light": Look("#1f2328", "#8c959f", "#ffffff", "#0072b2", "#d55e00", "#00805c"),
    "dark": Look("#e6edf3", "#7d8590", "#131416", "#56b4e9", "#ee8a3a", "#2fc79a"),
}


def write(name: str, draw: Callable[[Look], Figure]) -> None:
    """Draws the figure in both looks, as `NAME_light.svg` and `NAME_dark.svg`, with the same bytes each time."""
    for theme, look in LOOKS.items():
        style = {
            "text.color": look.ink,
            "axes.edgecolor": look.faint,
            "axes.labelcolor": look.ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.color": look.ink,
            "ytick.color": look.ink,
            "legend.frameon": False,
            "font.size": 10,
            "svg.hashsalt": name,
        }
        with mpl.rc_context(style):
            draw(look).savefig(HERE / f"{name}_{theme}.svg", transparent=True, metadata={"Date": None, "Creator": None})
