"""No method costs more than its formula: FLOPs of a step by XLA's counts, in steps of ERM.

The program is counted as it is lowered, which takes a tenth of the time that compiling takes; only where a method needs
XLA to see that two of its passes are the same is it compiled. The network is large beside what a method computes of its
features, and nothing of it is ever run.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from support import slow

from disam_jax.dg.data import keys
from disam_jax.dg.methods import METHODS
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.step import RunSpec, start, train_step

IMAGE, SOURCES, PER_DOMAIN = (64, 64, 3), 3, 16
# What is computed of the features and parameters: the discriminator of DANN is most of it.
MORE = 0.03
QUICK = ("SAM", "MMD", "MIRO")


@functools.cache
def network():
    return make_network("conv", IMAGE, 7, widths=(64, 128, 256))


def lowered(name):
    fixed = {"network": network(), "method": METHODS[name], "config": TrainConfig(momentum=0.0)}
    names = ("learning_rate", "weight_decay", *METHODS[name].hparams)
    spec = RunSpec(keys.run_key(0, 0), jnp.int32(0), jnp.int32(0), {each: jnp.float32(0.5) for each in names})
    example = jax.ShapeDtypeStruct(IMAGE, jnp.float32)
    run = jax.eval_shape(functools.partial(start, **fixed, num_sources=SOURCES, example=example), spec)
    batch = jax.ShapeDtypeStruct((SOURCES, PER_DOMAIN, *IMAGE), jnp.float32)
    labels = jax.ShapeDtypeStruct((SOURCES, PER_DOMAIN), jnp.int32)
    return jax.jit(functools.partial(train_step, **fixed)).lower(run, spec, jnp.int32(0), batch, labels)


@functools.cache
def flops(name):
    return lowered(name).cost_analysis()["flops"]


# Steps whose cost is that of the passes that XLA merges.
MERGED = ("DISAM-own-std", "DISAM-own-std-control")


@pytest.mark.parametrize("name", [*QUICK, *slow(*(name for name in METHODS if name not in QUICK))])
def test_a_step_costs_what_the_method_says(name):
    counted, plain = flops(name), flops("ERM")
    if name in MERGED:
        counted = lowered(name).compile().cost_analysis()["flops"]
    # A conditional counts as its dearer branch.
    assert counted <= (METHODS[name].cost + MORE) * plain, f"{counted / plain:.3f} steps"
    # A gate that never sees the passes would pass anything.
    assert counted >= 0.95 * METHODS[name].cost * plain, f"{counted / plain:.3f} steps"
