"""Curvature: the largest eigenvalues of the Hessian of each domain's loss, and its trace."""

import os
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from disam_jax._dtypes import accumulation_dtype
from disam_jax.sharpness._blocks import Blocks, Source, hessian_product
from disam_jax.sharpness._parts import Progress, in_parts
from disam_jax.sharpness._statistics import Estimate, check_sampling, student
from disam_jax.sharpness._surface import LossSurface, centre, check_finite
from disam_jax.sharpness._trees import normal_like, unit_length


class HessianEigenvalues(NamedTuple):
    """The largest eigenvalues of the Hessians; float64.

    Attributes:
      values: Of each domain, descending, ``[D, k]``.
      mixture: Of the mixture of the sources, ``[k]``.
      errors: An eigenvalue of the domain's Hessian lies within this of each value, up to rounding, ``[D, k]``.
      mixture_errors: ``[k]``.
      vectors: With ``vectors=True``: unit eigenvectors, a tree like the parameters with leaves ``[D + 1, k, ...]``, the
        mixture's last; else ``None``. Their signs are arbitrary.
      names: Of the domains.
      held_out: Index of the held-out domain, or ``None``.
    """

    values: np.ndarray
    mixture: np.ndarray
    errors: np.ndarray
    mixture_errors: np.ndarray
    vectors: Any
    names: tuple[str, ...]
    held_out: int | None


class HessianTrace(NamedTuple):
    """Traces of the Hessians; float64.

    Attributes:
      values: Of the domains, Estimate ``[D]``.
      mixture: Of the mixture of the sources, Estimate ``[]``.
      samples: ``z^T H_d z`` for each draw, ``[samples, D]``; the same z for all domains.
      names: Of the domains.
      held_out: Index of the held-out domain, or ``None``.
    """

    values: Estimate
    mixture: Estimate
    samples: np.ndarray
    names: tuple[str, ...]
    held_out: int | None


