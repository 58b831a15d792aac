"""A method of another objective, at SAM's and at DISAM's w + e: X+SAM and X+DISAM, made of X alone."""

from dataclasses import replace

from disam_jax.dg.methods.base import GradientOfLoss, Method
from disam_jax.dg.methods.sharpness_aware import FAMILIES, LAM, RHO, SOURCE, at_perturbed

# For `Method.sharpness` of a method whose objective returns domain losses, on which lam acts.
BOTH = ("SAM", "DISAM")


def sharpness_forms(name: str, method: Method, extra: bool = True) -> dict[str, Method]:
    """The forms of a method that `Method.sharpness` asks for.

    Args:
        name: X.
        method: Method from `from_objective` or `from_loss`.
        extra: Whether `--method all` leaves them out.

    Returns:
        X+SAM, compared with X, and X+DISAM, compared with X+SAM; none where `sharpness` is empty.

    Raises:
        TypeError: If forms are asked for and the method has no loss that can be perturbed.

    Example:
        >>> from disam_jax.dg.methods import METHODS
        >>> list(sharpness_forms("MMD", METHODS["MMD"]))
        ['MMD+SAM', 'MMD+DISAM']
    """
    if not method.sharpness:
        return {}
    if not isinstance(method.gradient, GradientOfLoss):
        raise TypeError(
            f"method {name} must have a gradient from from_objective or from_loss for sharpness={method.sharpness!r}, "
            f"got {method.gradient!r}: leave sharpness out"
        )
    gradient = at_perturbed(method.gradient.loss)
    forms = {}
    for form in method.sharpness:
        lam = LAM["variance"] if form == "DISAM" else {}
        forms[f"{name}+{form}"] = replace(
            method,
            gradient=gradient,
            hparams={**method.hparams, **RHO, **lam},
            base=f"{name}+SAM" if form == "DISAM" and "SAM" in method.sharpness else name,
            note=f"{name} at {form}'s w + e",
            formula=f"the gradient of {name} at {form}'s w + e, e from the same objective",
            source=f"{method.source}; {SOURCE if lam else FAMILIES['SAM'].source}",
            needs=tuple(dict.fromkeys((*method.needs, *(("domain labels",) if lam else ())))),
            cost=2.0 * method.cost,
            extra=extra,
            sharpness=(),
        )
    return forms
