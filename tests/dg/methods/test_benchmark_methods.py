"""The methods of other benchmarks against their formulas in float64 numpy, and what they refuse.

An objective here is a function of flat parameters, the step and what the method remembers; its gradient is taken by
central differences. Each method is followed over several steps, its forms X+SAM and X+DISAM over one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from support import slow

from disam_jax.dg.cli.status import has_diverged
from disam_jax.dg.data import keys
from disam_jax.dg.data.domains import join_domains
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import (
    METHODS,
    Batch,
    Method,
    MethodError,
    Outputs,
    Start,
    from_objective,
    lp_ft,
    mixup,
    rsc,
    sharpness_forms,
)
from disam_jax.dg.methods.adversarial import discriminator_loss, start_discriminator
from disam_jax.dg.methods.alignment import causal_split
from disam_jax.dg.methods.risks import kde_quantile
from disam_jax.dg.methods.sam_family import RELATIVES
from disam_jax.dg.models.network import Network, Output
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.sweep import run as sweep
from disam_jax.dg.sweep.hparams import default_hparams
from disam_jax.dg.sweep.results_file import read_written
from disam_jax.dg.testing import toy
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.step import RunSpec, start, train_step

KEY = jax.random.key(0)
RATE, STEPS = 0.1, 4
# Far from the defaults, so that no term is too small to be seen; penalties begin at the third step.
HYPER = {
    "rho": 0.3,
    "lam": 0.7,
    "gamma": 0.6,
    "ib_lambda": 0.8,
    "ib_anneal": 2.0,
    "irm_lambda": 5.0,
    "anneal": 1.0,
    "quantile": 0.8,
    "burn_in": 2.0,
    # Its narrowest kernel multiplies rounding errors of the losses by a thousand.
    "rdm_lambda": 0.05,
    "variance_weight": 0.3,
    "rdm_anneal": 2.0,
    "fishr_lambda": 3.0,
    "fishr_ema": 0.6,
    "fishr_anneal": 2.0,
    "iga_penalty": 0.2,
    "tau": 0.9,
    "meta_lr": 0.5,
    "mldg_beta": 0.7,
    "dann_lambda": 0.9,
    "lr_d": 0.01,
    "weight_decay_d": 0.1,
    "grad_penalty": 0.0,
    "beta1": 0.5,
    "feature_drop": 0.4,
    "batch_drop": 0.35,
    "l2_sp": 0.5,
    "miro_lambda": 0.4,
    "miro_lr": 0.02,
    "probe_steps": 2.0,
}
# SAM's relatives are in test_sam_family.
EXTRA = [name for name, method in METHODS.items() if method.extra and name.removesuffix("+DISAM") not in RELATIVES]
BASES = [name for name in EXTRA if "rho" not in METHODS[name].hparams]
PROBLEM = problems.make_problem(seed=3, num_domains=3, per_domain=5)
X, Y = np.asarray(PROBLEM.batch["x"], np.float64), np.asarray(PROBLEM.batch["y"])
FIRST = problems.flatten(PROBLEM.params)
HIDDEN = 6
# The flat vector is hidden bias, hidden kernel, last bias, last kernel.
OF_HEAD = np.arange(len(FIRST)) >= HIDDEN + 4 * HIDDEN


# The network, in jax and in numpy.


def network():
    def apply(params, state, x, key, train):
        features = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"][None])
        return Output(head(params, state, features), features, {"mean": features.mean(0)} if train else state)

    def head(params, state, features):
        return features @ params["out"]["w"] + params["out"]["b"][None]

    return Network(lambda key: (PROBLEM.params, {"mean": jnp.zeros(HIDDEN, jnp.float32)}), apply, head=head)


def unflatten(w):
    leaves, structure = jax.tree.flatten(PROBLEM.params)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    return structure.unflatten([part.reshape(leaf.shape) for part, leaf in zip(np.split(w, ends), leaves, strict=True)])


def features_of(w):
    """[M, n, F]"""
    params = unflatten(w)
    return np.tanh(X @ params["hidden"]["w"] + params["hidden"]["b"])


def last_layer(w, features):
    params = unflatten(w)
    return features @ params["out"]["w"] + params["out"]["b"]


def logits_of(w):
    return last_layer(w, features_of(w))


def cross_entropies(logits, labels=Y):
    log_p = logits - scipy.special.logsumexp(logits, -1, keepdims=True)
    return -np.take_along_axis(log_p, labels[..., None], -1)[..., 0]


def domain_losses(w):
    return cross_entropies(logits_of(w)).mean(1)


# Objectives: (w, step, memory) -> domain losses [M] or a scalar.


def mmd2(x, y, widths):
    """From the distances of all pairs, point by point."""
    kernel = lambda a, b: sum(np.exp(-width * np.square(a[:, None] - b[None]).sum(-1)) for width in widths).mean()
    return kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)


def moments(x, y):
    covariance = lambda points: np.cov(points, rowvar=False)
    return np.square(x.mean(0) - y.mean(0)).mean() + np.square(covariance(x) - covariance(y)).mean()


def mmd(w, step, memory):
    z = features_of(w)
    widths = [10.0**power for power in range(-3, 4)]
    pairs = [mmd2(z[i], z[j], widths) for i, j in ((0, 1), (0, 2), (1, 2))]
    return domain_losses(w) + HYPER["gamma"] * np.mean(pairs)


def causirl(distance):
    def objective(w, step, memory):
        first = np.asarray(causal_split(keys.method_key(keys.step_key(KEY, step)), 3, 5))
        z = features_of(w)
        return domain_losses(w) + HYPER["gamma"] * distance(z[first], z[~first])

    return objective


def ib_erm(w, step, memory):
    weight = HYPER["ib_lambda"] if step >= HYPER["ib_anneal"] else 0.0
    return domain_losses(w) + weight * np.array([z.var(0, ddof=1).mean() for z in features_of(w)])


def scale_slope(logits, labels):
    """d CE(s logits) / ds at s = 1, by central differences."""
    h = 1e-5
    return (cross_entropies((1 + h) * logits, labels).mean() - cross_entropies((1 - h) * logits, labels).mean()) / (
        2 * h
    )


def ib_irm(w, step, memory):
    weight = HYPER["irm_lambda"] if step >= HYPER["anneal"] else 1.0
    penalties = [
        scale_slope(logits[::2], labels[::2]) * scale_slope(logits[1::2], labels[1::2])
        for logits, labels in zip(logits_of(w), Y, strict=True)
    ]
    return ib_erm(w, step, memory) + weight * np.array(penalties)


def quantile_of(values, quantile):
    width = 1.06 * values.std(ddof=1) * len(values) ** -0.2
    beyond = lambda q: scipy.stats.norm.cdf((q - values) / width).mean() - quantile
    return scipy.optimize.brentq(beyond, values.min() - 9 * width, values.max() + 9 * width, xtol=1e-14, rtol=1e-14)


def eqrm(w, step, memory):
    losses = domain_losses(w)
    return losses.mean() if step < HYPER["burn_in"] else quantile_of(losses, HYPER["quantile"])


def rdm(w, step, memory):
    risks = cross_entropies(logits_of(w))
    if step < HYPER["rdm_anneal"]:
        return risks.mean(1)
    worst = risks[risks.mean(1).argmax()]
    matching = mmd2(worst[:, None], risks.reshape(-1, 1), [10.0**power for power in range(-4, 4)])
    spread = risks.var(ddof=1) + worst.var(ddof=1)
    return risks.mean(1) + HYPER["rdm_lambda"] * matching + HYPER["variance_weight"] * spread


def head_gradients(w):
    """Of each example with respect to the last layer, [M, n, (F + 1) C]."""
    z, p = features_of(w), scipy.special.softmax(logits_of(w), -1)
    residual = p - np.eye(3)[Y]
    return np.concatenate([np.einsum("mnf,mnc->mnfc", z, residual).reshape(3, 5, -1), residual], -1)


def fishr_variances(w, memory):
    return HYPER["fishr_ema"] * memory + (1 - HYPER["fishr_ema"]) * head_gradients(w).var(1)


def fishr(w, step, memory):
    weight = HYPER["fishr_lambda"] if step >= HYPER["fishr_anneal"] else 0.0
    variances = fishr_variances(w, memory) / (1 - HYPER["fishr_ema"])
    return domain_losses(w) + weight * np.mean([np.square(v - variances.mean(0)).mean() for v in variances])


def iga(w, step, memory):
    gradients = problems.reference(PROBLEM).gradients_at(w)
    return domain_losses(w).mean() + HYPER["iga_penalty"] * np.square(gradients - gradients.mean(0)).sum()


def discriminated(layers, embeddings, z):
    """Activations of the discriminator, layer by layer."""
    at = [z if embeddings is None else z + embeddings[Y]]
    for place, (kernel, bias) in enumerate(layers):
        at.append(at[-1] @ kernel + bias)
        if place < len(layers) - 1:
            at[-1] = np.maximum(at[-1], 0)
    return at


DOMAINS = np.repeat(np.arange(3)[:, None], 5, 1)


def shares_of(embeddings):
    """The weight of each example in the discriminator's loss."""
    if embeddings is None:
        return np.full(Y.shape, 1 / Y.size)
    return 1 / (np.bincount(Y.ravel(), minlength=3)[Y] * 3)


