"""Results on disk: one file of lines, appended to as the runs come and whole after any interruption.

The first line says what is run. Each further line holds the runs of one chunk, and is written in one piece; what an
interruption leaves of a line is cut off when the sweep goes on.
"""

import collections
import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from disam_jax.dg.errors import InputError
from disam_jax.dg.results import Results, Run

try:
    import fcntl
except ImportError:  # Windows has no such lock.
    fcntl = None

SCHEMA = 2
FILE = "results.jsonl"
MEASURED = ("accuracy", "losses", "probe_losses", "perturbed_losses", "sharpness")
# Only if some classes are not trained on.
OPTIONAL = ("new_accuracy",)


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


def _line(value: Any) -> bytes:
    return (json.dumps(value, allow_nan=False, separators=(",", ":")) + "\n").encode()


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


class Store:
    """The results file of a sweep, open for appending by one process.

    Attributes:
        path: of the file.
        programs: for each method, what was settled when it was first compiled: "runs_at_once" and "flops".
        chunks: for each (method, number of the chunk), its runs as they were written.
    """

    def __init__(self, path: Path, file: Any):
        self.path = path
        self._file = file
        self.programs: dict[str, dict[str, Any]] = {}
        self.chunks: dict[tuple[str, int], list[dict[str, Any]]] = {}

    def program(self, method: str, settled: Mapping[str, Any]) -> None:
        """Writes down what was settled for a method's program, so that a later start chunks its runs alike."""
        self.programs[method] = dict(settled)
        self._append({"program": method, **settled})

    def chunk(self, method: str, number: int, runs: Sequence[Run], measured: Mapping[str, np.ndarray]) -> None:
        """Writes a chunk of runs.

        Args:
            method: name.
            number: of the chunk among the method's.
            runs: R of them.
            measured: the arrays of `Results` by name, [R, ...].
        """
        records = [
            {
                **run._asdict(),
                "hyper": dict(run.hyper),
                **{name: plain(measured[name][place]) for name in (*MEASURED, *OPTIONAL) if name in measured},
            }
            for place, run in enumerate(runs)
        ]
        self.chunks[method, number] = records
        self._append({"chunk": [method, number], "runs": records})

    def _append(self, value: Any) -> None:
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
                f"cannot write to {self.path}: {error.strerror}; what was finished before is kept, and the same "
                "command goes on from there"
            ) from error

    def results(self, header: Mapping[str, Any], order: Sequence[Run], steps: Sequence[int]) -> Results:
        """The results of the runs, in their order, as they are in the file."""
        found = {_name(record): record for records in self.chunks.values() for record in records}
        return _results(header, self.programs, [found[_name(run._asdict())] for run in order], steps)


def _name(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["method"], record["target"], record["seed"], record["candidate"]


def _results(
    header: Mapping[str, Any],
    programs: Mapping[str, Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    steps: Sequence[int],
) -> Results:
    methods = {name: {**each, **programs.get(name, {})} for name, each in header["methods"].items()}
    names = (*MEASURED, *(name for name in OPTIONAL if name in records[0]))
    arrays = {name: np.stack([_array(record[name]) for record in records]) for name in names}
    runs = tuple(Run(*_name(record), hyper=dict(record["hyper"])) for record in records)
    return Results(header={**header, "methods": methods}, runs=runs, steps=np.array(steps), **arrays)


@contextlib.contextmanager
def open_store(out: Path, header: Mapping[str, Any], replace: bool = False) -> Iterator[Store]:
    """Opens the results file of a folder, new or to go on with.

    Args:
        out: the folder, made if need be.
        header: what is run, JSON values. Everything in it but "command" must be as in the file.
        replace: whether results of anything else are removed; otherwise they are an error.

    Yields:
        The store, with what the file already holds.

    Raises:
        InputError: if the file holds results of something else, another process writes to it, or it cannot be written.
    """
    path = out / FILE
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Without a buffer, so that nothing is written a second time after a full disk.
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}") from error
    with file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"another process is writing to {path}: wait for it, or give another --out") from error
        store = Store(path, file)
        file.seek(0)
        lines = _whole_lines(file)
        if lines and replace and _other(lines[0], header):
            file.truncate(0)
            lines = []
        if not lines:
            file.truncate(0)
            file.seek(0)
            store._append({"header": header})
        else:
            found = _other(lines[0], header)
            if found:
                raise InputError(
                    f"{path} holds results of something else: {found}; give another --out, or remove that file"
                )
            for line in lines[1:]:
                _take(store, line)
        file.seek(0, os.SEEK_END)
        yield store


def _whole_lines(file: Any) -> list[Any]:
    """The lines of a file, after cutting off one without its end."""
    content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        file.truncate(len(whole))
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise InputError(f"{file.name} is damaged: {error}; give another --out, or remove that file") from error


def _other(first: Any, header: Mapping[str, Any]) -> str | None:
    there = first.get("header") if isinstance(first, dict) else None
    if there is None:
        return "it has no header of disam-jax"
    without = lambda value: {key: each for key, each in value.items() if key != "command"}
    # As it will read when it comes back from the file.
    return difference(without(there), json.loads(json.dumps(without(header))))


def _take(store: Store, line: Mapping[str, Any]) -> None:
    if "program" in line:
        store.programs[line["program"]] = {key: value for key, value in line.items() if key != "program"}
    else:
        method, number = line["chunk"]
        store.chunks[method, number] = line["runs"]


def load_results(out: Path) -> Results:
    """The runs that a folder's results file holds, all or as far as they have come.

    Args:
        out: the folder.

    Returns:
        Results; the header's "planned" says how many runs there will be.

    Raises:
        InputError: if there is no such file, it was written by another version, or no run is finished.
    """
    path = out / FILE
    try:
        with path.open("rb") as file:
            content = file.read()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        lines = [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]
        header = lines[0]["header"]
        schema = header["schema"]
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} is no results file of disam-jax") from error
    if schema != SCHEMA:
        raise InputError(f"{path} has results of version {schema} of the file, this disam-jax reads version {SCHEMA}")
    store = Store(path, None)
    for line in lines[1:]:
        _take(store, line)
    records = [record for records in store.chunks.values() for record in records]
    if not records:
        raise InputError(f"{path} has no finished run yet")
    return _results(header, store.programs, records, header["steps"])


def complete_part(results: Results) -> Results:
    """The runs of those methods that have every seed, target and candidate, for a report before a sweep has ended.

    Args:
        results: as far as they have come.

    Returns:
        Results whose header names only these methods; "finished" in it says how many runs there are.

    Raises:
        InputError: if no method is complete.
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
    return dataclasses.replace(
        results,
        header={**header, "methods": methods, "finished": len(kept)},
        runs=tuple(results.runs[place] for place in kept),
        **{name: value[kept] for name in (*MEASURED, *OPTIONAL) if (value := getattr(results, name)) is not None},
    )
