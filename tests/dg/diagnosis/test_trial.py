"""Trials: the beginning of the benchmark's own runs, and blind for the held-out domain."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_networks import CLIP_CONFIG, VIT_CONFIG

from disam_jax.dg.data.domains import join_domains
from disam_jax.dg.data.folder import list_images, load_images
from disam_jax.dg.data.load import CachedFeatures, stream_images
from disam_jax.dg.diagnosis import trial
from disam_jax.dg.diagnosis.signals import Signals
from disam_jax.dg.diagnosis.trial import diagnose
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import METHODS
from disam_jax.dg.models.clip import CLIP
from disam_jax.dg.models.inputs import images
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.models.vit import ViT
from disam_jax.dg.peft.finetuning import Pretrained, cache, make_networks
from disam_jax.dg.runners import stacks
from disam_jax.dg.sweep import run as sweep
from disam_jax.dg.sweep.hparams import default_hparams
from disam_jax.dg.testing import toy
from disam_jax.dg.training.config import FineTuneConfig, TrainConfig

# A trial of three steps.
CONFIG = TrainConfig(steps=30, evaluations=10, learning_rate=0.1, rho=0.3, per_domain=3, standardise=True)
ARM = "DISAM-std"


def sites(sizes=(12, 14, 16, 20), features=4, seed=0):
    rng = np.random.default_rng(seed)
    inputs = [rng.normal(0.3 * place, 1.0, (size, features)) for place, size in enumerate(sizes)]
    labels = [(each.sum(1) > 0.3 * place).astype(int) for place, each in enumerate(inputs)]
    return join_domains("sites", inputs, labels, "abcd"[: len(sizes)], ("ill", "well"))


def network_of(data, model="mlp", **options):
    return make_network(model, data.inputs.shape[1:], len(data.class_names), **options)


def found(data, config=CONFIG, network=None, targets=(1,), seeds=(0, 1), arm=ARM):
    return diagnose(data, network or network_of(data), config, arm, targets, seeds)


def assert_same(one, other, **tolerance):
    for name in Signals._fields:
        np.testing.assert_allclose(one.signals[name], other.signals[name], **tolerance, err_msg=name)


@pytest.mark.slow
def test_nothing_of_the_held_out_domain_enters():
    data = sites()
    other = sites((12, 5, 16, 20), seed=1)
    # Another held-out domain, of another size too; the sources stay.
    mine = lambda each: [each.inputs[data.domain_ids == place] for place in (0, 2, 3)]
    labels = [data.labels[data.domain_ids == place] for place in (0, 2, 3)]
    theirs, their_labels = other.inputs[other.domain_ids == 1], other.labels[other.domain_ids == 1]
    inputs = mine(data)
    inputs.insert(1, 1e3 * theirs)
    labels.insert(1, 1 - their_labels)
    changed = join_domains("sites", inputs, labels, "abcd", ("ill", "well"))
    one, another = (found(each, targets=[1, 0], seeds=[0, 1]).signals for each in (data, changed))
    for name in Signals._fields:
        assert one[name][:, 0].tolist() == another[name][:, 0].tolist(), name
        # Where it is a source, it does.
        assert (one[name][:, 1] != another[name][:, 1]).all(), name


@pytest.mark.slow
def test_a_trial_is_the_beginning_of_a_run_of_the_benchmark(tmp_path):
    """Its losses are those that the sweep stores after as many steps, on the same examples."""
    data = sites((10, 10, 10, 10))
    erm = {"ERM": METHODS["ERM"]}
    plan = sweep.Plan({"ERM": [default_hparams(erm["ERM"], CONFIG)]}, targets=(2,), seeds=(0, 1))
    results, _ = sweep.run_sweep(data, network_of(data), CONFIG, erm, plan, tmp_path)
    steps = trial.trial_steps(CONFIG)
    assert steps in results.steps
    losses = results.probe_losses[:, list(results.steps).index(steps)][:, [0, 1, 3]]
    signals = found(data, targets=[2]).signals
    np.testing.assert_allclose(signals["loss_spread"][:, 0], losses.std(1) / losses.mean(1), rtol=1e-5)
    validation = results.accuracy[:, list(results.steps).index(steps), 1][:, [0, 1, 3]]
    np.testing.assert_allclose(signals["source_accuracy"][:, 0], validation.mean(1), rtol=1e-6)


@pytest.mark.slow
def test_the_number_of_seeds_and_targets_changes_no_trial():
    data = sites()
    alone, together = found(data, targets=[3], seeds=[1]), found(data, targets=[0, 3], seeds=[0, 1])
    for name in Signals._fields:
        assert alone.signals[name][0, 0] == together.signals[name][1, 1], name
    assert together.targets == ("a", "d")


@pytest.mark.slow
def test_arms_differ_in_the_perturbation_alone():
    one, other = found(sites()), found(sites(), arm="DISAM")
    different = {name for name in Signals._fields if (one.signals[name] != other.signals[name]).any()}
    assert different == {"perturbation_change"}


@pytest.fixture
def small_stacks(monkeypatch):
    """Stacks of two batches, so that a trial of three steps has two of them."""
    monkeypatch.setattr(stacks, "STACK_BYTES", 2 * 2 * CONFIG.per_domain * 8**2 * 3)


PIXELS = dataclasses.replace(CONFIG, model="conv", standardise=False, block=5)


@pytest.mark.slow
def test_images_in_their_files_have_the_signals_of_those_in_memory(image_folder, small_stacks):
    listing = list_images(image_folder)
    in_memory = load_images(listing, 8)
    network = network_of(in_memory, "linear")
    options = {"config": PIXELS, "network": network}
    assert_same(found(stream_images(listing, 8), **options), found(in_memory, **options), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("views", [0, 2])
def test_activations_on_disk_have_the_signals_of_those_in_memory(small_stacks, views):
    data = sites()
    shifted = tuple(data.inputs + 1.0 + view for view in range(views))
    kept = CachedFeatures.of(data, data.inputs, origin="kept", views=shifted)
    config = dataclasses.replace(CONFIG, standardise=False)
    whole = found(kept, config)
    assert_same(found(dataclasses.replace(kept, streamed=True), config), whole, rtol=1e-4)
    assert (whole.signals["loss_spread"] != found(data, config).signals["loss_spread"]).all() == bool(views)


def of_pretrained(data, module, finetune):
    pretrained = Pretrained(module, 8, images)
    network, _ = make_networks(pretrained, finetune, data.class_names)
    if finetune.cache_features:
        data = cache(pretrained, data)
    return data, network, dataclasses.replace(PIXELS, finetune=finetune)


def of_scratch(data, model, **options):
    return data, network_of(data, model, **options), dataclasses.replace(PIXELS, model=model)


NETWORKS = {
    "linear": lambda data: of_scratch(data, "linear"),
    "conv with batch statistics": lambda data: of_scratch(data, "conv", norm="batch", widths=(4, 4)),
    "mlp with dropout": lambda data: of_scratch(data, "mlp", hidden=(4,), dropout=0.5),
    "vit, whole": lambda data: of_pretrained(data, ViT(VIT_CONFIG, rngs=nnx.Rngs(0)), FineTuneConfig("full")),
    "vit, probe of a tower that is run": lambda data: of_pretrained(
        data, ViT(VIT_CONFIG, rngs=nnx.Rngs(0)), FineTuneConfig("probe", cache_features=False)
    ),
    "clip, probe of kept features": lambda data: of_pretrained(
        data, CLIP(CLIP_CONFIG, rngs=nnx.Rngs(0)).image, FineTuneConfig("probe", cache_features=True)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_has_signals(name):
    data, network, config = NETWORKS[name](toy(images=True, examples=16))
    with jax.numpy_dtype_promotion("standard"):
        signals = found(data, config, network, targets=[2]).signals
    assert all(np.isfinite(each).all() for each in signals.values())
    assert (signals["loss_spread"] > 0).all()
    assert (signals["perturbation_change"] > 0).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: sites((9, 9)), "sites has 2 domains, so that a held-out one leaves 1 to train on"),
        (lambda: sites((9, 9, 2)), "domain c has 1 training example: .* at least 2 are needed"),
    ],
    ids=["one source", "no two halves"],
)
def test_data_without_signals_is_refused(data, message):
    with pytest.raises(InputError, match=message):
        found(data(), targets=[0])


@pytest.mark.slow
def test_a_held_out_domain_may_be_small():
    assert np.isfinite(found(sites((9, 9, 2)), targets=[2]).signals["gradient_noise"]).all()


@pytest.mark.slow
def test_a_trial_that_diverges_is_named(nans_allowed):
    config = dataclasses.replace(CONFIG, learning_rate=1e30)
    with pytest.raises(InputError, match=r"after 3 steps without b, seed 0, loss_spread.* smaller --learning-rate"):
        found(sites(), config)


@pytest.mark.parametrize("name", ["ERM", "SAM", "DISAM-control", "DISAM-own-std", "VREx", "GSAM+DISAM", "nothing"])
def test_a_method_without_signals_is_refused(name):
    with pytest.raises(InputError, match=f"--method {name.replace('+', '.')} has no signals: .* DISAM or DISAM-std"):
        trial.find_arm(name)
