"""Ways of fine-tuning by name. A new one is one file in `disam_jax/dg/peft/entries`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from disam_jax.dg.registry import Registry

# --help reads this file, so it imports Flax in functions only.
if TYPE_CHECKING:
    from disam_jax.dg.training.config import FineTuneConfig


def _unchanged(tower: Any, config: "FineTuneConfig", rngs: Any) -> None:
    del tower, config, rngs


@dataclass(frozen=True)
class FineTuning:
    """A registered way of fine-tuning.

    Attributes:
        summary: What is trained, in one line.
        trained: () -> NNX filter of what is trained.
        training: Values of `TrainConfig`: the usual optimizer and rate, not searched for here.
        classifier: What tells the classes apart in a model with texts: a new "head", fixed "texts", or learned
            "prompts". A model without texts always has a new head.
        options: Attributes of `FineTuneConfig` that have a meaning with it alone.
        adapt: (tower, configuration, random streams) -> None: changes the tower before it is trained.
        frozen: Whether nothing of the image tower is trained, so that its features may be computed once.
        whole: Whether everything is trained, so that BatchNorm's statistics may move and random search draws from
            DomainBed's ranges for large networks.
        transformer: Whether it needs the projections of a transformer.
    """

    summary: str
    trained: Callable[[], Any]
    training: Mapping[str, Any]
    classifier: Literal["head", "texts", "prompts"] = "texts"
    options: tuple[str, ...] = ()
    adapt: Callable[[Any, "FineTuneConfig", Any], None] = field(default=_unchanged)
    frozen: bool = False
    whole: bool = False
    transformer: bool = False


FINETUNING: Registry[FineTuning] = Registry(
    "way of fine-tuning",
    FineTuning,
    "disam_jax.dg.peft.entries",
    "FINETUNING",
    "disam_jax.peft",
    first=("full", "probe", "lora", "coop", "norm_bias"),
)
