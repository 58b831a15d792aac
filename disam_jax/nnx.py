"""DISAM for Flax NNX modules."""

import inspect
import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias, Unpack

import jax

try:
    from flax import nnx
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('disam_jax.nnx needs Flax: pip install "disam-jax[flax]"', name=error.name) from error

from disam_jax import _gradient
from disam_jax._gradient import StepOptions, check_options, with_extras
from disam_jax._passes import split_aux
from disam_jax._types import GradFn, LossFn, Scalar

ArgNums: TypeAlias = int | nnx.DiffState | Sequence[int | nnx.DiffState]
Arguments: TypeAlias = tuple[Any, ...]
KeywordArguments: TypeAlias = dict[str, Any]
Filter: TypeAlias = nnx.filterlib.Filter


def value_and_grad(
    domain_loss_fn: LossFn,
    rho: Scalar = 0.05,
    lam: Scalar = 0.1,
    *,
    argnums: ArgNums = 0,
    wrt: Filter = nnx.Param,
    ascent_loss_fn: LossFn | None = None,
    has_aux: bool = False,
    with_info: bool = False,
    allow_eval: bool = False,
    **options: Unpack[StepOptions],
) -> GradFn:
    """DISAM in the place of ``nnx.value_and_grad``, for modules with BatchNorm, Dropout and other state.

    ``grad sum_i a_i L_i`` at ``w + e``, with ``e = rho g / ||g||`` and ``g = grad (sum_i a_i L_i - lam * penalty(L))``
    at w, where w are the variables that ``wrt`` selects. With ``rho=0`` and ``lam=0`` it does what
    ``nnx.value_and_grad`` does. The pass at w alone writes to the arguments (the model, and every module, variable or
    random stream beside it): running statistics move once, random streams advance once, plain attributes change once.
    The pass at w + e runs on a copy that starts from the same state, so it has the same dropout masks.

    Args:
      domain_loss_fn: ``domain_loss_fn(model, *args, **kwargs)`` returns the domain losses: ``[M]``, a scalar, or
        ``DomainLosses(values [M], weights [M])``. Give random streams, metrics and other modules that it writes to as
        arguments: one from outside of the function can't be written to, as in ``nnx.value_and_grad``. For a flat batch
        write ``disam_jax.mean_by_domain(...)``; for a grouped one
        ``nnx.vmap(loss_fn, in_axes=(None, 0))(model, batch)``.
      rho: Length of the perturbation in the L2 norm of the selected variables: a float or a traced scalar.
      lam: Strength of the penalty on the spread of the domain losses: a float or a traced scalar. 0 is SAM.
      argnums: Which positional argument is the model, or several, as in ``nnx.value_and_grad``. An argument may be a
        module, a tuple or dict of modules and arrays, or a pytree of arrays.
      wrt: An NNX filter: the variables that are perturbed and differentiated, ``nnx.Param``, ``nnx.LoRAParam``, your
        own.
      ascent_loss_fn: As in ``disam_jax.value_and_grad``: ``ascent_loss_fn(model, *args, **kwargs)`` is then the clean
        pass, so running statistics are those of its examples. Dropout masks of another shape are other masks.
      has_aux: Whether ``domain_loss_fn`` (and ``ascent_loss_fn``) returns ``(domain losses, aux)``.
      with_info: Whether to return a ``disam_jax.DisamInfo`` as well.
      allow_eval: Whether to stay silent when no BatchNorm of the model moved its statistics, or when no Dropout drew a
        mask. Say True for statistics that are frozen on purpose.
      **options: The keyword arguments ``variant``, ``adaptive``, ``penalty``, ``descent_lam``, ``mask``, ``axis_name``
        and ``eps`` of ``disam_jax.value_and_grad``. The mask is over the ``nnx.State`` of the selected variables.

    Returns:
      ``fn(model, *args, **kwargs) -> (loss, grads)``, with aux and info as in ``disam_jax.value_and_grad``. ``grads``
      is the ``nnx.State`` that ``nnx.Optimizer(model, tx, wrt=wrt).update(model, grads)`` takes; for several modules,
      the tuple or dict of their states.

    Raises:
      TypeError: When ``argnums`` are not positions, an option is unknown, or as in ``disam_jax.value_and_grad``.
      ValueError: When ``wrt`` selects nothing, ``domain_loss_fn`` is bound to a module, or as in
        ``disam_jax.value_and_grad``.

    Warns:
      UserWarning: When the model has BatchNorm layers and none of them moved its statistics, or Dropout layers and none
        of them drew a mask: the model may be in eval mode.

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
    check_options("disam_jax.nnx.value_and_grad", options)
    selection = _selection(argnums, wrt)
    for argument, loss_fn in (("domain_loss_fn", domain_loss_fn), ("ascent_loss_fn", ascent_loss_fn)):
        _check_not_bound(loss_fn, argument)
    # Wrong arguments are found here, before any model is seen.
    _gradient.value_and_grad(domain_loss_fn, rho, lam, ascent_loss_fn=ascent_loss_fn, **options)
    clean_loss_fn = domain_loss_fn if ascent_loss_fn is None else ascent_loss_fn
    clean_argument = "domain_loss_fn" if ascent_loss_fn is None else "ascent_loss_fn"

    def fn(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _by_position(domain_loss_fn, args, kwargs)
        _check_positions(selection, args)
        with nnx.update_context(_CONTEXT):
            prefix = tuple(selection.get(number) for number in range(len(args)))
            given = nnx.to_tree((args, kwargs), prefix=(prefix, None), split_fn=_split_selected, ctxtag=_CONTEXT)
            params = _selected(given, argnums)
            if not jax.tree.leaves(params):
                raise ValueError(
                    f"wrt={_name(wrt)} selects no variable of the model, which has {_variable_types(args)}."
                )

            def clean(p):
                args, kwargs = nnx.from_tree(_with_selected(given, argnums, p), ctxtag=_CONTEXT, is_inner=True)
                nodes = _graph_nodes(given, (args, kwargs))
                models = [node for number in selection for node in _graph_nodes(given[0][number], args[number])]
                before = _moving_state(nodes)
                losses, aux = split_aux(clean_loss_fn(*args, **kwargs), has_aux, clean_argument)
                if not allow_eval:
                    _warn_of_eval_mode(models, before, _moving_state(nodes), clean_argument)
                return losses, nnx.to_tree((nodes, aux), ctxtag=_CONTEXT)

            def perturbed(p):
                # Copies, outside of the context: what this pass writes is forgotten.
                args, kwargs = nnx.from_tree(_with_selected(given, argnums, p))
                return split_aux(domain_loss_fn(*args, **kwargs), has_aux, "domain_loss_fn")[0], None

            gradient = _gradient.value_and_grad(
                perturbed,
                rho,
                lam,
                ascent_loss_fn=clean,
                has_aux=True,
                with_info=True,
                **options,
            )
            (loss, (after, info)), grads = gradient(params)
            # Writes what the pass at w left behind into the objects of the caller.
            _, aux = nnx.from_tree(after, ctxtag=_CONTEXT, is_inner=False)
        extras = [aux] * has_aux + [info] * with_info
        return with_extras(loss, extras), grads

    return fn


_CONTEXT = "disam_jax.nnx.value_and_grad"


def _selection(argnums: ArgNums, wrt: Filter) -> dict[int, nnx.DiffState]:
    """For the position of each differentiated argument, the filter of its variables."""
    chosen = {}
    for entry in argnums if isinstance(argnums, (tuple, list)) else (argnums,):
        number = _position(entry)
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise TypeError(
                f"argnums must be the position of the model, or several positions, got {argnums!r}. Write argnums=0."
            )
        if number in chosen:
            raise ValueError(f"argnums must name each position once, got {argnums!r}.")
        # At -1 a filter holds for whatever argument it is given to.
        chosen[number] = nnx.DiffState(-1, entry.filter if isinstance(entry, nnx.DiffState) else wrt)
    if not chosen:
        raise ValueError("argnums must name at least one position, got none. Write argnums=0.")
    return chosen


def _by_position(loss_fn: LossFn, args: Arguments, kwargs: KeywordArguments) -> tuple[Arguments, KeywordArguments]:
    """The arguments as the loss function's signature orders them, so that the model may be given by keyword."""
    if not kwargs:
        return args, kwargs
    try:
        bound = inspect.signature(loss_fn).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return args, kwargs  # no signature, or a wrong call, which the loss function itself refuses
    return bound.args, bound.kwargs


