"""Small training problems and an independent reference: the formulas of the method, written out in float64 numpy.

The reference forms every per-domain gradient (which the library never does in its main form) and adds them up with
weights that are computed here. It shares no code with disam_jax.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """Softmax regression with a hidden layer, on domains of equal size; grouped and flat views of one batch."""

    params: Any
    batch: Any  # x [M, n, F], y [M, n]

    @property
    def num_domains(self):
        return self.batch["x"].shape[0]

    @property
    def flat(self):
        m, n = self.batch["y"].shape
        return {
            "x": self.batch["x"].reshape(m * n, -1),
            "y": self.batch["y"].reshape(-1),
            "domain": np.repeat(np.arange(m, dtype=np.int32), n),
            **({"offset": self.batch["offset"].reshape(-1)} if "offset" in self.batch else {}),
        }


def make_problem(seed=0, num_domains=3, per_domain=8, features=4, hidden=6, classes=3, dtype=np.float32):
    rng = np.random.default_rng(seed)
    params = {
        "hidden": {"w": rng.normal(size=(features, hidden)), "b": rng.normal(size=hidden)},
        "out": {"w": rng.normal(size=(hidden, classes)), "b": rng.normal(size=classes)},
    }
    x = rng.normal(size=(num_domains, per_domain, features)) * np.linspace(0.5, 2, num_domains)[:, None, None]
    y = rng.integers(0, classes, size=(num_domains, per_domain))
    cast = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)
    return Problem(cast(params), {"x": cast(x), "y": jnp.asarray(y, jnp.int32)})


def logits(params, x):
    h = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"][None])
    return h @ params["out"]["w"] + params["out"]["b"][None]


def example_losses(params, batch):
    log_p = jax.nn.log_softmax(logits(params, batch["x"]))
    return -jnp.take_along_axis(log_p, batch["y"][:, None], axis=1)[:, 0] + batch.get("offset", 0)


def loss(params, batch):
    return jnp.mean(example_losses(params, batch))


def flatten(tree):
    """All leaves in one float64 vector."""
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def relative_error(got, want):
    got, want = flatten(got), flatten(want)
    scale = np.linalg.norm(want)
    return np.linalg.norm(got - want) / (scale if scale else 1.0)


@dataclasses.dataclass(frozen=True)
class Reference:
    """One step of the method, from losses [M] and gradients [M, P] at any w: functions of a flat float64 vector."""

    losses_at: Any
    gradients_at: Any
    weights: Any = None  # [M]

    def step(
        self,
        w,
        rho,
        lam,
        penalty="variance",
        adaptive=False,
        variant=None,
        eps=1e-12,
        descent_lam=0.0,
        domain_gradients="joint",
    ):
        losses, jac = self.losses_at(w), self.gradients_at(w)
        a, b = self.shares(losses), self.domain_weights(losses, lam, penalty)
        t = np.abs(w) if adaptive else np.ones_like(w)
        g, mean_gradient = b @ jac, a @ jac
        if domain_gradients == "normalised":
            norms = np.linalg.norm(t * jac, axis=1)
            g = sum(b_i * g_i / (norm + eps) for b_i, g_i, norm in zip(b, jac, norms, strict=True) if norm)

        def perturbation(g):
            norm = np.linalg.norm(t * g)
            factor = rho / (norm + eps)
            if variant and variant[0] == "sagm":
                factor = factor - variant[1]
            return factor * t * t * g if norm else np.zeros_like(w)

        e = perturbation(g)
        if domain_gradients == "own":
            each = [w + b_i / a_i * perturbation(g_i) for a_i, b_i, g_i in zip(a, b, jac, strict=True)]
            perturbed_losses = np.array([self.losses_at(at)[i] for i, at in enumerate(each)])
            perturbed_jac = np.array([self.gradients_at(at)[i] for i, at in enumerate(each)])
        else:
            perturbed_losses, perturbed_jac = self.losses_at(w + e), self.gradients_at(w + e)
        h = self.domain_weights(perturbed_losses, descent_lam, penalty) @ perturbed_jac
        if variant is None:
            d = h
        else:
            kind, alpha, which = variant
            r = g if which == "ascent" else mean_gradient
            if kind == "gsam":
                along = (r @ h) / (h @ h)
                d = h - alpha * (r - along * h)
            else:
                d = (r + h) / 2
        return {
            "gradient": d,
            "perturbation": e,
            "loss": a @ losses,
            "domain_losses": losses,
            "domain_weights": b,
            "ascent_norm": np.linalg.norm(g),
            "perturbed_domain_losses": perturbed_losses,
        }

    def shares(self, losses):
        weights = np.ones(len(losses)) if self.weights is None else np.asarray(self.weights, np.float64)
        return weights / weights.sum()

    def domain_weights(self, losses, lam, penalty):
        return reference_weights(losses, self.shares(losses), lam, penalty)


def reference_weights(losses, shares, lam, penalty):
    losses, a = np.asarray(losses, np.float64), np.asarray(shares, np.float64)
    present = a > 0
    count = present.sum()
    mean = losses[present].mean()
    if penalty == "variance":
        b = a - 2 * lam / count * (losses - mean)
    elif penalty == "weighted_variance":
        b = a - 2 * lam * a * (losses - a @ np.where(present, losses, 0))
    else:
        std = np.sqrt(((losses[present] - mean) ** 2).mean())
        b = a - (lam / count * (losses - mean) / std if std else 0)
    return np.where(present, b, 0.0)


def reference(problem, weights=None):
    """The reference for a problem with equal domains; backpropagation by hand, one domain at a time."""
    leaves, treedef = jax.tree.flatten(jax.tree.map(lambda x: np.asarray(x, np.float64), problem.params))
    splits = np.cumsum([x.size for x in leaves])[:-1]
    x, y = np.asarray(problem.batch["x"], np.float64), np.asarray(problem.batch["y"])

    def unflatten(w):
        return treedef.unflatten([p.reshape(x.shape) for p, x in zip(np.split(w, splits), leaves, strict=True)])

    def forward(w, i):
        p = unflatten(w)
        h = np.tanh(x[i] @ p["hidden"]["w"] + p["hidden"]["b"])
        z = h @ p["out"]["w"] + p["out"]["b"]
        z = z - z.max(axis=1, keepdims=True)
        q = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        return p, h, q

    def one_loss(w, i):
        _, _, q = forward(w, i)
        return -np.log(q[np.arange(len(y[i])), y[i]]).mean()

    def one_gradient(w, i):
        p, h, q = forward(w, i)
        dz = (q - np.eye(q.shape[1])[y[i]]) / len(y[i])
        dh = dz @ p["out"]["w"].T * (1 - h**2)
        grads = {"hidden": {"w": x[i].T @ dh, "b": dh.sum(0)}, "out": {"w": h.T @ dz, "b": dz.sum(0)}}
        return flatten(grads)

    domains = range(problem.num_domains)
    return Reference(
        lambda w: np.array([one_loss(w, i) for i in domains]),
        lambda w: np.stack([one_gradient(w, i) for i in domains]),
        weights,
    )
