"""The methods that are compared: each turns a batch of several domains into a gradient.

To add one, put a table `METHODS` of `Method` entries by name into a file of this package, or into a package of your own
behind an entry point of the group `disam_jax.methods`. Search, sweeps, reports, the command line and the tests of all
methods then include it.
"""

from disam_jax.dg.methods.alignment import coral, coral_penalty
from disam_jax.dg.methods.base import (
    DOMAINBED_COMMIT,
    ZERO_SHOT,
    Batch,
    Forward,
    HParams,
    Hyperparameter,
    Method,
    MethodError,
    MethodState,
    Outputs,
    Start,
    count_steps,
    from_objective,
    method_gradient,
    no_options,
    no_state,
    no_update,
    zero_shot,
)
from disam_jax.dg.methods.erm import mean_loss
from disam_jax.dg.methods.objectives import (
    annealed,
    annealing_ends,
    group_dro,
    irm,
    irm_penalty,
    mixup,
    mixup_pairs,
    sd,
    vrex,
)
from disam_jax.dg.methods.registry import METHODS, find_methods
from disam_jax.dg.methods.sam_family import (
    efficient_sam,
    flatness_aware,
    friendly_sam,
    gated_sam,
    gradual_sam,
    look_sam,
)
from disam_jax.dg.methods.sharpness_aware import RHO, Family, domain_losses, sharpness_aware, variant_methods

__all__ = [
    "DOMAINBED_COMMIT",
    "METHODS",
    "RHO",
    "ZERO_SHOT",
    "Batch",
    "Family",
    "Forward",
    "HParams",
    "Hyperparameter",
    "Method",
    "MethodError",
    "MethodState",
    "Outputs",
    "Start",
    "annealed",
    "annealing_ends",
    "coral",
    "coral_penalty",
    "count_steps",
    "domain_losses",
    "efficient_sam",
    "find_methods",
    "flatness_aware",
    "friendly_sam",
    "from_objective",
    "gated_sam",
    "gradual_sam",
    "group_dro",
    "irm",
    "irm_penalty",
    "look_sam",
    "mean_loss",
    "method_gradient",
    "mixup",
    "mixup_pairs",
    "no_options",
    "no_state",
    "no_update",
    "sd",
    "sharpness_aware",
    "variant_methods",
    "vrex",
    "zero_shot",
]
