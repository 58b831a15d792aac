"""Which hyperparameters are tried: the defaults, a grid, or random draws, as many for every method.

Draws are common to all methods: the k-th candidate has the same learning rate, and the same rho, for each method that
has one, so that methods differ by themselves and not by their luck. They are common to all seeds, or each seed has its
own, as each trial has in DomainBed.
"""

import itertools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import Hyperparameter, Method
from disam_jax.dg.models.registry import MODELS
from disam_jax.dg.peft.registry import FINETUNING
from disam_jax.dg.ranges import RANGES, check_range
from disam_jax.dg.sweep.schema import DRAW
from disam_jax.dg.training.config import TrainConfig, find_optimizer


def shared_ranges(config: TrainConfig) -> Mapping[str, Hyperparameter]:
    """The optimizer's hyperparameters that random search draws.

    Example:
        >>> list(shared_ranges(TrainConfig(model="resnet18", optimizer="adam")))
        ['learning_rate', 'weight_decay']
    """
    optimizer = find_optimizer(config.optimizer)
    return optimizer.large_ranges if is_large(config) else optimizer.ranges


def is_large(config: TrainConfig) -> bool:
    """Whether random search draws from DomainBed's ranges for large images.

    Example:
        >>> is_large(TrainConfig(model="resnet18")), is_large(TrainConfig(model="mlp"))
        (True, False)
    """
    finetune, model = config.finetune, MODELS.get(config.model)
    return (model is not None and model.large) or (finetune is not None and FINETUNING[finetune.peft].whole)


def draw_per_domain(uniform: float, config: TrainConfig) -> float:
    """Number of examples of each domain in a batch, from DomainBed's range: 2^U(3, 5.5), of small images 2^U(3, 9).

    Example:
        >>> draw_per_domain(0.5, TrainConfig(model="resnet18")), draw_per_domain(0.5, TrainConfig(model="mlp"))
        (19.0, 64.0)
    """
    return float(int(2.0 ** (3.0 + uniform * (2.5 if is_large(config) else 6.0))))


def draw_dropout(uniform: float, config: TrainConfig) -> float:
    """One of DomainBed's three values of dropout.

    Example:
        >>> [draw_dropout(uniform, TrainConfig()) for uniform in (0.1, 0.5, 0.9)]
        [0.0, 0.1, 0.5]
    """
    del config
    return (0.0, 0.1, 0.5)[int(3.0 * uniform)]


# What random search draws only if it is asked for, since each value is a program of its own.
SEARCHED: Mapping[str, Callable[[float, TrainConfig], float]] = MappingProxyType(
    {"per_domain": draw_per_domain, "dropout": draw_dropout}
)


def default_hparams(method: Method, config: TrainConfig) -> dict[str, float]:
    """A method's hyperparameters, and the optimizer's, by default.

    Example:
        >>> from disam_jax.dg.methods import METHODS
        >>> default_hparams(METHODS["SAM"], TrainConfig(rho=0.05))
        {'learning_rate': 0.1, 'weight_decay': 0.0, 'rho': 0.05}
    """
    defaults = config.defaults
    own = {name: each.value(defaults, name) for name, each in method.hparams_with(config.optimizer).items()}
    return {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay, **own}


def random_candidates(
    method: Method,
    config: TrainConfig,
    number: int,
    seed: int,
    trial: int | None = None,
    search: Sequence[str] = (),
) -> list[dict[str, float]]:
    """The defaults, then random draws of everything that has a range.

    Args:
        method: Method whose hyperparameters are drawn.
        config: Configuration, which has the defaults.
        number: Number of candidates, the defaults included.
        seed: Seed of the search.
        trial: Seed of the runs that have these draws for themselves; None for draws that all seeds share.
        search: Which of `SEARCHED` are drawn too. If any is, all candidates have all of them.

    Returns:
        `number` dictionaries of hyperparameters.

    Example:
        >>> from disam_jax.dg.methods import METHODS
        >>> candidates = random_candidates(METHODS["SAM"], TrainConfig(rho=0.5), number=3, seed=0)
        >>> [round(each["rho"], 3) for each in candidates]
        [0.5, 0.083, 0.338]
    """
    ranges = {**shared_ranges(config), **method.hparams_with(config.optimizer)}
    fixed = {name: float(getattr(config, name)) for name in SEARCHED} if search else {}
    candidates = [{**default_hparams(method, config), **fixed}]
    of_trial = () if trial is None else (trial,)
    for place in range(1, number):
        # A generator for each name, so that what else a method has does not change its draws.
        uniform = {
            name: np.random.default_rng([seed, place, zlib.crc32(name.encode()), *of_trial]).random()
            for name in (*ranges, *search)
        }
        drawn = {name: each.draw(uniform[name], config.defaults, name) for name, each in ranges.items()}
        drawn |= {name: SEARCHED[name](uniform[name], config) for name in search}
        candidates.append({**candidates[0], **drawn})
    return [{name: float(np.float32(value)) for name, value in each.items()} for each in candidates]


