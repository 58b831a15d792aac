"""`disam_jax.nnx.value_and_grad` with rho = 0 and lam = 0 does what `flax.nnx.value_and_grad` does, to every argument.

Module kind x argument form x mode: the loss, the gradients, and everything that the loss function leaves behind in the
objects of the caller, variables and plain attributes alike.
"""

import itertools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import slow

import disam_jax.nnx

M, N, FEATURES = 2, 6, 4

FLAX = tuple(map(int, flax.__version__.split(".")[:2]))


@pytest.fixture(autouse=True)
def _as_flax_needs_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.debug_nans(False):
        yield


# --- modules: everything that a call may write to --------------------------------------------------------------------


class Linear(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(FEATURES, 3, rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


class BatchNorm(Linear):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.layer(x))


class BatchNormModeAtTheCall(BatchNorm):
    """Built for evaluation and called for training."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm = nnx.BatchNorm(3, use_running_average=True, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.norm(self.layer(x), use_running_average=False), deterministic=False)


class FrozenPartNeverCalled(BatchNorm):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.unused = nnx.BatchNorm(3, use_running_average=True, rngs=rngs)


class Dropout(Linear):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.layer(x))


class SpectralNorm(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.SpectralNorm(nnx.Linear(FEATURES, 3, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.layer(x, update_stats=True)


class WeightNorm(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.WeightNorm(nnx.Linear(FEATURES, 3, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


class ActNorm(Linear):
    """Initialises itself from the first batch: a plain attribute and two parameters are written by the call."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.scale, self.bias, self.ready = nnx.Param(jnp.ones(3)), nnx.Param(jnp.zeros(3)), False

    def __call__(self, x):
        y = self.layer(x)
        if not self.ready:
            self.scale[...] = 1 / (jnp.std(y, axis=0) + 1e-3)
            self.bias[...] = -jnp.mean(y, axis=0)
            self.ready = True
        return (y + self.bias) * self.scale


class Clipped(Linear):
    """Projects its weights in place."""

    def __call__(self, x):
        y = self.layer(x)
        self.layer.kernel[...] = jnp.clip(self.layer.kernel[...], -0.1, 0.1)
        return y


class Count(nnx.Variable):
    pass


class Counter(Linear):
    """Counts its calls in a variable and in a plain attribute."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.count, self.calls = Count(jnp.zeros((), jnp.int32)), 0

    def __call__(self, x):
        self.count[...] += 1
        self.calls += 1
        return self.layer(x)


class Sower(Linear):
    """Adds variables at the call."""

    def __call__(self, x):
        y = self.layer(x)
        self.logits = nnx.Intermediate(y)
        self.calls = Count(jnp.zeros((), jnp.int32))
        return y


class Tied(nnx.Module):
    """One variable at two paths."""

    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(FEATURES, 3, rngs=rngs), nnx.Linear(FEATURES, 3, rngs=rngs)
        self.down.kernel = self.up.kernel

    def __call__(self, x):
        return self.up(x) + self.down(jnp.sin(x))


def several(count, make):
    """A module with a leading axis of members, each with its own random streams."""
    return nnx.split_rngs(splits=count)(nnx.vmap(make, in_axes=0, out_axes=0))


class Ensemble(nnx.Module):
    """Members that `nnx.vmap` makes and runs."""

    def __init__(self, rngs):
        self.members = several(3, lambda rngs: BatchNorm(rngs))(rngs)

    def __call__(self, x):
        return jnp.mean(nnx.vmap(lambda member, x: member(x), in_axes=(0, None))(self.members, x), axis=0)


class Rematerialised(BatchNorm):
    def __call__(self, x):
        return nnx.remat(lambda module, x: BatchNorm.__call__(module, x))(self, x)


class Scanned(nnx.Module):
    """Layers that `nnx.scan` runs, with statistics of their own."""

    def __init__(self, rngs):
        def make(rngs):
            block = BatchNorm(rngs)
            block.layer = nnx.Linear(3, 3, rngs=rngs)
            return block

        self.first = nnx.Linear(FEATURES, 3, rngs=rngs)
        self.blocks = several(2, make)(rngs)

    def __call__(self, x):
        def apply(x, block):
            return block(x)

        return nnx.scan(apply, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(self.first(x), self.blocks)


class Several(BatchNorm):
    """Statistics, noise, a count and a plain attribute, all moved by one call."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.count, self.calls = Count(jnp.zeros((), jnp.int32)), 0

    def __call__(self, x):
        self.count[...] += 1
        self.calls += 1
        return self.drop(super().__call__(x))


KINDS = {
    kind.__name__: kind
    for kind in (
        Linear,
        BatchNorm,
        BatchNormModeAtTheCall,
        FrozenPartNeverCalled,
        Dropout,
        SpectralNorm,
        WeightNorm,
        ActNorm,
        Clipped,
        Counter,
        Sower,
        Tied,
        Ensemble,
        Rematerialised,
        Scanned,
        Several,
    )
}


# --- argument forms: (positional, keyword, argnums), with a loss that takes them -------------------------------------


def domain_losses(logits):
    return jnp.mean(logits.reshape(M, N, -1) ** 2, axis=(1, 2)) * jnp.arange(1.0, M + 1)


def _model(model, x, rngs):
    return (lambda model, x: domain_losses(model(x))), (model, x), {}, 0


def _by_keyword(model, x, rngs):
    return (lambda model, x: domain_losses(model(x))), (), {"x": x, "model": model}, 0


def _second(model, x, rngs):
    return (lambda x, model: domain_losses(model(x))), (x, model), {}, 1


def _noise(logits, rngs):
    return logits + jax.random.normal(rngs.noise(), logits.shape)


def _rngs(model, x, rngs):
    return (lambda model, x, rngs: domain_losses(_noise(model(x), rngs))), (model, x, rngs), {}, 0


def _rngs_by_keyword(model, x, rngs):
    return (lambda model, x, rngs: domain_losses(_noise(model(x), rngs))), (model, x), {"rngs": rngs}, 0


def _rngs_in_a_dict(model, x, rngs):
    return (
        (lambda model, given: domain_losses(_noise(model(given["x"]), given["rngs"]))),
        (model, {"x": x, "rngs": rngs}),
        {},
        0,
    )


def _teacher(model, x, rngs):
    teacher = BatchNorm(nnx.Rngs(5))
    return (
        (lambda model, teacher, x: domain_losses(model(x) - jax.lax.stop_gradient(teacher(x)))),
        (model, teacher, x),
        {},
        0,
    )


def _metric(model, x, rngs):
    def loss(model, metric, x):
        losses = domain_losses(model(x))
        metric.update(values=jax.lax.stop_gradient(losses))
        return losses

    return loss, (model, nnx.metrics.Average("values"), x), {}, 0


def _two_models(model, x, rngs):
    return (lambda a, b, x: domain_losses(a(x) + b(x))), (model, Dropout(nnx.Rngs(7))), {"x": x}, (0, 1)


def _model_and_array(model, x, rngs):
    return (lambda model, x: domain_losses(model(x))), (model, x), {}, (0, 1)


def _tuple(model, x, rngs):
    return (lambda models, x: domain_losses(models[0](x) + models[1](x))), ((model, Counter(nnx.Rngs(7))), x), {}, 0


def _dict(model, x, rngs):
    given = {"a": model, "b": Linear(nnx.Rngs(7)), "temperature": jnp.float32(2.0)}
    return (lambda m, x: domain_losses((m["a"](x) + m["b"](x)) / m["temperature"])), (given, x), {}, 0


def _variable(model, x, rngs):
    scale = nnx.Param(jnp.float32(2.0))

    def loss(scale, model, x):
        return domain_losses(scale[...] * model(x))

    return loss, (scale, model, x), {}, 0


class Scale(nnx.Variable):
    pass


def _variable_of_its_own_type(model, x, rngs):
    """Differentiated as a whole, though no filter for parameters selects it."""
    return (lambda scale, model, x: domain_losses(scale[...] * model(x))), (Scale(jnp.float32(2.0)), model, x), {}, 0


def _static(model, x, rngs):
    def loss(model, x, train=False, name="none"):
        return domain_losses(model(x)) if train and name == "mean" else None

    return loss, (model, x), {"train": True, "name": "mean"}, 0


def _pytree(model, x, rngs):
    def loss(params, model, x):
        return domain_losses(model(x) * params["scale"] + params["bias"])

    return loss, ({"scale": jnp.float32(2.0), "bias": jnp.ones(3)}, model, x), {}, 0


FORMS = {
    form.__name__.strip("_"): form
    for form in (
        _model,
        _by_keyword,
        _second,
        _rngs,
        _rngs_by_keyword,
        _rngs_in_a_dict,
        _teacher,
        _metric,
        _two_models,
        _model_and_array,
        _tuple,
        _dict,
        _variable,
        _variable_of_its_own_type,
        _static,
        _pytree,
    )
}


# --- the two sides ---------------------------------------------------------------------------------------------------


def plain(loss, argnums):
    def mean(*args, **kwargs):
        losses, aux = loss(*args, **kwargs)
        return jnp.mean(losses), aux

    mean.__wrapped__ = loss.__wrapped__
    return nnx.value_and_grad(mean, argnums=argnums, has_aux=True)


def ours(loss, argnums):
    return disam_jax.nnx.value_and_grad(loss, rho=0.0, lam=0.0, argnums=argnums, has_aux=True)


def in_a_scan(step):
    """The step as the body of a scan over two inputs, all of it one program."""

    def steps(args, kwargs):
        def body(args, _):
            return args, step(args, kwargs)

        _, outputs = nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))(args, jnp.arange(2))
        return outputs

    return steps


