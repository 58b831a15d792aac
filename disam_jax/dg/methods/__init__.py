"""The methods that are compared: each turns a batch of several domains into a gradient.

To add one, put a table `METHODS` of `Method` entries by name into a file of this package, or into a package of your own
behind an entry point of the group `disam_jax.methods`. Search, sweeps, reports, the command line and the tests of all
methods then include it.
"""

from disam_jax.dg.methods.adversarial import dann
from disam_jax.dg.methods.alignment import coral, coral_penalty, mmd, mmd_penalty
from disam_jax.dg.methods.base import (
    DOMAINBED_COMMIT,
    ZERO_SHOT,
    Batch,
    Forward,
    GradientOfLoss,
    HParams,
    Hyperparameter,
    Method,
    MethodError,
    MethodState,
    Outputs,
    Start,
    choice,
    count_steps,
    from_loss,
    from_objective,
    head_of,
    loss_of,
    mean_of_domains,
    method_gradient,
    no_options,
    no_state,
    no_update,
    restart_at,
    zero_shot,
)
from disam_jax.dg.methods.bottleneck import ib_erm, ib_irm
from disam_jax.dg.methods.combinations import sharpness_forms
from disam_jax.dg.methods.erm import mean_loss
from disam_jax.dg.methods.from_pretrained import l2_sp, lp_ft, miro
from disam_jax.dg.methods.gradient_agreement import and_mask, domain_gradients, fishr, iga
from disam_jax.dg.methods.meta_learning import fish, mldg
from disam_jax.dg.methods.objectives import (
    annealed,
    group_dro,
    irm,
    irm_penalty,
    mixup,
    mixup_pairs,
    sd,
    vrex,
)
from disam_jax.dg.methods.registry import METHODS, find_methods
from disam_jax.dg.methods.risks import eqrm, rdm
from disam_jax.dg.methods.sam_family import (
    efficient_sam,
    flatness_aware,
    friendly_sam,
    gated_sam,
    gradual_sam,
    look_sam,
)
from disam_jax.dg.methods.self_challenging import rsc
from disam_jax.dg.methods.sharpness_aware import (
    RHO,
    Family,
    at_perturbed,
    domain_losses,
    sharpness_aware,
    variant_methods,
)

__all__ = [
    "DOMAINBED_COMMIT",
    "METHODS",
    "RHO",
    "ZERO_SHOT",
    "Batch",
    "Family",
    "Forward",
    "GradientOfLoss",
    "HParams",
    "Hyperparameter",
    "Method",
    "MethodError",
    "MethodState",
    "Outputs",
    "Start",
    "and_mask",
    "annealed",
    "at_perturbed",
    "choice",
    "coral",
    "coral_penalty",
    "count_steps",
    "dann",
    "domain_gradients",
    "domain_losses",
    "efficient_sam",
    "eqrm",
    "find_methods",
    "fish",
    "fishr",
    "flatness_aware",
    "friendly_sam",
    "from_loss",
    "from_objective",
    "gated_sam",
    "gradual_sam",
    "group_dro",
    "head_of",
    "ib_erm",
    "ib_irm",
    "iga",
    "irm",
    "irm_penalty",
    "l2_sp",
    "look_sam",
    "loss_of",
    "lp_ft",
    "mean_loss",
    "mean_of_domains",
    "method_gradient",
    "miro",
    "mixup",
    "mixup_pairs",
    "mldg",
    "mmd",
    "mmd_penalty",
    "no_options",
    "no_state",
    "no_update",
    "rdm",
    "restart_at",
    "rsc",
    "sd",
    "sharpness_aware",
    "sharpness_forms",
    "variant_methods",
    "vrex",
    "zero_shot",
]
