"""A linear head on a frozen tower."""

from typing import Any

from disam_jax.dg.peft.registry import FineTuning


def trained() -> Any:
    """The head of a `LinearProbe`."""
    from flax import nnx

    from disam_jax.dg.peft.select import in_head

    return nnx.All(nnx.Param, in_head)


FINETUNING = {
    "probe": FineTuning(
        "a linear head",
        trained,
        training={"optimizer": "adam", "learning_rate": 1e-3},
        classifier="head",
        frozen=True,
    )
}
