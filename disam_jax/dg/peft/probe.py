"""A linear head on a tower."""

import jax
from flax import nnx

from disam_jax.dg.models.linear import make_head
from disam_jax.dg.peft.features import feature_size, tower_features


class LinearProbe(nnx.Module):
    """A tower with a new linear head: `TRAINABLE["probe"]` trains the head only, the other filters the tower with it.

    Args:
        tower: `ImageTower` (`clip.image`), `ViT`, `ResNet` or `EfficientNetLite` with its weights, or the `Rest` of
            one; a head of its own is left out. It is shared, not copied. Running statistics stay as they are if it is
            made with `frozen_norm`.
        num_classes: C.
        rngs: random streams, for the head.

    Raises:
        TypeError: on a module that is no tower.

    Example:
        >>> from disam_jax.dg.models.vit import ViT, ViTConfig
        >>> config = ViTConfig(image_size=8, patch_size=4, width=8, layers=1, heads=2, hidden=8)
        >>> make = lambda: LinearProbe(ViT(config, rngs=nnx.Rngs(0)), 3, nnx.Rngs(1))
        >>> apply = lambda x: make()(x, jax.random.key(0))
        >>> logits, features = jax.eval_shape(apply, jax.numpy.ones((5, 8, 8, 3)))
        >>> logits.shape, features.shape
        ((5, 3), (5, 8))
    """

    def __init__(self, tower: nnx.Module, num_classes: int, rngs: nnx.Rngs):
        self.tower = tower
        self.head = make_head(feature_size(tower), num_classes, rngs)

    def __call__(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits and the tower's features.

        Args:
            x: float [N, H, W, 3], normalised as the tower's weights expect; activations for a `Rest`.
            key: decides what dropout drops, where the tower has any.

        Returns:
            (logits [N, C], features [N, F]).
        """
        features = tower_features(self.tower, x, key)
        return self.classify(features), features

    def classify(self, features: jax.Array) -> jax.Array:
        """Logits [N, C] of features [N, F]: the last layer."""
        return self.head(features)
