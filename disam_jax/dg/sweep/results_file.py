"""Results on disk: one file of lines, appended to as the runs come and whole after any interruption.

The first line says what is run. Each further line holds what was settled for a method's program, or the runs of one
chunk, with a checksum, and is written in one piece; what an interruption leaves of a line is cut off when the sweep
goes on. Every line is checked wherever the file is read: a number that is read is one that was written.
"""

import collections
import contextlib
import dataclasses
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import brief, exists, parse_json, reason, regular_file, shown
from disam_jax.dg.results import Results, Run, six_digits
from disam_jax.dg.sweep.lock import flock, lock_file
from disam_jax.dg.sweep.logits_files import check_logits_folder, copy_logits, write_logits
from disam_jax.dg.sweep.results_folder import LOGITS, RESULTS, claim, set_aside
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
from disam_jax.dg.sweep.shards import Shard, in_shard
from disam_jax.dg.training.config import RECORDED

SCHEMA = 2
FILE = RESULTS
# What a later command may have more of; `planned` counts it.
GROWING = ("seeds", "targets", "methods", "candidates", "planned")
# What a line can take: 256 runs of 100 domains that are measured a hundred times are two thirds of it.
MOST_LINE_BYTES = 2**28
# Of a message about a line.
MOST_TEXT = 400


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


class Chunk(NamedTuple):
    """A chunk as it is in a results file.

    Attributes:
        records: What was measured of its runs.
        seconds: Seconds that they took, if they are known.
        version: Version of jax that trained them.
        number: Number of the chunk among its method's.
    """

    records: list[dict[str, Any]]
    seconds: float | None
    version: str
    number: int


class Written:
    """What the lines of a results file say, each checked as it is taken.

    A later header that has all that an earlier one has, and more, is that of a sweep that grew, or of another version
    of jax. It holds for the lines behind it.

    Attributes:
        header: What is run, in all.
        programs: For each method, what was settled when it was first compiled: "runs_at_once" (on each device) and
            "flops".
        records: For each run, by (method, target, seed, candidate), what was measured. Candidates are counted as in
            `header`.
        versions: For each run, the version of jax that trained it.
        seconds: For each method, the seconds that chunks of it took, and the number of their runs.
        chunk_of: For each run, the method and number of its chunk.
    """

    def __init__(self, header: Mapping[str, Any]):
        self.header = header
        self.programs: dict[str, dict[str, Any]] = {}
        self.records: dict[Name, dict[str, Any]] = {}
        self.versions: dict[Name, str] = {}
        self.seconds: dict[str, tuple[float, int]] = {}
        self.chunk_of: dict[Name, tuple[str, int]] = {}
        self.in_force = header
        self._chunks: dict[tuple[str, int], tuple[int, list[Name]]] = {}
        self._chunk_seconds: dict[tuple[str, int], float | None] = {}
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
            method, settled = check_program(line.value, self.in_force)
            if self.programs.setdefault(method, settled) != settled:
                wrong(f"it contradicts line {self._program_lines[method]}: another program of {method}")
            self._program_lines.setdefault(method, line.number)
        elif "chunk" in line.value:
            self._take_chunk(line.number, *check_chunk(line.value, self.in_force), line.value.get("seconds"))
        else:
            wrong("it is neither a program nor a chunk of runs")

    def _again(self, value: Mapping[str, Any]) -> None:
        """A further header: of a sweep that grew, or the first line of a file that was put behind this one."""
        check_keys(value, ("header",), (CHECKSUM,), "the line")
        header = value["header"]
        found = unlike(header, self.header)
        if found:
            wrong(f"a second header, of another sweep: {found} at the top")
        header = check_header(header)
        if left_out(self.header, header) is None:
            self.grow(header)
        elif (found := left_out(header, self.header)) is not None:
            wrong(f"a second header, of another sweep: {found}")
        self.in_force = header

    def grow(self, header: Mapping[str, Any]) -> None:
        """Takes a header that has all that was run so far, and more."""
        renamed = {name: _renamed(name, self.header, header) for name in self.records}
        self.records = {
            renamed[name]: {**record, "candidate": renamed[name][3]} for name, record in self.records.items()
        }
        self.versions = {renamed[name]: version for name, version in self.versions.items()}
        self.chunk_of = {renamed[name]: chunk for name, chunk in self.chunk_of.items()}
        self._run_lines = {renamed[name]: line for name, line in self._run_lines.items()}
        self.header = header

    def chunks_of(self, method: str) -> Iterator[Chunk]:
        """The chunks of a method of a file that did not grow."""
        for (name, number), (_, names) in self._chunks.items():
            if name == method:
                seconds = self._chunk_seconds[name, number]
                yield Chunk([self.records[each] for each in names], seconds, self.versions[names[0]], number)

    def chunk_runs(self) -> dict[tuple[str, int], list[Run]]:
        """The runs of each chunk, by its method and number."""
        found: dict[tuple[str, int], list[Run]] = {}
        for name, chunk in self.chunk_of.items():
            found.setdefault(chunk, []).append(Run(*name, hparams=self.records[name]["hyper"]))
        return found

    def next_chunk(self, method: str) -> int:
        """The number that the next chunk of a method has."""
        return 1 + max((number for name, number in self._chunks if name == method), default=-1)

    def _take_chunk(
        self, number: int, method: str, place: int, records: Sequence[dict[str, Any]], seconds: float | None
    ) -> None:
        if method not in self.programs:
            wrong(f"a chunk of {method} before the line of its program")
        if seconds is not None and (method, place) not in self._chunks:
            self.took(method, seconds, len(records))
        self._chunk_seconds.setdefault((method, place), seconds)
        names = [name_of(record) for record in records]
        before, same = self._chunks.setdefault((method, place), (number, names))
        if same != names:
            wrong(f"it contradicts line {before}: other runs in chunk {place} of {method}")
        for old, record in zip(names, records, strict=True):
            name = _renamed(old, self.in_force, self.header)
            record = {**record, "candidate": name[3]}
            if self.records.setdefault(name, record) != record:
                wrong(
                    f"it contradicts line {self._run_lines[name]}: other numbers for {method}, target {name[1]}, "
                    f"seed {name[2]}, candidate {name[3]}"
                )
            self._run_lines.setdefault(name, number)
            self.chunk_of.setdefault(name, (method, place))
            self.versions.setdefault(name, self.in_force["version"].get("jax", "?"))

    def took(self, method: str, seconds: float, runs: int) -> None:
        """Adds the time of a chunk."""
        before, number = self.seconds.get(method, (0.0, 0))
        self.seconds[method] = (before + seconds, number + runs)


