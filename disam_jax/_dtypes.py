"""Arrays and numbers that come in: their dtypes, and checks of their values.

A value that is known is checked, and an error names it. A value that is traced, or that a device is still computing, is
not known: where it is wrong, ``nan_unless`` puts NaN into what is computed from it, which costs one scalar operation.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax._types import Count, Params, Scalar

LARGEST = float(np.finfo(np.float32).max)
MOST = np.iinfo(np.int32).max
Tree = TypeVar("Tree")


def accumulation_dtype(tree: Params) -> jnp.dtype:
    """float64 when any leaf is, else float32: half-precision sums overflow and lose digits."""
    wide = any(leaf.dtype.itemsize > 4 for leaf in jax.tree.leaves(tree))
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def cast(tree: Tree, dtype: jnp.dtype) -> Tree:
    """The tree in a dtype; a leaf that has it already is returned as it is."""
    return jax.tree.map(lambda x: x if x.dtype == dtype else x.astype(dtype), tree)


def widen(tree: Tree, of: Params = None) -> tuple[Tree, jnp.dtype]:
    """The tree in its accumulation dtype, or in that ``of`` another tree, and this dtype."""
    dtype = accumulation_dtype(tree if of is None else of)
    return cast(tree, dtype), dtype


def like(tree: Tree, params: Params) -> Tree:
    """The tree with the dtypes and the weak types of the parameters, so that it is promoted as they are."""
    return jax.tree.map(_like, tree, params)


def _like(x: jax.Array, w: jax.Array) -> jax.Array:
    x = x if x.dtype == w.dtype else x.astype(w.dtype)
    if not w.weak_type or x.weak_type:
        return x
    # The cotangent of a weakly typed number is one: jax has no other public way to make one from an array.
    return jax.linear_transpose(lambda weak: jax.lax.convert_element_type(weak, w.dtype), w)(x)[0]


def as_params(params: Params, name: str = "params") -> Params:
    """The pytree with a floating-point jax array in each leaf; numbers and numpy arrays become what ``jax.grad`` makes.

    Python numbers stay weakly typed, and float64 becomes float32 in silence where float64 is off.
    """
    if all(isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(params)):
        return params
    return jax.tree_util.tree_map_with_path(lambda path, x: _as_param(x, name + jax.tree_util.keystr(path)), params)


def _as_param(x: Any, name: str) -> jax.Array:
    if not isinstance(x, (jax.Array, np.ndarray, np.generic, int, float, complex)) and not hasattr(x, "__jax_array__"):
        raise TypeError(
            f"{name} must be an array or a number, got {type(x).__name__}. Pass the arrays of a model alone: "
            "params, static = eqx.partition(model, eqx.is_inexact_array), and eqx.combine(params, static) inside the "
            "loss function."
        )
    # Judged before it becomes an array: an array of objects or of text cannot become one.
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name} must be floating point, got {dtype}{list(jnp.shape(x))}. Keep counters and keys out of params; "
            "split complex parameters into real and imaginary parts. Write 1.0 for the number 1."
        )
    return jnp.asarray(x)


def known(value: Any, *, wait: bool) -> np.ndarray | None:
    """The value in float64 on the host; ``None`` where it is traced or, without ``wait``, not yet computed."""
    arrays: list[Any] = [x for x in jax.tree.leaves(value) if isinstance(x, jax.Array)]
    if any(isinstance(x, jax.core.Tracer) for x in arrays):
        return None
    if not all(x.is_fully_addressable or x.is_fully_replicated for x in arrays):
        return None
    if not wait and not all(x.is_ready() for x in arrays):
        return None
    return np.asarray(jax.device_get(value)).astype(np.float64)


def as_real(name: str, value: Any, write: str) -> Scalar:
    """A real number or a real scalar array; a boolean is neither. A Python integer becomes a float."""
    _check_real(name, value, write)
    return float(value) if isinstance(value, int) else value


def as_scalar(name: str, value: Any, write: str, *, negative: bool = False, wait: bool = True) -> Scalar:
    """``as_real`` of a value that, where it is known, is finite, in float32 too, and not negative."""
    _check_real(name, value, write)
    found = value
    if hasattr(value, "dtype"):
        array = known(value, wait=wait)
        if array is None:
            return value
        found = float(array)
    if not -LARGEST <= found <= LARGEST:
        raise ValueError(f"{name} must be a finite number, got {value}. Write {write}.")
    if found < 0 and not negative:
        raise ValueError(f"{name} must not be negative, got {value}. Write {write}.")
    return float(value) if isinstance(value, int) else value


def as_count(name: str, value: Any, write: str, *, least: int = 0, wait: bool = True) -> Count:
    """An integer, or a scalar array of one, that, where it is known, lies between ``least`` and the largest int32."""
    number = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    array = isinstance(value, (jax.Array, np.ndarray)) and jnp.issubdtype(value.dtype, jnp.integer)
    if not number and not (array and jnp.shape(value) == ()):
        raise TypeError(f"{name} must be an integer, got {value!r}. Write {write}.")
    found = value if number else known(value, wait=wait)
    if found is not None and not least <= found <= MOST:
        raise ValueError(f"{name} must be at least {least} and fit in int32, got {value}. Write {write}.")
    return value


def not_negative(scalars: Any, dtype: jnp.dtype) -> Any:
    """Scalars that ``as_scalar`` returned, as arrays.

    One that was not known when it was checked is NaN where it is negative or infinite.
    """

    def leaf(value):
        x = jnp.asarray(value, dtype)
        return x * nan_unless((x >= 0) & (x <= LARGEST)) if isinstance(value, jax.Array) else x

    return jax.tree.map(leaf, scalars)


def nan_unless(condition: jax.Array) -> jax.Array:
    """1 where the condition holds, else NaN: a factor of no dtype of its own, so that the gradient is NaN too.

    Nothing on the way is NaN or infinite where the condition holds, as ``jax_debug_nans`` and ``jax_debug_infs`` ask.
    """
    return jnp.sqrt(jnp.where(condition, 1.0, -1.0))


def _is_real(dtype: jnp.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)


def _check_real(name: str, value: Any, write: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number and not (hasattr(value, "dtype") and _is_real(value.dtype)):
        raise TypeError(
            f"{name} must be a real number or a scalar array of real numbers, got {value!r}. Write {write}."
        )
    if jnp.shape(value) != ():
        raise ValueError(
            f"{name} must be a scalar, got shape {jnp.shape(value)}. Write {write}; use jax.vmap for several values."
        )