def backward(layers, at, shares):
    """Gradients of sum shares * CE by kernels, biases and inputs."""
    slope = shares[..., None] * (scipy.special.softmax(at[-1], -1) - np.eye(3)[DOMAINS])
    found = []
    for place in reversed(range(len(layers))):
        found.append((np.einsum("mni,mnj->ij", at[place], slope), slope.sum((0, 1))))
        slope = slope @ layers[place][0].T * ((at[place] > 0) if place else 1)
    return found[::-1], slope


def discriminator_value(layers, embeddings, z, grad_penalty):
    at = discriminated(layers, embeddings, z)
    _, slopes = backward(layers, at, np.ones(Y.shape))
    penalty = np.square(slopes).sum(-1).mean()
    return (shares_of(embeddings) * cross_entropies(at[-1], DOMAINS)).sum() + grad_penalty * penalty


def dann(w, step, memory):
    value = discriminator_value(*memory["players"], features_of(w), HYPER["grad_penalty"])
    return domain_losses(w) - HYPER["dann_lambda"] * value


def play(w, memory):
    """A step of Adam of the discriminator."""
    layers, embeddings = memory["players"]
    at = discriminated(layers, embeddings, features_of(w))
    gradients, of_inputs = backward(layers, at, shares_of(embeddings))
    gradients = [each for pair in gradients for each in pair]
    values = [each for pair in layers for each in pair]
    if embeddings is not None:
        gradients.append(np.stack([of_inputs[c == Y].sum(0) for c in range(3)]))
        values.append(embeddings)
    gradients = [g + HYPER["weight_decay_d"] * v for g, v in zip(gradients, values, strict=True)]
    after, moments = adam(values, gradients, memory["moments"], HYPER["lr_d"], HYPER["beta1"], 0.9)
    pairs = [(after[i], after[i + 1]) for i in (0, 2, 4)]
    return {"players": (pairs, None if embeddings is None else after[-1]), "moments": moments}


