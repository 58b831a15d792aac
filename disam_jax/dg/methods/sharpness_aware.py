"""SAM, ASAM, GSAM and SAGM, each also with the domain-inspired perturbation: the gradient at w + e.

Beside them, other ways to perturb and to descend: on the penalised objective at w + e, along normalised gradients of
the domains, and with a perturbation for each domain.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax

import disam_jax
from disam_jax.dg.methods.base import (
    Ascent,
    Batch,
    Forward,
    Gradient,
    HParams,
    Hyperparameter,
    Loss,
    Method,
    MethodError,
    MethodState,
    Objective,
    Outputs,
    loss_of,
    no_options,
)
from disam_jax.dg.models.network import Params

DomainGradients: TypeAlias = Literal["normalised", "own"]


def domain_losses(
    outputs: Outputs, batch: Batch, hparams: HParams, state: MethodState
) -> tuple[jax.Array, MethodState]:
    """Cross-entropy of each domain, [M].

    Example:
        >>> import jax.numpy as jnp
        >>> outputs = Outputs(jnp.array([1.0, 3.0]), logits=None, features=None, state={})
        >>> losses, _ = domain_losses(outputs, None, {}, ())
        >>> losses.tolist()
        [1.0, 3.0]
    """
    del batch, hparams
    return outputs.losses, state


def sharpness_aware(objective: Objective = domain_losses, ascent: Ascent = no_options) -> Gradient:
    """The gradient at w + e of an objective, by `disam_jax.value_and_grad` with the hyperparameters rho and lam.

    Args:
        objective: `(outputs, batch, hparams, state) -> (value, state)`: domain losses [M], or a scalar, which knows of
            no domains and takes no lam. The state that is kept is the one at w.
        ascent: Hyperparameters -> further options: `adaptive`, `penalty`, `variant`, `descent_lam`. Give `Method` the
            same.

    Returns:
        For `Method.gradient`.

    Example:
        >>> import jax.numpy as jnp
        >>> forward = lambda w: Outputs(w**2 * jnp.array([1.0, 3.0]), logits=None, features=None, state={})
        >>> gradient, _, _ = sharpness_aware()(jnp.float32(1.0), None, forward, {"rho": 0.5}, ())
        >>> float(gradient)
        6.0
    """
    return at_perturbed(loss_of(objective), ascent)


def at_perturbed(loss: Loss, ascent: Ascent = no_options) -> Gradient:
    """The gradient at w + e of a loss that makes its own forward passes, as `sharpness_aware` is for an objective.

    Args:
        loss: See `from_loss`.
        ascent: As of `sharpness_aware`.

    Returns:
        For `Method.gradient`.

    Example:
        >>> import jax.numpy as jnp
        >>> forward = lambda w: Outputs(w**2 * jnp.array([1.0, 3.0]), logits=None, features=None, state={})
        >>> loss = lambda w, batch, forward, hparams, state: (forward(w).losses, ({}, state))
        >>> gradient, _, _ = at_perturbed(loss)(jnp.float32(1.0), None, forward, {"rho": 0.5}, ())
        >>> float(gradient)
        6.0
    """

    def gradient(params: Params, batch: Batch, forward: Forward, hparams: HParams, state: MethodState):
        def losses(params):
            value, states = loss(params, batch, forward, hparams, state)
            if not value.ndim and "lam" in hparams:
                raise MethodError(
                    f"with lam, the objective must return domain losses [{len(batch.y)}], got a scalar: "
                    "return one value for each domain, or leave lam out of the hyperparameters"
                )
            return value, states

        lam = hparams.get("lam", 0.0)
        perturbed = disam_jax.value_and_grad(losses, hparams["rho"], lam, has_aux=True, **ascent(hparams))
        (_, (network_state, new_state)), grads = perturbed(params)
        return grads, network_state, new_state

    return gradient


def from_each_domain(domain_gradients: DomainGradients, ascent: Ascent = no_options) -> Gradient:
    """The gradient at w + e, or at w + e_i, made of each domain's own, by `disam_jax.accumulated_value_and_grad`.

    The domains go through the network one after the other: BatchNorm normalises each by itself, and dropout has the
    same masks for each. What the network keeps is what a pass over the whole batch at w leaves.

    Args:
        domain_gradients: `"normalised"` or `"own"`.
        ascent: Hyperparameters -> further options, as of `sharpness_aware`.

    Returns:
        For `Method.gradient`.

    Example:
        >>> import jax.numpy as jnp
        >>> forward = lambda w, x=None, y=None: Outputs((w * x).sum(1), logits=None, features=None, state={})
        >>> batch = Batch(jnp.array([[1.0], [3.0]]), jnp.zeros((2, 1), jnp.int32), key=None)
        >>> forward_of_batch = lambda w, x=batch.x, y=batch.y: forward(w, x, y)
        >>> gradient, _, _ = from_each_domain("own")(jnp.float32(1.0), batch, forward_of_batch, {"rho": 0.5}, ())
        >>> float(gradient)
        2.0
    """

    def gradient(params: Params, batch: Batch, forward: Forward, hparams: HParams, state: MethodState):
        def loss(params, one_domain):
            x, y = one_domain
            return forward(params, x[None], y[None]).losses[0]

        of_domains = disam_jax.accumulated_value_and_grad(
            loss,
            hparams["rho"],
            hparams.get("lam", 0.0),
            domain_gradients=domain_gradients,
            unroll=True,  # XLA counts the body of a loop once, and reports say what a step costs
            **ascent(hparams),
        )
        _, grads = of_domains(params, (batch.x, batch.y))
        return grads, forward(params).state, state

    return gradient


# The ranges of rho, lam and alpha are ours.
RHO = {"rho": Hyperparameter(0.05, -1.0, 0.5, relative=True)}
LAM = {
    "variance": {"lam": Hyperparameter(1.0, -1.0, 1.0)},
    # Below 1 / sqrt(M - 1), so that no domain of M <= 4 sources gets a negative weight.
    "std": {"lam": Hyperparameter(0.4, -1.0, -0.25)},
}
# As lam of the std: no domain of M <= 4 sources gets a negative weight in the descent either.
DESCENT_LAM = {"descent_lam": Hyperparameter(0.5, -1.0, -0.25)}


# In the documentation's formulas.
PENALTIES = {"variance": "var(L_i)", "std": "std(L_i)"}
FORMULAS: Mapping[DomainGradients, str] = {
    "normalised": "grad L(w + e), e = rho g / norm(g), g = sum_i b_i grad L_i / norm(grad L_i)",
    "own": "mean_i grad L_i(w + e_i), e_i = M b_i rho grad L_i / norm(grad L_i)",
}
SOURCE = "Zhang et al., Domain-Inspired Sharpness-Aware Minimization Under Domain Shifts, ICLR 2024"


def _wrong_sign(strength: Mapping[str, Hyperparameter]) -> dict[str, Hyperparameter]:
    return {name: each._replace(default=-each.default, times=-1.0) for name, each in strength.items()}


class Family(NamedTuple):
    """A sharpness-aware variant, from which three methods are made: X, X+DISAM and X+DISAM-std.

    Attributes:
        note: One line for the list of methods.
        hparams: Hyperparameters beside rho.
        variant: `(**hparams) -> disam_jax.variants.Variant`; None for SAM's.
        adaptive: Whether e is measured relative to the weights, as in ASAM.
        formula: What the gradient is; for the documentation.
        source: Paper from which it is.
    """

    note: str
    hparams: Mapping[str, Hyperparameter] = {}
    variant: Callable[..., Any] | None = None
    adaptive: bool = False
    formula: str = ""
    source: str = ""


FAMILIES: Mapping[str, Family] = {
    "SAM": Family(
        "sharpness-aware minimisation",
        formula="grad L(w + e), e = rho g / norm(g), g = grad L(w)",
        source="Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021",
    ),
    # e is relative to the weights; the authors use ten times SAM's rho.
    "ASAM": Family(
        "adaptive SAM",
        {"rho": Hyperparameter(0.5, -1.0, 0.5, times=10.0, relative=True)},
        adaptive=True,
        formula="grad L(w + e), e = rho w^2 g / norm(w g)",
        source="Kwon et al., ASAM, ICML 2021",
    ),
    "GSAM": Family(
        "surrogate-gap SAM",
        {"alpha": Hyperparameter(0.4, -1.0, 0.0)},
        disam_jax.variants.gsam,
        formula="h - alpha * (the part of g orthogonal to h), h = grad L(w + e)",
        source="Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, ICLR 2022",
    ),
    "SAGM": Family(
        "sharpness-aware gradient matching",
        {"alpha": Hyperparameter(0.001, -4.0, -2.0)},
        disam_jax.variants.sagm,
        formula="(g + grad L(w + e)) / 2, e = (rho / norm(g) - alpha) g",
        source="Wang et al., Sharpness-Aware Gradient Matching for Domain Generalization, CVPR 2023",
    ),
}


def _ascent(family: Family, penalty: str | None) -> Ascent:
    own = [name for name in family.hparams if name != "rho"]
    # What is handed over takes the gradient of the mean loss: with that of the ascent objective, as in the released
    # code, GSAM and SAGM also descend on minus the variance, and at lam = 1 some runs collapse.
    options = {} if penalty is None else {"reference": "clean"}

    def ascent(hparams: HParams) -> Mapping[str, Any]:
        variant = family.variant and family.variant(**{name: hparams[name] for name in own}, **options)
        descent = {name: hparams[name] for name in DESCENT_LAM if name in hparams}
        return {"adaptive": family.adaptive, "penalty": penalty or "variance", "variant": variant, **descent}

    return ascent


def variant_methods(name: str, family: Family) -> dict[str, Method]:
    """The methods of a variant, without and with the domain-inspired perturbation.

    Args:
        name: X.
        family: The variant and its hyperparameters.

    Returns:
        X, X+DISAM and X+DISAM-std, for a table `METHODS`; for SAM they are called SAM, DISAM and DISAM-std.

    Example:
        >>> list(variant_methods("GSAM", FAMILIES["GSAM"]))
        ['GSAM', 'GSAM+DISAM', 'GSAM+DISAM-std']
    """
    plain, hparams = _ascent(family, penalty=None), {**RHO, **family.hparams}
    told = {"formula": family.formula, "source": family.source, "cost": 2.0}
    methods = {name: Method(sharpness_aware(ascent=plain), hparams, ascent=plain, note=family.note, **told)}
    for penalty, lam in LAM.items():
        ascent = _ascent(family, penalty)
        with_disam = "DISAM" if name == "SAM" else f"{name}+DISAM"
        methods[with_disam if penalty == "variance" else f"{with_disam}-{penalty}"] = Method(
            sharpness_aware(ascent=ascent),
            {**hparams, **lam},
            base=name,
            ascent=ascent,
            note=f"{name} with the domain-inspired perturbation, penalty {penalty}",
            formula=f"as {name}, with g = grad (L - lam * {PENALTIES[penalty]})",
            source=f"{SOURCE}; {family.source}",
            needs=("domain labels",),
            # What a variant combines with the gradient at w + e is that of the mean loss: a backward pass more.
            cost=2.0 if family.variant is None else 8 / 3,
        )
    return methods


def _control(penalty: str) -> Method:
    ascent = _ascent(FAMILIES["SAM"], penalty)
    return Method(
        sharpness_aware(ascent=ascent),
        {**RHO, **_wrong_sign(LAM[penalty])},
        base="SAM",
        ascent=ascent,
        control=True,
        note=f"DISAM with lam < 0, the wrong sign on purpose, penalty {penalty}",
        formula=f"as SAM, with g = grad (L - lam * {PENALTIES[penalty]}) and lam < 0",
        source=SOURCE,
        needs=("domain labels",),
        cost=2.0,
    )


_CONTROLS = {"DISAM-control": _control("variance"), "DISAM-std-control": _control("std")}


def _descent(strength: Mapping[str, Hyperparameter], note: str, control: bool = False) -> Method:
    ascent = _ascent(FAMILIES["SAM"], "std")
    hparams = {**RHO, **LAM["std"], **strength}
    return Method(
        sharpness_aware(ascent=ascent),
        hparams,
        base="DISAM-std",
        ascent=ascent,
        control=control,
        note=note,
        formula=f"as DISAM-std, with grad (L - descent_lam * {PENALTIES['std']}) at w + e",
        source=f"this package, after {SOURCE}",
        needs=("domain labels",),
        cost=2.0,
    )


_DESCENTS = {
    "DISAM-descent-std": _descent(
        DESCENT_LAM, "DISAM-std that also descends on the mean minus descent_lam times the std of the losses at w + e"
    ),
    "DISAM-descent-std-control": _descent(
        _wrong_sign(DESCENT_LAM), "the same with descent_lam < 0, the wrong sign on purpose", control=True
    ),
}


def _of_each_domain(kind: DomainGradients, what: str) -> dict[str, Method]:
    plain, weighted = (_ascent(FAMILIES["SAM"], penalty) for penalty in (None, "std"))

    def method(ascent: Ascent, note: str, strength: Mapping[str, Hyperparameter], control: bool = False) -> Method:
        return Method(
            from_each_domain(kind, ascent),
            {**RHO, **strength},
            base="SAM",
            ascent=ascent,
            control=control,
            note=note,
            formula=FORMULAS[kind],
            source=f"this package, after {SOURCE}",
            needs=("domain labels",),
            cost=2.0,
        )

    return {
        f"SAM-{kind}": method(plain, f"SAM {what}", {}),
        f"DISAM-{kind}-std": method(weighted, f"DISAM-std {what}", LAM["std"]),
        f"DISAM-{kind}-std-control": method(
            weighted, "the same with lam < 0, the wrong sign on purpose", _wrong_sign(LAM["std"]), control=True
        ),
    }


METHODS = {
    method: entry
    for name, family in FAMILIES.items()
    for method, entry in {**variant_methods(name, family), **(_CONTROLS if name == "SAM" else {})}.items()
}
METHODS |= _DESCENTS
METHODS |= _of_each_domain("normalised", "whose ascent sums the gradients of the domains with length 1 each")
METHODS |= _of_each_domain("own", "that perturbs for each domain by itself")
