"""Flax NNX: statistics written once, random streams advanced once, filters, jit, optimizer, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from flax import nnx

import disam_jax
import disam_jax.nnx
from disam_jax import variants

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


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "nnx.jit"])
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


@pytest.mark.parametrize("variant", [None, variants.gsam(0.3), variants.sagm(0.01, reference="clean")])
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


def test_optimizer_and_jit_train(model, batch):
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, batch):
        (loss, info), grads = disam_jax.nnx.value_and_grad(flat_losses, 0.05, LAM, with_info=True)(model, batch)
        optimizer.update(model, grads)
        return loss, info.domain_losses

    losses = [float(step(model, optimizer, batch)[0]) for _ in range(30)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1  # random labels: there is little to learn


def test_grouped_batch_by_nnx_vmap(batch):
    model = Network(nnx.Rngs(0), dropout=0.0, norm=False)
    losses = nnx.vmap(one_loss, in_axes=(None, 0))
    _, want = disam_jax.nnx.value_and_grad(flat_losses, RHO, LAM)(model, batch)
    _, grads = disam_jax.nnx.value_and_grad(losses, RHO, LAM)(model, grouped(batch))
    assert problems.relative_error(grads, want) < 1e-5


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


class Sowing(Network):
    def __call__(self, x):
        self.logits = nnx.Intermediate(super().__call__(x))
        return self.logits[...]


CASES = {
    "wrt selects nothing": (
        lambda m, b: disam_jax.nnx.value_and_grad(flat_losses, wrt=nnx.LoRAParam)(m, b),
        ValueError,
        ["wrt=LoRAParam", "selects no variable", "Param", "BatchStat"],
    ),
    "model in eval mode": (
        lambda m, b: (m.eval(), disam_jax.nnx.value_and_grad(flat_losses)(m, b)),
        ValueError,
        ["eval mode", "model.train()", "allow_eval=True"],
    ),
    "not a module": (
        lambda m, b: disam_jax.nnx.value_and_grad(flat_losses)({"w": jnp.ones(2)}, b),
        TypeError,
        ["argument 0", "nnx.Module", "dict", "disam_jax.value_and_grad"],
    ),
    "no aux": (
        lambda m, b: disam_jax.nnx.value_and_grad(flat_losses, has_aux=True)(m, b),
        TypeError,
        ["domain_loss_fn", "has_aux=False"],
    ),
    "new variables": (
        lambda m, b: disam_jax.nnx.value_and_grad(flat_losses)(Sowing(nnx.Rngs(0, dropout=1)), b),
        ValueError,
        ["added or removed variables", "sow"],
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


def test_frozen_statistics_on_purpose(model, batch):
    model.eval()
    before = state_of(model)
    disam_jax.nnx.value_and_grad(flat_losses, RHO, LAM, allow_eval=True)(model, batch)
    for old, new in zip(before, state_of(model), strict=True):
        np.testing.assert_array_equal(old, new)
