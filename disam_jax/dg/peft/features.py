"""What a tower makes of images: in training, or once and for all if nothing of it is trained."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from disam_jax.dg.models.clip import ImageTower
from disam_jax.dg.models.efficientnet import EfficientNetLite
from disam_jax.dg.models.inputs import to_float
from disam_jax.dg.models.resnet import ResNet
from disam_jax.dg.models.vit import ViT
from disam_jax.dg.peft.cut import Rest


def feature_size(tower: nnx.Module) -> int:
    """Numbers per image that a tower makes.

    Args:
        tower: `ImageTower`, `ViT`, `ResNet` or `EfficientNetLite`, or the `Rest` of one.

    Returns:
        F.

    Raises:
        TypeError: on another module.
    """
    if isinstance(tower, Rest):
        return feature_size(tower.tower)
    if isinstance(tower, ViT):
        return tower.config.width
    if isinstance(tower, (ImageTower, ResNet, EfficientNetLite)):
        return tower.num_features
    raise TypeError(
        "the tower must be an ImageTower (clip.image of a CLIP), a ViT, a ResNet or an EfficientNetLite, got "
        f"{type(tower).__name__}"
    )


def tower_features(tower: Any, x: jax.Array, key: jax.Array) -> jax.Array:
    """What a linear head on the tower sees.

    Args:
        tower: `ImageTower`, `ViT`, `ResNet` or `EfficientNetLite`, or the `Rest` of one; a head of its own is left out.
        x: float [N, H, W, 3], normalised as its weights expect; activations for a `Rest`.
        key: decides what dropout drops, where there is any.

    Returns:
        float [N, F].
    """
    whole, features = (tower.tower, tower(x)) if isinstance(tower, Rest) else (tower, tower.features(x))
    return features if isinstance(whole, (ImageTower, ViT)) else whole.dropout(features, rngs=key)


def cache_features(
    tower: nnx.Module,
    images: np.ndarray,
    block: int = 64,
    prepare: Callable[[jax.Array], jax.Array] = to_float,
) -> np.ndarray:
    """The features of all images, so that training what comes after a frozen tower need not compute them again.

    Args:
        tower: `ImageTower`, `ViT`, `ResNet` or `EfficientNetLite`; it is run as for evaluation and not changed.
        images: uint8 or floating point [N, H, W, 3], N at least 1.
        block: images at a time; memory on the device does not depend on N.
        prepare: from the images to the inputs of the tower, see `models.inputs`.

    Returns:
        float32 [N, F]: the numbers that the tower makes of the same images in training, to rounding.

    Raises:
        TypeError: on a module that is no tower.
        ValueError: if there are no images or `block` is not positive.

    Example:
        >>> from disam_jax.dg.models.vit import ViT, ViTConfig
        >>> config = ViTConfig(image_size=8, patch_size=4, width=8, layers=1, heads=2, hidden=8)
        >>> cache_features(ViT(config, rngs=nnx.Rngs(0)), np.zeros((5, 8, 8, 3), np.uint8), block=2).shape
        (5, 8)
    """
    if block < 1 or len(images) < 1:
        raise ValueError(f"there must be images and a block of at least 1, got {len(images)} images, block={block}")
    graph, variables = _evaluated(tower)
    block = min(block, len(images))

    @jax.jit
    def features(variables, x):
        return tower_features(nnx.merge(graph, variables), prepare(x), jax.random.key(0)).astype(jnp.float32)

    out = np.zeros((len(images), feature_size(tower)), np.float32)
    for first in range(0, len(images), block):
        part = np.asarray(images[first : first + block])
        # A program of one size for all: in evaluation no image sees another, so what fills up the last one is free.
        filled = np.concatenate([part, np.repeat(part[-1:], block - len(part), axis=0)])
        out[first : first + len(part)] = np.asarray(features(variables, filled))[: len(part)]
    return out


def _evaluated(tower: nnx.Module) -> tuple[Any, Any]:
    """The tower as it evaluates; the one that is given may be in training."""
    copy = nnx.merge(*nnx.split(tower))
    copy.eval()
    return nnx.split(copy)
