"""What a step of fine-tuning CLIP takes, read from the compiled program; nothing is run and no weights are needed.

    python benchmarks/peft_cost.py

Compiles the AdamW step of every way of fine-tuning, plain and with DISAM, for images of 224 pixels and 32 of each
source domain, with shapes in the place of arrays. FLOPs and memory are those that XLA reports for its program on this
machine. Writes peft_cost.json and peft_cost.md.
"""

import argparse
import json
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import disam_jax
from disam_jax.dg.models.clip import CLIP, CLIP_CONFIGS, CLIP_MEAN, CLIP_STD
from disam_jax.dg.peft import TRAINABLE, CoOp, LinearProbe, TextClassifier, add_lora
from disam_jax.dg.report.environment import machine, versions


class DataSet(NamedTuple):
    classes: int
    sources: int


DATA_SETS = {
    "PACS": DataSet(7, 3),
    "VLCS": DataSet(5, 3),
    "OfficeHome": DataSet(65, 3),
    "TerraIncognita": DataSet(10, 3),
    "DomainNet": DataSet(345, 5),
}
WAYS = ("full", "lora", "norm-bias", "probe", "coop", "coop, cached")
NAME_TOKENS, RANK = 3, 8


def class_ids(config, count, words):
    """Texts of start, words, end and padding, as the tokenizer makes them."""
    ids = np.zeros((count, config.context_length), np.int32)
    ids[:, 0], ids[:, 1 : words + 1], ids[:, words + 1] = config.vocab_size - 2, 320, config.eos_token_id
    return ids


def make(way, config, classes):
    """The extended module."""
    clip, rngs = CLIP(config, rngs=nnx.Rngs(0)), nnx.Rngs(1)
    if way == "probe":
        return LinearProbe(clip.image, classes, rngs)
    if way.startswith("coop"):
        # The name, and a full stop.
        return CoOp(clip, class_ids(config, classes, NAME_TOKENS + 1), 16, rngs=rngs, cached=way.endswith("cached"))
    classifier = TextClassifier(clip, class_ids(config, classes, NAME_TOKENS + 5))
    if way == "lora":
        add_lora(classifier, RANK, rngs)
    return classifier


def compiled_step(way, disam, config, data, per_domain):
    """The program of one step, which writes over the old parameters and moments."""
    module = nnx.eval_shape(lambda: make(way, config, data.classes))
    graph, params, rest = nnx.split(module, TRAINABLE[way.split(",")[0]], ...)
    count, cached = data.sources * per_domain, way.endswith("cached")
    shape = (config.embed_dim,) if cached else (config.image_size, config.image_size, 3)
    batch = {
        "x": jax.ShapeDtypeStruct((count, *shape), jnp.float32 if cached else jnp.uint8),
        "y": jax.ShapeDtypeStruct((count,), jnp.int32),
    }
    mean, std = (np.array(each, np.float32)[None, None, None] for each in (CLIP_MEAN, CLIP_STD))
    optimizer = optax.adamw(1e-5)

    def losses(params, rest, batch):
        x = batch["x"] if cached else (batch["x"].astype(jnp.float32) / 255.0 - mean) / std
        logits, _ = nnx.merge(graph, params, rest, copy=True)(x, jax.random.key(0))
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return each.reshape(data.sources, per_domain).mean(1)

    if disam:
        gradient = disam_jax.value_and_grad(losses, rho=0.05, lam=0.1)
    else:
        gradient = jax.value_and_grad(lambda *args: losses(*args).mean())

    def step(params, moments, rest, batch):
        loss, grads = gradient(params, rest, batch)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, loss

    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    moments = jax.eval_shape(optimizer.init, params)
    trained = sum(leaf.size for leaf in jax.tree.leaves(params))
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, moments, rest, batch).compile(), trained


def measure(way, disam, config, name, per_domain):
    """One row of the table."""
    began = time.process_time()
    compiled, trained = compiled_step(way, disam, config, DATA_SETS[name], per_domain)
    sizes, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return {
        "data": name,
        "way": way,
        "method": "DISAM" if disam else "AdamW",
        "trained": int(trained),
        "flops": float((cost[0] if isinstance(cost, list) else cost)["flops"]),
        "temp_bytes": int(sizes.temp_size_in_bytes),
        "argument_bytes": int(sizes.argument_size_in_bytes),
        "compile_seconds": time.process_time() - began,
    }


def table(rows):
    return [
        "| data | classes | images | trained | method | variables trained | TFLOPs per step | temporary memory, GiB "
        "| arguments, GiB |",
        "|---|---:|---:|---|---|---:|---:|---:|---:|",
        *(
            f"| {row['data']} | {DATA_SETS[row['data']].classes} | {row['images']} | {row['way']} | {row['method']} "
            f"| {row['trained']:,} | {row['flops'] / 1e12:.2f} | {row['temp_bytes'] / 2**30:.2f} "
            f"| {row['argument_bytes'] / 2**30:.2f} |"
            for row in rows
        ),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=CLIP_CONFIGS, default="ViT-B/16")
    parser.add_argument("--per-domain", type=int, default=32, help="images of each source domain in a step")
    parser.add_argument("--data", nargs="+", choices=DATA_SETS, default=list(DATA_SETS))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    options = parser.parse_args()

    # Everything for PACS; the number of classes matters to CoOp alone.
    jobs = [("PACS", way, disam) for disam in (True, False) for way in WAYS]
    jobs += [(name, way, True) for name in options.data if name != "PACS" for way in ("coop", "coop, cached")]
    rows = []
    options.out.mkdir(parents=True, exist_ok=True)
    for name, way, disam in jobs:
        row = measure(way, disam, CLIP_CONFIGS[options.model], name, options.per_domain)
        rows.append(row | {"images": DATA_SETS[name].sources * options.per_domain})
        print(table(rows)[-1], f"{row['compile_seconds']:.0f} s", flush=True)
        write(rows, options)


def write(rows, options):
    found = {"model": options.model, "rows": rows, "machine": machine(), "versions": versions()}
    lines = [
        f"# A step of fine-tuning CLIP {options.model}",
        "",
        "    python benchmarks/peft_cost.py",
        "",
        f"Float32, {options.per_domain} images of each source domain, class names of {NAME_TOKENS} tokens, LoRA of "
        f"rank {RANK} on all projections, CoOp with 16 shared context vectors. One step of AdamW: compiled, not run; "
        "what XLA reports for its program on this machine's CPU. A program for an accelerator is fused and laid out "
        "differently: take the FLOPs as they are and the memory as an estimate.",
        "",
        *table(rows),
        "",
        f"{found['machine']['cpu']}, {found['machine']['device']}; "
        + ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        + ".",
        "",
    ]
    (options.out / "peft_cost.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "peft_cost.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
