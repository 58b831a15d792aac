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

from disam_jax import _gradient, _subset
from disam_jax._gradient import StepOptions, check_options, with_extras
from disam_jax._passes import passes_from_loss_fn, split_aux
from disam_jax._types import Count, GradFn, LossFn, Scalar

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
        with nnx.update_context(_CONTEXT):
            given, params = _split(args, kwargs, selection, argnums, wrt)
            clean, _ = _loss_functions(clean_loss_fn, clean_argument, given, selection, argnums, has_aux, allow_eval)
            _, on_copies = _loss_functions(
                domain_loss_fn, "domain_loss_fn", given, selection, argnums, has_aux, allow_eval
            )
            gradient = _gradient.value_and_grad(
                lambda p: (on_copies(p)[0], None),
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


def subset_value_and_grad(
    domain_loss_fn: LossFn,
    rho: Scalar = 0.05,
    lam: Scalar = 0.1,
    *,
    fraction: float = 0.25,
    begin: Count | None = None,
    axis: int = 1,
    argnums: ArgNums = 0,
    wrt: Filter = nnx.Param,
    has_aux: bool = False,
    with_info: bool = False,
    allow_eval: bool = False,
    **options: Unpack[StepOptions],
) -> GradFn:
    """``disam_jax.subset_value_and_grad`` for modules: DISAM on a subset of the examples, from the step ``begin`` on.

    ``f grad L_subset(w + e) + (1 - f) grad L_rest(w)``, and ``grad L(w)`` of the whole batch before ``begin``. One pass
    at w writes to the arguments, so running statistics move once: that of the rest of the examples where they are half
    of the batch or more, else that of the subset; before ``begin``, that of the whole batch. The other passes run on
    copies that start from the same state.

    Args:
      domain_loss_fn: As in ``value_and_grad``: ``domain_loss_fn(model, batch, *args, **kwargs)``, and every example
        must count the same in its mean loss. With ``begin``, what it writes must have the same shapes for any number of
        examples.
      rho: As in ``value_and_grad``.
      lam: As in ``value_and_grad``.
      fraction: As in ``disam_jax.subset_value_and_grad``.
      begin: As in ``disam_jax.subset_value_and_grad``.
      axis: As in ``disam_jax.subset_value_and_grad``.
      argnums: As in ``value_and_grad``; the first of the other positional arguments is the batch, a pytree of arrays.
      wrt: As in ``value_and_grad``.
      has_aux: As in ``disam_jax.subset_value_and_grad``: aux is ``(aux_subset, aux_rest)``, pytrees of arrays.
      with_info: As in ``disam_jax.subset_value_and_grad``.
      allow_eval: As in ``value_and_grad``.
      **options: As in ``value_and_grad``.

    Returns:
      ``fn(model, batch, *args, step=None, **kwargs) -> (loss, grads)``, with ``grads`` as in ``value_and_grad`` and all
      else as in ``disam_jax.subset_value_and_grad``. ``step`` may be ``optimizer.step``.

    Raises:
      TypeError: As in ``value_and_grad`` and ``disam_jax.subset_value_and_grad``.
      ValueError: As in ``value_and_grad`` and ``disam_jax.subset_value_and_grad``.

    Warns:
      UserWarning: As in ``value_and_grad``.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> import disam_jax.nnx
      >>> model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)
      >>> def loss(model, batch):
      ...   return jnp.mean((model(batch["x"])[..., 0] - batch["y"]) ** 2)
      >>> domain_losses = nnx.vmap(loss, in_axes=(None, 0))
      >>> gradient = disam_jax.nnx.subset_value_and_grad(domain_losses, rho=0.1, lam=0.1, fraction=1 / 8, begin=500)
      >>> @nnx.jit
      ... def step(model, optimizer, batch):
      ...   value, grads = gradient(model, batch, step=optimizer.step)
      ...   optimizer.update(model, grads)
      ...   return value
      >>> batch = {"x": jnp.ones((3, 8, 4)), "y": jnp.zeros((3, 8))}   # 3 domains, 8 examples of each: 1 and 7
      >>> step(model, optimizer, batch).shape
      ()

    References:
      As in ``disam_jax.subset_value_and_grad``.
    """
    name = "disam_jax.nnx.subset_value_and_grad"
    check_options(name, options)
    selection = _selection(argnums, wrt)
    _check_not_bound(domain_loss_fn, "domain_loss_fn")
    config = _gradient.joint_config(rho, lam, **options)
    begin = _gradient.as_begin(begin)

    def fn(*args: Any, step: Any = None, **kwargs: Any) -> Any:
        args, kwargs = _by_position(domain_loss_fn, args, kwargs)
        number = next((number for number in range(len(args)) if number not in selection), None)
        if number is None:
            raise TypeError(f"{name}: batch is missing. Write fn(model, batch) with leaves [M, n, ...].")
        batch = args[number]
        subset, rest, share = _subset.split_by_share(batch, fraction, axis)
        # Position in (aux_subset, aux_rest) of the pass that writes to the arguments.
        writes = int(rest is not None and share <= 0.5)
        step = step[...] if isinstance(step, nnx.Variable) else step
        checked = _gradient.with_begin(config, begin)
        with nnx.update_context(_CONTEXT):
            given, params = _split(args, kwargs, selection, argnums, wrt)

            def passes(examples, writing):
                positional = (*given[0][:number], examples, *given[0][number + 1 :])
                loss_fns = _loss_functions(
                    domain_loss_fn, "domain_loss_fn", (positional, given[1]), selection, argnums, has_aux, allow_eval
                )
                return loss_fns if writing else (loss_fns[1], loss_fns[1])

            def perturbed():
                at_w, on_copies = passes(subset, writes == 0)
                of_subset = passes_from_loss_fn(on_copies, at_w, has_aux=True, axis_name=config.axis_name)
                of_rest = None
                if rest is not None:
                    at_w, _ = passes(rest, writes == 1)
                    of_rest = passes_from_loss_fn(at_w, has_aux=True, axis_name=config.axis_name)
                return _subset.subset_step(of_subset, of_rest, share, params, checked)

            def plain():
                at_w, _ = passes(batch, True)
                whole = passes_from_loss_fn(at_w, has_aux=True, axis_name=config.axis_name)
                (loss, (after, aux), info), grads = _subset.whole_step(whole, params, checked)
                sides = (after, aux), (None, aux)
                return (loss, (sides[writes], sides[1 - writes] if rest is not None else None), info), grads

            (loss, sides, info), grads = _subset.plain_until(name, begin, step, plain, perturbed)
            nnx.from_tree(sides[writes][0], ctxtag=_CONTEXT, is_inner=False)
        aux = tuple(None if side is None else side[1] for side in sides)
        return with_extras(loss, [aux] * has_aux + [info] * with_info), grads

    return fn


_CONTEXT = "disam_jax.nnx.value_and_grad"


def _split(
    args: Arguments, kwargs: KeywordArguments, selection: dict[int, nnx.DiffState], argnums: ArgNums, wrt: Filter
) -> tuple[Any, Any]:
    """The arguments as pytrees of arrays, and what is differentiated of them."""
    _check_positions(selection, args)
    prefix = tuple(selection.get(number) for number in range(len(args)))
    given = nnx.to_tree((args, kwargs), prefix=(prefix, None), split_fn=_split_selected, ctxtag=_CONTEXT)
    params = _selected(given, argnums)
    if not jax.tree.leaves(params):
        raise ValueError(f"wrt={_name(wrt)} selects no variable of the model, which has {_variable_types(args)}.")
    return given, params


def _loss_functions(
    loss_fn: LossFn,
    argument: str,
    given: Any,
    selection: dict[int, nnx.DiffState],
    argnums: ArgNums,
    has_aux: bool,
    allow_eval: bool,
) -> tuple[LossFn, LossFn]:
    """The loss as a function of the selected variables that returns ``(losses, (what the call wrote, aux))``.

    What the first one writes goes to the objects of the caller, by ``nnx.from_tree``. The second runs on copies,
    outside of the context: what it writes is forgotten, and ``None`` in its result.
    """

    def writing(p):
        args, kwargs = nnx.from_tree(_with_selected(given, argnums, p), ctxtag=_CONTEXT, is_inner=True)
        nodes = _graph_nodes(given, (args, kwargs))
        models = [node for number in selection for node in _graph_nodes(given[0][number], args[number])]
        before = _moving_state(nodes)
        losses, aux = split_aux(loss_fn(*args, **kwargs), has_aux, argument)
        if not allow_eval:
            _warn_of_eval_mode(models, before, _moving_state(nodes), argument)
        return losses, nnx.to_tree((nodes, aux), ctxtag=_CONTEXT)

    def on_copies(p):
        args, kwargs = nnx.from_tree(_with_selected(given, argnums, p))
        losses, aux = split_aux(loss_fn(*args, **kwargs), has_aux, argument)
        return losses, (None, aux)

    return writing, on_copies


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
                "step, or write allow_eval=True if that is what you want.",
                stacklevel=2,
            )


def _variable_types(arguments: Any) -> str:
    names = {type(v).__name__ for _, v in nnx.iter_graph(arguments) if isinstance(v, nnx.Variable)}
    return f"variables of type {', '.join(sorted(names))}" if names else "no variables"


def _name(wrt: Filter) -> str:
    return getattr(wrt, "__name__", repr(wrt))
