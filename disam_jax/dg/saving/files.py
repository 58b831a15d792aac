"""The files of models: their names, what they say, and how they are written whole."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from disam_jax.dg.errors import InputError
from disam_jax.dg.pretrained.tensors import bytes_of, read_entries, read_metadata, write_tensors
from disam_jax.dg.reading import brief, exists, read_json, reason, shown
from disam_jax.dg.results import Run
from disam_jax.dg.sweep.results_folder import WRITER
from disam_jax.dg.unfinished import remove_unfinished, unfinished_folder

FORMAT = 1
RECORD, TENSORS = ".json", ".safetensors"
DIGEST = "digest"
_HASH = re.compile("[0-9a-f]{64}")
# The longest part of a file name that is a method's or a domain's own.
_LONGEST = 60

# Of a record: the type of each entry, and what it must have. A record of a later format may be otherwise.
FIELDS: Mapping[str, tuple[type, tuple[str, ...]]] = {
    "versions": (dict, ()),
    "network": (dict, ("model", "input_shape", "architecture", "preprocessing")),
    "classes": (list, ()),
    "inputs": (dict, ("kind", "shape", "dtype", "image_size")),
    "data": (dict, ("name", "fingerprint", "trained_on", "target", "of_target")),
    "run": (dict, ("method", "seed", "candidate", "hyperparameters", "target", "step")),
    "saved": (dict, ()),
    "measured": (dict, ()),
    "tensors": (dict, ("own", "frozen")),
}


class Digests(NamedTuple):
    """Hashes of the tensors that belong to a record.

    Attributes:
        own: Of those that the run trained.
        frozen: Of those that all runs share; None if there are none.
    """

    own: str
    frozen: str | None


def file_part(name: str) -> str:
    """A name as a part of a file name; names that differ stay different.

    Example:
        >>> file_part("GSAM+DISAM-std"), file_part("art painting")
        ('GSAM+DISAM-std', 'art-painting~c28886')
    """
    plain = "".join(char if char.isascii() and (char.isalnum() or char in "+-_.") else "-" for char in name)[:_LONGEST]
    return plain if plain == name else f"{plain}~{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def model_name(run: Run, target: str, save: str) -> str:
    """The name of the files of a run's model, without their endings.

    Args:
        run: Run.
        target: Name of its target.
        save: "last", of which each candidate has one, or "best", of which they have one together.

    Returns:
        Name.

    Example:
        >>> run = Run("DISAM", target=1, seed=3, candidate=2, hparams={})
        >>> model_name(run, "sketch", "best"), model_name(run, "sketch", "last")
        ('DISAM-sketch-seed3-best', 'DISAM-sketch-seed3-candidate2-last')
    """
    candidate = "" if save == "best" else f"-candidate{run.candidate}"
    return f"{file_part(run.method)}-{file_part(target)}-seed{run.seed}{candidate}-{save}"


def digest_of(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of tensors: their names, types, shapes and values, in the order of their names.

    Example:
        >>> digest_of({"a": np.zeros(2), "b": np.ones(1)}) == digest_of({"b": np.ones(1), "a": np.zeros(2)})
        True
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.asarray(tensors[name])
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def frozen_name(digest: str) -> str:
    """The name of the file of weights that no run trains.

    Example:
        >>> frozen_name("ab" * 32)
        'frozen-abababababababab.safetensors'
    """
    return f"frozen-{digest[:16]}{TENSORS}"


def write_frozen(folder: Path, tensors: Mapping[str, np.ndarray]) -> str | None:
    """Writes the weights that no run trains, unless they are there.

    Args:
        folder: Folder of the models, made if need be.
        tensors: Arrays by name.

    Returns:
        Their hash, or None if there are none.

    Raises:
        InputError: If the system refuses.
    """
    if not tensors:
        return None
    digest = digest_of(tensors)
    if not exists(folder / frozen_name(digest)):
        _write(folder, {frozen_name(digest): tensors}, {}, digest)
    return digest


def write_model(folder: Path, name: str, record: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a model: its tensors, then its record, each whole or not at all.

    Args:
        folder: Folder of the models, made if need be.
        name: From `model_name`.
        record: JSON values, of `FIELDS`; "tensors" has the hash of the frozen ones.
        tensors: What the run trained, by name.

    Raises:
        InputError: If the system refuses.
    """
    digest = digest_of(tensors)
    whole = {"writer": WRITER, "format": FORMAT, **record, "tensors": {**record["tensors"], "own": digest}}
    _write(folder, {f"{name}{TENSORS}": tensors}, {f"{name}{RECORD}": whole}, digest)


def _write(
    folder: Path, tensors: Mapping[str, Mapping[str, np.ndarray]], records: Mapping[str, Mapping[str, Any]], digest: str
) -> None:
    with _unfinished(folder) as unfinished:
        for name, each in tensors.items():
            write_tensors(unfinished / name, each, {"writer": WRITER, DIGEST: digest})
        for name, record in records.items():
            text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
            (unfinished / name).write_text(f"{text}\n", encoding="utf-8")
        # A record comes last: where it says so, its tensors are there.
        for name in (*tensors, *records):
            os.replace(unfinished / name, folder / name)