def adam(values, gradients, moments, rate, beta1, beta2):
    firsts, seconds, count = moments
    firsts = [beta1 * m + (1 - beta1) * g for m, g in zip(firsts, gradients, strict=True)]
    seconds = [beta2 * v + (1 - beta2) * g**2 for v, g in zip(seconds, gradients, strict=True)]
    count += 1
    step = lambda w, m, v: w - rate * (m / (1 - beta1**count)) / (np.sqrt(v / (1 - beta2**count)) + 1e-8)
    return list(map(step, values, firsts, seconds)), (firsts, seconds, count)


def rsc_objective(w, step, memory):
    z, logits = features_of(w), logits_of(w)
    kernel = unflatten(w)["out"]["w"]
    slopes = kernel.T[Y]  # d logit_y / dz of a linear layer
    kept = slopes < np.percentile(slopes, 100 * (1 - HYPER["feature_drop"]), axis=-1, keepdims=True)
    right = lambda logits: np.exp(-cross_entropies(logits))
    lost = right(logits) - right(last_layer(w, z * kept))
    mask = kept | (lost < np.percentile(lost, 100 * (1 - HYPER["batch_drop"])))[..., None]
    return cross_entropies(last_layer(w, z * mask)).mean(1)


def l2_sp(w, step, memory):
    return domain_losses(w) + HYPER["l2_sp"] / 2 * np.square(w - FIRST).sum()


def oracle_bound(raw, w):
    variance = np.log1p(np.exp(raw)) + 1e-5
    return (np.square(features_of(w) - features_of(FIRST)) / variance + np.log(variance)).mean() / 2


