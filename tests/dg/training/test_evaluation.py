"""What is measured of a run, against numpy and a network differentiated by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from support import slow

from disam_jax.dg.data.domains import join_domains
from disam_jax.dg.data.splits import split
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import METHODS
from disam_jax.dg.models.network import Network, Output
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.evaluation import by_domain_and_split, domain_sharpness, evaluate, measure, probe_rows
from disam_jax.dg.training.metrics import METRICS, Metric, measure_examples
from disam_jax.dg.training.step import RunSpec, make_arrays, sources_of, standardised

pytestmark = pytest.mark.dealt

SEEDS, PROBE = (0, 1, 2), 4
CONFIG = TrainConfig(rho=0.2, sharpness_rho=0.15, block=10)


def apply(params, state, x, key, train):
    assert not train
    return Output(problems.logits(params, x), x, state)


NETWORK = Network(lambda key: (None, {}), apply)


@pytest.fixture
def params():
    return problems.make_problem(seed=1).params


def splits_of(data):
    return tuple(split(data, seed) for seed in SEEDS)


def spec_of(place=1, target=0, **hparams):
    hparams = {name: jnp.float32(value) for name, value in hparams.items()}
    return RunSpec(jax.random.key(0), jnp.int32(place), jnp.int32(target), hparams)


def trains(data, place):
    """Which rows train with a seed, by the definition of a split."""
    order, counts = splits_of(data)[place]
    mask = np.zeros(len(data.labels), bool)
    for start, count in zip(data.starts, counts, strict=True):
        mask[order[start : start + count]] = True
    return mask


def as_seen(data, place, target):
    """Inputs standardised over the training examples of the sources, float64."""
    mask = trains(data, place) & (data.domain_ids != target)
    seen = data.inputs[mask].astype(np.float64)
    return (data.inputs - seen.mean(0)) / seen.std(0)


def rows_of_probe(data, place):
    order = splits_of(data)[place].order
    return np.stack([order[start : start + PROBE] for start in data.starts])


def reference(params, data, place, target, domains):
    """Losses and gradients of some domains on the probe."""
    rows = rows_of_probe(data, place)[domains]
    batch = {"x": as_seen(data, place, target)[rows], "y": data.labels[rows]}
    return problems.reference(problems.Problem(params, batch))


def test_the_masks_of_a_data_set(toy):
    splits = splits_of(toy)
    arrays = make_arrays(toy, splits, standardise=False)
    for place, each in enumerate(splits):
        np.testing.assert_array_equal(arrays.in_validation[place], ~trains(toy, place))
        np.testing.assert_array_equal(arrays.order[place], each.order)
    assert arrays.train_counts.tolist() == [4, 9, 7]
    assert (arrays.starts.tolist(), arrays.counts.tolist()) == ([0, 5, 16], [5, 11, 8])
    assert (arrays.shift, arrays.scale) == (None, None)
    assert standardised(arrays.inputs, spec_of(), arrays) is arrays.inputs
    integers = ("labels", "domain_ids", "starts", "counts", "order", "train_counts")
    assert {getattr(arrays, name).dtype for name in integers} == {jnp.dtype(jnp.int32)}


def test_images_stay_bytes():
    images = [np.full((5, 2, 2, 3), place, np.uint8) for place in range(2)]
    data = join_domains("images", images, [np.arange(5) % 2] * 2, "ab", "xy")
    assert make_arrays(data, splits_of(data), standardise=False).inputs.dtype == jnp.uint8


@pytest.mark.parametrize("target", range(3))
def test_standardisation_is_over_the_training_examples_of_the_sources(target, toy):
    arrays = make_arrays(toy, splits_of(toy), standardise=True)
    assert arrays.shift.dtype == arrays.scale.dtype == jnp.float32
    for place in range(3):
        got = standardised(arrays.inputs, spec_of(place, target), arrays)
        np.testing.assert_allclose(got, as_seen(toy, place, target), rtol=1e-4, atol=1e-5)
        seen = np.asarray(got)[trains(toy, place) & (toy.domain_ids != target)]
        np.testing.assert_allclose(seen.mean(0), 0.0, atol=1e-5)
        np.testing.assert_allclose(seen.std(0), 1.0, rtol=1e-5)


@pytest.mark.parametrize("target", range(3))
def test_standardisation_sees_neither_the_target_nor_a_validation_split(target, toy):
    fixed = dataclasses.replace(toy, validation=np.random.default_rng(0).random(24) < 0.3)
    unseen = fixed.validation | (toy.domain_ids == target)
    other = np.where(unseen[:, None], np.float32(1e6), toy.inputs)
    before, after = (
        make_arrays(dataclasses.replace(fixed, inputs=inputs), (split(fixed, 0),), standardise=True)
        for inputs in (toy.inputs, other)
    )
    for name in ("shift", "scale"):
        np.testing.assert_array_equal(getattr(before, name)[0, target], getattr(after, name)[0, target])


def test_a_constant_feature_is_centred(toy):
    inputs = toy.inputs.copy()
    inputs[:, 2] = 7.0
    arrays = make_arrays(dataclasses.replace(toy, inputs=inputs), splits_of(toy), standardise=True)
    assert (standardised(arrays.inputs, spec_of(), arrays)[:, 2] == 0.0).all()


@pytest.mark.parametrize("target", range(3))
def test_the_sources_of_a_target(target):
    assert sources_of(jnp.int32(target), 3).tolist() == [domain for domain in range(3) if domain != target]


@pytest.mark.parametrize("block", [7, *slow(1, 23, 24, 100)])
def test_blocks_of_examples_are_one_pass(block, toy, params):
    arrays = make_arrays(toy, splits_of(toy), standardise=True)
    spec = spec_of(place=2, target=1)
    values = evaluate(params, {}, spec, arrays, network=NETWORK, block=block)
    losses, right = values["losses"], values["accuracy"]
    logits = np.asarray(problems.logits(params, jnp.asarray(as_seen(toy, 2, 1), jnp.float32)), np.float64)
    wanted = np.log(np.exp(logits).sum(1)) - logits[np.arange(24), toy.labels]
    np.testing.assert_allclose(losses, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(right, logits.argmax(1) == toy.labels)
    assert 0 < right.sum() < 24


@pytest.mark.parametrize(
    ("of_examples", "got"),
    [
        (lambda logits, labels: logits.mean(), r"got float32\[\]: leave the mean"),
        (lambda logits, labels: logits, r"got float32\[2, 3\]"),
        (lambda logits, labels: labels, r"got int32\[2\]"),
    ],
)
def test_a_metric_that_is_no_number_for_each_example_is_named(of_examples, got, monkeypatch):
    monkeypatch.setitem(METRICS._read(), "mine", Metric(of_examples, "mine"))
    with pytest.raises(InputError, match=rf"metric mine must return one floating-point number.*\[2\], {got}"):
        measure_examples(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32))


@pytest.mark.parametrize("place", range(3))
def test_means_by_domain_and_split(place, toy):
    arrays = make_arrays(toy, splits_of(toy), standardise=False)
    values = np.random.default_rng(0).normal(size=24).astype(np.float32)
    mask = trains(toy, place)
    wanted = [[values[each & (toy.domain_ids == domain)].mean() for domain in range(3)] for each in (mask, ~mask)]
    np.testing.assert_allclose(by_domain_and_split(jnp.asarray(values), spec_of(place), arrays), wanted, rtol=1e-5)


@pytest.mark.parametrize("place", range(3))
def test_the_probe_is_training_examples_of_each_domain(place, toy):
    arrays = make_arrays(toy, splits_of(toy), standardise=False)
    rows = np.asarray(probe_rows(spec_of(place), arrays, PROBE))
    assert rows.shape == (3, PROBE)
    assert len(np.unique(rows)) == rows.size
    assert trains(toy, place)[rows].all()
    np.testing.assert_array_equal(toy.domain_ids[rows], np.repeat(np.arange(3)[:, None], PROBE, 1))


@functools.cache
def compiled(name):
    """Measures runs of a method, compiled once."""
    fixed = {"network": NETWORK, "method": METHODS[name], "config": CONFIG, "probe": PROBE}
    return jax.jit(functools.partial(measure, **fixed))


HYPER = {"rho": 0.3, "lam": 0.6, "alpha": 0.1}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        # A method without a perturbation is measured with SAM's.
        pytest.param("ERM", {"rho": 0.2, "lam": 0.0}, marks=pytest.mark.slow),
        ("DISAM-std", {"rho": 0.3, "lam": 0.6, "penalty": "std"}),
        pytest.param("SAM", {"rho": 0.3, "lam": 0.0}, marks=pytest.mark.slow),
        pytest.param("ASAM+DISAM", {"rho": 0.3, "lam": 0.6, "adaptive": True}, marks=pytest.mark.slow),
        pytest.param("DISAM", {"rho": 0.3, "lam": 0.6}, marks=pytest.mark.slow),
        pytest.param("GSAM+DISAM", {"rho": 0.3, "lam": 0.6}, marks=pytest.mark.slow),
        pytest.param("SAGM+DISAM", {"rho": 0.3, "lam": 0.6, "variant": ("sagm", 0.1, "clean")}, marks=pytest.mark.slow),
    ],
)
def test_the_losses_at_w_plus_e_are_the_methods(name, options, toy, params):
    arrays = make_arrays(toy, splits_of(toy), standardise=True)
    w = problems.flatten(params)
    for target in range(3):
        spec = spec_of(1, target, **{each: HYPER[each] for each in METHODS[name].hparams})
        found = compiled(name)(params, {}, spec, arrays)
        sources = [domain for domain in range(3) if domain != target]
        wanted = reference(params, toy, 1, target, sources).step(w, **options)["perturbed_domain_losses"]
        np.testing.assert_allclose(found.perturbed_losses[np.array(sources)], wanted, rtol=2e-5)
        assert found.perturbed_losses[target] == 0.0
        everywhere = reference(params, toy, 1, target, [0, 1, 2]).losses_at(w)
        np.testing.assert_allclose(found.probe_losses, everywhere, rtol=2e-5)


def test_accuracy_and_losses_are_those_of_all_examples(toy, params):
    arrays = make_arrays(toy, splits_of(toy), standardise=True)
    spec = spec_of(1, 2, rho=0.3, lam=0.6)
    found = compiled("DISAM-std")(params, {}, spec, arrays)
    of_examples = evaluate(params, {}, spec, arrays, network=NETWORK, block=24)
    for got, values in ((found.losses, of_examples["losses"]), (found.accuracy, of_examples["accuracy"])):
        np.testing.assert_allclose(got, by_domain_and_split(values, spec, arrays), rtol=1e-5)


@pytest.mark.parametrize("target", range(3))
def test_the_target_does_not_enter_the_perturbation(target, toy, params):
    of_target = (toy.domain_ids == target)[:, None]
    other = dataclasses.replace(
        toy,
        inputs=np.where(of_target, np.float32(50.0) - 3 * toy.inputs, toy.inputs),
        labels=np.where(of_target[:, 0], (toy.labels + 1) % 3, toy.labels),
    )
    spec = spec_of(1, target, rho=0.3, lam=0.6)
    before, after = (
        compiled("DISAM-std")(params, {}, spec, make_arrays(data, splits_of(toy), standardise=True))
        for data in (toy, other)
    )
    np.testing.assert_array_equal(before.perturbed_losses, after.perturbed_losses)
    assert (np.asarray(before.probe_losses != after.probe_losses) == (np.arange(3) == target)).all()


@pytest.mark.parametrize("target", [2, *slow(0, 1)])
def test_the_sharpness_of_a_domain_is_along_its_own_gradient(target, toy, params):
    arrays = make_arrays(toy, splits_of(toy), standardise=True)
    # The method's own rho is not what sharpness is measured with.
    spec = spec_of(1, target, rho=0.7)
    found = domain_sharpness(params, {}, spec, arrays, network=NETWORK, config=CONFIG, probe=PROBE)
    w, plain = problems.flatten(params), reference(params, toy, 1, target, [0, 1, 2])
    for domain, slope in enumerate(plain.gradients_at(w)):
        at_perturbed = plain.losses_at(w + 0.15 * slope / np.linalg.norm(slope))
        np.testing.assert_allclose(found[domain], (at_perturbed - plain.losses_at(w))[domain], rtol=1e-4, atol=1e-6)
