"""The vision transformer, which needs a checkpoint."""

from disam_jax.dg.models.registry import Model

MODELS = {"vit": Model("vision transformer, from a checkpoint", checkpoints="required", transformer=True)}
