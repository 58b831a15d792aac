"""Makes the checkpoints of CLIP and ViT in data/ and what transformers computes with them.

Run with torch and transformers: `python tests/support/make_transformer_fixtures.py`. Those in the repository were
made with torch 2.13.0, transformers 5.23.0 and safetensors 0.8.0 on Python 3.11; each expected.npz says its own.

Every weight is random and large enough to matter, normalisations and biases too: a wrong layout, a forgotten bias or an
approximate activation changes the results by far more than the tests allow.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import safetensors
import torch
import transformers
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTForImageClassification, ViTModel

DATA = Path(__file__).parents[1] / "dg" / "pretrained" / "data"
VOCABULARY, CONTEXT = 100, 16
START, END = 98, 99
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": START,
    "pad_token_id": 1,
}
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
VIT = {**VISION, "hidden_size": 16, "num_attention_heads": 2}


def randomise(model, seed):
    """Weights of a size that keeps activations near 1; scales around 1 and biases around 0, none of them trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name == "logit_scale":
                weight.fill_(1.3)
            elif "norm" in name or "layrnorm" in name:
                weight.copy_(0.3 * noise + (1.0 if name.endswith("weight") else 0.0))
            elif "embedding" in name and "patch" not in name:
                # As small as in trained models: then the eps of the first normalisation matters.
                weight.copy_(0.02 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.3 * noise)
            else:
                weight.copy_(1.5 * noise / weight[0].numel() ** 0.5)
    return model.eval()


def texts(seed, end):
    """Texts of several lengths: start token, words, end token and more of it; the longest fills the context."""
    words = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(3, START), [end]))
    ids = np.full((4, CONTEXT), end, np.int64)
    for row, length in zip(ids, (1, 3, 7, CONTEXT - 2), strict=True):
        row[: length + 1] = [START, *words[:length]]
    return ids


def images(seed):
    """Of two bytes a number, which both sides widen."""
    return np.random.default_rng(seed).normal(size=(2, 32, 32, 3)).astype(np.float16)


def store(name, model, inputs, outputs):
    folder = DATA / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    arrays = {key: value.detach().numpy() for key, value in outputs.items()}
    made_with = {"torch": torch.__version__, "transformers": transformers.__version__}
    made_with["safetensors"] = safetensors.__version__
    np.savez_compressed(folder / "expected.npz", made_with=json.dumps(made_with), **inputs, **arrays)


def clip(name, seed, *, eos_token_id, end, activation):
    config = CLIPConfig(
        text_config={**TEXT, "eos_token_id": eos_token_id, "hidden_act": activation},
        vision_config={**VISION, "hidden_act": activation},
        projection_dim=12,
    )
    model = randomise(CLIPModel(config), seed)
    pixels, ids = images(seed), texts(seed, end)
    found = model(pixel_values=torch.tensor(pixels).float().permute(0, 3, 1, 2), input_ids=torch.tensor(ids))
    outputs = {
        "image_embeds": found.image_embeds,
        "text_embeds": found.text_embeds,
        "logits_per_image": found.logits_per_image,
        # Before they are brought to length 1.
        "image_features": found.vision_model_output.pooler_output,
        "text_features": found.text_model_output.pooler_output,
    }
    store(name, model, {"pixels": pixels, "ids": ids.astype(np.int32)}, outputs)


def vit(name, seed, maker, **options):
    model = randomise(maker(ViTConfig(**VIT, **options)), seed)
    pixels = images(seed)
    found = model(pixel_values=torch.tensor(pixels).float().permute(0, 3, 1, 2), output_hidden_states=True)
    if maker is ViTModel:
        outputs = {"last_hidden_state": found.last_hidden_state}
    else:
        outputs = {"last_hidden_state": model.vit.layernorm(found.hidden_states[-1]), "logits": found.logits}
    store(name, model, {"pixels": pixels}, outputs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    # OpenAI's: eos_token_id 2 is no end token, the end is where the largest id first is.
    clip("clip-openai", 1, eos_token_id=2, end=END, activation="quick_gelu")
    # Others': the end is where the end token first is; larger ids stand before it.
    clip("clip-eos", 2, eos_token_id=50, end=50, activation="gelu")
    vit("vit-classifier", 3, ViTForImageClassification, num_labels=7)
    vit("vit-backbone", 4, ViTModel, qkv_bias=False)
