"""The sizes of a pretrained network in a record make the same network again."""

import json

import pytest
from flax import nnx
from support import quick
from tiny_networks import CLIP_CONFIG, VIT_CONFIG

from disam_jax.dg.errors import InputError
from disam_jax.dg.models.clip import CLIP
from disam_jax.dg.models.efficientnet import SCALES, EfficientNetLite, Scale
from disam_jax.dg.models.resnet import BasicBlock, Bottleneck, ResNet
from disam_jax.dg.models.vit import ViT
from disam_jax.dg.saving.architecture import architecture_of, make_architecture
from disam_jax.dg.saving.module import arrays_of

MAKERS = {
    "CLIP": lambda rngs: CLIP(CLIP_CONFIG, rngs=rngs),
    "ViT": lambda rngs: ViT(VIT_CONFIG, rngs=rngs),
    "ResNet-18": lambda rngs: ResNet((2, 2, 2, 2), BasicBlock, 7, width=8, small_input=True, rngs=rngs),
    "ResNet-50": lambda rngs: ResNet((3, 4, 6, 3), Bottleneck, None, dropout=0.5, frozen_norm=True, rngs=rngs),
    "Lite0": lambda rngs: EfficientNetLite(SCALES["efficientnet_lite0"], 1000, frozen_norm=True, rngs=rngs),
    "Lite2": lambda rngs: EfficientNetLite(SCALES["efficientnet_lite2"], None, dropout=0.25, rngs=rngs),
}


@pytest.mark.parametrize("name", quick(MAKERS, "CLIP", "ViT", "ResNet-18"))
def test_the_network_of_a_record_has_the_same_arrays_and_settings(name):
    module = nnx.eval_shape(lambda: MAKERS[name](nnx.Rngs(0)))
    recorded = json.loads(json.dumps(architecture_of(module)))
    again = nnx.eval_shape(lambda: make_architecture(recorded))
    shapes = lambda each: {path: (leaf.shape, leaf.dtype) for path, leaf in arrays_of(each).items()}
    assert shapes(again) == shapes(module)
    assert json.loads(json.dumps(architecture_of(again))) == recorded
    if hasattr(module, "dropout"):
        assert again.dropout.rate == module.dropout.rate
        assert type(again.bn1) is type(module.bn1)


@pytest.mark.parametrize(
    "make",
    [
        lambda rngs: EfficientNetLite(Scale(0.5, 0.25, 64), 7, rngs=rngs),
        lambda rngs: nnx.Linear(2, 2, rngs=rngs),
    ],
)
def test_another_network_says_that_it_cannot_be_built_again(make):
    with pytest.raises(InputError, match="of these sizes cannot be built again: leave --save out"):
        architecture_of(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
