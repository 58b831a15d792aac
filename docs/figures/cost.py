"""The time of a step of SAM, of DISAM and of DISAM on a quarter of the examples, in plain steps, as it was measured."""

import json
import pathlib

from look import Look, write
from matplotlib.figure import Figure

RESULTS = pathlib.Path(__file__).parent.parent.parent / "benchmarks" / "results"
# Name in the figure, file, and network in it.
NETWORKS = (
    ("ViT-B/16, H100", "step_speed_h100", "vit bfloat16"),
    ("ResNet-50, H100", "step_speed_h100", "resnet50 bfloat16"),
    ("small ViT, 2 cores", "step_speed_forms", "vit"),
    ("ResNet-50, 2 cores", "step_speed_forms", "resnet50"),
    ("ResNet-18, 2 cores", "step_speed_forms", "resnet18"),
    ("conv net, 2 cores", "step_speed_forms", "conv"),
    ("perceptron, 2 cores", "step_speed_forms", "mlp"),
)
# Either SAM was measured in a file: ours, or Optax's.
METHODS = {"SAM": ("sam", "optax_sam_opaque"), "DISAM": ("disam",), "DISAM on a quarter": ("part_1/4",)}


def ratios(sides: tuple[str, ...]) -> list[dict[str, float]]:
    """Median and quartiles of the time of a step over that of a plain step, for each network."""
    stored = {name: json.loads((RESULTS / f"{name}.json").read_text())["steps"] for _, name, _ in NETWORKS}
    measured = [stored[name][network]["sides"] for _, name, network in NETWORKS]
    return [next(each[side] for side in sides if side in each)["time_ratio"] for each in measured]


def draw(look: Look) -> Figure:
    """A mark for each median and a line between the quartiles."""
    figure = Figure(figsize=(6.6, 3.2), layout="constrained")
    axes = figure.subplots()
    styles = ((look.green, "s", 0.22), (look.blue, "o", 0.0), (look.orange, "D", -0.22))
    for (label, sides), (colour, marker, shift) in zip(METHODS.items(), styles, strict=True):
        rows = [len(NETWORKS) - at + shift for at in range(len(NETWORKS))]
        found = ratios(sides)
        lower, median, upper = ([each[name] for each in found] for name in ("lower", "median", "upper"))
        axes.hlines(rows, lower, upper, color=colour, linewidth=2)
        axes.plot(median, rows, marker, color=colour, markersize=5, label=label)
    for plain in (1.0, 2.0):
        axes.axvline(plain, color=look.faint, linewidth=0.8, zorder=0)
    axes.set(xlim=(0.95, 2.4), xlabel="time of a step, in plain steps")
    axes.set_yticks(range(1, len(NETWORKS) + 1), [label for label, _, _ in reversed(NETWORKS)])
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=3, fontsize=9)
    return figure


if __name__ == "__main__":
    write("cost", draw)