MODES = {"eager": lambda step: step, "jit": nnx.jit, "remat": lambda step: nnx.jit(nnx.remat(step)), "scan": in_a_scan}

# A scan hands on what it was given: a call that adds variables or counts in a plain attribute cannot be its body.
# Statistics, random numbers, shared parameters and modules in modules are in these.
QUICK = ("BatchNorm", "Dropout", "Tied", "Ensemble")
NOT_IN_A_SCAN = {"ActNorm", "Counter", "Several", "Sower"}


def run(transform, kind, form, mode, calls=2):
    """Losses and gradients of some calls, and what the arguments hold after them."""
    if kind in ("SpectralNorm", "WeightNorm") and not hasattr(nnx, kind):
        pytest.skip(f"this version of Flax has no nnx.{kind}")
    model = KINDS[kind](nnx.Rngs(0, noise=1, dropout=2))
    x = jnp.asarray(np.random.default_rng(3).normal(size=(M * N, FEATURES)), jnp.float32)
    loss, args, kwargs, argnums = FORMS[form](model, x, nnx.Rngs(11, noise=12))
    with_aux = lambda *args, **kwargs: (loss(*args, **kwargs), {"seen": x.sum()})
    # flax reads the signature of the function to find what is given by keyword, and so does ours.
    with_aux.__wrapped__ = loss
    static = {name: value for name, value in kwargs.items() if isinstance(value, (bool, str))}
    moving = {name: value for name, value in kwargs.items() if name not in static}
    fn = transform(with_aux, argnums)
    step = MODES[mode](lambda args, kwargs: fn(*args, **kwargs, **static))
    outputs = [step(args, moving) for _ in range(calls)]
    graphdef, state = nnx.split((args, kwargs))
    return outputs, graphdef, state


