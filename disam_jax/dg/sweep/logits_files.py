"""Logits on disk, beside the results file: one npz file for each chunk of runs, whole or not there.

The file of a chunk is written before the chunk's line, so that a run that is in the results has its logits. A file says
of which runs it is, by their hyperparameters and not by the number of the candidate, which changes as a sweep grows.
"""

import json
import math
import os
import shutil
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from disam_jax.dg.data.npz import Npz, open_npz
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import brief, exists, is_folder, parse_json, shown
from disam_jax.dg.results import TRAIN, VALIDATION, Results, Run, RunLogits
from disam_jax.dg.sweep.results_folder import LOGITS, WRITER
from disam_jax.dg.unfinished import remove_unfinished, unfinished_folder

SCHEMA = 1
ABOUT = "about"
FIELDS = RunLogits._fields
# Points that a selection can choose of one run: the best by validation, and the last.
MOST_POINTS = 2


def logits_path(out: Path, method: str, number: int) -> Path:
    """Where the logits of a chunk are.

    Args:
        out: Folder of the results.
        method: Name of the method.
        number: Number of the chunk among the method's.

    Returns:
        Path.
    """
    return out / LOGITS / f"{urllib.parse.quote(method, safe=' +')}-{number}.npz"


def logits_bytes(runs: Sequence[Run], domain_sizes: Sequence[int], classes: int) -> int:
    """The most bytes that the logits of runs take.

    Args:
        runs: R runs.
        domain_sizes: Number of examples of each domain.
        classes: Number of classes.

    Returns:
        Bytes: two points, 2 bytes for each example and class; 5 more for its label and its split.
    """
    return sum(domain_sizes[run.target] * (MOST_POINTS * 2 * classes + 5) for run in runs)


def size_line(runs: Sequence[Run], header: Mapping[str, Any], out: Path, large: int = 2**30) -> str | None:
    """What the logits of the runs to train will take, if it is much.

    Args:
        runs: Runs that are missing.
        header: From `make_header`.
        out: Folder of the results, which exists.
        large: Bytes from which it is much.

    Returns:
        A line, or None.
    """
    data = header["data"]
    size = logits_bytes(runs, list(data["domains"].values()), len(data["classes"]))
    if size < large:
        return None
    free = shutil.disk_usage(out).free
    there = f"only {free / 2**30:.1f} GiB are free there" if free < size else f"{free / 2**30:.1f} GiB are free there"
    return f"--keep-logits will take up to {size / 2**30:.1f} GiB in {shown(out / LOGITS)}; {there}"


def check_logits_folder(out: Path) -> None:
    """Checks, before a sweep begins in a folder, that nothing of the user's is where its logits go.

    Raises:
        InputError: If something is.
    """
    folder = out / LOGITS
    if not exists(folder):
        return
    if folder.is_symlink() or not is_folder(folder):
        raise InputError(f"{shown(folder)} is not from {WRITER}: give another --out, or move it")
    for path in folder.iterdir():
        try:
            with open_npz(path) as npz:
                _about(npz, path)
        except InputError as error:
            raise InputError(f"{shown(path)} is not from {WRITER}: give another --out, or move it") from error


def write_logits(
    out: Path, method: str, number: int, runs: Sequence[Run], kept: Sequence[RunLogits], header: Mapping[str, Any]
) -> None:
    """Writes the logits of a chunk, whole or not at all.

    Args:
        out: Folder of the results, which exists.
        method: Name of the method.
        number: Number of the chunk among the method's.
        runs: R runs.
        kept: Their logits.
        header: From `make_header`.

    Raises:
        OSError: If the system refuses.
    """
    about = {
        "writer": WRITER,
        "schema": SCHEMA,
        "fingerprint": header["data"]["fingerprint"],
        "steps": list(header["steps"]),
        "runs": [_identity(run) for run in runs],
    }
    arrays = {
        f"{field}_{place}": getattr(each, field) for place, each in enumerate(kept[: len(runs)]) for field in FIELDS
    }
    text = np.frombuffer(json.dumps(about, allow_nan=False).encode(), np.uint8)
    _put(out, logits_path(out, method, number), lambda path: _save(path, {ABOUT: text, **arrays}))


def copy_logits(source: Path, out: Path, method: str, number: int) -> None:
    """Puts the logits of a chunk of another folder beside the results of this one.

    Raises:
        OSError: If the system refuses.
    """
    _put(out, logits_path(out, method, number), lambda path: _copy(source, path))


