"""How far the gradients of the domains agree."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax._perturbation import tree_vdot
from disam_jax.sharpness._blocks import Blocks, Source, rise_and_gradient
from disam_jax.sharpness._surface import LossSurface, centre, check_finite, reading


class GradientSimilarity(NamedTuple):
    """Of the gradients of the domains' losses; float64.

    Attributes:
      cosines: ``[D, D]``; nan in the row and column of a gradient that is zero, which has no direction.
      norms: ``[D]``.
      mixture_cosines: Of each domain's gradient with the mixture's, along which SAM perturbs, ``[D]``.
      mixture_norm: ``[]``.
      names: Of the domains.
      held_out: Index of the held-out domain, or ``None``.
    """

    cosines: np.ndarray
    norms: np.ndarray
    mixture_cosines: np.ndarray
    mixture_norm: np.ndarray
    names: tuple[str, ...]
    held_out: int | None


def gradient_similarity(surface: LossSurface, params: Any) -> GradientSimilarity:
    """The cosine between the gradients of each pair of domains, ``g_i . g_j / (||g_i|| ||g_j||)``, and their norms.

    Args:
      surface: From `loss_surface`.
      params: A pytree of floating point arrays; half precision is measured as float32. One gradient for each domain is
        held at once.

    Returns:
      `GradientSimilarity`.

    Raises:
      ValueError: When a loss or a gradient is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from disam_jax import sharpness
      >>> slopes = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])   # one example of each of three domains
      >>> surface = sharpness.loss_surface(lambda w, s: s @ w, slopes, [0, 1, 2])
      >>> out = sharpness.gradient_similarity(surface, jnp.zeros(2))
      >>> out.cosines.round(2).tolist()
      [[1.0, 0.0, 0.71], [0.0, 1.0, 0.71], [0.71, 0.71, 1.0]]
    """
    point = centre(surface, params)
    with reading(surface):
        gram = np.asarray(_gram(surface.source, surface.blocks, point.params, point.base), np.float64)
    squares = np.diagonal(gram)[:-1]
    check_finite(surface, squares, "gradient", "at the parameters: in norm or in its square")
    norms = np.sqrt(np.append(squares, gram[-1, -1]))
    products = norms[:, None] * norms
    cosines = np.divide(gram, products, out=np.full_like(gram, np.nan), where=products > 0)
    cosines = np.clip(cosines, -1, 1)
    return GradientSimilarity(
        cosines[:-1, :-1], norms[:-1], cosines[:-1, -1], norms[-1], surface.names, surface.held_out
    )


@partial(jax.jit, static_argnums=0)
def _gram(source: Source, blocks: Blocks, params: Any, base: jax.Array) -> jax.Array:
    """Inner products of the gradients of the units, ``[D + 1, D + 1]``."""
    number = len(blocks.counts)
    one = lambda unit: rise_and_gradient(source, blocks, base, params, unit)[1]
    gradients = jax.lax.map(one, jnp.arange(number, dtype=jnp.int32))

    def mixed(g):
        rows = jnp.where((blocks.shares[-1] > 0).reshape(-1, *[1] * (g.ndim - 1)), g, 0)
        shares = blocks.shares[-1].astype(g.dtype)
        return jnp.concatenate([g, jnp.tensordot(shares, rows, axes=1, precision=jax.lax.Precision.HIGHEST)[None]])

    gradients = jax.tree.map(mixed, gradients)
    pick = lambda i: jax.tree.map(lambda g: g[i], gradients)
    all_units = jnp.arange(number + 1, dtype=jnp.int32)
    return jax.lax.map(lambda i: jax.lax.map(lambda j: tree_vdot(pick(i), pick(j)), all_units), all_units)
