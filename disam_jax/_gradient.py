"""DISAM as a gradient function: the step that all forms share, and the functions that take it.

ascent_step          at w:      domain losses -> weights b -> ascent gradient g -> perturbation e
perturbed_gradient   at w + e:  the gradient of the mean loss (or of the penalised one), combined by the variant
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax._domains import CheckedLosses
from disam_jax._dtypes import accumulation_dtype, as_count, as_params, as_scalar, like, nan_unless, widen
from disam_jax._m_sharpness import own_passes_by_scan
from disam_jax._passes import Passes, Unit, Weigh, check_ascent_loss_fn, passes_by_scan, passes_from_loss_fn
from disam_jax._perturbation import norm_of_perturbed, perturbation, unit_gradient
from disam_jax._types import (
    ArgNums,
    Aux,
    AxisName,
    Count,
    DomainGradients,
    Examples,
    GradFn,
    LossFn,
    Mask,
    Params,
    Penalty,
    Scalar,
    ScalarOrSchedule,
    Updates,
)
from disam_jax._weights import AscentWeights, ascent_weights, check_penalty
from disam_jax.variants import Variant, as_variant

DOMAIN_GRADIENTS: tuple[str, ...] = get_args(DomainGradients)


class DisamInfo(NamedTuple):
    """Losses, weights and norms of one step; every number is a by-product of its two passes.

    Attributes:
      loss: ``sum_i a_i L_i`` at w, scalar.
      domain_losses: ``L_i`` at w, ``[M]``; 0 for an absent domain.
      domain_weights: ``b_i``, ``[M]``; 0 for an absent domain.
      loss_variance: Variance of the domain losses at w over the present domains (share-weighted with
        ``penalty="weighted_variance"``), scalar.
      ascent_norm: L2 norm of the ascent gradient over the parameters that are perturbed, scalar.
      perturbed_domain_losses: ``L_i`` at w + e, ``[M]``; 0 for an absent domain.
      domain_sharpness: ``L_i(w + e) - L_i(w)``, ``[M]``.

    Before ``begin`` a step is one pass of the whole batch at w: ``ascent_norm`` and ``domain_sharpness`` are 0,
    ``perturbed_domain_losses`` are those at w, and the domain weights have no effect.

    With an ``ascent_loss_fn``, the quantities at w are those of its examples and the quantities at w + e those of the
    whole batch: ``domain_sharpness`` then includes the difference between the two.
    """

    loss: jax.Array
    domain_losses: jax.Array
    domain_weights: jax.Array
    loss_variance: jax.Array
    ascent_norm: jax.Array
    perturbed_domain_losses: jax.Array
    domain_sharpness: jax.Array


class StepOptions(TypedDict, total=False):
    """The keyword arguments that define a step in every form; ``value_and_grad`` says what they mean."""

    variant: Variant | None
    adaptive: bool
    penalty: Penalty
    descent_lam: Scalar
    domain_gradients: DomainGradients
    mask: Mask
    axis_name: AxisName
    eps: Scalar


class StepConfig(NamedTuple):
    """The choices that define a step, checked."""

    rho: Any  # a scalar, or a schedule until the step is known
    lam: Any
    variant: Variant
    adaptive: bool
    penalty: Penalty
    descent_lam: Any
    domain_gradients: DomainGradients
    mask: Mask
    axis_name: AxisName
    eps: Scalar


class Ascent(NamedTuple):
    """Results of the step from w to w + e.

    Attributes:
      losses: The domain losses at w.
      aux: What the loss function returned beside them.
      weights: The domain weights.
      norm: L2 norm of the ascent gradient over the parameters that are perturbed, scalar.
      perturbation: e, like the parameters; ``None`` where every domain has its own.
      perturbed: ``w + e``; ``None`` where every domain has its own.
      base: The gradient at w that the variant combines with the perturbed gradient.
    """

    losses: CheckedLosses
    aux: Aux
    weights: AscentWeights
    norm: jax.Array
    perturbation: Params
    perturbed: Params
    base: Updates


def ascent_step(passes: Passes, params: Params, config: StepConfig) -> Ascent:
    """``g = sum_i b_i grad L_i(w)``, ``e = rho g / ||g||``."""
    at_w = passes.ascent(params, _ascent_weigh(config))
    base = at_w.mean_gradient() if config.variant.reference == "clean" else at_w.gradient
    e, perturbed, norm = perturbation(
        params,
        at_w.gradient,
        config.rho,
        config.variant.scale,
        adaptive=config.adaptive,
        mask=config.mask,
        eps=config.eps,
    )
    return Ascent(at_w.losses, at_w.aux, at_w.weights, norm, e, perturbed, base)


def perturbed_gradient(
    passes: Passes, params: Params, perturbed: Params, config: StepConfig, base: Updates | None = None
) -> tuple[CheckedLosses | None, Updates]:
    """``sum_i a_i grad L_i(w + e)``, combined with the base gradient, in the dtypes of the parameters.

    With ``descent_lam``, the domain weights of the losses at w + e take the place of the shares. If the base gradient
    is ``None``, the perturbed gradient is used in its place. The variant computes in float32, or in float64 where a
    parameter is float64; its result is rounded once.
    """
    second = passes.descent(perturbed, _descent_weigh(config))
    base = second.gradient if base is None else base
    return second.losses, _combined(base, second.gradient, params, config.variant)


def _combined(base: Updates, gradient: Updates, params: Params, variant: Variant) -> Updates:
    (wide_base, wide), _ = widen((base, gradient), of=params)
    combined = variant.combine(wide_base, wide)
    _check_like_params(f"variant: combine ({_name(variant.combine)})", combined, params)
    # A leaf that the variant returned unchanged needs no rounding: it is the gradient itself.
    leaves = zip(*map(jax.tree.leaves, (combined, wide, gradient)), strict=True)
    chosen = [g if c is wide_g else jnp.asarray(c) for c, wide_g, g in leaves]
    return like(jax.tree.unflatten(jax.tree.structure(params), chosen), params)


def two_passes(passes: Passes, params: Params, config: StepConfig) -> tuple[Ascent, CheckedLosses | None, Updates]:
    """A whole step: the ascent, the domain losses at w + e where they are known, and the gradient."""
    ascent = ascent_step(passes, params, config)
    losses, grads = perturbed_gradient(passes, params, ascent.perturbed, config, ascent.base)
    if losses is not None:
        _check_same_domains(ascent.losses, losses)
    return ascent, losses, grads


def plain_step(passes: Passes, params: Params, config: StepConfig) -> tuple[Ascent, CheckedLosses, Updates]:
    """``sum_i a_i grad L_i(w)``: one pass in the place of ``two_passes``. e is 0, and the weights b have no effect."""
    at_w = passes.plain(params)
    assert at_w.losses is not None  # a plain pass has them
    weights = _ascent_weigh(config)(at_w.losses)
    norm = jnp.zeros((), accumulation_dtype(params))
    ascent = Ascent(at_w.losses, at_w.aux, weights, norm, None, params, None)
    return ascent, at_w.losses, like(at_w.gradient, params)


def own_perturbations(
    params: Params,
    loss_fn: LossFn,
    batch: Examples,
    ascent_loss_fn: LossFn | None,
    config: StepConfig,
    *,
    has_aux: bool,
    unroll: int | bool,
) -> tuple[Ascent, CheckedLosses, Updates]:
    """A whole step in which each domain has its own perturbation, ``e_i = rho (b_i / a_i) g_i / ||g_i||``."""
    of_perturbed = {"adaptive": config.adaptive, "mask": config.mask, "eps": config.eps}

    def perturb(params, gradient, radius):
        scale = config.variant.scale
        return perturbation(params, gradient, config.rho, scale, **of_perturbed, radius=radius).perturbed

    found = own_passes_by_scan(
        params,
        loss_fn,
        batch,
        perturb,
        _ascent_weigh(config),
        _descent_weigh(config),
        ascent_loss_fn,
        equal_radii=_is_zero(config.lam),
        has_aux=has_aux,
        unroll=unroll,
        axis_name=config.axis_name,
    )
    base = found.mean_gradient if config.variant.reference == "clean" else found.gradient
    norm = norm_of_perturbed(params, found.gradient, config.mask)
    ascent = Ascent(found.losses, found.aux, found.weights, norm, None, None, base)
    return ascent, found.perturbed_losses, _combined(base, found.perturbed_gradient, params, config.variant)


def unit_of(config: StepConfig) -> Unit | None:
    """What makes the gradient of a domain one of length 1, where the ascent sums such gradients."""
    if config.domain_gradients != "normalised":
        return None
    return functools.partial(unit_gradient, adaptive=config.adaptive, mask=config.mask, eps=config.eps)


def _ascent_weigh(config: StepConfig) -> Weigh:
    return functools.partial(ascent_weights, lam=config.lam, penalty=config.penalty)


def _is_zero(number: Scalar) -> bool:
    """Whether a number is known to be 0 before a trace."""
    return not isinstance(number, jax.Array) and bool(number == 0)


def _descent_weigh(config: StepConfig) -> Weigh | None:
    """How to weigh the losses at w + e; ``None`` for their mean."""
    if _is_zero(config.descent_lam):
        return None

    def weigh(losses):
        lam = jnp.asarray(config.descent_lam, losses.values.dtype)
        # An infinite lam could give an infinite gradient, where every other wrong number gives NaN.
        return ascent_weights(losses, lam * nan_unless(jnp.isfinite(lam)), config.penalty)

    return weigh


def _check_like_params(what: str, tree: Updates, params: Params) -> None:
    if jax.tree.structure(tree) != jax.tree.structure(params):
        raise ValueError(
            f"{what} must return a gradient with the structure of params, got {jax.tree.structure(tree)} for params "
            f"{jax.tree.structure(params)}. Write combine=lambda base, perturbed: jax.tree.map(f, base, perturbed)."
        )
    for (path, g), w in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(params), strict=True):
        if jnp.shape(g) != w.shape:
            raise ValueError(
                f"{what} must return a gradient with the shapes of params, got {jnp.shape(g)} for "
                f"params{jax.tree_util.keystr(path)} {w.shape}."
            )


def _name(fn: object) -> str:
    return getattr(fn, "__qualname__", repr(fn))


def _check_same_domains(ascent: CheckedLosses, perturbed: CheckedLosses) -> None:
    seen = [losses.values.shape[0] for losses in (ascent, perturbed)]
    if seen[0] != seen[1]:
        raise ValueError(
            f"ascent_loss_fn returned {seen[0]} domain losses and domain_loss_fn {seen[1]}. Both must return [M]: take "
            "a subset of each domain's examples, disam_jax.ascent_subset(batch, fraction)."
        )


def value_and_grad(
    domain_loss_fn: LossFn,
    rho: Scalar = 0.05,
    lam: Scalar = 0.1,
    *,
    argnums: int | Sequence[int] = 0,
    ascent_loss_fn: LossFn | None = None,
    has_aux: bool = False,
    with_info: bool = False,
    variant: Variant | None = None,
    adaptive: bool = False,
    penalty: Penalty = "variance",
    descent_lam: Scalar = 0.0,
    domain_gradients: DomainGradients = "joint",
    mask: Mask = None,
    axis_name: AxisName = None,
    eps: Scalar = 1e-12,
) -> GradFn:
    """Replaces ``jax.value_and_grad`` by DISAM, for any loop and any optimizer.

    ``grad sum_i a_i L_i`` at ``w + e``, with ``e = rho g / ||g||`` and ``g = grad (sum_i a_i L_i - lam * penalty(L))``
    at w. Two forward and two backward passes, whatever the number of domains.

    The defaults are the paper's. We recommend ``penalty="std", lam=0.4``, and a search for rho that starts at 0.05: the
    page "Choosing rho and lam" of the documentation has the evidence.

    With ``descent_lam``, the result is ``grad (sum_i a_i L_i - descent_lam * penalty(L))`` at ``w + e``, which is
    ``sum_i b_i grad L_i`` with the domain weights ``b`` of the losses at ``w + e``: the same two passes.

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
      ascent_loss_fn: If given, replaces ``domain_loss_fn`` in the pass at w: on a subset of the examples
        (``disam_jax.ascent_subset``) or otherwise cheaper. It determines the domain weights, the perturbation and every
        quantity that is reported at w (loss, aux, the gradient at w that a variant uses).
      has_aux: Whether ``domain_loss_fn`` (and ``ascent_loss_fn``) returns ``(domain losses, aux)``.
      with_info: Whether to return a ``DisamInfo`` as well.
      variant: ``None`` (SAM), ``disam_jax.variants.gsam(alpha)`` or ``disam_jax.variants.sagm(alpha)``.
      adaptive: ASAM: ``e = rho * w^2 g / || |w| g ||``. Usual values of rho are about ten times larger.
      penalty: ``"variance"``, ``"weighted_variance"`` or ``"std"``; see ``disam_jax.domain_weights``.
      descent_lam: Strength of the penalty in the descent, in the unit of lam: a number or a scalar array. A positive
        value weakens the domains whose loss at ``w + e`` is above the mean; a negative value strengthens them. The
        number 0 is the mean loss.
      domain_gradients: ``"joint"``: one backward pass for all domains. Others need the gradient of each domain, and
        ``accumulated_value_and_grad`` has them.
      mask: Which parameters are perturbed: a tree of booleans like the parameters or a prefix of it, or a function from
        parameters to one. The norm is over those only; the gradient is of all.
      axis_name: The mapped axis over which the batch is split, in ``pmap``-style code: losses and both gradients are
        then those of the whole batch. Under ``jit``, leave it ``None``.
      eps: Added to the norm in the denominator.

    Returns:
      ``fn(params, *args, **kwargs) -> (loss, grads)``; ``((loss, aux), grads)`` with ``has_aux``; ``((loss, info),
      grads)`` with ``with_info``; ``((loss, (aux, info)), grads)`` with both. ``loss`` and ``aux`` are
      evaluated at w; ``grads`` have the dtypes of the parameters.

    Raises:
      TypeError: When the losses or the parameters are not floating point, a parameter is not an array or number, or
        rho, lam or descent_lam is a schedule or not a real number.
      ValueError: When rho is negative, rho, lam, descent_lam or eps is not a finite scalar, the losses are not ``[M]``,
        the penalty is unknown, domain_gradients is not "joint", or argnums names an argument twice or one that is not
        given.

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
    config = joint_config(
        rho,
        lam,
        variant=variant,
        adaptive=adaptive,
        penalty=penalty,
        descent_lam=descent_lam,
        domain_gradients=domain_gradients,
        mask=mask,
        axis_name=axis_name,
        eps=eps,
    )
    check_ascent_loss_fn(ascent_loss_fn)
    argnums = as_argnums(argnums)

    def fn(*args, **kwargs):
        params, with_params = split_params(args, argnums)

        def of_params(loss_fn):
            return lambda p: loss_fn(*with_params(p), **kwargs)

        passes = passes_from_loss_fn(
            of_params(domain_loss_fn),
            None if ascent_loss_fn is None else of_params(ascent_loss_fn),
            has_aux=has_aux,
            axis_name=axis_name,
        )
        return _value_and_grads(passes, params, config, has_aux, with_info)

    return fn


