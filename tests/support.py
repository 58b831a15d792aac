"""Helpers of the tests: float64 for the duration of one, and values that only the slow run has."""

import contextlib

import jax
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
