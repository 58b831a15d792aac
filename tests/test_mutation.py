"""The mutants and their runs: each operator on a line of code, and a toy package whose tests notice some faults."""

import pathlib
import subprocess
import sys

import pytest

from tests.mutation import equivalents
from tests.mutation.__main__ import TESTS, parse, rate, sample, table
from tests.mutation.harness import Outcome
from tests.mutation.operators import Mutant, mutants

ROOT = pathlib.Path(__file__).parents[1]

LINES = {
    # a line in a function -> the kind of change, and what the line becomes
    "return x > 0": ("comparison", {"return (x >= 0)", "return (x < 0)"}),
    "return a <= b": ("comparison", {"return (a < b)", "return (a > b)"}),
    "return a == b": ("comparison", {"return (a != b)"}),
    "return a is None": ("comparison", {"return (a is not None)"}),
    "return a not in b": ("comparison", {"return (a in b)"}),
    "return a and b": ("boolean", {"return (a or b)", "return a", "return b"}),
    "return not a": ("sign or negation", {"return a"}),
    "return -a": ("sign or negation", {"return a"}),
    "return a + b": ("arithmetic", {"return (a - b)"}),
    "return a * b": ("arithmetic", {"return (a / b)"}),
    "return a**b": ("arithmetic", {"return (a * b)"}),
    "x = 0": ("constant", {"x = 1"}),
    "x = 1": ("constant", {"x = 0", "x = 2"}),
    "x = 0.5": ("constant", {"x = 1.5"}),
    "x = True": ("constant", {"x = False"}),
    "x = 'std'": ("constant", {"x = 'variance'"}),
    "x = a if b else c": ("branch", {"x = a", "x = c"}),
    "return a, b": ("order of results", {"return (b, a)"}),
    "check(a)": ("statement removed", {"pass"}),
    "x = a.astype(b)": ("call removed", {"x = a"}),
    "x = jax.lax.stop_gradient(a)": ("call removed", {"x = a"}),
    "x = jnp.where(a, b, c)": ("select", {"x = jnp.where(a, c, b)", "x = b"}),
    "x = jnp.where(a, 1, c).astype(d)": ("select", {"x = jnp.where(a, c, 1).astype(d)", "x = (1).astype(d)"}),
    "x = jnp.zeros(a)": ("twin", {"x = jnp.ones(a)"}),
    "x = any(a)": ("twin", {"x = all(a)"}),
    "x = jnp.sum(a)": ("twin", {"x = jnp.mean(a)"}),
    "x = f(a, b)": ("order of arguments", {"x = f(b, a)"}),
    "x = f(a, mask=mask, b=c)": ("argument dropped", {"x = f(a, **{}, b=c)"}),
    "x = sum(a, start=b)": ("argument dropped", {"x = sum(a, **{})"}),
}


def changed(source, operator=None):
    return {m.after for m in mutants(source, "toy") if operator in (None, m.operator)}


@pytest.mark.parametrize("line", LINES)
def test_each_operator_changes_a_line_as_it_should(line):
    operator, expected = LINES[line]
    assert changed(f"def f():\n    {line}\n", operator) == expected


def test_defaults_are_changed_and_annotations_are_not():
    source = "def f(a: int = 0, *, rho: float = 0.05, b: 'x > 0' = True, c=None, d='clean') -> 'x > 0':\n    return a"
    expected = {"a: int = 1", "rho: float = 0.15", "= False", "d='ascent'"}
    found = changed(source, "default")
    assert len(found) == len(expected)
    assert all(any(part in line for line in found) for part in expected)
    assert changed(source) == found


def test_a_guard_is_removed_and_its_message_is_left_alone():
    message = 'seen = a or "none"\n        raise ValueError(f"{seen + 1}")'
    source = f"def f(a):\n    if a < 0:\n        {message}\n    return a\n"
    assert changed(source) == {"if False:", "if (a <= 0):", "if (a > 0):", "if a < 1:"}


def test_docstrings_messages_asserts_and_checks_of_zip_are_left_alone():
    source = '''
"""Module > 0."""

LIMIT = 1


class A:
    """Of > 0."""

    x: int = 0


def f(a, b):
    """Returns a > 0."""
    assert a > 0
    raise ValueError(f"{a + 1}" + str(a > 0))


def g(a, b):
    return zip(a, b, strict=True)
'''
    assert changed(source) == set()


def test_a_mutant_is_the_module_with_one_change():
    source = 'def f(a):\n    "é"\n\n    def g(b):\n        return "é", b > a  # ü\n\n    return g\n'
    (negated,) = [m for m in mutants(source, "toy") if m.after.endswith("(b < a) # ü")]
    assert negated.source == source.replace("b > a", "(b < a)")
    assert (negated.module, negated.function, negated.line) == ("toy", "f.g", 5)
    assert negated.before == 'return "é", b > a # ü'