def accumulated_value_and_grad(
    loss_fn: LossFn,
    rho: Scalar = 0.05,
    lam: Scalar = 0.1,
    *,
    argnums: int | Sequence[int] = 0,
    ascent_loss_fn: LossFn | None = None,
    has_aux: bool = False,
    with_info: bool = False,
    unroll: int | bool = 1,
    begin: Count | None = None,
    **options: Unpack[StepOptions],
) -> GradFn:
    """``value_and_grad``, one domain at a time: the same numbers with the activation memory of one domain.

    The domain weights are affine in the losses, so ``sum_i b_i g_i`` follows from ``sum_i g_i`` and ``sum_i L_i g_i``,
    both carried through one ``lax.scan``: the gradient is exact and there is no second forward pass. Every domain has
    the same share.

    Args:
      loss_fn: ``loss_fn(params, one_domains_batch, *args, **kwargs) -> scalar``, or ``(scalar, aux)`` with ``has_aux``.
      rho: As in ``value_and_grad``.
      lam: As in ``value_and_grad``.
      argnums: Which positional arguments are the parameters; the first of the others is the batch.
      ascent_loss_fn: As in ``value_and_grad``, on one domain's batch: take its subset with ``axis=0``.
      has_aux: Whether ``loss_fn`` returns ``(loss, aux)``; the leaves of aux come back stacked, ``[M, ...]``.
      with_info: As in ``value_and_grad``.
      unroll: As in ``jax.lax.scan``: how many domains there are in one turn of its loop. ``True`` takes all of them
        without a loop, which takes longer to compile and may hold the activations of all domains.
      begin: As in ``subset_value_and_grad``: the steps before it accumulate the plain gradient.
      **options: The keyword arguments ``variant``, ``adaptive``, ``penalty``, ``descent_lam``, ``mask``, ``axis_name``
        and ``eps`` of ``value_and_grad``. With ``axis_name``, every device holds an equal number of the examples of
        each domain. ``domain_gradients`` is one of

        - ``"joint"``: as in ``value_and_grad``;
        - ``"normalised"``: every domain's gradient counts with length 1 in the ascent, whatever its own is:
          ``g = sum_i b_i g_i / ||g_i||``, with the norm that the perturbation has; 0 where ``g_i`` is 0. The length of
          the ascent gradient then has no unit, which concerns the alpha of ``variants.sagm`` and ``ascent_norm``;
        - ``"own"``: every domain has its own perturbation, and the result is ``sum_i a_i grad L_i(w + e_i)`` with
          ``e_i = rho (b_i / a_i) g_i / ||g_i||``. ``lam`` then says how the radii differ. With the number 0 they are
          equal: m-sharpness with the domains as groups, for 2 plain steps. Any other lam needs the losses of all
          domains before the first perturbation, which is one more forward pass; none with ``unroll=True``, where XLA
          finds that it is the one at w. ``perturbed_domain_losses`` are ``L_i(w + e_i)``.

    Returns:
      ``fn(params, batch, *args, step=None, **kwargs)`` for a batch with leaves ``[M, n, ...]``, with ``step`` as in
      ``subset_value_and_grad``; results as in ``value_and_grad``.

    Raises:
      TypeError: As in ``value_and_grad``, or when an option is unknown, begin or step is not an integer, or ``step`` is
        missing.
      ValueError: As in ``value_and_grad``, or when begin or step is negative, a loss is not a scalar, the leaves of the
        batch differ in their number of domains, or an explicit sharding splits the domains over devices: the scan takes
        them one by one.

    Example:
      >>> import jax.numpy as jnp
      >>> import disam_jax
      >>> fn = disam_jax.accumulated_value_and_grad(lambda w, x: jnp.mean((x @ w) ** 2), rho=0.05, lam=0.1)
      >>> value, grads = fn(jnp.ones(2), jnp.ones((3, 8, 2)))   # 3 domains, 8 examples of each
      >>> grads.shape
      (2,)

    References:
      Zhang et al., Domain-Inspired Sharpness-Aware Minimization Under Domain Shifts, ICLR 2024, section 3. For a
      perturbation of each group of examples, m-sharpness: Foret et al., Sharpness-Aware Minimization for Efficiently
      Improving Generalization, ICLR 2021, section 4.1; Andriushchenko and Flammarion, Towards Understanding
      Sharpness-Aware Minimization, ICML 2022.
    """
    check_options("accumulated_value_and_grad", options)
    if not isinstance(unroll, int) or (unroll is not True and unroll < 1):
        raise ValueError(f"unroll must be True or an integer of at least 1, got {unroll!r}. Write unroll=1 for a loop.")
    config = make_step_config(rho, lam, **options)
    _check_no_schedule(config)
    check_ascent_loss_fn(ascent_loss_fn)
    begin = as_begin(begin)
    argnums = as_argnums(argnums)

    def fn(*args, step=None, **kwargs):
        params, with_params = split_params(args, argnums)
        checked = with_begin(config, begin)
        batch_number = batch_position("accumulated_value_and_grad", args, argnums)

        def of_params_and_batch(one_domain_loss_fn):
            def loss(p, one_domain):
                full = list(with_params(p))
                full[batch_number] = one_domain
                return one_domain_loss_fn(*full, **kwargs)

            return loss

        of_domain = of_params_and_batch(loss_fn)
        ascent_of_domain = None if ascent_loss_fn is None else of_params_and_batch(ascent_loss_fn)
        batch = args[batch_number]
        of_scan = {"has_aux": has_aux, "unroll": unroll, "axis_name": config.axis_name}

        def begun():
            if config.domain_gradients == "own":
                found = own_perturbations(
                    params, of_domain, batch, ascent_of_domain, checked, has_aux=has_aux, unroll=unroll
                )
                return _outputs(*found, has_aux, with_info)
            passes = passes_by_scan(of_domain, batch, ascent_of_domain, unit=unit_of(config), **of_scan)
            return _value_and_grads(passes, params, checked, has_aux, with_info)

        def plain():
            passes = passes_by_scan(of_domain, batch, None, **of_scan)
            return _outputs(*plain_step(passes, params, checked), has_aux, with_info)

        if begin is None:
            return begun()
        return jax.lax.cond(before_begin("accumulated_value_and_grad", begin, step), plain, begun)

    return fn


