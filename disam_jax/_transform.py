"""DISAM as an Optax gradient transformation: the first of its chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from disam_jax._domains import CheckedLosses, Losses
from disam_jax._dtypes import accumulation_dtype, as_count, as_params, known
from disam_jax._gradient import (
    Ascent,
    StepConfig,
    as_begin,
    as_descent_lam,
    as_lam,
    as_rho,
    make_step_config,
    perturbed_gradient,
    plain_step,
    two_passes,
    unit_of,
    with_begin,
    with_nan_unless,
)
from disam_jax._passes import Passes, Unit, passes_from_gradients, passes_from_loss_fn
from disam_jax._perturbation import perturb
from disam_jax._sharding import whole
from disam_jax._types import (
    AxisName,
    Count,
    DomainGradients,
    LossFn,
    Mask,
    Params,
    Penalty,
    Scalar,
    ScalarOrSchedule,
    Updates,
)
from disam_jax.variants import Variant


class DisamState(NamedTuple):
    """State of ``disam``; read it with ``optax.tree.get(state, "loss_variance")``.

    The numbers are those of the last step that computed a perturbation, except ``perturbed_domain_losses``, which every
    step writes. Before ``begin`` they are those of the plain step: ``ascent_norm`` is 0, and
    ``perturbed_domain_losses`` are the losses at w. Floating point fields have the widest dtype of the parameters,
    float32 at least.

    Attributes:
      count: Number of updates so far, int32 scalar.
      loss: ``sum_i a_i L_i`` at w, scalar.
      loss_variance: Variance of the domain losses at w, scalar.
      ascent_norm: L2 norm of the ascent gradient, scalar.
      domain_losses: ``L_i`` at w, ``[M]``; ``None`` without ``num_domains``.
      domain_weights: ``b_i``, ``[M]``; ``None`` without ``num_domains``.
      perturbed_domain_losses: ``L_i`` at w + e, ``[M]``; ``None`` without ``num_domains``; 0 where they are not known,
        which is the case with stacked gradients.
      perturbation: The perturbation e that is held, like the parameters; ``None`` with ``refresh_every=1``.
    """

    count: jax.Array
    loss: jax.Array
    loss_variance: jax.Array
    ascent_norm: jax.Array
    domain_losses: jax.Array | None
    domain_weights: jax.Array | None
    perturbed_domain_losses: jax.Array | None
    perturbation: Params | None


def disam(
    rho: ScalarOrSchedule = 0.05,
    lam: ScalarOrSchedule = 0.1,
    *,
    variant: Variant | None = None,
    adaptive: bool = False,
    penalty: Penalty = "variance",
    descent_lam: ScalarOrSchedule = 0.0,
    domain_gradients: DomainGradients = "joint",
    mask: Mask = None,
    refresh_every: Count = 1,
    begin: Count | None = None,
    num_domains: int | None = None,
    axis_name: AxisName = None,
    eps: Scalar = 1e-12,
) -> optax.GradientTransformationExtraArgs:
    """Domain-inspired sharpness-aware minimisation.

    Replaces the gradient by ``grad sum_i a_i L_i`` at ``w + e``, with ``e = rho g / ||g||`` and
    ``g = grad (sum_i a_i L_i - lam * penalty(L))`` at w. Put it FIRST in an ``optax.chain``: the incoming gradient is
    not used, so what stands before it has no effect; clipping, weight decay, masks and accumulation go after it.

    The defaults are the paper's. We recommend ``penalty="std", lam=0.4``, and a search for rho that starts at 0.05: the
    page "Choosing rho and lam" of the documentation has the evidence.

    Args:
      rho: Length of the perturbation in the L2 norm of the parameters, not negative. A number, a scalar array, or an
        Optax schedule of the number of updates so far. A rho that is traced, or that a schedule returns, and turns out
        negative, infinite or NaN makes the update NaN; no step waits for a device to check it.
      lam: Strength of the penalty on the spread of the domain losses: a number, a scalar array or a schedule. 0 is SAM.
      variant: ``None`` (SAM), ``disam_jax.variants.gsam(alpha)`` or ``disam_jax.variants.sagm(alpha)``.
      adaptive: ASAM: ``e = rho * w^2 g / || |w| g ||``. Usual values of rho are about ten times larger.
      penalty: ``"variance"``, ``"weighted_variance"`` or ``"std"``; see ``disam_jax.domain_weights``.
      descent_lam: As in ``value_and_grad``, or a schedule: the update is ``grad (sum_i a_i L_i - descent_lam *
        penalty(L))`` at ``w + e``. It needs ``domain_loss_fn``; the number 0 is the mean loss.
      domain_gradients: ``"joint"``, or with stacked gradients ``"normalised"``: ``g = sum_i b_i g_i / ||g_i||``. See
        ``accumulated_value_and_grad``, which has ``"own"`` as well.
      mask: Which parameters are perturbed: a tree of booleans like the parameters or a prefix of it, or a function from
        parameters to one. The norm is over those only; the update is of all.
      refresh_every: Compute the perturbation every k-th update and reuse it in between, at ``(k + 1) / k`` the cost of
        a plain step instead of 2. The state then holds one more copy of the parameters. An integer; an array always
        holds it, and a traced one below 1 makes every update NaN.
      begin: The first k updates are the plain gradient, at the cost of a plain step, and the others are DISAM's; see
        ``subset_value_and_grad``. An integer or an integer array, traced or not; a traced one that turns out negative
        makes the update NaN. Under ``jax.vmap``, ``begin`` and the state's ``count`` must be the same for all, or both
        branches run. Stacked gradients are summed before ``begin``, without a call of ``grad_fn``. Perturbations that
        are held are counted from ``begin`` on: the first is computed there.
      num_domains: M, static: keep the ``[M]`` arrays in the state.
      axis_name: The mapped axis over which the batch is split, in ``pmap``-style code. Under ``jit``, leave it
        ``None``.
      eps: Added to the norm in the denominator.

    Returns:
      A transformation whose ``update(grads, state, params, **extra)`` takes one of

      - ``domain_loss_fn``: ``domain_loss_fn(params)`` returns the domain losses: ``[M]``, a scalar, or
        ``DomainLosses(values [M], weights [M])``. ``grads`` may be ``None``. ``ascent_loss_fn``, if given, replaces
        ``domain_loss_fn`` in the first pass, for example on a subset of the examples (``disam_jax.ascent_subset``). It
        determines the perturbation and every quantity that the state reports at w.
      - ``domain_losses`` and ``grad_fn``: ``grads`` are then the stacked gradients of the domains, leaves
        ``[M, *param.shape]``; ``domain_losses`` is ``[M]`` or ``DomainLosses``; ``grad_fn(params)`` is the gradient of
        the mean loss.

      Other extra arguments are ignored. The updates have the dtypes of the parameters.

    Raises:
      TypeError: When an argument of the two forms is missing, descent_lam is given with stacked gradients or
        ``"normalised"`` without, the losses or the parameters are not floating point, a parameter is not an
        array or number, or rho, lam, descent_lam, refresh_every or begin is of another type.
      ValueError: When rho or begin is negative, rho, lam, descent_lam or eps is not a finite scalar, refresh_every is
        below 1, the losses are not ``[M]``, the penalty is unknown, or domain_gradients is not one of those above.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import disam_jax
      >>> def loss(w, batch):
      ...   return jnp.mean((batch["x"] @ w - batch["y"]) ** 2)
      >>> tx = optax.chain(disam_jax.disam(rho=0.05, lam=0.1), optax.adamw(1e-3))
      >>> @jax.jit
      ... def step(w, state, batch):
      ...   domain_loss_fn = lambda w: disam_jax.per_domain(loss)(w, batch)
      ...   updates, state = tx.update(None, state, w, domain_loss_fn=domain_loss_fn)
      ...   return optax.apply_updates(w, updates), state
      >>> w = jnp.array([1.0, 1.0])
      >>> batch = {"x": jnp.ones((3, 8, 2)), "y": jnp.zeros((3, 8))}   # 3 domains, 8 examples of each
      >>> w, state = step(w, tx.init(w), batch)
      >>> float(optax.tree.get(state, "loss"))
      4.0

    References:
      Zhang et al., Domain-Inspired Sharpness-Aware Minimization Under Domain Shifts, ICLR 2024, section 3.
    """
    config = make_step_config(
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
    _check_domain_gradients(config)
    always = _always_refreshes(refresh_every)
    begin = as_begin(begin)
    _check_num_domains(num_domains)

    def init(params: Params) -> Any:
        params = as_params(params)
        dtype = accumulation_dtype(params)

        # An array for every field: one that two fields share could not be donated.
        def each():
            return None if num_domains is None else jnp.zeros(num_domains, dtype)

        return DisamState(
            count=jnp.zeros((), jnp.int32),
            loss=jnp.zeros((), dtype),
            loss_variance=jnp.zeros((), dtype),
            ascent_norm=jnp.zeros((), dtype),
            domain_losses=each(),
            domain_weights=each(),
            perturbed_domain_losses=each(),
            perturbation=None if always else jax.tree.map(lambda w: jnp.zeros_like(w, dtype=w.dtype), params),
        )

    def update(
        updates: Updates,
        state: Any,
        params: Params = None,
        *,
        domain_loss_fn: LossFn | None = None,
        ascent_loss_fn: LossFn | None = None,
        domain_losses: Losses | None = None,
        grad_fn: Callable[[Params], Updates] | None = None,
        **extra_args: Any,
    ) -> tuple[Updates, Any]:
        del extra_args
        if params is None:
            raise ValueError(f"disam: params is missing. Write {_CALL}.")
        _check_not_masked(params)
        params = as_params(params)
        passes = _passes(updates, domain_loss_fn, ascent_loss_fn, domain_losses, grad_fn, unit_of(config), axis_name)
        now = _at_step(config, state.count)
        if domain_loss_fn is None:
            now = _of_mean_gradient(now, config.descent_lam)
        if isinstance(refresh_every, jax.core.Tracer):  # its value was not known when it was checked
            now = with_nan_unless(now, refresh_every >= 1)
        first = None
        if begin is not None:
            now, first = with_begin(now, begin), jnp.asarray(begin, state.count.dtype)

        def refresh(_):
            ascent, losses, grads = two_passes(passes, params, now)
            held = None if always else ascent.perturbation
            new = _with_ascent(state, ascent, num_domains)._replace(perturbation=held)
            return grads, _with_perturbed(new, losses)

        def reuse(_):
            perturbed = perturb(params, state.perturbation, mask)
            losses, grads = perturbed_gradient(passes, params, perturbed, now)
            return grads, _with_perturbed(state, losses)

        def begun(_):
            if always:
                return refresh(None)
            every = jnp.maximum(jnp.asarray(refresh_every, state.count.dtype), 1)
            since = state.count if first is None else state.count - first
            return jax.lax.cond(since % every == 0, refresh, reuse, None)

        def plain(_):
            ascent, losses, grads = plain_step(passes, params, now)
            new = _with_ascent(state, ascent, num_domains)
            # With stacked gradients the state has no losses at w + e, at any step.
            return grads, new if domain_loss_fn is None else _with_perturbed(new, losses)

        if first is None:
            grads, state = begun(None)
        else:
            grads, state = jax.lax.cond(state.count < first, plain, begun, None)
        return grads, state._replace(count=jnp.asarray(optax.safe_increment(state.count)))

    return optax.GradientTransformationExtraArgs(init, update)


def sam(
    rho: ScalarOrSchedule = 0.05,
    *,
    variant: Variant | None = None,
    adaptive: bool = False,
    penalty: Penalty = "variance",
    descent_lam: ScalarOrSchedule = 0.0,
    domain_gradients: DomainGradients = "joint",
    mask: Mask = None,
    refresh_every: Count = 1,
    begin: Count | None = None,
    num_domains: int | None = None,
    axis_name: AxisName = None,
    eps: Scalar = 1e-12,
) -> optax.GradientTransformationExtraArgs:
    """Sharpness-aware minimisation: ``disam`` with ``lam=0``.

    ``grad sum_i a_i L_i`` at ``w + rho g / ||g||`` with ``g = grad sum_i a_i L_i`` at w.

    Args:
      rho: As in ``disam``, like all others.
      variant: See ``disam``.
      adaptive: See ``disam``.
      penalty: See ``disam``; without ``descent_lam`` it has no effect on the update and says which variance the state
        reports.
      descent_lam: See ``disam``.
      domain_gradients: See ``disam``.
      mask: See ``disam``.
      refresh_every: See ``disam``.
      begin: See ``disam``.
      num_domains: See ``disam``.
      axis_name: See ``disam``.
      eps: See ``disam``.

    Returns:
      A transformation, used like that of ``disam``; ``domain_loss_fn`` may return the scalar mean loss.

    Raises:
      TypeError: As in ``disam``.
      ValueError: As in ``disam``.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import disam_jax
      >>> tx = optax.chain(disam_jax.sam(rho=0.05), optax.sgd(0.1))
      >>> w = jnp.ones(2)
      >>> updates, state = tx.update(None, tx.init(w), w, domain_loss_fn=lambda w: jnp.sum(w**2))

    References:
      Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021.
    """
    return disam(
        rho,
        0.0,
        variant=variant,
        adaptive=adaptive,
        penalty=penalty,
        descent_lam=descent_lam,
        domain_gradients=domain_gradients,
        mask=mask,
        refresh_every=refresh_every,
        begin=begin,
        num_domains=num_domains,
        axis_name=axis_name,
        eps=eps,
    )


_CALL = (
    "updates, state = tx.update(grads, state, params, domain_loss_fn=lambda p: disam_jax.per_domain(loss_fn)(p, batch))"
)
_STACKED_CALL = (
    "updates, state = tx.update(stacked_grads, state, params, domain_losses=losses, "
    "grad_fn=jax.grad(lambda p: jnp.mean(disam_jax.per_domain(loss_fn)(p, batch))))"
)


def _passes(
    updates: Updates | None,
    domain_loss_fn: LossFn | None,
    ascent_loss_fn: LossFn | None,
    domain_losses: Losses | None,
    grad_fn: Callable[[Params], Updates] | None,
    unit: Unit | None,
    axis_name: AxisName,
) -> Passes:
    if domain_loss_fn is not None and domain_losses is not None:
        raise TypeError("disam: give domain_loss_fn or domain_losses, not both; each says how the losses are had.")
    if domain_loss_fn is not None:
        if not callable(domain_loss_fn):
            raise TypeError(
                f"disam: domain_loss_fn must be a function of params, got {type(domain_loss_fn).__name__}. Write "
                f"{_CALL}."
            )
        if unit is not None:
            raise TypeError(
                "disam: domain_gradients='normalised' needs the gradient of each domain, and domain_loss_fn has one "
                f"backward pass for all. Write {_STACKED_CALL}."
            )
        return passes_from_loss_fn(domain_loss_fn, ascent_loss_fn, axis_name=axis_name)
    if ascent_loss_fn is not None:
        raise TypeError(
            "disam: ascent_loss_fn goes with domain_loss_fn. For the second form compute domain_losses and the stacked "
            "gradients on the subset, and grad_fn on the whole batch."
        )
    if domain_losses is None:
        raise TypeError(
            f"disam: domain_loss_fn is missing: the second pass needs the loss at other parameters. Write {_CALL}."
        )
    if grad_fn is None or updates is None:
        missing = "grad_fn" if grad_fn is None else "the stacked gradients"
        raise TypeError(f"disam: with domain_losses, {missing} must be given too. Write {_STACKED_CALL}.")
    return passes_from_gradients(updates, domain_losses, grad_fn, unit=unit, axis_name=axis_name)


def _check_domain_gradients(config: StepConfig) -> None:
    if config.domain_gradients == "own":
        raise ValueError(
            "disam: domain_gradients='own' needs the loss of one domain's batch, which no transformation is given. "
            "Write value, grads = disam_jax.accumulated_value_and_grad(loss_fn, rho, lam, domain_gradients='own')("
            "params, batch), and hand grads to the optimizer."
        )


def _check_not_masked(params: Params) -> None:
    def hidden(x):
        return isinstance(x, optax.MaskedNode)

    if any(hidden(x) for x in jax.tree.leaves(params, is_leaf=hidden)):
        raise TypeError(
            "disam: a mask (optax.masked, optax.partition) around disam hides parameters that the loss function needs. "
            "Put disam first and the mask after it: optax.chain(disam_jax.disam(rho, lam), optax.partition(...)). To "
            "perturb some of the parameters write disam_jax.disam(rho, lam, mask=...)."
        )


def _at_step(config: StepConfig, count: jax.Array) -> StepConfig:
    """The choices with rho, lam and descent_lam at their values of this step, without waiting for any of them."""
    if callable(config.rho):
        config = config._replace(rho=as_rho(config.rho(count), wait=False))
    if callable(config.lam):
        config = config._replace(lam=as_lam(config.lam(count), wait=False))
    if callable(config.descent_lam):
        config = config._replace(descent_lam=as_descent_lam(config.descent_lam(count), wait=False))
    return config


def _of_mean_gradient(config: StepConfig, given: ScalarOrSchedule) -> StepConfig:
    """The choices where ``grad_fn`` is the second pass, which descends on the mean loss and on nothing else.

    ``given`` is descent_lam as it was before this step: a schedule is refused, whatever its value now.
    """
    found = known(config.descent_lam, wait=True)
    if callable(given) or (found is not None and found != 0):
        raise TypeError(
            f"disam: descent_lam weighs the domains at w + e, but grad_fn returns the gradient of their mean loss, got "
            f"descent_lam={given!r}. Write {_CALL}."
        )
    if found is None:  # optax.inject_hyperparams makes an array of the default 0.0, whose value no trace can know
        config = with_nan_unless(config, config.descent_lam == 0)
    return config._replace(descent_lam=0.0)


def _with_ascent(state: DisamState, ascent: Ascent, num_domains: int | None) -> DisamState:
    seen = ascent.losses.values.shape[0]
    if num_domains is not None and seen != num_domains:
        raise ValueError(
            f"disam: num_domains={num_domains}, but the loss function returned {seen} domain losses. Write "
            f"disam(..., num_domains={seen})."
        )
    new = state._replace(
        loss=ascent.weights.mean.astype(state.loss.dtype),
        loss_variance=ascent.weights.variance.astype(state.loss.dtype),
        ascent_norm=ascent.norm.astype(state.loss.dtype),
    )
    if num_domains is None:
        return new
    return new._replace(
        domain_losses=whole(ascent.losses.values.astype(state.loss.dtype)),
        domain_weights=whole(ascent.weights.values.astype(state.loss.dtype)),
    )


def _with_perturbed(state: DisamState, losses: CheckedLosses | None) -> DisamState:
    if state.perturbed_domain_losses is None or losses is None:
        return state
    return state._replace(perturbed_domain_losses=whole(losses.values.astype(state.loss.dtype)))


def _always_refreshes(refresh_every: Any) -> bool:
    """Whether every update computes its perturbation, which only a Python number tells before a trace."""
    every = as_count("refresh_every", refresh_every, "refresh_every=1 for every step", least=1)
    # optax.inject_hyperparams turns the default 1 into an array, whose value no trace can know.
    return isinstance(every, (int, np.integer)) and every == 1


def _check_num_domains(num_domains: object) -> None:
    integer = isinstance(num_domains, (int, np.integer)) and not isinstance(num_domains, bool)
    if num_domains is None or (integer and num_domains >= 1):
        return
    raise TypeError(
        f"num_domains must be None or a static integer of at least 1, got {num_domains!r}. With "
        'optax.inject_hyperparams write static_args=("num_domains", "refresh_every").'
    )
