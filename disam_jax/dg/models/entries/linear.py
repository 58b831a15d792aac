"""The linear classifier."""

import math
from collections.abc import Mapping
from typing import Any

from disam_jax.dg.models.registry import Maker, Model, Shape


def make(shape: Shape, num_classes: int, dropout: float, options: Mapping[str, Any]) -> Maker:
    """A maker of `LinearHead` modules."""
    from disam_jax.dg.models.linear import LinearHead

    del options
    return lambda rngs: LinearHead(math.prod(shape), num_classes, dropout=dropout, rngs=rngs)


MODELS = {"linear": Model("linear head on given features", make, of_images=False)}