def _put(out: Path, path: Path, write: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    remove_unfinished(out)
    with unfinished_folder(out) as unfinished:
        write(unfinished / path.name)
        os.replace(unfinished / path.name, path)


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # pyrefly: ignore
        file.flush()
        os.fsync(file.fileno())


def _copy(source: Path, path: Path) -> None:
    with source.open("rb") as read, path.open("wb") as file:
        shutil.copyfileobj(read, file)
        file.flush()
        os.fsync(file.fileno())


def _identity(run: Run) -> dict[str, Any]:
    return {"method": run.method, "target": run.target, "seed": run.seed, "hyper": dict(run.hparams)}


def _about(npz: Npz, path: Path) -> dict[str, Any]:
    """What a file says of itself.

    Raises:
        InputError: If it is not one of ours.
    """
    foreign = f"{shown(path)} is not a file of logits of {WRITER}"
    if ABOUT not in npz.headers or npz.headers[ABOUT].dtype != np.uint8:
        raise InputError(f"{foreign}: it has no array {ABOUT!r}")
    try:
        about = parse_json(npz.read(ABOUT).tobytes())
    except ValueError as error:
        raise InputError(f"{foreign}: {ABOUT!r} {error}") from error
    if about.get("writer") != WRITER or not isinstance(about.get("runs"), list):
        raise InputError(f"{foreign}: {ABOUT!r} does not say so")
    if about.get("schema") != SCHEMA:
        raise InputError(
            f"{shown(path)} has version {brief(about.get('schema'), 40)} of the file, this {WRITER} reads {SCHEMA}"
        )
    return about


def check_logits(out: Path, chunks: Mapping[tuple[str, int], Sequence[Run]], header: Mapping[str, Any]) -> None:
    """Checks that the logits of chunks are there and of their runs.

    Args:
        out: Folder of the results.
        chunks: The runs of each chunk, by its method and number.
        header: Header of the results.

    Raises:
        InputError: If a file is missing, damaged or of something else.
    """
    for (method, number), runs in chunks.items():
        path = logits_path(out, method, number)
        with _opened(path, out) as npz:
            about = _about(npz, path)
            for run in runs:
                _place(about, run, header, path)


def read_logits(
    out: Path, chunk_of: Mapping[tuple[str, int, int, int], tuple[str, int]], results: Results, indices: Sequence[int]
) -> Iterator[tuple[int, RunLogits]]:
    """The logits of some runs, file by file.

    Args:
        out: Folder of the results.
        chunk_of: Method and number of the chunk of each run, as of `Written`.
        results: Results of that folder.
        indices: Indices into `results.runs`.

    Yields:
        Index, and what was kept.

    Raises:
        InputError: If a file is missing, damaged, or of other runs, data or classes than the results.
    """
    by_file: dict[tuple[str, int], list[int]] = {}
    for index in indices:
        by_file.setdefault(chunk_of[results.runs[index][:4]], []).append(index)
    for (method, number), those in by_file.items():
        path = logits_path(out, method, number)
        with _opened(path, out) as npz:
            about = _about(npz, path)
            for index in those:
                place = _place(about, results.runs[index], results.header, path)
                kept = _read(npz, place, results, index, path)
                _check_accuracy(kept, results, index, path)
                yield index, kept


def _opened(path: Path, out: Path) -> Any:
    if not exists(path):
        raise InputError(
            f"{shown(path)} is missing, the logits of runs in {shown(out / 'results.jsonl')}: put it back, or leave "
            "their metrics out with --metrics none"
        )
    return open_npz(path)


def _place(about: Mapping[str, Any], run: Run, header: Mapping[str, Any], path: Path) -> int:
    """Which of the runs of a file is this one."""
    if about.get("fingerprint") != header["data"]["fingerprint"]:
        raise InputError(f"{shown(path)} has logits of other data than the results beside it")
    if about.get("steps") != list(header["steps"]):
        raise InputError(f"{shown(path)} has logits of other points of training than the results beside it")
    identity = _identity(run)
    if identity not in about["runs"]:
        name = list(header["data"]["domains"])[run.target]
        raise InputError(
            f"{shown(path)} is of other runs: it has no logits of {run.method}, target {shown(name)}, seed {run.seed}, "
            f"candidate {run.candidate}"
        )
    return about["runs"].index(identity)


def _read(npz: Npz, place: int, results: Results, index: int, path: Path) -> RunLogits:
    """The arrays of one run, of which everything is checked."""
    run, data = results.runs[index], results.header["data"]
    where = f"{shown(path)}, {run.method}, seed {run.seed}"
    for field in FIELDS:
        if f"{field}_{place}" not in npz.headers:
            raise InputError(f"{where}: it has no array {field}_{place}")
    shape = npz.headers[f"logits_{place}"].shape
    examples, classes = data["domains"][results.domain_names[run.target]], len(data["classes"])
    if len(shape) == 3 and shape[2] != classes:
        raise InputError(f"{where}: its logits are of {shape[2]} classes, the results of {classes}")
    points = shape[0] if shape else 0
    shapes = {
        "points": (points,),
        "logits": (points, examples, classes),
        "labels": (examples,),
        "validation": (examples,),
    }
    dtypes = {"points": np.int32, "logits": np.float16, "labels": np.int32, "validation": np.bool_}
    for field in FIELDS:
        header = npz.headers[f"{field}_{place}"]
        if header.shape != shapes[field] or header.dtype != dtypes[field]:
            raise InputError(
                f"{where}: {field}_{place} must be {np.dtype(dtypes[field])}{list(shapes[field])}, got "
                f"{header.dtype}{brief(list(header.shape), 40)}"
            )
    kept = RunLogits(*(npz.read(f"{field}_{place}") for field in FIELDS))
    last = len(results.steps) - 1
    if not len(kept.points) or (kept.points < 0).any() or (kept.points > last).any():
        raise InputError(f"{where}: points_{place} must be points of training, 0 to {last}")
    if ((kept.labels < 0) | (kept.labels >= classes)).any():
        raise InputError(f"{where}: labels_{place} must be classes, 0 to {classes - 1}")
    return kept


def _check_accuracy(kept: RunLogits, results: Results, index: int, path: Path) -> None:
    """Checks that the answers are those of which the results have the accuracy."""
    run = results.runs[index]
    for place, point in enumerate(kept.points):
        logits = kept.logits[place]
        if not np.isfinite(logits).all():
            continue
        right = logits.argmax(-1) == kept.labels
        for part, members in ((TRAIN, ~kept.validation), (VALIDATION, kept.validation)):
            stored = results.accuracy[index, point, part, run.target]
            # Six digits are stored, of a mean in single precision.
            if members.any() and not math.isclose(right[members].mean(), stored, abs_tol=1e-5):
                raise InputError(
                    f"{shown(path)} is of other runs: {run.method}, seed {run.seed}, step {results.steps[point]} has "
                    f"an accuracy of {right[members].mean():.4f} by its logits and {stored:.4f} in the results"
                )
