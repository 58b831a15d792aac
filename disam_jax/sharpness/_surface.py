"""The losses of the domains over a data set, as functions of the parameters."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax._domains import DomainLosses
from disam_jax.sharpness._blocks import Blocks, Reader, Source, by_domain, example_losses, matching, plan


class LossSurface(NamedTuple):
    """What is measured; made by `loss_surface`.

    Attributes:
      source: The loss function, and the reader of data on the host.
      blocks: The examples, in blocks of one domain each.
      names: Of the D domains.
      held_out: Index of the domain that training does not see, or ``None``.
      shares: How much each domain counts in the mixture, float64 ``[D]``, sums to 1.
    """

    source: Source
    blocks: Blocks
    names: tuple[str, ...]
    held_out: int | None
    shares: np.ndarray


def loss_surface(
    loss_fn: Callable[[Any, Any], Any],
    data: Any,
    domain_ids: Any,
    *,
    num_domains: int | None = None,
    names: Sequence[str] | None = None,
    held_out: str | int | None = None,
    shares: Any = None,
    block: int = 256,
) -> LossSurface:
    """The losses ``L_d(w)`` of D domains, for the measures of this package.

    ``L_d(w) = mean of loss_fn(w, example) over the examples of domain d``, exact for any number of examples and any
    ``block``. The mixture ``sum_d a_d L_d(w)`` with the shares a is what training minimises: equal shares of all
    domains but the held-out one, as in DISAM.

    Args:
      loss_fn: ``loss_fn(params, batch) -> [n]``, the loss of each example, floating point; ``batch`` has the structure
        of ``data``, with leaves ``[n, ...]``. An example's loss may not depend on the others of its batch: run
        BatchNorm on its running averages, and no dropout. Parameters that are not to be perturbed go into the
        function, not into ``params``. Pass the same function again for a program that is compiled already.
      data: A pytree of arrays ``[N, ...]``, which are copied to the device; or, for data that do not fit there, a
        function from row numbers, an integer numpy array ``[n]`` in ``0 .. N-1``, to a pytree of numpy arrays
        ``[n, ...]``, which is called for each block.
      domain_ids: The domain of each example, integers ``[N]`` in ``0 .. D-1``, in any order.
      num_domains: D. ``None`` takes the number of names, or else what the ids have.
      names: Of the domains, ``[D]``, for messages and figures. ``None`` calls them "domain 0" and so on.
      held_out: Name or index of the domain that training does not see. It is measured like the others, has no share
        in the mixture, and is marked in figures.
      shares: Not negative, ``[D]``; divided by their sum. ``None`` gives equal ones.
      block: Examples that are evaluated at once: memory for activations against speed. A domain's last block is filled
        up with examples that it has seen, which do not count.

    Returns:
      A surface on which any parameters can be measured.

    Raises:
      TypeError: When the ids are not integers.
      ValueError: When the data are empty or end early, a domain has no example, or an argument does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from disam_jax import sharpness
      >>> loss_fn = lambda w, batch: (batch["x"] @ w - batch["y"]) ** 2
      >>> data = {"x": jnp.eye(3), "y": jnp.array([1.0, 2.0, 3.0])}
      >>> surface = sharpness.loss_surface(loss_fn, data, [0, 0, 1], names=("art", "photo"))
      >>> sharpness.domain_losses(surface, jnp.zeros(3)).values.tolist()
      [2.5, 9.0]
    """
    ids = _check_ids(domain_ids)
    number = _count(ids, num_domains, names)
    names = tuple(f"domain {d}" for d in range(number)) if names is None else tuple(map(str, names))
    if len(names) != number or len(set(names)) != number:
        raise ValueError(f"names must be {number} different names, one for each domain, got {names}.")
    counts = np.bincount(ids, minlength=number)
    if len(counts) > number:
        raise ValueError(f"domain_ids has the id {len(counts) - 1}, but there are {number} domains, 0..{number - 1}.")
    if not counts.all():
        missing = ", ".join(name for name, n in zip(names, counts, strict=True) if n == 0)
        raise ValueError(f"no example of {missing} in domain_ids: leave the domain out of the names and ids.")
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(f"block must be a number of examples, at least 1, got {block!r}.")
    last = _index(held_out, names)
    mixture = _mixture(shares, names, last)
    block = min(block, int(counts.max()))
    layout = {name: jnp.asarray(values) for name, values in plan(ids, mixture, block).items()}
    if callable(data):
        rows = np.resize(np.arange(len(ids)), block)
        source, arrays = Source(loss_fn, Reader(data, _shapes(data, rows))), None
    else:
        source, arrays = Source(loss_fn, None), _check_arrays(data, len(ids))
    return LossSurface(source, Blocks(arrays, **layout), names, last, mixture)


def domain_losses(surface: LossSurface, params: Any) -> DomainLosses:
    """The loss of each domain at the parameters.

    Args:
      surface: From `loss_surface`.
      params: A pytree of floating point arrays. Those of half precision are measured as float32, so that small
        perturbations are not rounded away.

    Returns:
      ``DomainLosses(values [D], weights [D])`` with the shares of the mixture as weights. Values that are not finite
      are returned as they are.

    Raises:
      TypeError: When a parameter is not floating point.
      ValueError: When there are no parameters, or ``loss_fn`` does not return ``[n]``.

    Example:
      >>> import jax.numpy as jnp
      >>> from disam_jax import sharpness
      >>> surface = sharpness.loss_surface(lambda w, x: x * w, jnp.array([1.0, 3.0, 5.0]), [0, 0, 1])
      >>> sharpness.domain_losses(surface, jnp.float32(2)).values.tolist()
      [4.0, 10.0]
    """
    with reading(surface):
        losses = _means(surface.source, surface.blocks, as_params(params))
        return DomainLosses(jax.block_until_ready(losses), jnp.asarray(surface.shares, losses.dtype))


class Centre(NamedTuple):
    """A point that is measured: its parameters and losses, all finite.

    Attributes:
      params: Floating point, float32 at least.
      base: The loss of each example, ``[B, block]``.
      losses: Of the domains, numpy ``[D]``.
    """

    params: Any
    base: jax.Array
    losses: np.ndarray


def centre(surface: LossSurface, params: Any) -> Centre:
    """Evaluates the parameters that are measured; an error if a loss is not finite there."""
    params = as_params(params)
    with reading(surface):
        base = _examples(surface.source, surface.blocks, params)
        losses = np.asarray(by_domain(surface.blocks, base))
    check_finite(surface, losses, "loss", "at the parameters that were given: there is nothing to measure")
    return Centre(params, base, losses)


@contextlib.contextmanager
def reading(surface: LossSurface) -> Generator[None]:
    """Within it, an error of the reader is raised as itself and not as XLA's."""
    reader = surface.source.reader
    try:
        yield
    except Exception as error:
        if reader is None or reader.error is None or error is reader.error:
            raise
        mended, reader.error = reader.error, None
        raise mended from None


