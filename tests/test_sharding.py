"""Many devices: the numbers of one device, no gather that a plain step doesn't have, shardings kept."""

import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import rest, slow

import disam_jax
from disam_jax import variants

pytestmark = pytest.mark.dealt

DEVICES = 8
PROBLEM = problems.make_problem(seed=50, num_domains=8, per_domain=16, hidden=8, classes=8)
RHO, LAM = 0.1, 0.5
OPTIONS = {"sam": {}, "asam": {"adaptive": True}, "gsam": {"variant": variants.gsam(0.3)}}


@pytest.fixture(autouse=True)
def _standard_promotion():
    if jax.device_count() < DEVICES:
        pytest.skip(f"needs {DEVICES} devices, {jax.device_count()} here")
    with jax.numpy_dtype_promotion("standard"), jax.debug_nans(False):
        yield


@pytest.fixture
def mesh():
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))


def gradient(form, params, batch, **options):
    if form == "grouped":
        fn = disam_jax.value_and_grad(disam_jax.per_domain(problems.loss), RHO, LAM, with_info=True, **options)
    elif form == "flat":
        losses = lambda p, b: disam_jax.mean_by_domain(problems.example_losses(p, b), b["domain"], 8)
        fn = disam_jax.value_and_grad(losses, RHO, LAM, with_info=True, **options)
    else:
        fn = disam_jax.accumulated_value_and_grad(problems.loss, RHO, LAM, with_info=True, **options)
    return fn(params, batch)


@functools.cache
def on_one_device(form, variant="sam"):
    batch = PROBLEM.flat if form == "flat" else PROBLEM.batch
    return jax.jit(lambda p, b: gradient(form, p, b, **OPTIONS[variant]))(PROBLEM.params, batch)


SPLITS = {
    # how the batch lies on the devices
    "domains over devices": ("grouped", P("data")),
    "a part of each domain on each device": ("grouped", P(None, "data")),
    "flat batch, domains in blocks": ("flat", P("data")),
    "flat batch, shuffled": ("flat shuffled", P("data")),
    "accumulated, a part of each domain on each device": ("accumulated", P(None, "data")),
}


def parameter_shardings(mesh):
    spec = {"hidden": {"w": P(None, "data"), "b": P("data")}, "out": {"w": P("data", None), "b": P("data")}}
    return jax.tree.map(lambda s: NamedSharding(mesh, s), spec, is_leaf=lambda x: isinstance(x, P))


@functools.cache
def compiled(split, variant="sam", sharded_params=False):
    """The program of a step on many devices, and its arguments."""
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    form, spec = SPLITS[split]
    batch = PROBLEM.flat if "flat" in form else PROBLEM.batch
    if form == "flat shuffled":
        order = np.random.default_rng(0).permutation(8 * 16)
        form, batch = "flat", jax.tree.map(lambda x: np.asarray(x)[order], batch)
    shardings = parameter_shardings(mesh) if sharded_params else NamedSharding(mesh, P())
    args = jax.device_put(PROBLEM.params, shardings), jax.device_put(batch, NamedSharding(mesh, spec))
    step = jax.jit(lambda p, b: gradient(form, p, b, **OPTIONS[variant]))
    return form, step.lower(*args).compile(), args


# Those of each form that are likeliest to go wrong.
HARD = (
    "a part of each domain on each device",
    "flat batch, shuffled",
    "accumulated, a part of each domain on each device",
)


@pytest.mark.parametrize("variant", ["sam", *slow("asam", "gsam")])
@pytest.mark.parametrize("split", [*HARD, *rest(*(split for split in SPLITS if split not in HARD))])
def test_jit_with_a_sharded_batch_gives_the_numbers_of_one_device(split, variant):
    form, step, args = compiled(split, variant)
    chex.assert_trees_all_close(step(*args), on_one_device(form, variant), rtol=2e-4, atol=2e-6)