def arrays(tree):
    leaves = jax.tree.leaves(tree)
    return [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in leaves]


def assert_same(got, want):
    assert str(jax.tree.structure(got)) == str(jax.tree.structure(want))
    for one, other in zip(arrays(got), arrays(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def table():
    """The default run has each kind of `QUICK`, each form and each mode (`dealt`); the slow one pairs of them all."""
    cases = [
        *zip(KINDS, FORMS, itertools.cycle(["jit", "remat"]), strict=False),
        *zip(itertools.cycle(QUICK), FORMS, itertools.cycle(["jit", "remat"]), strict=False),
        *itertools.product(KINDS, ["model"], MODES),
        *itertools.product(["Several"], FORMS, MODES),
        *itertools.product(["ActNorm", "Clipped", "Dropout", "Sower", "Tied"], FORMS, ["jit"]),
    ]
    return [
        pytest.param(kind, form, mode, marks=[] if kind in QUICK else [pytest.mark.slow, pytest.mark.rest])
        for kind, form, mode in dict.fromkeys(cases)
        if mode != "scan" or (kind not in NOT_IN_A_SCAN and form == "model")
    ]


@pytest.mark.dealt
@pytest.mark.parametrize(("kind", "form", "mode"), table())
def test_rho_zero_is_plain_nnx(kind, form, mode):
    if form == "variable_of_its_own_type" and FLAX < (0, 12):
        pytest.skip("plain NNX of this version of Flax has no gradient for it, and ours has")
    want, want_graph, want_state = run(plain, kind, form, mode)
    got, graph, state = run(ours, kind, form, mode)
    assert_same(got, want)
    assert graph == want_graph  # every attribute that is no variable
    assert_same(state, want_state)


@pytest.mark.slow
@pytest.mark.rest
@pytest.mark.parametrize("kind", ["Counter", *slow("BatchNorm", "Dropout", "ActNorm", "Tied", "Clipped")])
def test_an_ensemble_that_nnx_vmap_trains_is_plain_nnx(kind):
    """The whole step under `nnx.vmap`: each member has its own gradient and its own state."""

    def run(transform):
        models = several(3, KINDS[kind])(nnx.Rngs(0, dropout=2))
        x = jnp.asarray(np.random.default_rng(3).normal(size=(M * N, FEATURES)), jnp.float32)
        loss = lambda model, x: (domain_losses(model(x)), {"seen": x.sum()})
        loss.__wrapped__ = lambda model, x: None
        step = nnx.vmap(lambda model, x: transform(loss, 0)(model, x), in_axes=(0, None))
        return step(models, x), *nnx.split(models)

    want, want_graph, want_state = run(plain)
    got, graph, state = run(ours)
    assert_same(got, want)
    assert graph == want_graph
    assert_same(state, want_state)


def test_a_keyword_only_argument_is_written_to_as_well():
    """Plain NNX takes none; here it is like any other argument."""
    model, rngs = Linear(nnx.Rngs(0)), nnx.Rngs(1)
    loss = lambda model, x, *, rngs: domain_losses(_noise(model(x), rngs))
    step = disam_jax.nnx.value_and_grad(loss, 0.1, 0.5)
    first, _ = step(model, jnp.ones((M * N, FEATURES)), rngs=rngs)
    second, _ = step(model, jnp.ones((M * N, FEATURES)), rngs=rngs)
    assert first != second
