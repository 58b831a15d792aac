"""Helpers of the tests: float64 for the duration of one, and values that only the slow run has."""

import contextlib

import jax
import numpy as np
import pytest


@contextlib.contextmanager
def enable_x64(on):
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", on)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def slow(*values):
    """Parameters that the default run leaves out."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def rest(*values):
    """Parameters that the default run leaves out and `tests.mutation` does not."""
    return [pytest.param(value, marks=[pytest.mark.slow, pytest.mark.rest]) for value in values]


def quick(values, *kept):
    """All of them; the default run has those that are named."""
    return [param for value in values for param in ([value] if value in kept else rest(value))]


def save_image(path, seed):
    """A picture of noise; the ending of the path says in which format."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(path)
