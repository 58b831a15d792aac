"""Records trajectories of DomainBed's own classes, in float64.

    git clone https://github.com/facebookresearch/DomainBed CHECKOUT && git -C CHECKOUT checkout COMMIT
    python tests/support/record_domainbed.py CHECKOUT

needs torch; COMMIT is `DOMAINBED_COMMIT` of `disam_jax/dg/methods/base.py`. The classes run unedited. What they would
draw is drawn here first and given to them by the same seeds, so that it can be stored.

`tests/data/domainbed/trajectories.npz` has
    meta            JSON: commit, versions, and the hyperparameters of each class
    x, y            float64 [T, M, n, 5] and int [T, M, n], the batches of T steps
    initial/NAME    initial parameters of the multilayer perceptron and its last layer
    CLASS/NAME      the same after each step, [T, ...]
    Mixup/order     order of the domains at each step, [T, M]
    Mixup/shares    share of the first of each pair, [T, M]
"""

import json
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
FILE = ROOT / "tests" / "data" / "domainbed" / "trajectories.npz"
STEPS, DOMAINS, EXAMPLES, FEATURES, CLASSES = 7, 3, 4, 5, 3
SHARED = {
    "lr": 0.02,
    "weight_decay": 0.03,
    "nonlinear_classifier": False,
    "mlp_width": 4,
    "mlp_depth": 3,
    "mlp_dropout": 0.0,
}
# The penalties of V-REx and IRM reach their full weight, and Adam is made new, at step 3.
OWN = {
    "ERM": {},
    "VREx": {"vrex_lambda": 7.0, "vrex_penalty_anneal_iters": 3},
    "IRM": {"irm_lambda": 9.0, "irm_penalty_anneal_iters": 3},
    "GroupDRO": {"groupdro_eta": 0.3},
    "CORAL": {"mmd_gamma": 0.7},
    "MMD": {"mmd_gamma": 0.7},
    "Mixup": {"mixup_alpha": 0.4},
    "SD": {"sd_reg": 0.2},
}


def wanted_commit() -> str:
    """The commit that the library names; it is read as text, since the library needs jax and this needs torch."""
    text = (ROOT / "disam_jax" / "dg" / "methods" / "base.py").read_text()
    (commit,) = re.findall(r'^DOMAINBED_COMMIT = "([0-9a-f]{40})"$', text, re.MULTILINE)
    return commit


def import_algorithms(checkout: Path):
    """DomainBed's module of algorithms. Its networks for images import packages that none of these classes uses."""
    for name in ("torchvision", "torchvision.models", "timm"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.path.insert(0, str(checkout))
    from domainbed import algorithms

    return algorithms


def seed(number: int) -> None:
    torch.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002 (DomainBed draws from it)


def mixup_draws(step: int, alpha: float) -> tuple[list[int], list[float]]:
    """What `Mixup.update` draws after `seed(step)`: an order of the domains, then a share for each pair."""
    seed(step)
    order = torch.randperm(DOMAINS).tolist()
    return order, [np.random.beta(alpha, alpha) for _ in range(DOMAINS)]  # noqa: NPY002


def parameters(algorithm) -> dict[str, np.ndarray]:
    named = algorithm.network.named_parameters()
    return {name: value.detach().numpy().copy() for name, value in named}


def main() -> None:
    checkout = Path(sys.argv[1])
    commit = subprocess.run(
        ["git", "-C", checkout, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if commit != wanted_commit():
        raise SystemExit(f"{checkout} must be at commit {wanted_commit()}, got {commit}: check that one out")
    algorithms = import_algorithms(checkout)
    torch.set_default_dtype(torch.float64)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS, DOMAINS, EXAMPLES, FEATURES)) + np.arange(DOMAINS)[None, :, None, None]
    y = rng.integers(0, CLASSES, (STEPS, DOMAINS, EXAMPLES))
    meta = {"commit": commit, "torch": torch.__version__, "numpy": np.__version__, "shared": SHARED, "own": OWN}
    arrays: dict[str, np.ndarray] = {"x": x, "y": y}
    for name, own in OWN.items():
        seed(0)
        algorithm = getattr(algorithms, name)((FEATURES,), CLASSES, DOMAINS, {**SHARED, **own})
        arrays |= {f"initial/{each}": value for each, value in parameters(algorithm).items()}
        after, draws = [], []
        for step in range(STEPS):
            if name == "Mixup":
                draws.append(mixup_draws(step, own["mixup_alpha"]))
            seed(step)
            batches = [(torch.tensor(x[step, each]), torch.tensor(y[step, each])) for each in range(DOMAINS)]
            algorithm.update(batches)
            after.append(parameters(algorithm))
        arrays |= {f"{name}/{each}": np.stack([values[each] for values in after]) for each in after[0]}
        if draws:
            orders, shares = zip(*draws, strict=True)
            arrays |= {"Mixup/order": np.array(orders), "Mixup/shares": np.array(shares)}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(FILE, meta=np.array(json.dumps(meta)), **arrays)


if __name__ == "__main__":
    main()
