"""What is measured of a run: accuracy and losses of every domain, losses at w + e, sharpness."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import disam_jax
from disam_jax.dg.methods import Method
from disam_jax.dg.models.network import Network, Params, State
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.metrics import extra_metrics, measure_examples
from disam_jax.dg.training.step import Arrays, RunSpec, example_losses, standardised


class Metrics(NamedTuple):
    """Of one run at one point of training; the fields of `Results` without the axes of runs and points.

    Attributes:
        accuracy: Fraction of right answers on training and validation split, float32 [2, D].
        losses: Mean cross-entropy there, float32 [2, D].
        probe_losses: Losses at w on the probe, float32 [D].
        perturbed_losses: Losses at w + e on the probe, float32 [D]; 0 for the target.
        new_accuracy: Fraction of right answers among new classes, float32 [D]; None if there are none.
        metrics: Each further metric by name, float32 [2, D].
        logits: Logits of the target's examples, see `kept_logits`, float16 [n, C], filled up with rows of zeros to the
            size of the largest domain; None if they are not kept. On the host they are those of each run without the
            rows of zeros, see `runners.kept_logits.by_run`.
    """

    accuracy: jax.Array
    losses: jax.Array
    probe_losses: jax.Array
    perturbed_losses: jax.Array
    new_accuracy: jax.Array | None
    metrics: Mapping[str, jax.Array]
    logits: Any = None


def by_domain_and_split(values: jax.Array, spec: RunSpec, arrays: Arrays) -> jax.Array:
    """Means over the training and the validation split of each domain.

    Args:
        values: Values of the examples, float32 [N].
        spec: Seed, target and hyperparameters of the run.
        arrays: Data set.

    Returns:
        float32 [2, D].

    Example:
        >>> from disam_jax.dg.data import domains, splits
        >>> from disam_jax.dg.training.step import make_arrays
        >>> data = domains.join_domains("toy", [jnp.ones((4, 2))] * 2, [jnp.zeros(4)] * 2, ["photo", "sketch"], ["dog"])
        >>> arrays = make_arrays(data, (splits.split(data, seed=0),), standardise=False)
        >>> spec = RunSpec(jax.random.key(0), jnp.int32(0), jnp.int32(1), {})
        >>> by_domain_and_split(jnp.float32(arrays.domain_ids), spec, arrays).tolist()
        [[0.0, 1.0], [0.0, 1.0]]
    """
    number = len(arrays.counts)
    groups = arrays.domain_ids + number * arrays.in_validation[spec.place].astype(jnp.int32)
    return disam_jax.mean_by_domain(values, groups, 2 * number).values.reshape(2, number)


def evaluate(
    params: Params, state: State, spec: RunSpec, arrays: Arrays, *, network: Network, block: int
) -> dict[str, jax.Array]:
    """Each of `METRICS` of every example, a block of examples at a time.

    Returns:
        float32 [N] for each name.

    Example:
        >>> from disam_jax.dg.data import domains, splits
        >>> from disam_jax.dg.models.registry import make_network
        >>> from disam_jax.dg.training.step import make_arrays
        >>> data = domains.join_domains("toy", [jnp.zeros((2, 3))], [jnp.zeros(2)], ["photo"], ["cat", "dog"])
        >>> arrays = make_arrays(data, (splits.whole(data),), standardise=False)
        >>> network = make_network("linear", (3,), 2)
        >>> spec = RunSpec(jax.random.key(0), jnp.int32(0), jnp.int32(0), {})
        >>> values = evaluate(*network.init(spec.key), spec, arrays, network=network, block=2)
        >>> [round(loss, 3) for loss in values["losses"].tolist()], values["accuracy"].tolist()
        ([0.693, 0.693], [1.0, 1.0])
    """
    return evaluate_and_keep(params, state, spec, arrays, network=network, block=block, kept=0)[0]


def evaluate_and_keep(
    params: Params, state: State, spec: RunSpec, arrays: Arrays, *, network: Network, block: int, kept: int
) -> tuple[dict[str, jax.Array], jax.Array | None]:
    """Each of `METRICS` of every example, and the logits of those of the target.

    Args:
        params: Parameters of the network.
        state: Running statistics of the network.
        spec: Seed, target and hyperparameters of the run.
        arrays: Data set of N examples.
        network: Network to evaluate.
        block: Number of examples that are evaluated at once.
        kept: Number of rows of logits: the size of the largest domain; 0 to keep none.

    Returns:
        float32 [N] for each name; logits as of `kept_logits`, float16 [kept, C], the first rows in the order of the
        data and the rest zeros, or None.

    Example:
        >>> from disam_jax.dg.data import domains, splits
        >>> from disam_jax.dg.models.network import Output
        >>> from disam_jax.dg.training.step import make_arrays
        >>> xs = [jnp.zeros((3, 2)), jnp.array([[0.0, 2.0], [1.0, 0.0]])]
        >>> data = domains.join_domains("toy", xs, [jnp.zeros(3), jnp.ones(2)], ["a", "b"], ["cat", "dog"])
        >>> arrays = make_arrays(data, (splits.whole(data),), standardise=False)
        >>> network = Network(lambda key: ({}, {}), lambda params, state, x, key, train: Output(x, x, state))
        >>> spec = RunSpec(jax.random.key(0), jnp.int32(0), jnp.int32(1), {})
        >>> evaluate_and_keep({}, {}, spec, arrays, network=network, block=2, kept=3)[1].tolist()
        [[-2.0, 0.0], [0.0, -1.0], [0.0, 0.0]]
    """
    number = len(arrays.labels)
    block = min(block, number)
    # The last block reaches back instead of over the end: nothing is padded.
    firsts = jnp.minimum(jnp.arange(-(-number // block), dtype=jnp.int32) * block, number - block)

    def one(buffer: jax.Array | None, first: jax.Array) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        labels = jax.lax.dynamic_slice_in_dim(arrays.labels, first, block)
        inputs = standardised(jax.lax.dynamic_slice_in_dim(arrays.inputs, first, block), spec, arrays)
        logits = network.apply(params, state, inputs, spec.key, False).logits
        if buffer is not None:
            rows = first + jnp.arange(block, dtype=jnp.int32)
            of_target = arrays.domain_ids[rows] == spec.target
            # A place behind the end is dropped.
            places = jnp.where(of_target, rows - arrays.starts[spec.target], kept)
            buffer = buffer.at[places].set(kept_logits(logits), mode="drop")
        return buffer, measure_examples(logits, labels)

    buffer = None
    if kept:
        one_example = jax.eval_shape(lambda: network.apply(params, state, arrays.inputs[:1], spec.key, False).logits)
        buffer = jnp.zeros((kept, one_example.shape[-1]), jnp.float16)
    buffer, values = jax.lax.scan(one, buffer, firsts)
    rows = firsts[:, None] + jnp.arange(block, dtype=jnp.int32)[None]
    place = lambda values: jnp.zeros(number, values.dtype).at[rows].set(values)
    return {name: place(each) for name, each in values.items()}, buffer


def kept_logits(logits: jax.Array) -> jax.Array:
    """Logits as they are kept: less the largest of each example, in half precision.

    A constant for each example changes neither the answer nor a probability. With the largest at 0, where half
    precision is finest, no logit is too large. A smaller one stays smaller, so that the answer is what it was.

    Args:
        logits: float [N, C].

    Returns:
        float16 [N, C], 0 for the largest and finite; NaN where the largest is not finite.

    Example:
        >>> kept_logits(jnp.array([[1000.0, 1000.001], [1e6, 0.0]])).tolist()
        [[-0.0009765625, 0.0], [0.0, -65504.0]]
    """
    logits = logits.astype(jnp.float32)
    shifted = logits - logits.max(-1, keepdims=True)
    half = jnp.finfo(jnp.float16)
    least, smallest = float(half.min), float(half.smallest_subnormal)
    return jnp.where(shifted < 0.0, jnp.clip(shifted, least, -smallest), shifted).astype(jnp.float16)


def probe_rows(spec: RunSpec, arrays: Arrays, size: int) -> jax.Array:
    """The first `size` examples of each domain's training split, int32 [D, size].

    Example:
        >>> from disam_jax.dg.data import domains, splits
        >>> from disam_jax.dg.training.step import make_arrays
        >>> data = domains.join_domains("toy", [jnp.ones((4, 2))] * 2, [jnp.zeros(4)] * 2, ["photo", "sketch"], ["dog"])
        >>> arrays = make_arrays(data, (splits.whole(data),), standardise=False)
        >>> spec = RunSpec(jax.random.key(0), jnp.int32(0), jnp.int32(1), {})
        >>> probe_rows(spec, arrays, size=2).tolist()
        [[0, 1], [4, 5]]
    """
    places = arrays.starts[:, None] + jnp.arange(size, dtype=jnp.int32)[None]
    return arrays.order[spec.place][places]


def measure(
    params: Params,
    state: State,
    spec: RunSpec,
    arrays: Arrays,
    *,
    network: Network,
    method: Method,
    config: TrainConfig,
    probe: int,
    new_network: Network | None = None,
    new: Arrays | None = None,
    kept: int = 0,
) -> Metrics:
    """Measures a run with the running statistics as they are and nothing dropped.

    Args:
        params: Parameters of the network.
        state: Running statistics of the network.
        spec: Seed, target and hyperparameters of the run.
        arrays: Data set.
        network: Network to evaluate.
        method: Method whose perturbation gives w + e.
        config: Configuration that all runs share.
        probe: Number of examples of each domain on which w + e is measured.
        new_network: Network that classifies new classes with the parameters of the run, if there are any.
        new: Their examples.
        kept: Number of rows of logits of the target, see `evaluate_and_keep`.

    Returns:
        Metrics. The held-out domain is absent from the perturbation.

    Example:
        >>> from disam_jax.dg import methods
        >>> from disam_jax.dg.training import step as training
        >>> from disam_jax.dg.data import domains, splits
        >>> from disam_jax.dg.models.registry import make_network
        >>> data = domains.join_domains("toy", [jnp.zeros((4, 3))] * 2, [jnp.zeros(4)] * 2, ["a", "b"], ["cat", "dog"])
        >>> arrays = training.make_arrays(data, (splits.split(data, seed=0),), standardise=False)
        >>> network, spec = make_network("linear", (3,), 2), RunSpec(jax.random.key(0), jnp.int32(0), jnp.int32(1), {})
        >>> options = {"network": network, "method": methods.METHODS["SAM"], "config": TrainConfig(), "probe": 2}
        >>> measured = jax.jit(lambda: measure(*network.init(spec.key), spec, arrays, **options))()
        >>> measured.accuracy.tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    values, logits = evaluate_and_keep(params, state, spec, arrays, network=network, block=config.block, kept=kept)
    means = {name: by_domain_and_split(each, spec, arrays) for name, each in values.items()}
    rows = probe_rows(spec, arrays, probe)
    inputs = standardised(arrays.inputs[rows.reshape(-1)], spec, arrays)
    inputs = inputs.reshape(*rows.shape, *inputs.shape[1:])
    plain, perturbed = measure_probe(
        params, state, spec, inputs, arrays.labels[rows], network=network, method=method, config=config
    )
    return Metrics(
        means["accuracy"],
        means["losses"],
        plain,
        perturbed,
        None
        if new is None or new_network is None
        else new_accuracy(params, state, spec, new, network=new_network, block=config.block),
        {name: means[name] for name in extra_metrics()},
        logits,
    )