@pytest.mark.slow
def test_sharded_parameters_keep_their_sharding_and_their_numbers(mesh):
    params = jax.device_put(PROBLEM.params, parameter_shardings(mesh))
    batch = jax.device_put(PROBLEM.batch, NamedSharding(mesh, P(None, "data")))
    tx = optax.chain(disam_jax.disam(RHO, LAM, num_domains=8, refresh_every=2), optax.adamw(1e-3))

    @jax.jit
    def step(params, state, batch):
        f = lambda p: disam_jax.per_domain(problems.loss)(p, batch)
        updates, state = tx.update(None, state, params, domain_loss_fn=f)
        return updates, state, optax.apply_updates(params, updates)

    state = jax.jit(tx.init)(params)
    updates, state, new = step(params, state, batch)
    for tree in (updates, new, state[0].perturbation):
        for leaf, like in zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True):
            assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
    _, want = on_one_device("grouped")
    _, state = disam_jax.disam(RHO, LAM).update(
        None,
        disam_jax.disam(RHO, LAM).init(PROBLEM.params),
        PROBLEM.params,
        domain_loss_fn=lambda p: disam_jax.per_domain(problems.loss)(p, PROBLEM.batch),
    )
    plain = optax.adamw(1e-3)
    expected, _ = plain.update(want, plain.init(PROBLEM.params), PROBLEM.params)
    chex.assert_trees_all_close(updates, expected, rtol=1e-3, atol=1e-6)


def collectives(program):
    """Each collective of the compiled module, with the number of elements that it brings together."""
    found = re.findall(
        r"= (\(?[a-z0-9]+\[[^=]*?) (all-gather|all-to-all|all-reduce|collective-permute)(?:-start)?\(",
        program.as_text(),
    )
    return [
        (kind, int(np.prod([int(d) for d in shape.split(",") if d])))
        for result, kind in found
        for shape in re.findall(r"\[([\d,]*)\]", result)
    ]


@pytest.mark.parametrize(
    "split", ["a part of each domain on each device", "flat batch, shuffled", *rest("domains over devices")]
)
@pytest.mark.parametrize("sharded_params", [False, True], ids=["replicated", "sharded parameters"])
def test_no_gather_that_the_plain_step_does_not_have(split, sharded_params):
    form, step, args = compiled(split, sharded_params=sharded_params)

    def plain(params, batch):
        if form == "flat":
            return jax.grad(problems.loss)(params, batch)
        return jax.grad(lambda p: jnp.mean(disam_jax.per_domain(problems.loss)(p, batch)))(params)

    def largest(sizes, kind):
        return max((size for k, size in sizes if k == kind), default=0)

    ours = collectives(step)
    theirs = collectives(jax.jit(plain).lower(*args).compile())
    assert any(kind == "all-reduce" for kind, _ in ours)
    # The [M] losses and weights may be gathered; nothing the size of a parameter or of a batch may.
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        assert largest(ours, kind) <= max(largest(theirs, kind), DEVICES), (ours, theirs)


# --- an explicit mesh, on which the type of an array says how it lies -------------------------------------------------


def explicit_mesh():
    return jax.set_mesh(jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Explicit,)))


@pytest.fixture
def explicit():
    with explicit_mesh():
        yield


X = np.random.default_rng(5).normal(size=(4, 32, 16)).astype(np.float32)
DOMAINS = np.concatenate([X, X[::-1] + 1])  # as many as devices
VECTORS = {"w": np.linspace(0.1, 1, 16, dtype=np.float32), "b": np.float32(0.3)}
# The batch is split by example; or each parameter is split and the batch is whole.
LAID_OUT = {
    "examples": ({"w": P(), "b": P()}, P(None, "data")),
    "domains": ({"w": P(), "b": P()}, P("data")),
    "parameters": ({"w": P("data"), "b": P()}, P()),
}


def one_loss(w, x):
    return jnp.mean((jnp.sum(x * w["w"][None], axis=1) + w["b"]) ** 2)


BY_SCAN = {
    "accumulated": {},
    "normalised": {"domain_gradients": "normalised"},
    "own, penalised": {"domain_gradients": "own", "descent_lam": 0.3},
}


