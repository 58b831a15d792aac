"""Low-rank updates, prompts, probes and cached features against what they should compute."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import disam_jax.nnx
from disam_jax.dg.models.resnet import BasicBlock, ResNet
from disam_jax.dg.peft import (
    TRAINABLE,
    CoOp,
    LinearProbe,
    LoRALinear,
    PromptParam,
    TextClassifier,
    add_lora,
    cache_features,
    merge_lora,
)

KEY = jax.random.key(0)


def linear(module, path):
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part)
    return module


# LoRA ----------------------------------------------------------------------------------------------------------------


def test_a_low_rank_layer_is_its_formula():
    base = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    layer = LoRALinear(base, 2, alpha=6.0, rngs=nnx.Rngs(1))
    rng = np.random.default_rng(0)
    x, a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 5), (5, 2), (2, 3)))
    np.testing.assert_array_equal(np.asarray(layer(x)), np.asarray(base(x)))
    assert np.abs(np.asarray(layer.lora_a[...])).max() > 0.1
    layer.lora_a[...], layer.lora_b[...] = jnp.asarray(a), jnp.asarray(b)
    kernel, bias = np.asarray(base.kernel[...]), np.asarray(base.bias[...])
    wanted = x @ (kernel + 6.0 / 2 * a @ b) + bias[None]
    np.testing.assert_allclose(np.asarray(layer(x)), wanted, rtol=1e-5, atol=1e-5)
    merged = layer.merged()
    assert merged is base
    np.testing.assert_allclose(np.asarray(merged(x)), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_half_precision_layer_stays_half_and_learns_in_float32():
    base = nnx.Linear(4, 4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    layer = LoRALinear(base, 2, alpha=2.0, rngs=nnx.Rngs(1))
    assert layer(jnp.ones((2, 4), jnp.bfloat16)).dtype == jnp.bfloat16
    assert layer.lora_a[...].dtype == layer.lora_b[...].dtype == jnp.float32
    assert layer.merged().kernel[...].dtype == jnp.bfloat16


BLOCK = [f"attention.{name}" for name in ("query", "key", "value", "out")] + ["mlp.fc1", "mlp.fc2"]


@pytest.mark.parametrize(
    ("where", "paths"),
    [
        (None, [f"{tower}.blocks.0.{name}" for tower in ("image", "text") for name in BLOCK]),
        (r"image\..*\.value", ["image.blocks.0.attention.value"]),
        ("projection", ["image.projection", "text.projection"]),
    ],
)
def test_layers_are_chosen_by_their_paths_and_come_back(clip, where, paths):
    before = {path: linear(clip, path) for path in paths}
    chosen = {} if where is None else {"where": where}
    assert sorted(add_lora(clip, 2, nnx.Rngs(0), **chosen)) == sorted(paths)
    assert all(isinstance(linear(clip, path), LoRALinear) for path in paths)
    assert len(nnx.to_flat_state(nnx.state(clip, nnx.LoRAParam))) == 2 * len(paths)
    assert sorted(merge_lora(clip)) == sorted(paths)
    assert all(linear(clip, path) is before[path] for path in paths)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda vit: add_lora(vit, 0, nnx.Rngs(0)), "rank must be at least 1, got 0"),
        (lambda vit: add_lora(vit, 2, nnx.Rngs(0), where="q_proj"), r"where='q_proj'; its linear layers are .*query"),
        (lambda vit: merge_lora(vit), "has no LoRALinear to merge"),
        (lambda vit: (add_lora(vit, 2, nnx.Rngs(0)), add_lora(vit, 2, nnx.Rngs(0))), "no nnx.Linear of the ViT"),
    ],
)
def test_lora_that_cannot_be(vit, call, says):
    with pytest.raises(ValueError, match=says):
        call(vit)


@pytest.mark.slow
def test_a_network_starts_as_it_was_and_merges_to_rounding(vit, batch):
    x = jnp.asarray(batch["x"][0])
    features = nnx.jit(lambda model, x: model.features(x))
    before = np.asarray(features(vit, x))
    add_lora(vit, 2, nnx.Rngs(0), alpha=1.0)
    np.testing.assert_array_equal(np.asarray(features(vit, x)), before)
    lora = nnx.state(vit, nnx.LoRAParam)
    nnx.update(vit, jax.tree.map(lambda leaf: leaf + 0.2, lora))
    moved = np.asarray(features(vit, x))
    assert np.abs(moved - before).max() > 0.01
    merge_lora(vit)
    np.testing.assert_allclose(np.asarray(features(vit, x)), moved, rtol=1e-4, atol=1e-5)


# CoOp ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(clip, monkeypatch):
    """What the text tower is given."""
    calls = []
    encode = type(clip.text).encode

    def record(self, embeddings, ends):
        calls.append((np.asarray(embeddings), np.asarray(ends)))
        return encode(self, embeddings, ends)

    monkeypatch.setattr(type(clip.text), "encode", record)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("class_contexts", [False, True])
def test_contexts_stand_between_start_and_name(clip, class_ids, seen, class_contexts):
    model = CoOp(clip, class_ids, 4, rngs=nnx.Rngs(1), class_contexts=class_contexts)
    found = np.asarray(model.class_features())
    prompts, ends = seen[-1]
    rows, context = np.asarray(clip.text.tokens.embedding[...]), np.asarray(model.context[...])
    # The longest name ends at place 4 of the five that are kept; four vectors move it to 8.
    assert prompts.shape == (3, 9, 8)
    np.testing.assert_array_equal(ends, [6, 7, 8])
    for number, tokens in enumerate(class_ids):
        own = context[number] if class_contexts else context
        np.testing.assert_array_equal(prompts[number], np.concatenate([rows[tokens[:1]], own, rows[tokens[1:5]]]))
    # At the full context length, padded, the numbers are the same: what is behind the end is of no effect.
    padded = np.concatenate([prompts, np.broadcast_to(rows[None, :3], (3, 3, 8))], axis=1)
    np.testing.assert_allclose(found, np.asarray(clip.text.encode(padded, ends)), rtol=1e-4, atol=1e-5)


def test_contexts_of_words_are_the_prompt_with_the_words(clip, class_ids):
    model = CoOp(clip, class_ids, rngs=nnx.Rngs(1), context_words=[4, 3])
    rows = np.asarray(clip.text.tokens.embedding[...])
    np.testing.assert_array_equal(np.asarray(model.context[...]), rows[[4, 3]])
    assert isinstance(model.context, PromptParam)
    own = CoOp(clip, class_ids, rngs=nnx.Rngs(1), context_words=[4, 3], class_contexts=True)
    np.testing.assert_array_equal(np.asarray(own.context[...]), np.stack([rows[[4, 3]]] * 3))


@pytest.mark.slow
def test_contexts_of_words_make_the_zero_shot_classifier(clip, class_ids, batch):
    """Learned vectors that start at "a photo" classify at first as the sentence "a photo [class]" does."""
    sentences = np.array([[28, 4, 3, *row[1:]] for row in class_ids], np.int32)
    x = jnp.asarray(batch["x"][0])
    coop = CoOp(clip, class_ids, rngs=nnx.Rngs(1), context_words=[4, 3])
    logits, features = coop(x, KEY)
    zero, same = TextClassifier(clip, sentences)(x, KEY)
    np.testing.assert_array_equal(np.asarray(features), np.asarray(same))
    np.testing.assert_allclose(np.asarray(logits), np.asarray(zero), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.asarray(zero), np.asarray(clip(x, jnp.asarray(sentences))), rtol=1e-4, atol=1e-4)


def test_a_random_start_has_the_deviation_of_coop(clip, class_ids):
    start = [np.asarray(CoOp(clip, class_ids, 6, rngs=nnx.Rngs(seed)).context[...]) for seed in range(10)]
    assert abs(np.std(start) - 0.02) < 0.002


def test_new_classes_have_the_shared_contexts(clip, class_ids):
    model = CoOp(clip, class_ids, 4, rngs=nnx.Rngs(1))
    other = model.with_classes(np.array([[28, 11, 29], [28, 12, 29]]))
    np.testing.assert_array_equal(np.asarray(other.context[...]), np.asarray(model.context[...]))
    assert other.ids == ((28, 11, 29), (28, 12, 29))
    assert len(model.ids) == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_context": 8}, "the prompt of class 2 has 5 tokens and 8 of context, the model's context is 12"),
        ({"num_context": 8, "class_names": ["a", "b", "big dog"]}, "the prompt of 'big dog' has 5"),
        ({"num_context": 0}, "num_context must be at least 1"),
        ({"num_context": 3, "context_words": [4, 3]}, "context_words has 2 tokens, num_context is 3"),
        ({"class_ids": np.array([[28, 5, 6]])}, "text 0 has no end token, 29"),
    ],
)
def test_prompts_that_cannot_be(clip, class_ids, options, says):
    options = {"class_ids": class_ids, "rngs": nnx.Rngs(0)} | options
    with pytest.raises(ValueError, match=says):
        CoOp(clip, **options)


def test_seven_contexts_fit(clip, class_ids):
    assert CoOp(clip, class_ids, 7, rngs=nnx.Rngs(0)).num_context == 7


def test_contexts_of_a_class_have_no_new_classes(clip, class_ids):
    model = CoOp(clip, class_ids, 4, rngs=nnx.Rngs(1), class_contexts=True)
    with pytest.raises(ValueError, match="no contexts for new classes"):
        model.with_classes(class_ids)


def test_a_model_can_be_extended_inside_of_a_traced_function(clip, class_ids):
    graph, state = nnx.split(clip)

    def start(state, key):
        return nnx.state(CoOp(nnx.merge(graph, state), class_ids, 4, rngs=nnx.Rngs(key)), PromptParam)

    (leaf,) = jax.tree.leaves(jax.eval_shape(start, state, KEY))
    assert leaf.shape == (4, 8)


# Towers --------------------------------------------------------------------------------------------------------------


def test_a_tower_that_is_none(clip):
    with pytest.raises(TypeError, match=r"the tower must be an ImageTower \(clip.image of a CLIP\), .* got CLIP"):
        LinearProbe(clip, 3, nnx.Rngs(0))


@pytest.mark.parametrize("options", [{"block": 0}, {"images": np.zeros((0, 8, 8, 3), np.uint8)}])
def test_no_images_to_cache(vit, options):
    with pytest.raises(ValueError, match="block of at least 1"):
        cache_features(vit, **({"images": np.zeros((2, 8, 8, 3), np.uint8)} | options))


@pytest.mark.slow
def test_cached_features_are_those_of_training(clip, batch):
    """In blocks that don't divide the images, in one block, and one by one."""
    images = batch["x"].reshape(-1, 8, 8, 3)
    wanted = np.asarray(nnx.jit(lambda tower, x: tower(x))(clip.image, jnp.asarray(images)))
    np.testing.assert_array_equal(cache_features(clip.image, images, block=12), wanted)
    np.testing.assert_array_equal(cache_features(clip.image, images, block=100), wanted)
    for block in (1, 5):
        np.testing.assert_allclose(cache_features(clip.image, images, block), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_running_statistics_are_used_and_left_alone():
    tower = ResNet((1,), BasicBlock, 3, width=4, small_input=True, rngs=nnx.Rngs(0))
    tower.train()
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(tower))]
    alone = cache_features(tower, images[:1])
    np.testing.assert_allclose(cache_features(tower, images, block=2)[:1], alone, rtol=1e-5, atol=1e-6)
    assert alone.shape == (1, 4)
    assert tower.bn1.use_running_average is False
    for leaf, old in zip(jax.tree.leaves(nnx.state(tower)), before, strict=True):
        np.testing.assert_array_equal(np.asarray(leaf), old)


