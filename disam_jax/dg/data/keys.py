"""Random keys: whatever a run draws comes from a key made of its seed, its target and the step, and of nothing else."""

import jax
import numpy as np


def run_key(seed: jax.Array | int, target: jax.Array | int) -> jax.Array:
    """The key of a run, made of its seed and its target alone, so that all methods share it.

    The generator is named, because jax's default can be changed and the numbers with it. From this key come the keys
    of all that is drawn. For a given key Threefry is a bijection, so different numbers folded in give different keys.

    Args:
        seed: int32 [], not negative.
        target: int32 [], index of the held-out domain.

    Returns:
        Key [].

    Example:
        >>> import jax.numpy as jnp
        >>> seeds, targets = jnp.arange(3), jnp.arange(4)
        >>> jax.vmap(jax.vmap(run_key, (0, None)), (None, 0))(seeds, targets).shape
        (4, 3)
    """
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), target)


def init_key(key: jax.Array) -> jax.Array:
    """The key of the initial weights; `key` is the run's.

    Example:
        >>> key = run_key(seed=0, target=1)
        >>> bool(init_key(key) == step_key(key, 0))
        False
    """
    # No step has this number: steps are int32 and count from 0.
    return jax.random.fold_in(key, np.uint32(2**32 - 1))


def start_key(key: jax.Array) -> jax.Array:
    """What a method draws before the first step, such as the weights of a second player; `key` is the run's.

    Example:
        >>> key = run_key(seed=0, target=1)
        >>> bool(start_key(key) == init_key(key))
        False
    """
    # No step has this number, and `init_key` has the other one.
    return jax.random.fold_in(key, np.uint32(2**32 - 2))


def step_key(key: jax.Array, step: jax.Array | int) -> jax.Array:
    """The key of a step, counted from 0; `key` is the run's.

    Example:
        >>> key = run_key(seed=0, target=1)
        >>> bool(step_key(key, 2) == step_key(key, 2)), bool(step_key(key, 2) == step_key(key, 3))
        (True, False)
    """
    return jax.random.fold_in(key, step)


def view_key(key: jax.Array, view: jax.Array | int, row: jax.Array | int) -> jax.Array:
    """The key of an augmented view of an image of a data set; `key` is that of all views, which all runs share.

    Example:
        >>> key = jax.random.key(0)
        >>> bool(view_key(key, 1, 5) == view_key(key, 5, 1))
        False
    """
    return jax.random.fold_in(jax.random.fold_in(key, view), row)


def rows_key(key: jax.Array) -> jax.Array:
    """What draws the rows of the batch; `key` is the step's.

    Example:
        >>> key = step_key(run_key(seed=0, target=1), 2)
        >>> bool(rows_key(key) == augmentation_key(key))
        False
    """
    return jax.random.fold_in(key, np.uint32(0))


def augmentation_key(key: jax.Array) -> jax.Array:
    """What draws the augmentation of the batch; `key` is the step's.

    Example:
        >>> key = step_key(run_key(seed=0, target=1), 2)
        >>> bool(augmentation_key(key) == dropout_key(key))
        False
    """
    return jax.random.fold_in(key, np.uint32(1))


def dropout_key(key: jax.Array) -> jax.Array:
    """What draws the dropout masks of both passes; `key` is the step's.

    Example:
        >>> key = step_key(run_key(seed=0, target=1), 2)
        >>> bool(dropout_key(key) == rows_key(key))
        False
    """
    return jax.random.fold_in(key, np.uint32(2))


def method_key(key: jax.Array) -> jax.Array:
    """What a method draws from, as Mixup does; `key` is the step's.

    Example:
        >>> key = step_key(run_key(seed=0, target=1), 2)
        >>> bool(method_key(key) == dropout_key(key))
        False
    """
    return jax.random.fold_in(key, np.uint32(3))
