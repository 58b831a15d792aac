"""What the protocol says, as data: data sets, how each is trained, the ways to have DISAM for less, and seeds."""

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.verdict.plan import DATA, DataSet

# Seeds on which the best rho of each method is found, then a rule for each budget; those that judge the rules; and
# those on which the rules meet other optimizers, schedules and batch sizes; and those of one example in larger batches.
SEEDS: Mapping[str, Sequence[int]] = MappingProxyType(
    {
        "reach": range(40, 43),
        "rates": range(40, 41),
        "search": range(40, 42),
        "confirmation": range(200, 220),
        "elsewhere": range(220, 225),
        "larger": range(240, 260),
    }
)


class Setting(NamedTuple):
    """A data set and how networks are trained on it.

    Attributes:
        data: Data set.
        hidden: Units of the hidden layer; 0 for a linear classifier.
        optimizer: "sgd" with momentum 0.9, or "adam".
        learning_rate: Its rate before the schedule's factor.
        steps: Optimizer steps of a run.
        per_domain: Examples of each source domain in a batch.
        rhos: Lengths that SAM and DISAM try.
    """

    data: DataSet
    hidden: int
    optimizer: str
    learning_rate: float
    steps: int
    rhos: tuple[float, ...]
    per_domain: int = 16


def _probe(name: str) -> Setting:
    """A linear classifier on the features of a network with ImageNet's weights, as in the verdict."""
    return Setting(DATA[name], 0, "adam", 4e-3, 300, (0.5, 1.0, 2.0, 4.0, 8.0, 16.0))


SHORT = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
# The digits and PACS's edges and colours are trained as `disam-jax compare` trains them, PACS for half as long.
SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        "digits": Setting(DataSet("digits"), 64, "sgd", 0.1, 400, SHORT),
        "digits-rotated": Setting(DataSet("digits-rotated"), 64, "sgd", 0.1, 400, SHORT),
        "PACS96": Setting(DataSet("PACS96/PACS", standardise=True), 64, "sgd", 0.03, 1000, SHORT),
        "PACS160": _probe("PACS160"),
        "OfficeCaltech10": _probe("OfficeCaltech10"),
        "RSSCN7": _probe("RSSCN7"),
    }
)


class Way(NamedTuple):
    """How DISAM is had, at which cost.

    Attributes:
        fraction: Part of the examples that DISAM's two passes see.
        begin: Part of the training before it begins.
        times: Factor on the rho of full DISAM, which is the best of `Setting.rhos` on the seeds of the search.
        penalty: "std", with lam 0.7, "variance", with lam 1, or "" for none: SAM.
        whole: Whether the perturbation is measured in the norm of the whole batch's gradient, not of the part's.
        decay: Last part of the training in which the learning rate falls linearly to 0; 0 for a constant rate.
        cosine: Whether it falls as a cosine over the whole training instead.
        before: Whether one pass at w + e gives the gradient to descend on and the direction of the next step's e.
    """

    fraction: float = 1.0
    begin: float = 0.0
    times: float = 1.0
    penalty: str = "std"
    whole: bool = False
    decay: float = 0.3
    cosine: bool = False
    before: bool = False

    @property
    def cost(self) -> float:
        """Gradient passes of the training over those of a plain one.

        Example:
            >>> Way(fraction=0.25, begin=0.8).cost
            1.05
        """
        return 1.0 if self.before else round(1.0 + self.fraction * (1.0 - self.begin), 6)

    @property
    def title(self) -> str:
        """What distinguishes it, in words.

        Example:
            >>> Way(fraction=0.25, begin=0.5, times=2.0, penalty="variance").title
            '1/4 from 50 % on, rho x 2, variance'
        """
        words = [f"{'all' if self.fraction == 1.0 else f'1/{1.0 / self.fraction:g}'} from {100 * self.begin:g} % on"]
        words += [f"rho x {self.times:g}", self.penalty, *["the batch's norm"] * self.whole]
        words += ["the step before"] * self.before
        schedule = "cosine" if self.cosine else f"decay {self.decay:g}"
        return ", ".join(words + [schedule] * (self.cosine or self.decay != 0.3))


PENALTIES: Mapping[str, Mapping[str, float]] = MappingProxyType({"std": {"std": 0.7}, "variance": {"variance": 1.0}})
FRACTIONS = (0.25, 0.125, 0.0625)
BEGINS = (0.0, 0.5, 0.8)
TIMES = (1.0, 2.0, 4.0)
DECAYS = (0.0, 0.1, 0.5)