def new_accuracy(
    params: Params, state: State, spec: RunSpec, arrays: Arrays, *, network: Network, block: int
) -> jax.Array:
    """Fraction of right answers among the new classes alone, float32 [D]; NaN for a domain without any.

    Example:
        >>> from disam_jax.dg.data import domains, splits
        >>> from disam_jax.dg.models.registry import make_network
        >>> from disam_jax.dg.training.step import make_arrays
        >>> data = domains.join_domains("toy", [jnp.zeros((2, 3))], [jnp.zeros(2)], ["photo"], ["cat", "dog"])
        >>> arrays = make_arrays(data, (splits.whole(data),), standardise=False)
        >>> network = make_network("linear", (3,), 2)
        >>> spec = RunSpec(jax.random.key(0), jnp.int32(0), jnp.int32(0), {})
        >>> new_accuracy(*network.init(spec.key), spec, arrays, network=network, block=2).tolist()
        [1.0]
    """
    right = evaluate(params, state, spec, arrays, network=network, block=block)["accuracy"]
    number = len(arrays.counts)
    means = disam_jax.mean_by_domain(right, arrays.domain_ids, number).values
    return jnp.where(arrays.counts > 0, means, jnp.nan)


def measure_probe(
    params: Params,
    state: State,
    spec: RunSpec,
    inputs: jax.Array,
    labels: jax.Array,
    *,
    network: Network,
    method: Method,
    config: TrainConfig,
) -> tuple[jax.Array, jax.Array]:
    """Losses of the probe at w and at w + e.

    Args:
        params: Parameters of the network.
        state: Running statistics of the network.
        spec: Seed, target and hyperparameters of the run.
        inputs: n examples of each domain as the network gets them, [D, n, ...].
        labels: int32 [D, n].
        network: Network to evaluate.
        method: Method whose perturbation gives w + e.
        config: Configuration that all runs share.

    Returns:
        float32 [D] each. The held-out domain is absent from the perturbation and 0 at w + e.

    Example:
        >>> from disam_jax.dg.methods import METHODS
        >>> from disam_jax.dg.models.registry import make_network
        >>> network = make_network("linear", (3,), 2)
        >>> spec = RunSpec(jax.random.key(0), jnp.int32(0), jnp.int32(1), {})
        >>> options = {"network": network, "method": METHODS["SAM"], "config": TrainConfig(rho=0.1)}
        >>> inputs, labels = jnp.zeros((2, 1, 3)), jnp.zeros((2, 1), jnp.int32)
        >>> losses = jax.jit(lambda: measure_probe(*network.init(spec.key), spec, inputs, labels, **options))()
        >>> [[round(loss, 3) for loss in each.tolist()] for each in losses]
        [[0.693, 0.693], [0.766, 0.0]]
    """
    number, size = labels.shape
    flat = inputs.reshape(number * size, *inputs.shape[2:])
    is_source = (jnp.arange(number) != spec.target).astype(jnp.float32)

    def domain_losses(params: Params) -> disam_jax.DomainLosses:
        logits = network.apply(params, state, flat, spec.key, False).logits
        losses = example_losses(logits, labels.reshape(-1))
        return disam_jax.DomainLosses(losses.reshape(number, size).mean(1), is_source)

    rho = spec.hparams.get("rho", jnp.float32(config.rho))
    lam = spec.hparams.get("lam", 0.0)
    at_perturbed = disam_jax.value_and_grad(domain_losses, rho, lam, with_info=True, **method.ascent(spec.hparams))
    (_, info), _ = at_perturbed(params)
    return domain_losses(params).values, info.perturbed_domain_losses


