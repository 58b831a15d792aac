"""A problem of which everything is known: quadratic losses of three domains with uneven numbers of examples."""

from typing import NamedTuple

import numpy as np

NAMES = ("art", "photo", "sketch")
IDS = np.array([2, 0, 1, 0, 2, 2, 1, 0, 2, 0, 2])  # 4, 2 and 5 examples


class Quadratic(NamedTuple):
    """Example n has the loss ``c_n + g_n . w + w^T H_n w / 2``; those of the domains are the means."""

    data: dict
    offset: np.ndarray
    slope: np.ndarray
    hessian: np.ndarray

    def losses(self, w):
        w = np.asarray(w, np.float64)
        return self.offset + self.slope @ w + np.einsum("i,dij,j->d", w, self.hessian, w) / 2

    def gradients(self, w):
        return self.slope + self.hessian @ np.asarray(w, np.float64)


def quadratic(size=5):
    rng = np.random.default_rng(0)
    h = rng.normal(size=(len(IDS), size, size))
    # Of every sign of curvature, and stiffer from domain to domain.
    h = (h + h.transpose(0, 2, 1)) * (1 + IDS[:, None, None])
    data = {"c": rng.normal(size=len(IDS)), "g": rng.normal(size=(len(IDS), size)), "h": h}
    data = {name: x.astype(np.float32) for name, x in data.items()}
    means = [np.stack([data[name][d == IDS].mean(0, dtype=np.float64) for d in range(3)]) for name in "cgh"]
    return Quadratic(data, *means)


def quadratic_loss(w, batch):
    return batch["c"] + batch["g"] @ w + (batch["h"] @ w) @ w / 2
