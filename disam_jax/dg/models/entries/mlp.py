"""The multilayer perceptron."""

import math
from collections.abc import Mapping
from typing import Any

from disam_jax.dg.models.registry import Maker, Model, Shape, check_widths


def make(shape: Shape, num_classes: int, dropout: float, options: Mapping[str, Any]) -> Maker:
    """A maker of `MLP` modules."""
    from disam_jax.dg.models.mlp import MLP

    hidden = check_widths("mlp", "hidden", options["hidden"], least=0)
    return lambda rngs: MLP(math.prod(shape), hidden, num_classes, dropout=dropout, rngs=rngs)


MODELS = {
    "mlp": Model(
        "multilayer perceptron",
        make,
        options={"hidden": (64,)},
        options_of=lambda config, _: {"hidden": (config.hidden,)},
        of_images=False,
    )
}
