"""Pretrained models in the benchmark: networks, cached features, zero-shot, new classes, the command."""

import dataclasses
import functools
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import save_image

from disam_jax.dg.cli import main as cli
from disam_jax.dg.data import classes, folder
from disam_jax.dg.data.load import stream_images
from disam_jax.dg.data.splits import split
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import ZERO_SHOT, find_methods, zero_shot
from disam_jax.dg.models.adapter import from_weights
from disam_jax.dg.models.clip import CLIP_MEAN, CLIP_STD
from disam_jax.dg.models.inputs import images
from disam_jax.dg.peft import TRAINABLE, finetuning
from disam_jax.dg.peft.registry import FINETUNING
from disam_jax.dg.pretrained.tiny import write_tiny_clip, write_tiny_vit
from disam_jax.dg.pretrained.tokenizer import class_prompts, load_tokenizer
from disam_jax.dg.sweep import run as sweep
from disam_jax.dg.sweep.hparams import default_hparams
from disam_jax.dg.training.config import PRETRAINED, FineTuneConfig

DATA = Path(__file__).parents[1] / "pretrained" / "data"
KEY = jax.random.key(0)
NAMES = ("dog", "alarm_clock", "house")
SHARED = os.environ.get("DISAM_JAX_SHARED")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "clip": write_tiny_clip(root / "clip", image_size=16, width=8),
        "vit": write_tiny_vit(root / "vit", image_size=16, width=8, num_classes=5),
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three domains of three classes with four images each."""
    root = tmp_path_factory.mktemp("pictures")
    for d, domain in enumerate(("art", "photo", "sketch")):
        for c, name in enumerate(NAMES):
            (root / domain / name).mkdir(parents=True)
            for k in range(4):
                save_image(root / domain / name / f"{k}.png", seed=100 * d + 10 * c + k)
    return root


def pixels(number=4):
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (number, 16, 16, 3)), jnp.uint8)


def paths(params):
    return {".".join(str(each.key) for each in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}


# Base and new classes.


@pytest.mark.parametrize(
    ("base", "found"),
    [
        ((), (("dog", "alarm_clock"), ("house",))),
        (("house",), (("house",), ("dog", "alarm_clock"))),
        (("house", "dog"), (("dog", "house"), ("alarm_clock",))),
    ],
)
def test_base_and_new_classes(base, found):
    assert classes.split_classes(NAMES, base) == found


@pytest.mark.parametrize(("base", "message"), [(("cat",), "unknown base class cat"), (NAMES, "must both be some")])
def test_base_classes_that_cannot_be(base, message):
    with pytest.raises(InputError, match=message):
        classes.split_classes(NAMES, base)


def test_a_base_class_that_is_nearly_right_is_told():
    with pytest.raises(InputError, match="the classes are dog, alarm_clock, house: 'Dog' and 'dog' differ in upper"):
        classes.split_classes(NAMES, ("Dog",))


def test_the_examples_of_some_classes(pictures):
    listing = folder.list_images(pictures)
    data = folder.load_images(listing, 16)
    found = classes.take_classes(data, ("house", "dog"))
    kept = [row for row, label in enumerate(data.labels) if data.class_names[label] in ("house", "dog")]
    np.testing.assert_array_equal(found.inputs, data.inputs[kept])
    assert [found.class_names[label] for label in found.labels] == [data.class_names[data.labels[r]] for r in kept]
    streamed = classes.take_classes(stream_images(listing, 16), ("house", "dog"))
    assert streamed.listing.paths == tuple(listing.paths[row] for row in kept)
    np.testing.assert_array_equal(streamed.labels, found.labels)
    np.testing.assert_array_equal(streamed.domain_ids, found.domain_ids)


def test_a_domain_without_base_classes_is_named(toy):
    part = dataclasses.replace(toy, labels=np.where(toy.domain_ids == 1, 2, 0).astype(np.int32))
    with pytest.raises(InputError, match="domain b has no image of the base classes x"):
        classes.check_bases(classes.take_classes(part, ("x",)), ("x",))


# Networks with weights.


class Layers(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.norm = nnx.Linear(4, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x, key):
        features = self.norm(self.hidden(x))
        return self.head(features), features


@pytest.mark.slow
def test_weights_are_shared_and_the_trained_part_is_a_parameter():
    module = Layers(nnx.Rngs(0))
    x = jnp.linspace(-1.0, 1.0, 20).reshape(5, 4)
    copy = nnx.clone(module)
    want_train, want_state = copy(x, KEY)[0], nnx.to_pure_dict(nnx.state(copy, nnx.BatchStat))
    module.eval()
    want = module(x, KEY)[0]
    network = from_weights(module, lambda module, rngs: module, nnx.PathContains("head"))
    params, state = network.init(KEY)
    assert paths(params) == {"head.bias", "head.kernel"}
    np.testing.assert_allclose(network.apply(params, state, x, KEY, False).logits, want, rtol=1e-6)
    trained = network.apply(params, state, x, KEY, True)
    np.testing.assert_allclose(trained.logits, want_train, rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), trained.state, want_state)
    # Other weights than the own ones are used where they are given.
    zeros = jax.tree.map(jnp.zeros_like, network.weights)
    logits = network.given(zeros).apply(params, state, x, KEY, False).logits
    np.testing.assert_allclose(logits, jnp.broadcast_to(params["head"]["bias"][None], (5, 3)), atol=1e-6)


@pytest.mark.slow
def test_weights_are_arguments_of_the_program_not_constants_in_it(checkpoints):
    pretrained = finetuning.load("vit", checkpoints["vit"])
    network, _ = finetuning.make_networks(pretrained, FineTuneConfig("lora", cache_features=False), NAMES)
    params, state = network.init(KEY)
    apply = lambda weights, params, x: network.given(weights).apply(params, state, x, KEY, False).logits
    largest = max(leaf.size for leaf in jax.tree.leaves(network.weights))
    closed = jax.make_jaxpr(apply)(network.weights, params, pixels())
    assert max((np.size(each) for each in closed.consts), default=0) < largest


TRAINED = {
    ("clip", "probe"): {"head.bias", "head.kernel"},
    ("clip", "coop"): {"context"},
    ("vit", "probe"): {"head.bias", "head.kernel"},
}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "peft"), list(TRAINED))
def test_what_is_trained(checkpoints, model, peft):
    pretrained = finetuning.load(model, checkpoints[model])
    network, _ = finetuning.make_networks(pretrained, FineTuneConfig(peft, context=3, cache_features=False), NAMES)
    params, state = jax.eval_shape(network.init, KEY)
    assert paths(params) == TRAINED[model, peft]
    assert not jax.tree.leaves(state)
    logits = lambda: network.apply(*network.init(KEY), pixels(), KEY, False).logits
    assert jax.eval_shape(logits).shape == (4, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "peft"), [(m, p) for m in ("clip", "vit") for p in ("full", "lora", "norm-bias")])
def test_a_tuned_tower_starts_as_it_was_loaded(checkpoints, model, peft):
    pretrained = finetuning.load(model, checkpoints[model])
    network, _ = finetuning.make_networks(pretrained, FineTuneConfig(peft, cache_features=False), NAMES)
    params, state = network.init(KEY)
    assert not any(path.startswith("text") for path in paths(params))
    assert any(("lora" in path) == (peft == "lora") for path in paths(params) if "head" not in path)
    found = network.apply(params, state, pixels(), KEY, False)
    tower = pretrained.tower
    want = tower(pretrained.prepare(pixels())) if model == "clip" else tower.features(pretrained.prepare(pixels()))
    np.testing.assert_allclose(found.features, want, rtol=1e-4, atol=1e-6)


def clip_accuracy(path, data, names):
    """Of the zero-shot classifier on each example, from the module itself."""
    pretrained = finetuning.load("clip", path)
    ids = load_tokenizer(path).tokenize(class_prompts(names))
    logits = pretrained.module(images(jnp.asarray(data.inputs), CLIP_MEAN, CLIP_STD), jnp.asarray(ids))
    return np.asarray(logits).argmax(1) == data.labels


def run(data, pretrained, peft, out, names, cached, new_names=(), **options):
    """DISAM, and CLIP as it is, on tiny settings."""
    how = FineTuneConfig(peft, context=2, cache_features=cached)
    config = dataclasses.replace(
        PRETRAINED,
        **FINETUNING[peft].training,
        model="clip",
        steps=3,
        evaluations=1,
        per_domain=3,
        probe=4,
        block=8,
        finetune=how,
        lam=1.0,
    )
    network, as_it_is = finetuning.make_networks(pretrained, how, names)
    methods = {ZERO_SHOT: zero_shot, **find_methods(["disam"])}
    plan = sweep.Plan({name: [default_hparams(m, config)] for name, m in methods.items()}, (0, 2), (0,))
    new = None
    if new_names:
        other, other_as_it_is = finetuning.make_networks(pretrained, how, new_names)
        whole, data = data, classes.take_classes(data, names)
        networks = {ZERO_SHOT: other_as_it_is, "DISAM": other}
        new = sweep.NewClasses(classes.take_classes(whole, new_names), networks)
    own = {ZERO_SHOT: as_it_is}
    results, _ = sweep.run_sweep(
        data, network, config, methods, plan, out, own_networks=own, new=new, memory_budget=2**30, **options
    )
    return results


@pytest.mark.slow
def test_cached_streamed_and_in_memory_are_the_same_runs_with_new_classes_too(checkpoints, pictures, tmp_path):
    listing = folder.list_images(pictures)
    data = folder.load_images(listing, 16)
    pretrained = finetuning.load("clip", checkpoints["clip"])
    base, new = classes.split_classes(data.class_names)
    case = functools.partial(run, pretrained=pretrained, peft="coop", names=base, new_names=new)
    plain = case(data, out=tmp_path / "plain", cached=False)
    cached = case(finetuning.cache(pretrained, data, block=5), out=tmp_path / "cached", cached=True)
    streamed = case(stream_images(listing, 16), out=tmp_path / "streamed", cached=False)
    for other in (cached, streamed):
        for name in ("accuracy", "new_accuracy"):
            np.testing.assert_array_equal(getattr(other, name), getattr(plain, name))
        for name in ("losses", "probe_losses", "perturbed_losses"):
            np.testing.assert_allclose(getattr(other, name), getattr(plain, name), rtol=2e-5, atol=1e-6)
    assert (plain.losses[-1, -1] != plain.losses[-1, 0]).any()
    # The row of CLIP as it is: the module's own answers, at every point.
    trained, unseen = (classes.take_classes(data, names) for names in (base, new))
    for row, each in enumerate(plain.runs):
        if each.method != ZERO_SHOT:
            continue
        right = clip_accuracy(checkpoints["clip"], trained, base)
        by_domain = [right[trained.domain_ids == d].mean() for d in range(3)]
        counts = np.stack([plain.header["data"]["domains"][name] for name in plain.domain_names])
        splits = plain.accuracy[row]
        train = np.array([split(trained, each.seed, 0.2).train_counts])[0]
        weighted = (splits[:, 0] * train + splits[:, 1] * (counts - train)) / counts
        np.testing.assert_allclose(weighted, np.tile(by_domain, (len(splits), 1)), rtol=1e-5)
        right = clip_accuracy(checkpoints["clip"], unseen, new)
        np.testing.assert_allclose(
            plain.new_accuracy[row], [[right[unseen.domain_ids == d].mean() for d in range(3)]] * 2
        )
        assert (plain.sharpness[row] == 0).all()


@pytest.mark.slow
def test_features_are_cached_in_blocks_of_any_size(checkpoints, pictures):
    data = folder.load_images(folder.list_images(pictures), 16)
    pretrained = finetuning.load("vit", checkpoints["vit"])
    want = pretrained.tower.features(pretrained.prepare(jnp.asarray(data.inputs)))
    done = []
    found = finetuning.cache(pretrained, data, block=7, on_progress=lambda *numbers: done.append(numbers))
    np.testing.assert_allclose(found.inputs, want, rtol=1e-4, atol=1e-5)
    assert done[-1] == (36, 36)
    assert len(done) == 6


# The command.

QUICK = ["--seeds", "2", "--steps", "2", "--evaluations", "1", "--per-domain", "2"]


def refused(capsys, *arguments):
    assert cli.main(["compare", *map(str, arguments)]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "clip"], "--model clip needs --checkpoint"),
        (
            ["--model", "vit", "--checkpoint", "{vit}", "--peft", "probe", "--rank", "2"],
            "--rank is for --peft lora: --peft is probe",
        ),
        (
            ["--model", "clip", "--checkpoint", "{clip}", "--peft", "lora", "--class-contexts"],
            "--class-contexts is for --peft coop: --peft is lora",
        ),
        (["--model", "clip", "--dropout", "0.5"], "--model clip needs --checkpoint"),
        (
            ["--model", "clip", "--checkpoint", "{clip}", "--context", "3", "--context-words", "a photo"],
            "--context-words decide how many context vectors there are: leave out --context",
        ),
        (
            ["--model", "vit", "--checkpoint", "{vit}", "--template", "see a {}"],
            "--template is for --model clip: --model vit has no text",
        ),
        (
            ["--model", "vit", "--checkpoint", "{vit}", "--dropout", "0.5"],
            "--model vit with --checkpoint has no dropout, got --dropout 0.5: it is for resnet18, resnet50, "
            "efficientnet_lite0 and efficientnet_lite2",
        ),
        (
            ["--model", "clip", "--checkpoint", "{clip}", "--frozen-norm"],
            "--model clip with --checkpoint has no frozen norm, got --frozen-norm: it is for resnet18, resnet50, "
            "efficientnet_lite0 and efficientnet_lite2",
        ),
        (
            ["--model", "resnet18", "--checkpoint", "{vit}", "--norm", "batch"],
            "no model has --norm with --checkpoint, got --norm batch",
        ),
        (["--peft", "lora"], "--peft is for pretrained models: give a --checkpoint"),
        (["--open-class"], "--open-class is for pretrained models"),
        (
            ["--checkpoint", "{vit}"],
            "--checkpoint is for resnet18, resnet50, "
            "efficientnet_lite0, efficientnet_lite2, clip and vit: --model is mlp",
        ),
        (
            ["--model", "vit", "--checkpoint", "{vit}", "--peft", "coop"],
            "--peft coop learns prompts and vit has no text",
        ),
        (["--model", "resnet18", "--checkpoint", "{vit}", "--peft", "lora"], "--peft lora needs a transformer"),
        (["--model", "vit", "--checkpoint", "{vit}", "--open-class"], "--open-class needs a text"),
        (["--model", "clip", "--checkpoint", "{clip}", "--base-classes", "dog"], "--base-classes is for --open-class"),
        (
            ["--model", "vit", "--checkpoint", "{vit}", "--cache-features"],
            "--cache-features needs a frozen image tower",
        ),
        (
            ["--model", "clip", "--checkpoint", "{clip}", "--cache-features", "--augment"],
            "--cache-features and --augment exclude each other",
        ),
        (["--train-from", "head"], "--train-from is for pretrained models: give a --checkpoint"),
        (["--cache", "somewhere"], "--cache is for pretrained models: give a --checkpoint"),
        (
            ["--model", "vit", "--checkpoint", "{vit}", "--train-from", "layers.2"],
            "unknown --train-from layers.2: the stages are layers.0, layers.1, head, classifier",
        ),
        pytest.param(
            ["--model", "clip", "--checkpoint", "{clip}", "--peft", "full", "--train-from", "Head"],
            "unknown --train-from Head: the stages are layers.0, layers.1, head, classifier",
            marks=pytest.mark.slow,
        ),
        (
            ["--model", "vit", "--checkpoint", "{vit}", "--train-from", "head", "--augment"],
            "--augment with --train-from needs augmented views of the images that are computed beforehand: write",
        ),
        (
            ["--model", "vit", "--checkpoint", "{vit}", "--train-from", "head", "--views", "2"],
            "--views are augmented views of the images: write --augment too",
        ),
        (["--model", "vit", "--checkpoint", "{vit}", "--views", "2"], "--views is for --train-from STAGE"),
        (["--model", "vit", "--checkpoint", "{vit}", "--cache", "x"], "--cache is for --train-from STAGE"),
        (
            ["--model", "vit", "--checkpoint", "{vit}", "--cache-dtype", "float16"],
            "--cache-dtype is for --train-from STAGE",
        ),
        (
            ["--model", "vit", "--checkpoint", "{vit}", "--peft", "probe", "--cache-features", "--train-from", "head"],
            "--cache-features and --train-from exclude each other",
        ),
        pytest.param(
            ["--model", "clip", "--checkpoint", "{clip}", "--peft", "full", "--train-from", "classifier"],
            "--train-from classifier leaves nothing to train with --peft full",
            marks=pytest.mark.slow,
        ),
        (["--model", "clip", "--checkpoint", "{clip}", "--context", "0"], "--context must be at least 1, got 0"),
        pytest.param(
            ["--model", "clip", "--checkpoint", "{clip}", "--context", "75"],
            "shorten the name or lower num_context",
            marks=pytest.mark.slow,
        ),
        (["--model", "clip", "--checkpoint", "{vit}"], "is a checkpoint of vit"),
        pytest.param(
            ["--model", "clip", "--checkpoint", "{clip}", "--image-size", "32"],
            "--image-size is 32",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--model", "clip", "--checkpoint", str(DATA / "clip-eos")], "but the model has", marks=pytest.mark.slow
        ),
        pytest.param(
            ["--model", "clip", "--checkpoint", "{clip}", "--data", "digits"],
            "wants images of 16 x 16 x 3",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--model", "clip", "--checkpoint", "{clip}", "--template", "a dog"],
            "must have one {}",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--model", "clip", "--checkpoint", "{clip}", "--open-class", "--base-classes", "cat"],
            "unknown base class cat",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_be_is_refused(checkpoints, pictures, tmp_path, capsys, arguments, message):
    filled = [each.format(**checkpoints) if each in ("{clip}", "{vit}") else each for each in arguments]
    data = [] if "--data" in filled else ["--data", pictures]
    said = refused(capsys, *data, *filled, *QUICK, "--out", tmp_path / "out")
    assert message in said, said
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_a_truncated_checkpoint_is_named(checkpoints, pictures, tmp_path, capsys):
    broken = shutil.copytree(checkpoints["vit"], tmp_path / "broken")
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    said = refused(capsys, "--data", pictures, "--model", "vit", "--checkpoint", broken, "--out", tmp_path / "out")
    assert str(broken / "model.safetensors") in said


@pytest.mark.slow
def test_classes_with_one_name_are_named(checkpoints, pictures, tmp_path, capsys):
    root = shutil.copytree(pictures, tmp_path / "pictures")
    for domain in root.iterdir():
        shutil.copytree(domain / "alarm_clock", domain / "Alarm clock")
    said = refused(
        capsys, "--data", root, "--model", "clip", "--checkpoint", checkpoints["clip"], "--out", tmp_path / "o"
    )
    assert "'alarm_clock'" in said
    assert "same name" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "peft", "more"),
    [
        ("clip", "coop", ["--open-class", "--context-words", "a photo of a"]),
        ("vit", "lora", ["--rank", "2", "--optimizer", "sgd"]),
    ],
)
def test_from_a_checkpoint_to_a_table(checkpoints, pictures, tmp_path, capsys, model, peft, more):
    out = tmp_path / "out"
    command = [
        "compare",
        "--data",
        pictures,
        "--model",
        model,
        "--checkpoint",
        checkpoints[model],
        "--peft",
        peft,
        *more,
    ]
    command += [*QUICK, "--method", "erm,disam", "--target", "art", "--out", out]
    assert cli.main([*map(str, command)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((out / "results.json").read_text())["header"]["methods"]
    if model == "clip":
        assert list(rows) == [ZERO_SHOT, "ERM", "DISAM"]
        assert "Base and new classes" in printed
        assert "harmonic" in (out / "runs.csv").read_text().splitlines()[0]
        assert (out / "open.csv").exists()
    else:
        assert list(rows) == ["ERM", "DISAM"]
    assert cli.main(["report", "--out", str(out)]) == 0


def rows_of(capsys, folder, *arguments):
    """The table of all runs of a command, and what it said on standard error."""
    fixed = ["--method", "disam", "--optimizer", "sgd", "--target", "art", "--out", folder]
    command = ["compare", *arguments, *QUICK, *fixed]
    assert cli.main([*map(str, command)]) == 0
    return (folder / "runs.csv").read_text().splitlines(), capsys.readouterr().err


@pytest.mark.slow
def test_a_head_behind_a_cut_is_a_head_on_cached_features(checkpoints, pictures, tmp_path, capsys):
    start = ["--data", pictures, "--model", "vit", "--checkpoint", checkpoints["vit"], "--peft", "probe"]
    want, _ = rows_of(capsys, tmp_path / "features", *start)
    cut = [*start, "--train-from", "classifier", "--cache", tmp_path / "cache"]
    found, said = rows_of(capsys, tmp_path / "cut", *cut)
    assert found == want
    assert len(want) == 3
    assert ": 36 x 8 float32 take 1.1 KiB, are computed once and kept in" in said
    # Another sweep has other rates, and the same activations.
    _, said = rows_of(capsys, tmp_path / "again", *cut, "--learning-rate", "0.01")
    assert "are there already in" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("vit", ["--train-from", "layers.1", "--augment", "--views", "2"]),
        ("clip", ["--train-from", "layers.1", "--peft", "norm-bias", "--stream", "--cache-dtype", "float16"]),
        ("clip", ["--train-from", "classifier", "--peft", "coop", "--augment", "--views", "2"]),
    ],
)
def test_from_a_cut_to_a_table(checkpoints, pictures, tmp_path, capsys, model, arguments):
    start = ["--data", pictures, "--model", model, "--checkpoint", checkpoints[model], "--cache", tmp_path / "cache"]
    _, said = rows_of(capsys, tmp_path / "out", *start, *arguments)
    assert "are computed once and kept in" in said
    views = 2 if "--views" in arguments else 0
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1 + views


@pytest.mark.slow
@pytest.mark.skipif(SHARED is None, reason="DISAM_JAX_SHARED is not set: no PACS96 here")
@pytest.mark.parametrize(("model", "peft"), [("clip", "coop"), pytest.param("vit", "probe", marks=pytest.mark.product)])
def test_pacs_at_96_pixels(tmp_path, model, peft):
    write = {"clip": write_tiny_clip, "vit": write_tiny_vit}[model]
    checkpoint = write(tmp_path / model, image_size=96, width=8)
    command = [
        "compare",
        "--data",
        "pacs",
        "--data-dir",
        f"{SHARED}/data/PACS96",
        "--model",
        model,
        "--checkpoint",
        checkpoint,
        "--peft",
        peft,
    ]
    command += [
        "--seeds",
        "2",
        "--steps",
        "2",
        "--evaluations",
        "1",
        "--target",
        "art_painting",
        "--out",
        tmp_path / "out",
    ]
    # Optax's Adam itself promotes, which strict mode forbids.
    assert cli.main([*map(str, command), "--method", "disam", "--optimizer", "sgd"]) == 0
    header = json.loads((tmp_path / "out" / "results.json").read_text())["header"]
    assert header["setting"]["tuning"]["cached"] is True
    assert "weights" not in header["data"]
    assert header["data"]["classes"][0] == "dog"


def test_every_way_has_defaults():
    assert FINETUNING.keys() == TRAINABLE.keys()
    for way in FINETUNING.values():
        assert dataclasses.replace(PRETRAINED, **way.training).steps == 500
