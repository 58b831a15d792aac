"""float64 for the duration of a test."""

import contextlib

import jax


@contextlib.contextmanager
def enable_x64(on):
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", on)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)