@pytest.mark.slow
def test_training_on_cached_features_is_training_on_images(clip, class_ids, batch):
    """The contexts of four steps of DISAM, both ways; the features of one block are bit for bit those of training."""
    images, labels = batch["x"].reshape(-1, 8, 8, 3), batch["y"]

    def trajectory(cached):
        model = CoOp(clip, class_ids, 4, rngs=nnx.Rngs(3), cached=cached)
        inputs = cache_features(clip.image, images, block=12) if cached else images
        optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=TRAINABLE["coop"])

        def losses(model, inputs):
            logits, _ = model(inputs, KEY)
            each = optax.softmax_cross_entropy_with_integer_labels(logits, labels.reshape(-1))
            return each.reshape(labels.shape).mean(1)

        @nnx.jit
        def step(model, optimizer, inputs):
            _, grads = disam_jax.nnx.value_and_grad(losses, 0.05, 0.1, wrt=TRAINABLE["coop"])(model, inputs)
            optimizer.update(model, grads)

        found = []
        for _ in range(4):
            step(model, optimizer, jnp.asarray(inputs))
            found.append(np.asarray(model.context[...]))
        return np.array(found)

    one, other = trajectory(False), trajectory(True)
    assert np.abs(one[-1] - one[0]).max() > 1e-2
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
