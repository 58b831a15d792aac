"""DISAM on a subset of each domain's examples and the plain gradient on the rest of the examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp

from disam_jax._dtypes import accumulation_dtype, cast, like
from disam_jax._examples import split_examples
from disam_jax._gradient import (
    StepOptions,
    as_argnums,
    batch_position,
    check_options,
    split_params,
    value_and_grad,
    with_extras,
)
from disam_jax._passes import passes_from_loss_fn
from disam_jax._types import GradFn, LossFn, Scalar
from disam_jax._weights import mean_loss


def subset_value_and_grad(
    domain_loss_fn: LossFn,
    rho: Scalar = 0.05,
    lam: Scalar = 0.1,
    *,
    fraction: float = 0.25,
    axis: int = 1,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    with_info: bool = False,
    **options: Unpack[StepOptions],
) -> GradFn:
    """DISAM on a subset of each domain's examples, the plain gradient on the rest: 1 + fraction plain steps.

    ``f grad L_subset(w + e) + (1 - f) grad L_rest(w)`` with f the subset's share of the examples and e the perturbation
    that is computed from the subset alone. Both passes of a DISAM step take the subset; the rest of the examples takes
    one pass, at w. Only a fraction f of the gradient is taken at the perturbed point, so use a larger rho: about 2x for
    f = 0.25.

    Args:
      domain_loss_fn: As in ``value_and_grad``: ``domain_loss_fn(params, batch, *args, **kwargs)``, and every example
        must count the same in its mean loss. It is called for the subset and for the rest of the examples, so BatchNorm
        normalises each of them by itself.
      rho: As in ``value_and_grad``.
      lam: As in ``value_and_grad``.
      fraction: Fraction of the examples of each domain in the subset, in ``(0, 1]``, static; 1 is ``value_and_grad``.
      axis: Axis of the examples in the batch, as in ``ascent_subset``: 1 for leaves ``[M, n, ...]``, 0 for a flat batch
        that is sorted by domain.
      argnums: Which positional arguments are the parameters; the first of the others is the batch.
      has_aux: As in ``value_and_grad``. aux is then ``(aux_subset, aux_rest)``, both evaluated at w; ``aux_rest`` is
        ``None`` where the subset is the whole batch.
      with_info: Whether to return the ``DisamInfo`` of the subset as well.
      **options: The keyword arguments ``variant``, ``adaptive``, ``penalty``, ``descent_lam``, ``mask``, ``axis_name``
        and ``eps`` of ``value_and_grad``. The variant and ``descent_lam`` act on the subset. With ``axis_name``, every
        device splits its own examples.

    Returns:
      ``fn(params, batch, *args, **kwargs) -> (loss, grads)``, with aux and info as in ``value_and_grad``. ``loss`` is
      the mean loss of the whole batch at w.

    Raises:
      TypeError: As in ``value_and_grad`` and ``ascent_subset``, or when an option is unknown.
      ValueError: As in ``value_and_grad`` and ``ascent_subset``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import disam_jax
      >>> def loss(w, batch):
      ...   return jnp.mean((batch["x"] @ w - batch["y"]) ** 2)
      >>> domain_losses = disam_jax.per_domain(loss)
      >>> step = jax.jit(disam_jax.subset_value_and_grad(domain_losses, rho=0.1, lam=0.1, fraction=0.25))
      >>> batch = {"x": jnp.ones((3, 8, 2)), "y": jnp.zeros((3, 8))}   # 3 domains, 8 examples of each: 2 and 6
      >>> value, grads = step(jnp.array([1.0, 1.0]), batch)
      >>> round(float(value), 3), grads.shape
      (4.0, (2,))

    References:
      Zhang et al., Domain-Inspired Sharpness-Aware Minimization Under Domain Shifts, ICLR 2024, section 3, for the
      subset. The split is ours; a perturbation that is computed from few examples and applied to them is m-sharpness in
      Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021, section 4.
    """
    check_options("subset_value_and_grad", options)
    disam_value_and_grad = value_and_grad(
        domain_loss_fn, rho, lam, argnums=argnums, has_aux=has_aux, with_info=True, **options
    )
    argnums = as_argnums(argnums)

    def fn(*args, **kwargs):
        params, with_params = split_params(args, argnums)
        number = batch_position("subset_value_and_grad", args, argnums)
        subset, rest = split_examples(args[number], fraction, axis=axis)
        sizes = [jax.tree.leaves(side)[0].shape[axis] for side in (subset, rest)]
        share = sizes[0] / sum(sizes)

        def with_batch(full, batch):
            return *full[:number], batch, *full[number + 1 :]

        (loss, extra), grads = disam_value_and_grad(*with_batch(with_params(params), subset), **kwargs)
        aux, info = extra if has_aux else (None, extra)
        aux_rest = None
        if sizes[1]:
            plain = passes_from_loss_fn(
                lambda p: domain_loss_fn(*with_batch(with_params(p), rest), **kwargs),
                has_aux=has_aux,
                axis_name=options.get("axis_name"),
            ).descent(params, None)
            assert plain.losses is not None  # a loss function returns them
            aux_rest = plain.aux
            loss = share * loss + (1 - share) * mean_loss(plain.losses)
            grads = like(jax.tree.map(lambda g, h: _mix(share, g, h), grads, plain.gradient), params)
        return with_extras(loss, [(aux, aux_rest)] * has_aux + [info] * with_info), grads

    return fn


def _mix(share: float, subset: jax.Array, rest: jax.Array) -> jax.Array:
    dtype = accumulation_dtype(subset)
    share_ = jnp.asarray(share, dtype)
    return share_ * cast(subset, dtype) + (1 - share_) * cast(rest, dtype)
