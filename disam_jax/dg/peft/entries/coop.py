"""Learned context in the prompts of CLIP (Zhou et al., IJCV 2022)."""

from typing import Any

from disam_jax.dg.peft.registry import FineTuning


def trained() -> Any:
    """The context vectors of a `CoOp`."""
    from disam_jax.dg.peft.coop import PromptParam

    return PromptParam


FINETUNING = {
    "coop": FineTuning(
        "the context of CLIP's prompts",
        trained,
        training={"learning_rate": 2e-3},
        classifier="prompts",
        options=("context", "class_contexts", "context_words"),
        frozen=True,
    )
}
