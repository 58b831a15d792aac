"""A network cut at a stage: the front followed by the rest is the network itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import slow
from tiny_networks import CLIP_CONFIG

from disam_jax.dg.models.clip import ImageTower
from disam_jax.dg.models.efficientnet import EfficientNetLite, Scale
from disam_jax.dg.models.resnet import BasicBlock, ResNet
from disam_jax.dg.models.stages import front, in_front, rest, stage_names, without_front
from disam_jax.dg.models.vit import ViT, ViTConfig

pytestmark = pytest.mark.dealt

CLIP = dataclasses.replace(CLIP_CONFIG, vision_layers=2)
TOWERS = {
    "resnet": lambda: ResNet((1, 1, 1, 1), BasicBlock, None, width=4, rngs=nnx.Rngs(0)),
    "resnet for small inputs": lambda: ResNet((1, 2), BasicBlock, None, width=4, small_input=True, rngs=nnx.Rngs(0)),
    "efficientnet": lambda: EfficientNetLite(Scale(0.25, 0.25, 32), None, rngs=nnx.Rngs(0)),
    "vit": lambda: ViT(ViTConfig(image_size=8, patch_size=4, width=8, layers=2, heads=2, hidden=8), rngs=nnx.Rngs(0)),
    "clip": lambda: ImageTower(CLIP, rngs=nnx.Rngs(0)),
}
NAMES = {
    "resnet": ("layer1", "layer2", "layer3", "layer4", "head", "classifier"),
    "resnet for small inputs": ("layer1", "layer2", "head", "classifier"),
    "efficientnet": (*(f"blocks.{place}" for place in range(7)), "head", "classifier"),
    "vit": ("layers.0", "layers.1", "head", "classifier"),
    "clip": ("layers.0", "layers.1", "head", "classifier"),
}


def shapes(kind):
    """The network as it evaluates, with shapes in the place of arrays."""
    tower = nnx.eval_shape(TOWERS[kind])
    tower.eval()
    return nnx.split(tower)


def images(kind):
    size = 32 if kind in ("resnet", "efficientnet") else 8
    return jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)


@pytest.mark.parametrize("kind", [slow(kind)[0] if kind == "efficientnet" else kind for kind in TOWERS])
def test_stages_have_their_names_in_order(kind):
    assert stage_names(nnx.merge(*shapes(kind))) == NAMES[kind]


@pytest.mark.parametrize("kind", TOWERS)
def test_front_and_rest_are_the_operations_of_the_whole_network(kind):
    graph, variables = shapes(kind)

    def operations(features):
        of = lambda variables, x: features(nnx.merge(graph, variables), x)
        return str(jax.make_jaxpr(of)(variables, images(kind)))

    whole = operations(lambda tower, x: tower.features(x))
    names = stage_names(nnx.merge(graph, variables))
    stage = names[len(names) // 2]
    assert operations(lambda tower, x: rest(tower, stage, front(tower, stage, x))) == whole


@pytest.mark.parametrize("kind", TOWERS)
def test_the_rest_needs_nothing_of_the_front(kind):
    whole, weights = shapes(kind)
    tower = nnx.merge(whole, weights)
    everything = set(nnx.to_flat_state(nnx.state(tower)).paths)
    for stage in stage_names(tower):
        cut = without_front(tower, stage)
        before = set(nnx.to_flat_state(nnx.state(tower, in_front(tower, stage))).paths)
        left = set(nnx.to_flat_state(nnx.state(cut)).paths)
        assert before
        assert before | left == everything
        assert not before & left
        # The network itself is left as it was.
        assert set(nnx.to_flat_state(nnx.state(tower)).paths) == everything


@pytest.mark.slow
def test_a_cut_is_the_network_bit_for_bit():
    graph, variables = shapes("vit")
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), leaf.dtype), variables)
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32)
    activations = jax.jit(lambda variables, x: front(nnx.merge(graph, variables), "layers.1", x))(variables, x)
    cut, left = nnx.split(without_front(nnx.merge(graph, variables), "layers.1"))
    found = jax.jit(lambda left, x: rest(nnx.merge(cut, left), "layers.1", x))(left, activations)
    want = jax.jit(lambda variables, x: nnx.merge(graph, variables).features(x))(variables, x)
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("stage", ["layer5", *slow("stem", "", "Head")])
def test_an_unknown_stage_lists_the_stages(stage):
    tower = nnx.merge(*shapes("resnet"))
    for function in (front, rest):
        with pytest.raises(ValueError, match="must be one of layer1, layer2, layer3, layer4, head, classifier, got"):
            function(tower, stage, jnp.zeros((1, 32, 32, 3)))
