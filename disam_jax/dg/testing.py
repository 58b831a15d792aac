"""Toy data and toy results, for examples and tests: a few numbers of the right shapes."""

from pathlib import Path
from typing import Any

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


def save_toy_model(folder: str | Path, images: bool = False) -> Path:
    """Keeps a small network for `toy` as it starts, in the files that `disam-jax sweep --save last` writes.

    Args:
        folder: Folder for the results.
        images: As for `toy`; the network is then a convolutional one.

    Returns:
        Path of the record of the model, of method ERM, target sketch and seed 0.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_toy_model(folder)
        ...     sorted(each.name for each in path.parent.iterdir())
        ['ERM-sketch-seed0-candidate0-last.json', 'ERM-sketch-seed0-candidate0-last.safetensors']
    """
    if images:
        return save_untrained(folder, toy(images), "conv", norm="batch")
    return save_untrained(folder, toy(images), "mlp", hidden=(4,))


def save_untrained(folder: str | Path, data: Domains, model: str, target: int = 1, **options: Any) -> Path:
    """Keeps a network as it starts, in the files that `disam-jax sweep --save last` writes.

    Args:
        folder: Folder for the results.
        data: Data set that it is for.
        model: Name of the network.
        target: Domain that is held out.
        **options: Options of the network, see `make_network`.

    Returns:
        Path of the record of the model, of method ERM and seed 0.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_untrained(folder, toy(), "linear", target=2).name
        'ERM-cartoon-seed0-candidate0-last.json'
    """
    import jax

    from disam_jax.dg.methods import METHODS
    from disam_jax.dg.models.network import by_name
    from disam_jax.dg.models.registry import make_network
    from disam_jax.dg.saving import blueprint, files
    from disam_jax.dg.sweep.models import model_record
    from disam_jax.dg.sweep.run import Plan, make_header
    from disam_jax.dg.training.config import TrainConfig

    network = make_network(model, data.inputs.shape[1:], len(data.class_names), **options)
    (hidden,) = options.get("hidden", (64,))
    config = TrainConfig(model=model, hidden=hidden, norm=options.get("norm", "none"))
    made = blueprint.from_scratch(network, config, data)
    plan = Plan({"ERM": [{}]}, targets=(target,), seeds=(0,))
    header = make_header(data, config, {"ERM": METHODS["ERM"]}, plan, [], "")
    nothing = [[[None] * len(data.domain_names)] * 2]
    record = model_record(plan.runs[0], 0, {"accuracy": nothing, "losses": nothing}, header, made, "last")
    weights = [by_name(tree) for tree in jax.jit(network.init)(jax.random.key(0))]
    tensors = {f"network.{name}": np.asarray(each) for tree in weights for name, each in tree.items()}
    name, out = files.model_name(plan.runs[0], data.domain_names[target], "last"), Path(folder, "models")
    files.write_model(out, name, {**record, "tensors": {"frozen": None}}, tensors)
    return out / f"{name}.json"
