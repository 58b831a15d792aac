"""What the protocol says, as data: data sets, regimes, arms and their candidates, and seeds. See PROTOCOL.md."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from benchmarks.verdict.method import PLAIN

# Seeds on which learning rates and the reach of the grids are set, those that may suggest something, those that decide,
# and those of arms that were added when these had decided.
PHASES: Mapping[str, Sequence[int]] = MappingProxyType(
    {"pilot": range(50, 51), "screening": range(10), "confirmation": range(100, 120), "added": range(100, 110)}
)


class Regime(NamedTuple):
    """What is trained, and how.

    Attributes:
        title: Name in tables.
        hidden: Units of the hidden layer; 0 for a linear classifier.
        rhos: Values of SAM's rho that every arm with a perturbation tries, in its own unit.
        learning_rate: Of Adam.
        steps: Optimizer steps of a run.
    """

    title: str
    hidden: int
    rhos: tuple[float, ...]
    learning_rate: float = 1e-3
    steps: int = 300


REGIMES: Mapping[str, Regime] = MappingProxyType(
    {
        "linear": Regime("linear classifier", 0, (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0), learning_rate=4e-3),
        "mlp": Regime("MLP head", 16, (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0), learning_rate=4e-3),
    }
)

# SAM's rho at which arms are compared without a search, about the middle of its good range on the pilot seed.
EQUAL_RHO: Mapping[str, float] = MappingProxyType({"linear": 1.0, "mlp": 0.2})


class DataSet(NamedTuple):
    """A data set of the verdict.

    Attributes:
        data: What `--data` is given: a name, or a path below the folder of data sets.
        model: Network that makes features of its images; "" where the inputs are used as they are.
        components: Number of principal components of the source domains' inputs that are used; 0 for the inputs.
        standardise: Whether inputs are standardised feature by feature over the source domains.
    """

    data: str
    model: str = ""
    components: int = 0
    standardise: bool = False


IMAGES = {"model": "efficientnet_lite0", "components": 256}
DATA: Mapping[str, DataSet] = MappingProxyType(
    {
        "PACS160": DataSet("PACS160", **IMAGES),
        "OfficeCaltech10": DataSet("OfficeCaltech10", **IMAGES),
        "RSSCN7": DataSet("RSSCN7", **IMAGES),
        "heart4": DataSet("tables/heart4.npz", standardise=True),
        "reviews4": DataSet("tables/reviews4.npz", components=256),
        "digits": DataSet("digits", components=64),
        "digits-rotated": DataSet("digits-rotated", components=64),
    }
)

# What an arm tries: as many candidates for every arm.
BUDGET = 8


class Arm(NamedTuple):
    """A method with everything fixed but what its candidates vary.

    Attributes:
        values: Values of the numbers of `PLAIN` that it fixes.
        varied: Name of the number that its candidates vary: "rho", "learning_rate", "beta", "eta" or "gamma".
        times: Factor on SAM's rho, for an arm that measures it in another unit.
        control: Whether its sign is wrong on purpose.
        method: Name of the benchmark's method that it is, and that method's hyperparameters.
    """

    values: Mapping[str, float]
    varied: str = "rho"
    times: float = 1.0
    control: bool = False
    method: tuple[str, Mapping[str, float]] = ("", {})


def _family(
    name: str, values: Mapping[str, float], of_method: Mapping[str, float], times: float = 1.0
) -> dict[str, Arm]:
    """A sharpness-aware variant, alone and with the domain-inspired perturbation."""
    disam = "DISAM" if name == "SAM" else f"{name}+DISAM"
    arms = {name: Arm(values, times=times, method=(name, of_method))}
    for lam in (0.1, 1.0):
        method = (disam, {**of_method, "lam": lam})
        arms[f"{disam}, lam {lam:g}"] = Arm({**values, "variance": lam}, times=times, method=method)
    for lam in (0.4, 0.7):
        method = (f"{disam}-std", {**of_method, "lam": lam})
        arms[f"{disam}-std, lam {lam:g}"] = Arm({**values, "std": lam}, times=times, method=method)
    return arms


GAP, MATCHING = 0.4, 0.001
ARMS: Mapping[str, Arm] = MappingProxyType(
    {
        "ERM": Arm({}, "learning_rate", method=("ERM", {})),
        **_family("SAM", {}, {}),
        "control, std, lam -0.7": Arm({"std": -0.7}, control=True, method=("DISAM-std-control", {"lam": -0.7})),
        "control, lam -1": Arm({"variance": -1.0}, control=True, method=("DISAM-control", {"lam": -1.0})),
        **_family("ASAM", {"adaptive": 1.0}, {}, times=10.0),
        **_family("GSAM", {"gap": GAP}, {"alpha": GAP}),
        **_family("SAGM", {"matching": MATCHING, "matched": 1.0}, {"alpha": MATCHING}),
        "own e": Arm({"own": 1.0}, method=("SAM-own", {})),
        "own e, std, lam 0.7": Arm({"own": 1.0, "std": 0.7}, method=("DISAM-own-std", {"lam": 0.7})),
        "own e, control, lam -0.7": Arm(
            {"own": 1.0, "std": -0.7}, control=True, method=("DISAM-own-std-control", {"lam": -0.7})
        ),
        "descent 0.5": Arm({"descent": 0.5}, method=("DISAM-descent-std", {"lam": 0.0, "descent_lam": 0.5})),
        "descent 0.5, std, lam 0.7": Arm(
            {"descent": 0.5, "std": 0.7}, method=("DISAM-descent-std", {"lam": 0.7, "descent_lam": 0.5})
        ),
        "descent control, -0.5": Arm(
            {"descent": -0.5}, control=True, method=("DISAM-descent-std-control", {"lam": 0.0, "descent_lam": -0.5})
        ),
        "normalised": Arm({"normalised": 1.0}, method=("SAM-normalised", {})),
        "normalised, std, lam 0.7": Arm({"normalised": 1.0, "std": 0.7}, method=("DISAM-normalised-std", {"lam": 0.7})),
        "normalised, control, lam -0.7": Arm(
            {"normalised": 1.0, "std": -0.7}, control=True, method=("DISAM-normalised-std-control", {"lam": -0.7})
        ),
        "V-REx": Arm({}, "beta", method=("VREx", {})),
        "GroupDRO": Arm({}, "eta", method=("GroupDRO", {})),
    }
)


# Those of the confirming runs; all are screened.
CONFIRMED: tuple[str, ...] = (
    "ERM",
    "SAM",
    "ASAM",
    "DISAM, lam 0.1",
    "DISAM, lam 1",
    "DISAM-std, lam 0.4",
    "DISAM-std, lam 0.7",
    "control, std, lam -0.7",
    "own e",
    "normalised",
    "descent 0.5",
    "descent control, -0.5",
    "V-REx",
    "GroupDRO",
)

# Needs features that are trained, so it has a program of its own, that of the library's method, and the MLP alone.
ADDED: Mapping[str, Arm] = MappingProxyType({"CORAL": Arm({}, "gamma", method=("CORAL", {}))})


def arms_of(phase: str) -> Mapping[str, Arm]:
    """The arms that a phase trains."""
    if phase == "added":
        return ADDED
    return {name: ARMS[name] for name in CONFIRMED} if phase == "confirmation" else ARMS


class Candidate(NamedTuple):
    """One choice of numbers of one arm."""

    arm: str
    varied: float
    hparams: Mapping[str, float]


def tried(arm: Arm, regime: Regime) -> tuple[float, ...]:
    """The values that an arm's candidates have, `BUDGET` of them: DomainBed's range of its number, or SAM's rhos."""
    ranges = {
        "rho": tuple(arm.times * rho for rho in regime.rhos),
        "learning_rate": tuple(regime.learning_rate * 2.0**power for power in range(-3, 5)),
        "beta": tuple(10.0 ** (-1.0 + 6.0 * place / (BUDGET - 1)) for place in range(BUDGET)),
        "eta": tuple(10.0 ** (-3.0 + 2.0 * place / (BUDGET - 1)) for place in range(BUDGET)),
        "gamma": tuple(10.0 ** (-1.0 + 2.0 * place / (BUDGET - 1)) for place in range(BUDGET)),
    }
    return ranges[arm.varied]


def candidates(regime: Regime, arms: Mapping[str, Arm] = ARMS) -> list[Candidate]:
    """All candidates of all arms."""
    # As in DomainBed: 500 of 5000 steps.
    shared = {**PLAIN, "learning_rate": regime.learning_rate, "weight_decay": 0.0, "anneal": regime.steps / 10.0}
    return [
        Candidate(name, value, {**shared, **arm.values, arm.varied: value})
        for name, arm in arms.items()
        for value in tried(arm, regime)
    ]