def miro(w, step, memory):
    return domain_losses(w) + HYPER["miro_lambda"] * oracle_bound(memory["raw"], w)


def fit_variances(w, memory):
    of_raw = slope(lambda raw, *_: HYPER["miro_lambda"] * oracle_bound(raw, w), memory["raw"])
    (raw,), moments = adam([memory["raw"]], [of_raw], memory["moments"], HYPER["miro_lr"], 0.9, 0.999)
    return {"raw": raw, "moments": moments}


OBJECTIVES = {
    "MMD": mmd,
    "CausIRL-CORAL": causirl(moments),
    "CausIRL-MMD": causirl(lambda x, y: mmd2(x, y, [10.0**power for power in range(-3, 4)])),
    "IB-ERM": ib_erm,
    "IB-IRM": ib_irm,
    "EQRM": eqrm,
    "RDM": rdm,
    "Fishr": fishr,
    "IGA": iga,
    "DANN": dann,
    "CDANN": dann,
    "RSC": rsc_objective,
    "L2-SP": l2_sp,
    "MIRO": miro,
    "LP-FT": lambda w, step, memory: domain_losses(w),
}


def slopes(objective, w, step=0, memory=None):
    """The gradients of the values of an objective by central differences, [M, P], or [1, P] of a scalar."""
    units = 1e-5 * np.eye(len(w))
    at = lambda w: np.atleast_1d(objective(w, step, memory))
    return np.array([(at(w + unit) - at(w - unit)) / 2e-5 for unit in units]).T


def slope(objective, w, step=0, memory=None):
    """The gradient of the mean of an objective."""
    return slopes(objective, w, step, memory).mean(0)


def mask_of(name, step):
    """Which parameters have a gradient."""
    return OF_HEAD if name == "LP-FT" and step < HYPER["probe_steps"] else np.ones_like(OF_HEAD)


# Methods that are no gradient of an objective: (w, step) -> gradient.


def and_mask(w, step):
    gradients = problems.reference(PROBLEM).gradients_at(w)
    masked = []
    ends = np.cumsum([leaf.size for leaf in jax.tree.leaves(PROBLEM.params)])[:-1]
    for part in np.split(gradients, ends, axis=1):
        agree = np.abs(np.sign(part).mean(0)) >= HYPER["tau"]
        masked.append(agree * part.mean(0) / (1e-10 + agree.mean()))
    return np.concatenate(masked)


def fish(w, step):
    at = w
    for i in range(3):
        at = at - RATE * problems.reference(PROBLEM).gradients_at(at)[i]
    return HYPER["meta_lr"] * (w - at) / RATE


def mldg(w, step):
    key = keys.method_key(keys.step_key(KEY, step))
    held_out, *others = np.asarray(jax.random.permutation(key, jnp.arange(3, dtype=jnp.int32)))
    gradients_at = problems.reference(PROBLEM).gradients_at
    training = gradients_at(w)[others].mean(0)
    return training + HYPER["mldg_beta"] * gradients_at(w - RATE * training)[held_out]


GRADIENTS = {"AND-mask": and_mask, "Fish": fish, "MLDG": mldg}


# What a method remembers, from its first state, and how that goes on.


def remembered(name, state):
    if name == "Fishr":
        return np.zeros((3, (HIDDEN + 1) * 3))
    if name in ("DANN", "CDANN"):
        as_numpy = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
        layers, embeddings = as_numpy(tuple(state.discriminator))
        zeros = [np.zeros_like(leaf) for leaf in jax.tree.leaves((layers, embeddings))]
        return {"players": (layers, embeddings), "moments": (zeros, zeros, 0)}
    if name == "MIRO":
        zeros = [np.zeros(HIDDEN)]
        return {"raw": np.full(HIDDEN, np.log(np.expm1(0.1 - 1e-5))), "moments": (zeros, zeros, 0)}
    return None


GOES_ON = {
    "Fishr": fishr_variances,
    "DANN": play,
    "CDANN": play,
    "MIRO": fit_variances,
}


# The runs.


def hparams_of(name):
    own = {each: HYPER[each] for each in METHODS[name].hparams}
    return {each: jnp.float32(value) for each, value in {"learning_rate": RATE, "weight_decay": 0.0, **own}.items()}


