"""Checkpoints as they are published: safetensors and config.json, in a folder, a file or a repository of Hugging Face.

Of these, pickle is never read: loading it runs whatever code it holds. Of a folder, only what is in it is read: a link
that leads out of it is refused, but for those of Hugging Face's cache, which lead from a repository's `snapshots` to
its `blobs`.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from disam_jax.dg.errors import InputError
from disam_jax.dg.pretrained.tensors import Tensors
from disam_jax.dg.reading import brief, exists, is_folder, read_json, reason, regular_file, shown

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# What a repository holds beside the weights of other frameworks: these, its configuration and its tokenizer.
HUB_PATTERNS = ("*.safetensors", "*.json", "merges.txt", "vocab.txt")

_PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# "model-00001-of-00002.safetensors"; one of one is whole.
_PART = re.compile(r".*-[0-9]+-of-0*+((?!1\.)[0-9]+)\.safetensors", re.DOTALL)
_NO_PICKLE = (
    "pickle is never read; convert it once where torch is installed: safetensors.torch.save_file("
    "torch.load('{name}', weights_only=True), 'model.safetensors')"
)


class Checkpoint(NamedTuple):
    """A checkpoint, its tensors not yet in memory.

    Attributes:
        where: the file or folder, for messages.
        config: what config.json says; None without one.
        preprocessor: what preprocessor_config.json says of the images; None without one.
        tensors: by key.
    """

    where: str
    config: Mapping[str, Any] | None
    preprocessor: Mapping[str, Any] | None
    tensors: Mapping[str, np.ndarray]


def read_checkpoint(path_or_repo: str | Path, revision: str | None = None) -> Checkpoint:
    """Finds a checkpoint and reads all but its tensors.

    Args:
        path_or_repo: a folder with model.safetensors (or its parts and model.safetensors.index.json, or one other
            .safetensors file) and config.json; a .safetensors file, with or without a config.json beside it; or the
            name of a repository on Hugging Face, "owner/name". A path that exists goes before a repository.
        revision: branch, tag or commit of the repository.

    Returns:
        Checkpoint.

    Raises:
        InputError: if there is no such path, no safetensors file, more than one, a file that is damaged, parts of a
            checkpoint that are not all there, a link or a part out of the folder, a revision of a path; and if a
            repository is meant and `huggingface_hub` is not installed or cannot get it.
    """
    path = checkpoint_path(path_or_repo, revision)
    whole = is_folder(path)
    folder = path if whole else path.parent
    tensors = _folder_tensors(folder) if whole else Tensors([_safetensors_file(path)])
    return Checkpoint(
        where=shown(path),
        config=_settings(folder, CONFIG),
        preprocessor=_settings(folder, PREPROCESSOR),
        tensors=tensors,
    )


def checkpoint_path(path_or_repo: str | Path, revision: str | None = None) -> Path:
    """The path of a checkpoint, which is downloaded if it is a repository.

    Args:
        path_or_repo: Path, or name of a repository on Hugging Face. A path that exists goes before a repository.
        revision: Branch, tag or commit of the repository.

    Returns:
        Path of the folder or the file.

    Raises:
        InputError: If the path cannot be looked at, there is neither path nor repository, or a path has a revision.

    Example:
        >>> checkpoint_path(".")
        PosixPath('.')
    """
    path = Path(path_or_repo)
    if not exists(path):
        return download(str(path_or_repo), revision)
    if revision is not None:
        raise InputError(f"{shown(path)}: revision is {revision!r}, but this is a path; leave revision out")
    return path


def member(folder: Path, name: str) -> Path | None:
    """A file of a checkpoint's folder, if it has one of that name.

    Args:
        folder: Folder of the checkpoint.
        name: Name of the file, or its path inside of the folder.

    Returns:
        Path of the file; None if there is none.

    Raises:
        InputError: If it is not a regular file, or a link that leads out of the folder, and not to the blobs of the
            repository in Hugging Face's cache that the folder is a snapshot of.

    Example:
        >>> member(Path("."), "no such file.json") is None
        True
    """
    path = folder / name
    if not exists(path):
        return None
    regular_file(path)
    home, target = (Path(os.path.realpath(each)) for each in (folder, path))
    if not any(target.is_relative_to(root) for root in (home, *_blobs(home))):
        raise InputError(
            f"{shown(path)}: is a link that leads out of its folder, to {shown(target)}; put a copy of that file there"
        )
    return path


def _blobs(home: Path) -> list[Path]:
    """The folder that the links of a snapshot in Hugging Face's cache lead to."""
    repositories = [parent.parent for parent in home.parents if parent.name == "snapshots"]
    return [repository / "blobs" for repository in repositories[:1] if is_folder(repository / "blobs")]


