"""Scales of the normalisation layers and all biases (BitFit, Ben Zaken et al., ACL 2022, has the biases)."""

from typing import Any

from disam_jax.dg.peft.registry import FineTuning


def trained() -> Any:
    """Scales and biases, and a new head."""
    from flax import nnx

    from disam_jax.dg.peft.select import in_head, of_norm_or_bias

    return nnx.All(nnx.Param, nnx.Any(in_head, of_norm_or_bias))


FINETUNING = {
    "norm-bias": FineTuning(
        "scales of normalisations and all biases", trained, training={"optimizer": "adam", "learning_rate": 1e-4}
    )
}