def _check_positions(selection: dict[int, nnx.DiffState], args: Arguments) -> None:
    beyond = [number for number in selection if number >= len(args)]
    if beyond:
        raise ValueError(
            f"argnums={beyond[0]} must name a positional argument, got {len(args)} of them. Pass the model by position."
        )


def _check_not_bound(loss_fn: LossFn | None, argument: str) -> None:
    if inspect.ismethod(loss_fn) and isinstance(loss_fn.__self__, nnx.Module):
        name = f"{type(loss_fn.__self__).__name__}.{loss_fn.__name__}"
        raise ValueError(
            f"{argument} must be a function of the model, got a method that is bound to one. Write "
            f"disam_jax.nnx.value_and_grad({name}, ...)(model, batch)."
        )


def _split_selected(ctx: Any, path: Any, prefix: Any, node: Any) -> Any:
    """A graph node as its definition, the state that is differentiated, and the rest."""
    del path
    if prefix is None or isinstance(node, nnx.Variable):
        return nnx.NodeStates.from_split(*ctx.split(node))
    return nnx.NodeStates.from_split(*ctx.split(node, prefix.filter, ...))


def _is_node(x: object) -> bool:
    return isinstance(x, nnx.NodeStates)


def _selected(given: Any, argnums: ArgNums) -> Any:
    """What is differentiated: one tree, or a tuple of them; in the place of a module stands its `nnx.State`."""

    def one(number):
        return jax.tree.map(lambda x: x.states[0] if _is_node(x) else x, given[0][number], is_leaf=_is_node)

    positions = _positions(argnums)
    return one(positions) if isinstance(positions, int) else tuple(map(one, positions))


