"""ERM, the baseline of every comparison."""

import jax

from disam_jax.dg.methods.base import Batch, HParams, Method, MethodState, Outputs, from_objective


def mean_loss(outputs: Outputs, batch: Batch, hparams: HParams, state: MethodState) -> tuple[jax.Array, MethodState]:
    """Empirical risk minimisation: (1 / M) sum_i L_i.

    Example:
        >>> import jax.numpy as jnp
        >>> outputs = Outputs(jnp.array([1.0, 3.0]), logits=None, features=None, state={})
        >>> loss, _ = mean_loss(outputs, None, {}, ())
        >>> float(loss)
        2.0

    References:
        Vapnik, Statistical Learning Theory, Wiley 1998.
    """
    del batch, hparams
    return outputs.losses.mean(), state


METHODS = {
    "ERM": Method(
        from_objective(mean_loss),
        base=None,
        note="empirical risk minimisation",
        formula="L = mean_i L_i",
        source="Vapnik, Statistical Learning Theory, 1998",
    )
}
