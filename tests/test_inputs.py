"""Whatever numbers and arrays JAX takes, every entry point takes, in every mode: the numbers of plain float32 arrays.

One table, entry point x kind of input x mode. The default run has each of them at least once; the
slow one has every pair of them.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import problems
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import enable_x64, slow

import disam_jax
from disam_jax import variants

M, N = 3, 16
X = np.random.default_rng(0).uniform(0.5, 2.0, (M, N)).astype(np.float32)
PRESENT, IDS = [1, 0, 1], np.repeat(np.arange(M), N)[np.random.default_rng(1).permutation(M * N)].tolist()
RHO, LAM, EPS = 1, 2, 0  # whole numbers, so that every dtype holds them


class Kind(NamedTuple):
    """How the parameters, the scalars, the weights and the ids are given."""

    values: Any  # of the parameters: dyadic, so that every dtype holds them
    leaf: Callable[[Any], Any]
    number: Callable[[int], Any]
    weights: Callable[[list[int]], Any]
    ids: Callable[[list[int]], Any]


def of(make, dtype):
    return lambda values: make(values, dtype)


NP, JNP, BF16 = np.asarray, jnp.asarray, ml_dtypes.bfloat16
VECTOR = [0.5, 0.25]
KINDS = {
    "python floats": Kind(0.75, float, float, list, list),
    "a list of python floats, python ints": Kind([0.5, 0.25], float, int, tuple, of(NP, np.int16)),
    "np.float32": Kind(0.75, np.float32, np.float32, of(NP, np.int8), of(NP, np.int8)),
    "np.float64": Kind(0.75, np.float64, np.float64, of(NP, np.float64), of(NP, np.int64)),
    "0-d numpy": Kind(0.75, NP, NP, of(NP, np.bool_), of(NP, np.uint8)),
    "numpy float16": Kind(NP(VECTOR), of(NP, np.float16), np.float16, of(NP, np.float16), of(NP, np.uint16)),
    "numpy float32": Kind(NP(VECTOR), of(NP, np.float32), np.int32, of(NP, np.uint8), of(NP, np.uint32)),
    "numpy float64": Kind(NP(VECTOR), of(NP, np.float64), of(NP, np.float64), of(NP, np.int64), of(NP, np.uint64)),
    "numpy bfloat16": Kind(NP(VECTOR), of(NP, BF16), of(NP, BF16), of(NP, BF16), of(NP, ml_dtypes.int4)),
    "jax bfloat16": Kind(NP(VECTOR), of(JNP, BF16), jnp.bfloat16, of(JNP, BF16), of(JNP, np.int8)),
    "jax float16": Kind(NP(VECTOR), of(JNP, np.float16), jnp.float16, of(JNP, np.int8), of(JNP, np.int32)),
    "jax float32": Kind(NP(VECTOR), of(JNP, np.float32), jnp.float32, of(JNP, np.bool_), of(JNP, np.uint8)),
    "jax weakly typed": Kind(0.75, JNP, JNP, of(JNP, np.int32), of(JNP, np.uint32)),
    "jax 0-d, jax integers": Kind(0.75, of(JNP, np.float32), jnp.int8, of(JNP, np.uint8), of(JNP, np.uint16)),
}
PLAIN = "jax float32"
ROUNDING = {"bfloat16": 2e-2, "float16": 3e-3}


def loss(w, x, train=True):
    assert train is True  # a keyword argument is neither mapped nor traced
    total = sum(jnp.sum(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(w))
    return jnp.mean((x * total - 1) ** 2)


losses = functools.partial(disam_jax.per_domain(loss), train=True)


# --- entry points: a function of (w, x, rho, lam, eps, weights, ids) --------------------------------------------------


def value_and_grad(w, x, rho, lam, eps, weights, ids):
    shared = lambda w, x: disam_jax.DomainLosses(losses(w, x), weights)
    return disam_jax.value_and_grad(shared, rho, lam, eps=eps, with_info=True)(w, x)


def with_a_variant(w, x, rho, lam, eps, weights, ids):
    return disam_jax.value_and_grad(losses, rho, lam, eps=eps, variant=variants.gsam(lam))(w, x)


def accumulated(w, x, rho, lam, eps, weights, ids):
    return disam_jax.accumulated_value_and_grad(loss, rho, lam, eps=eps, with_info=True)(w, x, train=True)


def part(w, x, rho, lam, eps, weights, ids):
    return disam_jax.subset_value_and_grad(losses, rho, lam, eps=eps, fraction=0.5)(w, x)


def updates(w, x, rho, lam, eps, weights, ids, **options):
    tx = disam_jax.disam(rho, lam, eps=eps, num_domains=M, **options)
    shared = lambda w: disam_jax.DomainLosses(losses(w, x), weights)
    first, state = tx.update(None, tx.init(w), w, domain_loss_fn=shared)
    return first, tx.update(None, state, w, domain_loss_fn=shared)[0]


def refreshed(*args):
    return updates(*args, refresh_every=2)


def stacked(w, x, rho, lam, eps, weights, ids):
    tx = disam_jax.disam(rho, lam, eps=eps)
    values, grads = disam_jax.per_domain_value_and_grad(loss)(w, x, train=True)
    mean = lambda w: jnp.mean(losses(w, x))
    return tx.update(grads, tx.init(w), w, domain_losses=values, grad_fn=jax.grad(mean))[0]


def domain_weights(w, x, rho, lam, eps, weights, ids):
    given = disam_jax.DomainLosses(losses(w, x), weights)
    return [disam_jax.domain_weights(given, lam, penalty=penalty) for penalty in ("variance", "std")]


def one_domain_weight(w, x, rho, lam, eps, weights, ids):
    return disam_jax.domain_weights(loss(w, x[0]), lam, penalty="std")  # no spread to divide by


def mean_by_domain(w, x, rho, lam, eps, weights, ids):
    flat = lambda w: disam_jax.mean_by_domain(jnp.asarray(w).reshape(-1)[:1] * jnp.ones(M * N, w.dtype), ids, M + 1)
    return flat(jnp.asarray(jax.tree.leaves(w)[0]))


def per_domain(w, x, rho, lam, eps, weights, ids):
    return disam_jax.per_domain(loss)(w, x, train=True)


def per_domain_value_and_grad(w, x, rho, lam, eps, weights, ids):
    return disam_jax.per_domain_value_and_grad(loss)(w, x, train=True)


def group_by_domain(w, x, rho, lam, eps, weights, ids):
    return disam_jax.group_by_domain(np.arange(M * N, dtype=np.float32), ids, M)


def ascent_subset(w, x, rho, lam, eps, weights, ids):
    return disam_jax.ascent_subset(x, 0.5)


def split_examples(w, x, rho, lam, eps, weights, ids):
    return disam_jax.split_examples(x, 0.5)


ENTRIES = {
    f.__name__: f
    for f in (
        value_and_grad,
        with_a_variant,
        accumulated,
        part,
        updates,
        refreshed,
        stacked,
        domain_weights,
        one_domain_weight,
        mean_by_domain,
        per_domain,
        per_domain_value_and_grad,
        group_by_domain,
        ascent_subset,
        split_examples,
    )
}
GRADIENTS = (value_and_grad, with_a_variant, accumulated, part, updates, refreshed, stacked)


# --- modes ------------------------------------------------------------------------------------------------------------


def arguments(kind):
    return (
        jax.tree.map(kind.leaf, kind.values),
        X,
        kind.number(RHO),
        kind.number(LAM),
        kind.number(EPS),
        kind.weights(PRESENT),
        kind.ids(IDS),
    )


def eager(entry, kind):
    return entry(*arguments(kind))


def jit(entry, kind):
    """Everything is traced, but for what works on the host."""
    if entry is group_by_domain:
        return eager(entry, kind)
    return jax.jit(entry)(*arguments(kind))


def jit_of_the_parameters(entry, kind):
    w, x, *rest = arguments(kind)
    return jax.jit(lambda w, x: entry(w, x, *rest))(w, x)


def explicit_mesh(entry, kind):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    w, x, *rest = arguments(kind)
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, P(None, "data")))
        return jax.jit(lambda w, x: entry(w, x, *rest))(w, x)


class Mode(NamedTuple):
    """How an entry point is called, and under which switches."""

    call: Callable[[Any, Kind], Any]
    switches: tuple[Callable[[], Any], ...] = ()


def strict():
    return jax.numpy_dtype_promotion("strict")


def no_rank_promotion():
    return jax.numpy_rank_promotion("raise")


MODES = {
    "eager": Mode(eager),
    "jit": Mode(jit),
    "disable_jit": Mode(eager, (jax.disable_jit,)),
    "strict dtype promotion": Mode(jit, (strict,)),
    "strict rank promotion": Mode(eager, (no_rank_promotion,)),
    "debug_nans": Mode(eager, (lambda: jax.debug_nans(True),)),
    "debug_infs": Mode(jit_of_the_parameters, (lambda: jax.debug_infs(True),)),
    "debug_nans and debug_infs without jit": Mode(
        eager, (lambda: jax.debug_nans(True), lambda: jax.debug_infs(True), jax.disable_jit)
    ),
    "x64": Mode(jit_of_the_parameters, (lambda: enable_x64(True), strict)),
    "checking_leaks": Mode(jit_of_the_parameters, (jax.checking_leaks,)),
    "explicit mesh": Mode(explicit_mesh),
}


def run(entry, kind, mode):
    with contextlib.ExitStack() as stack:
        for switch in (
            lambda: jax.numpy_dtype_promotion("standard"),
            lambda: jax.numpy_rank_promotion("allow"),
            lambda: jax.debug_nans(False),
            *mode.switches,
        ):
            stack.enter_context(switch())
        result = mode.call(entry, kind)
        w = jax.tree.map(jnp.asarray, arguments(kind)[0])
        return jax.tree.map(np.asarray, result), result, w


@functools.cache
def plain_numbers(entry, shape):
    """The parameters of that shape as float32 arrays, all else as in the plain kind, in one program."""
    values = [0.5, 0.25] if shape == "list" else 0.75 if shape == () else NP(VECTOR)
    kind = KINDS[PLAIN]._replace(values=values)
    return run(ENTRIES[entry], kind, MODES["jit"])[0]


def every_pair():
    """Each entry point with each kind; the modes go round, and each of them meets every entry point and every kind."""
    modes = list(MODES)
    assert len(modes) <= min(len(ENTRIES), len(KINDS))
    for (e, entry), (k, kind) in itertools.product(enumerate(ENTRIES), enumerate(KINDS)):
        yield entry, kind, modes[(e + k) % len(modes)]


@pytest.mark.dealt
@pytest.mark.parametrize(("entry", "kind", "mode"), list(every_pair()))
def test_every_input_in_every_mode_gives_the_numbers_of_float32_arrays(entry, kind, mode):
    given = KINDS[kind]
    got, raw, w = run(ENTRIES[entry], given, MODES[mode])
    want = plain_numbers(entry, "list" if isinstance(given.values, list) else np.shape(given.values))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(w)}
    tolerance = max(ROUNDING.get(dtype.name, 1e-5) for dtype in dtypes)
    assert problems.relative_error(got, want) < tolerance
    if ENTRIES[entry] in GRADIENTS:
        gradient = raw if ENTRIES[entry] is stacked else raw[1]
        assert jax.tree.map(lambda g: (g.dtype, g.weak_type), gradient) == jax.tree.map(
            lambda leaf: (leaf.dtype, leaf.weak_type), w
        )


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("form", ["value_and_grad", *slow("accumulated", "part", "updates", "refreshed")])
def test_python_floats_are_promoted_alike_in_both_passes(form, x64):
    """A weakly typed parameter times a float32 array is float32 at w, so it must be at w + e, with float64 on too."""
    x = jnp.asarray(X)

    def one(w, x):
        scaled = w * x
        assert scaled.dtype == jnp.float32
        return jnp.mean((scaled - 1) ** 2)

    grouped = disam_jax.per_domain(one)
    if form in ("updates", "refreshed"):
        tx = disam_jax.disam(0.5, 0.5, refresh_every=2 if form == "refreshed" else 1)
        gradient, _ = tx.update(None, tx.init(0.75), 0.75, domain_loss_fn=lambda w: grouped(w, x))
    elif form == "accumulated":
        _, gradient = disam_jax.accumulated_value_and_grad(one, 0.5, 0.5)(0.75, x)
    elif form == "part":
        _, gradient = disam_jax.subset_value_and_grad(grouped, 0.5, 0.5)(0.75, x)
    else:
        _, gradient = disam_jax.value_and_grad(grouped, 0.5, 0.5)(0.75, x)
    expected = jax.grad(lambda w: jnp.mean(grouped(w, x)))(0.75)
    assert (gradient.dtype, gradient.weak_type) == (expected.dtype, expected.weak_type)


@pytest.mark.usefixtures("nans_allowed")
@pytest.mark.parametrize("switch", [jax.debug_nans, jax.debug_infs], ids=["nans", "infs"])
def test_a_loss_that_is_not_finite_is_still_found_by_the_debuggers(switch):
    bad = jnp.float32(np.nan if switch is jax.debug_nans else np.inf)
    step = jax.jit(lambda w, bad: disam_jax.value_and_grad(lambda w: jnp.stack([w, w * bad]), 0.1, 0.5)(w))
    with switch(True), pytest.raises(FloatingPointError):
        jax.block_until_ready(step(jnp.float32(1.0), bad))
