"""Two domains in two dimensions: where SAM and DISAM step to, and what the domains' losses are there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from look import Look, write
from matplotlib.figure import Figure

import disam_jax

RHO = 0.6
MINIMA = jnp.array([[-1.35, -0.45], [0.45, -0.55]])
CURVATURES = jnp.array([[0.9, 1.4], [1.3, 1.0]])
START = jnp.zeros(2)
SHOWN = (0.0, 0.5, 1.0)


class Step(NamedTuple):
    """One ascent at the start. Shapes for two domains."""

    perturbation: jax.Array
    clean: jax.Array
    perturbed: jax.Array
    weights: jax.Array


def domain_losses(w):
    """``1/2 (w - c_i)^T A_i (w - c_i)``, ``[2]``."""
    return 0.5 * jnp.sum(CURVATURES * (w[None] - MINIMA) ** 2, axis=1)


def step(lam) -> Step:
    """What the library does at the start; `refresh_every` makes it keep the perturbation."""
    tx = disam_jax.disam(RHO, lam, refresh_every=2, num_domains=2)
    _, state = tx.update(None, tx.init(START), START, domain_loss_fn=domain_losses)
    return Step(state.perturbation, state.domain_losses, state.perturbed_domain_losses, state.domain_weights)


def draw_plane(look: Look) -> Figure:
    """Contours of both losses, and the perturbations from one point."""
    figure = Figure(figsize=(4.6, 3.8), layout="constrained")
    axes = figure.subplots()
    x, y = np.meshgrid(np.linspace(-1.7, 1.3, 120), np.linspace(-1.3, 1.0, 90))
    points = jnp.stack([jnp.asarray(x).ravel(), jnp.asarray(y).ravel()], axis=1)
    values = np.asarray(jax.vmap(domain_losses)(points)).reshape(*x.shape, 2)
    for i, (colour, name) in enumerate(((look.blue, "domain 1"), (look.orange, "domain 2"))):
        axes.contour(
            x, y, values[..., i], levels=(0.05, 0.2, 0.45, 0.8, 1.25), colors=colour, linewidths=0.7, alpha=0.6
        )
        axes.plot(*MINIMA[i], "x", color=colour, markersize=6)
        axes.annotate(name, MINIMA[i], (0, -13), textcoords="offset points", ha="center", color=colour, fontsize=9)
    angle = np.linspace(0, 2 * np.pi, 200)
    axes.plot(RHO * np.cos(angle), RHO * np.sin(angle), ":", color=look.faint, linewidth=1)
    for lam in SHOWN:
        e = step(lam).perturbation
        colour = look.green if lam else look.ink
        arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", e, START, arrowprops=arrow)
        label = f"DISAM\nlam {lam:g}" if lam else "SAM"
        side = "center" if abs(e[0]) < 0.1 else "left" if e[0] > 0 else "right"
        axes.annotate(label, 1.06 * e, ha=side, va="bottom", color=colour, fontsize=9)
    axes.plot(0, 0, "o", color=look.ink, markersize=5)
    axes.annotate("w", (0, 0), (-12, -4), textcoords="offset points", fontsize=10)
    axes.set(aspect="equal", xticks=[], yticks=[], title="the perturbation e, of length rho")
    axes.title.set_fontsize(10)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def draw_losses(look: Look) -> Figure:
    """Both losses at w and at w + e, over lam."""
    figure = Figure(figsize=(4.6, 3.8), layout="constrained")
    axes = figure.subplots()
    lams = jnp.linspace(-0.5, 1.5, 81)
    steps = jax.vmap(step)(lams)
    clean = np.asarray(steps.clean[0])
    points = {"textcoords": "offset points"}
    lower, upper = np.asarray(steps.perturbed.min(axis=1)), np.asarray(steps.perturbed.max(axis=1))
    axes.fill_between(lams, lower, upper, color=look.faint, alpha=0.18, linewidth=0)
    for i, (colour, name) in enumerate(((look.blue, "domain 1"), (look.orange, "domain 2"))):
        axes.plot(lams, steps.perturbed[:, i], color=colour, linewidth=1.8)
        axes.axhline(clean[i], color=colour, linewidth=0.9, linestyle=":")
        at, offset = ((0.3, (2, 6)), (0.25, (2, -14)))[i]
        place = (at, jnp.interp(at, lams, steps.perturbed[:, i]))
        axes.annotate(f"{name} at w + e", place, offset, color=colour, fontsize=9, **points)
        axes.annotate(f"{name} at w", (lams[0], clean[i]), (4, 3), color=colour, fontsize=8, **points)
    axes.axvline(0, color=look.ink, linewidth=0.8)
    axes.annotate("SAM", (0, 0), (3, 4), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=9)
    axes.set(
        xlabel="lam", xticks=(-0.5, 0, 0.5, 1, 1.5), xlim=(-0.5, 1.5), ylim=(0, None), title="losses of the domains"
    )
    axes.title.set_fontsize(10)
    return figure


if __name__ == "__main__":
    write("two_domains_plane", draw_plane)
    write("two_domains_losses", draw_losses)
