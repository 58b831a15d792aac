"""Results on disk: one file of lines, appended to as the runs come and whole after any interruption.

The first line says what is run. Each further line holds what was settled for a method's program, or the runs of one
chunk, with a checksum, and is written in one piece; what an interruption leaves of a line is cut off when the sweep
goes on. Every line is checked wherever the file is read: a number that is read is one that was written.
"""

import collections
import contextlib
import dataclasses
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import brief, exists, parse_json, reason, regular_file, shown
from disam_jax.dg.results import Results, Run
from disam_jax.dg.sweep.results_folder import RESULTS, claim, set_aside
from disam_jax.dg.sweep.schema import (
    CHECKSUM,
    MEASURED,
    OPTIONAL,
    RUN,
    Name,
    WrongError,
    check_chunk,
    check_header,
    check_keys,
    check_program,
    name_of,
    wrong,
)
from disam_jax.dg.training.config import RECORDED

try:
    import fcntl
except ImportError:  # Windows has no such lock.
    fcntl = None

SCHEMA = 2
FILE = RESULTS
# Not a part of what is run.
UNCOMPARED = ("command",)
# What a line can take: 256 runs of 100 domains that are measured a hundred times are two thirds of it.
MOST_LINE_BYTES = 2**28
# Of a message about a line.
MOST_TEXT = 400


def plain(values: Any) -> Any:
    """Nested lists of numbers of six digits; None where not finite, which JSON has no word for.

    Example:
        >>> plain(np.array([1 / 3, np.nan]))
        [0.333333, None]
    """
    if np.ndim(values):
        return [plain(value) for value in values]
    return float(f"{float(values):.6g}") if math.isfinite(values) else None


def _array(values: Any) -> np.ndarray:
    return np.array(values, np.float64)  # None becomes NaN


def _line(value: Mapping[str, Any]) -> bytes:
    return _dump({**value, CHECKSUM: _checksum(value)}) + b"\n"