@functools.cache
def runs_of(name, number):
    """A run before and after each of some steps on the same batch."""
    spec = RunSpec(KEY, jnp.int32(0), jnp.int32(3), hparams_of(name))
    fixed = {"network": network(), "method": METHODS[name], "config": TrainConfig(momentum=0.0)}
    runs = [start(spec, **fixed, num_sources=3, example=jax.ShapeDtypeStruct((4,), jnp.float32))]
    step = jax.jit(functools.partial(train_step, **fixed))
    for place in range(number):
        runs.append(step(runs[-1], spec, jnp.int32(place), PROBLEM.batch["x"], PROBLEM.batch["y"]))
    return runs


def base_of(name):
    return name.removesuffix("+SAM").removesuffix("+DISAM")


def expected(name, w, step, memory):
    """The gradient of a step in float64."""
    base = base_of(name)
    if base in GRADIENTS:
        return GRADIENTS[base](w, step)
    objective = OBJECTIVES[base]
    if name == base:
        return mask_of(name, step) * slope(objective, w, step, memory)
    reference = problems.Reference(
        lambda w: np.atleast_1d(objective(w, step, memory)),
        lambda w: mask_of(base, step) * slopes(objective, w, step, memory),
    )
    return reference.step(w, HYPER["rho"], HYPER["lam"] if "DISAM" in name else 0.0)["gradient"]


# One of each kind by default: of features, with a memory, with a second player, of each domain's gradient.
QUICK = ("MMD", "Fishr", "DANN", "AND-mask")


def dealt(names, quick):
    return [*(name for name in names if name in quick), *slow(*(name for name in names if name not in quick))]


@pytest.mark.parametrize("name", dealt(BASES, QUICK))
def test_the_trajectory_of_a_method_is_that_of_its_formula(name):
    """Each step from where the reference stands, with what the reference remembers; before and after the annealing."""
    runs, w = runs_of(name, STEPS), FIRST
    memory = remembered(name, runs[0].method_state)
    for step, run in enumerate(runs[1:]):
        gradient = expected(name, w, step, memory)
        plain = problems.reference(PROBLEM).gradients_at(w).mean(0)
        if step == STEPS - 1 and name != "LP-FT":
            assert problems.relative_error(gradient, plain) > 1e-3, "no method is ERM by another name"
        if name in GOES_ON:
            memory = GOES_ON[name](w, memory)
        w = w - RATE * gradient
        assert problems.relative_error(run.params, w) < 1e-5


FORMS = [name for name in EXTRA if name not in BASES]


@pytest.mark.parametrize("name", dealt(FORMS, ("MMD+DISAM",)))
def test_the_forms_of_a_method_are_its_gradient_at_the_perturbed_point(name):
    """The third step, from where the run stands: penalties are on, and the memory is not the first one."""
    runs = runs_of(name, 3)
    memory = remembered(base_of(name), runs[0].method_state)
    for place in range(2):
        if base_of(name) in GOES_ON:
            memory = GOES_ON[base_of(name)](problems.flatten(runs[place].params), memory)
    w = problems.flatten(runs[2].params)
    wanted = expected(name, w, 2, memory)
    got = (w - problems.flatten(runs[3].params)) / RATE
    assert problems.relative_error(got, wanted) < 1e-4
    # Not the base itself, or the form without lam.
    other = name.replace("+DISAM", "+SAM") if "DISAM" in name else base_of(name)
    assert problems.relative_error(expected(other, w, 2, memory), wanted) > 1e-3


@pytest.mark.parametrize("name", dealt(EXTRA, QUICK))
def test_a_step_keeps_structure_shapes_and_dtypes_and_the_statistics_of_the_batch(name):
    before, *_, after = runs_of(name, STEPS if name in BASES else 3)
    shapes = lambda run: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), run)
    assert shapes(before) == shapes(after)
    if name in ("Fish", "MLDG"):  # of the weights after each inner step, or of the domains on which it trains
        return
    seen = features_of(FIRST).mean((0, 1))
    np.testing.assert_allclose(runs_of(name, STEPS if name in BASES else 3)[1].state["mean"], seen, rtol=1e-5)


# What the parts do.


