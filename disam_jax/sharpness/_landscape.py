"""The losses of the domains along a line or over a plane through the parameters."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax.sharpness._blocks import Blocks, Source, by_domain, example_losses
from disam_jax.sharpness._directions import check_directions
from disam_jax.sharpness._parts import Progress, in_parts
from disam_jax.sharpness._surface import LossSurface, centre
from disam_jax.sharpness._trees import moved


class Landscape(NamedTuple):
    """Losses at ``w + x d_0``, or at ``w + x d_0 + y d_1``; float64.

    Attributes:
      x: Steps along the first direction, ``[points]``.
      y: Steps along the second one, ``[points]``; ``None`` for a line.
      losses: Of the domains, ``[points, D]`` along a line; ``[points, points, D]``, y first, over a plane. What is not
        finite far from w stays as it is.
      mixture: Of the mixture of the sources, the same without the last axis.
      centre: Losses of the domains at w, ``[D]``.
      names: Of the domains.
      held_out: Index of the held-out domain, or ``None``.
    """

    x: np.ndarray
    y: np.ndarray | None
    losses: np.ndarray
    mixture: np.ndarray
    centre: np.ndarray
    names: tuple[str, ...]
    held_out: int | None


def loss_landscape(
    surface: LossSurface,
    params: Any,
    directions: Sequence[Any],
    *,
    extent: float | tuple[float, float] = 1.0,
    points: int = 25,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Landscape:
    """The loss of each domain, the held-out one too, along one direction or over the plane of two.

    Args:
      surface: From `loss_surface`.
      params: A pytree of floating point arrays; half precision is measured as float32.
      directions: A list of one or two trees like the parameters: `random_directions`, eigenvectors of the Hessian, or
        the difference to another model's parameters, along which x = 1 is that model.
      extent: From ``-extent`` to ``extent`` in each direction, in lengths of the direction; or ``(low, high)``.
      points: Grid points in each direction; an odd number has one at w.
      out: File (npz) in which the parts are kept; a call with the same arguments goes on from it. A part is a point of
        a line, a row of a plane.
      progress: Called as ``progress(what, done, total)``.

    Returns:
      `Landscape`.

    Raises:
      ValueError: When a loss is not finite at w, a direction is empty, or an argument does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from disam_jax import sharpness
      >>> surface = sharpness.loss_surface(lambda w, c: c * jnp.sum(w**2), jnp.array([1.0, 10.0]), [0, 1])
      >>> line = sharpness.loss_landscape(surface, jnp.zeros(2), [jnp.array([0.0, 1.0])], points=3)
      >>> line.x.tolist(), line.losses.tolist()
      ([-1.0, 0.0, 1.0], [[1.0, 10.0], [0.0, 0.0], [1.0, 10.0]])

    References:
      Li et al., Visualizing the Loss Landscape of Neural Nets, NeurIPS 2018.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise ValueError(f"points must be at least 2, got {points!r}.")
    low, high = extent if isinstance(extent, tuple) else (-extent, extent)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"extent must be a positive number or (low, high) with low < high, got {extent}.")
    point = centre(surface, params)
    directions = check_directions(list(directions), point.params)
    x = np.linspace(low, high, points)
    plane = len(directions) == 2
    rows = np.stack(np.meshgrid(x, x), -1) if plane else x[:, None, None]

    def measure(row: int):
        steps = jnp.asarray(rows[row], point.base.dtype)
        return {"losses": _along(surface.source, surface.blocks, point.params, directions, steps)}

    parts = in_parts(
        measure,
        points,
        what="loss landscape",
        surface=surface,
        losses=point.losses,
        inputs=(point.params, directions, rows),
        out=out,
        progress=progress,
    )
    losses = parts["losses"].astype(np.float64).reshape(*(points,) * len(directions), len(surface.names))
    sources = surface.shares > 0
    # A domain without a share has no part in the mixture, even where its loss is not finite.
    mixture = losses[..., sources] @ surface.shares[sources]
    return Landscape(
        x, x if plane else None, losses, mixture, point.losses.astype(np.float64), surface.names, surface.held_out
    )


@partial(jax.jit, static_argnums=0)
def _along(source: Source, blocks: Blocks, params: Any, directions: list[Any], steps: jax.Array) -> jax.Array:
    """Losses of the domains, ``[n, D]``, after steps ``[n, number of directions]``."""

    def one(step):
        at = params
        for place, direction in enumerate(directions):
            at = moved(at, step[place], direction)
        return by_domain(blocks, example_losses(source, blocks, at))

    return jax.lax.map(one, steps)
