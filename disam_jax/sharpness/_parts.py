"""Long measures in parts: progress after each, and a file from which an interrupted one goes on."""

import hashlib
import math
import os
import re
import stat
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from disam_jax.sharpness._surface import LossSurface, reading

Progress = Callable[[str, float, float], None]


def in_parts(
    measure: Callable[[int], Mapping[str, Any]],
    total: int,
    *,
    what: str,
    surface: LossSurface,
    losses: np.ndarray,
    inputs: Any,
    out: str | os.PathLike[str] | None,
    progress: Progress | None,
) -> dict[str, np.ndarray]:
    """Measures part after part.

    Args:
      measure: From the number of a part to its arrays by name, of the same shapes for every part.
      total: Number of parts.
      what: Name of the measure.
      surface: That is measured.
      losses: Of the domains at the point that is measured, ``[D]``.
      inputs: All else that decides the numbers: a pytree of arrays, keys, numbers and strings.
      out: File in numpy's npz format that is written after each part and read at the start, if it exists.
      progress: Called as ``progress(what, done, total)`` after each part, and once before the first.

    Returns:
      Arrays ``[total, ...]`` by name.

    Raises:
      ValueError: When the file holds something else.
    """
    path = None if out is None else Path(out)
    mark = "" if path is None else _mark(what, surface, inputs)
    parts = {} if path is None or not os.path.lexists(path) else _load(path, what, mark, losses)
    done = min(len(next(iter(parts.values()))), total) if parts else 0
    show = progress or (lambda *_: None)
    show(what, done, total)
    for number in range(done, total):
        with reading(surface):
            part = {name: np.asarray(values) for name, values in measure(number).items()}
        for name, values in part.items():
            parts[name] = np.concatenate([parts[name], values[None]]) if name in parts else values[None]
        if path is not None:
            _save(path, parts, mark, losses)
        show(what, number + 1, total)
    return parts


def _mark(what: str, surface: LossSurface, inputs: Any) -> str:
    """A digest of all that decides the numbers, but the loss function: the losses stand for it."""
    blocks = surface.blocks
    digest = hashlib.blake2b(what.encode(), digest_size=16)
    # The size of the blocks is left out: it changes no number beyond rounding.
    rows = np.asarray(blocks.rows)[np.asarray(blocks.counted)]
    for path, leaf in jax.tree_util.tree_leaves_with_path((inputs, blocks.data, rows, blocks.counts, surface.shares)):
        is_key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _load(path: Path, what: str, mark: str, losses: np.ndarray) -> dict[str, np.ndarray]:
    try:
        parts = _arrays(path)
        found, before = str(parts.pop("mark")), parts.pop("losses_at_w")
        lengths = {len(each) if each.ndim else None for each in parts.values()}
        if len(lengths) != 1 or None in lengths:
            raise ValueError("the arrays are not of as many parts.")
    except _DAMAGES as error:
        raise ValueError(f"{path} holds no measure of disam_jax.sharpness: delete it or write another out.") from error
    if found != mark:
        raise ValueError(
            f"{path} holds another measure than this {what}: of other parameters, data or options. Delete it or write "
            "another out."
        )
    if before.shape != losses.shape or not np.allclose(before, losses, rtol=1e-3, atol=1e-6):
        raise ValueError(
            f"{path} was measured with another loss_fn: the losses at the parameters were {before.tolist()} and are "
            f"{losses.tolist()}. Delete it or write another out."
        )
    return parts


# What `zipfile` raises at bytes that are no archive, or one that numpy did not write.
_DAMAGES = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    OverflowError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
)
# As numpy writes it, and nothing that would have to be evaluated.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|][a-zA-Z]\d{1,6})', 'fortran_order': (True|False), "
    rb"'shape': \(([\d, ]{0,200})\), \} *\n",
    re.DOTALL,
)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file as `_save` writes it, with checksums; no more memory is taken than the file has bytes."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file.")
    with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
        members, size = archive.infolist(), path.stat().st_size
        stored = all(each.compress_type == zipfile.ZIP_STORED and not each.flag_bits & 1 for each in members)
        if not stored or sum(each.file_size for each in members) > size:
            raise ValueError("it is compressed, encrypted or incomplete.")
        return {each.filename.removesuffix(".npy"): _array(archive.read(each)) for each in members}


def _array(content: bytes) -> np.ndarray:
    header = _HEADER.match(content)
    if header is None:
        raise ValueError("an array has no header as numpy writes it.")
    dtype, shape = np.dtype(header[1].decode()), tuple(int(each) for each in header[3].split(b",") if each.strip())
    if math.prod(shape) * dtype.itemsize != len(content) - header.end():
        raise ValueError("an array has more or fewer bytes than its shape.")
    order = "F" if header[2] == b"True" else "C"
    return np.frombuffer(content, dtype, offset=header.end()).reshape(shape, order=order).copy()


def _save(path: Path, parts: Mapping[str, np.ndarray], mark: str, losses: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: a kill while it is written leaves the file of the part before.
    scratch = path.with_name(path.name + ".part")
    arrays: dict[str, Any] = {**parts, "mark": np.array(mark), "losses_at_w": losses}
    with scratch.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(scratch, path)