def _dump(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _checksum(value: Mapping[str, Any]) -> int:
    """Of all else that a line says, however it is spaced."""
    return zlib.crc32(_dump({key: each for key, each in value.items() if key != CHECKSUM}))


def difference(one: Any, other: Any, where: str = "") -> str | None:
    """Where two values of JSON first differ, and how; None if they are equal.

    Example:
        >>> difference({"a": {"b": 1}}, {"a": {"b": 2}})
        'a.b is 1 there and 2 here'
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys([*one, *other]):
            found = difference(one.get(key), other.get(key), f"{where}.{key}" if where else str(key))
            if found:
                return found
        return None
    # Beyond a line's length the values say no more than that they differ.
    short = lambda value: text if len(text := json.dumps(value)) <= 60 else f"{text[:57]}..."
    return None if one == other else f"{where} is {short(one)} there and {short(other)} here"


# The file as it is read.


def _refused(name: str, number: int, error: WrongError, more: str = "") -> InputError:
    """An error of one line, whatever the file's line has in it."""
    return InputError(f"{name}, line {number}: {_brief_line(str(error))}{more}")


def _brief_line(text: str) -> str:
    return shown(text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}...")


class _Line(NamedTuple):
    number: int
    value: dict[str, Any]


class Written:
    """What the lines of a results file say, each checked as it is taken.

    Attributes:
        header: What is run.
        programs: For each method, what was settled when it was first compiled: "runs_at_once" and "flops".
        records: For each run, by (method, target, seed, candidate), what was measured.
    """

    def __init__(self, header: Mapping[str, Any]):
        self.header = header
        self.programs: dict[str, dict[str, Any]] = {}
        self.records: dict[Name, dict[str, Any]] = {}
        self._chunks: dict[tuple[str, int], tuple[int, list[Name]]] = {}
        self._program_lines: dict[str, int] = {}
        self._run_lines: dict[Name, int] = {}

    def take(self, line: _Line) -> None:
        """Takes a line after the first.

        Raises:
            WrongError: If it is none that follows on this header, or contradicts an earlier line.
        """
        if "header" in line.value:
            self._again(line.value)
        elif "program" in line.value:
            method, settled = check_program(line.value, self.header)
            if self.programs.setdefault(method, settled) != settled:
                wrong(f"it contradicts line {self._program_lines[method]}: another program of {method}")
            self._program_lines.setdefault(method, line.number)
        elif "chunk" in line.value:
            self._take_chunk(line.number, *check_chunk(line.value, self.header))
        else:
            wrong("it is neither a program nor a chunk of runs")

    def _again(self, value: Mapping[str, Any]) -> None:
        """The first line of a file that was put behind this one."""
        check_keys(value, ("header",), (CHECKSUM,), "the line")
        found = _other(value["header"], self.header)
        if found:
            wrong(f"a second header, of another sweep: {found} at the top")

    def _take_chunk(self, number: int, method: str, place: int, records: Sequence[dict[str, Any]]) -> None:
        if method not in self.programs:
            wrong(f"a chunk of {method} before the line of its program")
        if len(records) > self.programs[method]["runs_at_once"]:
            wrong(f"a chunk of {len(records)} runs, of a program of {self.programs[method]['runs_at_once']}")
        names = [name_of(record) for record in records]
        before, same = self._chunks.setdefault((method, place), (number, names))
        if same != names:
            wrong(f"it contradicts line {before}: other runs in chunk {place} of {method}")
        for name, record in zip(names, records, strict=True):
            if self.records.setdefault(name, record) != record:
                wrong(
                    f"it contradicts line {self._run_lines[name]}: other numbers for {method}, target {name[1]}, "
                    f"seed {name[2]}, candidate {name[3]}"
                )
            self._run_lines.setdefault(name, number)


def _other(there: Any, header: Mapping[str, Any]) -> str | None:
    """What differs between two headers, "there" and "here"; None if both are of the same runs."""
    if not isinstance(there, dict):
        return "it has no header of disam-jax"
    without = lambda value: {key: each for key, each in value.items() if key not in UNCOMPARED}
    # As it will read when it comes back from the file.
    here, there = json.loads(json.dumps(without(header))), without(there)
    found = difference(there, here)
    return found and _as_typed(found, there, here)


def _as_typed(found: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """A difference with the option that makes it, where one does."""
    key = found.partition(" is ")[0]
    first, _, rest = key.partition(".")
    if first == "seeds" and isinstance(there.get("seeds"), list) and isinstance(here.get("seeds"), list):
        return f"--seeds is {len(there['seeds'])} there and {len(here['seeds'])} here"
    if first == "methods" and isinstance(there.get("methods"), dict) and isinstance(here.get("methods"), dict):
        ours, theirs = list(here["methods"]), list(there["methods"])
        if ours != theirs:
            return f"--method is {brief(' '.join(theirs))} there and {brief(' '.join(ours))} here"
    options = {
        "targets": "--target",
        "steps": "--steps or --evaluations",
        "methods": "--candidates or --grid",
        "candidates": "--candidates or --grid",
        "data": "--data and its options",
    }
    if first == "setting":
        name = rest.rpartition(".")[2]
        options_of = {recorded: name for name, recorded in RECORDED.items()}
        option = "--" + options_of.get(name, name).replace("_", "-")
    else:
        option = options.get(first)
    return f"{option}: {found}" if option else found


def _lines(file: Any, name: str) -> Iterator[tuple[int, bytes]]:
    """Number and content of each line of a file, an end of line included where there is one.

    Raises:
        InputError: If a line is longer than any that we write, or the file cannot be read.
    """
    number = 0
    while True:
        number += 1
        try:
            content = file.readline(MOST_LINE_BYTES + 1)
        except OSError as error:
            raise InputError(f"cannot read {name}: {reason(error)}") from error
        if len(content) > MOST_LINE_BYTES:
            raise InputError(f"{name}, line {number}: it has more than {MOST_LINE_BYTES:,} bytes")
        if not content:
            return
        yield number, content


def _parsed(number: int, content: bytes) -> _Line:
    try:
        value = parse_json(content)
    except ValueError as error:
        wrong(f"it {error}")
    _check_sum(value)
    return _Line(number, value)


def _check_sum(value: Mapping[str, Any]) -> None:
    """Checks that a line says what it said when it was written; one without a checksum was not written by us."""
    try:
        right = CHECKSUM not in value or value[CHECKSUM] == _checksum(value)
    except ValueError:
        # A number was read that cannot be written, since it is too large.
        right = False
    if not right:
        wrong("it was changed since it was written: its checksum is wrong")


def _is_torn(content: bytes) -> bool:
    """Whether this is the beginning of a line that we write, and no more."""
    starts = (b'{"chunk":["', b'{"program":"')
    return any(content.startswith(start) or start.startswith(content) for start in starts)


def _first_line(content: bytes, name: str) -> Mapping[str, Any]:
    """The header as it is there, of this version of the file or another one.

    Raises:
        InputError: If it is none of ours.
    """
    try:
        value = parse_json(content)
    except ValueError as error:
        raise InputError(f"{name} is no results file of disam-jax: line 1 {error}") from error
    header = value.get("header")
    if not isinstance(header, dict) or type(header.get("schema")) is not int:
        raise InputError(f"{name} is no results file of disam-jax: line 1 has no header with a schema")
    try:
        _check_sum(value)
        check_keys(value, ("header",), (CHECKSUM,), "the line")
    except WrongError as error:
        raise _refused(name, 1, error) from error
    return header


def _read(lines: Iterator[tuple[int, bytes]], header: Mapping[str, Any], name: str) -> tuple[Written, int]:
    """All lines after the first.

    Args:
        lines: Of which the first was taken.
        header: From the first.
        name: Of the file.

    Returns:
        What they say, and how many bytes at the end are of a line that was not finished.

    Raises:
        InputError: If a line is not one that follows on this header, naming it.
    """
    written, checked = Written(header), False
    for number, content in lines:
        try:
            try:
                line = _parsed(number, content)
            except WrongError:
                if not content.endswith(b"\n") and _is_torn(content):
                    return written, len(content)
                raise
            if not checked:
                checked = bool(_check_header_line(header, name))
            written.take(line)
        except WrongError as error:
            raise _refused(name, number, error, "; remove that line, and a sweep trains its runs again") from error
    return written, 0


def _check_header_line(header: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    try:
        return check_header(header)
    except WrongError as error:
        raise _refused(name, 1, error) from error


def load_results(out: Path) -> Results:
    """The runs that a folder's results file holds, all or as far as they have come.

    Args:
        out: Folder.

    Returns:
        Results; the header's "planned" says how many runs there will be.

    Raises:
        InputError: If there is no such file, it was written by another version, a line is damaged, or no run is
            finished.
    """
    path = out / FILE
    name = shown(path)
    regular_file(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {name}: {reason(error)}") from error
    with file:
        lines = _lines(file, name)
        _, content = next(lines, (1, b""))
        if not content:
            raise InputError(f"{name} is empty: no run is finished yet")
        header = _first_line(content, name)
        if header["schema"] != SCHEMA:
            raise InputError(
                f"{name} has results of version {brief(header['schema'], 40)} of the file, this disam-jax reads "
                f"version {SCHEMA}"
            )
        written, _ = _read(lines, header, name)
    if not written.records:
        raise InputError(f"{name} has no finished run yet")
    return _results(header, written.programs, list(written.records.values()), header["steps"])


def check_results(out: Path) -> None:
    """Checks, before anything takes long, that a folder has no foreign file in the place of its results.

    Args:
        out: Folder, which need not exist.

    Raises:
        InputError: If it has.
    """
    path = out / FILE
    if not exists(path):
        return
    _check_no_link(path)
    if regular_file(path):
        with path.open("rb") as file:
            _, content = next(_lines(file, shown(path)))
        _ours_or_torn(content, shown(path), None)


def _check_no_link(path: Path) -> None:
    if path.is_symlink():
        raise InputError(f"{shown(path)} is a link: give another --out, or put the file itself there")


def _ours_or_torn(content: bytes, name: str, expected: bytes | None) -> Mapping[str, Any] | None:
    """The header that the first line of a file holds; None for the beginning of one, where nothing else was written.

    Raises:
        InputError: If it is neither.
    """
    start = b'{"header":{"schema":'
    if not content.endswith(b"\n") and content.startswith(start) and (expected is None or expected.startswith(content)):
        return None
    try:
        return _first_line(content, name)
    except InputError as error:
        raise InputError(f"{error}; give another --out, or move that file") from error


def _has_runs(lines: Iterator[tuple[int, bytes]]) -> bool:
    """Whether any line after the first holds more than what was settled for a program."""
    for number, content in lines:
        try:
            if "program" not in _parsed(number, content).value:
                return True
        except WrongError:
            if content.endswith(b"\n") or not _is_torn(content):
                return True
    return False


def _results(
    header: Mapping[str, Any],
    programs: Mapping[str, Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    steps: Sequence[int],
) -> Results:
    methods = {name: {**each, **programs.get(name, {})} for name, each in header["methods"].items()}
    names = (*MEASURED, *(name for name in OPTIONAL if name in records[0]))
    arrays = {name: np.stack([_array(record[name]) for record in records]) for name in names}
    runs = tuple(Run(*name_of(record), hparams=dict(record["hyper"])) for record in records)
    metrics = {
        name: np.stack([_array(record["metrics"][name]) for record in records]) for name in header.get("metrics", ())
    }
    header = {**header, "methods": methods}
    return Results(header=header, runs=runs, steps=np.array(steps), **arrays, metrics=metrics)


# The file as it is written.


class Store:
    """The results file of a sweep, open for appending by one process.

    Attributes:
        path: Path of the file.
        programs: For each method, what was settled when it was first compiled: "runs_at_once" and "flops".
        records: For each run, by (method, target, seed, candidate), what was measured.
        aside: Folder to which results of something else were moved, if there were any.
    """

    def __init__(self, path: Path, file: Any, written: Written, aside: Path | None = None):
        self.path = path
        self._file = file
        self.programs, self.records, self.aside = written.programs, written.records, aside

    def program(self, method: str, settled: Mapping[str, Any]) -> None:
        """Writes down what was settled for a method's program, so that a later start chunks its runs alike."""
        self.programs[method] = dict(settled)
        self._append({"program": method, **settled})

    def has(self, method: str, number: int, runs: Sequence[Run]) -> bool:
        """Whether a chunk of runs is there.

        Args:
            method: Name of the method.
            number: Number of the chunk among the method's.
            runs: Runs of the chunk.

        Raises:
            InputError: If some of its runs are there and others are not.
        """
        there = sum(name_of(run._asdict()) in self.records for run in runs)
        if 0 < there < len(runs):
            raise InputError(
                f"{shown(self.path)} has {there} of the {len(runs)} runs of chunk {number} of {method}, which are "
                "trained together: put the other lines back, or remove the one that has them"
            )
        return there == len(runs)

    def chunk(self, method: str, number: int, runs: Sequence[Run], measured: Mapping[str, Any]) -> None:
        """Writes a chunk of runs.

        Args:
            method: Name of the method.
            number: Number of the chunk among the method's.
            runs: R runs.
            measured: The arrays of `Results` by name, [R, ...].
        """
        records = [
            {
                **dict(zip(RUN, run._replace(hparams=dict(run.hparams)), strict=True)),
                **{name: plain(measured[name][place]) for name in (*MEASURED, *OPTIONAL) if name in measured},
                **(
                    {"metrics": {name: plain(values[place]) for name, values in measured["metrics"].items()}}
                    if "metrics" in measured
                    else {}
                ),
            }
            for place, run in enumerate(runs)
        ]
        self.records.update({name_of(record): record for record in records})
        self._append({"chunk": [method, number], "runs": records})

    def _append(self, value: Mapping[str, Any]) -> None:
        before = self._file.seek(0, os.SEEK_END)
        try:
            left = memoryview(_line(value))
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(before)
            raise InputError(
                f"cannot write to {shown(self.path)}: {reason(error)}; what was finished before is kept, and the same "
                "command goes on from there"
            ) from error

    def results(self, header: Mapping[str, Any], order: Sequence[Run], steps: Sequence[int]) -> Results:
        """The results of the runs, in their order, as they are in the file."""
        return _results(header, self.programs, [self.records[name_of(run._asdict())] for run in order], steps)


@contextlib.contextmanager
def open_store(
    out: Path, header: Mapping[str, Any], overwrite: bool = False, select: str = "validation"
) -> Iterator[Store]:
    """Opens the results file of a folder, new or to go on with.

    Args:
        out: Folder, made if need be.
        header: What is run, JSON values. Everything in it but "command" must be as in the file.
        overwrite: Whether results of anything else are moved into a folder of their own; otherwise they are an error.
        select: Which runs and points the folder's report will have, unless it says so already.

    Yields:
        The store, with what the file already holds.

    Raises:
        InputError: If the file holds results of something else, a line is damaged, another process writes to it, or it
            cannot be written.
    """
    path = out / FILE
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {shown(path)}: {reason(error)}") from error
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(_open_locked(path))
        name, first = shown(path), _line({"header": header})
        # The file itself has no buffer, and reads a line byte by byte.
        lines = _lines(opened.enter_context(path.open("rb")), name)
        _, content = next(lines, (1, b""))
        there, aside = _ours_or_torn(content, name, first) if content else None, None
        found = None if there is None else _other(there, header)
        # Of a command that ended before its first chunk, nothing is lost; what has no checksum is not by this version.
        if found and CHECKSUM in parse_json(content) and not _has_runs(lines):
            found = there = None
        if found and not overwrite:
            raise InputError(
                f"{name} holds results of something else: {_brief_line(found)}; give another --out, or --overwrite "
                "to move them aside"
            )
        if found:
            aside = set_aside(out)
            file, there = opened.enter_context(_open_locked(path)), None
        claim(out, select, anew=there is None)
        if there is None:
            store = Store(path, file, Written(header), aside)
            file.truncate(0)
            store._append({"header": header})
        else:
            written, torn = _read(lines, there, name)
            store = Store(path, file, written)
            _end_last_line(file, torn)
        yield store


def _open_locked(path: Path) -> Any:
    """The file, open for appending, made if need be, and locked for this process.

    Raises:
        InputError: If it cannot be, or another process has it.
    """
    _check_no_link(path)
    while True:
        if exists(path):
            regular_file(path)
        try:
            # Without a buffer, so that nothing is written a second time after a full disk.
            file = path.open("a+b", buffering=0)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot write to {shown(path)}: {reason(error)}") from error
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise InputError(
                f"another process is writing to {shown(path)}: wait for it, or give another --out"
            ) from error
        # Another process may have moved it aside before it was locked.
        if exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
        file.close()


def _end_last_line(file: Any, torn: int) -> None:
    """Cuts off what was not finished, and ends a last line that lost its end."""
    size = file.seek(0, os.SEEK_END)
    if torn:
        file.truncate(size - torn)
    elif size:
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.write(b"\n")
    file.seek(0, os.SEEK_END)


def complete_part(results: Results) -> Results:
    """The runs of those methods that have every seed, target and candidate, for a report before a sweep has ended.

    Args:
        results: As far as they have come.

    Returns:
        Results whose header names only these methods; "finished" in it says how many runs there are, and a note which
        methods are left out.

    Raises:
        InputError: If no method is complete.
    """
    header = results.header
    per_method = {
        name: len(header["candidates"][name]) * len(header["targets"]) * len(header["seeds"])
        for name in header["methods"]
    }
    there = collections.Counter(run.method for run in results.runs)
    whole = [name for name, number in per_method.items() if there[name] == number]
    if not whole:
        raise InputError(f"no method is complete yet: {len(results.runs)} of {header['planned']} runs are finished")
    kept = [place for place, run in enumerate(results.runs) if run.method in whole]
    methods = {name: header["methods"][name] for name in whole}
    left_out = [f"{name} ({there[name]} of {number} runs)" for name, number in per_method.items() if name not in whole]
    note = [f"Left out, for runs are missing: {', '.join(left_out)}."] if left_out else []
    return dataclasses.replace(
        results,
        header={**header, "methods": methods, "finished": len(kept), "notes": [*header["notes"], *note]},
        runs=tuple(results.runs[place] for place in kept),
        metrics={name: values[kept] for name, values in results.metrics.items()},
        **{name: value[kept] for name in (*MEASURED, *OPTIONAL) if (value := getattr(results, name)) is not None},
    )
