"""CLIP's image tower against fixed embeddings of the classes' names."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from disam_jax.dg.models.clip import CLIP, clip_logits, unit
from disam_jax.dg.peft.coop import until_end


class Buffer(nnx.Variable):
    """An array that is computed once; training neither changes it nor takes its gradient."""


class TextClassifier(nnx.Module):
    """exp(logit_scale) cos(image, class), the classes' embeddings being fixed.

    As it is, CLIP's zero-shot classifier. With `add_lora(classifier.image, ...)`, or the filters of `TRAINABLE` for
    norms and biases or for everything, the image tower is tuned; the text tower is no part of this module, and the
    temperature stays.

    Args:
        clip: with its weights; its image tower is shared, not copied.
        ids: int [C, L], the classes' texts, `tokenizer.tokenize(class_prompts(names))`. Concrete numbers, not traced.

    Attributes:
        class_features: float32 [C, E], of length 1.
        logit_scale: float [].

    Example:
        >>> from disam_jax.dg.models.clip import CLIPConfig
        >>> config = CLIPConfig(image_size=8, patch_size=4, vision_width=8, vision_layers=1, vision_heads=2,
        ...     vision_hidden=8, text_width=8, text_layers=1, text_heads=2, text_hidden=8, vocab_size=50, embed_dim=4,
        ...     eos_token_id=49)
        >>> class_ids = np.array([[48, 7, 49, 0], [48, 7, 8, 49]])
        >>> make = lambda: TextClassifier(CLIP(config, rngs=nnx.Rngs(0)), class_ids)
        >>> logits, features = jax.eval_shape(lambda x: make()(x, jax.random.key(0)), jnp.ones((3, 8, 8, 3)))
        >>> logits.shape, features.shape
        ((3, 2), (3, 4))

    References:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, section 3.1.
    """

    def __init__(self, clip: CLIP, ids: np.ndarray):
        self.image = clip.image
        self.class_features = Buffer(text_features(clip, ids))
        self.logit_scale = Buffer(clip.logit_scale[...])

    def __call__(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits and image features.

        Args:
            x: float [N, S, S, 3], normalised by CLIP_MEAN and CLIP_STD.
            key: without effect: nothing is drawn.

        Returns:
            (logits [N, C], features [N, E]).
        """
        del key
        features = self.image(x)
        return self.classify(features), features

    def classify(self, features: jax.Array) -> jax.Array:
        """Logits [N, C] of image features [N, E]."""
        return clip_logits(features, self.class_features[...], self.logit_scale[...])


def text_features(clip: CLIP, ids: np.ndarray) -> jax.Array:
    """The embeddings of texts, of length 1.

    Args:
        clip: with its weights.
        ids: int [C, L], concrete.

    Returns:
        float32 [C, E].
    """
    ids, ends = until_end(clip.text, ids)
    return unit(clip.text.encode(clip.text.embed(jnp.asarray(ids)), jnp.asarray(ends))).astype(jnp.float32)