def make_step_config(
    rho: ScalarOrSchedule,
    lam: ScalarOrSchedule,
    *,
    variant: Variant | None = None,
    adaptive: bool = False,
    penalty: Penalty = "variance",
    descent_lam: ScalarOrSchedule = 0.0,
    domain_gradients: DomainGradients = "joint",
    mask: Mask = None,
    axis_name: AxisName = None,
    eps: Scalar = 1e-12,
) -> StepConfig:
    """Checks what can be checked before any array is seen; a scalar on a device is waited for, once."""
    if not callable(rho):
        rho = as_rho(rho, wait=True)
    if not callable(lam):
        lam = as_lam(lam, wait=True)
    if not callable(descent_lam):
        descent_lam = as_descent_lam(descent_lam, wait=True)
    eps = as_scalar("eps", eps, "eps=1e-12")
    check_penalty(penalty)
    if domain_gradients not in DOMAIN_GRADIENTS:
        raise ValueError(
            f"domain_gradients must be one of {', '.join(map(repr, DOMAIN_GRADIENTS))}, got {domain_gradients!r}."
        )
    return StepConfig(
        rho,
        lam,
        as_variant(variant),
        bool(adaptive),
        penalty,
        descent_lam,
        domain_gradients,
        mask,
        axis_name,
        eps,
    )