@pytest.mark.parametrize("module", TESTS)
def test_the_mutants_of_the_core_compile_and_differ(module):
    path = ROOT / "disam_jax" / f"{module}.py"
    found = mutants(path.read_text(), module)
    assert len({mutant.key for mutant in found}) == len(found) > 20
    for mutant in found[::7]:
        compile(mutant.source, path.name, "exec")
        assert mutant.source != path.read_text()


def of_module(name, lines):
    return [Mutant(name, "f", "constant", n, f"x = {n}", f"x = {n + 1}", "") for n in range(lines)]


def test_a_sample_is_a_share_of_every_module_and_stays_when_lines_are_added():
    found = {"a": of_module("a", 300), "b": of_module("b", 100), "c": of_module("c", 4)}
    chosen = sample(found, 101, seed=0)
    assert [sum(m.module == name for m in chosen) for name in found] == [75, 25, 4]
    assert sample(found, 101, seed=0) == chosen != sample(found, 101, seed=1)
    moved = {name: [m._replace(line=m.line + 7) for m in each] for name, each in found.items()}
    assert {m.key for m in sample(moved, 101, seed=0)} == {m.key for m in chosen}
    assert len(sample(found, 0, seed=0)) == 404


def test_the_rate_counts_runs_without_an_end_as_killed_and_shows_them_apart():
    outcomes = [Outcome(status, 1.0, "", {}) for status in ("killed", "survived", "timeout", "killed")]
    assert rate(outcomes) == 0.75
    last = table([(of_module("a", 1)[0], each) for each in outcomes]).splitlines()[-1]
    assert last.split() == ["all", "4", "2", "1", "1", "75.0%", "1.0"]


def test_every_equivalent_mutant_has_a_reason_and_a_module(tmp_path):
    for (module, *_), reason in equivalents.read().items():
        assert module in TESTS
        assert len(reason.split()) > 4
    entry = '[[equivalent]]\nmodule = "a"\nfunction = "f"\nbefore = "x = 0"\nafter = "x = 1"\nreason = "{}"\n'
    path = tmp_path / "equivalent.toml"
    for text, told in ((entry.format(" "), "no reason"), (2 * entry.format("It is not read."), "twice")):
        path.write_text(text)
        with pytest.raises(ValueError, match=told):
            equivalents.read(path)


def test_the_command_takes_its_modules_from_the_table():
    assert parse([]).modules == list(TESTS)
    with pytest.raises(SystemExit):
        parse(["--modules", "_nothing"])


TOY = """
import pathlib, sys
import pytest, xdist
from tests.mutation.harness import Fault, Order, Run, run_all
from tests.mutation.operators import mutants

root = pathlib.Path(sys.argv[1])
path = root / "toy" / "sums.py"
found = [mutant for mutant in mutants(path.read_text(), "sums") if mutant.after in sys.argv[2:]]
faults = [None, *(Fault("toy.sums", path, mutant.source) for mutant in found)]
outcomes = {}
order = Order()
files = ["test_toy.py", "toy/sums.py"]
limit = lambda fault: 2.0 if fault and "n + 1" in fault.source else 60.0
runs = [lambda fault=fault: Run(fault, files, root, order, limit(fault)) for fault in faults]
run_all(runs, 3, lambda number, outcome: outcomes.update({number: outcome}))
for number in sorted(outcomes):
    outcome = outcomes[number]
    print(found[number - 1].after if number else "unchanged", outcome.status, outcome.by, sep="|")
"""


@pytest.mark.slow
def test_a_fault_that_tests_notice_is_killed_and_one_that_means_the_same_survives(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "__init__.py").write_text("from toy.sums import double, largest, wait\n")
    source = (
        "def double(x):\n    return x + x\n\n\n"
        "def largest(a, b):\n    return a if a > b else b\n\n\n"
        "def wait(n):\n    while n > 0:\n        n = n - 1\n"
    )
    (tmp_path / "toy" / "sums.py").write_text(source)
    (tmp_path / "test_toy.py").write_text(
        "import toy\n\n\n"
        "def test_double():\n    assert toy.double(2) == 4\n\n\n"
        "def test_largest():\n    assert toy.largest(1, 2) == toy.largest(2, 1) == 2\n\n\n"
        "def test_wait():\n    toy.wait(2)\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    expected = {
        "unchanged": ("survived", ""),
        "return (x - x)": ("killed", "test_toy.py::test_double"),
        "return a if (a < b) else b": ("killed", "test_toy.py::test_largest"),
        # Of two equal numbers either is the largest.
        "return a if (a >= b) else b": ("survived", ""),
        "n = (n + 1)": ("timeout", ""),
    }
    out = subprocess.run(
        [sys.executable, "-c", TOY, str(tmp_path), *expected],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert {
        after: (status, by) for after, status, by in (line.split("|") for line in out.stdout.splitlines())
    } == expected
    # Nothing was written into the tree.
    assert (tmp_path / "toy" / "sums.py").read_text() == source
