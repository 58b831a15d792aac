"""Low-rank updates of a transformer's projections (Hu et al., ICLR 2022)."""

from typing import TYPE_CHECKING, Any

from disam_jax.dg.peft.registry import FineTuning

if TYPE_CHECKING:
    from disam_jax.dg.training.config import FineTuneConfig


def trained() -> Any:
    """What `add_lora` added, and a new head."""
    from flax import nnx

    from disam_jax.dg.peft.select import in_head

    return nnx.Any(nnx.LoRAParam, nnx.All(nnx.Param, in_head))


def adapt(tower: Any, config: "FineTuneConfig", rngs: Any) -> None:
    """Adds the updates to the tower."""
    from disam_jax.dg.peft.lora import add_lora

    add_lora(tower, config.rank, rngs)


FINETUNING = {
    "lora": FineTuning(
        "low-rank updates of the projections",
        trained,
        training={"optimizer": "adam", "learning_rate": 1e-4},
        options=("rank",),
        adapt=adapt,
        transformer=True,
    )
}
