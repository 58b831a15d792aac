"""Networks that compute in bfloat16, and networks that compute activations again for the gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import quick

from disam_jax.dg.errors import InputError
from disam_jax.dg.models.adapter import from_nnx
from disam_jax.dg.models.compute import Compute
from disam_jax.dg.models.efficientnet import EfficientNetLite, Scale
from disam_jax.dg.models.inputs import images
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.models.resnet import BasicBlock, ResNet
from disam_jax.dg.models.vit import ViT, ViTConfig
from disam_jax.dg.peft.finetuning import Pretrained, make_networks
from disam_jax.dg.training.config import FineTuneConfig
from disam_jax.dg.training.step import example_losses

VIT = ViTConfig(image_size=16, patch_size=4, width=16, layers=3, heads=2, hidden=64, num_classes=3)
IMAGES = (16, 16, 3)


def resnet(rngs):
    return ResNet((3, 3), BasicBlock, 3, width=8, small_input=True, dropout=0.2, rngs=rngs)


def fine_tuned(peft, compute):
    module = jax.jit(lambda: nnx.split(ViT(VIT, rngs=nnx.Rngs(0))))()
    pretrained = Pretrained(nnx.merge(*module), 16, images)
    return make_networks(pretrained, FineTuneConfig(peft, cache_features=False), ["x", "y", "z"], compute)[0]


NETWORKS = {
    "mlp": lambda compute: make_network("mlp", IMAGES, 3, hidden=(8, 8), dropout=0.2, compute=compute),
    "conv": lambda compute: make_network("conv", IMAGES, 3, widths=(4, 4), norm="batch", compute=compute),
    "conv-group": lambda compute: make_network("conv", IMAGES, 3, widths=(8,), norm="group", compute=compute),
    "resnet": lambda compute: from_nnx(resnet, images, compute),
    "efficientnet": lambda compute: from_nnx(
        lambda rngs: EfficientNetLite(Scale(0.25, 0.25, 16), 3, rngs=rngs), images, compute
    ),
    "vit-lora": functools.partial(fine_tuned, "lora"),
    "vit-full": functools.partial(fine_tuned, "full"),
}
# How many blocks they have.
BLOCKS = {"resnet": 6, "efficientnet": 7, "vit-lora": 3, "vit-full": 3}


def batch(size=6):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 255, (size, *IMAGES), np.uint8)), jnp.asarray(
        rng.integers(0, 3, size), jnp.int32
    )


def gradient_of(network, x, y):
    """Loss, gradient and outputs in training, of the parameters and the state of a network."""

    def loss(params, state):
        output = network.apply(params, state, x, jax.random.key(1), True)
        return example_losses(output.logits, y).mean(), output

    return jax.value_and_grad(loss, has_aux=True)


def equations(jaxpr):
    """All equations of a program, those inside of others too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def forward_pass(name, compute):
    """The program of a network in training, and the shapes of what goes in and comes out."""
    network = NETWORKS[name](compute)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    apply = lambda params, state: network.apply(params, state, batch()[0], jax.random.key(1), True)
    program, output = jax.make_jaxpr(apply, return_shape=True)(*variables)
    return program.jaxpr, (variables, output)


@pytest.mark.parametrize("name", quick(NETWORKS, "mlp", "conv", "conv-group", "resnet"))
def test_a_network_multiplies_in_bfloat16_and_hands_out_float32(name):
    program, shapes = forward_pass(name, Compute("bfloat16"))
    products = [each for each in equations(program) if each.primitive.name in ("dot_general", "conv_general_dilated")]
    assert {str(operand.aval.dtype) for each in products for operand in each.invars} == {"bfloat16"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(shapes)} == {"float32"}


@pytest.mark.parametrize("name", quick(BLOCKS, "resnet"))
def test_every_block_is_computed_again_where_that_is_asked_for(name):
    program, _ = forward_pass(name, Compute(remat=True))
    assert sum("custom_vjp_call" in each.primitive.name for each in program.eqns) == BLOCKS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "vit-full"])
def test_numbers_in_bfloat16_are_those_of_float32_to_rounding(name):
    exact, near = (NETWORKS[name](Compute(dtype)) for dtype in ("float32", "bfloat16"))
    params, state = jax.jit(exact.init)(jax.random.key(0))
    assert_near(params, jax.jit(near.init)(jax.random.key(0))[0], 0)
    results = [jax.jit(gradient_of(network, *batch()))(params, state) for network in (exact, near)]
    (((_, one), wanted), ((_, other), found)) = results
    # Eight bits, through a dozen layers.
    assert_near(one, other, 0.05)
    assert_near(wanted, found, 0.1)
    assert float(jnp.abs(one.logits - other.logits).max()) > 0


def assert_near(one, other, most):
    """They differ by at most a part of their length."""
    wanted, found = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(each)]) for each in (one, other))
    assert np.linalg.norm(found - wanted) <= most * np.linalg.norm(wanted)


def compiled(name, compute):
    network = NETWORKS[name](compute)
    state = jax.eval_shape(network.init, jax.random.key(0))
    return network, jax.jit(gradient_of(network, *batch(32))).lower(*state).compile()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "vit-lora"])
def test_remat_takes_less_memory_for_the_same_gradient(name):
    network, kept = compiled(name, Compute())
    _, again = compiled(name, Compute(remat=True))
    held = [each.memory_analysis().temp_size_in_bytes for each in (kept, again)]
    assert held[1] < 0.7 * held[0], held
    params, state = jax.jit(network.init)(jax.random.key(0))
    for one, other in zip(*(jax.tree.leaves(each(params, state)) for each in (kept, again)), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in BLOCKS])
def test_remat_without_blocks_is_refused(name):
    with pytest.raises(InputError, match="--remat is for networks of blocks, and what is trained here has none"):
        NETWORKS[name](Compute(remat=True))
