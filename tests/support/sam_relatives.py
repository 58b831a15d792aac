"""The formulas of SAM's relatives in float64 numpy, from losses [M] and gradients [M, P] at any w.

A step is `step(at, w, hyper, kept, number) -> (gradient, kept)`; `kept` is None before the first one. `hyper` has a lam
for the domain-inspired form.
"""

from typing import NamedTuple

import numpy as np
import problems


class At(NamedTuple):
    """A problem, and the draws of the method.

    Attributes:
        plain: Losses and gradients of each domain, see `problems.Reference`.
        example_losses: w -> losses of the examples, [M n].
        example_gradients: w -> their gradients, [M n, P].
        order: The domains in the order in which DGSAM takes them.
        weights: The weights that ESAM perturbs, 0 or 1, [P].
    """

    plain: problems.Reference
    example_losses: object = None
    example_gradients: object = None
    order: object = None
    weights: object = None

    def mean(self, w):
        return self.plain.gradients_at(w).mean(0)

    def ascent(self, w, hyper):
        b = self.plain.domain_weights(self.plain.losses_at(w), hyper.get("lam", 0.0), "variance")
        return b @ self.plain.gradients_at(w)


def unit(direction):
    norm = np.linalg.norm(direction)
    return direction / norm if norm else direction


def friendly(at, w, hyper, average, number):
    g = at.ascent(w, hyper)
    if average is None:
        direction, average = g, g
    else:
        direction = g - hyper["sigma"] * average
        average = hyper["decay"] * average + (1 - hyper["decay"]) * g
    return at.mean(w + hyper["rho"] * unit(direction)), average


def look(at, w, hyper, kept, number):
    g = at.mean(w)
    if number % 5:
        return g + hyper["alpha"] * np.linalg.norm(g) * unit(kept), kept
    h = at.mean(w + hyper["rho"] * unit(at.ascent(w, hyper)))
    return h, h - (h @ g) / (g @ g) * g


def efficient(at, w, hyper, kept, number):
    e = hyper["rho"] / hyper["esam_beta"] * at.weights * unit(at.ascent(w, hyper))
    rise = at.example_losses(w + e) - at.example_losses(w)
    chosen = np.argsort(-rise)[: len(rise) // 2]
    return at.example_gradients(w + e)[chosen].mean(0), kept


def gated(at, w, hyper, moments, number):
    mean, variance, taken = moments or (0.0, 0.0, ())
    g, delta = at.mean(w), hyper["delta"]
    mean = delta * mean + (1 - delta) * g @ g
    variance = delta * variance + (1 - delta) * (g @ g - mean) ** 2
    part = number / hyper["gate_steps"]
    long = g @ g >= mean + (part * -hyper["gate"] + (1 - part) * hyper["gate"]) * np.sqrt(variance)
    if long:
        g = at.mean(w + hyper["rho"] * unit(at.ascent(w, hyper)))
    return g, (mean, variance, (*taken, bool(long)))


def gradual(at, w, hyper, kept, number):
    domains = len(at.order)
    b = at.plain.domain_weights(at.plain.losses_at(w), hyper.get("lam", 0.0), "variance")
    at_domain, used = w, []
    for domain in at.order:
        g = at.plain.gradients_at(at_domain)[domain]
        used.append(g)
        at_domain = at_domain + hyper["rho"] * domains * b[domain] * unit(g)
    used[0] = at.plain.gradients_at(at_domain)[at.order[0]]
    return np.mean(used, 0), kept


def flat(at, w, hyper, kept, number):
    def rise(v):
        return at.mean(v + hyper["rho"] * unit(at.ascent(v, hyper))) - at.mean(v)

    zeroth = rise(w)
    first = rise(w + hyper["rho"] * unit(zeroth))
    share = hyper["fad_alpha"]
    return at.mean(w) + hyper["fad_beta"] * (share * zeroth + (1 - share) * first), kept


STEPS = {
    "F-SAM": friendly,
    "LookSAM": look,
    "ESAM": efficient,
    "AE-SAM": gated,
    "DGSAM": gradual,
    "FAD": flat,
}


def step(name, at, w, hyper, kept=None, number=0):
    """A step of X or X+DISAM."""
    own = {each: value for each, value in hyper.items() if each != "lam" or name.endswith("+DISAM")}
    return STEPS[name.removesuffix("+DISAM")](at, w, own, kept, number)
