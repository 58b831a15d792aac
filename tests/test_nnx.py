"""Flax NNX: statistics written once, random streams advanced once, filters, jit, optimizer, errors."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from flax import nnx
from support import rest

import disam_jax
import disam_jax.nnx
from disam_jax import variants

pytestmark = pytest.mark.dealt

RHO, LAM = 0.1, 0.5
M, N = 3, 16


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.debug_nans(False):
        yield


class Network(nnx.Module):
    def __init__(self, rngs, dropout=0.5, norm=True):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs) if norm else lambda x: x
        self.drop = nnx.Dropout(dropout, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(jnp.tanh(self.norm(self.hidden(x)))))


@pytest.fixture
def model():
    return Network(nnx.Rngs(0, dropout=1))


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(M, dtype=np.int32), N)
    x = rng.normal(size=(M * N, 4)) * (1 + ids[:, None])
    return {"x": jnp.asarray(x, jnp.float32), "y": rng.integers(0, 3, M * N).astype(np.int32), "domain": ids}


def flat_losses(model, batch):
    losses = optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"])
    return disam_jax.mean_by_domain(losses, batch["domain"], M)


def one_loss(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"]).mean()


def grouped(batch):
    return {k: v.reshape(M, N, *v.shape[1:]) for k, v in batch.items() if k != "domain"}


def plain_step(model, batch):
    """What a step without DISAM does to the model's state: one forward pass."""
    return nnx.value_and_grad(lambda m: one_loss(m, batch))(model)


def state_of(model):
    """Everything but the parameters, as plain arrays."""
    _, rest = nnx.state(model, nnx.Param, ...)
    leaves = jax.tree.leaves(rest)
    return [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x) for x in leaves]


