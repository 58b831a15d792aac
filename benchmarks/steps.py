"""The sides of the comparison: whole optimizer steps, gradient and AdamW, as a user jits them.

A step is `step(params, optimizer state, running statistics, batch) -> the first three after it, and the loss`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import disam_jax
from benchmarks import losses
from benchmarks.workloads import Workload
from disam_jax import variants

RHO, LAM = 0.05, 0.1


class Step(NamedTuple):
    """A step of one workload.

    Attributes:
        init: parameters -> optimizer state.
        step: see the top of the file.
    """

    init: Callable[[Any], Any]
    step: Callable[[Any, Any, Any, Any], tuple[Any, Any, Any, Any]]


class Side(NamedTuple):
    """A side of the comparison.

    Attributes:
        summary: what it is, in a few words.
        make: workload -> Step.
        passes: forward and backward passes of a step, on average: its cost in plain steps when nothing else counts.
        period: after how many steps the work repeats.
        scanned: whether the passes are in a `lax.scan` over the domains, of which XLA counts one turn.
        plain: the plain step of the same form, where that is not the flat one.
    """

    summary: str
    make: Callable[[Workload], Step]
    passes: float = 2.0
    period: int = 1
    scanned: bool = False
    plain: str = "adamw"


def optimizer() -> optax.GradientTransformation:
    return optax.adamw(1e-3)


def with_gradient(gradient: Callable[[Any, Any, Any], Any]) -> Step:
    """The step of a gradient function that returns ((loss, statistics), gradient)."""
    tx = optimizer()

    def step(params, state, stats, batch):
        (loss, stats), grads = gradient(params, stats, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, stats, loss

    return Step(tx.init, step)


def plain(work: Workload) -> Step:
    return with_gradient(jax.value_and_grad(losses.mean_loss(work), has_aux=True))


def plain_grouped(work: Workload) -> Step:
    domain_losses = losses.grouped(work)

    def mean_loss(params, stats, batch):
        values, stats = domain_losses(params, stats, batch)
        return jnp.mean(values), stats

    return with_gradient(jax.value_and_grad(mean_loss, has_aux=True))


def plain_accumulated(work: Workload) -> Step:
    """What a user does whose batch does not fit: the gradient of one domain after another, added up."""
    value_and_grad = jax.value_and_grad(losses.mean_loss(work), has_aux=True)

    def gradient(params, stats, batch):
        def body(total, one_domain):
            (loss, after), grads = value_and_grad(params, stats, one_domain)
            return jax.tree.map(jnp.add, total, grads), (loss, after)

        zeros = jax.tree.map(jnp.zeros_like, params)
        total, (values, each) = jax.lax.scan(body, zeros, losses.group(work, batch))
        grads = jax.tree.map(lambda t: t / work.num_domains, total)
        return (jnp.mean(values), losses.mean_statistics(each)), grads

    return with_gradient(gradient)


def optax_sam(work: Workload, opaque: bool) -> Step:
    """`optax.contrib.sam` over AdamW. Transparent, it takes two updates, each with a gradient of its own."""
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(RHO))
    tx = optax.contrib.sam(optimizer(), adversary, sync_period=2, opaque_mode=opaque)
    gradient = jax.value_and_grad(losses.mean_loss(work), has_aux=True)

    def step_opaque(params, state, stats, batch):
        (loss, after), grads = gradient(params, stats, batch)
        updates, state = tx.update(grads, state, params, grad_fn=lambda p, _: gradient(p, stats, batch)[1])
        return optax.apply_updates(params, updates), state, after, loss

    def step_transparent(params, state, stats, batch):
        (loss, after), grads = gradient(params, stats, batch)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        updates, state = tx.update(gradient(params, stats, batch)[1], state, params)
        return optax.apply_updates(params, updates), state, after, loss

    return Step(tx.init, step_opaque if opaque else step_transparent)


def disam(work: Workload, form: Callable[[Workload], losses.Loss] = losses.flat, lam: float = LAM, **options) -> Step:
    return with_gradient(disam_jax.value_and_grad(form(work), RHO, lam, has_aux=True, **options))


def ascent_fraction(work: Workload, fraction: float) -> Step:
    return disam(work, ascent_loss_fn=losses.flat_on_subset(work, fraction))


def subset_perturbed(work: Workload, fraction: float) -> Step:
    """The statistics are those of the rest of the examples, the larger side."""
    loss = losses.flat(work)
    each = lambda params, batch, stats: loss(params, stats, batch)
    fn = disam_jax.subset_value_and_grad(each, RHO, LAM, fraction=fraction, axis=0, has_aux=True)

    def gradient(params, stats, batch):
        (loss, (_, stats)), grads = fn(params, batch, stats)
        return (loss, stats), grads

    return with_gradient(gradient)


def accumulated(work: Workload, axis_name: str | None = None) -> Step:
    loss = losses.mean_loss(work)
    one_domain = lambda params, batch, stats: loss(params, stats, batch)
    fn = disam_jax.accumulated_value_and_grad(one_domain, RHO, LAM, has_aux=True, axis_name=axis_name)

    def gradient(params, stats, batch):
        (loss, each), grads = fn(params, losses.group(work, batch), stats)
        return (loss, losses.mean_statistics(each)), grads

    return with_gradient(gradient)


def stacked(work: Workload) -> Step:
    """Per-domain gradients by `vmap`, handed to the transformation."""
    tx = optax.chain(disam_jax.disam(RHO, LAM), optimizer())
    each = disam_jax.per_domain(jax.value_and_grad(losses.mean_loss(work), has_aux=True), (None, None, 0))
    domain_losses = losses.grouped(work)

    def step(params, state, stats, batch):
        (values, after), grads = each(params, stats, losses.group(work, batch))
        grad_fn = jax.grad(lambda p: jnp.mean(domain_losses(p, stats, batch)[0]))
        updates, state = tx.update(grads, state, params, domain_losses=values, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state, losses.mean_statistics(after), jnp.mean(values)

    return Step(tx.init, step)


def refreshed(work: Workload, every: int, phase: int | None = None) -> Step:
    """The transformation with `refresh_every`; phase 0 computes a perturbation, 1 reuses it."""
    return transformed(work, phase, refresh_every=every)


def transformed(work: Workload, count: int | None, **options) -> Step:
    """The transformation with options; running statistics stay, for it has no auxiliary output.

    A `count` fixes its step count, so that XLA keeps one of the two branches and its counts are of that branch.
    """
    tx = optax.chain(disam_jax.disam(RHO, LAM, **options), optimizer())
    domain_losses = losses.flat(work)

    def step(params, state, stats, batch):
        if count is not None:
            state = (state[0]._replace(count=jnp.asarray(count, jnp.int32)), *state[1:])
        loss_fn = lambda p: domain_losses(p, stats, batch)[0]
        updates, state = tx.update(None, state, params, domain_loss_fn=loss_fn)
        return optax.apply_updates(params, updates), state, stats, optax.tree.get(state, "loss")

    return Step(tx.init, step)


def late_subset(work: Workload, fraction: float, begin: int = 0, at: int | None = None) -> Step:
    """`subset_perturbed` from a step on; the number of the step is the optimizer's.

    With `at` it is this number, so that XLA's counts are of one branch.
    """
    tx, loss = optimizer(), losses.flat(work)
    each = lambda params, batch, stats: loss(params, stats, batch)
    fn = disam_jax.subset_value_and_grad(each, RHO, LAM, fraction=fraction, begin=begin, axis=0, has_aux=True)

    def step(params, state, stats, batch):
        number = optax.tree.get(state, "count") if at is None else at
        (loss, (_, stats)), grads = fn(params, batch, stats, step=number)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, stats, loss

    return Step(tx.init, step)


def late(work: Workload, begin: int = 0, at: int | None = None) -> Step:
    """The transformation with `begin`; with `at`, of that step alone."""
    return transformed(work, at, begin=begin)


SIDES: Mapping[str, Side] = {
    "adamw": Side("a plain step", plain, passes=1.0),
    "adamw_grouped": Side("a plain step, grouped", plain_grouped, passes=1.0),
    "adamw_accumulated": Side("a plain step, one domain after another", plain_accumulated, passes=1.0, scanned=True),
    "optax_sam_opaque": Side("optax.contrib.sam, opaque", lambda work: optax_sam(work, opaque=True)),
    "optax_sam_transparent": Side("optax.contrib.sam, two updates", lambda work: optax_sam(work, opaque=False)),
    "sam": Side("sam, flat", lambda work: disam(work, lam=0.0)),
    "disam": Side("disam, flat", disam),
    "disam_grouped": Side("disam, grouped", lambda work: disam(work, losses.grouped), plain="adamw_grouped"),
    "disam_accumulated": Side("disam, accumulated", accumulated, scanned=True, plain="adamw_accumulated"),
    "disam_stacked": Side("disam, stacked gradients", stacked, plain="adamw_grouped"),
    "gsam": Side("disam with GSAM", lambda work: disam(work, variant=variants.gsam(0.1))),
    "gsam_clean": Side(
        "the same, clean reference", lambda work: disam(work, variant=variants.gsam(0.1, "clean")), passes=8 / 3
    ),
    "sagm": Side("disam with SAGM", lambda work: disam(work, variant=variants.sagm(1e-3))),
    **{
        f"refresh_{k}": Side(f"disam, refresh_every={k}", lambda work, k=k: refreshed(work, k), 1 + 1 / k, k)
        for k in (2, 5, 10)
    },
    "ascent_1/2": Side("disam, half of the batch in the ascent", lambda work: ascent_fraction(work, 0.5), 1.5),
    "ascent_1/4": Side("disam, a quarter of it", lambda work: ascent_fraction(work, 0.25), 1.25),
    "part_1/4": Side("disam for a quarter, the rest plain", lambda work: subset_perturbed(work, 0.25), 1.25),
    "late_1/4": Side("the same with a begin, after it", lambda work: late_subset(work, 0.25), 1.25),
    "late": Side("disam with a begin, after it", late),
}