SEARCHED: tuple[Way, ...] = (
    *(
        Way(fraction, begin, times, penalty, whole)
        for fraction, begin, times, penalty, whole in itertools.product(
            FRACTIONS, BEGINS, TIMES, PENALTIES, (False, True)
        )
    ),
    # Beyond the ends of that grid.
    *(Way(0.5, begin, times) for begin in (0.5, 0.9) for times in (1.0, 2.0)),
    *(Way(fraction, 0.9, times) for fraction in (0.25, 0.0625) for times in (2.0, 4.0, 8.0)),
    *(Way(fraction, begin, 8.0) for fraction in (0.125, 0.0625) for begin in (0.0, 0.5)),
    # What other schedules do to what is whole, late and on a part.
    *(
        Way(fraction, begin, times, decay=decay, cosine=cosine)
        for fraction, begin, times in [(1.0, 0.0, 1.0), (0.25, 0.8, 2.0), (0.125, 0.5, 2.0), (0.0625, 0.5, 4.0)]
        for decay, cosine in [*((decay, False) for decay in DECAYS), (0.3, True)]
    ),
    *(Way(begin=begin, times=times, before=True) for begin in (0.0, 0.5) for times in (0.5, 1.0, 1.5, 2.0)),
)
BUDGETS = (1.02, 1.05, 1.1, 1.25)


class Change(NamedTuple):
    """Another setting than that in which the rules were chosen.

    Attributes:
        setting: Fields of `Setting` that differ.
        way: Fields of `Way` that differ, in every run.
    """

    setting: Mapping[str, Any] = MappingProxyType({})
    way: Mapping[str, Any] = MappingProxyType({})


# The other optimizer, the rates that ERM tries with it, and for each data set that of the lowest validation loss.
OTHER_OPTIMIZER: Mapping[str, str] = MappingProxyType({"sgd": "adam", "adam": "sgd"})
RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1)
OTHER_RATES: Mapping[str, float] = MappingProxyType(
    {
        "digits": 1e-2,
        "digits-rotated": 2e-2,
        "PACS96": 1e-3,
        "PACS160": 2e-2,
        "OfficeCaltech10": 2e-2,
        "RSSCN7": 1e-2,
    }
)
ELSEWHERE: Mapping[str, Change] = MappingProxyType(
    {
        "other-optimizer": Change(),
        "constant": Change(way={"decay": 0.0}),
        "cosine": Change(way={"cosine": True}),
        **{f"batch-{number}": Change(setting={"per_domain": number}) for number in (8, 32, 64)},
    }
)

# Chosen by `rules.choose` on the runs of the search, and the step before with the highest score.
RULES: Mapping[float, Way] = MappingProxyType(
    {
        1.02: Way(0.0625, begin=0.9, times=8.0),
        1.05: Way(0.0625, begin=0.5, times=2.0, whole=True),
        1.1: Way(0.0625, times=4.0),
        1.25: Way(0.0625, times=4.0),
    }
)
BEFORE = Way(begin=0.5, times=0.5, before=True)

# In larger batches: one example of each domain, at rho / sqrt(fraction).
LARGER: Mapping[str, Way] = MappingProxyType({"batch-32": Way(1 / 32, times=round(32**0.5, 2))})


def confirmed() -> list[Way]:
    """The rules, each once, and the step before."""
    return list(dict.fromkeys([*RULES.values(), BEFORE]))


def budgets_of(way: Way) -> list[float]:
    """The budgets whose rule a way is.

    Example:
        >>> [budgets_of(way) for way in RULES.values() if not budgets_of(way)]
        []
    """
    return [budget for budget, rule in RULES.items() if rule == way]


def numbers(setting: Setting, rho: float, way: Way) -> dict[str, float]:
    """What distinguishes a run from the others of its seed and target.

    Args:
        setting: How all runs are trained.
        rho: Length of the perturbation.
        way: How DISAM is had.
    """
    return {
        "rho": rho * way.times,
        "std": 0.0,
        "variance": 0.0,
        **PENALTIES.get(way.penalty, {}),
        "kept": float(max(round(way.fraction * setting.per_domain), 1)),
        "begin": float(round(way.begin * setting.steps)),
        "whole": float(way.whole),
        "decay": way.decay,
        "cosine": float(way.cosine),
        "before": float(way.before),
    }
