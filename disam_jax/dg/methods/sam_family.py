"""Relatives of SAM: F-SAM, LookSAM, ESAM, AE-SAM, DGSAM and FAD, each also with the domain-inspired perturbation.

They carry a state from step to step, choose examples or steps, or look at more points than w and w + e, so none is a
`disam_jax.variants.Variant`. With a penalty, the ascent gradient is that of the domain weights b of DISAM, and the
gradient of the mean loss stays what a method descends on.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import log10
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

import disam_jax
from disam_jax._dtypes import like, nan_unless, widen
from disam_jax._types import Penalty
from disam_jax.dg.methods.base import (
    DOMAINBED_STEPS,
    Batch,
    Forward,
    HParams,
    Hyperparameter,
    Method,
    MethodState,
    Outputs,
    Start,
    no_state,
)
from disam_jax.dg.methods.sharpness_aware import LAM, RHO, SOURCE
from disam_jax.dg.models.network import Params, State
from disam_jax.dg.ranges import NOT_NEGATIVE, RANGES, check_range

# Gradient, state of the network, state of the method.
Step: TypeAlias = tuple[Params, State, MethodState]
# A forward pass on inputs that are settled.
At: TypeAlias = Callable[[Params], Outputs]


class FirstPass(NamedTuple):
    """What the pass at w gives.

    Attributes:
        mean: Gradient of the mean loss, in float32 or wider.
        ascent: Computes the ascent gradient: `mean` without a penalty; with one, a further backward pass.
        outputs: Outputs of the network.
    """

    mean: Params
    ascent: Callable[[], Params]
    outputs: Outputs


def first_pass(params: Params, forward: At, hparams: HParams, penalty: Penalty | None) -> FirstPass:
    """The gradients at w: (1 / M) sum_i grad L_i, and with a penalty sum_i b_i grad L_i too.

    Args:
        params: Parameters w.
        forward: Forward pass of the network.
        hparams: Hyperparameters of the run, lam among them if there is a penalty.
        penalty: Penalty of the domain weights b; None for the gradient of the mean loss alone.

    Returns:
        `FirstPass`.

    Example:
        >>> forward = lambda w: Outputs(w * jnp.array([1.0, 3.0]), logits=None, features=None, state={})
        >>> at_w = first_pass(jnp.float32(1.0), forward, {"lam": 0.125}, "variance")
        >>> float(at_w.mean), float(at_w.ascent())
        (2.0, 1.75)
    """

    def losses(params: Params) -> tuple[jax.Array, Outputs]:
        outputs = forward(params)
        return outputs.losses, outputs

    values, pull, outputs = jax.vjp(losses, params, has_aux=True)

    def gradient(weights: jax.Array) -> Params:
        return widen(pull(weights)[0])[0]

    mean = gradient(jnp.full_like(values, 1 / len(values)))

    def ascent() -> Params:
        return mean if penalty is None else gradient(disam_jax.domain_weights(values, hparams["lam"], penalty=penalty))

    return FirstPass(mean, ascent, outputs)


def mean_gradient(params: Params, forward: At) -> Params:
    """(1 / M) sum_i grad L_i, in float32 or wider.

    Example:
        >>> forward = lambda w: Outputs(w**2 * jnp.array([1.0, 3.0]), logits=None, features=None, state={})
        >>> float(mean_gradient(jnp.float32(1.5), forward))
        6.0
    """
    return widen(jax.grad(lambda params: forward(params).losses.mean())(params))[0]


def along(params: Params, direction: Params, length: jax.Array) -> Params:
    """The point w + length * d / ||d||, and w where d is 0.

    Example:
        >>> along(jnp.zeros(2), jnp.array([3.0, 4.0]), jnp.float32(5.0)).tolist()
        [3.0, 4.0]
    """
    norm = optax.tree.norm(direction)
    factor = jnp.where(norm == 0, 0, jnp.asarray(length, norm.dtype) / jnp.where(norm == 0, 1, norm))
    return jax.tree.map(lambda w, d: w + (factor.astype(d.dtype) * d).astype(w.dtype), params, direction)


def value_of(hparams: HParams, name: str) -> jax.Array:
    """A hyperparameter, which becomes NaN where a traced one is out of its range.

    Raises:
        InputError: If it is known before the trace and out of its range.

    Example:
        >>> float(value_of({"rho": 0.5}, "rho"))
        0.5
        >>> value_of({"delta": -0.5}, "delta")
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: hparams['delta'] must be in [0, 1), got -0.5
    """
    value = jnp.asarray(hparams[name], jnp.float32)
    if isinstance(value, jax.core.Tracer):
        least, most, _ = RANGES.get(name, NOT_NEGATIVE)
        return value * nan_unless((value >= least) & (value <= most))
    check_range(name, float(hparams[name]), f"hparams[{name!r}]")
    return value


def _mix(one: Params, factor: jax.Array | float, other: Params) -> Params:
    """One + factor * other, in the dtypes of the other."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype) + jnp.asarray(factor, y.dtype) * y, one, other)


