"""CLIP, which needs a checkpoint."""

from disam_jax.dg.models.registry import Model

MODELS = {
    "clip": Model(
        "CLIP, an image tower and a text tower, from a checkpoint",
        checkpoints="required",
        text=True,
        transformer=True,
        peft="coop",
    )
}
