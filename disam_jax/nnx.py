"""DISAM for Flax NNX modules."""

from collections.abc import Callable
from typing import Any

import jax

try:
    from flax import nnx
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('disam_jax.nnx needs Flax: pip install "disam-jax[flax]"', name=error.name) from error

from disam_jax import _gradient
from disam_jax._passes import split_aux
from disam_jax.variants import Variant


def value_and_grad(
    domain_loss_fn: Callable[..., Any],
    rho: Any = 0.05,
    lam: Any = 0.1,
    *,
    argnums: int = 0,
    wrt: Any = nnx.Param,
    ascent_loss_fn: Callable[..., Any] | None = None,
    has_aux: bool = False,
    with_info: bool = False,
    variant: Variant | None = None,
    adaptive: bool = False,
    penalty: str = "variance",
    mask: Any = None,
    axis_name: Any = None,
    eps: Any = 1e-12,
    allow_eval: bool = False,
) -> Callable[..., Any]:
    """DISAM in the place of ``nnx.value_and_grad``, for modules with BatchNorm, Dropout and other state.

    ``grad sum_i a_i L_i`` at ``w + e``, with ``e = rho g / ||g||`` and ``g = grad (sum_i a_i L_i - lam * penalty(L))``
    at w, where w are the variables that ``wrt`` selects. The clean pass alone writes to the model: running statistics
    move once, random streams advance once. The perturbed pass starts from the same state, so it has the same dropout
    masks.

    Args:
      domain_loss_fn: ``domain_loss_fn(model, *args, **kwargs)`` returns the domain losses: ``[M]``, a scalar, or
        ``DomainLosses(values [M], weights [M])``. For a flat batch write ``disam_jax.mean_by_domain(...)``; for a
        grouped one ``nnx.vmap(loss_fn, in_axes=(None, 0))(model, batch)``.
      rho: Length of the perturbation in the L2 norm of the selected variables: a float or a traced scalar.
      lam: Strength of the penalty on the spread of the domain losses: a float or a traced scalar. 0 is SAM.
      argnums: Which positional argument is the model.
      wrt: An NNX filter: the variables that are perturbed and differentiated, ``nnx.Param``, ``nnx.LoRAParam``, your
        own.
      ascent_loss_fn: As in ``disam_jax.value_and_grad``: ``ascent_loss_fn(model, *args, **kwargs)`` is then the clean
        pass, so running statistics are those of its examples. Dropout masks of another shape are other masks.
      has_aux: Whether ``domain_loss_fn`` (and ``ascent_loss_fn``) returns ``(domain losses, aux)``.
      with_info: Whether to return a ``disam_jax.DisamInfo`` as well.
      variant: As in ``disam_jax.value_and_grad``.
      adaptive: As in ``disam_jax.value_and_grad``.
      penalty: As in ``disam_jax.value_and_grad``.
      mask: As in ``disam_jax.value_and_grad``, over the ``nnx.State`` of the selected variables.
      axis_name: As in ``disam_jax.value_and_grad``.
      eps: As in ``disam_jax.value_and_grad``.
      allow_eval: Whether BatchNorm may run on its running averages and Dropout may be off while training. Say True for
        statistics that are frozen on purpose.

    Returns:
      ``fn(model, *args, **kwargs) -> (loss, grads)``, with aux and info as in ``disam_jax.value_and_grad``. ``grads``
      is the ``nnx.State`` that ``nnx.Optimizer(model, tx, wrt=wrt).update(model, grads)`` takes.

    Raises:
      TypeError: When the model is not an ``nnx.Module``, or as in ``disam_jax.value_and_grad``.
      ValueError: When ``wrt`` selects nothing, a layer is in eval mode, the loss adds variables to the model, or as in
        ``disam_jax.value_and_grad``.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> import disam_jax.nnx
      >>> model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)
      >>> def loss(model, batch):
      ...   return jnp.mean((model(batch["x"])[..., 0] - batch["y"]) ** 2)
      >>> @nnx.jit
      ... def step(model, optimizer, batch):
      ...   domain_losses = nnx.vmap(loss, in_axes=(None, 0))
      ...   value, grads = disam_jax.nnx.value_and_grad(domain_losses, rho=0.05, lam=0.1)(model, batch)
      ...   optimizer.update(model, grads)
      ...   return value
      >>> batch = {"x": jnp.ones((3, 8, 4)), "y": jnp.zeros((3, 8))}   # 3 domains, 8 examples of each
      >>> step(model, optimizer, batch).shape
      ()

    References:
      Zhang et al., Domain-Inspired Sharpness-Aware Minimization Under Domain Shifts, ICLR 2024, section 3.
    """

    def fn(*args: Any, **kwargs: Any) -> Any:
        model = _model_among(args, argnums)
        graphdef, params, rest = nnx.split(model, wrt, ...)
        if not jax.tree.leaves(params):
            raise ValueError(f"wrt={_name(wrt)} selects no variable of the model, which has {_variable_types(model)}.")
        before, structure = jax.tree.flatten(rest)

        def with_state(loss_fn, argument):
            def losses_and_state(p):
                # Without the copy, a variable that already belongs to an outer trace would be written to from this one.
                copy = nnx.merge(graphdef, p, rest, copy=True)
                out = loss_fn(*args[:argnums], copy, *args[argnums + 1 :], **kwargs)
                if not allow_eval:
                    _check_training(copy)
                after = nnx.split(copy, wrt, ...)[2]
                if jax.tree.structure(after) != structure:
                    raise ValueError(
                        f"{argument} added or removed variables of the model (sow does), which a differentiated "
                        "function cannot do. Create them before: call the model once on a batch."
                    )
                losses, aux = split_aux(out, has_aux, argument)
                written = {i: new for i, new in enumerate(jax.tree.leaves(after)) if new is not before[i]}
                return losses, (aux, written)

            return losses_and_state

        gradient = _gradient.value_and_grad(
            with_state(domain_loss_fn, "domain_loss_fn"),
            rho,
            lam,
            ascent_loss_fn=None if ascent_loss_fn is None else with_state(ascent_loss_fn, "ascent_loss_fn"),
            has_aux=True,
            with_info=True,
            variant=variant,
            adaptive=adaptive,
            penalty=penalty,
            mask=mask,
            axis_name=axis_name,
            eps=eps,
        )
        (loss, ((aux, written), info)), grads = gradient(params)
        if written:
            leaves = [written.get(i, old) for i, old in enumerate(before)]
            nnx.update(model, jax.tree.unflatten(structure, leaves))
        extras = [aux] * has_aux + [info] * with_info
        return _gradient.with_extras(loss, extras), grads

    # Wrong arguments are found here, before any model is seen.
    _gradient.value_and_grad(
        domain_loss_fn, rho, lam, ascent_loss_fn=ascent_loss_fn, variant=variant, penalty=penalty, eps=eps
    )
    if isinstance(argnums, bool) or not isinstance(argnums, int) or argnums < 0:
        raise TypeError(f"argnums must be the position of the model, seen {argnums!r}. Write argnums=0.")
    return fn