def joint_config(rho: Scalar, lam: Scalar, **options: Unpack[StepOptions]) -> StepConfig:
    """The choices of a gradient function with one backward pass for all domains, which counts no steps."""
    config = make_step_config(rho, lam, **options)
    _check_no_schedule(config)
    _check_joint(config)
    return config


def with_nan_unless(config: StepConfig, condition: jax.Array) -> StepConfig:
    """The choices, with NaN for rho where a value that was not known when it was checked turns out wrong."""
    return config._replace(rho=jnp.asarray(config.rho, jnp.result_type(float)) * nan_unless(condition))


def as_begin(begin: Count | None) -> Count | None:
    """The number of the first step that perturbs; ``None`` where every step does."""
    return None if begin is None else as_count("begin", begin, "begin=500 for 500 steps with the plain gradient")


def with_begin(config: StepConfig, begin: Count | None) -> StepConfig:
    """The choices, with NaN for rho where a traced begin turns out negative."""
    return with_nan_unless(config, begin >= 0) if isinstance(begin, jax.core.Tracer) else config


def before_begin(function: str, begin: Count, step: Count | None) -> jax.Array:
    """Whether a step is one of those that take the plain gradient."""
    if step is None:
        raise TypeError(
            f"{function}: begin={begin} needs the number of the step, got step=None. Write fn(params, batch, step=t), "
            "where t counts the updates from 0."
        )
    step = as_count("step", step, "step=t, where t counts the updates from 0", wait=False)
    return jnp.asarray(step, jnp.int32) < jnp.asarray(begin, jnp.int32)