def explicit_step(form, w, x):
    grouped = disam_jax.per_domain(one_loss)
    if form in BY_SCAN:
        return disam_jax.accumulated_value_and_grad(one_loss, RHO, LAM, **BY_SCAN[form])(w, x)[1]
    if form == "part":
        return disam_jax.subset_value_and_grad(grouped, RHO, LAM)(w, x)[1]
    if form == "late part":
        fn = disam_jax.subset_value_and_grad(grouped, RHO, LAM, begin=1)
        return jax.tree.map(jnp.add, *(fn(w, x, step=step)[1] for step in (0, 1)))
    if form == "ascent part":
        of_a_part = lambda w, x: grouped(w, disam_jax.ascent_subset(x, 0.25))
        return disam_jax.value_and_grad(grouped, RHO, LAM, ascent_loss_fn=of_a_part)(w, x)[1]
    # Of a variant that uses the length of the ascent gradient, not its direction alone.
    options = {"variant": disam_jax.variants.gsam(0.5), "refresh_every": 2 if form == "refreshed" else 1}
    options |= {"domain_gradients": "normalised"} if form == "stacked, normalised" else {}
    options |= {"begin": 1} if form == "late" else {}
    tx = disam_jax.disam(RHO, LAM, num_domains=len(x), **options)
    state = tx.init(w)
    if form.startswith("stacked"):
        losses, grads = disam_jax.per_domain_value_and_grad(one_loss)(w, x)
        mean = lambda w: jnp.mean(grouped(w, x))
        return tx.update(grads, state, w, domain_losses=losses, grad_fn=jax.grad(mean))[0]
    for _ in range(2):
        updates, state = tx.update(None, state, w, domain_loss_fn=lambda w: grouped(w, x))
    return updates


@functools.cache
def without_a_mesh(form, more_domains):
    return jax.jit(lambda w, x: explicit_step(form, w, x))(VECTORS, DOMAINS if more_domains else X)


EXPLICIT = ["accumulated", "refreshed", "stacked", "part", "late"]
SLOW = ["transform", "late part", "ascent part", "normalised", "own, penalised", "stacked, normalised"]


def explicit_cases():
    for form, layout, jit in itertools.product([*EXPLICIT, *SLOW], LAID_OUT, (True, False)):
        # Where domains are split, the core does something of its own in these two forms alone.
        quick = form in {"accumulated", "stacked"} if layout == "domains" else form not in SLOW
        marks = [] if jit and quick and (layout == "domains" or form == "stacked") else pytest.mark.slow
        yield pytest.param(form, layout, jit, marks=marks, id=f"{form}-{layout}-{'jit' if jit else 'eager'}")


@pytest.mark.parametrize(("form", "layout", "jit"), list(explicit_cases()))
def test_an_explicit_mesh_gives_the_numbers_of_one_device_and_keeps_shardings(form, layout, jit):
    specs, split = LAID_OUT[layout]
    step = lambda w, x: explicit_step(form, w, x)
    want = without_a_mesh(form, layout == "domains")
    with explicit_mesh():
        w = jax.tree.map(jax.device_put, VECTORS, specs)
        x = jax.device_put(DOMAINS if layout == "domains" else X, split)
        if form in BY_SCAN and layout == "domains":
            with pytest.raises(ValueError, match=r"batch has its domains split over 8 devices.*reshard"):
                step(w, x)
            return
        got = (jax.jit(step) if jit else step)(w, x)
    # Sums over the devices round with the size of the largest entry.
    largest = max(np.abs(leaf).max() for leaf in want.values())
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5 * largest)
    for name, leaf in got.items():
        assert leaf.sharding.is_equivalent_to(w[name].sharding, leaf.ndim)


def test_the_state_lies_on_every_device_where_domains_are_split(explicit):
    tx, w = disam_jax.disam(RHO, LAM, num_domains=len(DOMAINS)), jax.device_put(VECTORS, P())
    x = jax.device_put(DOMAINS, P("data"))
    losses = lambda w: disam_jax.per_domain(one_loss)(w, x)
    _, state = jax.jit(lambda w: tx.update(None, tx.init(w), w, domain_loss_fn=losses))(w)
    for name in ("domain_losses", "domain_weights", "perturbed_domain_losses"):
        assert jax.typeof(getattr(state, name)).sharding.spec == P(None), name