def _model_among(args: tuple[Any, ...], argnums: int) -> Any:
    model = args[argnums] if argnums < len(args) else None
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"argument {argnums} must be an nnx.Module, seen {type(model).__name__}. For a pytree of parameters "
            "(Linen, Equinox, plain JAX) use disam_jax.value_and_grad."
        )
    return model


def _check_training(model: Any) -> None:
    for path, module in nnx.iter_graph(model):
        frozen = getattr(module, "use_running_average", None) is True and isinstance(module, nnx.BatchNorm)
        silent = getattr(module, "deterministic", None) is True and isinstance(module, nnx.Dropout)
        if frozen or silent:
            what = "runs on its running averages" if frozen else "is off"
            raise ValueError(
                f"the {type(module).__name__} at {'.'.join(map(str, path)) or 'the top of the model'} {what} inside "
                "domain_loss_fn: the model is in eval mode. Call model.train() before the step, or write "
                "disam_jax.nnx.value_and_grad(..., allow_eval=True) if that is what you want."
            )


def _variable_types(model: Any) -> str:
    names = {type(v).__name__ for _, v in nnx.iter_graph(model) if isinstance(v, nnx.Variable)}
    return f"variables of type {', '.join(sorted(names))}" if names else "no variables"


def _name(wrt: Any) -> str:
    return getattr(wrt, "__name__", repr(wrt))