def _wide_zeros(params: Params) -> Params:
    return jax.tree.map(jnp.zeros_like, widen(params)[0])


def no_gradient(start: Start) -> Params:
    """The initial state of a method that keeps a gradient: zeros like the parameters, in float32 or wider.

    Example:
        >>> no_gradient(Start(num_sources=3, params=jnp.ones(2, jnp.bfloat16)))
        Array([0., 0.], dtype=float32)
    """
    return _wide_zeros(start.params)


def friendly_sam(
    params: Params,
    batch: Batch,
    forward: Forward,
    hparams: HParams,
    average: MethodState,
    *,
    penalty: Penalty | None = None,
) -> Step:
    """F-SAM: perturb by what is new in the ascent gradient g, e = rho d / ||d|| with d = g - sigma m.

    m is the moving average of the ascent gradients before this step, m <- decay m + (1 - decay) g, which starts as the
    first of them; the first step is SAM's.

    Example:
        >>> forward = lambda w: Outputs(w**2 * jnp.array([1.0, 3.0]), logits=None, features=None, state={})
        >>> batch = Batch(x=None, y=None, key=None, step=1)
        >>> hparams = {"rho": 0.5, "sigma": 1.0, "decay": 0.75}
        >>> gradient, _, average = friendly_sam(jnp.float32(1.0), batch, forward, hparams, jnp.float32(8.0))
        >>> float(gradient), float(average)
        (2.0, 7.0)

    References:
        Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024, with the order of the updates as in its code.
    """
    at_w = first_pass(params, forward, hparams, penalty)
    ascent, first = at_w.ascent(), jnp.asarray(batch.step) == 0
    decay, sigma = value_of(hparams, "decay"), value_of(hparams, "sigma")
    kept = jnp.where(first, 0, decay)
    direction = _mix(ascent, -jnp.where(first, 0, sigma), average)
    average = jax.tree.map(lambda m, g: kept.astype(m.dtype) * m + (1 - kept).astype(m.dtype) * g, average, ascent)
    gradient = mean_gradient(along(params, direction, value_of(hparams, "rho")), forward)
    return like(gradient, params), at_w.outputs.state, average