def as_rho(rho: object, *, wait: bool) -> Scalar:
    return as_scalar("rho", rho, "rho=0.05; rho=0.0 is the plain gradient", wait=wait)


def as_lam(lam: object, *, wait: bool) -> Scalar:
    return as_scalar("lam", lam, "lam=0.1; lam=0.0 is SAM", negative=True, wait=wait)


def as_descent_lam(descent_lam: object, *, wait: bool) -> Scalar:
    write = "descent_lam=0.5; descent_lam=0.0 descends on the mean loss"
    return as_scalar("descent_lam", descent_lam, write, negative=True, wait=wait)


def check_options(function: str, options: Mapping[str, object]) -> None:
    """Refuses a keyword argument that is not one of ``StepOptions``, as Python itself would."""
    known = StepOptions.__annotations__
    for name in options:
        if name not in known:
            raise TypeError(
                f"{function} got an unexpected keyword argument {name!r}. Besides those in its signature, it takes "
                f"{', '.join(known)}."
            )


def _value_and_grads(passes: Passes, params: Params, config: StepConfig, has_aux: bool, with_info: bool) -> Any:
    ascent, perturbed, grads = two_passes(passes, params, config)
    assert perturbed is not None  # passes from a loss function have the losses of both
    return _outputs(ascent, perturbed, grads, has_aux, with_info)


