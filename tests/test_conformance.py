"""Trajectories recorded from the authors' PyTorch code, reproduced step by step.

A few of the files lie in tests/data (see the README there). The whole set runs when DISAM_JAX_SHARED names a folder
with ``conformance/*.npz``; .ci/run sets it where that folder exists.
"""

import functools
import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import enable_x64

import disam_jax
from disam_jax import variants

pytestmark = pytest.mark.dealt

HERE = pathlib.Path(__file__).parent / "data"
SHARED = os.environ.get("DISAM_JAX_SHARED")
EVERYWHERE = sorted(HERE.glob("*.npz"))
SHARED_FILES = sorted(pathlib.Path(SHARED, "conformance").glob("*.npz")) if SHARED else []
# One of each kind for the default run; all of tests/data, and the whole set where it is, in the slow one.
FAST = [f for f in EVERYWHERE if "lam0.0" not in f.name and "equal_asam_lam0.1" not in f.name and "sagm" not in f.name]
PENALTY = {"per_domain": "variance", "per_sample": "weighted_variance"}


@pytest.fixture(autouse=True)
def _standard_promotion():
    # optax.adam itself mixes dtypes (float ** int32), which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_whole_set_is_found():
    if not SHARED:
        pytest.skip("DISAM_JAX_SHARED is not set: only the files in tests/data run")
    assert len(SHARED_FILES) == 61
    assert {f.name for f in EVERYWHERE} <= {f.name for f in SHARED_FILES}


def files(paths):
    return [pytest.param(p, id=p.stem) for p in paths]


def logits(params, x):
    *hidden, last = params
    for w, b in hidden:
        x = jnp.tanh(x @ w.T + b[None])
    return x @ last[0].T + last[1][None]


def example_losses(params, x, y):
    log_p = jax.nn.log_softmax(logits(params, x))
    return -jnp.take_along_axis(log_p, y[:, None], axis=1)[:, 0]


def base_optimizer(o):
    if o["base"] == "Adam":
        return optax.adam(o["lr"], b1=o["betas"][0], b2=o["betas"][1], eps=o["eps"])
    assert o["base"] == "SGD"
    return optax.chain(optax.add_decayed_weights(o["weight_decay"]), optax.sgd(o["lr"], momentum=o["momentum"] or None))


def method_options(o, penalty):
    variant = {"MyGSAM": variants.gsam, "MySAGM": variants.sagm}.get(o["wrapper"])
    return {
        "variant": variant(o["alpha"]) if variant else None,
        "adaptive": o["adaptive"],
        "penalty": penalty,
    }


def with_base(first, base):
    """The chain that a user writes, and a record of the gradient that the base optimizer is handed."""
    return optax.chain(first, optax.snapshot("grads", lambda g: g), base)


def transform_form(num_domains, rho, lam, options, base, refresh_every=1):
    """``optax.chain(disam, base)`` with domain_loss_fn."""
    tx = with_base(disam_jax.disam(rho, lam, num_domains=num_domains, refresh_every=refresh_every, **options), base)

    def step(params, state, batch):
        f = lambda p: mean_by_domain(p, batch, num_domains)
        updates, state = tx.update(None, state, params, domain_loss_fn=f)
        return updates, state, state[0]._asdict()

    return tx, step


def held_form(*args):
    """The same with the perturbation held in the state, where the test can read it, and refreshed at every step."""
    return transform_form(*args, refresh_every=jnp.ones((), jnp.int32))


def gradient_form(num_domains, rho, lam, options, base):
    """``value_and_grad`` in front of the base optimizer."""
    tx = with_base(optax.identity(), base)
    fn = disam_jax.value_and_grad(
        lambda p, batch: mean_by_domain(p, batch, num_domains), rho, lam, with_info=True, **options
    )

    def step(params, state, batch):
        (_, info), grads = fn(params, batch)
        return *tx.update(grads, state, params), info._asdict()

    return tx, step


def stacked_form(num_domains, rho, lam, options, base):
    """``optax.chain(disam, base)`` with per-domain gradients; the second pass is told the perturbed parameters."""
    tx = with_base(disam_jax.disam(rho, lam, num_domains=num_domains, **options), base)

    def step(params, state, batch):
        losses = mean_by_domain(params, batch, num_domains)
        stacked = jax.jacrev(lambda p: mean_by_domain(p, batch, num_domains).values)(params)
        seen = []

        def grad_at(p):
            seen.append(p)
            return jax.grad(lambda q: jnp.mean(example_losses(q, batch["x"], batch["y"])))(p)

        updates, state = tx.update(stacked, state, params, domain_losses=losses, grad_fn=grad_at)
        numbers = {k: v for k, v in state[0]._asdict().items() if k != "perturbed_domain_losses"}
        return updates, state, numbers | {"perturbation": jax.tree.map(jnp.subtract, seen[0], params)}

    return tx, step


def accumulated_form(num_domains, rho, lam, options, base):
    """``accumulated_value_and_grad`` in front of the base optimizer, on domains of equal size."""
    tx = with_base(optax.identity(), base)

    def loss(params, one):
        return jnp.mean(example_losses(params, one["x"], one["y"]))

    fn = disam_jax.accumulated_value_and_grad(loss, rho, lam, with_info=True, **options)

    def step(params, state, batch):
        grouped = {k: v.reshape(num_domains, -1, *v.shape[1:]) for k, v in batch.items() if k != "domain"}
        (_, info), grads = fn(params, grouped)
        return *tx.update(grads, state, params), info._asdict()

    return tx, step