def _settings(folder: Path, name: str) -> dict[str, Any] | None:
    path = member(folder, name)
    return None if path is None else read_json(path)


def download(repo: str, revision: str | None = None) -> Path:
    """The folder with a repository of Hugging Face, downloaded or from its cache.

    Args:
        repo: "owner/name".
        revision: branch, tag or commit.

    Returns:
        The folder; it holds the files of `HUB_PATTERNS`.

    Raises:
        InputError: if this is no name of a repository, `huggingface_hub` is not installed, or it cannot get it.
    """
    if not _REPOSITORY.fullmatch(repo) or repo.endswith(".safetensors"):
        raise InputError(
            f"{shown(repo)}: no such file or folder; write a path, or owner/name of a repository on Hugging Face"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(
            f"{repo}: no such file or folder; if a repository on Hugging Face is meant, pip install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(HUB_PATTERNS)))
    except (OSError, ValueError) as error:
        at = "" if revision is None else f" at revision {revision}"
        raise InputError(f"{repo}: cannot download it{at}: {reason(error)}") from error


def _folder_tensors(folder: Path) -> Tensors:
    if (weights := member(folder, WEIGHTS)) is not None:
        return Tensors([weights])
    if (index := member(folder, INDEX)) is not None:
        return _joined(folder, index)
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise InputError(f"{shown(folder)}: cannot list it: {reason(error)}") from error
    found = [name for name in names if name.endswith(".safetensors")]
    listed = ", ".join(map(shown, found[:8]))
    if found and all(map(_PART.fullmatch, found)):
        raise InputError(
            f"{shown(folder)}: holds {listed}, parts of one checkpoint: get {INDEX} too, and all parts that it names"
        )
    if len(found) == 1:
        return Tensors([path for path in [member(folder, found[0])] if path is not None])
    if found:
        raise InputError(f"{shown(folder)}: holds {listed}; give the one file that is meant")
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise InputError(
            f"{shown(folder)}: holds {shown(pickles[0])} and no .safetensors file; {_no_pickle(pickles[0])}"
        )
    raise InputError(
        f"{shown(folder)}: holds no .safetensors file; give the folder or the file of a checkpoint in that form"
    )


def _safetensors_file(path: Path) -> Path:
    if path.suffix in _PICKLES:
        raise InputError(f"{shown(path)}: is not a .safetensors file; {_no_pickle(path.name)}")
    if path.name == INDEX:
        raise InputError(f"{shown(path)}: is the index of a checkpoint in parts; give its folder")
    if _PART.fullmatch(path.name):
        raise InputError(
            f"{shown(path)}: is one of the parts of one checkpoint: get {INDEX} and all parts that it names into one "
            "folder, and give that folder"
        )
    return path


def _no_pickle(name: str) -> str:
    return _NO_PICKLE.format(name=shown(name))


def _joined(folder: Path, index: Path) -> Tensors:
    """The tensors of the parts that an index names; each must be in the part that it says."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{shown(index)}: has no weight_map from keys to files; get it anew")
    parts: dict[str, Path] = {}
    for key, name in weight_map.items():
        if not isinstance(name, str) or name not in parts:
            parts[name] = _part(folder, index, key, name)
    said = {match and int(match[1]) for match in map(_PART.fullmatch, parts)}
    if None not in said and said != {len(parts)}:
        raise InputError(
            f"{shown(index)}: weight_map names {len(parts)} parts, but {brief(min(parts))} is one of another number; "
            "get it anew"
        )
    tensors = Tensors(sorted(set(parts.values())))
    for key, name in weight_map.items():
        if key not in tensors or tensors.entries[key].file != parts[name]:
            raise InputError(f"{shown(parts[name])}: holds no {shown(key)}, but {INDEX} says so; get both anew")
    for key, entry in tensors.entries.items():
        if key not in weight_map:
            raise InputError(f"{shown(entry.file)}: holds {shown(key)}, but {INDEX} does not name it; get both anew")
    return tensors


def _part(folder: Path, index: Path, key: str, name: Any) -> Path:
    """The path of a part: the index comes with the checkpoint, and could name any file of the machine."""
    if (
        not isinstance(name, str)
        or not name.endswith(".safetensors")
        or PureWindowsPath(name).anchor
        or ".." in (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
    ):
        raise InputError(
            f"{shown(index)}: weight_map: {shown(key)} is in {brief(name)}, which must be the name of a .safetensors "
            "file in the same folder; get it anew"
        )
    part = member(folder, name)
    if part is None:
        raise InputError(f"{shown(folder / name)}: no such file, but {INDEX} names it; get it too")
    return part