def by_hand(model, batch, variant=None):
    """The step on the functional form of the module, through the core."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def losses(p):
        return flat_losses(nnx.merge(graphdef, p, rest, copy=True), batch)

    return disam_jax.value_and_grad(losses, RHO, LAM, variant=variant)(params)


@pytest.mark.parametrize("jit", [*rest(False), True], ids=["eager", "nnx.jit"])
def test_running_statistics_and_random_streams_move_once_as_in_the_plain_step(model, batch, jit):
    before, plain = state_of(model), nnx.clone(model)
    wrap = nnx.jit if jit else lambda f: f
    wrap(plain_step)(plain, batch)
    wrap(lambda m, b: disam_jax.nnx.value_and_grad(flat_losses, RHO, LAM)(m, b))(model, batch)
    after, want = state_of(model), state_of(plain)
    assert len(after) == len(want)
    for got, expected in zip(after, want, strict=True):
        np.testing.assert_array_equal(got, expected)  # bitwise
    changed = [not np.array_equal(a, b) for a, b in zip(after, before, strict=True)]
    assert sum(changed) == 3  # mean, var and the dropout counter; not the keys


def test_statistics_move_once_in_each_of_many_steps(model, batch):
    def stream_count(model):
        rngs = model.drop.rngs
        return (rngs if hasattr(rngs, "count") else rngs.dropout).count[...]  # older Flax keeps all streams there

    counts = []
    step = nnx.jit(lambda m, b: disam_jax.nnx.value_and_grad(flat_losses, RHO, LAM)(m, b))
    for _ in range(3):
        step(model, batch)
        counts.append(int(stream_count(model)))
    assert counts == [1, 2, 3]


@pytest.mark.parametrize("variant", [None, *rest(variants.gsam(0.3), variants.sagm(0.01, reference="clean"))])
def test_gradient_is_that_of_the_functional_form_with_one_dropout_mask(model, batch, variant):
    want_loss, want = by_hand(model, batch, variant)
    loss, grads = disam_jax.nnx.value_and_grad(flat_losses, RHO, LAM, variant=variant)(model, batch)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    assert problems.relative_error(grads, want) < 1e-6


def test_rho_zero_is_the_plain_gradient(model, batch):
    plain = nnx.clone(model)
    _, want = nnx.value_and_grad(lambda m: jnp.mean(flat_losses(m, batch).values))(plain)
    _, grads = disam_jax.nnx.value_and_grad(flat_losses, 0.0, LAM)(model, batch)
    assert problems.relative_error(grads, want) < 1e-6


def test_dropout_is_the_same_in_both_passes(batch):
    # With rho = 0 both passes see the same parameters, so equal losses mean equal masks.
    model = Network(nnx.Rngs(0, dropout=1), norm=False)
    (_, info), _ = disam_jax.nnx.value_and_grad(flat_losses, 0.0, LAM, with_info=True)(model, batch)
    np.testing.assert_array_equal(info.domain_losses, info.perturbed_domain_losses)
    (_, other), _ = disam_jax.nnx.value_and_grad(flat_losses, 0.0, LAM, with_info=True)(model, batch)
    assert not np.array_equal(info.domain_losses, other.domain_losses)  # the next step has other masks


@pytest.mark.slow
@pytest.mark.rest
def test_optimizer_and_jit_train(model, batch):
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, batch):
        (loss, info), grads = disam_jax.nnx.value_and_grad(flat_losses, 0.05, LAM, with_info=True)(model, batch)
        optimizer.update(model, grads)
        return loss, info.domain_losses

    losses = [float(step(model, optimizer, batch)[0]) for _ in range(30)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1  # random labels: there is little to learn


@pytest.mark.slow
@pytest.mark.rest
def test_grouped_batch_by_nnx_vmap(batch):
    model = Network(nnx.Rngs(0), dropout=0.0, norm=False)
    losses = nnx.vmap(one_loss, in_axes=(None, 0))
    _, want = disam_jax.nnx.value_and_grad(flat_losses, RHO, LAM)(model, batch)
    _, grads = disam_jax.nnx.value_and_grad(losses, RHO, LAM)(model, grouped(batch))
    assert problems.relative_error(grads, want) < 1e-5


@pytest.mark.slow
@pytest.mark.rest
def test_the_optax_form_through_nnx_optimizer(batch):
    model = Network(nnx.Rngs(0), dropout=0.0, norm=False)
    other = nnx.clone(model)
    optimizer = nnx.Optimizer(model, optax.chain(disam_jax.disam(RHO, LAM), optax.sgd(0.1)), wrt=nnx.Param)
    reference = nnx.Optimizer(other, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, batch):
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        # The optimizer hands over the selected variables' values; the module is put together around them.
        losses = lambda p: flat_losses(nnx.merge(graphdef, p, rest, copy=True), batch)
        grads = jax.tree.map(jnp.zeros_like, params)  # not used: DISAM computes its own
        optimizer.update(model, grads, domain_loss_fn=losses)

    for _ in range(3):
        step(model, optimizer, batch)
        _, grads = disam_jax.nnx.value_and_grad(flat_losses, RHO, LAM)(other, batch)
        reference.update(other, grads)
    got, want = nnx.state(model, nnx.Param), nnx.state(other, nnx.Param)
    assert problems.relative_error(got, want) < 1e-5


class Special(nnx.Param):
    pass


@pytest.mark.parametrize("wrt", ["custom type", "path filter"])
def test_wrt_selects_what_is_perturbed_and_differentiated(batch, wrt):
    model = Network(nnx.Rngs(0), dropout=0.0, norm=False)
    model.out.kernel = Special(model.out.kernel[...])
    chosen = (
        Special if wrt == "custom type" else nnx.All(nnx.Param, nnx.PathContains("out"), lambda p, v: "kernel" in p)
    )
    _, grads = disam_jax.nnx.value_and_grad(flat_losses, RHO, LAM, wrt=chosen)(model, batch)
    assert [x.shape for x in jax.tree.leaves(grads)] == [(8, 3)]

    graphdef, params, rest = nnx.split(model, chosen, ...)
    losses = lambda p: flat_losses(nnx.merge(graphdef, p, rest, copy=True), batch)
    _, want = disam_jax.value_and_grad(losses, RHO, LAM)(params)
    assert problems.relative_error(grads, want) < 1e-6


@pytest.mark.slow
@pytest.mark.rest
def test_lora_leaves_the_backbone_bit_identical(batch):
    model = Network(nnx.Rngs(0), dropout=0.0, norm=False)
    model.hidden = nnx.LoRA(4, 2, 8, base_module=model.hidden, rngs=nnx.Rngs(3))
    backbone = nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam))
    before = [np.array(x) for x in jax.tree.leaves(nnx.state(model, backbone))]
    optimizer = nnx.Optimizer(model, optax.sgd(0.5), wrt=nnx.LoRAParam)

    @nnx.jit
    def step(model, optimizer, batch):
        (_, info), grads = disam_jax.nnx.value_and_grad(flat_losses, RHO, LAM, wrt=nnx.LoRAParam, with_info=True)(
            model, batch
        )
        optimizer.update(model, grads)
        return info.loss

    losses = [float(step(model, optimizer, batch)) for _ in range(10)]
    assert losses[-1] < losses[0]
    for old, new in zip(before, jax.tree.leaves(nnx.state(model, backbone)), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
@pytest.mark.rest
def test_aux_and_info_in_their_places(model, batch):
    def with_aux(model, batch, scale=1.0):
        return flat_losses(model, batch), {"scale": scale}

    fn = disam_jax.nnx.value_and_grad(with_aux, RHO, LAM, has_aux=True, with_info=True)
    (loss, (aux, info)), _ = fn(model, batch, scale=2.0)
    assert aux == {"scale": 2.0}
    np.testing.assert_allclose(loss, info.loss)
    (loss, aux), _ = disam_jax.nnx.value_and_grad(with_aux, RHO, LAM, has_aux=True)(model, batch)
    assert aux == {"scale": 1.0}
    loss, _ = disam_jax.nnx.value_and_grad(flat_losses, RHO, LAM)(model, batch)
    assert loss.shape == ()
    swapped = disam_jax.nnx.value_and_grad(lambda b, m: flat_losses(m, b), RHO, LAM, argnums=1)
    assert swapped(batch, model)[0].shape == ()


# --- bad input --------------------------------------------------------------------------------------------------------


CASES = {
    "wrt selects nothing": (
        lambda m, b: disam_jax.nnx.value_and_grad(flat_losses, wrt=nnx.LoRAParam)(m, b),
        ValueError,
        ["wrt=LoRAParam", "selects no variable", "Param", "BatchStat"],
    ),
    "no aux": (
        lambda m, b: disam_jax.nnx.value_and_grad(flat_losses, has_aux=True)(m, b),
        TypeError,
        ["domain_loss_fn", "has_aux=False"],
    ),
    "a method of the model": (
        lambda m, b: disam_jax.nnx.value_and_grad(m.__call__)(b),
        ValueError,
        ["domain_loss_fn", "bound", "value_and_grad(Network.__call__"],
    ),
    "argnums beyond the arguments": (
        lambda m, b: disam_jax.nnx.value_and_grad(flat_losses, argnums=2)(m, b),
        ValueError,
        ["argnums=2", "2 of them", "by position"],
    ),
    "negative argnums": (
        lambda m, b: disam_jax.nnx.value_and_grad(flat_losses, argnums=-1),
        TypeError,
        ["argnums", "-1", "argnums=0"],
    ),
    "argnums of truth": (
        lambda m, b: disam_jax.nnx.value_and_grad(flat_losses, argnums=True),
        TypeError,
        ["argnums", "True"],
    ),
    "argnums twice": (
        lambda m, b: disam_jax.nnx.value_and_grad(flat_losses, argnums=(0, 0)),
        ValueError,
        ["argnums", "(0, 0)", "once"],
    ),
    "no argnums": (
        lambda m, b: disam_jax.nnx.value_and_grad(flat_losses, argnums=()),
        ValueError,
        ["argnums", "none"],
    ),
    "negative eps": (
        lambda m, b: disam_jax.nnx.value_and_grad(flat_losses, eps=-1.0),
        ValueError,
        ["eps", "-1.0"],
    ),
    "negative rho": (
        lambda m, b: disam_jax.nnx.value_and_grad(flat_losses, -0.1),
        ValueError,
        ["rho", "-0.1"],
    ),
    "a batch that is not grouped": (
        lambda m, b: disam_jax.nnx.value_and_grad(lambda m, b: m(b["x"]))(m, b),
        ValueError,
        ["domain losses must be [M]", "(48, 3)", "mean_by_domain"],
    ),
    "no random stream": (
        lambda m, b: (setattr(m.drop, "rngs", None), disam_jax.nnx.value_and_grad(flat_losses)(m, b)),
        ValueError,
        ["rngs"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_error_says_what_to_do(name, model, batch):
    call, kind, words = CASES[name]
    with pytest.raises(kind) as error:
        call(model, batch)
    assert [w for w in words if w not in str(error.value)] == [], str(error.value)


class Modes(Network):
    """BatchNorm and Dropout with the modes of the call, whatever they were built with."""

    def __init__(self, rngs, built_for_training):
        super().__init__(rngs)
        (self.train if built_for_training else self.eval)()

    def __call__(self, x, frozen, silent):
        y = self.norm(self.hidden(x), use_running_average=frozen)
        return self.out(self.drop(jnp.tanh(y), deterministic=silent))


@pytest.mark.parametrize("built_for_training", [True, False])
@pytest.mark.parametrize(
    ("frozen", "silent", "words"),
    [
        (False, False, []),
        (True, False, ["moved no running statistics", "BatchNorm", "norm", "model.train()", "allow_eval=True"]),
        (False, True, ["advanced no random stream", "Dropout", "drop", "model.train()", "allow_eval=True"]),
    ],
)
def test_the_mode_at_the_call_decides_whether_eval_mode_is_warned_of(built_for_training, frozen, silent, words, batch):
    model = Modes(nnx.Rngs(0, dropout=1), built_for_training)

    def losses(model, batch):
        out = optax.softmax_cross_entropy_with_integer_labels(model(batch["x"], frozen, silent), batch["y"])
        return disam_jax.mean_by_domain(out, batch["domain"], M)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        loss, _ = disam_jax.nnx.value_and_grad(losses, RHO, LAM)(model, batch)
    assert np.isfinite(loss)
    assert len(seen) == bool(words)
    assert [w for w in words if w not in str(seen[0].message)] == []


def test_a_frozen_part_that_the_loss_never_calls_is_no_reason_to_warn(model, batch):
    model.teacher = Network(nnx.Rngs(1))
    model.teacher.eval()
    assert np.isfinite(disam_jax.nnx.value_and_grad(flat_losses, RHO, LAM)(model, batch)[0])


def test_a_teacher_in_eval_mode_beside_the_model_is_no_reason_to_warn(model, batch):
    teacher = Network(nnx.Rngs(1))
    teacher.eval()

    def losses(model, teacher, batch):
        example = jnp.mean((model(batch["x"]) - teacher(batch["x"])) ** 2, axis=-1)
        return disam_jax.mean_by_domain(example, batch["domain"], M)

    assert np.isfinite(disam_jax.nnx.value_and_grad(losses, RHO, LAM)(model, teacher, batch)[0])


@pytest.mark.slow
@pytest.mark.rest
def test_the_pass_at_the_perturbed_weights_writes_to_no_argument(batch):
    """Each of them is written to once, by the pass at w, though the function runs twice."""

    class Calls(nnx.Variable):
        pass

    model, beside = Network(nnx.Rngs(0, dropout=1)), Network(nnx.Rngs(1, dropout=2))
    calls, rngs = Calls(jnp.zeros((), jnp.int32)), nnx.Rngs(5)

    def losses(model, beside, calls, *, rngs):
        calls[...] += 1
        model.ready, beside.ready = True, True
        noise = jax.random.normal(rngs(), ())
        return flat_losses(model, batch).values + flat_losses(beside, batch).values + noise

    (_, info), _ = disam_jax.nnx.value_and_grad(losses, 0.0, LAM, with_info=True)(model, beside, calls, rngs=rngs)
    assert calls[...] == 1
    assert model.ready
    assert beside.ready
    np.testing.assert_array_equal(info.domain_losses, info.perturbed_domain_losses)  # the same noise and masks
    plain = nnx.Rngs(5)
    plain()
    np.testing.assert_array_equal(jax.random.key_data(rngs()), jax.random.key_data(plain()))


def test_writes_to_what_is_differentiated_are_those_of_the_pass_at_w(batch):
    """Not those at w + e, and not lost: a projection in the loss holds after the step."""
    model = Network(nnx.Rngs(0), dropout=0.0, norm=False)
    w = np.array(model.out.kernel[...])

    def losses(model, batch):
        values = flat_losses(model, batch)
        model.out.kernel[...] = jnp.clip(model.out.kernel[...], -0.2, 0.2)
        return values

    _, grads = disam_jax.nnx.value_and_grad(losses, 0.5, LAM)(model, batch)
    np.testing.assert_array_equal(model.out.kernel[...], np.clip(w, -0.2, 0.2))
    other = Network(nnx.Rngs(0), dropout=0.0, norm=False)
    _, want = disam_jax.nnx.value_and_grad(flat_losses, 0.5, LAM)(other, batch)
    assert problems.relative_error(grads, want) < 1e-6


@pytest.mark.slow
@pytest.mark.rest
def test_several_modules_are_perturbed_together(batch):
    """One norm over all that is differentiated, as if both were parts of one module."""
    a, b = (Network(nnx.Rngs(seed), dropout=0.0, norm=False) for seed in (0, 1))
    sum_of = lambda a, b, batch: disam_jax.mean_by_domain(
        optax.softmax_cross_entropy_with_integer_labels(a(batch["x"]) + b(batch["x"]), batch["y"]), batch["domain"], M
    )
    both = nnx.Module()
    both.a, both.b = nnx.clone(a), nnx.clone(b)
    step = lambda f, **options: disam_jax.nnx.value_and_grad(f, RHO, LAM, **options)
    _, want = step(lambda m, batch: sum_of(m.a, m.b, batch))(both, batch)
    cases = {
        "argnums": step(sum_of, argnums=(0, 1))(a, b, batch)[1],
        "tuple": step(lambda m, batch: sum_of(*m, batch))((a, b), batch)[1],
        "dict": step(lambda m, batch: sum_of(m["a"], m["b"], batch))({"a": a, "b": b}, batch)[1],
        "keywords": step(sum_of, argnums=(0, 1))(b=b, a=a, batch=batch)[1],
    }
    for grads in cases.values():
        assert problems.relative_error(grads, want) < 1e-6


def test_each_of_several_arguments_may_have_a_filter_of_its_own(batch):
    a, b = (Network(nnx.Rngs(seed), dropout=0.0, norm=False) for seed in (0, 1))
    chosen = (nnx.DiffState(0, nnx.PathContains("out")), nnx.DiffState(1, nnx.Param))
    losses = lambda a, b, batch: flat_losses(a, batch).values + flat_losses(b, batch).values
    _, grads = disam_jax.nnx.value_and_grad(losses, RHO, LAM, argnums=chosen)(a, b, batch)
    assert [len(jax.tree.leaves(g)) for g in grads] == [2, 4]


def test_frozen_statistics_on_purpose(model, batch):
    model.eval()
    before = state_of(model)
    disam_jax.nnx.value_and_grad(flat_losses, RHO, LAM, allow_eval=True)(model, batch)
    for old, new in zip(before, state_of(model), strict=True):
        np.testing.assert_array_equal(old, new)


# --- DISAM on a subset, from a step on --------------------------------------------------------------------------------


@functools.cache
def late_step(fraction):
    def step(model, batch, number):
        gradient = disam_jax.nnx.subset_value_and_grad(
            flat_losses, RHO, LAM, fraction=fraction, begin=2, axis=0, with_info=True
        )
        return gradient(model, batch, step=number)

    return nnx.jit(step)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize(
    ("fraction", "larger"), [(0.25, 1), *(pytest.param(*c, marks=pytest.mark.slow) for c in ((0.75, 0), (0.5, 1)))]
)
def test_statistics_are_those_of_the_larger_side_and_of_the_whole_batch_before_begin(
    model, batch, fraction, larger, step
):
    plain = nnx.clone(model)
    wrote = batch if step < 2 else disam_jax.split_examples(batch, fraction, axis=0)[larger]
    (loss, info), grads = late_step(fraction)(model, batch, jnp.uint32(step))
    want_loss, want = nnx.jit(plain_step)(plain, wrote)
    for got, expected in zip(state_of(model), state_of(plain), strict=True):
        np.testing.assert_array_equal(got, expected)
    bitwise = all(bool((a == b).all()) for a, b in zip(*map(jax.tree.leaves, (grads, want)), strict=True))
    assert bitwise == (step < 2) == (info.ascent_norm == 0)
    if step < 2:
        np.testing.assert_allclose(loss, want_loss, rtol=1e-6)


@pytest.mark.slow
def test_the_subset_of_a_module_is_that_of_its_functional_form(batch):
    model = Network(nnx.Rngs(0), dropout=0.0)
    graphdef, params, others = nnx.split(model, nnx.Param, ...)

    def losses(p, batch):
        return flat_losses(nnx.merge(graphdef, p, others, copy=True), batch)

    options = {"axis": 0, "variant": variants.gsam(0.3), "begin": 2}
    for step in (0, 5):
        want = jax.jit(disam_jax.subset_value_and_grad(losses, RHO, LAM, **options))(params, batch, step=step)
        got = disam_jax.nnx.subset_value_and_grad(flat_losses, RHO, LAM, **options)(nnx.clone(model), batch, step=step)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
        assert problems.relative_error(got[1], want[1]) < 1e-6


@pytest.mark.slow
def test_a_module_trains_with_the_count_of_its_optimizer(model, batch):
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, batch):
        gradient = disam_jax.nnx.subset_value_and_grad(
            lambda model, batch: (flat_losses(model, batch), model(batch["x"]).mean()),
            RHO,
            LAM,
            begin=2,
            axis=0,
            has_aux=True,
            with_info=True,
        )
        (loss, (aux, info)), grads = gradient(model, batch, step=optimizer.step)
        optimizer.update(model, grads)
        return loss, aux, info.ascent_norm

    loss, aux, norms = zip(*(step(model, optimizer, batch) for _ in range(4)), strict=True)
    assert [float(norm) > 0 for norm in norms] == [False, False, True, True]
    assert np.isfinite(loss).all()
    assert [a == b for a, b in aux] == [True, True, False, False]


def test_what_a_module_writes_must_not_depend_on_the_number_of_examples_with_begin(batch):
    class Keeper(Network):
        def __call__(self, x):
            self.kept = nnx.Intermediate(x)
            return super().__call__(x)

    model = Keeper(nnx.Rngs(0))
    gradient = lambda **options: disam_jax.nnx.subset_value_and_grad(flat_losses, RHO, LAM, axis=0, **options)
    with pytest.raises(TypeError, match=r"begin.*same shapes.*\(48, 4\).*\(36, 4\)"):
        gradient(begin=2)(model, batch, step=0)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda f, m, b: f(begin=2)(m, b), TypeError, r"disam_jax\.nnx\.subset_value_and_grad: begin=2.*step=t"),
        (lambda f, m, b: f(begin=2)(m), TypeError, r"nnx\.subset_value_and_grad: batch is missing"),
        (lambda f, m, b: f(begin=-2), ValueError, "begin must be at least 0"),
        (lambda f, m, b: f(begin=2)(m, b, step=0.5), TypeError, "step must be an integer"),
        (lambda f, m, b: f(wrt=nnx.LoRAParam)(m, b), ValueError, "wrt=LoRAParam selects no variable"),
        (lambda f, m, b: f(fraction=2)(m, b), ValueError, r"fraction must be in \(0, 1]"),
    ],
)
def test_a_wrong_call_of_the_subset_form_is_named(model, batch, call, error, words):
    with pytest.raises(error, match=words):
        call(lambda **options: disam_jax.nnx.subset_value_and_grad(flat_losses, axis=0, **options), model, batch)
