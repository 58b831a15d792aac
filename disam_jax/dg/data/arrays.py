"""Data in arrays: one npz file with the inputs, the labels and the domains."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.names import hint
from disam_jax.dg.data.npz import Header, open_npz
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import brief, shown

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

    What the file declares is checked before memory is taken for it. Compressed arrays may take 256 MiB, or 100 times as
    much as the file; write larger ones with `np.savez`, which does not compress.

    Args:
        path: the file.
        allow_missing_classes: let domains lack classes. They are held out in turn, and what a model is asked about a
            class that its source domains do not have is another question.

    Returns:
        The data set, named after the file. The rows of a domain keep their order.

    Raises:
        InputError: if the file cannot be read or is damaged, an array is missing, unknown, of size zero or does not
            fit, a value of `x` is not finite, or there are fewer than two domains or two classes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "toy.npz")
        ...     np.savez(path, x=np.zeros((4, 3)), y=["cat", "dog"] * 2, domain=["a", "a", "b", "b"])
        ...     load_arrays(path).class_names
        ('cat', 'dog')
    """
    where = shown(path)
    if any("\ud800" <= char <= "\udfff" for char in path.stem):
        raise InputError(f"{where}: the data set is named after the file, and this name is not text: rename the file")
    try:
        return _domains(_read(path, where), path.stem, where, allow_missing_classes)
    except MemoryError as error:
        raise InputError(f"{where}: its arrays do not fit into the memory of this machine") from error


def load_inputs(path: Path) -> np.ndarray:
    """Reads the inputs of an npz file that need not be a data set: of its arrays `x` alone.

    Args:
        path: Path of the file.

    Returns:
        float32 [N, ...], or uint8 images [N, H, W, 3].

    Raises:
        InputError: As `load_arrays`, where it is about `x`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(Path(folder, "new.npz"), x=np.zeros((4, 3)))
        ...     load_inputs(Path(folder, "new.npz")).shape
        (4, 3)
    """
    where = shown(path)
    with open_npz(path) as npz:
        if "x" not in npz.headers:
            raise InputError(f"{where} has no array 'x', only {_listed(list(npz.headers))}")
        shape = npz.headers["x"].shape
        if len(shape) < 2 or 0 in shape:
            raise InputError(f"{where}: x must be [N, ...] with at least one example, got shape {brief(list(shape))}")
        return _inputs(npz.read("x"), where)


