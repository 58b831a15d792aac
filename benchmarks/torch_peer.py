"""DISAM's two passes in PyTorch, on the same networks and the same batch, beside ours in one process.

The step is of our own writing, as one would write it there: two backward passes, parameters moved and moved back.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.clock import Runner, in_turn, ratios, spread
from benchmarks.counts import lower, start
from benchmarks.speed import runner
from benchmarks.steps import LAM, RHO, SIDES
from benchmarks.workloads import SIZES, Workload, make_batch

NETWORKS = ("mlp", "conv")


def peers(size: str, repeats: int, least_seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds per step of PyTorch's and JAX's plain and DISAM steps, with the same number of threads.

    Raises:
        ModuleNotFoundError: without torch.
    """
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    # What JAX does by default: TensorFloat32 where a GPU has it.
    torch.set_float32_matmul_precision("high")
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("JAX runs on a GPU and PyTorch does not see it: install a PyTorch built for CUDA.")
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    found: dict[str, Any] = {}
    for name in NETWORKS:
        work = SIZES[size][name]()
        runners = {}
        for side in ("adamw", "disam"):
            say(f"{name}: compile {side}")
            step = SIDES[side].make(work)
            runners[f"jax {side}"] = runner(lower(work, step).compile(), start(work, step), 1)
            model = network(torch, work.network.init(jax.random.key(0))[0]).to(device)
            runners[f"torch {side}"] = Runner(torch_step(torch, model, work, side == "disam"), (), None, wait=wait)
        done = iter(range(1, len(runners) * repeats + 1))
        taken = in_turn(
            runners, repeats, least_seconds, lambda name=name, done=done: say(f"{name}: sample {next(done)}")
        )
        wall = {side: [sample.wall for sample in samples] for side, samples in taken.items()}
        cores = {side: [sample.cores for sample in samples] for side, samples in taken.items()}
        found[name] = {
            "seconds": {side: spread(each)._asdict() for side, each in wall.items()},
            "disam / plain": {
                of: ratios(wall[f"{of} disam"], wall[f"{of} adamw"])._asdict() for of in ("jax", "torch")
            },
            "disam / plain, cores": {
                of: ratios(cores[f"{of} disam"], cores[f"{of} adamw"])._asdict() for of in ("jax", "torch")
            },
            "torch / jax": {
                side: ratios(wall[f"torch {side}"], wall[f"jax {side}"])._asdict() for side in ("adamw", "disam")
            },
            "threads": torch.get_num_threads(),
            "device": device,
            "torch": torch.__version__,
        }
    return found


def torch_step(torch: Any, model: Any, work: Workload, two_passes: bool) -> Callable[[Any, Any], tuple[Any, Any]]:
    """A step for `Runner`, which trains the model where it lies; its result is the loss at w, a tensor there."""
    nn = torch.nn
    batch, device = make_batch(work), next(model.parameters()).device
    x, y = torch.from_numpy(batch["x"]).to(device), torch.from_numpy(batch["y"]).long().to(device)
    if x.ndim == 4:
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-4)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]

    def domain_losses():
        return nn.functional.cross_entropy(model(x), y, reduction="none").view(work.num_domains, -1).mean(1)

    def step(state, constants):
        del constants
        optimizer.zero_grad(set_to_none=True)
        if not two_passes:
            loss = domain_losses().mean()
            loss.backward()
            optimizer.step()
            return state, loss.detach()
        losses = domain_losses()
        values = losses.detach()
        weights = (1 - 2 * LAM * (values - values.mean())) / work.num_domains
        losses.backward(weights)
        with torch.no_grad():
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm([p.grad for p in params])))
            moves = torch._foreach_mul([p.grad for p in params], RHO / (norm + 1e-12))
            torch._foreach_add_(params, moves)
        optimizer.zero_grad(set_to_none=True)
        for module in norms:
            module.momentum = 0.0  # the running statistics are those of the clean pass
        domain_losses().mean().backward()
        for module in norms:
            module.momentum = 0.1
        with torch.no_grad():
            torch._foreach_sub_(params, moves)
        optimizer.step()
        return state, values.mean()

    return step


def network(torch: Any, params: Any) -> Any:
    """The network in PyTorch, from its parameters here: a perceptron or the conv net, with the same weights."""
    nn = torch.nn
    layers, tensor = [], lambda leaf: torch.from_numpy(np.array(leaf))
    with torch.no_grad():
        for number in range(len(params.get("hidden", ()))):
            layers += [linear(torch, params["hidden"][number]), nn.ReLU()]
        for number in range(len(params.get("convs", ()))):
            kernel = tensor(params["convs"][number]["kernel"]).permute(3, 2, 0, 1)
            conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, stride=2, padding=1, bias=False)
            conv.weight.copy_(kernel)
            layers += [conv, nn.BatchNorm2d(kernel.shape[0]), nn.ReLU()]
        if "convs" in params:
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        layers.append(linear(torch, params["fc"]))
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def linear(torch: Any, params: Any) -> Any:
    kernel, bias = (torch.from_numpy(np.array(params[name])) for name in ("kernel", "bias"))
    layer = torch.nn.Linear(*kernel.shape)
    layer.weight.copy_(kernel.T)
    layer.bias.copy_(bias)
    return layer
