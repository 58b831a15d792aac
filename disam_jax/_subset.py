"""DISAM on a subset of each domain's examples and the plain gradient on the rest of the examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, Unpack

import jax
import jax.numpy as jnp

from disam_jax._dtypes import accumulation_dtype, as_count, cast, like
from disam_jax._examples import check_fraction, split_examples
from disam_jax._gradient import (
    DisamInfo,
    StepConfig,
    StepOptions,
    as_argnums,
    as_begin,
    batch_position,
    before_begin,
    check_options,
    info_of,
    joint_config,
    plain_step,
    split_params,
    two_passes,
    with_begin,
    with_extras,
)
from disam_jax._passes import Passes, passes_from_loss_fn
from disam_jax._types import Aux, Count, Examples, GradFn, LossFn, Params, Scalar, Updates
from disam_jax._weights import mean_loss

# ((loss, (aux of the subset, aux of the rest), info), gradient)
Step: TypeAlias = tuple[tuple[jax.Array, tuple[Aux, Aux], DisamInfo], Updates]


def subset_value_and_grad(
    domain_loss_fn: LossFn,
    rho: Scalar = 0.05,
    lam: Scalar = 0.1,
    *,
    fraction: float = 0.25,
    begin: Count | None = None,
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

    With ``begin=k``, the steps before the k-th are plain: ``grad L(w)`` of the whole batch, from one pass. Both are
    branches of a ``jax.lax.cond``, and the one that is not taken costs nothing: ``training_cost`` is the cost of the
    whole training. Under ``jax.vmap`` that holds as long as ``begin`` and ``step`` are the same for all; where one of
    them is batched, both branches run and one result is selected.

    Args:
      domain_loss_fn: As in ``value_and_grad``: ``domain_loss_fn(params, batch, *args, **kwargs)``, and every example
        must count the same in its mean loss. It is called for the subset and for the rest of the examples, so BatchNorm
        normalises each of them by itself.
      rho: As in ``value_and_grad``.
      lam: As in ``value_and_grad``.
      fraction: Fraction of the examples of each domain in the subset, in ``(0, 1]``, static; 1 is ``value_and_grad``.
      begin: The number of the first step that perturbs: an integer or an integer array, traced or not. A traced one
        that turns out negative makes the gradient NaN. ``None``: every step perturbs.
      axis: Axis of the examples in the batch, as in ``ascent_subset``: 1 for leaves ``[M, n, ...]``, 0 for a flat batch
        that is sorted by domain.
      argnums: Which positional arguments are the parameters; the first of the others is the batch.
      has_aux: As in ``value_and_grad``. aux is then ``(aux_subset, aux_rest)``, both evaluated at w; ``aux_rest`` is
        ``None`` where the subset is the whole batch. Before ``begin`` both are the aux of the whole batch, so with
        ``begin`` its shapes must not depend on the number of examples.
      with_info: Whether to return the ``DisamInfo`` of the subset as well; before ``begin``, of the whole batch.
      **options: The keyword arguments ``variant``, ``adaptive``, ``penalty``, ``descent_lam``, ``mask``, ``axis_name``
        and ``eps`` of ``value_and_grad``. The variant and ``descent_lam`` act on the subset. With ``axis_name``, every
        device splits its own examples.

    Returns:
      ``fn(params, batch, *args, step=None, **kwargs) -> (loss, grads)``, with aux and info as in ``value_and_grad``.
      ``loss`` is the mean loss of the whole batch at w. ``step`` is the number of updates so far, an integer or an
      integer array; it is needed with ``begin``, has no effect otherwise, and is not handed to ``domain_loss_fn``.

    Raises:
      TypeError: As in ``value_and_grad`` and ``ascent_subset``, or when an option is unknown, begin or step is not an
        integer, ``step`` is missing, or the shapes of aux differ with ``begin``.
      ValueError: As in ``value_and_grad`` and ``ascent_subset``, or when begin or step is negative.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import disam_jax
      >>> def loss(w, batch):
      ...   return jnp.mean((batch["x"] @ w - batch["y"]) ** 2)
      >>> domain_losses = disam_jax.per_domain(loss)
      >>> gradient = jax.jit(disam_jax.subset_value_and_grad(domain_losses, rho=0.1, lam=0.1, fraction=0.25, begin=500))
      >>> batch = {"x": jnp.ones((3, 8, 2)), "y": jnp.zeros((3, 8))}   # 3 domains, 8 examples of each: 2 and 6
      >>> value, grads = gradient(jnp.array([1.0, 1.0]), batch, step=0)   # plain until step 500
      >>> round(float(value), 3), grads.shape
      (4.0, (2,))

    References:
      Zhang et al., Domain-Inspired Sharpness-Aware Minimization Under Domain Shifts, ICLR 2024, section 3, for the
      subset. The split is ours; a perturbation that is computed from few examples and applied to them is m-sharpness in
      Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021, section 4. For a
      late beginning: Zhou et al., Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in Training,
      ICLR 2025.
    """
    check_options("subset_value_and_grad", options)
    config = joint_config(rho, lam, **options)
    begin = as_begin(begin)
    argnums = as_argnums(argnums)

    def fn(*args, step=None, **kwargs):
        params, with_params = split_params(args, argnums)
        number = batch_position("subset_value_and_grad", args, argnums)
        subset, rest, share = split_by_share(args[number], fraction, axis)
        checked = with_begin(config, begin)

        def passes(batch):
            def losses(p):
                full = with_params(p)
                return domain_loss_fn(*full[:number], batch, *full[number + 1 :], **kwargs)

            return passes_from_loss_fn(losses, has_aux=has_aux, axis_name=config.axis_name)

        def perturbed():
            return subset_step(passes(subset), None if rest is None else passes(rest), share, params, checked)

        def plain():
            (loss, aux, info), grads = whole_step(passes(args[number]), params, checked)
            return (loss, (aux, None if rest is None else aux), info), grads

        (loss, aux, info), grads = plain_until("subset_value_and_grad", begin, step, plain, perturbed)
        return with_extras(loss, [aux] * has_aux + [info] * with_info), grads

    return fn


