"""Checkpoints as they are published: safetensors and config.json, in a folder, a file or a repository of Hugging Face.

Pickle is never read: loading it runs whatever code it holds.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from disam_jax.dg.errors import InputError

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# What a repository holds beside the weights of other frameworks: these, its configuration and its tokenizer.
HUB_PATTERNS = ("*.safetensors", "*.json", "merges.txt", "vocab.txt")

_PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NO_PICKLE = (
    "pickle is never read; convert it once where torch is installed: safetensors.torch.save_file("
    "torch.load('{name}', weights_only=True), 'model.safetensors')"
)


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of one or several safetensors files, by key; read one at a time, whenever one is asked for.

    bfloat16 comes as `ml_dtypes.bfloat16`, as everywhere in jax.

    Args:
        files: the files; together they hold each key once.

    Raises:
        InputError: if a file cannot be read, is no safetensors file or is truncated, or if two files hold one key.
    """

    def __init__(self, files: Sequence[Path]):
        self._files: dict[str, tuple[Path, Any]] = {}
        for file in files:
            opened = _open(file)
            for key in opened.keys():  # noqa: SIM118 (not a mapping)
                if key in self._files:
                    raise InputError(f"{file}: holds {key}, and so does {self._files[key][0].name}; remove one of them")
                self._files[key] = (file, opened)

    def __getitem__(self, key: str) -> np.ndarray:
        """The tensor, in memory of its own."""
        from safetensors import SafetensorError

        file, opened = self._files[key]
        try:
            return opened.get_tensor(key)
        # An AttributeError: numpy has no type of that name (float8, say).
        except (AttributeError, TypeError, OSError, SafetensorError) as error:
            raise InputError(f"{file}: cannot read {key}: {_one_line(error)}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


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
        InputError: if there is no such path, no safetensors file, more than one, a file that is damaged, a revision of
            a path; and if a repository is meant and `huggingface_hub` is not installed or cannot get it.
    """
    path = Path(path_or_repo)
    if not path.exists():
        path = download(str(path_or_repo), revision)
    elif revision is not None:
        raise InputError(f"{path}: revision is {revision!r}, but this is a path; leave revision out")
    files = _safetensors_files(path) if path.is_dir() else [_safetensors_file(path)]
    folder = path if path.is_dir() else path.parent
    return Checkpoint(
        where=str(path),
        config=read_json(folder / CONFIG) if (folder / CONFIG).exists() else None,
        preprocessor=read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).exists() else None,
        tensors=Tensors(files),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        path: the file.

    Returns:
        The object.

    Raises:
        InputError: if it cannot be read, is no JSON or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read it: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: is no JSON ({_one_line(error)}); get it anew") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, but must hold an object {{...}}; get it anew")
    return content


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
        raise InputError(f"{repo}: no such file or folder; write a path, or owner/name of a repository on Hugging Face")
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
        raise InputError(f"{repo}: cannot download it{at}: {_one_line(error)}") from error


def _safetensors_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        return _shards(folder / INDEX)
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot list it: {error.strerror}") from error
    found = [name for name in names if name.endswith(".safetensors")]
    if len(found) == 1:
        return [folder / found[0]]
    if found:
        raise InputError(f"{folder}: holds {', '.join(found[:8])}; give the one file that is meant")
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise InputError(f"{folder}: holds {pickles[0]} and no .safetensors file; {_NO_PICKLE.format(name=pickles[0])}")
    raise InputError(f"{folder}: holds no .safetensors file; give the folder or the file of a checkpoint in that form")


def _safetensors_file(path: Path) -> Path:
    if path.suffix in _PICKLES:
        raise InputError(f"{path}: is no .safetensors file; {_NO_PICKLE.format(name=path.name)}")
    if path.name == INDEX:
        raise InputError(f"{path}: is the index of a checkpoint in parts; give its folder")
    return path


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: has no weight_map from keys to files; get it anew")
    files = [index.parent / str(name) for name in sorted(set(map(str, weight_map.values())))]
    for file in files:
        if not file.exists():
            raise InputError(f"{file}: no such file, but {index.name} names it; get it too")
    return files


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="numpy")
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{file}: is no safetensors file or a truncated one ({_one_line(error)}); get it anew"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
