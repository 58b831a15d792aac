"""The small convolutional network."""

from collections.abc import Mapping
from typing import Any

from disam_jax.dg.errors import InputError
from disam_jax.dg.models.registry import Maker, Model, Shape, check_widths


def make(shape: Shape, num_classes: int, dropout: float, options: Mapping[str, Any]) -> Maker:
    """A maker of `ConvNet` modules."""
    from disam_jax.dg.models.convnet import ConvNet
    from disam_jax.dg.models.norm import NORMS

    widths = check_widths("conv", "widths", options["widths"], least=1)
    norm = options["norm"]
    if norm not in NORMS:
        raise InputError(f"model conv: norm is {norm!r}; write one of {', '.join(NORMS)}")
    if options["frozen_norm"]:
        if norm not in ("batch", "frozen"):
            raise InputError(f"model conv: frozen_norm needs BatchNorm, but norm is {norm!r}; write norm='batch'")
        norm = "frozen"
    return lambda rngs: ConvNet(num_classes, widths, in_channels=shape[-1], dropout=dropout, norm=norm, rngs=rngs)


MODELS = {
    "conv": Model(
        "small convolutional network, for images of 32 to 96 pixels",
        make,
        options={"widths": (16, 32, 64), "norm": "none", "frozen_norm": False},
        options_of=lambda config, _: {"norm": config.norm},
        one_at_a_time_on_cpu=True,
    )
}