def training_cost(steps: int, begin: int | None = None, fraction: float = 0.25) -> float:
    """The cost of a whole training with ``subset_value_and_grad``, in plain steps per step.

    ``1 + fraction (steps - begin) / steps``: every step costs a plain one, and from ``begin`` on the fraction as well.

    Args:
      steps: The number of steps of the training, a static integer.
      begin: As in ``subset_value_and_grad``, static. ``None`` is 0; with ``steps`` or more, every step is plain.
      fraction: As in ``subset_value_and_grad``. 1 is a whole step of DISAM, that of ``disam`` and ``value_and_grad``.
        Where ``fraction * n`` is no whole number, ``ceil(fraction * n) / n`` of the examples are taken: write that.

    Returns:
      The cost: 1 is training without DISAM, 2 is DISAM in every step.

    Raises:
      TypeError: When steps or begin is not a static integer, or the fraction not a static number.
      ValueError: When steps is below 1, begin is negative, or the fraction is not in ``(0, 1]``.

    Example:
      >>> import disam_jax
      >>> disam_jax.training_cost(steps=1000, begin=500, fraction=1 / 8)
      1.0625
    """
    for name, value in (("steps", steps), ("begin", begin)):
        if isinstance(value, jax.core.Tracer):
            raise TypeError(f"training_cost: {name} must be a static integer, got {value}. Compute it outside of jit.")
    steps = int(as_count("steps", steps, "steps=1000", least=1))
    begin = 0 if begin is None else int(as_count("begin", begin, "begin=500"))
    check_fraction(fraction, "training_cost")
    return 1 + float(fraction) * max(steps - begin, 0) / steps


def split_by_share(batch: Examples, fraction: float, axis: int) -> tuple[Examples, Examples | None, float]:
    """The subset, the rest of the examples (``None`` where there are none), and the subset's share of the examples."""
    subset, rest = split_examples(batch, fraction, axis=axis)
    taken, left = (jax.tree.leaves(side)[0].shape[axis] for side in (subset, rest))
    return subset, rest if left else None, taken / (taken + left)


def subset_step(subset: Passes, rest: Passes | None, share: float, params: Params, config: StepConfig) -> Step:
    """``f grad L_subset(w + e) + (1 - f) grad L_rest(w)``, with f the share of the subset."""
    ascent, losses, grads = two_passes(subset, params, config)
    assert losses is not None  # passes from a loss function have the losses of both
    info = info_of(ascent, losses)
    if rest is None:
        return (info.loss, (ascent.aux, None), info), grads
    plain = rest.plain(params)
    assert plain.losses is not None
    loss = share * info.loss + (1 - share) * mean_loss(plain.losses)
    grads = like(jax.tree.map(lambda g, h: _mix(share, g, h), grads, plain.gradient), params)
    return (loss, (ascent.aux, plain.aux), info), grads


def whole_step(whole: Passes, params: Params, config: StepConfig) -> tuple[tuple[jax.Array, Aux, DisamInfo], Updates]:
    """``grad L(w)`` of the whole batch."""
    ascent, losses, grads = plain_step(whole, params, config)
    info = info_of(ascent, losses)
    return (info.loss, ascent.aux, info), grads


def plain_until(
    function: str, begin: Count | None, step: Count | None, plain: Callable[[], Step], perturbed: Callable[[], Step]
) -> Step:
    """``plain()`` while ``step < begin`` and ``perturbed()`` from then on: two branches of a conditional."""
    if begin is None:
        return perturbed()
    seen: list[dict[str, tuple[int, ...]]] = []

    def checked(branch):
        def run():
            result = branch()
            (_, aux, _), _ = result
            leaves = jax.tree_util.tree_leaves_with_path(aux)
            seen.append({jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in leaves})
            _check_same_shapes(function, seen[0], seen[-1])
            return result

        return run

    return jax.lax.cond(before_begin(function, begin, step), checked(plain), checked(perturbed))


def _check_same_shapes(function: str, whole: dict[str, tuple[int, ...]], sides: dict[str, tuple[int, ...]]) -> None:
    """The conditional would refuse other shapes too, but not name the argument."""
    for name in {**whole, **sides}:
        if whole.get(name) != sides.get(name):
            raise TypeError(
                f"{function}: with begin, aux and what a module writes must have the same shapes for any number of "
                f"examples, got {whole.get(name)} for the whole batch and {sides.get(name)} for a part of it in "
                f"(aux_subset, aux_rest){name}. Return means over the examples."
            )


def _mix(share: float, subset: jax.Array, rest: jax.Array) -> jax.Array:
    dtype = accumulation_dtype(subset)
    share_ = jnp.asarray(share, dtype)
    return share_ * cast(subset, dtype) + (1 - share_) * cast(rest, dtype)
