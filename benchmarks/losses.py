"""What a step computes on a batch: the mean loss, or the domain losses in each of the library's forms.

Every function takes (parameters, running statistics, batch) and returns (losses, statistics after the batch).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import disam_jax
from benchmarks.workloads import Workload

Loss = Callable[[Any, Any, Any], tuple[Any, Any]]


def example_losses(work: Workload) -> Loss:
    """Cross-entropy of each example, [N]."""
    dtype = jnp.dtype(work.dtype)

    def fn(params, stats, batch):
        x, params = batch["x"], params
        if dtype != jnp.float32:
            x, params = jax.tree.map(lambda leaf: leaf.astype(dtype), (x, params))
        out = work.network.apply(params, stats, x, jax.random.key(0), True)
        return optax.softmax_cross_entropy_with_integer_labels(out.logits, batch["y"]), out.state

    return fn


def mean_loss(work: Workload) -> Loss:
    """One scalar: what a plain step descends on."""
    each = example_losses(work)

    def fn(params, stats, batch):
        losses, stats = each(params, stats, batch)
        return jnp.mean(losses), stats

    return fn


def flat(work: Workload) -> Loss:
    """By `mean_by_domain`: one batch, normalised as a whole."""
    each = example_losses(work)

    def fn(params, stats, batch):
        losses, stats = each(params, stats, batch)
        return disam_jax.mean_by_domain(losses, batch["domain"], work.num_domains), stats

    return fn


def grouped(work: Workload) -> Loss:
    """By `per_domain`: a `vmap` over the domains, each normalised by itself."""
    losses = disam_jax.per_domain(mean_loss(work), (None, None, 0))

    def fn(params, stats, batch):
        values, each = losses(params, stats, group(work, batch))
        return values, mean_statistics(each)

    return fn


def flat_on_subset(work: Workload, fraction: float) -> Loss:
    """`flat`, on a subset of each domain's examples."""
    whole = flat(work)

    def fn(params, stats, batch):
        subset = disam_jax.ascent_subset(group(work, batch), fraction)
        return whole(params, stats, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), subset))

    return fn


def group(work: Workload, batch: Any) -> Any:
    """[M n, ...] -> [M, n, ...]."""
    return jax.tree.map(lambda x: x.reshape(work.num_domains, -1, *x.shape[1:]), batch)


def mean_statistics(stats: Any) -> Any:
    """The running statistics after a step, from those that each domain alone would leave."""
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), stats)
