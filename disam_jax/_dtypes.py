"""Numbers that come in: parameters and scalars as arrays, checks of their values, and the dtype in which to sum.

A value that is known is checked and an error names it. A value that is traced, or that a device is still computing, is
not known: where it is wrong, ``nan_unless`` puts NaN into what is computed from it, which costs one scalar operation.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = float(np.finfo(np.float32).max)


def accumulation_dtype(tree: Any) -> Any:
    """float64 when any leaf is, else float32: half-precision sums overflow and lose digits."""
    wide = any(leaf.dtype.itemsize > 4 for leaf in jax.tree.leaves(tree))
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def cast(x: jax.Array, dtype: Any) -> jax.Array:
    """``x.astype(dtype)``, at no cost where the dtype is that already."""
    return x if x.dtype == dtype else x.astype(dtype)


def like(x: jax.Array, w: jax.Array) -> jax.Array:
    """The array with the dtype and the weak type of w, so that it is promoted as w is."""
    x = cast(x, w.dtype)
    if not w.weak_type or x.weak_type:
        return x
    # The cotangent of a weakly typed number is one: jax has no other public way to make one from an array.
    return jax.linear_transpose(lambda weak: jax.lax.convert_element_type(weak, w.dtype), w)(x)[0]


def as_params(params: Any, name: str = "params") -> Any:
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


def check_scalar_type(name: str, value: Any, write: str) -> None:
    """A real number or a real scalar array; a boolean is neither."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number and not (hasattr(value, "dtype") and _is_real(value.dtype)):
        raise TypeError(
            f"{name} must be a real number or a scalar array of real numbers, got {value!r}. Write {write}."
        )
    if jnp.shape(value) != ():
        raise ValueError(
            f"{name} must be a scalar, got shape {jnp.shape(value)}. Write {write}; use jax.vmap for several values."
        )


def check_scalar(name: str, value: Any, write: str, *, negative: bool = False, wait: bool = True) -> None:
    """``check_scalar_type``, and for a known value that it is finite, in float32 too, and not negative."""
    check_scalar_type(name, value, write)
    found = value
    if hasattr(value, "dtype"):
        array = known(value, wait=wait)
        if array is None:
            return
        found = float(array)
    if not -LARGEST <= found <= LARGEST:
        raise ValueError(f"{name} must be a finite number, got {value}. Write {write}.")
    if found < 0 and not negative:
        raise ValueError(f"{name} must not be negative, got {value}. Write {write}.")


def scalar(value: Any, dtype: Any) -> jax.Array:
    """A number that ``check_scalar`` let pass, as an array."""
    return jnp.asarray(float(value) if isinstance(value, int) else value, dtype)


def not_negative(value: Any, dtype: Any) -> jax.Array:
    """``scalar``; a value that was not known when it was checked is NaN where it is negative or infinite."""
    x = scalar(value, dtype)
    return x * nan_unless((x >= 0) & (x <= LARGEST), dtype) if isinstance(value, jax.Array) else x


def nan_unless(condition: jax.Array, dtype: Any) -> jax.Array:
    """1 where the condition holds, else NaN: a factor, so that the gradient is NaN too.

    Nothing on the way is NaN or infinite where the condition holds, as ``jax_debug_nans`` and ``jax_debug_infs`` ask.
    """
    return jnp.sqrt(jnp.where(condition, 1, -1).astype(dtype))


def _is_real(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