def copy_model(folder: Path, into: Path, name: str) -> None:
    """Copies the files of a model, each whole or not at all, and the weights that it shares with others.

    Args:
        folder: Folder of the models, which has this one.
        into: Folder to copy to, made if need be.
        name: From `model_name`.

    Raises:
        InputError: If the system refuses.
    """
    record = read_record(folder / f"{name}{RECORD}")
    frozen = digests_in(record, name).frozen
    shared = [] if frozen is None or exists(into / frozen_name(frozen)) else [frozen_name(frozen)]
    names = [*shared, f"{name}{TENSORS}", f"{name}{RECORD}"]
    with _unfinished(into) as unfinished:
        for each in names:
            shutil.copyfile(folder / each, unfinished / each)
        for each in names:
            os.replace(unfinished / each, into / each)


@contextlib.contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A folder in a folder of models for what is being written; what the system refuses is an error of one line."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)
        with unfinished_folder(folder) as unfinished:
            yield unfinished
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot write the model to {shown(folder)}: {reason(error)}; what was finished before is kept, and the "
            "same command goes on from there"
        ) from error


def read_record(path: Path) -> dict[str, Any]:
    """The record of a model, checked to have all that a record has.

    Args:
        path: Path of the JSON file.

    Returns:
        JSON values.

    Raises:
        InputError: If it cannot be read, is none of ours or of a later version, or lacks an entry.
    """
    record, where = read_json(path), shown(path)
    if record.get("writer") != WRITER or type(record.get("format")) is not int:
        raise InputError(
            f"{where} is not a model of {WRITER}: give a file that --save wrote, NAME.json or NAME.safetensors"
        )
    if record["format"] > FORMAT:
        wrote = record["versions"].get("disam_jax") if isinstance(record.get("versions"), dict) else None
        by = f" by disam-jax {shown(wrote[:40])}" if isinstance(wrote, str) else ""
        raise InputError(
            f"{where} was written in format {record['format']}{by}, this version reads up to format {FORMAT}: "
            "pip install --upgrade disam-jax"
        )
    for name, (kind, inside) in FIELDS.items():
        if name not in record:
            raise InputError(f"{where} lacks the entry {name!r}: get the file anew, or save the model again")
        if not isinstance(record[name], kind):
            wanted = "an object {...}" if kind is dict else "a list [...]"
            raise InputError(f"{where}: {name} must be {wanted}, got {brief(record[name])}: get the file anew")
        lacking = [f"{name}.{key}" for key in inside if key not in record[name]]
        if lacking:
            raise InputError(f"{where} lacks the entry {lacking[0]!r}: get the file anew, or save the model again")
    if len(record["classes"]) < 2 or not all(isinstance(each, str) for each in record["classes"]):
        raise InputError(f"{where}: classes must be names of at least two classes, got {brief(record['classes'])}")
    digests_in(record, where)
    return record


def digests_in(record: Mapping[str, Any], where: str) -> Digests:
    """The hashes that a record has.

    Raises:
        InputError: If they are none.
    """
    own, frozen = (record["tensors"].get(name) for name in Digests._fields)
    for name, digest, given in (("own", own, True), ("frozen", frozen, frozen is not None)):
        if given and not (isinstance(digest, str) and _HASH.fullmatch(digest)):
            raise InputError(f"{where}: tensors.{name} must be a SHA-256, got {brief(digest)}: get it anew")
    return Digests(own, frozen)


def is_kept(folder: Path, name: str, run: Run, fingerprint: str) -> bool:
    """Whether a folder has the model of a run, its files whole and of one writing.

    Args:
        folder: Folder of the models.
        name: From `model_name`.
        run: Run.
        fingerprint: Of the data that it was trained on.

    Returns:
        Whether; a file of another writer in its place is an error.

    Raises:
        InputError: If a file stands in its place that is none of ours.
    """
    path, tensors = folder / f"{name}{RECORD}", folder / f"{name}{TENSORS}"
    if not exists(path):
        return False
    record = read_record(path)
    digests = digests_in(record, shown(path))
    files = {tensors: digests.own}
    if digests.frozen is not None:
        files[folder / frozen_name(digests.frozen)] = digests.frozen
    return (
        # A sweep that grows may count its candidates anew.
        all(record["run"].get(key) == value for key, value in run_record(run).items() if key != "candidate")
        and record["data"].get("fingerprint") == fingerprint
        and all(exists(file) and _holds(file, digest) for file, digest in files.items())
    )


def _holds(file: Path, digest: str) -> bool:
    """Whether a file is whole and says that it has the tensors of a hash. Their values are not read for that."""
    try:
        read_entries(file)
        return read_metadata(file).get(DIGEST) == digest
    except InputError:
        return False


def run_record(run: Run) -> dict[str, Any]:
    """What a record says of a run, beside its target's name.

    Example:
        >>> run_record(Run("ERM", target=1, seed=0, candidate=0, hparams={"learning_rate": 0.1}))
        {'method': 'ERM', 'seed': 0, 'candidate': 0, 'hyperparameters': {'learning_rate': 0.1}}
    """
    return {
        "method": run.method,
        "seed": run.seed,
        "candidate": run.candidate,
        "hyperparameters": dict(run.hparams),
    }
