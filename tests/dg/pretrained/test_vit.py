"""ViT against transformers, with and without a head, in all spellings of its keys; and from scratch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import slow
from transformer_support import DATA, TOLERANCE, expected, load, num_parameters

from disam_jax.dg.errors import InputError
from disam_jax.dg.models.adapter import from_nnx
from disam_jax.dg.models.vit import ViT, ViTConfig
from disam_jax.dg.pretrained import from_pretrained
from disam_jax.dg.pretrained.files import read_checkpoint
from disam_jax.dg.pretrained.vit_keys import vit_config, vit_recipe

pytestmark = pytest.mark.dealt

NAMES = ("vit-classifier", "vit-backbone")
SMALL = ViTConfig(image_size=16, patch_size=8, width=8, layers=1, heads=2, hidden=16, num_classes=3)


@pytest.fixture(scope="module", params=[NAMES[0], *slow(NAMES[1])])
def pair(request):
    """A checkpoint by the public way, and what transformers makes of it."""
    return from_pretrained(DATA / request.param), expected(request.param)


def test_outputs_are_those_of_transformers(pair):
    vit, known = pair
    tokens = vit.norm_out(vit.tokens(known["pixels"]))
    np.testing.assert_allclose(tokens, known["last_hidden_state"], rtol=0, atol=TOLERANCE)
    if "logits" in known:
        logits, features = vit(known["pixels"], jax.random.key(0))
        np.testing.assert_allclose(logits, known["logits"], rtol=0, atol=TOLERANCE)
    else:
        features = vit.features(known["pixels"])
        with pytest.raises(ValueError, match="this ViT has no head"):
            vit(known["pixels"], jax.random.key(0))
    np.testing.assert_allclose(features, known["last_hidden_state"][:, 0], rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"eps": 1e-6}, {"activation": "quick_gelu"}, {"heads": 4}])
def test_the_checkpoints_show_a_wrong_detail(change):
    vit, known = load("vit-classifier", vit_recipe, change=change), expected("vit-classifier")
    assert np.abs(vit.features(known["pixels"]) - known["last_hidden_state"][:, 0]).max() > 10 * TOLERANCE


# What transformers 5 calls the layers inside of its modules.
NEW_NAMES = {
    "encoder.layer.": "layers.",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def renamed(key):
    for old, new in NEW_NAMES.items():
        key = key.replace(old, new)
    return key


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_both_spellings_of_the_blocks(name):
    tensors = read_checkpoint(DATA / name).tensors
    new = {renamed(key): tensors[key] for key in tensors}
    assert len(set(new) - set(tensors)) >= 2 * 9
    states = [nnx.state(load(name, vit_recipe, tensors=each), nnx.Param) for each in (tensors, new)]
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, *slow(jnp.bfloat16)])
@pytest.mark.parametrize("name", NAMES)
def test_a_new_head(name, dtype):
    vit, known = from_pretrained(DATA / name, num_classes=5, rngs=nnx.Rngs(3), dtype=dtype), expected(name)
    other = from_pretrained(DATA / name, num_classes=5, rngs=nnx.Rngs(4), dtype=dtype)
    assert vit.config.num_classes == 5
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(vit, nnx.Param))} == {jnp.dtype(dtype)}
    assert not np.array_equal(vit.head.kernel, other.head.kernel)
    logits, features = vit(known["pixels"], jax.random.key(0))
    assert (logits.shape, logits.dtype) == ((2, 5), dtype)
    wanted = known["last_hidden_state"][:, 0]
    if dtype == jnp.float32:
        np.testing.assert_allclose(features, wanted, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(logits, wanted @ np.asarray(vit.head.kernel), rtol=0, atol=TOLERANCE)
    else:
        assert np.corrcoef(np.asarray(features, np.float32).ravel(), wanted.ravel())[0, 1] > 0.999


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("vit.embeddings.cls_token", (1, 2, 16), "vit.embeddings.cls_token .* cannot be brought into class_token"),
        ("vit.embeddings.position_embeddings", (1, 5, 16), r"makes \[5, 16\] where positions is \[17, 16\]"),
        ("classifier.bias", (6,), r"classifier.bias float32\[6\] makes \[6\] where head.bias is \[7\]"),
    ],
)
def test_misshapen_tensors_are_named(key, shape, message):
    tensors = {**read_checkpoint(DATA / "vit-classifier").tensors, key: np.zeros(shape, np.float32)}
    with pytest.raises(InputError, match=rf"vit-classifier does not fit ViT: misshapen: .*{message}"):
        load("vit-classifier", vit_recipe, tensors=tensors)


@pytest.mark.slow
def test_a_lost_head_is_missed(tmp_path):
    from safetensors.numpy import save_file

    folder = DATA / "vit-classifier"
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = dict(read_checkpoint(folder).tensors)
    lost = {key: tensors.pop(key) for key in ("classifier.weight", "classifier.bias")}
    save_file({**tensors, "classifier.bias": lost["classifier.bias"]}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"does not fit ViT: no tensor for: head.kernel"):
        from_pretrained(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        InputError, match=r"no tensor classifier.weight, but config.json says ViTForImageClassification"
    ):
        from_pretrained(tmp_path)
    assert from_pretrained(tmp_path, num_classes=5, rngs=nnx.Rngs(0)).head.kernel.shape == (16, 5)


def test_preprocessing_comes_with_the_weights(tmp_path):
    folder = DATA / "vit-backbone"
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4, 0.5, 0.6]}))
    config = from_pretrained(tmp_path).config
    assert (config.mean, config.std) == ((0.4, 0.5, 0.6), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("config", "preprocessor", "message"),
    [
        ({"hidden_size": 770}, None, "weights: config.json: the width must be a multiple .* 770 and 12 heads"),
        ({"qkv_bias": 1}, None, "weights: config.json: qkv_bias is 1, must be true or false"),
        ({"hidden_act": "gelu_new"}, None, "hidden_act is 'gelu_new'"),
        ({"patch_size": 0}, None, "patch_size is 0, must be a whole number"),
        ({}, {"image_std": [0.5]}, r"preprocessor_config.json: image_std is \[0.5\], must be 3 numbers"),
    ],
)
def test_configurations_that_cannot_be(config, preprocessor, message):
    with pytest.raises(InputError, match=message):
        vit_config(config, "weights", preprocessor)


@pytest.mark.slow
def test_published_size():
    # google/vit-base-patch16-224, which is transformers' default with a head for ImageNet.
    config = vit_config({}, "weights")
    assert num_parameters(lambda rngs: ViT(config, rngs=rngs)) + 1000 * 769 == 86_567_656


@pytest.mark.slow
def test_many_networks_at_once():
    network = from_nnx(lambda rngs: ViT(SMALL, rngs=rngs))
    pixels, key = jnp.ones((2, 16, 16, 3)), jax.random.key(0)
    logits = lambda params: network.apply(params, {}, pixels, key, True).logits
    params = jax.jit(jax.vmap(lambda key: network.init(key)[0]))(jax.random.split(key, 2))
    together = jax.jit(jax.vmap(logits))(params)
    for number, found in enumerate(together):
        alone = jax.tree.map(lambda each: each[number], params)
        np.testing.assert_allclose(found, jax.jit(logits)(alone), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_it_learns_from_scratch():
    network = from_nnx(lambda rngs: ViT(SMALL, rngs=rngs))
    keys = jax.random.split(jax.random.key(0), 2)
    pixels, labels = jax.random.normal(keys[0], (12, 16, 16, 3)), jnp.arange(12) % 3
    params, state = jax.jit(network.init)(keys[1])
    tx = optax.sgd(0.1, momentum=0.9)

    def loss(params):
        logits = network.apply(params, state, pixels, keys[0], True).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry, _):
        value, gradient = jax.value_and_grad(loss)(carry[0])
        updates, opt_state = tx.update(gradient, carry[1])
        return (optax.apply_updates(carry[0], updates), opt_state), value

    losses = jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), None, length=200)[1])()
    assert losses[0] > 1.0 > 0.1 > losses[-1]
