"""The methods that are compared, each a few lines over the public API or Optax.

A method turns the clean pass of a batch into a gradient. To add one, write such a function and give it a name in
`METHODS`; everything else (pairing, search, sweeps, report, command line) follows from that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import disam_jax
from disam_jax.dg.errors import InputError
from disam_jax.dg.models.network import Params, State

DOMAINBED_STEPS = 5000
Hyper = Mapping[str, jax.Array]
Memory = Any


class Outputs(NamedTuple):
    """What a network makes of the batch of one step, M source domains with n examples each.

    Attributes:
        losses: float32 [M], mean cross-entropy of each domain.
        features: float32 [M, n, F], what the last layer sees.
        state: running statistics of the network after this batch.
    """

    losses: jax.Array
    features: jax.Array
    state: State


Forward = Callable[[Params], Outputs]
# (parameters, forward, hyperparameters, memory) -> (gradient, the network's state, memory)
Gradient = Callable[[Params, Forward, Hyper, Memory], tuple[Params, State, Memory]]
# hyperparameters -> further options of `disam_jax.value_and_grad`
Ascent = Callable[[Hyper], Mapping[str, Any]]


class Hyperparameter(NamedTuple):
    """A number that a method depends on, and where to search for it.

    Attributes:
        default: used unless the data set's defaults have a value of this name.
        low: 10 to this power is the lower end of the log-uniform range of random search.
        high: 10 to this power is its upper end.
        times: factor on the value that a data set's defaults give, for a method that measures it in another unit.
        relative: whether the range is one of factors on the default, not of values.
        of_steps: whether it counts optimizer steps, out of the 5000 for which DomainBed's values are meant.
    """

    default: float
    low: float
    high: float
    times: float = 1.0
    relative: bool = False
    of_steps: bool = False

    def value(self, defaults: Mapping[str, float], name: str) -> float:
        """The default on a data set."""
        return self._scaled(defaults[name] * self.times if name in defaults else self.default, defaults)

    def _scaled(self, value: float, defaults: Mapping[str, float]) -> float:
        return value * defaults["steps"] / DOMAINBED_STEPS if self.of_steps else value

    def draw(self, uniform: float, defaults: Mapping[str, float], name: str) -> float:
        """A value from the range of random search.

        Example:
            >>> Hyperparameter(1.0, low=-1.0, high=1.0).draw(0.5, {}, "gamma")
            1.0
        """
        factor = 10.0 ** (self.low + uniform * (self.high - self.low))
        value = self.value(defaults, name)
        # The sign is the method's, as of a control with lam < 0.
        return value * factor if self.relative else float(np.copysign(self._scaled(factor, defaults), value))


def no_options(hyper: Hyper) -> Mapping[str, Any]:
    """No further options: the perturbation of SAM, or of DISAM with the variance penalty.

    Example:
        >>> no_options({"rho": jnp.float32(0.1)})
        {}
    """
    del hyper
    return {}


def _no_memory(num_sources: int) -> Memory:
    del num_sources
    return ()


@dataclass(frozen=True)
class Method:
    """A way to compute the gradient.

    Attributes:
        gradient: see `Gradient`.
        hyper: its hyperparameters beside the optimizer's.
        base: the method that it is compared with first; None for the baseline of all.
        memory: number of source domains -> what is carried from step to step.
        ascent: hyperparameters -> options of `disam_jax.value_and_grad` with which w + e is measured.
        control: whether it has the wrong sign on purpose.
        tuned: whether its hyperparameters are searched for.
        note: one line for the list of methods.
    """

    gradient: Gradient
    hyper: Mapping[str, Hyperparameter] = field(default_factory=dict)
    base: str | None = "ERM"
    memory: Callable[[int], Memory] = _no_memory
    ascent: Ascent = no_options
    control: bool = False
    tuned: bool = True
    note: str = ""


def stay(params: Params, forward: Forward, hyper: Hyper, memory: Memory) -> tuple[Params, State, Memory]:
    """No step at all: for a network that is measured as it is.

    Example:
        >>> forward = lambda w: Outputs(w * jnp.array([1.0, 3.0]), jnp.zeros((2, 1, 1)), state={})
        >>> gradient, state, memory = stay(jnp.float32(2.0), forward, {}, memory=())
        >>> float(gradient)
        0.0
    """
    del hyper
    return jax.tree.map(jnp.zeros_like, params), forward(params).state, memory


# Not among `METHODS`: it has a network of its own, see `tuning`.
ZERO_SHOT = "Zero-shot"
zero_shot = Method(stay, tuned=False, note="CLIP as it is, classes told apart by sentences")


# Two ways to a gradient: at w, or at w + e.


def descend(objective: Callable[[Outputs, Hyper, Memory], tuple[jax.Array, Memory]]) -> Gradient:
    """The gradient at w of an objective of the clean pass.

    Args:
        objective: (clean pass, hyperparameters, memory) -> (scalar, memory).

    Returns:
        For `Method.gradient`.

    Example:
        >>> forward = lambda w: Outputs(w * jnp.array([1.0, 3.0]), jnp.zeros((2, 1, 1)), state={})
        >>> gradient, state, memory = descend(mean_loss)(jnp.float32(5.0), forward, {}, ())
        >>> float(gradient)
        2.0
    """

    def gradient(params: Params, forward: Forward, hyper: Hyper, memory: Memory):
        def loss(params):
            seen = forward(params)
            value, new_memory = objective(seen, hyper, memory)
            return value, (seen.state, new_memory)

        grads, (state, new_memory) = jax.grad(loss, has_aux=True)(params)
        return grads, state, new_memory

    return gradient


def perturb(ascent: Ascent = no_options, losses: Callable[[Outputs, Hyper], jax.Array] | None = None) -> Gradient:
    """The gradient at w + e, by `disam_jax.value_and_grad` with the hyperparameters rho and lam (0 if it has none).

    Args:
        ascent: hyperparameters -> further options: `adaptive`, `penalty`, `variant`.
        losses: (clean pass, hyperparameters) -> domain losses [M]; their cross-entropy by default.

    Returns:
        For `Method.gradient`.

    Example:
        >>> forward = lambda w: Outputs(w**2 * jnp.array([1.0, 3.0]), jnp.zeros((2, 1, 1)), state={})
        >>> gradient, state, memory = perturb()(jnp.float32(1.0), forward, {"rho": 0.5}, ())
        >>> float(gradient)
        6.0
    """

    def gradient(params: Params, forward: Forward, hyper: Hyper, memory: Memory):
        def domain_losses(params):
            seen = forward(params)
            return seen.losses if losses is None else losses(seen, hyper), seen.state

        lam = hyper.get("lam", 0.0)
        both = disam_jax.value_and_grad(domain_losses, hyper["rho"], lam, has_aux=True, **ascent(hyper))
        (_, state), grads = both(params)
        return grads, state, memory

    return gradient


# Objectives.


def mean_loss(seen: Outputs, hyper: Hyper, memory: Memory) -> tuple[jax.Array, Memory]:
    """Empirical risk minimisation: (1 / M) sum_i L_i.

    Example:
        >>> loss, memory = mean_loss(Outputs(jnp.array([1.0, 3.0]), features=None, state={}), {}, memory=())
        >>> float(loss)
        2.0
    """
    del hyper
    return seen.losses.mean(), memory


def vrex(seen: Outputs, hyper: Hyper, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Risk extrapolation: mean_i L_i + beta * mean_i (L_i - mean L)^2, with beta = 1 for the first `anneal` steps.

    Example:
        >>> seen = Outputs(jnp.array([1.0, 3.0]), features=None, state={})
        >>> loss, step = vrex(seen, {"beta": 10.0, "anneal": 5.0}, jnp.int32(5))
        >>> float(loss), int(step)
        (12.0, 6)

    References:
        Krueger et al., Out-of-Distribution Generalization via Risk Extrapolation, ICML 2021.
    """
    beta = jnp.where(step.astype(jnp.float32) < hyper["anneal"], 1.0, hyper["beta"])
    return seen.losses.mean() + beta * seen.losses.var(), step + 1


