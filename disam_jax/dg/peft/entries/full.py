"""Fine-tuning of everything."""

from typing import Any

from disam_jax.dg.peft.registry import FineTuning


def trained() -> Any:
    """All parameters."""
    from flax import nnx

    return nnx.Param


FINETUNING = {
    "full": FineTuning("everything", trained, training={"optimizer": "adam", "learning_rate": 5e-5}, whole=True)
}
