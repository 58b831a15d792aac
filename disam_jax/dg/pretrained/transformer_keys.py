"""What the keys and the config.json of transformers have in common."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from disam_jax.dg.errors import InputError
from disam_jax.dg.models.transformer import ACTIVATIONS
from disam_jax.dg.pretrained.keymap import Rule, conv_kernel, linear_kernel


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
        return InputError(f"{self.where}: {key} is {value!r}, must be {wanted}")

    def whole(self, key: str, default: int, least: int = 1) -> int:
        """A whole number, at least `least`."""
        value = self.entries.get(key, default)
        if type(value) is not int or value < least:
            raise self._fail(key, value, f"a whole number of at least {least}")
        return value

    def square(self, key: str, default: int) -> int:
        """A whole number, or two that are equal: height and width."""
        value = self.entries.get(key, default)
        if isinstance(value, Sequence) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if type(value) is not int or value < 1:
            raise self._fail(key, value, "a whole number of at least 1: only squares are supported")
        return value

    def positive(self, key: str, default: float) -> float:
        """A number above zero."""
        value = self.entries.get(key, default)
        if type(value) not in (int, float) or not value > 0:
            raise self._fail(key, value, "a number above 0")
        return float(value)

    def numbers(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """As many numbers as the default has, one for each channel."""
        value = self.entries.get(key, default)
        if not isinstance(value, Sequence) or len(value) != len(default) or {*map(type, value)} - {int, float}:
            raise self._fail(key, value, f"{len(default)} numbers")
        return tuple(map(float, value))

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.entries.get(key, default)
        if type(value) is not bool:
            raise self._fail(key, value, "true or false")
        return value

    def activation(self, default: str) -> str:
        """The activation's name, under "hidden_act"."""
        value = self.entries.get("hidden_act", default)
        if value not in ACTIVATIONS:
            raise self._fail("hidden_act", value, f"one of {', '.join(ACTIVATIONS)}: others are not supported")
        return value
