"""The modules of the library and who imports whom, read from the imports themselves."""

import ast

from look import HERE, Look, write
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

PACKAGE = HERE.parent.parent / "disam_jax"
# module: (column, row, what it turns into what)
MODULES = {
    "_domains": (0.5, 0, "batches → domain losses"),
    "_perturbation": (2.5, 0, "ascent gradient → e"),
    "_weights": (0.0, 1, "losses → weights b"),
    "_grouping": (1.0, 1, "flat batch → grouped"),
    "variants": (2.0, 1, "SAM, GSAM, SAGM"),
    "sharpness": (3.0, 1, "measuring, per domain"),
    "_passes": (0.5, 2, "passes at w and w + e"),
    "_m_sharpness": (0.5, 3, "each domain at its e"),
    "_gradient": (1.0, 4, "the step; value_and_grad"),
    "_examples": (2.3, 4, "examples → subset, rest"),
    "_transform": (0.0, 5, "disam, sam in Optax"),
    "nnx": (2.0, 6, "the step in Flax NNX"),
    "_subset": (2.0, 5, "the step on a subset"),
    "dg": (0.0, 6, "the benchmark"),
}
PUBLIC = ("variants", "nnx", "sharpness", "dg")
WIDTH, HEIGHT = 0.86, 0.56


def imports_of(module: str) -> set[str]:
    """The other modules that the files of a module import."""
    path = PACKAGE / module
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "disam_jax":
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("disam_jax."):
                found.add(node.module.split(".")[1])
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.startswith("disam_jax")]
                # The package itself stands for its public names, which the transformation completes.
                found.update(name.split(".")[1] if "." in name else "_transform" for name in names)
    return (found & MODULES.keys()) - {module}


def arrows() -> list[tuple[str, str]]:
    """Imports as (importing, imported) pairs, without those that follow from the others."""
    direct = {module: imports_of(module) for module in MODULES}

    def beyond(module: str) -> set[str]:
        return set().union(*(direct[near] | beyond(near) for near in direct[module]))

    return [(module, near) for module in MODULES for near in MODULES if near in direct[module] - beyond(module)]


def draw(look: Look) -> Figure:
    """Boxes for the modules, arrows to what they import; an arrow that points down is an error."""
    figure = Figure(figsize=(8.2, 5.3), layout="constrained")
    axes = figure.subplots()
    for importing, imported in arrows():
        (x0, y0, _), (x1, y1, _) = MODULES[importing], MODULES[imported]
        if y1 >= y0:
            raise SystemExit(f"{importing} imports {imported}, which stands beside or below it: move it in MODULES.")
        start, end = (x0, -y0 + HEIGHT / 2), (x1, -y1 - HEIGHT / 2)
        arrow = {"arrowstyle": "-|>", "color": look.faint, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", end, start, arrowprops=arrow)
    for module, (x, y, what) in MODULES.items():
        colour = look.green if module in PUBLIC else look.blue
        corner = (x - WIDTH / 2, -y - HEIGHT / 2)
        box = FancyBboxPatch(
            corner, WIDTH, HEIGHT, "round,pad=0,rounding_size=0.08", facecolor=look.paper, edgecolor=colour
        )
        axes.add_patch(box)
        axes.text(x, -y + 0.09, module, ha="center", va="center", family="monospace", weight="bold", fontsize=10)
        axes.text(x, -y - 0.12, what, ha="center", va="center", fontsize=8.5)
    axes.set(xlim=(-0.5, 3.5), ylim=(-6.4, 0.4))
    axes.axis("off")
    return figure


if __name__ == "__main__":
    write("architecture", draw)
