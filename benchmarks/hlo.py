"""Reading the optimised program: how often it goes over an array, and what its devices exchange."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8, "c64": 64, "c128": 128}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
PRODUCTS = ("dot", "convolution", "custom-call")
# They name an array or make it by a product; none of them is element-wise work on it.
NO_PASS = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", *PRODUCTS)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(r"(?:to_apply|calls|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Groups of one device each: nothing is exchanged.
_ALONE = re.compile(r"replica_groups=(?:\{(?:\{\d+\},?)+\}|\[\d+,1\]<=)")


class Instruction(NamedTuple):
    """One line: `name = shape op(operands), rest`."""

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    rest: str


class Program(NamedTuple):
    """The computations of a program by name, and the name of the one that is run."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str


def parse(text: str) -> Program:
    """Reads what `compiled.as_text()` gives."""
    computations: dict[str, list[Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            current = head[2]
            computations[current] = []
            entry = current if head[1] else entry
            continue
        found = _INSTRUCTION.match(line)
        if found and current:
            inside, rest = _split_operands(found[4])
            operands = tuple(re.findall(r"%([\w.\-]+)", inside))
            computations[current].append(Instruction(found[1], found[2], found[3], operands, rest))
    if not entry:
        raise ValueError("no ENTRY computation found: this is not the text of a compiled program")
    return Program({name: tuple(lines) for name, lines in computations.items()}, entry)


def passes_over(program: Program, shape: tuple[int, ...]) -> list[Instruction]:
    """The instructions of the entry that read or write float32 arrays of one shape, products left out."""
    name = f"f32[{','.join(map(str, shape))}]"
    lines = program.computations[program.entry]
    has = {line.name: name in line.shape for line in lines}
    return [
        line
        for line in lines
        if (has[line.name] or any(has.get(operand, False) for operand in line.operands))
        and line.op not in NO_PASS
        and not _is_product(program, line)
    ]


def communicated_bytes(program: Program) -> dict[str, float]:
    """Bytes of the results of the collectives of one run, by kind: what each device puts in or gets, once.

    A loop's body counts as often as it turns, the dearer branch of a conditional counts.
    """
    total = dict.fromkeys(COLLECTIVES, 0.0)
    for kind, size in _walk(program, program.entry, 1):
        total[kind] += size
    return {kind: size for kind, size in total.items() if size}


def array_bytes(shape: str) -> float:
    """Of a shape as XLA writes it, a tuple's parts added up."""
    return sum(_bits(dtype) / 8 * math.prod(map(int, filter(None, dims.split(",")))) for dtype, dims in _arrays(shape))


def _is_product(program: Program, line: Instruction) -> bool:
    """Whether a fusion is one: libraries take a product together with what stands around it."""
    called = (each for name in _CALLED.findall(line.rest) for each in program.computations.get(name, ()))
    return any(each.op in PRODUCTS or _is_product(program, each) for each in called)


def _walk(program: Program, name: str, times: int) -> Iterator[tuple[str, float]]:
    for line in program.computations[name]:
        kind = line.op.removesuffix("-start")
        if kind in COLLECTIVES:
            if not _ALONE.search(line.rest):
                yield kind, times * array_bytes(line.shape)
            continue
        branches = _BRANCHES.search(line.rest)
        called = re.findall(r"%?([\w.\-]+)", branches[1]) if branches else _CALLED.findall(line.rest)
        if line.op == "conditional":
            inside = [list(_walk(program, each, times)) for each in called]
            yield from max(inside, key=lambda each: sum(size for _, size in each), default=[])
            continue
        trips = _TRIPS.search(line.rest)
        if line.op == "while" and not trips:
            raise ValueError(f"the number of turns of {line.name} is not known: its communication cannot be counted")
        for each in called:
            yield from _walk(program, each, times * int(trips[1]) if trips else times)


def _arrays(shape: str) -> list[tuple[str, str]]:
    return _ARRAY.findall(re.sub(r"/\*.*?\*/", "", shape))


def _bits(dtype: str) -> int:
    return BITS[dtype] if dtype in BITS else int(re.sub(r"\D", "", dtype))


def _split_operands(text: str) -> tuple[str, str]:
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[:place], text[place + 1 :]
    return text, ""