def test_a_quantile_of_a_density_estimate_and_its_derivative():
    values = np.array([0.3, 1.1, 0.4, 2.5])
    found, slope_of_it = jax.jit(jax.value_and_grad(kde_quantile))(values.astype(np.float32), jnp.float32(0.8))
    np.testing.assert_allclose(found, quantile_of(values, 0.8), rtol=1e-6)
    wanted = slope(lambda values, *_: quantile_of(values, 0.8), values)
    np.testing.assert_allclose(slope_of_it, wanted, rtol=1e-5, atol=1e-6)
    # Risks that are the same have a quantile and finite slopes.
    same, slopes_of_it = jax.jit(jax.value_and_grad(kde_quantile))(jnp.ones(3), jnp.float32(0.8))
    np.testing.assert_allclose(same, 1.0, rtol=1e-5)
    assert np.isfinite(slopes_of_it).all()


@pytest.mark.slow
@pytest.mark.parametrize("conditional", [False, True])
def test_the_penalty_on_the_gradients_of_a_discriminator_reaches_both_players(conditional):
    """Along a random direction of the discriminator and of the features, against differences in float64."""
    player = start_discriminator(Start(3, None, num_features=HIDDEN, num_classes=3, key=KEY), conditional)
    as_numpy = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
    rng = np.random.default_rng(0)
    z = 3 * features_of(FIRST)
    at = (tuple(as_numpy(player.discriminator)), z)
    along = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), at)
    moved = lambda h: jax.tree.map(lambda leaf, d: leaf + h * d, at, along)
    value = lambda h: discriminator_value(*moved(h)[0], moved(h)[1], 0.7)
    wanted = (value(1e-6) - value(-1e-6)) / 2e-6
    loss = lambda discriminator, z: discriminator_loss(discriminator, z, PROBLEM.batch["y"], jnp.float32(0.7))
    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(player.discriminator, z.astype(np.float32))
    np.testing.assert_allclose(both[0], value(0.0), rtol=1e-5)
    pairs = zip(jax.tree.leaves(as_numpy(both[1])), jax.tree.leaves(along), strict=True)
    np.testing.assert_allclose(sum((gradient * d).sum() for gradient, d in pairs), wanted, rtol=1e-3)


@pytest.mark.slow
def test_a_causal_split_cuts_each_domain_at_a_random_place():
    cuts = np.asarray(jax.jit(jax.vmap(lambda key: causal_split(key, 2, 4)))(jax.random.split(KEY, 2000)))
    # The first so many examples, of which there are 0 to 3.
    assert (np.diff(cuts.astype(int), axis=-1) <= 0).all()
    counts = np.array([(cuts.sum(-1) == size).mean(0) for size in range(5)])
    np.testing.assert_allclose(counts[:4], 0.25, atol=5 * (0.1875 / 2000) ** 0.5)
    assert not counts[4].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CausIRL-CORAL", "CausIRL-MMD"])
