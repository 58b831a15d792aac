"""The signals, against their formulas in plain numpy on the gradients themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import disam_jax
from disam_jax.dg.diagnosis import signals
from disam_jax.dg.diagnosis.signals import Examples, Signals, measure_signals
from disam_jax.dg.models.network import Network, Output

M, HALF, FEATURES, CLASSES = 3, 5, 4, 3
RHO, LAM = 0.3, 0.7


def linear(params, state, x, key, train):
    assert not train
    return Output(x @ params["kernel"] + params["bias"][None], x, state)


NETWORK = Network(lambda key: ({}, {}), linear)


def weights_of(losses):
    return disam_jax.domain_weights(losses, LAM, penalty="std")


@pytest.fixture(scope="module")
def problem():
    """Parameters and examples, float32; the domains differ in their means."""
    rng = np.random.default_rng(0)
    shift = rng.normal(size=(M, 1, 1, FEATURES))
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    inputs = (draw(M, 2, HALF, FEATURES) + shift).astype(np.float32)
    validation = (draw(M, 7, FEATURES) + shift[:, 0]).astype(np.float32)
    label = lambda *shape: rng.integers(0, CLASSES, shape).astype(np.int32)
    params = {"kernel": draw(FEATURES, CLASSES), "bias": draw(CLASSES)}
    return params, Examples(inputs, label(M, 2, HALF), validation, label(M, 7))


def loss_and_gradient(params, x, y):
    """Mean cross-entropy of softmax regression and its gradient as a vector, float64."""
    logits = x.astype(float) @ params["kernel"].astype(float) + params["bias"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    residual = p.copy()
    residual[np.arange(len(y)), y] -= 1
    kernel, bias = x.T @ residual / len(y), residual.mean(0)
    return -np.log(p[np.arange(len(y)), y]).mean(), np.concatenate([bias, kernel.reshape(-1)])


def moved(params, e):
    bias, kernel = e[:CLASSES], e[CLASSES:].reshape(FEATURES, CLASSES)
    return {"kernel": params["kernel"] + kernel, "bias": params["bias"] + bias}


def expected(params, examples):
    """Every signal from its formula."""
    of = lambda params, i, k: loss_and_gradient(params, examples.inputs[i, k], examples.labels[i, k])
    losses = np.array([np.mean([of(params, i, k)[0] for k in range(2)]) for i in range(M)])
    halves = np.array([[of(params, i, k)[1] for k in range(2)] for i in range(M)])
    g = halves.mean(1)
    mean = g.mean(0)
    at_e = moved(params, RHO * mean / np.linalg.norm(mean))
    perturbed = np.array([np.mean([of(at_e, i, k)[0] for k in range(2)]) for i in range(M)])
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    pairs = [cosine(g[i], g[j]) for i in range(M) for j in range(i)]
    within = np.mean([np.sum((halves[i, 0] - halves[i, 1]) ** 2) / 4 for i in range(M)])
    between = np.sum((g - mean) ** 2) / (M - 1)
    b = 1 / M - LAM / M * (losses - losses.mean()) / losses.std()
    unit = lambda v: v / np.linalg.norm(v)
    scores = examples.validation_inputs @ params["kernel"] + params["bias"]
    return Signals(
        loss_spread=losses.std() / losses.mean(),
        spread_growth=np.log(perturbed.std() / losses.std()),
        gradient_cosine=np.mean(pairs),
        gradient_coherence=mean @ mean / np.mean([v @ v for v in g]),
        gradient_noise=within / between,
        perturbation_change=np.linalg.norm(unit(b @ g) - unit(mean)),
        source_accuracy=(scores.argmax(-1) == examples.validation_labels).mean(),
    )


@pytest.fixture(scope="module")
def measured(problem):
    options = {"network": NETWORK, "rho": RHO, "domain_weights": weights_of}
    params, examples = jax.tree.map(jnp.asarray, problem)
    return jax.jit(lambda *given: measure_signals(given[0], {}, given[1], **options))(params, examples)


@pytest.mark.parametrize("name", Signals._fields)
def test_a_signal_is_its_formula_on_the_gradients(name, problem, measured):
    np.testing.assert_allclose(getattr(measured, name), getattr(expected(*problem), name), rtol=2e-5)


def gram_of(halves):
    return jnp.asarray(np.einsum("mkp,nlp->mknl", halves, halves), jnp.float32)


def test_the_noise_is_about_1_where_all_domains_are_one():
    rng = np.random.default_rng(0)
    ratios = [float(signals.noise_ratio(gram_of(rng.normal(size=(4, 2, 50)) + 3.0))) for _ in range(50)]
    assert abs(np.mean(ratios) - 1.0) < 0.1


@pytest.mark.parametrize(
    ("gradients", "cosine", "coherence"),
    [
        ([[1.0, 0.0], [2.0, 0.0]], 1.0, 2.25 / 2.5),
        ([[1.0, 0.0], [0.0, 1.0]], 0.0, 0.5),
        ([[1.0, 0.0], [-1.0, 0.0]], -1.0, 0.0),
    ],
    ids=["along", "across", "against"],
)
def test_gradients_along_across_and_against_each_other(gradients, cosine, coherence):
    gram = signals.inner_products(jnp.asarray(gradients))
    assert float(signals.mean_cosine(gram)) == pytest.approx(cosine)
    assert float(signals.coherence(gram)) == pytest.approx(coherence)


def test_the_weights_of_sam_change_no_perturbation():
    gram = signals.inner_products(jnp.asarray(np.random.default_rng(0).normal(size=(4, 9)), jnp.float32))
    assert float(signals.perturbation_change(gram, jnp.full(4, 0.25))) == 0.0
    assert float(signals.perturbation_change(gram, jnp.full(4, -0.25))) == pytest.approx(2.0, rel=1e-6)


def test_equal_losses_have_no_spread_to_grow():
    ones = jnp.ones(3)
    assert float(signals.relative_spread(ones)) == 0.0
    assert float(signals.spread_growth(ones, 2 * ones)) == 0.0
