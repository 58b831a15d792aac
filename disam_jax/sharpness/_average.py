"""The average case: how far Gaussian noise on the weights raises the loss of a domain."""

import os
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax.sharpness._blocks import Blocks, Source, by_domain, example_losses
from disam_jax.sharpness._parts import Progress, in_parts
from disam_jax.sharpness._statistics import Estimate, check_sampling, student
from disam_jax.sharpness._surface import LossSurface, centre, check_finite
from disam_jax.sharpness._trees import moved, normal_like, stretched


class AverageSharpness(NamedTuple):
    """Mean rises of the loss under noise, in its unit; float64.

    Attributes:
      values: Of the domains, Estimate ``[D]``.
      mixture: Of the mixture of the sources, Estimate ``[]``.
      samples: The rise of each domain under each draw, mean of both signs, ``[samples, D]``. All domains see the same
        noise, so differences between domains, and between models of one shape, are best taken draw by draw.
      losses: At the parameters, ``[D]``.
      names: Of the domains.
      held_out: Index of the held-out domain, or ``None``.
    """

    values: Estimate
    mixture: Estimate
    samples: np.ndarray
    losses: np.ndarray
    names: tuple[str, ...]
    held_out: int | None


def average_sharpness(
    surface: LossSurface,
    params: Any,
    sigma: float = 0.01,
    *,
    key: jax.Array,
    samples: int = 32,
    adaptive: bool = False,
    confidence: float = 0.95,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> AverageSharpness:
    """The average case of each domain, ``E L_d(w + sigma z) - L_d(w)`` for standard normal z.

    For a small sigma it is ``sigma^2 / 2`` times the trace of the Hessian. With ``adaptive`` the noise is
    ``sigma |w| z``, and the result does not change when a ReLU layer is scaled up and the next one down. Each draw is
    used with both signs, which removes the part of the noise that the gradient makes and leaves the expectation as it
    is.

    Args:
      surface: From `loss_surface`.
      params: A pytree of floating point arrays; half precision is measured as float32.
      sigma: Standard deviation of the noise on each parameter; relative to the parameter for the adaptive form. The
        noise is about ``sigma * sqrt(number of parameters)`` long.
      key: Of the noise.
      samples: Draws; two evaluations of the data each.
      adaptive: Whether the noise is in proportion to ``|w|``.
      confidence: Of the intervals, which are Student's t over the draws: exact for rises that are normal, else good for
        many draws.
      out: File (npz) in which the parts are kept; a call with the same arguments goes on from it. A part is a draw.
      progress: Called as ``progress(what, done, total)``.

    Returns:
      `AverageSharpness`.

    Raises:
      ValueError: When a loss is not finite at w or under noise, or an argument does not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from disam_jax import sharpness
      >>> loss_fn = lambda w, scale: scale * jnp.sum(w**2) / 2       # sigma^2 / 2 times the trace is 0.02 scale
      >>> surface = sharpness.loss_surface(loss_fn, jnp.array([1.0, 5.0]), [0, 1])
      >>> out = sharpness.average_sharpness(surface, jnp.ones(400), 0.01, key=jax.random.key(0))
      >>> [round(x, 2) for x in out.values.mean.tolist()]
      [0.02, 0.1]

    References:
      Keskar et al., On Large-Batch Training for Deep Learning, ICLR 2017, measured the worst case; Neyshabur et al.,
      Exploring Generalization in Deep Learning, NeurIPS 2017, the average; Andriushchenko et al., A Modern Look at the
      Relationship between Sharpness and Generalization, ICML 2023, its adaptive form.
    """
    check_sampling(samples, confidence)
    if not sigma > 0 or not np.isfinite(sigma):
        raise ValueError(f"sigma must be a positive standard deviation, got {sigma}.")
    point = centre(surface, params)

    def measure(draw: int):
        drawn = jax.random.fold_in(key, draw)
        run = partial(_rises_under_noise, surface.source, adaptive)
        return {"rises": run(surface.blocks, point.params, point.base, drawn, sigma)}

    parts = in_parts(
        measure,
        samples,
        what="average sharpness",
        surface=surface,
        losses=point.losses,
        inputs=(point.params, key, sigma, adaptive),
        out=out,
        progress=progress,
    )
    rises = parts["rises"][:samples].astype(np.float64)
    check_finite(surface, rises.sum(0), "rise", f"under noise of sigma={sigma:g}: write a smaller sigma")
    return AverageSharpness(
        student(rises, confidence),
        student(rises @ surface.shares, confidence),
        rises,
        point.losses.astype(np.float64),
        surface.names,
        surface.held_out,
    )


@partial(jax.jit, static_argnums=(0, 1))
def _rises_under_noise(
    source: Source, adaptive: bool, blocks: Blocks, params: Any, base: jax.Array, key: jax.Array, sigma: Any
) -> jax.Array:
    noise = stretched(params, normal_like(key, params), adaptive)
    both = jax.lax.map(
        lambda sign: by_domain(blocks, example_losses(source, blocks, moved(params, sign * sigma, noise)) - base),
        jnp.array([1, -1], base.dtype),
    )
    return jnp.mean(both, axis=0)