def domain_sharpness(
    params: Params, state: State, spec: RunSpec, arrays: Arrays, *, network: Network, config: TrainConfig, probe: int
) -> jax.Array:
    """Sharpness of each domain, the held-out one too: L_d(w + e_d) - L_d(w), e_d = rho g_d / ||g_d||.

    Args:
        params: Parameters of the network.
        state: Running statistics of the network.
        spec: Seed, target and hyperparameters of the run.
        arrays: Data set.
        network: Network to evaluate.
        config: Configuration with `sharpness_rho`, the same for every method.
        probe: Number of training examples of each domain.

    Returns:
        float32 [D], in nats.

    Example:
        >>> from disam_jax.dg.data import domains, splits
        >>> from disam_jax.dg.models.registry import make_network
        >>> from disam_jax.dg.training.step import make_arrays
        >>> data = domains.join_domains("toy", [jnp.zeros((2, 3))], [jnp.zeros(2)], ["photo"], ["cat", "dog"])
        >>> arrays = make_arrays(data, (splits.whole(data),), standardise=False)
        >>> network = make_network("linear", (3,), 2)
        >>> spec = RunSpec(jax.random.key(0), jnp.int32(0), jnp.int32(0), {})
        >>> options = {"network": network, "config": TrainConfig(sharpness_rho=0.05), "probe": 2}
        >>> sharpness = domain_sharpness(*network.init(spec.key), spec, arrays, **options)
        >>> [round(each, 3) for each in sharpness.tolist()]
        [0.036]
    """

    def one(rows: jax.Array) -> jax.Array:
        inputs = standardised(arrays.inputs[rows], spec, arrays)
        return sharpness_of(params, state, spec, inputs, arrays.labels[rows], network=network, config=config)

    return jax.lax.map(one, probe_rows(spec, arrays, probe))


