"""CLIP against transformers, in both conventions for the end of a text, and what its configuration may say."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import slow
from tiny_networks import CLIP_CONFIG
from transformer_support import DATA, TOLERANCE, expected, load, num_parameters

from disam_jax.dg.errors import InputError
from disam_jax.dg.models.clip import CLIP, CLIP_CONFIGS, TextTower, unit
from disam_jax.dg.models.transformer import LayerNorm, attend, gelu, patches, quick_gelu
from disam_jax.dg.pretrained import from_pretrained
from disam_jax.dg.pretrained.clip_keys import clip_config, clip_recipe
from disam_jax.dg.pretrained.files import read_checkpoint

pytestmark = pytest.mark.dealt

NAMES = ("clip-openai", "clip-eos")
SMALL = replace(CLIP_CONFIG, image_size=16, patch_size=8, vocab_size=50, embed_dim=4, eos_token_id=49)


class Pair(NamedTuple):
    """A checkpoint by the public way, a jitted (pixels, ids) -> outputs, and what transformers makes of it."""

    clip: CLIP
    run: Callable
    known: dict


@pytest.fixture(scope="module", params=["clip-openai", *slow("clip-eos")])
def pair(request):
    clip = from_pretrained(DATA / request.param)
    graph, state = nnx.split(clip)

    @jax.jit
    def run(pixels, ids):
        clip = nnx.merge(graph, state)
        image, text = clip.image(pixels), clip.text(ids)
        return {
            "image_features": image,
            "text_features": text,
            "image_embeds": unit(image),
            "text_embeds": unit(text),
            "logits_per_image": clip(pixels, ids),
        }

    return Pair(clip, run, expected(request.param))


def test_outputs_are_those_of_transformers(pair):
    for key, value in pair.run(pair.known["pixels"], pair.known["ids"]).items():
        np.testing.assert_allclose(value, pair.known[key], rtol=0, atol=TOLERANCE, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change", "output"),
    [
        ("clip-openai", {"eps": 1e-6}, "image_features"),
        ("clip-openai", {"eps": 1e-6}, "text_features"),
        ("clip-openai", {"activation": "gelu"}, "image_features"),
        ("clip-openai", {"activation": "gelu"}, "text_features"),
        ("clip-eos", {"activation": "quick_gelu"}, "text_features"),
        ("clip-eos", {"eos_token_id": 2}, "text_features"),
        ("clip-openai", {"text_heads": 4}, "text_features"),
        ("clip-openai", {"vision_heads": 4}, "image_features"),
    ],
)
def test_the_checkpoints_show_a_wrong_detail(name, change, output):
    clip, known = load(name, clip_recipe, change=change), expected(name)
    tower, inputs = (clip.image, "pixels") if output == "image_features" else (clip.text, "ids")
    assert np.abs(tower(jnp.asarray(known[inputs])) - known[output]).max() > 100 * TOLERANCE


def test_what_follows_the_end_has_no_effect(pair):
    ids = pair.known["ids"]
    ends = np.asarray(pair.clip.text.ends(jnp.asarray(ids)))
    np.testing.assert_array_equal(ends, [2, 4, 8, 15])
    others = np.where(np.arange(16)[None, :] > ends[:, None], 5, ids)
    found, same = (pair.run(pair.known["pixels"], each)["text_features"] for each in (others, ids))
    np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize(
    ("eos_token_id", "ids", "end"),
    [
        (2, [48, 7, 49, 0, 0], 2),
        (2, [48, 7, 49, 49, 49], 2),
        (2, [48, 2, 7, 49, 0], 3),
        (40, [48, 7, 40, 49, 0], 2),
        (40, [48, 7, 8, 40, 40], 3),
        (49, [48, 49, 0, 0, 0], 1),
    ],
)
def test_where_a_text_ends(eos_token_id, ids, end):
    text = nnx.eval_shape(lambda: TextTower(replace(SMALL, eos_token_id=eos_token_id), rngs=nnx.Rngs(0)))
    assert text.ends(jnp.array([ids])).tolist() == [end]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name):
    clip, known = from_pretrained(DATA / name, dtype=jnp.bfloat16), expected(name)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(clip, nnx.Param))} == {jnp.dtype(jnp.bfloat16)}
    for features, key in (
        (clip.image(known["pixels"]), "image_embeds"),
        (clip.text(jnp.asarray(known["ids"])), "text_embeds"),
    ):
        assert features.dtype == jnp.bfloat16
        # Eight bits a number; an angle of 1.8 degrees.
        assert (np.asarray(unit(features)) * known[key]).sum(-1).min() > 0.9995
    assert clip(known["pixels"], jnp.asarray(known["ids"])).dtype == jnp.float32


@pytest.mark.slow
def test_buffers_of_older_files_are_left_out():
    tensors = dict(read_checkpoint(DATA / "clip-openai").tensors)
    buffers = {f"{tower}_model.embeddings.position_ids": np.arange(16)[None, :] for tower in ("text", "vision")}
    clip = load("clip-openai", clip_recipe, tensors={**tensors, **buffers})
    np.testing.assert_array_equal(clip.text.positions, tensors["text_model.embeddings.position_embedding.weight"])


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        pytest.param(
            "visual_projection.weight",
            (12, 25),
            r"visual_projection.weight float32\[12, 25\] makes \[25, 12\] where",
            marks=pytest.mark.slow,
        ),
        # As many numbers as 3 x 8 x 8, in another form.
        pytest.param(
            "vision_model.embeddings.patch_embedding.weight",
            (24, 12, 4, 4),
            r"cannot be brought into image.patch.kernel",
            marks=pytest.mark.slow,
        ),
        ("text_model.embeddings.token_embedding.weight", (90, 16), r"where text.tokens.embedding is \[100, 16\]"),
    ],
)
def test_misshapen_tensors_are_named(key, shape, message):
    tensors = {**read_checkpoint(DATA / "clip-openai").tensors, key: np.zeros(shape, np.float32)}
    with pytest.raises(InputError, match=rf"clip-openai does not fit CLIP: misshapen: .*{message}"):
        load("clip-openai", clip_recipe, tensors=tensors)


def folder_with(tmp_path, weights, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((DATA / weights / "model.safetensors").read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("weights", "model_type", "message"),
    [
        ("vit-classifier", "clip", r"does not fit CLIP: no tensor for: .* unexpected keys: classifier.bias"),
        ("clip-openai", "vit", r"does not fit ViT: no tensor for: .* unexpected keys: logit_scale"),
    ],
)
def test_weights_of_another_architecture(tmp_path, weights, model_type, message):
    config = {"model_type": model_type, "num_hidden_layers": 1}
    config |= {part: {"num_hidden_layers": 1} for part in ("text_config", "vision_config")}
    with pytest.raises(InputError, match=message):
        from_pretrained(folder_with(tmp_path, weights, config))


def test_there_is_no_head_to_make():
    with pytest.raises(InputError, match="num_classes is 7, but CLIP classifies by texts"):
        from_pretrained(DATA / "clip-openai", num_classes=7, rngs=nnx.Rngs(0))


B32 = CLIP_CONFIGS["ViT-B/32"]


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ({}, B32),
        ({"text_config": None, "vision_config": {}}, B32),
        (
            {"text_config": {"eos_token_id": 2}, "vision_config": {"patch_size": 16}},
            replace(CLIP_CONFIGS["ViT-B/16"], eos_token_id=2),
        ),
        # As OpenAI's largest on Hugging Face: the older entries decide, the newer may lack them.
        (
            {
                "projection_dim": 768,
                "text_config": {"hidden_size": 512, "projection_dim": 512},
                "text_config_dict": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
                "vision_config": {"patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096},
                "vision_config_dict": {"num_attention_heads": 16, "num_hidden_layers": 24},
            },
            CLIP_CONFIGS["ViT-L/14"],
        ),
    ],
)
def test_sizes_from_a_configuration(config, sizes):
    assert clip_config(config, "weights") == sizes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"text_config": {"hidden_size": "wide"}},
            "weights: config.json: text_config: hidden_size is 'wide', must be a whole",
        ),
        ({"text_config": {"num_hidden_layers": 0}}, "num_hidden_layers is 0, must be a whole number of at least 1"),
        ({"text_config": {"num_attention_heads": True}}, "num_attention_heads is True"),
        ({"text_config": 7}, "text_config is 7, must be an object"),
        ({"text_config": {"eos_token_id": [1, 2]}}, r"eos_token_id is \[1, 2\]"),
        ({"vision_config": {"num_channels": 1}}, "num_channels is 1, but only images of 3 channels"),
        ({"vision_config": {"image_size": [224, 192]}}, r"image_size is \[224, 192\], .*only squares"),
        ({"vision_config": {"patch_size": 15}}, "image_size must be a multiple of patch_size, got 224 and 15"),
        ({"vision_config": {"num_attention_heads": 7}}, "width 768 and 7 heads"),
        ({"vision_config": {"hidden_act": "relu"}}, "hidden_act is 'relu', must be one of gelu, quick_gelu"),
        ({"vision_config": {"hidden_act": "gelu"}}, "hidden_act is 'quick_gelu' in text_config and 'gelu' in vision"),
        ({"text_config": {"layer_norm_eps": 0}}, "layer_norm_eps is 0, must be a number above 0"),
        ({"projection_dim": None}, "weights: config.json: projection_dim is None"),
    ],
)
def test_configurations_that_cannot_be(config, message):
    with pytest.raises(InputError, match=message):
        clip_config(config, "weights")


# The published models' numbers of parameters.
COUNTS = {"ViT-B/16": 149_620_737, "ViT-B/32": 151_277_313, "ViT-L/14": 427_616_513}


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name):
    assert num_parameters(lambda rngs: CLIP(CLIP_CONFIGS[name], rngs=rngs)) == COUNTS[name]


@pytest.mark.slow
def test_initial_weights():
    # Few shapes, to compile little.
    config = replace(SMALL, text_width=64, text_hidden=64, embed_dim=64)
    for path, leaf in nnx.to_flat_state(nnx.state(TextTower(config, rngs=nnx.Rngs(0)), nnx.Param)):
        values = np.asarray(leaf[...])
        if path[-1] in ("bias", "scale"):
            assert (values == (path[-1] == "scale")).all(), path
        else:
            # Cut at two deviations, which leaves 0.88 of them; 4 standard errors of the smallest, 12 x 64.
            assert np.abs(values).max() <= 0.04, path
            assert values.std() == pytest.approx(0.88 * 0.02, rel=0.1), path
            assert abs(values.mean()) < 4 * 0.02 / math.sqrt(values.size), path


@pytest.mark.slow
def test_initial_temperature():
    state = jax.jit(lambda: nnx.state(CLIP(SMALL, rngs=nnx.Rngs(0)), nnx.Param))()
    assert np.exp(-state["logit_scale"][...]) == pytest.approx(0.07)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda clip: clip.image(jnp.ones((1, 24, 24, 3))), r"images must be \[N, 16, 16, .* got \[1, 24, 24, 3\]"),
        (lambda clip: clip.text(jnp.ones((1, 13), int)), "context of 12 tokens, got texts of 13"),
    ],
)
def test_inputs_of_other_sizes(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: call(CLIP(SMALL, rngs=nnx.Rngs(0))))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_the_formula(causal):
    query, key, value = np.random.default_rng(0).normal(size=(3, 2, 5, 2, 4)).astype(np.float32)
    found = attend(jnp.asarray(query), jnp.asarray(key), jnp.asarray(value), causal)
    for n in range(2):
        for place in range(5):
            for head in range(2):
                seen = place + 1 if causal else 5
                weights = np.exp(key[n, :seen, head] @ query[n, place, head] / 2.0)
                wanted = weights @ value[n, :seen, head] / weights.sum()
                np.testing.assert_allclose(found[n, place, head], wanted, rtol=0, atol=TOLERANCE)


def test_layer_normalisation_far_from_zero():
    x = np.random.default_rng(0).normal(5000, 1, (4, 64)).astype(np.float32)
    wide = x.astype(np.float64)
    wanted = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    found = LayerNorm(64, epsilon=1e-5, rngs=nnx.Rngs(0))(jnp.asarray(x))
    # The mean itself is known to a 32-bit number near 5000.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)


def test_activations():
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    exact = [each * 0.5 * (1 + math.erf(each / math.sqrt(2))) for each in x.tolist()]
    np.testing.assert_allclose(gelu(jnp.asarray(x)), exact, rtol=0, atol=1e-6)
    np.testing.assert_allclose(quick_gelu(jnp.asarray(x)), x / (1 + np.exp(-1.702 * x)), rtol=0, atol=1e-6)


def test_patches_are_squares_row_by_row():
    pixels = np.arange(2 * 6 * 6 * 3, dtype=np.float32).reshape(2, 6, 6, 3)
    found = patches(jnp.asarray(pixels), 2)
    for number, (row, column) in enumerate((row, column) for row in range(3) for column in range(3)):
        square = pixels[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(found[:, number], square.reshape(2, 12))


@pytest.mark.slow
def test_zero_has_no_direction():
    assert unit(jnp.zeros((1, 4))).tolist() == [[0.0] * 4]
    gradient = jax.grad(lambda x: unit(x).sum())(jnp.zeros(4))
    assert np.isfinite(gradient).all()
