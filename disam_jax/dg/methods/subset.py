"""A method that perturbs from some step on, on a fraction of the examples: what `--begin` and `--fraction` do to it."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax import split_examples
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods.base import Batch, Forward, HParams, Method, MethodState, Outputs, method_gradient
from disam_jax.dg.methods.registry import METHODS
from disam_jax.dg.models.network import Params, State

Found: TypeAlias = tuple[Params, State, MethodState]


def unperturbed(method: Method, methods: Mapping[str, Method] = METHODS) -> Method:
    """What a method is without its perturbation: the first of its bases that has no rho.

    Args:
        method: Method.
        methods: Where bases are looked up.

    Raises:
        InputError: If a base is missing.

    Example:
        >>> unperturbed(METHODS["CORAL+DISAM"]) is METHODS["CORAL"], unperturbed(METHODS["DISAM"]) is METHODS["ERM"]
        (True, True)
    """
    while "rho" in method.hparams:
        if method.base not in methods:
            raise InputError(
                "--fraction and --begin need the method without its perturbation, and the base of one that has rho is "
                f"{method.base}: give its Method the base that has no rho, one of {', '.join(methods)}"
            )
        method = methods[method.base]
    return method


def check_subset(name: str, method: Method, per_domain: int, fraction: float) -> None:
    """Checks that both sides of a batch have as many examples of each domain as a method needs.

    Raises:
        InputError: If one of them has fewer, or the method has a rho and no base without one.

    Example:
        >>> check_subset("CORAL+DISAM", METHODS["CORAL+DISAM"], per_domain=16, fraction=0.1)
        >>> check_subset("CORAL+DISAM", METHODS["CORAL+DISAM"], per_domain=16, fraction=0.05)
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: --fraction 0.05 of 16 --per-domain leaves 1 and 15 examples of each domain, ...
    """
    least = unperturbed(method).min_per_domain
    subset, rest = (side.shape[1] for side in split_examples(np.empty((1, per_domain)), fraction))
    if subset < least or 0 < rest < least:
        raise InputError(
            f"--fraction {fraction:g} of {per_domain} --per-domain leaves {subset} and {rest} examples of each domain, "
            f"and {name} needs {least} on both sides: take {least / per_domain:g} or more"
        )


def on_subset(
    method: Method,
    plain: Method,
    params: Params,
    batch: Batch,
    forward: Forward,
    hparams: HParams,
    state: MethodState,
    *,
    step: jax.Array,
    fraction: float,
    begin: int,
) -> Found:
    """The gradient of `disam_jax.subset_value_and_grad`, for any method with a perturbation.

    Before `begin` that of `plain` on the whole batch; from then on f of it is the method's, on a fraction f of each
    domain's examples, and 1 - f that of `plain` on the others: 1 + f plain steps. What the network keeps is that of the
    larger side, and what the method keeps is its own.

    Args:
        method: Method with a perturbation.
        plain: The same without it, see `unperturbed`.
        params: As of `method_gradient`.
        batch: As of `method_gradient`.
        forward: As of `method_gradient`.
        hparams: As of `method_gradient`.
        state: As of `method_gradient`.
        step: Number of the step, counted from 0, int32 [].
        fraction: Share of each domain's examples, in (0, 1].
        begin: First step with a perturbation.

    Returns:
        Gradient, state of the network, new state of the method.
    """
    # A method with a state counts the steps from its own first one.
    on = _on_examples(params, batch._replace(step=step - begin), forward, hparams, state)
    examples = batch.x, batch.y

    def perturbed() -> Found:
        if fraction == 1.0:
            return on(method, *examples)
        subset, rest = split_examples(examples, fraction)
        taken, number = subset[1].shape[1], batch.y.shape[1]
        inside, state_of_subset, method_state = on(method, *subset)
        if taken == number:
            return inside, state_of_subset, method_state
        outside, state_of_rest, _ = on(plain, *rest)
        share = taken / number
        grads = jax.tree.map(lambda g, h: share * g + (1.0 - share) * h, inside, outside)
        return grads, state_of_subset if 2 * taken > number else state_of_rest, method_state

    if begin == 0:
        return perturbed()
    return jax.lax.cond(step < jnp.int32(begin), lambda: on(plain, *examples), perturbed)


def _on_examples(
    params: Params, batch: Batch, forward: Forward, hparams: HParams, state: MethodState
) -> Callable[[Method, jax.Array, jax.Array], Found]:
    """A function from a method and examples to its gradient on these."""

    def on(method: Method, inputs: jax.Array, labels: jax.Array) -> Found:
        def of_these(params: Params, x: jax.Array | None = None, y: jax.Array | None = None) -> Outputs:
            return forward(params, inputs if x is None else x, labels if y is None else y)

        return method_gradient(method, params, batch._replace(x=inputs, y=labels), of_these, hparams, state)

    return on