FORMS = {
    "transform": transform_form,
    "transform_held": held_form,
    "value_and_grad": gradient_form,
    "stacked": stacked_form,
    "accumulated": accumulated_form,
}


def mean_by_domain(params, batch, num_domains):
    return disam_jax.mean_by_domain(example_losses(params, batch["x"], batch["y"]), batch["domain"], num_domains)


@functools.cache
def compiled_run(form, optimizer, penalty, num_domains):
    """One program for all files that differ in data and lam only."""
    o = json.loads(optimizer)

    def run(init, batches, lam):
        tx, update = FORMS[form](num_domains, o["rho"], lam, method_options(o, penalty), base_optimizer(o))

        def step(carry, batch):
            params, state = carry
            updates, state, numbers = update(params, state, batch)
            params = optax.apply_updates(params, updates)
            return (params, state), {"params": params, "grads": optax.tree.get(state, "grads"), **numbers}

        return jax.lax.scan(step, (init, tx.init(init)), batches)[1]

    return jax.jit(run)


def check(path, form, dtype):
    data = np.load(path)
    meta = json.loads(str(data["meta"]))
    layers = (len([k for k in data.files if k.startswith("init_")])) // 2
    tree = lambda prefix: tuple((data[f"{prefix}_W{i}"], data[f"{prefix}_b{i}"]) for i in range(layers))
    with enable_x64(dtype == "float64"):
        cast = lambda t: jax.tree.map(lambda x: jnp.asarray(x, dtype), t)
        batches = {"x": cast(data["xs"]), "y": jnp.asarray(data["ys"]), "domain": jnp.asarray(data["domain_ids"])}
        optimizer = json.dumps(meta["optimizer"], sort_keys=True)
        run = compiled_run(form, optimizer, PENALTY[meta["variance_weighting"]], meta["domains"]["n_domains"])
        got = jax.tree.map(np.asarray, run(cast(tree("init")), batches, cast(meta["lambda_"])))
    assert all(x.dtype == dtype for x in jax.tree.leaves(got["params"]))
    tolerance, params_tolerance = (1e-10, 1e-10) if dtype == "float64" else (2e-4, 2e-5)

    def compare(name, got, want, tolerance, scale=None):
        """Relative error of each step over all parameters (or domains) together."""
        got, want = (np.concatenate([x.reshape(12, -1) for x in jax.tree.leaves(t)], axis=1) for t in (got, want))
        scale = np.linalg.norm(want, axis=1) if scale is None else scale
        error = np.max(np.linalg.norm(got.astype(np.float64) - want, axis=1) / np.where(scale > 0, scale, 1))
        assert error < tolerance, f"{name}: relative error {error:.2e}"

    compare("params", got["params"], tree("params"), params_tolerance)
    compare("grads", got["grads"], tree("grad"), tolerance)
    compare("domain_losses", got["domain_losses"], np.nan_to_num(data["domain_losses"]), tolerance)
    compare("loss", got["loss"], data["ce_clean"], tolerance)
    compare("ascent_norm", got["ascent_norm"], data["ascent_grad_norm"], tolerance)
    largest = np.nanmax(data["domain_losses"], axis=1)
    compare("loss_variance", got["loss_variance"], data["variance_penalty"], tolerance, largest**2)
    # Of the stacked form the test knows w + e only, and a float32 difference of it loses the digits that are compared.
    if got.get("perturbation") is not None and not (form == "stacked" and dtype == "float32"):
        compare("perturbation", got["perturbation"], tree("perturb"), tolerance)
    if "perturbed_domain_losses" in got:
        counts = np.stack([np.bincount(d, minlength=meta["domains"]["n_domains"]) for d in data["domain_ids"]])
        pooled = (got["perturbed_domain_losses"].astype(np.float64) * counts).sum(1) / counts.sum(1)
        compare("ce_perturbed", pooled, data["ce_perturbed"], tolerance)


def applies(path, form):
    return form != "accumulated" or "_equal_" in path.name


def cases(paths, chosen):
    return [
        pytest.param(path, form, dtype, id=f"{path.stem}-{form}-{dtype}")
        for form in FORMS
        for dtype in ("float64", "float32")
        for path in paths
        if applies(path, form) and chosen(form, dtype)
    ]


def fast(form, dtype):
    return (dtype == "float64" and form != "transform_held") or (dtype, form) == ("float32", "transform")


@pytest.mark.parametrize(("path", "form", "dtype"), cases(FAST, fast))
def test_recorded_trajectory(path, form, dtype):
    check(path, form, dtype)


def dealt(paths):
    """Each file in two forms in float64 and in a third one in float32: every form meets every kind of file.

    Files that differ in data and lam only go through the same forms, one after the other: they share the program.
    """
    kind = lambda path: re.sub(r"_lam[0-9.]+", "", path.stem)
    kinds = sorted({kind(path) for path in paths})
    chosen = {}
    for case in cases(paths, lambda *_: True):
        chosen.setdefault((case.values[0], case.values[2]), []).append(case)
    for (path, dtype), own in chosen.items():
        first, count = (0, 2) if dtype == "float64" else (2, 1)
        start = kinds.index(kind(path)) + first
        chosen[path, dtype] = [own[(start + place) % len(own)] for place in range(count)]
    order = lambda case: (case.values[1], case.values[2], kind(case.values[0]))
    return sorted((case for own in chosen.values() for case in own), key=order)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "form", "dtype"), dealt(SHARED_FILES or EVERYWHERE))
def test_recorded_trajectory_of_the_whole_set(path, form, dtype):
    check(path, form, dtype)
