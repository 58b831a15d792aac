"""The cost of a step, from XLA's own counts of the compiled program.

What is counted: the whole optimizer step, gradient and AdamW update, as a user jits it. Nothing is excluded from the
FLOPs: the element-wise work of the perturbation (the norm, w + e) is inside the 2.01, paid for by the AdamW update that
a step does once and not twice. What XLA's count leaves out by itself is the body of a loop after its first turn, which
concerns the accumulated form: its scan over M domains is counted once, so M times the body stands for it here.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import disam_jax

BATCH = 64
LIMIT = 2.01
# XLA aligns every buffer to 64 bytes, and the domain losses, shares and weights are [M] each.
SMALL = 4096
# XLA packs buffers of different lifetimes into one arena, and how well that goes changes with the form, M and the
# version of XLA by whole activations, for optax.contrib.sam with the same loss too. This many bytes of the conv net's
# arena are such a hole: one output of its second layer.
PACKING = {"mlp": 0, "conv_net": 64 * 4 * 4 * 32 * 4}


def mlp(rng):
    sizes = (64, 256, 256, 10)
    params = [
        (rng.normal(size=(i, o), scale=i**-0.5).astype(np.float32), np.zeros(o, np.float32))
        for i, o in itertools.pairwise(sizes)
    ]

    def logits(params, x):
        for w, b in params[:-1]:
            x = jax.nn.relu(x @ w + b)
        return x @ params[-1][0] + params[-1][1]

    return params, logits, (64,)


def conv_net(rng):
    channels = (3, 16, 32)
    params = {
        "conv": [rng.normal(size=(3, 3, i, o), scale=0.1).astype(np.float32) for i, o in itertools.pairwise(channels)],
        "out": rng.normal(size=(32, 10), scale=0.1).astype(np.float32),
    }

    def logits(params, x):
        for kernel in params["conv"]:
            x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x)
        return jnp.mean(x, axis=(1, 2)) @ params["out"]

    return params, logits, (16, 16, 3)


NETWORKS = {"mlp": mlp, "conv_net": conv_net}


@pytest.fixture(autouse=True)
def _as_a_user_runs_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.debug_nans(False):
        yield


def setup(network):
    params, logits, shape = NETWORKS[network](np.random.default_rng(0))

    def example_losses(params, batch):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, batch["x"]), batch["y"])

    batch = {"x": np.zeros((BATCH, *shape), np.float32), "y": np.zeros(BATCH, np.int32)}
    return params, example_losses, batch


def domain_losses(example_losses, form, num_domains):
    """The loss function, and the batch in the shape that the form takes."""
    if form == "flat":
        ids = np.arange(BATCH, dtype=np.int32) % num_domains
        loss = lambda p, b: disam_jax.mean_by_domain(example_losses(p, b), b["ids"], num_domains)
        return loss, lambda b: {**b, "ids": ids}
    loss = lambda p, b: jnp.mean(example_losses(p, b))
    group = lambda b: jax.tree.map(lambda x: x.reshape(num_domains, -1, *x.shape[1:]), b)
    return disam_jax.per_domain(loss), group


def counts(step, *args):
    """FLOPs and bytes of temporary memory of the compiled step."""
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*args).compile()
    analysis = compiled.cost_analysis()
    return analysis["flops"], compiled.memory_analysis().temp_size_in_bytes


@functools.cache
def plain_step(network):
    params, example_losses, batch = setup(network)
    tx = optax.adamw(1e-3)

    def step(params, state, batch):
        grads = jax.grad(lambda p: jnp.mean(example_losses(p, batch)))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return counts(step, params, tx.init(params), batch)


@functools.cache
def optax_sam_step(network):
    params, example_losses, batch = setup(network)
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    tx = optax.contrib.sam(optax.adamw(1e-3), adversary, opaque_mode=True)

    def step(params, state, batch):
        grad_fn = jax.grad(lambda p, _: jnp.mean(example_losses(p, batch)))
        updates, state = tx.update(grad_fn(params, 0), state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    return counts(step, params, tx.init(params), batch)


INCOMING = {
    "real": lambda mean_loss, params: jax.grad(mean_loss)(params),
    "zero": lambda mean_loss, params: jax.tree.map(jnp.zeros_like, params),
    "none": lambda mean_loss, params: None,
}


def disam_step(network, form, num_domains, incoming="none", **options):
    params, example_losses, batch = setup(network)
    loss, arrange = domain_losses(example_losses, form, num_domains)
    tx = optax.chain(disam_jax.disam(0.05, 0.1, **options), optax.adamw(1e-3))

    def step(params, state, batch):
        grads = INCOMING[incoming](lambda p: jnp.mean(example_losses(p, batch["whole"])), params)
        updates, state = tx.update(grads, state, params, domain_loss_fn=lambda p: loss(p, batch["domains"]))
        return optax.apply_updates(params, updates), state

    return counts(step, params, tx.init(params), {"whole": batch, "domains": arrange(batch)})


def steps():
    """Every network, form, M and incoming gradient; the gradient is varied in full in the slow run only."""
    for network, form, m, incoming in itertools.product(NETWORKS, ["flat", "grouped"], [1, 4, 16, 64], INCOMING):
        fast = (incoming == "none" and m in (1, 64)) or (form, m) == ("grouped", 4)
        slow = () if fast else pytest.mark.slow
        yield pytest.param(network, form, m, incoming, marks=slow, id=f"{network}-{form}-{m}-{incoming}")


@pytest.mark.parametrize(("network", "form", "num_domains", "incoming"), list(steps()))
def test_flops_are_twice_a_plain_step_and_memory_that_of_sam(network, form, num_domains, incoming):
    flops, memory = disam_step(network, form, num_domains, incoming)
    plain_flops, _ = plain_step(network)
    _, sam_memory = optax_sam_step(network)
    assert flops <= LIMIT * plain_flops, f"{flops / plain_flops:.4f} x the FLOPs of a plain step"
    # A gate that never sees two passes would pass anything.
    assert flops > 1.9 * plain_flops
    allowed = sam_memory + SMALL + (PACKING[network] if form == "flat" else 0)
    assert memory <= allowed, f"temp memory {memory} bytes, optax.contrib.sam in opaque mode {sam_memory}"


@pytest.mark.parametrize("refresh_every", [2])
def test_held_perturbation_is_the_only_extra_memory(refresh_every):
    params, _, _ = setup("mlp")
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    _, memory = disam_step("mlp", "grouped", 4, refresh_every=refresh_every)
    _, sam_memory = optax_sam_step("mlp")
    assert memory <= sam_memory + size + SMALL


def accumulated_counts(num_domains, accumulated, width=512, per_batch=1024):
    """A batch whose activations outweigh the parameters by far."""
    rng = np.random.default_rng(0)
    params = [rng.normal(size=(width, width)).astype(np.float32) for _ in range(2)]
    batch = np.zeros((num_domains, per_batch // num_domains, 32, width), np.float32)

    def loss(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return jnp.mean(x**2)

    if accumulated:
        fn = disam_jax.accumulated_value_and_grad(loss, 0.05, 0.1)
    else:
        fn = disam_jax.value_and_grad(disam_jax.per_domain(loss), 0.05, 0.1)
    compiled = jax.jit(fn).lower(params, batch).compile()
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


def test_accumulated_memory_falls_as_one_over_the_number_of_domains():
    sums = 2 * 2 * 512 * 512 * 4  # sum g_i and sum L_i g_i are there whatever M is
    _, whole = accumulated_counts(1, accumulated=False)
    at = {m: accumulated_counts(m, accumulated=True)[1] - sums for m in (4, 16)}
    assert at[4] < 0.45 * whole
    assert at[16] < 0.12 * whole
    np.testing.assert_allclose(at[4] / at[16], 4, rtol=0.05)


def test_accumulated_flops_are_those_of_the_vmapped_form():
    for num_domains in (4, 16):
        vmapped, _ = accumulated_counts(num_domains, accumulated=False)
        body_once, _ = accumulated_counts(num_domains, accumulated=True)
        # XLA counts the body of a scan once. All but a sliver of this program is in the two scan bodies, so M times the
        # count is an upper bound of the truth.
        assert num_domains * body_once <= 1.02 * vmapped
        assert num_domains * body_once >= 0.95 * vmapped