def group_dro(seen: Outputs, hyper: Hyper, shares: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Distributionally robust optimisation over groups: sum_i q_i L_i with q_i <- q_i exp(eta L_i) / sum_j (...).

    Example:
        >>> seen = Outputs(jnp.log(jnp.array([1.0, 3.0])), features=None, state={})
        >>> loss, shares = group_dro(seen, {"eta": 1.0}, jnp.array([0.5, 0.5]))
        >>> [round(share, 3) for share in shares.tolist()]
        [0.25, 0.75]

    References:
        Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, ICLR 2020.
    """
    # A softmax of logarithms, so that no loss is large enough to overflow.
    shares = jax.nn.softmax(jnp.log(shares) + hyper["eta"] * jax.lax.stop_gradient(seen.losses))
    return jnp.dot(shares, seen.losses), shares


def coral_penalty(features: jax.Array) -> jax.Array:
    """Correlation alignment: how far means and covariances of the domains' features are from each other.

    The mean over pairs of domains of mean((mu_i - mu_j)^2) + mean((C_i - C_j)^2).

    Args:
        features: float [M, n, F], n > 1.

    Returns:
        float [].

    Example:
        >>> float(coral_penalty(jnp.array([[[0.0], [2.0]], [[1.0], [3.0]]])))
        1.0

    References:
        Sun and Saenko, Deep CORAL, ECCV workshops 2016; with the means as in DomainBed.
    """
    number, size = features.shape[:2]
    if number < 2:
        return jnp.zeros((), features.dtype)
    means = features.mean(1)
    centred = features - means[:, None]
    covariances = jnp.einsum("mni,mnj->mij", centred, centred) / (size - 1)
    first, second = np.triu_indices(number, 1)
    apart = lambda values: jnp.square(values[first] - values[second]).mean()
    return apart(means) + apart(covariances)


def coral(seen: Outputs, hyper: Hyper) -> jax.Array:
    """Domain losses L_i + gamma * `coral_penalty`: a term common to all domains, which no spread of them feels.

    Example:
        >>> seen = Outputs(jnp.array([1.0, 2.0]), jnp.array([[[0.0], [2.0]], [[1.0], [3.0]]]), state={})
        >>> coral(seen, {"gamma": 0.5}).tolist()
        [1.5, 2.5]
    """
    return seen.losses + hyper["gamma"] * coral_penalty(seen.features)


def mean_coral(seen: Outputs, hyper: Hyper, memory: Memory) -> tuple[jax.Array, Memory]:
    """The mean of `coral`: mean_i L_i + gamma * penalty.

    Example:
        >>> seen = Outputs(jnp.array([1.0, 2.0]), jnp.array([[[0.0], [2.0]], [[1.0], [3.0]]]), state={})
        >>> loss, memory = mean_coral(seen, {"gamma": 0.5}, memory=())
        >>> float(loss)
        2.0
    """
    return coral(seen, hyper).mean(), memory


# Hyperparameters. The ranges of eta, gamma, beta and anneal are DomainBed's; those of rho, lam and alpha are ours.

RHO = {"rho": Hyperparameter(0.05, -1.0, 0.5, relative=True)}
# ASAM measures e relative to the weights; its authors use ten times SAM's rho.
ADAPTIVE_RHO = {"rho": Hyperparameter(0.5, -1.0, 0.5, times=10.0, relative=True)}
GSAM_ALPHA = {"alpha": Hyperparameter(0.4, -1.0, 0.0)}
SAGM_ALPHA = {"alpha": Hyperparameter(0.001, -4.0, -2.0)}
GAMMA = {"gamma": Hyperparameter(1.0, -1.0, 1.0)}
BETA = {"beta": Hyperparameter(10.0, -1.0, 5.0), "anneal": Hyperparameter(500.0, 0.0, 4.0, of_steps=True)}
ETA = {"eta": Hyperparameter(0.01, -3.0, -1.0)}
LAM = {
    "variance": {"lam": Hyperparameter(1.0, -1.0, 1.0)},
    # Below 1 / sqrt(M - 1), so that no domain of M <= 4 sources gets a negative weight.
    "std": {"lam": Hyperparameter(0.4, -1.0, -0.25)},
}
WRONG_SIGN = {
    penalty: {"lam": each["lam"]._replace(default=-each["lam"].default, times=-1.0)} for penalty, each in LAM.items()
}


def _options(adaptive: bool, variant: Callable[..., Any] | None, penalty: str | None) -> Ascent:
    def ascent(hyper: Hyper) -> Mapping[str, Any]:
        if variant is None:
            of = None
        elif penalty is None:
            of = variant(hyper["alpha"])
        else:
            # What is handed over takes the gradient of the mean loss: with that of the ascent objective, as in the
            # released code, GSAM and SAGM also descend on minus the variance, and at lam = 1 some runs collapse.
            of = variant(hyper["alpha"], reference="clean")
        return {"adaptive": adaptive, "penalty": penalty or "variance", "variant": of}

    return ascent


def _family(
    name: str,
    note: str,
    hyper: Mapping[str, Hyperparameter],
    adaptive: bool = False,
    variant: Callable[[Any], Any] | None = None,
) -> dict[str, Method]:
    """A sharpness-aware method without and with the domain-inspired perturbation."""
    plain = _options(adaptive, variant, penalty=None)
    methods = {name: Method(perturb(plain), hyper, ascent=plain, note=note)}
    for penalty, lam in LAM.items():
        ascent = _options(adaptive, variant, penalty)
        with_disam = "DISAM" if name == "SAM" else f"{name}+DISAM"
        methods[with_disam if penalty == "variance" else f"{with_disam}-{penalty}"] = Method(
            perturb(ascent),
            {**hyper, **lam},
            base=name,
            ascent=ascent,
            note=f"{name} with the domain-inspired perturbation, penalty {penalty}",
        )
    return methods


def _control(penalty: str) -> Method:
    ascent = _options(adaptive=False, variant=None, penalty=penalty)
    return Method(
        perturb(ascent),
        {**RHO, **WRONG_SIGN[penalty]},
        base="SAM",
        ascent=ascent,
        control=True,
        note=f"DISAM with lam < 0, the wrong sign on purpose, penalty {penalty}",
    )


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "ERM": Method(descend(mean_loss), base=None, note="empirical risk minimisation"),
        **_family("SAM", "sharpness-aware minimisation", RHO),
        "DISAM-control": _control("variance"),
        "DISAM-std-control": _control("std"),
        **_family("ASAM", "adaptive SAM", ADAPTIVE_RHO, adaptive=True),
        **_family("GSAM", "surrogate-gap SAM", {**RHO, **GSAM_ALPHA}, variant=disam_jax.variants.gsam),
        **_family("SAGM", "sharpness-aware gradient matching", {**RHO, **SAGM_ALPHA}, variant=disam_jax.variants.sagm),
        "VREx": Method(
            descend(vrex),
            BETA,
            memory=lambda _: jnp.zeros((), jnp.int32),
            note="risk extrapolation: a variance penalty in the descent",
        ),
        "GroupDRO": Method(
            descend(group_dro),
            ETA,
            memory=lambda num_sources: jnp.full(num_sources, 1.0 / num_sources, jnp.float32),
            note="distributionally robust optimisation over domains",
        ),
        "CORAL": Method(descend(mean_coral), GAMMA, note="correlation alignment of the domains' features"),
        "CORAL+SAM": Method(perturb(losses=coral), {**GAMMA, **RHO}, base="CORAL", note="CORAL at SAM's w + e"),
        "CORAL+DISAM": Method(
            perturb(losses=coral),
            {**GAMMA, **RHO, **LAM["variance"]},
            base="CORAL+SAM",
            note="CORAL at DISAM's w + e, a row of the paper's table",
        ),
    }
)


def find_methods(names: Sequence[str], methods: Mapping[str, Method] = METHODS) -> dict[str, Method]:
    """Methods by their names, in upper or lower case, each once; "all" stands for all but the controls.

    Args:
        names: of methods.
        methods: to choose from.

    Returns:
        In the order of the names.

    Raises:
        InputError: on an unknown name.

    Example:
        >>> list(find_methods(["erm", "Sam"]))
        ['ERM', 'SAM']
    """
    known = {name.lower(): name for name in methods}
    found: dict[str, Method] = {}
    for name in names:
        if name.lower() == "all":
            found.update({each: method for each, method in methods.items() if not method.control})
        elif name.lower() in known:
            each = known[name.lower()]
            found.setdefault(each, methods[each])
        else:
            raise InputError(f"unknown --method {name}: the methods are {', '.join(methods)}, and all")
    return found