def units(surface: LossSurface) -> tuple[str, ...]:
    """Names of what is measured: the domains, then the mixture."""
    return (*surface.names, "the mixture")


def check_finite(surface: LossSurface, values: Any, what: str, where: str) -> None:
    """An error that names the domains whose value, ``[D]`` or with the mixture ``[D + 1]``, is not finite."""
    values = np.asarray(values)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        found = ", ".join(f"{units(surface)[d]} is {values[d]}" for d in bad)
        raise ValueError(f"the {what} of {found} {where}.")


def as_params(params: Any) -> Any:
    """The parameters as arrays, those of half precision as float32."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if sum(np.size(x) for _, x in leaves) == 0:
        raise ValueError(
            "params has no arrays: a model without parameters has no sharpness. Pass the variables that are trained, "
            "nnx.split(model, nnx.Param, ...)[1] or variables['params']."
        )
    for path, x in leaves:
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is {jnp.result_type(x)}: only floating point parameters can be "
                "perturbed. Put the others into loss_fn."
            )
    wide = lambda x: jnp.float32 if jnp.finfo(jnp.result_type(x)).bits < 32 else jnp.result_type(x)
    return jax.tree.map(lambda x: jnp.asarray(x, wide(x)), params)


@partial(jax.jit, static_argnums=0)
def _examples(source: Source, blocks: Blocks, params: Any) -> jax.Array:
    return example_losses(source, blocks, params)


@partial(jax.jit, static_argnums=0)
def _means(source: Source, blocks: Blocks, params: Any) -> jax.Array:
    return by_domain(blocks, example_losses(source, blocks, params))


def _check_ids(domain_ids: Any) -> np.ndarray:
    ids = np.asarray(domain_ids)
    if ids.size == 0:
        raise ValueError("domain_ids is empty: there is no example to measure.")
    if ids.ndim != 1:
        raise ValueError(f"domain_ids must be [N], got shape {ids.shape}.")
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"domain_ids must be integers, got {ids.dtype}. Write domain_ids.astype(int).")
    if ids.min() < 0:
        raise ValueError(f"domain_ids has the id {ids.min()}: number the domains from 0.")
    return ids


def _count(ids: np.ndarray, num_domains: int | None, names: Sequence[str] | None) -> int:
    if isinstance(names, str):
        raise TypeError(f"names must be a sequence of names, got the one string {names!r}.")
    if num_domains is None:
        return int(ids.max()) + 1 if names is None else len(names)
    if isinstance(num_domains, bool) or not isinstance(num_domains, (int, np.integer)) or num_domains < 1:
        raise ValueError(f"num_domains must be a number of domains, at least 1, got {num_domains!r}.")
    return int(num_domains)


def _index(held_out: str | int | None, names: tuple[str, ...]) -> int | None:
    if held_out is None:
        return None
    if isinstance(held_out, str) and held_out in names:
        return names.index(held_out)
    if not isinstance(held_out, (str, bool)) and 0 <= held_out < len(names):
        return int(held_out)
    raise ValueError(f"held_out={held_out!r} is not a domain: write one of {', '.join(names)}, or its index.")


def _mixture(shares: Any, names: tuple[str, ...], held_out: int | None) -> np.ndarray:
    if shares is None:
        shares = np.arange(len(names)) != (-1 if held_out is None else held_out)
    a = np.asarray(shares, np.float64)
    if a.shape != (len(names),) or not np.isfinite(a).all() or (a < 0).any() or a.sum() <= 0:
        raise ValueError(
            f"shares must be {len(names)} numbers, not negative and not all 0, got {a.tolist()} for the domains "
            f"{', '.join(names)}; a held-out domain has share 0."
        )
    if held_out is not None and a[held_out] > 0:
        raise ValueError(f"the held-out domain {names[held_out]} has the share {a[held_out]:g}: write 0 for it.")
    return a / a.sum()


def _check_arrays(data: Any, number: int) -> Any:
    if not jax.tree.leaves(data):
        raise ValueError("data has no arrays: pass a pytree of arrays [N, ...], or a function of row numbers.")

    def leaf(path, x):
        x = x if isinstance(x, jax.Array) else jnp.asarray(np.asarray(x))
        if x.ndim < 1 or x.shape[0] != number:
            early = "ends early: it" if x.ndim and x.shape[0] < number else ""
            raise ValueError(
                f"data{jax.tree_util.keystr(path)} {early or 'does not fit: it'} has shape {x.shape}, but domain_ids "
                f"has {number} entries. Every leaf must be [N, ...]."
            )
        return x

    return jax.tree_util.tree_map_with_path(leaf, data)


def _shapes(read: Callable[[np.ndarray], Any], rows: np.ndarray) -> Any:
    """Shapes and dtypes of what a reader gives, the dtypes as jax has them on the device."""
    batch = jax.tree.map(np.asarray, read(rows))
    if not jax.tree.leaves(batch):
        raise ValueError("data(rows) returned no arrays: return a pytree of numpy arrays [n, ...].")
    matching(batch, batch, rows)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.asarray(x[:0]).dtype), batch)
