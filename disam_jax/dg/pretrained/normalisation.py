"""Whether the images of a checkpoint were normalised as the benchmark normalises them."""

from collections.abc import Mapping, Sequence

import numpy as np

from disam_jax.dg.errors import InputError
from disam_jax.dg.pretrained.files import CONFIG, PREPROCESSOR, Checkpoint
from disam_jax.dg.pretrained.transformer_keys import is_numbers
from disam_jax.dg.reading import brief


def check_normalisation(
    checkpoint: Checkpoint, mean: Sequence[float], std: Sequence[float], wanted: str, tolerance: float
) -> None:
    """Checks what the configuration of a checkpoint says of its images, where it says anything.

    Args:
        checkpoint: Checkpoint.
        mean: Mean of each channel that the benchmark takes away.
        std: Standard deviation of each channel by which it divides.
        wanted: What an error says of them, with "{usual}" for the numbers.
        tolerance: Largest difference of a number.

    Raises:
        InputError: If the images were normalised in another way.
    """
    config = (checkpoint.config or {}).get("pretrained_cfg")
    if config is not None and not isinstance(config, Mapping):
        raise InputError(f"{checkpoint.where}: {CONFIG}: pretrained_cfg is {brief(config)}, must be an object {{...}}")
    places = [
        (PREPROCESSOR, checkpoint.preprocessor, ("image_mean", "image_std")),
        (f"{CONFIG}: pretrained_cfg", config, ("mean", "std")),
    ]
    for name, entries, keys in places:
        for key, usual in zip(keys, (mean, std), strict=True):
            seen = entries.get(key) if isinstance(entries, Mapping) else None
            if seen is not None and not (is_numbers(seen, 3) and np.allclose(seen, usual, rtol=0.0, atol=tolerance)):
                raise InputError(
                    f"{checkpoint.where}: {name}: {key} is {brief(seen)}, but {wanted.format(usual=list(usual))}; take "
                    "a checkpoint that was trained so"
                )