def _outputs(ascent: Ascent, perturbed: CheckedLosses, grads: Updates, has_aux: bool, with_info: bool) -> Any:
    info = info_of(ascent, perturbed)
    extras = [ascent.aux] * has_aux + [info] * with_info
    return with_extras(info.loss, extras), grads


def info_of(ascent: Ascent, perturbed: CheckedLosses) -> DisamInfo:
    return DisamInfo(
        loss=ascent.weights.mean,
        domain_losses=ascent.losses.values,
        domain_weights=ascent.weights.values,
        loss_variance=ascent.weights.variance,
        ascent_norm=ascent.norm,
        perturbed_domain_losses=perturbed.values,
        domain_sharpness=perturbed.values - ascent.losses.values,
    )


def with_extras(loss: jax.Array, extras: Sequence[Any]) -> Any:
    """The loss alone, with one extra output, or with a tuple of them."""
    if not extras:
        return loss
    return loss, extras[0] if len(extras) == 1 else tuple(extras)


def as_argnums(argnums: Any) -> ArgNums:
    """An integer, or a tuple of different ones."""
    several = isinstance(argnums, (tuple, list))
    numbers = tuple(argnums) if several else (argnums,)
    if not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in numbers):
        raise TypeError(f"argnums must be an integer or a sequence of integers, got {argnums!r}. Write argnums=0.")
    numbers = tuple(int(n) for n in numbers)
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"argnums={argnums} names an argument twice. Write each of them once, argnums=(0, 1).")
    return numbers if several else numbers[0]


