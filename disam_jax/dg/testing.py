"""Toy data and toy results, for examples and tests: a few numbers of the right shapes."""

import numpy as np

from disam_jax.dg.data.domains import Domains, join_domains
from disam_jax.dg.results import Results, Run

DOMAINS = ("photo", "sketch", "cartoon")
CLASSES = ("cat", "dog")


def toy(images: bool = False, examples: int = 8) -> Domains:
    """A data set of three domains and two classes.

    Args:
        images: Whether an example is an image, uint8 [8, 8, 3], in place of two numbers.
        examples: Number of examples of each domain; the classes alternate.

    Returns:
        The data set, the same at every call.

    Example:
        >>> toy().inputs.shape, toy(images=True).inputs.shape, toy().counts.tolist()
        ((24, 2), (24, 8, 8, 3), [8, 8, 8])
    """
    rng = np.random.default_rng(0)
    shape = (len(DOMAINS), examples)
    inputs = rng.integers(256, size=(*shape, 8, 8, 3), dtype=np.uint8) if images else rng.normal(size=(*shape, 2))
    labels = np.arange(examples) % len(CLASSES)
    return join_domains("toy", list(inputs), [labels] * len(DOMAINS), DOMAINS, CLASSES)


def toy_results(*methods: str, losses: float = 1.0) -> Results:
    """The results of one run of each method, with the domain sketch held out and measured before and after training.

    Args:
        *methods: Names of the methods.
        losses: Every loss; accuracies are 1.

    Returns:
        Results.

    Example:
        >>> results = toy_results("ERM", "SAM")
        >>> results.methods, results.losses.shape
        (('ERM', 'SAM'), (2, 2, 2, 2))
    """
    data = {"name": "toy", "domains": {"photo": 9, "sketch": 9}, "classes": list(CLASSES)}
    header = {"command": "", "data": data, "methods": {name: {} for name in methods}}
    runs = tuple(Run(name, target=1, seed=0, candidate=0, hparams={}) for name in methods)
    ones = np.ones((len(methods), 2, 2, 2))
    probe = ones[:, 0]
    return Results(header, runs, np.arange(2), ones, losses * ones, probe, probe, sharpness=probe[:, 0])
