"""A folder of results: which of its files are ours, how they are written whole, and how they make room for others.

Beside the results file, the folder has a manifest: the files that a report wrote, and which runs they report. What is
not in it belongs to the user and is never written over, moved or removed.
"""

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import exists, is_folder, read_json, reason, shown
from disam_jax.dg.sweep.model_selection import CRITERIA
from disam_jax.dg.unfinished import remove_unfinished, unfinished_folder

RESULTS = "results.jsonl"
MANIFEST = "report.json"
LOGITS = "results-logits"
WRITER = "disam-jax"
# Folder of the models that are kept.
MODELS = "models"
# Of what was measured while runs were trained: a report of stored results cannot make them again.
RECORD = "record.json"
OF_TRAINING = (RECORD, "cost.md", "cost.tex", "cost.csv")
TABLES = (
    "compare",
    "accuracy",
    "open",
    "comparisons",
    "loss_comparisons",
    "metrics",
    "kept_metrics",
    "kept_comparisons",
    "losses",
    "sharpness",
    "selection",
    "flops",
)
FIGURES = ("domain_losses", "convergence", "differences", "sensitivity", "usable_range")
# All that a report can write.
NAMES = (
    "report.html",
    "table.md",
    "runs.csv",
    "results.json",
    *OF_TRAINING,
    *(f"{name}.{suffix}" for name in TABLES for suffix in ("tex", "csv")),
    *(f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "pdf")),
)
# And for metrics of kept logits, of which other packages may have more.
OF_METRICS = re.compile(r"metric_[a-z0-9_]+\.(tex|csv|png|pdf)")


def metric_file(name: str) -> str:
    """Name of the files of a metric, without their endings.

    Example:
        >>> metric_file("class_accuracy")
        'metric_class_accuracy'
    """
    return f"metric_{re.sub('[^a-z0-9]', '_', name.lower())}"


def is_ours(name: object) -> bool:
    """Whether a report can write a file of this name.

    Example:
        >>> is_ours("table.md"), is_ours("metric_confusion_dark.png"), is_ours("../metric_x.png")
        (True, True, False)
    """
    return name in NAMES or (isinstance(name, str) and OF_METRICS.fullmatch(name) is not None)


class Manifest(NamedTuple):
    """What a folder says of the report in it.

    Attributes:
        select: Which runs and points it reports, a key of `CRITERIA`.
        files: Names of its files, without folders.
    """

    select: str
    files: tuple[str, ...]


def read_manifest(out: Path) -> Manifest | None:
    """The manifest of a folder.

    Args:
        out: Folder, which need not exist.

    Returns:
        The manifest, or None where nothing is known to be ours.

    Raises:
        InputError: If a file of its name is something else.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(Path(folder), {"table.md": b"# Title"}, "last")
        ...     read_manifest(Path(folder))
        Manifest(select='last', files=('table.md',))
    """
    path = out / MANIFEST
    if not exists(path):
        return _without_manifest(out)
    found = read_json(path)
    files = found.get("files")
    if (
        found.keys() != {"writer", "select", "files"}
        or found["writer"] != WRITER
        or found["select"] not in tuple(CRITERIA)
        or not isinstance(files, list)
        or not all(map(is_ours, files))
    ):
        raise InputError(f"{shown(path)} is not from {WRITER}: give another --out, or move that file")
    return Manifest(found["select"], tuple(files))


def _without_manifest(out: Path) -> Manifest | None:
    """Of a folder that a version without manifests wrote: its `results.json` tells."""
    try:
        found = read_json(out / "results.json")
    except InputError:
        return None
    if not {"schema", "header", "criteria", "tables"} <= found.keys() or found.get("criterion") not in tuple(CRITERIA):
        return None
    return Manifest(found["criterion"], tuple(name for name in NAMES if exists(out / name)))


def check_out(out: Path) -> None:
    """Checks that files can be written to a folder, before there is anything to write.

    Args:
        out: Folder, which need not exist.

    Raises:
        InputError: If a path stands in the way, or a file that is not ours has the name of one that we write.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_out(Path(folder, "new"))
        ...     Path(folder, "new").exists()
        False
    """
    existing = _existing(out)
    if not is_folder(existing):
        raise InputError(f"cannot write to {shown(out)}: {shown(existing)} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {shown(out)}: {shown(existing)} is not writable")
    manifest = read_manifest(out)
    ours = () if manifest is None else manifest.files
    of_metrics = [path.name for path in out.glob("metric_*") if is_ours(path.name)] if is_folder(out) else []
    for name in (*NAMES, *of_metrics, *(apart(each) for each in CRITERIA)):
        path = out / name
        if not exists(path) or name in ours:
            continue
        if is_ours(name) or not is_folder(path) or path.is_symlink():
            raise InputError(f"{shown(path)} is not from {WRITER}: give another --out, or move it")