def candidates_by_seed(
    method: Method, config: TrainConfig, number: int, seeds: Sequence[int], search: Sequence[str] = ()
) -> "Drawn":
    """Random draws for each seed of the runs, as DomainBed makes them for each trial.

    Args:
        method: Method whose hyperparameters are drawn.
        config: Configuration, which has the defaults.
        number: Number of candidates of each seed, the defaults included.
        seeds: Seeds of the runs.
        search: As for `random_candidates`.

    Returns:
        The candidates as a results file names them, and those of each seed.

    Example:
        >>> from disam_jax.dg.methods import METHODS
        >>> drawn = candidates_by_seed(METHODS["SAM"], TrainConfig(rho=0.5), number=2, seeds=(0, 1))
        >>> drawn.named[1], [round(drawn.by_seed[seed][1]["rho"], 3) for seed in (0, 1)]
        ({'draw': 1.0}, [0.083, 0.103])
    """
    by_seed = {seed: random_candidates(method, config, number, seed=0, trial=seed, search=search) for seed in seeds}
    named = [by_seed[seeds[0]][0], *({DRAW: float(place)} for place in range(1, number))]
    return Drawn(named, by_seed)


class Drawn(NamedTuple):
    """Candidates of a method of which each seed has its own.

    Attributes:
        named: The defaults, and for each draw its number, which all seeds have in common.
        by_seed: Seed -> hyperparameters of its candidates.
    """

    named: list[dict[str, float]]
    by_seed: dict[int, list[dict[str, float]]]


def grid_candidates(method: Method, config: TrainConfig, grid: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """All combinations of the values of those hyperparameters that the method has; the defaults come first.

    A method that has fewer of them has fewer candidates. The values of "rho" are those of SAM: a method that measures
    it in another unit gets them in its own. A control gets the values of "lam" or "descent_lam" with the other sign.

    Args:
        method: Method whose hyperparameters are combined.
        config: Configuration, which has the defaults.
        grid: Values of each hyperparameter, by name.

    Returns:
        Dictionaries of hyperparameters, each once.

    Example:
        >>> from disam_jax.dg.methods import METHODS
        >>> candidates = grid_candidates(METHODS["SAM"], TrainConfig(rho=0.5), {"rho": [0.25, 0.5, 1.0]})
        >>> [each["rho"] for each in candidates]
        [0.5, 0.25, 1.0]
    """
    start = default_hparams(method, config)
    names = [name for name in grid if name in start]
    times = {name: method.hparams[name].times if name in method.hparams else 1.0 for name in names}
    candidates = [start]
    for values in itertools.product(*(grid[name] for name in names)):
        one = {**start, **{name: value * times[name] for name, value in zip(names, values, strict=True)}}
        candidates.append(one)
    rounded = [{name: float(np.float32(value)) for name, value in each.items()} for each in candidates]
    return [each for place, each in enumerate(rounded) if each not in rounded[:place]]


def check_grid(grid: Mapping[str, Sequence[float]], methods: Mapping[str, Method]) -> None:
    """Checks that every name of a grid is a hyperparameter of some method, and that its values are in their range.

    Raises:
        InputError: naming what is not.

    Example:
        >>> from disam_jax.dg.methods import METHODS
        >>> check_grid({"rho": [-0.1]}, METHODS)
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: --grid rho must be finite and not negative, got -0.1
    """
    known = {"learning_rate", "weight_decay"}.union(*(method.hparams for method in methods.values()))
    for name, values in grid.items():
        if name not in known:
            raise InputError(f"unknown hyperparameter {name} in --grid: these methods have {', '.join(sorted(known))}")
        if not values:
            raise InputError(f"--grid {name} must have at least one value, got none: write --grid {name}=0.1,0.5")
        for value in values:
            check_range(name, value, f"--grid {name}")
    number = math.prod(map(len, grid.values()))
    if number > RANGES["candidates"].most:
        raise InputError(f"--grid has {number:,} combinations: take at most {RANGES['candidates'].most:,}")
