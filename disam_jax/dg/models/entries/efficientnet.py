"""EfficientNet-Lite0 and -Lite2, which come with their ImageNet weights."""

from disam_jax.dg.models.registry import Model


def _entry(summary: str, name: str) -> Model:
    return Model(
        summary,
        checkpoints="required",
        checkpoint=name,
        checkpoint_options=("dropout", "frozen_norm"),
        image_size=128,
    )


MODELS = {
    "efficientnet_lite0": _entry("EfficientNet-Lite0, with ImageNet weights", "efficientnet_lite0"),
    "efficientnet_lite2": _entry("EfficientNet-Lite2, with ImageNet weights", "efficientnet_lite2"),
}