def load_domain(path: Path, class_names: Sequence[str], domain: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Reads the examples of one domain of an npz file, with labels of given classes.

    Args:
        path: Path of the file, with arrays `x` and `y` as for `load_arrays`; `domain` may be absent.
        class_names: C names. Strings in `y`, or the `class_names` of the file, must be among them; other integers in
            `y` are indices into them.
        domain: Name of the domain; None where the file has one alone.

    Returns:
        Inputs [N, ...] and labels int32 [N].

    Raises:
        InputError: If the file cannot be read, a label is none of the classes, or the domain is not there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(Path(folder, "new.npz"), x=np.zeros((2, 3)), y=["dog", "cat"])
        ...     load_domain(Path(folder, "new.npz"), ["cat", "dog"])[1].tolist()
        [1, 0]
    """
    where, inputs = shown(path), load_inputs(path)
    with open_npz(path) as npz:
        if "y" not in npz.headers:
            raise InputError(f"{where} has no array 'y' of labels: predict takes examples without labels")
        keys = [key for key in ("y", "domain", "class_names", "domain_names") if key in npz.headers]
        arrays = {key: npz.read(key) for key in keys}
    for key in ("y", "domain"):
        if key in arrays and arrays[key].shape != inputs.shape[:1]:
            raise InputError(
                f"{where}: {key} must have shape [{len(inputs)}] like x, got {brief(list(arrays[key].shape))}"
            )
    own = _names(arrays, "class_names", where)
    labels, found = _labels(arrays["y"], own if own or arrays["y"].dtype.kind == "U" else tuple(class_names), where)
    unknown = [found[label] for label in np.unique(labels).tolist() if found[label] not in class_names]
    if unknown:
        raise InputError(
            f"{where}: the model does not know the class {shown(unknown[0])}: it has {_listed(class_names)}"
            f"{hint(unknown[0], class_names)}"
        )
    place = np.array([class_names.index(name) if name in class_names else -1 for name in found], np.int32)
    rows = np.ones(len(labels), bool)
    if "domain" in arrays:
        ids, names = _domain_ids(arrays["domain"], _names(arrays, "domain_names", where), where)
        if domain is None and len(names) == 1:
            domain = names[0]
        if domain not in names:
            asked = "it has several domains" if domain is None else f"it has no domain {shown(domain)}"
            raise InputError(f"{where}: {asked}: write --domain and one of {_listed(names)}")
        rows = ids == names.index(domain)
    elif domain is not None:
        raise InputError(f"{where} has no array 'domain': leave out --domain {shown(domain)}")
    return inputs[rows], place[labels[rows]]


def _read(path: Path, where: str) -> dict[str, np.ndarray]:
    with open_npz(path) as npz:
        _check_headers(npz.headers, where)
        return {key: npz.read(key) for key in npz.headers}


def _check_headers(headers: Mapping[str, Header], where: str) -> None:
    missing = [key for key in REQUIRED if key not in headers]
    if missing:
        raise InputError(f"{where} has no array {missing[0]!r}, only {_listed(list(headers))}")
    unknown = [key for key in headers if key not in REQUIRED + OPTIONAL]
    if unknown:
        raise InputError(f"{where}: unknown array {brief(unknown[0])}; known are {', '.join(REQUIRED + OPTIONAL)}")
    shape = headers["x"].shape
    if len(shape) < 2 or 0 in shape:
        raise InputError(
            f"{where}: x must be [N, ...] with at least one row and two axes, none of size zero, got shape "
            f"{brief(list(shape))}"
        )
    for key in ("y", "domain", "validation"):
        if key in headers and headers[key].shape != shape[:1]:
            raise InputError(
                f"{where}: {key} must have shape [{shape[0]}] like x, got {brief(list(headers[key].shape))}"
            )
    for key in ("class_names", "domain_names"):
        header = headers.get(key)
        if header and (header.dtype.kind != "U" or len(header.shape) != 1 or not header.nbytes):
            raise InputError(
                f"{where}: {key} must be different strings, got {header.dtype} {brief(list(header.shape))}"
            )


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*map(shown, names[:most]), *more])


def _domains(arrays: Mapping[str, np.ndarray], name: str, where: str, allow_missing_classes: bool) -> Domains:
    x, y, domain = (arrays[key] for key in REQUIRED)
    inputs = _inputs(x, where)
    labels, class_names = _labels(y, _names(arrays, "class_names", where), where)
    ids, domain_names = _domain_ids(domain, _names(arrays, "domain_names", where), where)
    if len(domain_names) < 2 or len(class_names) < 2:
        what = "domain" if len(domain_names) < 2 else "class"
        raise InputError(f"{where} has only one {what}; at least two are needed")
    _check_counts(ids, labels, domain_names, class_names, allow_missing_classes, where)
    validation = arrays.get("validation")
    if validation is not None and validation.dtype != bool:
        raise InputError(f"{where}: validation must be bool, got {validation.dtype}")
    order = np.argsort(ids, kind="stable")
    return Domains(
        name=name,
        inputs=inputs[order],
        labels=labels[order],
        domain_ids=ids[order],
        domain_names=domain_names,
        class_names=class_names,
        validation=None if validation is None else validation[order],
    )


def _inputs(x: np.ndarray, where: str) -> np.ndarray:
    if x.dtype == np.uint8:
        if x.ndim != 4 or x.shape[-1] != 3:
            raise InputError(f"{where}: x of uint8 must be images [N, H, W, 3], got {list(x.shape)}; or save floats")
        return x
    if x.dtype.kind != "f":
        raise InputError(f"{where}: x must be floating point or uint8, got {x.dtype}")
    with np.errstate(over="ignore"):
        inputs = x.astype(np.float32)
    finite = np.isfinite(inputs.reshape(len(inputs), -1)).all(1)
    if not finite.all():
        raise InputError(f"{where}: x is not finite in {(~finite).sum()} rows, the first {np.argmin(finite)} (from 0)")
    return inputs


def _names(arrays: Mapping[str, np.ndarray], key: str, where: str) -> tuple[str, ...] | None:
    if key not in arrays:
        return None
    names = arrays[key]
    if len(set(names.tolist())) != len(names):
        raise InputError(f"{where}: {key} must be different strings, got {names.dtype} {list(names.shape)}")
    return tuple(names.tolist())


def _labels(y: np.ndarray, names: tuple[str, ...] | None, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    if y.dtype.kind == "U":
        names = tuple(np.unique(y).tolist()) if names is None else names
        return _lookup(y, names, "y", "class_names", where), names
    _check_integers(y, "y", where)
    # A label that is no index would make as many classes.
    limit = len(y) if names is None else len(names)
    wrong = (y < 0) | (y >= limit)
    if wrong.any():
        of = "" if names is None else f" for {limit} class_names"
        raise InputError(f"{where}: label {y[wrong][0]} in row {np.argmax(wrong)} of y; labels count from 0{of}")
    return y.astype(np.int32), tuple(str(label) for label in range(int(y.max()) + 1)) if names is None else names


def _domain_ids(domain: np.ndarray, names: tuple[str, ...] | None, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    if names is None:
        if domain.dtype.kind != "U":
            _check_integers(domain, "domain", where)
        values, ids = np.unique(domain, return_inverse=True)
        return ids.astype(np.int32), tuple(str(value) for value in values.tolist())
    if domain.dtype.kind == "U":
        return _lookup(domain, names, "domain", "domain_names", where), names
    _check_integers(domain, "domain", where)
    wrong = (domain < 0) | (domain >= len(names))
    if wrong.any():
        raise InputError(
            f"{where}: domain {domain[wrong][0]} in row {np.argmax(wrong)}, but there are {len(names)} domain_names"
        )
    return domain.astype(np.int32), names


def _check_integers(values: np.ndarray, key: str, where: str) -> None:
    if values.dtype.kind not in "iu":
        raise InputError(f"{where}: {key} must be integers or strings, got {values.dtype}")


def _lookup(values: np.ndarray, names: Sequence[str], key: str, names_key: str, where: str) -> np.ndarray:
    place = {name: index for index, name in enumerate(names)}
    unknown = [value for value in np.unique(values).tolist() if value not in place]
    if unknown:
        raise InputError(f"{where}: {brief(unknown[0])} in {key} is not among the {names_key}: {_listed(names)}")
    return np.array([place[value] for value in values.tolist()], np.int32)


def _check_counts(
    ids: np.ndarray,
    labels: np.ndarray,
    domain_names: Sequence[str],
    class_names: Sequence[str],
    allow_missing: bool,
    where: str,
) -> None:
    for index in np.flatnonzero(np.bincount(ids, minlength=len(domain_names)) == 0).tolist():
        raise InputError(f"{where}: no example of the domain {shown(domain_names[index])}")
    if allow_missing:
        return
    for index in np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0).tolist():
        raise InputError(f"{where}: no example of the class {shown(class_names[index])} in any domain")
    # Pairs of domain and class that there are, in order: a table of all could be larger than the memory.
    pairs = np.unique(ids.astype(np.int64) * len(class_names) + labels)
    if len(pairs) < len(domain_names) * len(class_names):
        gaps = np.flatnonzero(pairs != np.arange(len(pairs)))
        place, index = divmod(int(gaps[0]) if len(gaps) else len(pairs), len(class_names))
        raise InputError(
            f"{where}: class {shown(class_names[index])} is missing in domain {shown(domain_names[place])}"
        )