def look_sam(every: int = 5) -> Callable[..., Step]:
    """LookSAM: the step of SAM every few steps; between them, the part of its gradient that g does not have.

    A step of SAM keeps v = h - <h, g> g / ||g||^2 of the gradients g at w and h at w + e. The others return
    g + alpha ||g|| v / ||v||, without a pass at w + e.

    Args:
        every: How many steps there are from one step of SAM to the next; the first step of all is one.

    Returns:
        For `Method.gradient`; it takes the keyword argument `penalty` too.

    Raises:
        ValueError: If `every` is no whole number of at least 1.

    Example:
        >>> forward = lambda w: Outputs(jnp.vdot(w, w)[None], logits=None, features=None, state={})
        >>> batch = Batch(x=None, y=None, key=None, step=1)
        >>> kept, hparams = jnp.array([0.0, 0.5]), {"rho": 0.1, "alpha": 0.5}
        >>> gradient, _, _ = look_sam(every=5)(jnp.array([1.0, 0.0]), batch, forward, hparams, kept)
        >>> gradient.tolist()
        [2.0, 1.0]

    References:
        Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization, CVPR 2022, algorithm 1.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a whole number of at least 1, got {every!r}: write look_sam(every=5)")

    def gradient(
        params: Params,
        batch: Batch,
        forward: Forward,
        hparams: HParams,
        kept: MethodState,
        *,
        penalty: Penalty | None = None,
    ) -> Step:
        at_w = first_pass(params, forward, hparams, penalty)
        rho, alpha = value_of(hparams, "rho"), value_of(hparams, "alpha")

        def sam() -> tuple[Params, Params]:
            h = mean_gradient(along(params, at_w.ascent(), rho), forward)
            square = optax.tree.norm(at_w.mean, squared=True)
            share = jnp.where(square == 0, 0, optax.tree.vdot(h, at_w.mean) / jnp.where(square == 0, 1, square))
            return h, _mix(h, -share, at_w.mean)

        def reuse() -> tuple[Params, Params]:
            norm = optax.tree.norm(at_w.mean)
            return along(at_w.mean, kept, alpha.astype(norm.dtype) * norm), kept

        found, kept = jax.lax.cond(jnp.asarray(batch.step) % every == 0, sam, reuse)
        return like(found, params), at_w.outputs.state, kept

    return gradient


def efficient_sam(fraction: float = 0.5) -> Callable[..., Step]:
    """ESAM: perturb some of the weights, then descend on the examples whose loss rises most.

    e = (rho / esam_beta) z g / ||g|| with z_j ~ Bernoulli(esam_beta) for each weight, and the gradient at w + e is that
    of the `fraction` of the batch with the largest L(w + e) - L(w), whatever their domains.
    Drawing weights saves no work here: a compiled program has the gradient of all of them.

    Args:
        fraction: Share of the examples in the second backward pass, in (0, 1]: gamma of the paper.

    Returns:
        For `Method.gradient`; it takes the keyword argument `penalty` too.

    Raises:
        ValueError: If `fraction` is not in (0, 1].

    Example:
        >>> at = lambda w, x: Outputs((w * x).mean(1), logits=w * x[..., None] * jnp.array([0.0, 1.0]), features=None,
        ...                           state={})
        >>> batch = Batch(jnp.array([[1.0], [3.0]]), jnp.zeros((2, 1), jnp.int32), jax.random.key(0))
        >>> forward = lambda w, x=batch.x, y=batch.y: at(w, x)
        >>> hparams = {"rho": 0.5, "esam_beta": 1.0}
        >>> gradient, _, _ = efficient_sam(0.5)(jnp.float32(1.0), batch, forward, hparams, ())
        >>> float(gradient)
        3.0

    References:
        Du et al., Efficient Sharpness-aware Minimization for Improved Training of Neural Networks, ICLR 2022.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction!r}: write efficient_sam(fraction=0.5)")

    def gradient(
        params: Params,
        batch: Batch,
        forward: Forward,
        hparams: HParams,
        state: MethodState,
        *,
        penalty: Penalty | None = None,
    ) -> Step:
        at_w = first_pass(params, forward, hparams, penalty)
        beta = value_of(hparams, "esam_beta")
        moved = along(params, at_w.ascent(), value_of(hparams, "rho") / beta)
        at_perturbed = jax.tree.map(jnp.where, random_weights(batch.key, params, beta), moved, params)
        rise = _example_losses(forward(at_perturbed), batch) - _example_losses(at_w.outputs, batch)
        _, chosen = jax.lax.top_k(rise.reshape(-1), max(1, int(fraction * rise.size)))
        taken = lambda values: values.reshape(rise.size, *values.shape[2:])[chosen][None]
        selected = lambda params: forward(params, taken(batch.x), taken(batch.y))
        return like(mean_gradient(at_perturbed, selected), params), at_w.outputs.state, state

    return gradient


def random_weights(key: jax.Array, params: Params, share: jax.Array) -> Params:
    """Which weights are perturbed: each with a probability, independently. Booleans like the parameters.

    Example:
        >>> bool(random_weights(jax.random.key(0), jnp.zeros(1000), jnp.float32(1.0)).all())
        True
    """
    keys = optax.tree.split_key_like(key, params)
    return jax.tree.map(lambda key, w: jax.random.bernoulli(key, share, w.shape), keys, params)


def _example_losses(outputs: Outputs, batch: Batch) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(outputs.logits, batch.y)