def _with_selected(given: Any, argnums: ArgNums, selected: Any) -> Any:
    """The arguments with other values in the place of what `_selected` took from them."""
    positions = _positions(argnums)
    if isinstance(positions, int):
        positions, selected = (positions,), (selected,)

    def put(old, new):
        return nnx.NodeStates.from_split(old.graphdef, new, *old.states[1:]) if _is_node(old) else new

    args = list(given[0])
    for number, new in zip(positions, selected, strict=True):
        args[number] = jax.tree.map(put, args[number], new, is_leaf=_is_node)
    return tuple(args), given[1]


def _position(entry: Any) -> int:
    return entry.argnum if isinstance(entry, nnx.DiffState) else entry


def _positions(argnums: ArgNums) -> int | tuple[int, ...]:
    return tuple(map(_position, argnums)) if isinstance(argnums, (tuple, list)) else _position(argnums)


def _graph_nodes(given: Any, merged: Any) -> list[Any]:
    """The modules, variables and random streams among the arguments: what a pass may write to."""
    split, structure = jax.tree.flatten(given, is_leaf=_is_node)
    nodes = structure.flatten_up_to(merged)
    return [node for node, before in zip(nodes, split, strict=True) if _is_node(before)]


def _moving_state(nodes: Any) -> dict[Any, list[Any]]:
    """What training moves, by kind: running statistics and the counts of random streams."""
    return {kind: jax.tree.leaves(nnx.state(nodes, kind)) for kind in (nnx.BatchStat, nnx.RngCount)}


_MODES = (
    (nnx.BatchStat, nnx.BatchNorm, "BatchNorm", "moved no running statistics", "on their running averages"),
    (nnx.RngCount, nnx.Dropout, "Dropout", "advanced no random stream", "switched off"),
)


def _warn_of_eval_mode(models: Any, before: Any, after: Any, argument: str) -> None:
    """Judged by what the call did, for a mode may be an argument of the call."""
    for kind, layer, name, what, how in _MODES:
        paths = [
            ".".join(map(str, path))
            for model in models
            for path, module in nnx.iter_graph(model)
            if isinstance(module, layer) and getattr(module, "rate", 1) > 0
        ]
        moved = any(new is not old for new, old in zip(after[kind], before[kind], strict=False))
        if paths and not moved:
            warnings.warn(
                f"{argument} {what}, but the model has {len(paths)} {name} layer(s), the first at "
                f"{paths[0] or 'the top'}: all of them ran {how} or were not called. Call model.train() before the "
                "step, or write disam_jax.nnx.value_and_grad(..., allow_eval=True) if that is what you want.",
                stacklevel=2,
            )


def _variable_types(arguments: Any) -> str:
    names = {type(v).__name__ for _, v in nnx.iter_graph(arguments) if isinstance(v, nnx.Variable)}
    return f"variables of type {', '.join(sorted(names))}" if names else "no variables"


def _name(wrt: Filter) -> str:
    return getattr(wrt, "__name__", repr(wrt))
