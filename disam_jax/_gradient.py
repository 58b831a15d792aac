"""The two passes of DISAM, and DISAM as a gradient function.

ascend    at w:      domain losses -> weights b -> ascent gradient g -> perturbation e
descend   at w + e:  the gradient of the mean loss, combined by the variant, for the optimizer that starts from w
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax._domains import DomainLosses, mean_loss
from disam_jax._dtypes import (
    accumulation_dtype,
    as_params,
    cast,
    check_scalar,
    check_scalar_type,
    like,
    not_negative,
    scalar,
)
from disam_jax._passes import Form, accumulated_form, closure_form
from disam_jax._perturbation import perturb, perturbation
from disam_jax._weights import ascent_tilt, check_penalty, weights_at
from disam_jax.variants import Variant, check_variant


class DisamInfo(NamedTuple):
    """What a step saw; every number is a by-product of its two passes.

    Attributes:
      loss: ``sum_i a_i L_i`` at w, scalar.
      domain_losses: ``L_i`` at w, ``[M]``; 0 for an absent domain.
      domain_weights: ``b_i``, ``[M]``; 0 for an absent domain.
      loss_variance: Variance of the domain losses at w over the present domains (share-weighted with
        ``penalty="weighted_variance"``), scalar.
      ascent_norm: L2 norm of the ascent gradient over the parameters that are perturbed, scalar.
      perturbed_domain_losses: ``L_i`` at w + e, ``[M]``; 0 for an absent domain.
      domain_sharpness: ``L_i(w + e) - L_i(w)``, ``[M]``.

    With an ``ascent_loss_fn``, what is at w is of its examples and what is at w + e of the whole batch: the difference
    between the two is then in ``domain_sharpness`` too.
    """

    loss: jax.Array
    domain_losses: jax.Array
    domain_weights: jax.Array
    loss_variance: jax.Array
    ascent_norm: jax.Array
    perturbed_domain_losses: jax.Array
    domain_sharpness: jax.Array


class Method(NamedTuple):
    """The choices that define a step, with rho and lam at their values of this step."""

    rho: Any
    lam: Any
    variant: Variant
    adaptive: bool
    penalty: str
    mask: Any
    axis_name: Any
    eps: Any


class Ascent(NamedTuple):
    """What the pass at w found."""

    losses: DomainLosses
    aux: Any
    domain_weights: jax.Array
    loss_variance: jax.Array
    norm: jax.Array
    perturbation: Any
    reference: Any


def ascend(form: Form, params: Any, method: Method) -> Ascent:
    """``g = sum_i b_i grad L_i(w)``, ``e = rho g / ||g||``."""
    clean = form.clean(params)
    tilt = ascent_tilt(clean.losses, method.lam, method.penalty)
    gradient = clean.ascent_gradient(tilt)
    reference = clean.mean_gradient() if method.variant.reference == "clean" else gradient
    e, norm = perturbation(
        params,
        gradient,
        lambda norm: _scale(method, norm),
        adaptive=method.adaptive,
        mask=method.mask,
        eps=method.eps,
    )
    weights = weights_at(clean.losses, tilt)
    return Ascent(clean.losses, clean.aux, weights, tilt.variance, norm, e, reference)


def descend(form: Form, params: Any, e: Any, method: Method, reference: Any = None) -> tuple[DomainLosses | None, Any]:
    """``grad sum_i a_i L_i(w + e)``, combined with the reference gradient, in the dtypes of the parameters.

    If the reference is None, the perturbed gradient is used in its place.
    """
    second = form.perturbed(perturb(params, e, method.mask))
    reference = second.gradient if reference is None else reference
    return second.losses, _combine(method.variant, params, reference, second.gradient)


def _scale(method: Method, norm: jax.Array) -> jax.Array:
    found = method.variant.scale(not_negative(method.rho, norm.dtype), norm)
    check_scalar_type(
        f"variant: what scale ({_name(method.variant.scale)}) returns",
        found,
        "scale=lambda rho, norm: rho / norm",
    )
    return scalar(found, norm.dtype)


def _combine(variant: Variant, params: Any, reference: Any, perturbed: Any) -> Any:
    """What the variant hands over: computed in float32 at least, rounded once, to the dtypes of the parameters."""
    dtype = accumulation_dtype(params)
    wide_reference, wide = (jax.tree.map(lambda g: cast(g, dtype), tree) for tree in (reference, perturbed))
    combined = variant.combine(wide_reference, wide)
    _check_like_params(f"variant: combine ({_name(variant.combine)})", combined, params)
    # A leaf that was handed through needs no way back from float32: it is the gradient itself.
    leaves = zip(*map(jax.tree.leaves, (combined, wide, perturbed, params)), strict=True)
    rounded = [like(jnp.asarray(g if c is g32 else c), w) for c, g32, g, w in leaves]
    return jax.tree.unflatten(jax.tree.structure(params), rounded)


def _check_like_params(what: str, tree: Any, params: Any) -> None:
    if jax.tree.structure(tree) != jax.tree.structure(params):
        raise ValueError(
            f"{what} must return a gradient with the structure of params, got {jax.tree.structure(tree)} for params "
            f"{jax.tree.structure(params)}. Write combine=lambda reference, perturbed: jax.tree.map(f, reference, "
            "perturbed)."
        )
    for (path, g), w in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(params), strict=True):
        if jnp.shape(g) != w.shape:
            raise ValueError(
                f"{what} must return a gradient with the shapes of params, got {jnp.shape(g)} for "
                f"params{jax.tree_util.keystr(path)} {w.shape}."
            )


def _name(fn: Any) -> str:
    return getattr(fn, "__qualname__", repr(fn))


def check_same_domains(ascent: DomainLosses, perturbed: DomainLosses) -> None:
    seen = [losses.values.shape[0] for losses in (ascent, perturbed)]
    if seen[0] != seen[1]:
        raise ValueError(
            f"ascent_loss_fn returned {seen[0]} domain losses and domain_loss_fn {seen[1]}. Both must return [M]: take "
            "a part of each domain's examples, disam_jax.ascent_part(batch, fraction)."
        )


def step_info(ascent: Ascent, perturbed: DomainLosses) -> DisamInfo:
    check_same_domains(ascent.losses, perturbed)
    return DisamInfo(
        loss=mean_loss(ascent.losses),
        domain_losses=ascent.losses.values,
        domain_weights=ascent.domain_weights,
        loss_variance=ascent.loss_variance,
        ascent_norm=ascent.norm,
        perturbed_domain_losses=perturbed.values,
        domain_sharpness=perturbed.values - ascent.losses.values,
    )


def value_and_grad(
    domain_loss_fn: Callable[..., Any],
    rho: Any = 0.05,
    lam: Any = 0.1,
    *,
    argnums: int | Sequence[int] = 0,
    ascent_loss_fn: Callable[..., Any] | None = None,
    has_aux: bool = False,
    with_info: bool = False,
    variant: Variant | None = None,
    adaptive: bool = False,
    penalty: str = "variance",
    mask: Any = None,
    axis_name: Any = None,
    eps: Any = 1e-12,
) -> Callable[..., Any]:
    """DISAM in the place of ``jax.value_and_grad``, for any loop and any optimizer.

    ``grad sum_i a_i L_i`` at ``w + e``, with ``e = rho g / ||g||`` and ``g = grad (sum_i a_i L_i - lam * penalty(L))``
    at w. Two forward and two backward passes, whatever the number of domains.

    Args:
      domain_loss_fn: ``domain_loss_fn(params, *args, **kwargs)`` returns the domain losses: ``[M]``, a scalar, or
        ``DomainLosses(values [M], weights [M])``; ``disam_jax.per_domain`` and ``disam_jax.mean_by_domain`` make them.
        It is called twice with the same arguments: the same dropout key, the same batch.
      rho: Length of the perturbation in the L2 norm of the parameters, not negative. A number or a scalar array; for an
        Optax schedule write ``rho=schedule(step)`` inside the step. A traced rho that turns out negative, infinite or
        NaN makes the gradient NaN.
      lam: Strength of the penalty on the spread of the domain losses: a number or a scalar array. 0 is SAM.
      argnums: Which positional arguments are the parameters, as in ``jax.value_and_grad``: pytrees of floating-point
        arrays, jax or numpy, or Python floats. Several are perturbed together.
      ascent_loss_fn: Like ``domain_loss_fn``, for the pass at w: of a part of the examples (``disam_jax.ascent_part``)
        or otherwise cheaper. It decides the domain weights, the perturbation and all that is reported of the clean pass
        (loss, aux, what a variant takes of the gradient at w). ``None`` is ``domain_loss_fn``.
      has_aux: Whether ``domain_loss_fn`` (and ``ascent_loss_fn``) returns ``(domain losses, aux)``.
      with_info: Whether to return a ``DisamInfo`` as well.
      variant: ``None`` (SAM), ``disam_jax.variants.gsam(alpha)`` or ``disam_jax.variants.sagm(alpha)``.
      adaptive: ASAM: ``e = rho * w^2 g / || |w| g ||``. Usual values of rho are about ten times larger.
      penalty: ``"variance"``, ``"weighted_variance"`` or ``"std"``; see ``disam_jax.domain_weights``.
      mask: Which parameters are perturbed: a tree of booleans like the parameters or a prefix of it, or a function from
        parameters to one. The norm is over those only; the gradient is of all.
      axis_name: The mapped axis over which the batch is split, in ``pmap``-style code: losses and both gradients are
        then those of the whole batch. Under ``jit``, leave it ``None``.
      eps: Added to the norm in the denominator.

    Returns:
      ``fn(params, *args, **kwargs) -> (loss, grads)``; ``((loss, aux), grads)`` with ``has_aux``; ``((loss, info),
      grads)`` with ``with_info``; ``((loss, (aux, info)), grads)`` with both. ``loss`` and ``aux`` are those of the
      clean pass; ``grads`` have the dtypes of the parameters.

    Raises:
      TypeError: When the losses or the parameters are not floating point, a parameter is no array or number, or rho or
        lam is a schedule or not a real number.
      ValueError: When rho is negative, rho, lam or eps is not a finite scalar, the losses are not ``[M]``, the penalty
        is unknown, or argnums names an argument twice or one that is not given.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import disam_jax
      >>> def loss(w, batch):
      ...   return jnp.mean((batch["x"] @ w - batch["y"]) ** 2)
      >>> step = jax.jit(disam_jax.value_and_grad(disam_jax.per_domain(loss), rho=0.05, lam=0.1))
      >>> batch = {"x": jnp.ones((3, 8, 2)), "y": jnp.zeros((3, 8))}   # 3 domains, 8 examples of each
      >>> value, grads = step(jnp.array([1.0, 1.0]), batch)
      >>> grads.shape
      (2,)

    References:
      Zhang et al., Domain-Inspired Sharpness-Aware Minimization Under Domain Shifts, ICLR 2024, section 3.
    """
    method = check_method(rho, lam, variant, adaptive, penalty, mask, axis_name, eps)
    _check_no_schedule(rho=rho, lam=lam)
    check_ascent_loss_fn(ascent_loss_fn)
    argnums = check_argnums(argnums)

    def fn(*args, **kwargs):
        params, at, _ = select(args, argnums)

        def form_of(loss_fn, argument):
            return closure_form(
                lambda p: loss_fn(*at(p), **kwargs), has_aux=has_aux, axis_name=axis_name, argument=argument
            )

        form = form_of(domain_loss_fn, "domain_loss_fn")
        if ascent_loss_fn is not None:
            form = form._replace(clean=form_of(ascent_loss_fn, "ascent_loss_fn").clean)
        return _two_passes(form, params, method, has_aux, with_info)

    return fn


def accumulated_value_and_grad(
    loss_fn: Callable[..., Any],
    rho: Any = 0.05,
    lam: Any = 0.1,
    *,
    argnums: int | Sequence[int] = 0,
    ascent_loss_fn: Callable[..., Any] | None = None,
    has_aux: bool = False,
    with_info: bool = False,
    variant: Variant | None = None,
    adaptive: bool = False,
    penalty: str = "variance",
    mask: Any = None,
    axis_name: Any = None,
    eps: Any = 1e-12,
) -> Callable[..., Any]:
    """``value_and_grad``, one domain at a time: the same numbers with the activation memory of one domain.

    The domain weights are affine in the losses, so ``sum_i b_i g_i`` follows from ``sum_i g_i`` and ``sum_i L_i g_i``,
    both carried through one ``lax.scan``: the gradient is exact and there is no second forward pass. Every domain has
    the same share.

    Args:
      loss_fn: ``loss_fn(params, one_domains_batch, *args, **kwargs) -> scalar``, or ``(scalar, aux)`` with ``has_aux``.
      rho: As in ``value_and_grad``.
      lam: As in ``value_and_grad``.
      argnums: Which positional arguments are the parameters; the first of the others is the batch.
      ascent_loss_fn: As in ``value_and_grad``, of one domain's batch: take its part with ``axis=0``.
      has_aux: Whether ``loss_fn`` returns ``(loss, aux)``; the leaves of aux come back stacked, ``[M, ...]``.
      with_info: As in ``value_and_grad``.
      variant: As in ``value_and_grad``.
      adaptive: As in ``value_and_grad``.
      penalty: As in ``value_and_grad``.
      mask: As in ``value_and_grad``.
      axis_name: As in ``value_and_grad``; every device holds an equal part of each domain.
      eps: As in ``value_and_grad``.

    Returns:
      ``fn(params, batch, *args, **kwargs)`` for a batch with leaves ``[M, n, ...]``; results as in ``value_and_grad``.

    Raises:
      TypeError: As in ``value_and_grad``.
      ValueError: As in ``value_and_grad``, or when a loss is not a scalar, the leaves of the batch differ in their
        number of domains, or an explicit sharding splits the domains over devices: the scan takes them one by one.

    Example:
      >>> import jax.numpy as jnp
      >>> import disam_jax
      >>> fn = disam_jax.accumulated_value_and_grad(lambda w, x: jnp.mean((x @ w) ** 2), rho=0.05, lam=0.1)
      >>> value, grads = fn(jnp.ones(2), jnp.ones((3, 8, 2)))   # 3 domains, 8 examples of each
      >>> grads.shape
      (2,)

    References:
      Zhang et al., Domain-Inspired Sharpness-Aware Minimization Under Domain Shifts, ICLR 2024, section 3.
    """
    method = check_method(rho, lam, variant, adaptive, penalty, mask, axis_name, eps)
    _check_no_schedule(rho=rho, lam=lam)
    check_ascent_loss_fn(ascent_loss_fn)
    argnums = check_argnums(argnums)

    def fn(*args, **kwargs):
        params, at, places = select(args, argnums)
        batch_number = batch_argument("accumulated_value_and_grad", args, places)

        def form_of(one_domain_loss_fn):
            def one_domain_loss(p, one_domain):
                full = list(at(p))
                full[batch_number] = one_domain
                return one_domain_loss_fn(*full, **kwargs)

            return accumulated_form(one_domain_loss, args[batch_number], has_aux=has_aux, axis_name=axis_name)

        form = form_of(loss_fn)
        if ascent_loss_fn is not None:
            form = form._replace(clean=form_of(ascent_loss_fn).clean)
        return _two_passes(form, params, method, has_aux, with_info)

    return fn


def check_method(rho, lam, variant, adaptive, penalty, mask, axis_name, eps) -> Method:
    """Checks what can be checked before any array is seen; a scalar on a device is waited for, once."""
    if not callable(rho):
        check_rho(rho, wait=True)
    if not callable(lam):
        check_lam(lam, wait=True)
    check_scalar("eps", eps, "eps=1e-12")
    check_penalty(penalty)
    return Method(rho, lam, check_variant(variant), bool(adaptive), penalty, mask, axis_name, eps)


def check_rho(rho: Any, *, wait: bool) -> None:
    check_scalar("rho", rho, "rho=0.05; rho=0.0 is the plain gradient", wait=wait)


def check_lam(lam: Any, *, wait: bool) -> None:
    check_scalar("lam", lam, "lam=0.1; lam=0.0 is SAM", negative=True, wait=wait)


def check_ascent_loss_fn(ascent_loss_fn: Any) -> None:
    if ascent_loss_fn is not None and not callable(ascent_loss_fn):
        raise TypeError(
            f"ascent_loss_fn must be a function like domain_loss_fn, got {type(ascent_loss_fn).__name__}. Write "
            "ascent_loss_fn=lambda params, batch: domain_losses(params, disam_jax.ascent_part(batch, 0.25))."
        )


def _two_passes(form: Form, params: Any, method: Method, has_aux: bool, with_info: bool) -> Any:
    ascent = ascend(form, params, method)
    perturbed, grads = descend(form, params, ascent.perturbation, method, ascent.reference)
    assert perturbed is not None  # a form that is given a loss function returns the losses of both passes
    info = step_info(ascent, perturbed)
    extras = [ascent.aux] * has_aux + [info] * with_info
    return with_extras(info.loss, extras), grads


def with_extras(loss: jax.Array, extras: Sequence[Any]) -> Any:
    """The loss alone, with one extra output, or with a tuple of them."""
    if not extras:
        return loss
    return loss, extras[0] if len(extras) == 1 else tuple(extras)


def check_argnums(argnums: Any) -> int | tuple[int, ...]:
    """An integer, or a tuple of different ones."""
    several = isinstance(argnums, (tuple, list))
    numbers = tuple(argnums) if several else (argnums,)
    if not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in numbers):
        raise TypeError(f"argnums must be an integer or a sequence of integers, got {argnums!r}. Write argnums=0.")
    numbers = tuple(int(n) for n in numbers)
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"argnums={argnums} names an argument twice. Write each of them once, argnums=(0, 1).")
    return numbers if several else numbers[0]


def select(
    args: tuple[Any, ...], argnums: int | tuple[int, ...]
) -> tuple[Any, Callable[[Any], tuple[Any, ...]], tuple[int, ...]]:
    """The parameters among the arguments, the arguments with other parameters in their place, and those places."""
    numbers = (argnums,) if isinstance(argnums, int) else argnums
    if not numbers or not all(-len(args) <= number < len(args) for number in numbers):
        raise ValueError(
            f"argnums={argnums} must name positional arguments, and {len(args)} were given. Pass params by position."
        )
    places = tuple(number % len(args) for number in numbers)
    if len(set(places)) != len(places):
        raise ValueError(f"argnums={argnums} names one of {len(args)} arguments twice. Write each of them once.")

    def at(params):
        full = list(args)
        for place, value in zip(places, (params,) if isinstance(argnums, int) else params, strict=True):
            full[place] = value
        return tuple(full)

    params = args[places[0]] if isinstance(argnums, int) else tuple(args[place] for place in places)
    return as_params(params), at, places


def batch_argument(name: str, args: tuple[Any, ...], places: tuple[int, ...]) -> int:
    """The place of the batch: the first of the arguments that are not parameters."""
    for number in range(len(args)):
        if number not in places:
            return number
    raise TypeError(f"{name}: batch is missing. Write fn(params, batch) with leaves [M, n, ...].")


def _check_no_schedule(**hyperparameters: Any) -> None:
    for name, value in hyperparameters.items():
        if callable(value):
            raise TypeError(
                f"{name} is a function, but a gradient function has no step count. Write {name}=schedule(step) inside "
                f"the step, or use disam_jax.disam({name}=schedule) in an optax.chain, which counts steps."
            )
