"""The parts that CLIP and ViT share: pre-norm transformer blocks, and an image as a sequence of tokens.

All arithmetic has the dtype of the parameters, except the softmax and the layer normalisation, which are in float32 at
least.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx

from disam_jax.dg.models import stages
from disam_jax.dg.models.norm import widened

# Cut at two deviations.
token_init = nnx.initializers.truncated_normal(0.02)


def quick_gelu(x: jax.Array) -> jax.Array:
    """The approximation x sigmoid(1.702 x) of x Phi(x), with which OpenAI trained CLIP; no other fits its weights."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: jax.Array) -> jax.Array:
    """The exact x Phi(x), Phi the normal distribution function; jax.nn.gelu itself approximates it."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType({"gelu": gelu, "quick_gelu": quick_gelu})


def check_transformer(width: int, heads: int, activation: str) -> None:
    """Whether such a block can be made.

    Raises:
        ValueError: if the heads don't divide the width, or the activation is unknown.
    """
    if width % heads:
        raise ValueError(f"the width must be a multiple of the number of heads, got width {width} and {heads} heads")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def check_patches(image_size: int, patch_size: int) -> None:
    """Whether images of this size fall into whole patches.

    Raises:
        ValueError: if they don't.
    """
    if image_size % patch_size:
        raise ValueError(f"image_size must be a multiple of patch_size, got {image_size} and {patch_size}")


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation over the last axis, computed in float32 at least and returned in the dtype of its input.

    `nnx.LayerNorm` computes in the dtype it is told or finds, and the variance as E[x^2] - E[x]^2, which has few digits
    left where pretrained transformers have their few very large activations.
    """

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """From [..., W] to [..., W]; a mask says which entries count for mean and variance."""
        assert self.scale is not None
        assert self.bias is not None
        dtype, shape = widened(x), (1,) * (x.ndim - 1) + (-1,)
        wide = x.astype(dtype)
        centred = wide - jnp.mean(wide, -1, keepdims=True, where=mask)
        variance = jnp.mean(centred**2, -1, keepdims=True, where=mask)
        scale, bias = (vector[...].astype(dtype).reshape(shape) for vector in (self.scale, self.bias))
        return (centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(x.dtype)


def make_linear(m: int, n: int, rngs: nnx.Rngs, use_bias: bool = True) -> nnx.Linear:
    """A linear layer from [..., m] to [..., n]: kernel truncated normal 0.02, bias zero."""
    return nnx.Linear(m, n, use_bias=use_bias, kernel_init=token_init, rngs=rngs)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> jax.Array:
    """softmax(query key^T / sqrt(D)) value, head by head; the softmax is in float32 at least.

    Written out because `jax.nn.dot_product_attention` does not run in half precision under strict dtype promotion.

    Args:
        query: float [N, L, H, D].
        key: float [N, L, H, D].
        value: float [N, L, H, D].
        causal: whether a place sees itself and the places before it only.

    Returns:
        float [N, L, H, D], of the dtype of `value`.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (1, 3, 2, 4))
        >>> bool((attend(x, x, x, causal=True)[:, 0] == x[:, 0]).all())
        True
    """
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key, preferred_element_type=widened(query))
    scores = scores / math.sqrt(query.shape[-1])
    if causal:
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(seen[None, None], scores, -jnp.inf)
    return jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores).astype(value.dtype), value)


class Attention(nnx.Module):
    """Self-attention of several heads.

    Args:
        width: W.
        heads: H, a divisor of W.
        causal: whether a place sees itself and the places before it only.
        qkv_bias: whether the projections to query, key and value have a bias; that of the output always does.
        rngs: random streams.
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False, qkv_bias: bool = True, rngs: nnx.Rngs):
        self.heads = heads
        self.causal = causal
        self.query = make_linear(width, width, rngs, qkv_bias)
        self.key = make_linear(width, width, rngs, qkv_bias)
        self.value = make_linear(width, width, rngs, qkv_bias)
        self.out = make_linear(width, width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From [N, L, W] to [N, L, W]."""
        query, key, value = (
            layer(x).reshape(*x.shape[:2], self.heads, -1) for layer in (self.query, self.key, self.value)
        )
        return self.out(attend(query, key, value, self.causal).reshape(x.shape))


class Perceptron(nnx.Module):
    """Two linear layers, applied to each token by itself.

    Args:
        width: W.
        hidden: units between the layers.
        activation: a name of `ACTIVATIONS`.
        rngs: random streams.
    """

    def __init__(self, width: int, hidden: int, activation: str, *, rngs: nnx.Rngs):
        self.activation = activation
        self.fc1 = make_linear(width, hidden, rngs)
        self.fc2 = make_linear(hidden, width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From [N, L, W] to [N, L, W]."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class Block(stages.Block):
    """x + attention(norm1(x)), then x + mlp(norm2(x)).

    Args:
        width: W.
        heads: H, a divisor of W.
        hidden: units of the hidden layer of the perceptron.
        activation: a name of `ACTIVATIONS`.
        eps: added to the variance in both normalisations.
        causal: whether a place sees itself and the places before it only.
        qkv_bias: see `Attention`.
        rngs: random streams.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        activation: str,
        eps: float,
        causal: bool = False,
        qkv_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.norm1 = LayerNorm(width, epsilon=eps, rngs=rngs)
        self.attention = Attention(width, heads, causal=causal, qkv_bias=qkv_bias, rngs=rngs)
        self.norm2 = LayerNorm(width, epsilon=eps, rngs=rngs)
        self.mlp = Perceptron(width, hidden, activation, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From [N, L, W] to [N, L, W]."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def patches(pixels: jax.Array, size: int) -> jax.Array:
    """Images cut into squares, row by row; each square as a vector, in the order [row, column, channel].

    A linear layer on these vectors is the convolution with which the patches are embedded, as a matrix product, which
    is fast on every backend and under `vmap`.

    Args:
        pixels: float [N, S, S, C], S a multiple of `size`.
        size: of a square.

    Returns:
        float [N, (S / size)^2, size size C].

    Example:
        >>> patches(jnp.ones((2, 32, 32, 3)), 8).shape
        (2, 16, 192)
    """
    n, height, width, channels = pixels.shape
    x = pixels.reshape(n, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, size * size * channels)


def image_tokens(
    pixels: jax.Array,
    patch: Callable[[jax.Array], jax.Array],
    class_token: jax.Array,
    positions: jax.Array,
    image_size: int,
    patch_size: int,
) -> jax.Array:
    """The class token and the embedded patches of images, each at its position.

    Args:
        pixels: float [N, S, S, C], normalised as the weights expect.
        patch: from patches [N, P, F] to [N, P, W].
        class_token: float [W].
        positions: float [1 + P, W].
        image_size: S.
        patch_size: of a square.

    Returns:
        [N, 1 + P, W], of the dtype of `positions`.

    Raises:
        ValueError: if the images have another size.
    """
    if pixels.ndim != 4 or pixels.shape[1:3] != (image_size, image_size):
        raise ValueError(
            f"images must be [N, {image_size}, {image_size}, channels], the size that the positions of the patches "
            f"belong to, got {list(pixels.shape)}; resize them"
        )
    x = patch(patches(pixels.astype(positions.dtype), patch_size))
    first = jnp.broadcast_to(class_token[None, None, :], (x.shape[0], 1, x.shape[2]))
    return jnp.concatenate([first, x], 1) + positions[None]