@pytest.mark.slow
@pytest.mark.rest
def test_a_flat_batch_on_an_explicit_mesh(explicit):
    ids = np.random.default_rng(6).integers(0, 4, 64).astype(np.uint8)
    losses = np.random.default_rng(6).uniform(size=64).astype(np.float32)
    want = disam_jax.mean_by_domain(losses, ids, 4)
    on_mesh = jax.device_put((losses, ids), P("data"))
    got = jax.jit(lambda losses, ids: disam_jax.mean_by_domain(losses, ids, 4))(*on_mesh)
    chex.assert_trees_all_close(got, want, rtol=1e-6)


@pytest.mark.parametrize("cut", [disam_jax.ascent_subset, disam_jax.split_examples])
def test_a_part_that_does_not_divide_by_the_devices_says_so(cut, explicit):
    x = jax.device_put(X[:, :16], P(None, "data"))
    with pytest.raises(ValueError, match=r"split over 8 devices .* 4 of its 16 do not divide by 8.*reshard"):
        cut(x, 0.25)


# --- code that is written for one device of many ----------------------------------------------------------------------


def per_device_flat():
    """A flat shuffled batch with unequal domains, some absent on some devices: [devices, n, ...]."""
    rng = np.random.default_rng(1)
    flat = {k: np.asarray(v) for k, v in PROBLEM.flat.items()}
    keep = rng.permutation(128)[:96]
    keep = keep[np.argsort(flat["domain"][keep] % 4, kind="stable")]
    flat = {k: v[keep] for k, v in flat.items()}
    return flat, {k: v.reshape(DEVICES, 12, *v.shape[1:]) for k, v in flat.items()}


def flat_losses(p, b):
    return disam_jax.mean_by_domain(problems.example_losses(p, b), b["domain"], 8)


MAPPED = {
    "vmap with an axis name": lambda f, mesh: jax.jit(jax.vmap(f, in_axes=(None, 0), axis_name="data")),
    "pmap": lambda f, mesh: jax.pmap(f, in_axes=(None, 0), axis_name="data"),
    "shard_map, checking off": lambda f, mesh: _shard_map(f, mesh, False),
    "shard_map, checking on": lambda f, mesh: _shard_map(f, mesh, True),
}


