"""Measuring the sharpness of a trained model, domain by domain, and drawing it.

All measures start from a `loss_surface`: the losses of the domains over a data set, as functions of the parameters.

    surface = loss_surface(loss_fn, data, domain_ids, names=("art", "photo", "sketch"), held_out="sketch")
    domain_sharpness(surface, params, rho=0.05)         the worst case within rho, by one gradient step or by several
    average_sharpness(surface, params, sigma, key=key)  the average case under Gaussian noise
    top_hessian_eigenvalues(surface, params, key=key)   by Lanczos
    hessian_trace(surface, params, key=key)             by Hutchinson's estimator
    gradient_similarity(surface, params)                cosines between the gradients of the domains
    loss_landscape(surface, params, directions)         along one or two directions, `random_directions` for example

Each returns the numbers of every domain, the held-out one too, and of the mixture of the sources that training
minimises. `plots` draws them.
"""

from disam_jax.sharpness import plots
from disam_jax.sharpness._average import AverageSharpness, average_sharpness
from disam_jax.sharpness._batches import collect
from disam_jax.sharpness._directions import random_directions
from disam_jax.sharpness._hessian import HessianEigenvalues, HessianTrace, hessian_trace, top_hessian_eigenvalues
from disam_jax.sharpness._landscape import Landscape, loss_landscape
from disam_jax.sharpness._similarity import GradientSimilarity, gradient_similarity
from disam_jax.sharpness._statistics import Estimate
from disam_jax.sharpness._surface import LossSurface, domain_losses, loss_surface
from disam_jax.sharpness._worst import DomainSharpness, domain_sharpness

__all__ = [
    "AverageSharpness",
    "DomainSharpness",
    "Estimate",
    "GradientSimilarity",
    "HessianEigenvalues",
    "HessianTrace",
    "Landscape",
    "LossSurface",
    "average_sharpness",
    "collect",
    "domain_losses",
    "domain_sharpness",
    "gradient_similarity",
    "hessian_trace",
    "loss_landscape",
    "loss_surface",
    "plots",
    "random_directions",
    "top_hessian_eigenvalues",
]