def split_params(args: tuple[Any, ...], argnums: ArgNums) -> tuple[Params, Callable[[Params], tuple[Any, ...]]]:
    """The parameters among the arguments, and a function that returns the arguments with others in their place."""
    positions = _positions(args, argnums)

    def with_params(params):
        full = list(args)
        for position, value in zip(positions, (params,) if isinstance(argnums, int) else params, strict=True):
            full[position] = value
        return tuple(full)

    params = args[positions[0]] if isinstance(argnums, int) else tuple(args[position] for position in positions)
    return as_params(params), with_params


def batch_position(function: str, args: tuple[Any, ...], argnums: ArgNums) -> int:
    """The position of the batch: the first of the arguments that are not parameters."""
    positions = _positions(args, argnums)
    for number in range(len(args)):
        if number not in positions:
            return number
    raise TypeError(f"{function}: batch is missing. Write fn(params, batch) with leaves [M, n, ...].")


def _positions(args: tuple[Any, ...], argnums: ArgNums) -> tuple[int, ...]:
    numbers = (argnums,) if isinstance(argnums, int) else argnums
    if not numbers or not all(-len(args) <= number < len(args) for number in numbers):
        raise ValueError(
            f"argnums={argnums} must name positional arguments, and {len(args)} were given. Pass params by position."
        )
    positions = tuple(number % len(args) for number in numbers)
    if len(set(positions)) != len(positions):
        raise ValueError(f"argnums={argnums} names one of {len(args)} arguments twice. Write each of them once.")
    return positions


def _check_joint(config: StepConfig) -> None:
    if config.domain_gradients != "joint":
        raise ValueError(
            f"domain_gradients={config.domain_gradients!r} needs the gradient of each domain, and here one backward "
            "pass is for all of them. Write disam_jax.accumulated_value_and_grad(loss_fn, rho, lam, domain_gradients="
            f"{config.domain_gradients!r}) with loss_fn(params, one_domains_batch)."
        )


def _check_no_schedule(config: StepConfig) -> None:
    for name in ("rho", "lam", "descent_lam"):
        if callable(getattr(config, name)):
            raise TypeError(
                f"{name} is a function, but a gradient function has no step count. Write {name}=schedule(step) inside "
                f"the step, or use disam_jax.disam({name}=schedule) in an optax.chain, which counts steps."
            )
