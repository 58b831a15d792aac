"""DISAM on a part of each domain's examples, and the plain gradient on the rest: 1 + fraction plain steps, not 2."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from disam_jax._domains import mean_loss, part_and_rest
from disam_jax._dtypes import accumulation_dtype, cast, like
from disam_jax._gradient import batch_argument, check_argnums, select, value_and_grad, with_extras
from disam_jax._passes import closure_form
from disam_jax.variants import Variant


def part_value_and_grad(
    domain_loss_fn: Callable[..., Any],
    rho: Any = 0.05,
    lam: Any = 0.1,
    *,
    fraction: float = 0.25,
    axis: int = 1,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    with_info: bool = False,
    variant: Variant | None = None,
    adaptive: bool = False,
    penalty: str = "variance",
    mask: Any = None,
    axis_name: Any = None,
    eps: Any = 1e-12,
) -> Callable[..., Any]:
    """DISAM for a part of each domain's examples and the plain gradient for the rest: 1 + fraction plain steps.

    ``f grad L_part(w + e) + (1 - f) grad L_rest(w)`` with f the part's share of the examples and e the perturbation
    that the part alone decides. Both passes of a DISAM step see the part; the rest takes one pass, at w. Only f of the
    gradient feels the perturbation, so ``rho`` wants to be longer than for the whole batch, about twice for a quarter.

    Args:
      domain_loss_fn: As in ``value_and_grad``: ``domain_loss_fn(params, batch, *args, **kwargs)``, and every example
        must count the same in its mean loss. It is called for the part and for the rest, so with BatchNorm each is
        normalised by itself.
      rho: As in ``value_and_grad``.
      lam: As in ``value_and_grad``.
      fraction: Of the examples of each domain that are in the part, in ``(0, 1]``, static; 1 is ``value_and_grad``.
      axis: Of the examples in the batch, as in ``ascent_part``: 1 for leaves ``[M, n, ...]``, 0 for a flat batch that
        is sorted by domain.
      argnums: Which positional arguments are the parameters; the first of the others is the batch.
      has_aux: As in ``value_and_grad``; aux is then the pair of that of the part and that of the rest, both at w.
        ``None`` stands for the rest's where there is no rest.
      with_info: Whether to return the ``DisamInfo`` of the part as well.
      variant: As in ``value_and_grad``, for the part.
      adaptive: As in ``value_and_grad``.
      penalty: As in ``value_and_grad``.
      mask: As in ``value_and_grad``.
      axis_name: As in ``value_and_grad``; every device cuts its own examples.
      eps: As in ``value_and_grad``.

    Returns:
      ``fn(params, batch, *args, **kwargs) -> (loss, grads)``, with aux and info as in ``value_and_grad``. ``loss`` is
      that of the whole batch at w.

    Raises:
      TypeError: As in ``value_and_grad`` and ``ascent_part``.
      ValueError: As in ``value_and_grad`` and ``ascent_part``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import disam_jax
      >>> def loss(w, batch):
      ...   return jnp.mean((batch["x"] @ w - batch["y"]) ** 2)
      >>> domain_losses = disam_jax.per_domain(loss)
      >>> step = jax.jit(disam_jax.part_value_and_grad(domain_losses, rho=0.1, lam=0.1, fraction=0.25))
      >>> batch = {"x": jnp.ones((3, 8, 2)), "y": jnp.zeros((3, 8))}   # 3 domains, 8 examples of each: 2 and 6
      >>> value, grads = step(jnp.array([1.0, 1.0]), batch)
      >>> round(float(value), 3), grads.shape
      (4.0, (2,))

    References:
      Zhang et al., Domain-Inspired Sharpness-Aware Minimization Under Domain Shifts, ICLR 2024, section 3, for the
      part. The cut is ours; a perturbation that few examples decide and feel is m-sharpness in Foret et al.,
      Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021, section 4.
    """
    perturbed = value_and_grad(
        domain_loss_fn,
        rho,
        lam,
        argnums=argnums,
        has_aux=has_aux,
        with_info=True,
        variant=variant,
        adaptive=adaptive,
        penalty=penalty,
        mask=mask,
        axis_name=axis_name,
        eps=eps,
    )

    argnums = check_argnums(argnums)

    def fn(*args, **kwargs):
        params, at, places = select(args, argnums)
        number = batch_argument("part_value_and_grad", args, places)
        part, rest = part_and_rest(args[number], fraction, axis=axis)
        sizes = [jax.tree.leaves(side)[0].shape[axis] for side in (part, rest)]
        share = sizes[0] / sum(sizes)

        def with_batch(full, batch):
            return *full[:number], batch, *full[number + 1 :]

        (loss, extra), grads = perturbed(*with_batch(at(params), part), **kwargs)
        aux, info = extra if has_aux else (None, extra)
        rest_aux = None
        if sizes[1]:
            form = closure_form(
                lambda p: domain_loss_fn(*with_batch(at(p), rest), **kwargs),
                has_aux=has_aux,
                axis_name=axis_name,
                argument="domain_loss_fn",
            )
            plain = form.clean(params)
            rest_aux = plain.aux
            loss = share * loss + (1 - share) * mean_loss(plain.losses)
            grads = jax.tree.map(lambda g, h, w: like(_mix(share, g, h), w), grads, plain.mean_gradient(), params)
        return with_extras(loss, [(aux, rest_aux)] * has_aux + [info] * with_info), grads

    return fn


def _mix(share: float, part: jax.Array, rest: jax.Array) -> jax.Array:
    dtype = accumulation_dtype(part)
    share_ = jnp.asarray(share, dtype)
    return share_ * cast(part, dtype) + (1 - share_) * cast(rest, dtype)
