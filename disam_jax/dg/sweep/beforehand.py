"""What a sweep of a large network will take on a CPU, told from one timed pass before anything is trained."""

import time
from collections.abc import Mapping

import jax
import numpy as np

from disam_jax.dg.data.domains import Domains
from disam_jax.dg.methods import Method
from disam_jax.dg.models.network import Network
from disam_jax.dg.progress import duration
from disam_jax.dg.results import Run
from disam_jax.dg.runners.devices import over_runs, put_once
from disam_jax.dg.training.config import TrainConfig

# With more numbers than this a network keeps a CPU busy for minutes a run.
LARGE = 1_000_000
# Examples on each device in the pass that is timed.
TIMED = 8
# A backward pass takes about as long as two forward passes.
OF_A_GRADIENT = 3


def passes_of(method: Method) -> float:
    """Number of forward and backward passes in a step of a method: its cost, and two where it perturbs the weights.

    Example:
        >>> from disam_jax.dg.methods import METHODS
        >>> passes_of(METHODS["ERM"]), passes_of(METHODS["DISAM"])
        (1.0, 2.0)
    """
    return max(method.cost, 2.0 if "rho" in method.hparams else 1.0)


def network_size(network: Network) -> int:
    """Number of parameters and of other weights of a network, which is not computed for it.

    Example:
        >>> from disam_jax.dg.models.registry import make_network
        >>> network_size(make_network("mlp", (8, 8), 10, hidden=(32,)))  # 64 * 32 + 32 + 32 * 10 + 10
        2410
    """
    params, _ = jax.eval_shape(network.init, jax.random.key(0))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves((params, network.weights)))


def examples_of(config: TrainConfig, method: Method, sources: int, examples: int) -> int:
    """Number of examples that pass forward through the network in a run, a backward pass counted as two.

    Args:
        config: What all runs share.
        method: Method of the run.
        sources: Number of source domains.
        examples: Number of examples of all domains, each of which is measured at every point.

    Returns:
        Number.

    Example:
        >>> from disam_jax.dg.methods import METHODS
        >>> config = TrainConfig(steps=10, evaluations=1, per_domain=4)
        >>> examples_of(config, METHODS["SAM"], sources=2, examples=100)  # 10 * 8 * 2 * 3 + 2 * 100
        680
    """
    trained = round(config.steps * config.per_domain * sources * passes_of(method) * OF_A_GRADIENT)
    return trained + len(config.measured_at) * examples


def examples_per_second(network: Network, data: Domains) -> float:
    """How many examples pass forward through a network in a second on all devices together, timed on a few."""
    number = TIMED * jax.device_count()
    where = over_runs(number)
    shared = jax.sharding.NamedSharding(where.mesh, jax.sharding.PartitionSpec())
    key = jax.random.key(0)
    params, state = jax.jit(lambda key, weights: network.given(weights).init(key))(key, network.weights)
    dtype = data.inputs.dtype if data.inputs.dtype == np.uint8 else np.float32
    inputs = jax.device_put(np.zeros((number, *data.inputs.shape[1:]), dtype), where)

    @jax.jit
    def forward(params, state, weights, inputs):
        return network.given(weights).apply(params, state, inputs, key, False).logits

    arguments = (*put_once((params, state, network.weights), shared), inputs)
    compiled = forward.lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    began = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    return number / (time.perf_counter() - began)


def beforehand(
    data: Domains, network: Network, config: TrainConfig, methods: Mapping[str, Method], runs: list[Run]
) -> str | None:
    """What a sweep will take, in a line, where that is long: for a large network on a CPU.

    Args:
        data: Data set.
        network: Network to train.
        config: What all runs share.
        methods: Methods by name.
        runs: All runs.

    Returns:
        Text; None for a small network, or on an accelerator.
    """
    size = network_size(network)
    if jax.default_backend() != "cpu" or size < LARGE or not runs:
        return None
    speed = examples_per_second(network, data)
    sources, examples = len(data.domain_names) - 1, len(data.labels)
    each = {name: examples_of(config, method, sources, examples) / speed for name, method in methods.items()}
    of_runs = [each[run.method] for run in runs]
    return (
        f"a network of {size / 1e6:.0f} million numbers on a CPU: about {duration(max(of_runs))} for a run and "
        f"{duration(sum(of_runs))} for all {len(runs)}, since {speed:.3g} examples a second pass through it; fewer "
        "--steps, --evaluations or --seeds take less, an accelerator far less"
    )
