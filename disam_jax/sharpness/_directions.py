"""Directions in which a loss landscape is drawn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax.sharpness._surface import as_params
from disam_jax.sharpness._trees import normal_like

VECTORS = ("zero", "norm")


def random_directions(
    params: Any, key: jax.Array, number: int = 2, *, vectors: str = "zero", allow_zero_filters: bool = False
) -> list[Any]:
    """Gaussian directions that are as long as the weights, filter by filter.

    ``d_f <- d_f ||w_f|| / ||d_f||`` for each filter f of a kernel: what feeds one output, which is one index of the
    last axis, in the layout of Flax (``[in, out]``, ``[height, width, in, out]``). A step along such a direction is
    relative to the weights, so the landscapes of two networks can be compared, and one network's does not change when
    ReLU layers are scaled up and down against each other.

    Args:
      params: A pytree of floating point arrays.
      key: Of the directions.
      number: How many.
      vectors: What to do with arrays of one axis or none, biases and the scales of norms: ``"zero"`` leaves them where
        they are, as Li et al. do; ``"norm"`` takes the whole array for one filter.
      allow_zero_filters: Whether filters of norm zero may be; they stay where they are.

    Returns:
      ``number`` trees like the parameters.

    Raises:
      ValueError: When a filter is zero, nothing is left to move, or an argument does not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from disam_jax import sharpness
      >>> params = {"kernel": jnp.array([[3.0, 1.0], [4.0, 0.0]]), "bias": jnp.ones(2)}
      >>> (d,) = sharpness.random_directions(params, jax.random.key(0), number=1)
      >>> jnp.linalg.norm(d["kernel"], axis=0).round(3).tolist(), bool(d["bias"].any())
      ([5.0, 1.0], False)

    References:
      Li et al., Visualizing the Loss Landscape of Neural Nets, NeurIPS 2018, section 4.
    """
    params = as_params(params)
    if vectors not in VECTORS:
        raise ValueError(f"vectors must be one of {', '.join(map(repr, VECTORS))}, got {vectors!r}.")
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"number must be at least 1, got {number!r}.")
    if not allow_zero_filters:
        _check_filters(params, vectors)
    directions = [_normalised(params, normal_like(k, params), vectors) for k in jax.random.split(key, number)]
    if not _length(directions[0]) > 0:
        raise ValueError(
            "the direction is empty: nothing in params moves. Arrays of one axis stay where they are unless "
            "vectors='norm', filters of norm zero always."
        )
    return directions


def check_directions(directions: Any, params: Any) -> list[Any]:
    """One or two directions with the structure and shapes of the parameters, finite, not zero, not parallel."""
    if not isinstance(directions, (list, tuple)) or len(directions) not in (1, 2):
        raise ValueError(
            "directions must be a list of one or two trees like params: loss_landscape(surface, params, [direction])."
        )
    return _check_independent([_like(params, d, f"directions[{i}]") for i, d in enumerate(directions)])


def _like(params: Any, direction: Any, name: str) -> Any:
    if jax.tree.structure(direction) != jax.tree.structure(params):
        raise ValueError(
            f"{name} must have the structure of params, {jax.tree.structure(params)}, got "
            f"{jax.tree.structure(direction)}."
        )

    def leaf(path, w, d):
        if jnp.shape(d) != w.shape:
            where = jax.tree_util.keystr(path)
            raise ValueError(f"{name}{where} has shape {jnp.shape(d)}, but params{where} has {w.shape}.")
        return jnp.asarray(d).astype(w.dtype)

    direction = jax.tree_util.tree_map_with_path(leaf, params, direction)
    length = _length(direction)
    if not np.isfinite(length):
        raise ValueError(f"{name} is not finite.")
    if length == 0:
        raise ValueError(f"{name} is empty: it is zero everywhere and leads nowhere.")
    return direction


def _check_independent(directions: list[Any]) -> list[Any]:
    if len(directions) == 2:
        one, other = map(_flat, directions)
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        if abs(cosine) > 1 - 1e-9:
            raise ValueError("the two directions are parallel: they span a line, not a plane. Draw one of them alone.")
    return directions


def _flat(direction: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(x)).astype(np.float64) for x in jax.tree.leaves(direction)])


def _length(direction: Any) -> float:
    return float(np.linalg.norm(_flat(direction)))


def _norms(x: np.ndarray, whole: bool) -> np.ndarray:
    """The norm of each filter, of a shape that broadcasts against the array; of the whole array if it is a vector."""
    axes = tuple(range(x.ndim - 1)) if x.ndim >= 2 else None
    norms = np.sqrt(np.square(x).sum(axes, keepdims=True))
    return norms if whole or x.ndim >= 2 else np.zeros_like(norms)


def _normalised(params: Any, direction: Any, vectors: str) -> Any:
    def leaf(w, d):
        w, d = np.asarray(w), np.asarray(d)
        length = _norms(d, True)
        return jnp.asarray(d * (_norms(w, vectors == "norm") / np.where(length > 0, length, 1)), d.dtype)

    return jax.tree.map(leaf, params, direction)


def _check_filters(params: Any, vectors: str) -> None:
    for path, w in jax.tree_util.tree_leaves_with_path(params):
        if w.size == 0 or (w.ndim < 2 and vectors == "zero"):
            continue
        zero = _norms(np.asarray(w), True) == 0
        if zero.any():
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} has {zero.sum()} of {zero.size} filters of norm zero, along "
                "which there is no relative step. Write allow_zero_filters=True to leave them where they are."
            )
