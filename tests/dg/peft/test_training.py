"""Every way of fine-tuning, on every tower: what is trained, what is perturbed, and what stays."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import disam_jax.nnx
from disam_jax.dg.peft import TRAINABLE, CoOp, LinearProbe, TextClassifier, add_lora

RHO, LAM = 0.3, 0.2
BLOCK = r"blocks\.0\."
IMAGE_NORMS = r"norm_in\.(scale|bias)|norm_out\.(scale|bias)"
BLOCK_NORMS = BLOCK + r"(norm[12]\.(scale|bias)|attention\.(query|key|value|out)\.bias|mlp\.fc[12]\.bias)"


class Case(NamedTuple):
    """A model and, written out by hand, the paths of what it trains."""

    peft: str
    make: object
    trained: str


def lora(module):
    add_lora(module, 2, nnx.Rngs(2), alpha=4)
    # Otherwise B is zero, and with it the gradient of A.
    for path, value in nnx.to_flat_state(nnx.state(module, nnx.LoRAParam)):
        if path[-1] == "lora_b":
            value[...] = value[...] + 0.1
    return module


CASES = {
    "full-clip": Case("full", lambda clip, vit, ids: TextClassifier(clip, ids), r"image\..*"),
    "probe-vit": Case("probe", lambda clip, vit, ids: LinearProbe(vit, 3, nnx.Rngs(1)), r"head\..*"),
    "lora-clip": Case("lora", lambda clip, vit, ids: lora(TextClassifier(clip, ids)), r".*\.lora_[ab]"),
    "lora-vit": Case("lora", lambda clip, vit, ids: lora(LinearProbe(vit, 3, nnx.Rngs(1))), r"head\..*|.*\.lora_[ab]"),
    "norm-bias-vit": Case(
        "norm-bias",
        lambda clip, vit, ids: LinearProbe(vit, 3, nnx.Rngs(1)),
        rf"head\..*|tower\.(patch\.bias|{IMAGE_NORMS}|{BLOCK_NORMS})",
    ),
    "coop-clip": Case("coop", lambda clip, vit, ids: CoOp(clip, ids, 4, rngs=nnx.Rngs(1)), r"context"),
    "coop-per-class-clip": Case(
        "coop", lambda clip, vit, ids: CoOp(clip, ids, 4, rngs=nnx.Rngs(1), class_contexts=True), r"context"
    ),
}


def domain_losses(model, batch):
    logits, _ = model(batch["x"].reshape(-1, *batch["x"].shape[2:]), jax.random.key(0))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"].reshape(-1))
    return losses.reshape(batch["y"].shape).mean(1)


def variables(model):
    return {
        ".".join(map(str, path)): np.array(value[...] if isinstance(value, nnx.Variable) else value)
        for path, value in nnx.to_flat_state(nnx.state(model))
    }


def norm(tree):
    return np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in jax.tree.leaves(tree)))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_selected_variables_are_perturbed_and_trained_and_no_others(name, clip, vit, class_ids, batch):
    peft, make, trained = CASES[name]
    model, wrt = make(clip, vit, class_ids), TRAINABLE[peft]
    before = variables(model)
    selected = {path for path in before if re.fullmatch(trained, path)} - {"class_features", "logit_scale"}
    assert selected
    # Weight decay moves what has no gradient too: the biases of the keys, which the softmax takes out.
    decayed = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))
    optimizer = nnx.Optimizer(model, decayed, wrt=wrt)
    graph, params, rest = nnx.split(model, wrt, ...)

    @nnx.jit
    def step(model, optimizer, batch, rho):
        gradient = disam_jax.nnx.value_and_grad(domain_losses, rho, LAM, wrt=wrt, with_info=True)
        (value, info), grads = gradient(model, batch)
        optimizer.update(model, grads)
        return value, info.ascent_norm, grads

    @jax.jit
    def weighted(params, rest, weights):
        def total(p):
            each = domain_losses(nnx.merge(graph, p, rest, copy=True), batch)
            return jnp.sum(weights * each), each

        return jax.grad(total, has_aux=True)(params)

    params, rest = jax.tree.map(jnp.copy, (params, rest))
    value, ascent_norm, grads = step(model, optimizer, batch, jnp.float32(RHO))
    assert {".".join(map(str, path)) for path, _ in nnx.to_flat_state(grads)} == selected
    step(model, optimizer, batch, jnp.float32(RHO))
    after = variables(model)
    assert after.keys() == before.keys()
    assert {path for path in before if not np.array_equal(before[path], after[path])} == selected
    nnx.update(model, params)
    _, _, plain = step(model, optimizer, batch, jnp.float32(0.0))

    # The same by hand: b from the losses, g from b, e from g, and the gradient of the mean at w + e.
    third = jnp.full(3, 1 / 3, jnp.float32)
    clean, losses = weighted(params, rest, third)
    losses = np.asarray(losses, np.float64)
    b = 1 / 3 - 2 * LAM / 3 * (losses - losses.mean())
    g, _ = weighted(params, rest, jnp.asarray(b, jnp.float32))
    length = norm(g)
    moved = jax.tree.map(lambda w, leaf: w + leaf * np.float32(RHO / length), params, g)
    wanted, _ = weighted(moved, rest, third)
    np.testing.assert_allclose(float(value), losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(float(ascent_norm), length, rtol=1e-4)
    np.testing.assert_allclose(norm(jax.tree.map(jnp.subtract, moved, params)), RHO, rtol=1e-4)
    scale = norm(clean)
    for found, hand in ((grads, wanted), (plain, clean)):
        assert norm(jax.tree.map(jnp.subtract, found, hand)) < 1e-4 * scale
    assert norm(jax.tree.map(jnp.subtract, grads, plain)) > 1e-2 * scale


@pytest.mark.slow
@pytest.mark.parametrize("wrt", ["coop", "lora"])
def test_a_way_that_the_model_was_not_extended_for_is_an_error(wrt, clip, class_ids, batch):
    model = TextClassifier(clip, class_ids)
    with pytest.raises(ValueError, match="selects no variable of the model"):
        disam_jax.nnx.value_and_grad(domain_losses, wrt=TRAINABLE[wrt])(model, batch)


def test_the_head_of_a_probe_is_not_that_of_its_tower():
    heads = TRAINABLE["probe"]
    param = nnx.Param(jnp.zeros(1, jnp.float32))
    assert heads(("head", "kernel"), param)
    assert heads(("fc", "bias"), param)
    assert not heads(("tower", "head", "kernel"), param)
    assert not heads(("blocks", 0, "mlp", "fc1", "kernel"), param)
    assert not heads(("head", "kernel"), nnx.BatchStat(jnp.zeros(1, jnp.float32)))