def top_hessian_eigenvalues(
    surface: LossSurface,
    params: Any,
    k: int = 1,
    *,
    key: jax.Array,
    num_matvecs: int | None = None,
    vectors: bool = False,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> HessianEigenvalues:
    """The k largest eigenvalues of the Hessian of each domain's loss and of the mixture's, by Lanczos' method.

    No Hessian is formed: each of the ``num_matvecs`` products with a vector is one derivative of a gradient over the
    data. The values approach the eigenvalues from below; ``errors`` says how far they may be off. Largest means
    largest, not largest in magnitude. An eigenvalue that is repeated exactly may be found once.

    Args:
      surface: From `loss_surface`.
      params: A pytree of floating point arrays, P numbers in all; half precision is measured as float32.
      k: Number of eigenvalues.
      key: Of the vector from which Lanczos starts, the same for all domains.
      num_matvecs: Hessian products per domain, k to P; that many vectors like the parameters are held at once, for they
        are kept orthogonal. ``None`` takes ``2 k + 20``, or P if that is less.
      vectors: Whether to return the eigenvectors, for `loss_landscape` along them.
      out: File (npz) in which the parts are kept; a call with the same arguments goes on from it. A part is a domain.
      progress: Called as ``progress(what, done, total)``.

    Returns:
      `HessianEigenvalues`.

    Raises:
      ModuleNotFoundError: Without matfree.
      ValueError: When a loss or a Hessian is not finite, or an argument does not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from disam_jax import sharpness
      >>> loss_fn = lambda w, scale: scale * jnp.sum(jnp.array([3.0, 2.0, 1.0]) * w**2) / 2
      >>> surface = sharpness.loss_surface(loss_fn, jnp.array([1.0, 10.0]), [0, 1])
      >>> out = sharpness.top_hessian_eigenvalues(surface, jnp.ones(3), k=2, key=jax.random.key(0))
      >>> out.values.round(3).tolist()
      [[3.0, 2.0], [30.0, 20.0]]

    References:
      Lanczos, An iteration method for the solution of the eigenvalue problem, 1950; the decomposition is matfree's,
      with full reorthogonalisation.
    """
    _matfree()
    point = centre(surface, params)
    size = sum(x.size for x in jax.tree.leaves(point.params))
    m = min(2 * k + 20, size) if num_matvecs is None else num_matvecs
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= m <= size:
        raise ValueError(
            f"k={k!r} and num_matvecs={m!r}: write 1 <= k <= num_matvecs <= {size}, the number of parameters."
        )

    def measure(unit: int):
        run = partial(_lanczos, surface.source, k, m)
        values, errors, found = run(surface.blocks, point.params, key, jnp.int32(unit))
        return {"values": values, "errors": errors} | ({"vectors": found} if vectors else {})

    parts = in_parts(
        measure,
        len(surface.names) + 1,
        what="Hessian eigenvalues",
        surface=surface,
        losses=point.losses,
        inputs=(point.params, key, k, m, vectors),
        out=out,
        progress=progress,
    )
    values, errors = parts["values"].astype(np.float64), parts["errors"].astype(np.float64)
    check_finite(surface, values.sum(1), "Hessian", "at the parameters: has the loss a second derivative there?")
    unravel = _flat(point.params)[1]
    return HessianEigenvalues(
        values[:-1],
        values[-1],
        errors[:-1],
        errors[-1],
        jax.vmap(jax.vmap(unravel))(jnp.asarray(parts["vectors"])) if vectors else None,
        surface.names,
        surface.held_out,
    )


def hessian_trace(
    surface: LossSurface,
    params: Any,
    *,
    key: jax.Array,
    samples: int = 32,
    confidence: float = 0.95,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> HessianTrace:
    """The trace of the Hessian of each domain's loss and of the mixture's, by Hutchinson's estimator.

    ``tr H = E z^T H z`` for vectors z of independent signs. No Hessian is formed; a draw is one Hessian product for
    each domain. Exact for a diagonal Hessian; in general the variance of a draw is ``2 sum over i != j of H_ij^2``.

    Args:
      surface: From `loss_surface`.
      params: A pytree of floating point arrays; half precision is measured as float32.
      key: Of the signs.
      samples: Draws.
      confidence: Of the intervals, which are Student's t over the draws: exact for normal samples, else good for many.
      out: File (npz) in which the parts are kept; a call with the same arguments goes on from it. A part is a draw.
      progress: Called as ``progress(what, done, total)``.

    Returns:
      `HessianTrace`.

    Raises:
      ModuleNotFoundError: Without matfree.
      ValueError: When a loss or a Hessian is not finite, or an argument does not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from disam_jax import sharpness
      >>> loss_fn = lambda w, scale: scale * jnp.sum(jnp.array([3.0, 2.0, 1.0]) * w**2) / 2
      >>> surface = sharpness.loss_surface(loss_fn, jnp.array([1.0, 10.0]), [0, 1])
      >>> sharpness.hessian_trace(surface, jnp.ones(3), key=jax.random.key(0), samples=2).values.mean.tolist()
      [6.0, 60.0]

    References:
      Hutchinson, A stochastic estimator of the trace of the influence matrix, 1989.
    """
    _matfree()
    check_sampling(samples, confidence)
    point = centre(surface, params)

    def measure(draw: int):
        drawn = jax.random.fold_in(key, draw)
        return {"forms": _quadratic_forms(surface.source, surface.blocks, point.params, drawn)}

    parts = in_parts(
        measure,
        samples,
        what="Hessian trace",
        surface=surface,
        losses=point.losses,
        inputs=(point.params, key),
        out=out,
        progress=progress,
    )
    forms = parts["forms"][:samples].astype(np.float64)
    check_finite(surface, forms.sum(0), "Hessian", "at the parameters: has the loss a second derivative there?")
    return HessianTrace(
        student(forms, confidence),
        student(forms @ surface.shares, confidence),
        forms,
        surface.names,
        surface.held_out,
    )


def _matfree() -> tuple[ModuleType, ModuleType]:
    try:
        from matfree import decomp, stochtrace
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the Hessians of disam_jax.sharpness need matfree: pip install "disam-jax[sharpness]"', name=error.name
        ) from error
    return decomp, stochtrace


def _flat(params: Any) -> tuple[jax.Array, Any]:
    """The parameters as one vector in the dtype of sums, and the way back to their own dtypes."""
    dtype = accumulation_dtype(params)
    flat, unravel = ravel_pytree(jax.tree.map(lambda x: x.astype(dtype), params))
    return flat, lambda v: jax.tree.map(lambda w, x: x.astype(w.dtype), params, unravel(v))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _lanczos(
    source: Source,
    k: int,
    num_matvecs: int,
    blocks: Blocks,
    params: Any,
    key: jax.Array,
    unit: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k largest Ritz values, their residual norms, and their vectors ``[k, P]``."""
    decomp, _ = _matfree()
    flat, unravel = _flat(params)
    config: Any = jax.config
    ambient = config.jax_default_matmul_precision
    first, second = jax.random.split(key)
    start = unit_length(normal_like(first, flat))
    noise = jax.random.normal(second, flat.shape, flat.dtype)

    def product(v):
        return ravel_pytree(jax.tree.map(lambda x: x.astype(flat.dtype), hessian_product(*at, unravel(v))))[0]

    at = (source, blocks, params, unit)
    # A space that is exhausted early leaves a residual of exactly 0, which has no direction. A diagonal of the size of
    # the rounding errors gives it one.
    scale = jnp.linalg.norm(product(start)) * jnp.finfo(flat.dtype).eps
    floor = jnp.maximum(scale, 1e-15) * noise

    def matvec(v):
        with jax.default_matmul_precision(ambient):
            return product(v) + floor * v

    # The vectors must stay orthogonal, which products in the reduced precision of an accelerator do not keep.
    with jax.default_matmul_precision("highest"):
        found = decomp.hessenberg(num_matvecs, reortho="full", custom_vjp=False)(matvec, start)
        # Of the two off-diagonals, equal but for rounding, the lengths of the residuals: the inner products take up
        # what orthogonality is lost where the space is exhausted.
        diagonal, lengths = jnp.diagonal(found.J_small), jnp.diagonal(found.J_small, -1)
        values, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(lengths, 1) + jnp.diag(lengths, -1))
        values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
        errors = jnp.linalg.norm(found.residual) * jnp.abs(vectors[-1])
        return values, errors, vectors.T @ found.Q_tall


@partial(jax.jit, static_argnums=0)
def _quadratic_forms(source: Source, blocks: Blocks, params: Any, key: jax.Array) -> jax.Array:
    """``z^T H_d z`` of every domain, ``[D]``."""
    _, stochtrace = _matfree()
    flat, unravel = _flat(params)
    signs = stochtrace.sampler_signs(flat, num=1)(key)[0]
    form = stochtrace.monte_carlo_trace()

    def one(unit):
        product = lambda v: _flat(hessian_product(source, blocks, params, unit, unravel(v)))[0]
        return form(product, signs)

    return jax.lax.map(one, jnp.arange(len(blocks.counts), dtype=jnp.int32))
