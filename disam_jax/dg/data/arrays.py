"""Data in arrays: one npz file with the inputs, the labels and the domains."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from disam_jax.dg.data.domains import Domains
from disam_jax.dg.errors import InputError

REQUIRED = ("x", "y", "domain")
OPTIONAL = ("class_names", "domain_names", "validation")


def load_arrays(path: Path, allow_missing_classes: bool = False) -> Domains:
    """Reads a data set from the arrays of an npz file.

    - `x`: [N, ...], floating point and finite, or uint8 images [N, H, W, 3].
    - `y`: [N], integers, indices into the classes, or strings.
    - `domain`: [N], integers or strings.
    - `class_names`: C strings. Without them the classes are the strings in `y`, sorted, or 0..max(y).
    - `domain_names`: D strings. With them, integers in `domain` are indices into them; without them, the domains are
      the values in `domain`, sorted.
    - `validation`: bool [N], True for the examples to validate on. Without it the split is drawn, see `splits`.

    Args:
        path: the file.
        allow_missing_classes: let domains lack classes. They are held out in turn, and what a model is asked about a
            class that its source domains do not have is another question.

    Returns:
        The data set, named after the file. The rows of a domain keep their order.

    Raises:
        InputError: if the file cannot be read, an array is missing, unknown or does not fit, a value of `x` is not
            finite, or there are fewer than two domains or two classes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "toy.npz")
        ...     np.savez(path, x=np.zeros((4, 3)), y=["cat", "dog"] * 2, domain=["a", "a", "b", "b"])
        ...     load_arrays(path).class_names
        ('cat', 'dog')
    """
    arrays = _read(path)
    x, y, domain = (arrays[key] for key in REQUIRED)
    if x.ndim < 2 or not len(x):
        raise InputError(f"{path}: x must be [N, ...] with at least one row and two axes, got shape {list(x.shape)}")
    for key in ("y", "domain", "validation"):
        if key in arrays and arrays[key].shape != (len(x),):
            raise InputError(f"{path}: {key} must have shape [{len(x)}] like x, got {list(arrays[key].shape)}")
    inputs = _inputs(x, path)
    labels, class_names = _labels(y, _names(arrays, "class_names", path), path)
    ids, domain_names = _domain_ids(domain, _names(arrays, "domain_names", path), path)
    if len(domain_names) < 2 or len(class_names) < 2:
        what = "domain" if len(domain_names) < 2 else "class"
        raise InputError(f"{path} has only one {what}; at least two are needed")
    counts = np.zeros((len(domain_names), len(class_names)), np.int64)
    np.add.at(counts, (ids, labels), 1)
    _check_counts(counts, domain_names, class_names, allow_missing_classes, path)
    validation = arrays.get("validation")
    if validation is not None and validation.dtype != bool:
        raise InputError(f"{path}: validation must be bool, got {validation.dtype}")
    order = np.argsort(ids, kind="stable")
    return Domains(
        name=path.stem,
        inputs=inputs[order],
        labels=labels[order],
        domain_ids=ids[order],
        domain_names=domain_names,
        class_names=class_names,
        validation=None if validation is None else validation[order],
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            return _read_npz(file, path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _read_npz(file: BinaryIO, path: Path) -> dict[str, np.ndarray]:
    try:
        # Without pickles, which could run code.
        npz = np.load(file, allow_pickle=False)
    except (EOFError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read {path}: not a complete npz file") from error
    if not isinstance(npz, np.lib.npyio.NpzFile):
        raise InputError(f"cannot read {path}: a single array; write np.savez(file, x=..., y=..., domain=...)")
    with npz:
        missing = [key for key in REQUIRED if key not in npz.files]
        if missing:
            raise InputError(f"{path} has no array {missing[0]!r}, only {', '.join(npz.files)}")
        unknown = [key for key in npz.files if key not in REQUIRED + OPTIONAL]
        if unknown:
            raise InputError(f"{path}: unknown array {unknown[0]!r}; known are {', '.join(REQUIRED + OPTIONAL)}")
        return {key: _array(npz, key, path) for key in npz.files}


def _array(npz: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    try:
        return npz[key]
    except (EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise InputError(f"{path}: {key} holds Python objects; save numbers or strings") from error
        raise InputError(f"cannot read {key} of {path}: {' '.join(str(error).split())}") from error


def _inputs(x: np.ndarray, path: Path) -> np.ndarray:
    if x.dtype == np.uint8:
        if x.ndim != 4 or x.shape[-1] != 3:
            raise InputError(f"{path}: x of uint8 must be images [N, H, W, 3], got {list(x.shape)}; or save floats")
        return x
    if x.dtype.kind != "f":
        raise InputError(f"{path}: x must be floating point or uint8, got {x.dtype}")
    with np.errstate(over="ignore"):
        inputs = x.astype(np.float32)
    finite = np.isfinite(inputs.reshape(len(inputs), -1)).all(1)
    if not finite.all():
        raise InputError(f"{path}: x is not finite in {(~finite).sum()} rows, the first {np.argmin(finite)} (from 0)")
    return inputs


def _names(arrays: dict[str, np.ndarray], key: str, path: Path) -> tuple[str, ...] | None:
    if key not in arrays:
        return None
    names = arrays[key]
    if names.dtype.kind != "U" or names.ndim != 1 or len(set(names.tolist())) != len(names):
        raise InputError(f"{path}: {key} must be different strings, got {names.dtype} {list(names.shape)}")
    return tuple(names.tolist())


def _labels(y: np.ndarray, names: tuple[str, ...] | None, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    if y.dtype.kind == "U":
        names = tuple(np.unique(y).tolist()) if names is None else names
        return _lookup(y, names, "y", "class_names", path), names
    _check_integers(y, "y", path)
    # A label that is no index would make as many classes.
    limit = len(y) if names is None else len(names)
    wrong = (y < 0) | (y >= limit)
    if wrong.any():
        of = "" if names is None else f" for {limit} class_names"
        raise InputError(f"{path}: label {y[wrong][0]} in row {np.argmax(wrong)} of y; labels count from 0{of}")
    return y.astype(np.int32), tuple(str(label) for label in range(int(y.max()) + 1)) if names is None else names


def _domain_ids(domain: np.ndarray, names: tuple[str, ...] | None, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    if names is None:
        if domain.dtype.kind != "U":
            _check_integers(domain, "domain", path)
        values, ids = np.unique(domain, return_inverse=True)
        return ids.astype(np.int32), tuple(str(value) for value in values.tolist())
    if domain.dtype.kind == "U":
        return _lookup(domain, names, "domain", "domain_names", path), names
    _check_integers(domain, "domain", path)
    wrong = (domain < 0) | (domain >= len(names))
    if wrong.any():
        raise InputError(
            f"{path}: domain {domain[wrong][0]} in row {np.argmax(wrong)}, but there are {len(names)} domain_names"
        )
    return domain.astype(np.int32), names


def _check_integers(values: np.ndarray, key: str, path: Path) -> None:
    if values.dtype.kind not in "iu":
        raise InputError(f"{path}: {key} must be integers or strings, got {values.dtype}")


def _lookup(values: np.ndarray, names: Sequence[str], key: str, names_key: str, path: Path) -> np.ndarray:
    place = {name: index for index, name in enumerate(names)}
    unknown = [value for value in np.unique(values).tolist() if value not in place]
    if unknown:
        raise InputError(f"{path}: {unknown[0]!r} in {key} is not among the {names_key}: {', '.join(names)}")
    return np.array([place[value] for value in values.tolist()], np.int32)


def _check_counts(
    counts: np.ndarray, domain_names: Sequence[str], class_names: Sequence[str], allow_missing: bool, path: Path
) -> None:
    for index in np.flatnonzero(counts.sum(1) == 0).tolist():
        raise InputError(f"{path}: no example of the domain {domain_names[index]}")
    for index in np.flatnonzero(counts.sum(0) == 0).tolist():
        if not allow_missing:
            raise InputError(f"{path}: no example of the class {class_names[index]} in any domain")
    for place, index in np.argwhere(counts == 0).tolist():
        if not allow_missing:
            raise InputError(f"{path}: class {class_names[index]} is missing in domain {domain_names[place]}")
