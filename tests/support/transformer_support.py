"""The checkpoints that make_transformer_fixtures.py made, loaded with chosen sizes or tensors."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from disam_jax.dg.pretrained.files import read_checkpoint
from disam_jax.dg.pretrained.keymap import fill

DATA = Path(__file__).parents[1] / "dg" / "pretrained" / "data"
TOLERANCE = 1e-5


def expected(name):
    """What transformers computed, and from what."""
    with np.load(DATA / name / "expected.npz") as file:
        arrays = dict(file)
    return {**arrays, "pixels": arrays["pixels"].astype(np.float32)}


def load(name, recipe, *, change=None, tensors=None, dtype=jnp.float32):
    """The module of a checkpoint, with other sizes than its own or from other tensors."""
    checkpoint = read_checkpoint(DATA / name)
    made = recipe(checkpoint, None)
    module = nnx.eval_shape(lambda: made.make(nnx.Rngs(0)))
    if change:
        other = replace(module.config, **change)
        module = nnx.eval_shape(lambda: type(module)(other, rngs=nnx.Rngs(0)))
    fill(module, checkpoint.tensors if tensors is None else tensors, made.rules, name, dtype)
    return module


def num_parameters(make):
    """Of a module that is not made."""
    state = nnx.state(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)
    return sum(int(np.prod(leaf.shape)) for _, leaf in nnx.to_flat_state(state))