def gated_sam(
    params: Params,
    batch: Batch,
    forward: Forward,
    hparams: HParams,
    state: MethodState,
    *,
    penalty: Penalty | None = None,
) -> Step:
    """AE-SAM: the step of SAM where the gradient g at w is long, a plain step elsewhere.

    With s = ||g||^2, mu <- delta mu + (1 - delta) s and sigma^2 <- delta sigma^2 + (1 - delta) (s - mu)^2, the step is
    SAM's where s >= mu + c sigma. c falls from gate to -gate over `gate_steps` steps. Where the steps of one run are
    computed alone, a plain step costs what it does elsewhere; runs that train side by side compute both.

    Example:
        >>> forward = lambda w: Outputs(w**2 * jnp.array([1.0, 3.0]), logits=None, features=None, state={})
        >>> batch = Batch(x=None, y=None, key=None, step=50)
        >>> hparams = {"rho": 0.5, "delta": 0.75, "gate": 1.0, "gate_steps": 100.0}
        >>> state = {"mean": jnp.float32(32.0), "variance": jnp.float32(0.0)}
        >>> gradient, _, state = gated_sam(jnp.float32(1.0), batch, forward, hparams, state)
        >>> float(gradient), float(state["mean"]), float(state["variance"])
        (4.0, 28.0, 36.0)

    References:
        Jiang et al., An Adaptive Policy to Employ Sharpness-Aware Minimization, ICLR 2023, with lambda_2 = -lambda_1.
    """
    at_w = first_pass(params, forward, hparams, penalty)
    rho, delta, gate = (value_of(hparams, name) for name in ("rho", "delta", "gate"))
    square = optax.tree.norm(at_w.mean, squared=True).astype(jnp.float32)
    mean = delta * state["mean"] + (1 - delta) * square
    variance = delta * state["variance"] + (1 - delta) * jnp.square(square - mean)
    c = gate * (1 - 2 * jnp.asarray(batch.step, jnp.float32) / value_of(hparams, "gate_steps"))
    gradient = jax.lax.cond(
        square >= mean + c * jnp.sqrt(variance),
        lambda: mean_gradient(along(params, at_w.ascent(), rho), forward),
        lambda: at_w.mean,
    )
    return like(gradient, params), at_w.outputs.state, {"mean": mean, "variance": variance}


def no_moments(num_sources: int) -> MethodState:
    """The state of `gated_sam` before the first step: mean and variance 0.

    Example:
        >>> {name: float(value) for name, value in no_moments(3).items()}
        {'mean': 0.0, 'variance': 0.0}
    """
    del num_sources
    return {"mean": jnp.zeros((), jnp.float32), "variance": jnp.zeros((), jnp.float32)}


def random_order(key: jax.Array, number: int) -> jax.Array:
    """The domains in random order, int32 [M].

    Example:
        >>> sorted(random_order(jax.random.key(0), 3).tolist())
        [0, 1, 2]
    """
    return jax.random.permutation(key, jnp.arange(number, dtype=jnp.int32))


def gradual_sam(
    params: Params,
    batch: Batch,
    forward: Forward,
    hparams: HParams,
    state: MethodState,
    *,
    penalty: Penalty | None = None,
) -> Step:
    """DGSAM: the domains, in random order, perturb one after the other, and their gradients on the way are used.

    w_0 = w, w_j = w_{j-1} + rho g_j / ||g_j|| with g_j = grad L_{o(j)}(w_{j-1}), and the result is the mean of
    g_2, ..., g_M and grad L_{o(1)}(w_M): M + 1 gradients of a domain, where SAM has 2 M. With a penalty, each domain's
    perturbation is M b_i times as long, which takes the losses of all domains at w.

    BatchNorm normalises each domain by itself, and dropout has the same masks for each.

    Example:
        >>> at = lambda w, x: Outputs((w**2 * x).sum(1), logits=None, features=None, state={})
        >>> batch = Batch(jnp.ones((2, 1)), jnp.zeros((2, 1), jnp.int32), jax.random.key(0))
        >>> forward = lambda w, x=batch.x, y=batch.y: at(w, x)
        >>> gradient, _, _ = gradual_sam(jnp.float32(1.0), batch, forward, {"rho": 0.5}, ())
        >>> float(gradient)
        3.5

    References:
        Song et al., Decreased-overhead Gradual SAM (arXiv 2503.23430), 2025, algorithm 1.
    """
    domains = len(batch.x)
    order, at_w, rho = random_order(batch.key, domains), forward(params), value_of(hparams, "rho")
    radii = jnp.full_like(at_w.losses, 1)
    if penalty is not None:
        radii = domains * disam_jax.domain_weights(at_w.losses, hparams["lam"], penalty=penalty)
    radii = rho.astype(radii.dtype) * radii

    def of_domain(params: Params, place: int) -> Params:
        domain = order[place]
        return mean_gradient(params, lambda params: forward(params, batch.x[domain][None], batch.y[domain][None]))

    at, total = params, _wide_zeros(params)
    for place in range(domains):
        g = of_domain(at, place)
        total = total if place == 0 else _mix(total, 1, g)
        at = along(at, g, radii[order[place]])
    total = _mix(total, 1, of_domain(at, 0))
    return like(jax.tree.map(lambda t: t / domains, total), params), at_w.state, state


