"""The domain weights b as the losses of three domains move apart."""

import functools

import jax
import jax.numpy as jnp
from look import Look, write
from matplotlib.figure import Figure

import disam_jax

PANELS = {"weights_1": ("variance", 0.1), "weights_2": ("variance", 1.0), "weights_3": ("std", 0.4)}


def weights(distance, lam, penalty):
    """Of domains with the losses 1 - distance, 1 and 1 + distance, ``[3]``."""
    return disam_jax.domain_weights(1.0 + distance * jnp.array([-1.0, 0.0, 1.0]), lam, penalty=penalty)


def draw(look: Look, penalty: str, lam: float) -> Figure:
    """The weights of the three domains over the distance of their losses."""
    figure = Figure(figsize=(3.1, 2.9), layout="constrained")
    axes = figure.subplots()
    # Equal losses have no spread, and so no direction of it.
    distances = jnp.linspace(0.005, 0.8, 160)
    b = jax.vmap(lambda d: weights(d, lam, penalty))(distances)
    for i, (name, colour) in enumerate(
        (("lowest loss", look.green), ("middle", look.blue), ("highest loss", look.orange))
    ):
        axes.plot(distances, b[:, i], color=colour, linewidth=1.8, label=name)
    axes.axhline(0, color=look.faint, linewidth=0.8)
    axes.set(title=f'penalty="{penalty}", lam={lam:g}', xlim=(0, 0.8), ylim=(-0.25, 0.9))
    axes.set(xlabel="distance of the losses, nats", ylabel="weight in the ascent, b")
    axes.title.set_fontsize(10)
    axes.legend(loc="upper left", fontsize=8, handlelength=1.2, borderaxespad=0)
    return figure


if __name__ == "__main__":
    for name, panel in PANELS.items():
        write(name, functools.partial(draw, penalty=panel[0], lam=panel[1]))