def sharpness_of(
    params: Params,
    state: State,
    spec: RunSpec,
    inputs: jax.Array,
    labels: jax.Array,
    *,
    network: Network,
    config: TrainConfig,
) -> jax.Array:
    """Sharpness of one domain.

    Args:
        params: Parameters of the network.
        state: Running statistics of the network.
        spec: Seed, target and hyperparameters of the run.
        inputs: Examples of the domain as the network gets them, [n, ...].
        labels: int32 [n].
        network: Network to evaluate.
        config: Configuration with `sharpness_rho`.

    Returns:
        float32 [], in nats.

    Example:
        >>> from disam_jax.dg.models.registry import make_network
        >>> network = make_network("linear", (3,), 2)
        >>> spec = RunSpec(jax.random.key(0), jnp.int32(0), jnp.int32(0), {})
        >>> inputs, labels = jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32)
        >>> options = {"network": network, "config": TrainConfig(sharpness_rho=0.05)}
        >>> sharpness = jax.jit(lambda: sharpness_of(*network.init(spec.key), spec, inputs, labels, **options))()
        >>> round(float(sharpness), 3)
        0.036
    """

    def loss(params: Params) -> jax.Array:
        return example_losses(network.apply(params, state, inputs, spec.key, False).logits, labels).mean()

    at_perturbed = disam_jax.value_and_grad(loss, config.sharpness_rho, 0.0, with_info=True)
    (_, info), _ = at_perturbed(params)
    return info.domain_sharpness.reshape(())
