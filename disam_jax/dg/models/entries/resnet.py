"""ResNet-18 and ResNet-50."""

from collections.abc import Mapping
from typing import Any

from disam_jax.dg.models.registry import Maker, Model, Shape

# Up to this size images get the small stem: the stem for 224 pixels leaves 2 x 2 of 64.
LARGEST_SMALL_INPUT = 64


def _make(stages: tuple[int, ...], block: str):
    def make(shape: Shape, num_classes: int, dropout: float, options: Mapping[str, Any]) -> Maker:
        from disam_jax.dg.models import resnet

        return lambda rngs: resnet.ResNet(
            stages, getattr(resnet, block), num_classes, in_channels=shape[-1], dropout=dropout, rngs=rngs, **options
        )

    return make


def _entry(summary: str, stages: tuple[int, ...], block: str) -> Model:
    return Model(
        summary,
        _make(stages, block),
        options={"small_input": False, "frozen_norm": False},
        options_of=lambda _, shape: {"small_input": shape[0] <= LARGEST_SMALL_INPUT},
        checkpoints="optional",
        checkpoint_options=("dropout", "frozen_norm"),
        training={"optimizer": "adam", "learning_rate": 5e-5},
        large=True,
        one_at_a_time_on_cpu=True,
    )


MODELS = {
    "resnet18": _entry("ResNet-18", (2, 2, 2, 2), "BasicBlock"),
    "resnet50": _entry("ResNet-50", (3, 4, 6, 3), "Bottleneck"),
}