def _renamed(name: Name, old: Mapping[str, Any], new: Mapping[str, Any]) -> Name:
    """What a run is found by under another header, in which its hyperparameters may have another number."""
    method, target, seed, candidate = name
    there, here = old["candidates"][method], new["candidates"][method]
    if candidate < len(here) and here[candidate] == there[candidate]:
        return name
    return method, target, seed, here.index(there[candidate])


def unlike(there: Any, here: Mapping[str, Any], strict: bool = False) -> str | None:
    """What keeps the runs of two headers apart, as they differ in more than the number of their runs.

    Args:
        there: A header, or what was read in the place of one.
        here: Another one.
        strict: Whether they must have the same runs. Those of shards must, since another number is dealt otherwise.

    Returns:
        The first difference, with the option that makes it; None if one can be a part of the other. Versions of jax
        may differ: the record says which one trained a run.
    """
    if not isinstance(there, dict):
        return "it has no header of disam-jax"
    strict = strict or "shard" in there or "shard" in here
    found = difference(_compared(there, strict), _compared(here, strict))
    return found and _as_typed(found)


def _changed(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether one of two headers of the same setting has other runs, or is of another version."""
    return any(there.get(key) != here.get(key) for key in ("version", *GROWING))


def _compared(header: Mapping[str, Any], strict: bool) -> dict[str, Any]:
    kept = {key: each for key, each in header.items() if key not in ("command", *(() if strict else GROWING))}
    version = kept.get("version")
    if isinstance(version, dict):
        kept["version"] = {key: each for key, each in version.items() if key != "jax"}
    # As it will read when it comes back from the file.
    return json.loads(json.dumps(kept))


def left_out(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """What a header has that another one lacks.

    Args:
        there: Header that was checked.
        here: Header of the same data and setting.

    Returns:
        What is lacking, and the option that adds it; None if all runs of one are runs of the other.
    """
    seeds = sorted({*there["seeds"]} - {*here["seeds"]})
    if seeds:
        every = seeds_text([*there["seeds"], *here["seeds"]])
        return f"--seeds lacks {seeds_text(seeds)} of the seeds that are there: write --seeds {every}"
    for option, key in (("--target", "targets"), ("--method", "methods")):
        lacking = [name for name in there[key] if name not in here[key]]
        if lacking:
            return f"{option} lacks {brief(' '.join(lacking))}, which is there: write it too"
    for name, facts in there["methods"].items():
        fixed = lambda value: {key: each for key, each in value.items() if key != "candidates"}
        found = difference(fixed(facts), fixed(here["methods"][name]), f"methods.{name}")
        if found:
            return found
        for hparams in there["candidates"][name]:
            if hparams not in here["candidates"][name]:
                return f"--candidates or --grid: {name} has {brief(hparams, 120)} there, which is not among those here"
    return None


def seeds_text(seeds: Sequence[int]) -> str:
    """Seeds as the option takes them.

    Example:
        >>> seeds_text([0, 1, 2, 5, 8, 7])
        '0..2 5 7..8'
    """
    ranges: list[list[int]] = []
    for seed in sorted({*seeds}):
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return " ".join(str(first) if first == last else f"{first}..{last}" for first, last in ranges)


def _as_typed(found: str) -> str:
    """A difference with the option that makes it, where one does."""
    key = found.partition(" is ")[0]
    first, _, rest = key.partition(".")
    options = {
        "steps": "--steps, --evaluations or --eval-every",
        "data": "--data and its options",
        "seeds": "--seeds",
        "targets": "--target",
        "methods": "--method, --candidates or --grid",
        "candidates": "--method, --candidates or --grid",
        "shard": "--shard",
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
        raise InputError(f"{name} is not a results file of disam-jax: line 1 {error}") from error
    header = value.get("header")
    if not isinstance(header, dict) or type(header.get("schema")) is not int:
        raise InputError(f"{name} is not a results file of disam-jax: line 1 has no header with a schema")
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
    written = read_written(out)
    if not written.records:
        raise InputError(f"{shown(out / FILE)} has no finished run yet")
    return _results(written, written.header, [name for name in planned(written.header) if name in written.records])


def planned(header: Mapping[str, Any]) -> list[Name]:
    """What the runs of a header, or of its shard, are found by, in the order in which one process trains them."""
    domains = list(header["data"]["domains"])
    shard = Shard(*header["shard"]) if "shard" in header else None
    names = []
    for turn, (method, candidates) in enumerate(header["candidates"].items()):
        of_method = [
            (method, domains.index(target), seed, candidate)
            for candidate in range(len(candidates))
            for target in header["targets"]
            for seed in header["seeds"]
        ]
        names += in_shard(of_method, turn, shard)
    return names


def read_written(out: Path) -> Written:
    """What a folder's results file says.

    Args:
        out: Folder.

    Returns:
        What was written, of which there may be no runs yet.

    Raises:
        InputError: If there is no such file, it was written by another version, or a line is damaged.
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
    return written


def read_fitting(out: Path, header: Mapping[str, Any], overwrite: bool = False) -> tuple[Written | None, bool]:
    """What a folder has of a sweep that `open_store` would go on with, without a change to the folder.

    Args:
        out: Folder, which need not exist.
        header: As for `open_store`.
        overwrite: As for `open_store`.

    Returns:
        What was written, None where there are no runs of it; and whether other results would be moved aside.

    Raises:
        InputError: As `open_store`, but for what only writing tells.
    """
    path = out / FILE
    check_results(out)
    if not exists(path):
        return None, False
    with path.open("rb") as file:
        _, content = next(_lines(file, shown(path)), (1, b""))
    if not content or _ours_or_torn(content, shown(path), None) is None:
        return None, False
    written = read_written(out)
    if not written.records:
        return None, False
    found = unlike(written.header, header) or left_out(written.header, header)
    if found and not overwrite:
        raise _of_something_else(shown(path), found)
    return (None, True) if found else (written, False)


def _of_something_else(name: str, found: str) -> InputError:
    return InputError(
        f"{name} holds results of something else: {_brief_line(found)}; give another --out, or --overwrite to move "
        "them aside"
    )


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


def _results(written: Written, header: Mapping[str, Any], order: Sequence[Name]) -> Results:
    methods = {name: {**each, **written.programs.get(name, {})} for name, each in header["methods"].items()}
    records = [written.records[name] for name in order]
    names = (*MEASURED, *(name for name in OPTIONAL if any(name in record for record in records)))
    # A shard may have no run.
    stacked = lambda arrays: np.stack(arrays) if arrays else np.zeros((0,))
    arrays = {name: stacked([_array(record[name]) for record in records]) for name in names}
    runs = tuple(Run(*name_of(record), hparams=dict(record["hyper"])) for record in records)
    metrics = {
        name: stacked([_array(record["metrics"][name]) for record in records]) for name in header.get("metrics", ())
    }
    header = {**_with_versions(header, [written.versions[name] for name in order]), "methods": methods}
    return Results(header=header, runs=runs, steps=np.array(header["steps"]), **arrays, metrics=metrics)


def _with_versions(header: Mapping[str, Any], versions: Sequence[str]) -> dict[str, Any]:
    """A header that says by which versions of jax the runs were trained."""
    counts = collections.Counter(versions)
    said = {**header, "version": {**header["version"], "jax": ", ".join(sorted(counts))}} if counts else {**header}
    if len(counts) <= 1:
        return said
    each = ", ".join(f"{version}: {counts[version]} runs" for version in sorted(counts))
    note = f"Trained by several versions of jax, whose numbers differ by rounding: {each}; the results file has which."
    return {**said, "notes": [*header["notes"], note]}


# The file as it is written.


class Store:
    """The results file of a sweep, open for appending by one process.

    Attributes:
        path: Path of the file.
        written: What is in it.
        aside: Folder to which results of something else were moved, if there were any.
    """

    def __init__(self, path: Path, file: Any, written: Written, header: Mapping[str, Any], aside: Path | None = None):
        self.path, self.written, self.aside = path, written, aside
        self._file, self._header = file, header

    @property
    def out(self) -> Path:
        """Folder of the file."""
        return self.path.parent

    @property
    def programs(self) -> Mapping[str, Mapping[str, Any]]:
        """For each method, what was settled when it was first compiled: "runs_at_once" and "flops"."""
        return self.written.programs

    @property
    def records(self) -> Mapping[Name, Mapping[str, Any]]:
        """For each run, by (method, target, seed, candidate), what was measured."""
        return self.written.records

    def program(self, method: str, settled: Mapping[str, Any]) -> None:
        """Writes down what was settled for a method's program, so that a later start chunks its runs alike."""
        self._append({"program": method, **settled})

    def has(self, run: Run) -> bool:
        """Whether a run is there."""
        return run[:4] in self.records

    def chunk(
        self, method: str, runs: Sequence[Run], measured: Mapping[str, Any], seconds: float | None = None
    ) -> None:
        """Writes a chunk of runs.

        Args:
            method: Name of the method.
            runs: R runs.
            measured: The arrays of `Results` by name, [R, ...]; "logits" is a list of R `RunLogits`, if there are any.
            seconds: Seconds that they took, if they are known.
        """
        records = [
            {
                **dict(zip(RUN, run._replace(hparams=dict(run.hparams)), strict=True)),
                **{name: six_digits(measured[name][place]) for name in (*MEASURED, *OPTIONAL) if name in measured},
                **(
                    {"metrics": {name: six_digits(values[place]) for name, values in measured["metrics"].items()}}
                    if "metrics" in measured
                    else {}
                ),
            }
            for place, run in enumerate(runs)
        ]
        time = {} if seconds is None else {"seconds": six_digits(seconds)}
        if "logits" in measured:
            self._put_logits(
                lambda number: write_logits(self.out, method, number, runs, measured["logits"], self._header), method
            )
        self._append({"chunk": [method, self.written.next_chunk(method)], **time, "runs": records})

    def copy(
        self,
        method: str,
        records: Sequence[Mapping[str, Any]],
        seconds: float | None,
        version: str,
        logits: Path | None = None,
    ) -> None:
        """Writes runs that are in another file, trained by a version of jax, as they are there.

        Args:
            method: Name of the method.
            records: What was measured of the runs.
            seconds: Seconds that they took, if they are known.
            version: Version of jax that trained them.
            logits: File of their logits, if these were kept.
        """
        self._header = {**self._header, "version": {**self._header["version"], "jax": version}}
        if logits is not None:
            self._put_logits(lambda number: copy_logits(logits, self.out, method, number), method)
        time = {} if seconds is None else {"seconds": seconds}
        self._append({"chunk": [method, self.written.next_chunk(method)], **time, "runs": list(records)})

    def _put_logits(self, put: Callable[[int], None], method: str) -> None:
        """Puts a file of logits there, before the line of its chunk."""
        try:
            put(self.written.next_chunk(method))
        except OSError as error:
            raise self._unwritten(self.out / LOGITS, error) from error

    def _unwritten(self, path: Path, error: OSError) -> InputError:
        return InputError(
            f"cannot write to {shown(path)}: {reason(error)}; what was finished before is kept, and the same "
            "command goes on from there"
        )

    def begin(self) -> None:
        """Writes the header, where the file has none that says as much of the lines that come."""
        if _changed(self.written.in_force, self._header):
            self.write({"header": self._header})
            self._take({"header": self._header})

    def _append(self, value: Mapping[str, Any]) -> None:
        self.begin()
        self.write(value)
        self._take(value)

    def _take(self, value: Mapping[str, Any]) -> None:
        """What was written, as it will be read."""
        self.written.take(_Line(0, json.loads(_dump(value))))

    def write(self, value: Mapping[str, Any]) -> None:
        """Appends a line, whole or not at all.

        Raises:
            InputError: If the disk is full, or the system refuses.
        """
        before = self._file.seek(0, os.SEEK_END)
        try:
            left = memoryview(_line(value))
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(before)
            raise self._unwritten(self.path, error) from error

    def results(self, order: Sequence[Run]) -> Results:
        """The results of the runs, in their order, as they are in the file."""
        return _results(self.written, self._header, [run[:4] for run in order])


@contextlib.contextmanager
def open_store(
    out: Path, header: Mapping[str, Any], overwrite: bool = False, select: str = "validation"
) -> Iterator[Store]:
    """Opens the results file of a folder, new or to go on with.

    Args:
        out: Folder, made if need be.
        header: What is run, JSON values. It has all runs that are in the file, and may have more; all else must be as
            in the file, but for the command and the version of jax.
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
        file = _open_locked(path, opened)
        name, first = shown(path), _line({"header": header})
        # The file itself has no buffer, and reads a line byte by byte.
        reader = opened.enter_context(path.open("rb"))
        lines = _lines(reader, name)
        _, content = next(lines, (1, b""))
        there, aside, written, torn = (_ours_or_torn(content, name, first) if content else None), None, None, 0
        found = None if there is None else unlike(there, header) or left_out(_check_header_line(there, name), header)
        # Of a command that ended before its first chunk, nothing is lost; what has no checksum is not by this version.
        if there is not None and (found or _changed(there, header)) and CHECKSUM in parse_json(content):
            if not _has_runs(lines):
                found = there = None
            reader.seek(len(content))
            lines = ((number + 1, content) for number, content in _lines(reader, name))
        if there is not None and not found:
            written, torn = _read(lines, there, name)
            found = left_out(written.header, header)
        if found and not overwrite:
            raise _of_something_else(name, found)
        if found:
            aside, written = set_aside(out), None
            file = _open_locked(path, opened, locked=True)
        claim(out, select, anew=written is None)
        if written is None:
            if header.get("setting", {}).get("keep_logits"):
                check_logits_folder(out)
            store = Store(path, file, Written(header), header, aside)
            file.truncate(0)
            store.write({"header": header})
        else:
            written.grow(header)
            store = Store(path, file, written, header)
            _end_last_line(file, torn)
        yield store


def _open_locked(path: Path, opened: contextlib.ExitStack, locked: bool = False) -> Any:
    """The file, open for appending, made if need be, and locked for this process.

    Args:
        path: Path of the file.
        opened: What is closed when nothing is written any more.
        locked: Whether this process has the lock that is a file already.

    Raises:
        InputError: If it cannot be, or another process has it.
    """
    _check_no_link(path)
    while True:
        if exists(path):
            regular_file(path)
        try:
            # Without a buffer, so that nothing is written a second time after a full disk.
            file = opened.enter_context(path.open("a+b", buffering=0))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot write to {shown(path)}: {reason(error)}") from error
        if not flock(file, path) and not locked:
            opened.enter_context(lock_file(path))
            locked = True
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
