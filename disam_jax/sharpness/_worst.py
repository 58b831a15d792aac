"""The worst case: how far a perturbation within rho can raise the loss of a domain."""

import os
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax._perturbation import tree_norm
from disam_jax.sharpness._blocks import Blocks, Source, rise, rise_and_gradient
from disam_jax.sharpness._parts import Progress, in_parts
from disam_jax.sharpness._surface import LossSurface, centre, check_finite
from disam_jax.sharpness._trees import moved, normal_like, scaled, stretched, unit_length


class DomainSharpness(NamedTuple):
    """Rises of the loss, in its unit; float64.

    Attributes:
      values: Of each domain under its own perturbation, ``[D]``.
      mixture: Of the mixture of the sources under its own perturbation, ``[]``.
      losses: At the parameters, ``[D]``.
      names: Of the domains.
      held_out: Index of the held-out domain, or ``None``.
    """

    values: np.ndarray
    mixture: np.ndarray
    losses: np.ndarray
    names: tuple[str, ...]
    held_out: int | None


def domain_sharpness(
    surface: LossSurface,
    params: Any,
    *,
    rho: float = 0.05,
    steps: int = 1,
    step_size: float = 1.0,
    adaptive: bool = False,
    key: jax.Array | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> DomainSharpness:
    """The worst case of each domain within rho, ``max L_d(w + e) - L_d(w) over ||e|| <= rho``, from below.

    One step is SAM's: ``e = rho g / ||g||``. Further ones are projected gradient ascent from there, each
    ``step_size * rho`` long along the gradient and then back onto the ball; the largest rise that was met counts, so
    more steps never give less. With ``adaptive`` the ball is ASAM's, ``||e / |w| || <= rho`` element by element, which
    does not change when a ReLU layer is scaled up and the next one down.

    It is a lower bound of the maximum: one step misses curvature where the gradient is small, and is 0 where it is 0.
    With one step the rise may be negative.

    Args:
      surface: From `loss_surface`.
      params: A pytree of floating point arrays; half precision is measured as float32.
      rho: Radius of the ball, in the L2 norm of all parameters; without unit for the adaptive form.
      steps: Gradients per domain, static.
      step_size: Length of the steps after the first one, in rho.
      adaptive: Whether the ball stretches with ``|w|``.
      key: Starts from a random point of the sphere instead of w, which leaves a point where the gradient is 0; wants
        several steps.
      out: File (npz) in which the parts are kept; a call with the same arguments goes on from it. A part is a domain.
      progress: Called as ``progress(what, done, total)``.

    Returns:
      `DomainSharpness`.

    Raises:
      ValueError: When a loss is not finite at w or at the perturbation that was found, or an argument does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from disam_jax import sharpness
      >>> loss_fn = lambda w, slope: jnp.sum(slope * w[None], axis=1)
      >>> slopes = jnp.array([[3.0, 4.0], [0.0, 1.0]])              # one example of each of two domains
      >>> surface = sharpness.loss_surface(loss_fn, slopes, [0, 1])
      >>> sharpness.domain_sharpness(surface, jnp.ones(2), rho=0.5).values.tolist()
      [2.5, 0.5]

    References:
      Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021; Kwon et al., ASAM,
      ICML 2021; Andriushchenko et al., A Modern Look at the Relationship between Sharpness and Generalization, ICML
      2023, for the ascent with several steps.
    """
    if not rho > 0 or not np.isfinite(rho):
        raise ValueError(f"rho must be a positive length, got {rho}.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps!r}.")
    if not step_size > 0 or not np.isfinite(step_size):
        raise ValueError(f"step_size must be positive, in units of rho, got {step_size}.")
    point = centre(surface, params)
    # A sharpness of SAM's perturbation needs no random number; a random start has its own for all domains alike.
    start = jax.tree.map(jnp.zeros_like, point.params)
    if key is not None:
        start = scaled(unit_length(normal_like(key, point.params)), rho)

    def measure(unit: int):
        run = partial(_ascent, surface.source, steps, adaptive, key is None)
        return {"rise": run(surface.blocks, point.params, point.base, start, jnp.int32(unit), rho, step_size)}

    parts = in_parts(
        measure,
        len(surface.names) + 1,
        what="domain sharpness",
        surface=surface,
        losses=point.losses,
        inputs=(point.params, start, rho, steps, step_size, adaptive),
        out=out,
        progress=progress,
    )
    rises = parts["rise"].astype(np.float64)
    check_finite(surface, rises, "rise", f"within rho={rho:g}: write a smaller rho")
    return DomainSharpness(
        rises[:-1], rises[-1], point.losses.astype(np.float64), surface.names, held_out=surface.held_out
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _ascent(
    source: Source,
    steps: int,
    adaptive: bool,
    from_w: bool,
    blocks: Blocks,
    params: Any,
    base: jax.Array,
    start: Any,
    unit: jax.Array,
    rho: Any,
    step_size: Any,
) -> jax.Array:
    """The largest rise at the points after each step; the points are ``w + T u`` with ``||u|| <= rho``."""
    at = lambda u: moved(params, 1, stretched(params, u, adaptive))

    def step(k, carry):
        u, best = carry
        here, gradient = rise_and_gradient(source, blocks, base, at(u), unit)
        # The point of step 0 is the start, which is no step; max carries a nan on.
        best = jnp.where(k == 0, best, jnp.maximum(best, here))
        direction = unit_length(stretched(params, gradient, adaptive))
        length = rho * jnp.where((k == 0) & from_w, 1, step_size)
        u = moved(u, length, direction)
        return scaled(u, jnp.minimum(1, rho / jnp.maximum(tree_norm(u), rho))), best

    u, best = jax.lax.fori_loop(0, steps, step, (start, jnp.full((), -jnp.inf, base.dtype)))
    return jnp.maximum(best, rise(source, blocks, base, at(u), unit))
