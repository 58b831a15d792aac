"""CoOp: learned context vectors in the prompts of CLIP."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from disam_jax.dg.models.clip import CLIP, TextTower, clip_logits


class PromptParam(nnx.Param):
    """Context vectors of a prompt."""


class CoOp(nnx.Module):
    """CLIP with the prompts [start] v_1 .. v_K [class name] [end], of which the vectors v are learned.

    `TRAINABLE["coop"]` trains the vectors only. The text tower runs once for a batch, over the tokens up to the longest
    prompt's end and no further: it is causal. With `cached=True` the image tower does not run at all.

    Args:
        clip: with its weights; its towers are shared, not copied.
        class_ids: int [C, L], start token, name, end token, padding: `tokenizer.tokenize(class_prompts(names, "{}."))`.
            Concrete numbers, not traced.
        num_context: K; None for that of `context_words`, or 16.
        rngs: random streams.
        class_contexts: whether every class has context vectors of its own.
        context_words: token ids of the words to start from, `tokenizer.words("a photo of a")`; None starts normal with
            standard deviation 0.02.
        cached: whether the module is called with image features, see `cache_features`, in place of images.
        class_names: C names, for messages.

    Attributes:
        context: `PromptParam` float32 [K, W], or [C, K, W] with `class_contexts`.

    Raises:
        ValueError: if a prompt is longer than the context of the model, or `context_words` has not K tokens.

    Example:
        >>> from disam_jax.dg.models.clip import CLIPConfig
        >>> config = CLIPConfig(image_size=8, patch_size=4, vision_width=8, vision_layers=1, vision_heads=2,
        ...     vision_hidden=8, text_width=8, text_layers=1, text_heads=2, text_hidden=8, vocab_size=50, embed_dim=4,
        ...     eos_token_id=49)
        >>> class_ids = np.array([[48, 7, 49, 0], [48, 7, 8, 49]])
        >>> model = nnx.eval_shape(lambda: CoOp(CLIP(config, rngs=nnx.Rngs(0)), class_ids, 4, rngs=nnx.Rngs(1)))
        >>> apply = lambda model, x: model(x, jax.random.key(0))
        >>> logits, features = nnx.eval_shape(apply, model, jnp.ones((3, 8, 8, 3)))
        >>> logits.shape, features.shape, model.context.shape
        ((3, 2), (3, 4), (4, 8))

    References:
        Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022. Zhang et al., ICLR 2024,
        trains it with DISAM.
    """

    def __init__(
        self,
        clip: CLIP,
        class_ids: np.ndarray,
        num_context: int | None = None,
        *,
        rngs: nnx.Rngs,
        class_contexts: bool = False,
        context_words: Sequence[int] | None = None,
        cached: bool = False,
        class_names: Sequence[str] | None = None,
    ):
        count = num_context if num_context is not None else 16 if context_words is None else len(context_words)
        if count < 1:
            raise ValueError(f"num_context must be at least 1, got {count}")
        if context_words is not None and len(context_words) != count:
            raise ValueError(
                f"context_words has {len(context_words)} tokens, num_context is {count}: leave num_context out"
            )
        self.image = None if cached else clip.image
        self.text = clip.text
        self.logit_scale = clip.logit_scale
        self.num_context, self.class_contexts = count, class_contexts
        self._set_classes(class_ids, class_names)
        if context_words is None:
            start = nnx.initializers.normal(0.02)
            shape = (len(self.ends), count) if class_contexts else (count,)
            context = start(rngs.params(), (*shape, self.text.tokens.features), jnp.float32)
        else:
            words = self.text.embed(jnp.asarray(context_words, jnp.int32)[None])[0].astype(jnp.float32)
            context = jnp.broadcast_to(words[None], (len(self.ends), *words.shape)) if class_contexts else words
        self.context = PromptParam(context)

    def with_classes(self, class_ids: np.ndarray, class_names: Sequence[str] | None = None) -> "CoOp":
        """The same contexts, as they are now, for other classes.

        Args:
            class_ids: int [C', L], as for the first ones.
            class_names: C' names, for messages.

        Returns:
            A new module; this one is not changed.

        Raises:
            ValueError: if every class has a context of its own, or a prompt is too long.
        """
        if self.class_contexts:
            raise ValueError(
                "with class_contexts=True there are no contexts for new classes: share one, class_contexts=False"
            )
        other = nnx.merge(*nnx.split(self))
        other._set_classes(class_ids, class_names)
        return other

    def class_features(self) -> jax.Array:
        """The embeddings of all prompts.

        Returns:
            float [C, E], not of length 1.
        """
        embeddings = self.text.embed(jnp.asarray(self.ids, jnp.int32))
        context = self.context[...].astype(embeddings.dtype)
        if not self.class_contexts:
            context = jnp.broadcast_to(context[None], (embeddings.shape[0], *context.shape))
        prompts = jnp.concatenate([embeddings[:, :1], context, embeddings[:, 1:]], axis=1)
        return self.text.encode(prompts, jnp.asarray(self.ends, jnp.int32) + self.num_context)

    def classify(self, features: jax.Array) -> jax.Array:
        """Logits of images whose features are there.

        Args:
            features: float [N, E], of the image tower.

        Returns:
            float [N, C].
        """
        return clip_logits(features, self.class_features(), self.logit_scale[...])

    def __call__(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits and image features.

        Args:
            x: float [N, S, S, 3], normalised by CLIP_MEAN and CLIP_STD; with `cached=True` float [N, E] features.
            key: without effect: nothing is drawn.

        Returns:
            (logits [N, C], features [N, E]).
        """
        del key
        features = x if self.image is None else self.image(x)
        return self.classify(features), features

    def _set_classes(self, class_ids: np.ndarray, class_names: Sequence[str] | None) -> None:
        ids, ends = until_end(self.text, class_ids)
        room = self.text.positions.shape[0] - self.num_context
        for place in np.flatnonzero(ends >= room).tolist():
            name = f"class {place}" if class_names is None else repr(class_names[place])
            raise ValueError(
                f"the prompt of {name} has {ends[place] + 1} tokens and {self.num_context} of context, the model's "
                f"context is {room + self.num_context}: shorten the name or lower num_context"
            )
        # Part of the graph, not variables: nothing of them is trained, saved or averaged.
        self.ids = tuple(map(tuple, ids.tolist()))
        self.ends = tuple(ends.tolist())


def until_end(text: TextTower, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Texts without what follows the longest one's end, which a causal tower has no use for.

    Args:
        text: knows the end token.
        ids: int [C, L], concrete.

    Returns:
        int32 [C, L'] and the ends [C]; L' is the largest end and one.

    Raises:
        ValueError: if a text has no end token.
    """
    ids = np.asarray(ids, np.int32)
    # Inside of a trace too, these are numbers.
    with jax.ensure_compile_time_eval():
        ends = np.asarray(text.ends(jnp.asarray(ids)))
    unended = np.flatnonzero((ids[np.arange(len(ids)), ends] != text.eos_token_id) & (text.eos_token_id != 2))
    if unended.size:
        raise ValueError(f"text {unended[0]} has no end token, {text.eos_token_id}: tokenize it for this model")
    return ids[:, : ends.max() + 1], ends
