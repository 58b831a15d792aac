"""The figures of the page on sharpness, from the code that stands on it."""

import re

from look import HERE

FIGURES = ("spectrum", "curves", "landscape", "cosines")


def run_page() -> dict[str, object]:
    """Runs the code of the page from top to bottom; what it named is returned."""
    scope: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", (HERE.parent / "sharpness.md").read_text(), re.DOTALL):
        exec(compile(block, "sharpness.md", "exec"), scope)
    return scope


if __name__ == "__main__":
    named = run_page()
    for name in FIGURES:
        named[name].savefig(HERE / f"sharpness_{name}.png", dpi=130, metadata={"Software": None})