def _existing(out: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    for path in (out, *out.absolute().parents):
        try:
            os.lstat(path)
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            if exists(path):
                raise InputError(f"cannot write to {shown(out)}: {shown(path)} is a link to nothing") from None
        except (OSError, ValueError) as error:
            raise InputError(f"cannot write to {shown(out)}: {reason(error)}") from error
        else:
            return path
    raise InputError(f"cannot write to {shown(out)}: there is no folder above it")


def apart(select: str) -> str:
    """Name of the folder for a report of other runs than the folder's own report has.

    Example:
        >>> apart("oracle")
        'select-oracle'
    """
    return f"select-{select}"


def report_folder(out: Path, select: str) -> Path:
    """Where a report is written: into the folder itself, or apart from the report of other runs that is there.

    Args:
        out: Folder of the results.
        select: Which runs and points are reported.

    Returns:
        Folder, which need not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     claim(Path(folder), "last")
        ...     [report_folder(Path(folder), each).name for each in ("oracle", "validation")]
        ['select-oracle', 'select-validation']
    """
    manifest = read_manifest(out)
    return out if manifest is None or manifest.select == select else out / apart(select)


def claim(out: Path, select: str, anew: bool = False) -> None:
    """Writes down, before there is a report, which runs that of this folder will have; nothing where that is settled.

    Args:
        out: Folder, which must exist.
        select: Which runs and points will be reported.
        anew: Whether no run is finished, so that what was settled without a report does not count.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     claim(Path(folder), "last")
        ...     claim(Path(folder), "oracle")
        ...     read_manifest(Path(folder)).select
        'last'
    """
    manifest = read_manifest(out)
    if manifest is None or (anew and not manifest.files):
        write_files(out, {MANIFEST: _manifest_bytes(Manifest(select, ()))})


def _manifest_bytes(manifest: Manifest) -> bytes:
    contents = {"writer": WRITER, "select": manifest.select, "files": sorted(manifest.files)}
    return (json.dumps(contents, indent=1) + "\n").encode()


def write_report(out: Path, contents: Mapping[str, bytes], select: str) -> None:
    """Writes the files of a report, and removes those of an earlier one that this one does not have.

    What was measured while runs were trained stays.

    Args:
        out: Folder, made if it does not exist.
        contents: For each file's name, its bytes.
        select: Which runs and points are reported.

    Raises:
        InputError: If the system refuses, or a file that is not ours stands in the way.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(Path(folder), {"table.md": b"1", "differences.png": b"1"}, "last")
        ...     write_report(Path(folder), {"table.md": b"2"}, "last")
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['report.json', 'table.md']
    """
    check_out(out)
    before = read_manifest(out)
    earlier = () if before is None else before.files
    # First of all that will be ours, so that no kill leaves a file that nobody owns.
    write_files(out, {MANIFEST: _manifest_bytes(Manifest(select, tuple({*earlier, *contents})))})
    write_files(out, contents)
    kept = {*contents, *(name for name in earlier if name in OF_TRAINING)}
    try:
        for name in {*earlier} - kept:
            Path(out, name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {shown(out)}: {reason(error)}") from error
    write_files(out, {MANIFEST: _manifest_bytes(Manifest(select, tuple(kept)))})


def write_files(out: Path, contents: Mapping[str, bytes]) -> None:
    """Writes files into a folder, each whole or not at all.

    Args:
        out: Folder, made if it does not exist.
        contents: For each file's name, its bytes.

    Raises:
        InputError: If the system refuses.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_files(Path(folder, "new"), {"table.md": b"# Title"})
        ...     [(path.name, path.read_bytes()) for path in Path(folder, "new").iterdir()]
        [('table.md', b'# Title')]
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_unfinished(out)
        with unfinished_folder(out) as unfinished:
            for name, content in contents.items():
                Path(unfinished, name).write_bytes(content)
            for name in contents:
                os.replace(Path(unfinished, name), out / name)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write to {shown(out)}: {reason(error)}") from error


def set_aside(out: Path) -> Path:
    """Moves results and reports into a folder of their own, inside, so that others can take their place.

    Args:
        out: Folder, with a results file of ours.

    Returns:
        The new folder, `earlier-1` or the first such name that is free.

    Raises:
        InputError: If the system refuses.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, RESULTS).write_text("")
        ...     write_report(Path(folder), {"table.md": b"1"}, "last")
        ...     aside = set_aside(Path(folder))
        ...     aside.name, sorted(path.name for path in aside.iterdir())
        ('earlier-1', ['report.json', 'results.jsonl', 'table.md'])
    """
    manifest = read_manifest(out)
    names = [] if manifest is None else [*manifest.files, MANIFEST]
    names += [apart(each) for each in CRITERIA if exists(out / apart(each) / MANIFEST)]
    names += [MODELS] * has_models(out)
    try:
        aside = _first_free(out)
        # The results last: as long as they are here, a killed move can be made again.
        for name in [*names, LOGITS, RESULTS]:
            if exists(out / name):
                os.rename(out / name, aside / name)
    except OSError as error:
        raise InputError(f"cannot move the results in {shown(out)} aside: {reason(error)}") from error
    return aside


def has_models(out: Path) -> bool:
    """Whether a folder of results has models that a sweep kept, in a folder of their own.

    Example:
        >>> has_models(Path("nothing here"))
        False
    """
    if not is_folder(out / MODELS):
        return False
    for path in (out / MODELS).glob("*.json"):
        with contextlib.suppress(InputError):
            if read_json(path).get("writer") == WRITER:
                return True
    return False


def _first_free(out: Path) -> Path:
    number = 1
    while True:
        with contextlib.suppress(FileExistsError):
            (aside := out / f"earlier-{number}").mkdir()
            return aside
        number += 1