def test_a_cut_that_leaves_a_sample_without_two_examples_has_no_penalty(name):
    """Two domains of two examples: the first sample has 0, 1 or 2 of them."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 3)), jnp.float32)
    loss = lambda z, key: (
        METHODS[name]
        .gradient.loss(
            z,
            Batch(None, jnp.zeros((2, 2), jnp.int32), key),
            lambda z: Outputs(jnp.zeros(2), None, z, {}),
            {"gamma": 1.0},
            (),
        )[0]
        .mean()
    )
    found = jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0)))(z, jax.random.split(KEY, 20))
    cuts = np.array([causal_split(key, 2, 2).sum() for key in jax.random.split(KEY, 20)])
    assert {*cuts} == {0, 1, 2}
    for value, gradient in ((found[0][cuts < 2], found[1][cuts < 2]), (0 * found[0], 0 * found[1])):
        assert not value.any()
        assert not gradient.any()
    assert (found[0][cuts == 2] > 0).all()


def test_the_forms_of_a_method_that_has_no_loss_are_refused():
    with pytest.raises(TypeError, match=r"method Mine must have a gradient from from_objective or from_loss for sharp"):
        sharpness_forms("Mine", Method(lambda *_: None, sharpness=("SAM",)))
    assert sharpness_forms("Mine", Method(lambda *_: None)) == {}


def test_a_form_with_lam_of_a_scalar_is_told():
    forms = sharpness_forms(
        "Mine", Method(from_objective(lambda o, b, h, s: (o.losses.max(), s)), sharpness=("DISAM",))
    )
    (form,) = forms.values()
    assert form.base == "Mine"
    forward = lambda w: Outputs(w * jnp.ones(2), None, None, {})
    batch = Batch(None, jnp.zeros((2, 1), jnp.int32), KEY)
    with pytest.raises(MethodError, match=r"with lam, the objective must return domain losses \[2\], got a scalar"):
        form.gradient(jnp.float32(1.0), batch, forward, {"rho": jnp.float32(0.1), "lam": jnp.float32(1.0)}, ())


# Bad input.


@pytest.mark.parametrize("objective", [rsc, lp_ft])
def test_a_network_without_a_last_layer_is_told(objective):
    fixed = {
        "network": network()._replace(head=None),
        "method": Method(from_objective(objective), state=METHODS["LP-FT"].state),
    }
    hparams = {name: jnp.float32(0.5) for name in ("learning_rate", "weight_decay", *HYPER)}
    spec = RunSpec(KEY, jnp.int32(0), jnp.int32(3), hparams)
    run = start(spec, **fixed, config=TrainConfig(), num_sources=3)
    step = lambda: train_step(
        run, spec, jnp.int32(0), PROBLEM.batch["x"], PROBLEM.batch["y"], **fixed, config=TrainConfig()
    )
    with pytest.raises(MethodError, match=r"this network has no head: give its module a method classify\(features\)"):
        jax.eval_shape(step)


def test_a_state_that_needs_shapes_is_not_begun_without_them():
    spec = RunSpec(KEY, jnp.int32(0), jnp.int32(3), hparams_of("Fishr"))
    with pytest.raises(ValueError, match="start must get the shape of an example for a method with an init, got None"):
        start(spec, network(), METHODS["Fishr"], TrainConfig(), num_sources=3)


def two_domains():
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(12, 3)) for _ in range(2)]
    return join_domains("two", inputs, [np.arange(12) % 2] * 2, ("a", "b"), ("x", "y"))


def test_methods_that_compare_domains_are_refused_with_one_source():
    """Before anything is trained: without a second domain their gradient would be that of ERM."""
    data, config = two_domains(), TrainConfig(per_domain=4)
    compares = [name for name in EXTRA if METHODS[name].min_sources == 2]
    assert {base_of(name) for name in compares} == {*BASES} - {"IB-ERM", "IB-IRM", "RSC", "L2-SP", "MIRO", "LP-FT"}
    for name in EXTRA:
        plan = sweep.Plan({name: [{}]}, targets=(0,), seeds=(0, 1))
        prepare = lambda name=name, plan=plan: sweep.prepare_sweep(data, network(), config, {name: METHODS[name]}, plan)
        if name in compares:
            with pytest.raises(
                InputError, match=rf"--method {name.replace('+', '.')} needs 2 source domains, got 1: leave"
            ):
                prepare()
        else:
            prepare()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_labels_that_are_no_classes_are_refused(dtype):
    with pytest.raises(ValueError, match="labels must be classes, integers from 0, got float"):
        join_domains("d", [np.zeros((2, 3))], [np.array([0.5, 1.0], dtype)], ["a"], ["x", "y"])
    batch = Batch(jnp.zeros((2, 1, 3)), jnp.full((2, 1), 0.5), KEY)
    with pytest.raises(MethodError, match="labels must be classes, int32, got float32: number the classes from 0"):
        mixup(jnp.zeros(3), batch, lambda *_: None, {"mixup_alpha": jnp.float32(0.2)}, ())


@pytest.mark.slow
@pytest.mark.usefixtures("nans_allowed")
def test_a_second_player_that_diverges_leaves_a_row_of_nan_that_is_counted(tmp_path):
    data, config = toy(), TrainConfig(steps=4, evaluations=2, per_domain=3)
    methods = {name: METHODS[name] for name in ("ERM", "DANN")}
    rates = {"ERM": [{}], "DANN": [{}, {"lr_d": 1e30}]}
    candidates = {
        name: [{**default_hparams(methods[name], config), **changed} for changed in each]
        for name, each in rates.items()
    }
    plan = sweep.Plan(candidates, targets=(0,), seeds=(0, 1))
    results, _ = sweep.run_sweep(
        data, make_network("mlp", (2,), 2, hidden=(4,)), config, methods, plan, tmp_path / "out"
    )
    diverged = [not np.isfinite(losses).all() for losses in results.losses]
    assert diverged == [run.candidate == 1 for run in results.runs]
    assert sum(diverged) == 2
    records = read_written(tmp_path / "out").records.values()
    assert sum(map(has_diverged, records)) == 2
