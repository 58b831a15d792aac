"""How long something takes is told by clocks that nobody sets; the time of day is for stamps alone."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = [path for folder in ("disam_jax", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
# Where a date is written into a record.
STAMPS = {
    "disam_jax/dg/cli/report.py": 1,
    "disam_jax/dg/cli/diagnose.py": 1,
    "benchmarks/__main__.py": 1,
    "benchmarks/fast/run.py": 1,
    "benchmarks/verdict/forecast.py": 1,
    "benchmarks/verdict/run.py": 1,
}
OF_DAY = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}


def times_of_day(path):
    """The calls of a file that ask for the time of day, by name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [alias.name for alias in node.names if alias.name in ("time", "time_ns")]
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", None)
            found += [node.attr] * ((owner, node.attr) in OF_DAY)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_duration_depends_on_the_time_of_day(path):
    assert len(times_of_day(path)) == STAMPS.get(str(path.relative_to(ROOT)), 0)
