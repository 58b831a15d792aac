"""What the keys and the config.json of transformers have in common."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from disam_jax.dg.errors import InputError
from disam_jax.dg.models.transformer import ACTIVATIONS
from disam_jax.dg.pretrained.keymap import Rule, conv_kernel, linear_kernel
from disam_jax.dg.reading import brief

# What an index of an array holds; real sizes are far below, and no array is made before the tensors are seen.
MOST_SIZE = 2**31 - 1
MOST_PIXELS = 2**16


def linear_rules(pattern: str, path: str) -> list[Rule]:
    r"""Rules for a linear layer.

    Args:
        pattern: matches the layer's name in the checkpoint.
        path: of the layer in the module, with the pattern's groups.

    Returns:
        Rules for its weight and its bias, which need not be there.

    Example:
        >>> [rule.path for rule in linear_rules(r"layer\.(\d+)\.fc", r"blocks.\1.fc")]
        ['blocks.\\1.fc.kernel', 'blocks.\\1.fc.bias']
    """
    return [
        Rule(rf"{pattern}\.weight", f"{path}.kernel", linear_kernel),
        Rule(rf"{pattern}\.bias", f"{path}.bias"),
    ]


def norm_rules(pattern: str, path: str) -> list[Rule]:
    """Rules for a layer normalisation; arguments and result as for `linear_rules`."""
    return [Rule(rf"{pattern}\.weight", f"{path}.scale"), Rule(rf"{pattern}\.bias", f"{path}.bias")]


def patch_rule(pattern: str, path: str, size: int, channels: int = 3) -> Rule:
    """The rule for the convolution that embeds patches, which is a linear layer here.

    Args:
        pattern: matches the weight's key.
        path: of the linear layer.
        size: of a patch.
        channels: of the images.

    Returns:
        Rule.
    """
    return Rule(pattern, f"{path}.kernel", partial(_patch_kernel, size=size, channels=channels))


def _patch_kernel(tensor: np.ndarray, size: int, channels: int) -> np.ndarray:
    # Kernels of other forms may have as many numbers.
    if tensor.shape[1:] != (channels, size, size):
        raise ValueError(f"must be [width, {channels}, {size}, {size}], got {list(tensor.shape)}")
    return conv_kernel(tensor).reshape(-1, tensor.shape[0])


class Settings:
    """Part of a config.json, asked for one entry at a time; what it does not say has a default, as in transformers.

    Args:
        entries: by key.
        where: file and part, for messages.
    """

    def __init__(self, entries: Mapping[str, Any], where: str):
        self.entries = entries
        self.where = where

    def _fail(self, key: str, value: Any, wanted: str) -> InputError:
        return InputError(f"{self.where}: {key} is {brief(value)}, must be {wanted}")

    def whole(self, key: str, default: int, least: int = 1, most: int = MOST_SIZE) -> int:
        """A whole number from `least` to `most`."""
        value = self.entries.get(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self._fail(key, value, f"a whole number of at least {least} and at most {most}")
        return value

    def square(self, key: str, default: int) -> int:
        """A whole number, or two that are equal: height and width."""
        value = self.entries.get(key, default)
        if isinstance(value, Sequence) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if type(value) is not int or not 1 <= value <= MOST_PIXELS:
            raise self._fail(
                key, value, f"a whole number of at least 1 and at most {MOST_PIXELS}: only squares are supported"
            )
        return value

    def positive(self, key: str, default: float) -> float:
        """A number above zero, as float32 has them."""
        value = self.entries.get(key, default)
        if not _is_number(value) or not np.float32(value) > 0:
            raise self._fail(key, value, "a number above 0")
        return float(value)

    def numbers(self, key: str, default: tuple[float, ...], above: float = -np.inf) -> tuple[float, ...]:
        """As many numbers as the default has, one for each channel, all of them above `above`."""
        value = self.entries.get(key, default)
        if not is_numbers(value, len(default)) or not all(np.float32(number) > above for number in value):
            wanted = "" if above == -np.inf else f" above {above:g}"
            raise self._fail(key, value, f"{len(default)} numbers{wanted}")
        return tuple(map(float, value))

    def layers(self, key: str, default: int, found: int) -> None:
        """Makes sure that there are not more blocks than a checkpoint has: to make them takes time that it decides."""
        value = self.whole(key, default)
        # One block is made in no time, and then the error lists everything that is missing.
        if value > max(found, 1):
            raise self._fail(key, value, f"at most {found}, which is the number of blocks in the checkpoint's tensors")

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.entries.get(key, default)
        if type(value) is not bool:
            raise self._fail(key, value, "true or false")
        return value

    def activation(self, default: str) -> str:
        """The activation's name, under "hidden_act"."""
        value = self.entries.get("hidden_act", default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self._fail("hidden_act", value, f"one of {', '.join(ACTIVATIONS)}: others are not supported")
        return value


def count_blocks(keys: Iterable[str], pattern: str) -> int:
    r"""How many blocks there are in a checkpoint.

    Args:
        keys: Keys of the checkpoint.
        pattern: Matches the start of a block's keys and has one group, the block's number.

    Returns:
        Number of different blocks.

    Example:
        >>> count_blocks(["layer.0.fc.weight", "layer.0.fc.bias", "layer.7.fc.bias", "fc.bias"], r"layer\.(\d+)\.")
        2
    """
    form = re.compile(pattern)
    return len({match[1] for key in keys if (match := form.match(key))})


def is_numbers(values: Any, count: int) -> bool:
    """Whether this is a list of so many finite numbers.

    Example:
        >>> is_numbers([0.5, 1, 2], 3), is_numbers([0.5, True, "1"], 3), is_numbers([1e999], 1), is_numbers("ab", 2)
        (True, False, False, False)
    """
    return isinstance(values, Sequence) and len(values) == count and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    # Python compares integers of any size with a float.
    return type(value) in (int, float) and abs(value) <= float(np.finfo(np.float32).max)