def flatness_aware(
    params: Params,
    batch: Batch,
    forward: Forward,
    hparams: HParams,
    state: MethodState,
    *,
    penalty: Penalty | None = None,
) -> Step:
    """FAD: descend on L + fad_beta (fad_alpha R0 + (1 - fad_alpha) R1), flatness of order zero and one.

    R0 is the rise of the loss and R1 rho times the largest norm of the gradient within rho of w. With
    r(v) = grad L(v + rho g / ||g||) - grad L(v), g the ascent gradient at v, their gradients are r(w) and, by a
    difference quotient, r(w + rho r(w) / ||r(w)||): four gradients and no Hessian. fad_alpha = fad_beta = 1 is SAM;
    fad_alpha = 0 leaves the flatness of order one, that of GAM.

    Example:
        >>> forward = lambda w: Outputs(w**2 * jnp.array([1.0, 3.0]), logits=None, features=None, state={})
        >>> hparams = {"rho": 0.5, "fad_alpha": 0.5, "fad_beta": 1.0}
        >>> gradient, _, _ = flatness_aware(jnp.float32(1.0), None, forward, hparams, ())
        >>> float(gradient)
        6.0

    References:
        Zhang et al., Flatness-Aware Minimization for Domain Generalization, ICCV 2023; the difference quotient as in
        Zhang et al., Gradient Norm Aware Minimization Seeks First-Order Flatness, CVPR 2023, appendix D.
    """
    del batch
    rho, alpha, beta = (value_of(hparams, name) for name in ("rho", "fad_alpha", "fad_beta"))

    def rise(at: Params) -> tuple[FirstPass, Params]:
        found = first_pass(at, forward, hparams, penalty)
        return found, _mix(mean_gradient(along(at, found.ascent(), rho), forward), -1, found.mean)

    at_w, zeroth = rise(params)
    _, first = rise(along(params, zeroth, rho))
    gradient = _mix(_mix(at_w.mean, beta * alpha, zeroth), beta * (1 - alpha), first)
    return like(gradient, params), at_w.outputs.state, state


# The ranges are ours. Defaults of F-SAM: those of the released code, whose scripts have decays of 0.6 to 0.95.
FRIENDLY = {"sigma": Hyperparameter(1.0, -1.0, 0.0), "decay": Hyperparameter(0.9, -0.22, -0.02)}
LOOK = {"alpha": Hyperparameter(0.7, -0.3, 0.0)}
# The released scripts have 0.5 and 0.6.
EFFICIENT = {"esam_beta": Hyperparameter(0.6, -0.3, 0.0)}
GATED = {
    "delta": Hyperparameter(0.9, -0.3, -0.02),
    "gate": Hyperparameter(1.0, -1.0, 0.5),
    # All steps of a run, whatever is drawn.
    "gate_steps": Hyperparameter(DOMAINBED_STEPS, log10(DOMAINBED_STEPS), log10(DOMAINBED_STEPS), of_steps=True),
}
# The defaults are ours too.
FLAT = {"fad_alpha": Hyperparameter(0.5, -1.0, 0.0), "fad_beta": Hyperparameter(1.0, -1.0, 0.0)}


