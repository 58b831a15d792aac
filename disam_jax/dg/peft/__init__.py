"""Parameter-efficient fine-tuning of pretrained models: a few variables are trained, all others stay as they are.

Each way extends a module whose weights are loaded, and `TRAINABLE` has the NNX filter of what it trains, for
`disam_jax.nnx.value_and_grad(loss, rho, lam, wrt=filter)` and `nnx.Optimizer(model, tx, wrt=filter)`. What is not
selected is neither perturbed nor counted in the norm of the perturbation, has no gradient, and costs no backward pass
of its own.

select      what is trained, by name
features    what a frozen tower makes of images, once and for all
cut         what the frozen front of a tower makes of images, kept on disk, and the rest of the tower
probe       a linear head on a tower
lora        low-rank updates of linear layers
coop        learned context vectors in the prompts of CLIP
texts       CLIP's image tower against fixed embeddings of the classes' names
registry    ways of fine-tuning by name, from the files in `entries`
"""

import importlib
from typing import TYPE_CHECKING, Any

# The command line reads the names of the ways of fine-tuning, and Flax takes a second to import.
if TYPE_CHECKING:
    from disam_jax.dg.peft.coop import CoOp, PromptParam
    from disam_jax.dg.peft.features import cache_features
    from disam_jax.dg.peft.lora import LoRALinear, add_lora, merge_lora
    from disam_jax.dg.peft.probe import LinearProbe
    from disam_jax.dg.peft.select import TRAINABLE
    from disam_jax.dg.peft.texts import TextClassifier

_MODULES = {
    "TRAINABLE": "select",
    "CoOp": "coop",
    "LinearProbe": "probe",
    "LoRALinear": "lora",
    "PromptParam": "coop",
    "TextClassifier": "texts",
    "add_lora": "lora",
    "cache_features": "features",
    "merge_lora": "lora",
}

__all__ = [
    "TRAINABLE",
    "CoOp",
    "LinearProbe",
    "LoRALinear",
    "PromptParam",
    "TextClassifier",
    "add_lora",
    "cache_features",
    "merge_lora",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is used first."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
