"""Types of the arguments and results that the functions of the core share.

Some are ``Any`` to a type checker, because a pytree may be of any registered class; the name says what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Literal, TypeAlias

import jax.typing
import numpy as np
import optax

Params: TypeAlias = Any  # pytree of floating-point arrays
Updates: TypeAlias = Any  # pytree like the parameters: a gradient, or what the optimizer is given
Examples: TypeAlias = Any  # pytree of arrays [M, n, ...] or [N, ...]
Aux: TypeAlias = Any  # what a loss function returns beside the losses
LossFn: TypeAlias = Callable[..., Any]  # (params, ...) -> losses, or (losses, aux)
GradFn: TypeAlias = Callable[..., Any]  # (params, ...) -> (loss, gradient), with extras beside the loss
ArgNums: TypeAlias = int | tuple[int, ...]  # positions of the parameters among the arguments, checked
Scalar: TypeAlias = jax.typing.ArrayLike  # real number or scalar array
Count: TypeAlias = int | np.integer | np.ndarray | jax.Array  # integer or scalar array of one
ScalarOrSchedule: TypeAlias = Scalar | optax.Schedule
Mask: TypeAlias = Any  # None, pytree of booleans (the parameters or a prefix of them), or a function that makes one
AxisName: TypeAlias = Hashable  # None, the name of a mapped axis, or a tuple of names
Penalty: TypeAlias = Literal["variance", "weighted_variance", "std"]
DomainGradients: TypeAlias = Literal["joint", "normalised", "own"]