class Relative(NamedTuple):
    """A relative of SAM, from which two methods are made: X and X+DISAM.

    Attributes:
        gradient: As `Method.gradient`, with the keyword argument `penalty` too.
        hparams: Hyperparameters beside rho.
        note: One line for the list of methods.
        state: As of `Method`.
        init: As of `Method`.
        formula: As of `Method`.
        source: As of `Method`.
        cost: As of `Method`, without a penalty.
        inspired_cost: With one.
    """

    gradient: Callable[..., Step]
    hparams: Mapping[str, Hyperparameter]
    note: str
    state: Callable[[int], MethodState] = no_state
    init: Callable[[Start], MethodState] | None = None
    formula: str = ""
    source: str = ""
    cost: float = 2.0
    inspired_cost: float = 8 / 3


RELATIVES: Mapping[str, Relative] = {
    "F-SAM": Relative(
        friendly_sam,
        FRIENDLY,
        "SAM that perturbs by what is new in the gradient, without its moving average",
        init=no_gradient,
        formula="grad L(w + e), e = rho d / norm(d), d = g - sigma m, m <- decay m + (1 - decay) g",
        source="Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024",
        inspired_cost=2.0,
    ),
    "LookSAM": Relative(
        look_sam(every=5),
        LOOK,
        "SAM at every fifth step, part of whose gradient is used again at the others",
        init=no_gradient,
        formula="h = grad L(w + e) at every fifth step; else g + alpha norm(g) v, v the direction of h's part "
        "orthogonal to g",
        source="Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization, CVPR 2022",
    ),
    "ESAM": Relative(
        efficient_sam(fraction=0.5),
        EFFICIENT,
        "SAM on some of the weights and on the half of the examples whose loss rises most",
        formula="grad L(w + e) of half the examples, e on a share esam_beta of the weights, divided by it",
        source="Du et al., Efficient Sharpness-aware Minimization for Improved Training of Neural Networks, ICLR 2022",
        cost=11 / 6,
        inspired_cost=11 / 6,
    ),
    "AE-SAM": Relative(
        gated_sam,
        GATED,
        "SAM at the steps whose gradient is long",
        state=no_moments,
        formula="grad L(w + e) where norm(g)^2 is above its moving mean by a multiple of its deviation, else g",
        source="Jiang et al., An Adaptive Policy to Employ Sharpness-Aware Minimization, ICLR 2023",
    ),
    "DGSAM": Relative(
        gradual_sam,
        {},
        "perturbs along one domain after the other and uses their gradients",
        formula="1 / M sum of grad L_i(w_i) but the first, w_(i+1) = w_i + rho grad L_i(w_i) / norm, domains in random "
        "order, then the first again",
        source="Song et al., Decreased-overhead Gradual SAM, 2025",
        cost=4 / 3,
        inspired_cost=5 / 3,
    ),
    "FAD": Relative(
        flatness_aware,
        FLAT,
        "flatness of the loss and of the norm of its gradient",
        formula="g + fad_beta (fad_alpha r(w) + (1 - fad_alpha) r(w + rho r / norm(r))), "
        "r(v) = grad L(v + rho g / norm(g)) - grad L(v)",
        source="Zhang et al., Flatness-Aware Minimization for Domain Generalization, ICCV 2023",
        cost=4.0,
        inspired_cost=4.0 + 4 / 3,
    ),
}


def _methods(name: str, relative: Relative) -> dict[str, Method]:
    hparams, states = {**RHO, **relative.hparams}, {"state": relative.state, "init": relative.init}
    inspired = functools.partial(relative.gradient, penalty="variance")
    note = f"{name} with the domain-inspired perturbation, penalty variance"
    plain = Method(
        relative.gradient,
        hparams,
        base="SAM",
        note=relative.note,
        extra=True,
        formula=relative.formula,
        source=relative.source,
        needs=("domain labels",) if name == "DGSAM" else (),
        cost=relative.cost,
        **states,
    )
    with_penalty = replace(
        plain,
        gradient=inspired,
        hparams={**hparams, **LAM["variance"]},
        base=name,
        note=note,
        formula=f"as {name}, with the ascent gradient of DISAM",
        source=f"{SOURCE}; {relative.source}",
        needs=("domain labels",),
        cost=relative.inspired_cost,
    )
    return {name: plain, f"{name}+DISAM": with_penalty}


METHODS = {method: entry for name, relative in RELATIVES.items() for method, entry in _methods(name, relative).items()}
