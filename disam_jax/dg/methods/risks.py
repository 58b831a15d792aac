"""Methods of the distribution of risks: a quantile over the domains (EQRM), and their matching (RDM)."""

import jax
import jax.numpy as jnp
import optax

from disam_jax.dg.methods.alignment import mmd_matrix
from disam_jax.dg.methods.base import (
    Batch,
    HParams,
    Hyperparameter,
    Method,
    Outputs,
    count_steps,
    from_objective,
    restart_at,
)
from disam_jax.dg.methods.bottleneck import switched_on
from disam_jax.dg.methods.combinations import BOTH

# Halvings of the interval in which a quantile lies: more than a float32 has bits.
HALVINGS = 32
# Inverse squared widths of RDM's kernels, as in DomainBed.
RDM_WIDTHS = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


def kde_quantile(values: jax.Array, quantile: jax.Array) -> jax.Array:
    """The quantile q of a kernel density estimate: mean_i Phi((q - v_i) / h) = quantile.

    The bandwidth is h = 1.06 std M^(-1/5). The derivative is that of the equation, in which h depends on the values
    too; DomainBed differentiates the ends of its bisection instead.

    Args:
        values: float [M], M at least 2.
        quantile: In (0, 1), float [].

    Returns:
        float [].

    Example:
        >>> float(kde_quantile(jnp.array([1.0, 3.0]), jnp.float32(0.5)))
        2.0
    """
    variance = values.var(ddof=1)
    # Risks that are all the same have no bandwidth, and a root no slope there.
    width = 1.06 * jnp.sqrt(variance + 1e-12) * len(values) ** -0.2
    cdf = lambda q, values, width: jax.scipy.stats.norm.cdf((q - values) / width).mean()
    fixed, fixed_width = jax.lax.stop_gradient((values, width))
    shift = fixed_width * jax.scipy.stats.norm.ppf(quantile)

    def halve(ends: tuple[jax.Array, jax.Array], _: None):
        low, high = ends
        middle = 0.5 * (low + high)
        below = cdf(middle, fixed, fixed_width) < quantile
        return (jnp.where(below, middle, low), jnp.where(below, high, middle)), None

    ends = (fixed.min() + shift, fixed.max() + shift)
    (low, high), _ = jax.lax.scan(halve, ends, None, length=HALVINGS)
    found = jax.lax.stop_gradient(0.5 * (low + high))
    density = jax.scipy.stats.norm.pdf((found - fixed) / fixed_width).mean() / fixed_width
    # Newton's step from the root: nothing in value, and the derivative of the root.
    return found - (cdf(found, values, width) - quantile) / density


def eqrm(outputs: Outputs, batch: Batch, hparams: HParams, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Empirical quantile risk minimisation: `kde_quantile` of the domain losses, their mean before step burn_in.

    Example:
        >>> outputs = Outputs(jnp.array([1.0, 3.0]), logits=None, features=None, state={})
        >>> value, step = eqrm(outputs, None, {"quantile": jnp.float32(0.5), "burn_in": 0.0}, jnp.int32(0))
        >>> float(value), int(step)
        (2.0, 1)

    References:
        Eastwood et al., Probable Domain Generalization via Quantile Risk Minimization, NeurIPS 2022, algorithm 1.
    """
    del batch
    burning_in = step.astype(jnp.float32) < hparams["burn_in"]
    quantile = kde_quantile(outputs.losses, hparams["quantile"])
    return jnp.where(burning_in, outputs.losses.mean(), quantile), step + 1


def rdm(outputs: Outputs, batch: Batch, hparams: HParams, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Risk distribution matching: L_i + rdm_lambda * MMD^2(r_w, r) + variance_weight * (var r + var r_w).

    r are the losses of all examples and r_w those of the domain with the highest mean; both terms are `switched_on` at
    step rdm_anneal.

    Returns:
        Domain losses, float [M], and the number of steps.

    Example:
        >>> outputs = Outputs(jnp.zeros(2), logits=jnp.zeros((2, 2, 3)), features=None, state={})
        >>> batch = Batch(x=None, y=jnp.zeros((2, 2), jnp.int32), key=None)
        >>> hparams = {"rdm_lambda": 5.0, "variance_weight": 0.004, "rdm_anneal": 0.0}
        >>> rdm(outputs, batch, hparams, jnp.int32(0))[0].tolist()
        [0.0, 0.0]

    References:
        Nguyen et al., Domain Generalisation via Risk Distribution Matching, WACV 2024, as in DomainBed.
    """
    risks = optax.softmax_cross_entropy_with_integer_labels(outputs.logits, batch.y)
    number, size = risks.shape
    worst = jax.nn.one_hot(outputs.losses.argmax(), number, dtype=risks.dtype)
    of_worst = worst @ risks
    weights = jnp.stack([jnp.repeat(worst, size) / size, jnp.full(number * size, 1.0 / (number * size), risks.dtype)])
    every = risks.reshape(-1)
    matching = mmd_matrix(jnp.square(every[:, None] - every[None]), weights, RDM_WIDTHS)[0, 1]
    spread = risks.var(ddof=1) + of_worst.var(ddof=1)
    penalty = hparams["rdm_lambda"] * matching + hparams["variance_weight"] * spread
    return outputs.losses + switched_on(penalty, hparams["rdm_anneal"], step), step + 1


METHODS = {
    "EQRM": Method(
        from_objective(eqrm),
        {
            "quantile": Hyperparameter(0.75, 0.5, 0.99, uniform=True),
            "burn_in": Hyperparameter(2500.0, 2.5, 3.5, of_steps=True),
        },
        state=count_steps,
        restart=restart_at("burn_in"),
        note="a quantile of the domain losses",
        formula="q with mean_i Phi((q - L_i) / h) = quantile, h = 1.06 std(L) M^(-1/5); L before step burn_in",
        source="Eastwood et al., Probable Domain Generalization via Quantile Risk Minimization, NeurIPS 2022",
        needs=("domain labels",),
        min_sources=2,
        extra=True,
        sharpness=("SAM",),
    ),
    "RDM": Method(
        from_objective(rdm),
        {
            "rdm_lambda": Hyperparameter(5.0, 0.1, 10.0, uniform=True),
            "variance_weight": Hyperparameter(0.004, 0.001, 0.007, uniform=True),
            "rdm_anneal": Hyperparameter(1500.0, 800.0, 2700.0, of_steps=True, uniform=True),
        },
        state=count_steps,
        restart=restart_at("rdm_anneal"),
        min_per_domain=2,
        note="matching of the worst domain's risks with all risks",
        formula="L + rdm_lambda * MMD^2(r_worst, r) + variance_weight * (var r + var r_worst), from step rdm_anneal on",
        source="Nguyen et al., Domain Generalisation via Risk Distribution Matching, WACV 2024",
        needs=("domain labels",),
        min_sources=2,
        extra=True,
        sharpness=BOTH,
    ),
}