def _shard_map(f, mesh, check):
    def one(p, b):
        return jax.tree.map(lambda x: x[None], f(p, jax.tree.map(lambda x: x[0], b)))

    mapped = jax.shard_map(one, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"), check_vma=check)
    return jax.jit(mapped)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*pmap.*:DeprecationWarning")
@pytest.mark.parametrize("variant", ["gsam", *slow("sam", "asam")])
@pytest.mark.parametrize("how", MAPPED)
def test_axis_name_gives_the_numbers_of_the_whole_batch(how, variant, mesh):
    whole, parts = per_device_flat()
    assert len({tuple(np.bincount(d, minlength=8)) for d in parts["domain"]}) > 1
    fn = lambda axis_name: disam_jax.value_and_grad(
        flat_losses, RHO, LAM, with_info=True, axis_name=axis_name, **OPTIONS[variant]
    )
    want = jax.jit(fn(None))(PROBLEM.params, whole)
    got = MAPPED[how](fn("data"), mesh)(PROBLEM.params, parts)
    got = jax.tree.map(np.asarray, got)
    for device in range(DEVICES):
        chex.assert_trees_all_close(jax.tree.map(lambda x, d=device: x[d], got), want, rtol=2e-4, atol=2e-6)


@functools.cache
def on_the_whole_batch():
    whole, _ = per_device_flat()
    return jax.jit(disam_jax.value_and_grad(flat_losses, RHO, LAM))(PROBLEM.params, whole)


@pytest.mark.parametrize("how", ["vmap with an axis name", *rest("shard_map, checking off")])
def test_axis_name_in_the_transformation_and_in_the_stacked_form(how, mesh):
    _, parts = per_device_flat()
    tx = disam_jax.disam(RHO, LAM, num_domains=8, axis_name="data")

    def closure(p, b):
        return tx.update(None, tx.init(p), p, domain_loss_fn=lambda p: flat_losses(p, b))[0]

    def stacked(p, b):
        losses = flat_losses(p, b)
        grads = jax.jacrev(lambda p: flat_losses(p, b).values)(p)
        return tx.update(grads, tx.init(p), p, domain_losses=losses, grad_fn=lambda p: jax.grad(problems.loss)(p, b))[0]

    _, want = on_the_whole_batch()
    for form in (closure, stacked):
        got = MAPPED[how](form, mesh)(PROBLEM.params, parts)
        chex.assert_trees_all_close(jax.tree.map(lambda x: np.asarray(x)[3], got), want, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("form", ["closure", "stacked"])
def test_no_domain_on_any_device_gives_a_gradient_of_zero(form):
    tx = disam_jax.disam(RHO, LAM, num_domains=2, axis_name="data")

    def step(x):
        w, losses = jnp.ones(2), lambda w: disam_jax.DomainLosses(jnp.stack([w @ x] * 2), jnp.zeros(2))
        if form == "closure":
            return tx.update(None, tx.init(w), w, domain_loss_fn=losses)[0]
        grads = jnp.stack([x, x])
        return tx.update(grads, tx.init(w), w, domain_losses=losses(w), grad_fn=lambda w: x)[0]

    assert (jax.jit(jax.vmap(step, axis_name="data"))(jnp.ones((3, 2))) == 0).all()


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("how", [*rest("vmap with an axis name"), "shard_map, checking off"])
def test_axis_name_in_the_accumulated_form(how, mesh):
    parts = jax.tree.map(lambda x: np.stack(np.split(np.asarray(x), DEVICES, axis=1)), PROBLEM.batch)
    fn = disam_jax.accumulated_value_and_grad(problems.loss, RHO, LAM, with_info=True, axis_name="data")
    want = on_one_device("accumulated")
    got = MAPPED[how](fn, mesh)(PROBLEM.params, parts)
    chex.assert_trees_all_close(jax.tree.map(lambda x: np.asarray(x)[5], got), want, rtol=2e-4, atol=2e-6)


@pytest.mark.slow
@pytest.mark.rest
def test_shard_map_with_the_mean_inside_the_closure_needs_no_axis_name(mesh):
    def step(p, b):
        losses = lambda p: jax.lax.pmean(disam_jax.per_domain(problems.loss)(p, b), "data")
        return disam_jax.value_and_grad(losses, RHO, LAM)(p)

    mapped = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P())
    got = jax.jit(mapped)(PROBLEM.params, PROBLEM.batch)
    (loss, _), grads = on_one_device("grouped")
    chex.assert_trees_all_close(got, (loss, grads), rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("how", ["vmap with an axis name", "shard_map, checking off"])
def test_a_loss_that_is_not_finite_on_one_device_surfaces_on_all(how, mesh):
    _, parts = per_device_flat()
    parts["x"] = parts["x"].copy()
    parts["x"][2, 0, 0] = np.nan
    fn = disam_jax.value_and_grad(flat_losses, RHO, LAM, axis_name="data")
    loss, grads = MAPPED[how](fn, mesh)(PROBLEM.params, parts)
    assert np.isnan(loss).all()
    grads = jax.tree.map(np.asarray, grads)
    assert all(np.isnan(problems.flatten(jax.tree.map(lambda g, d=d: g[d], grads))).any() for d in range(DEVICES))


def test_a_sharding_that_does_not_fit_is_an_error_that_names_the_sizes(mesh):
    three = jax.tree.map(lambda x: x[:3], PROBLEM.batch)
    with pytest.raises(ValueError, match=r"(?s)8.*3"):
        jax.device_put(three, NamedSharding(mesh, P("data")))  # 3 domains do not split over 8 devices
    elsewhere = jax.device_put(PROBLEM.params, jax.devices()[0])
    batch = jax.device_put(PROBLEM.batch, NamedSharding(mesh, P("data")))
    with pytest.raises(ValueError, match="incompatible devices"):
        jax.jit(lambda p, b: gradient("grouped", p, b))(elsewhere, batch)
