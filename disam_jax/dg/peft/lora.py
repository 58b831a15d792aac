"""LoRA: low-rank updates of linear layers."""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# The projections of a transformer block, see models/transformer.py.
PROJECTIONS = r"attention\.(query|key|value|out)|mlp\.(fc1|fc2)"


class LoRALinear(nnx.Module):
    """base(x) + (alpha / r) x A B.

    A starts uniform with variance 2 / in_features (He), B at zero, so that the layer starts as `base`, bit for bit.
    Both are float32; the product has the dtype of `base`.

    Args:
        base: the layer, with its weights.
        rank: r.
        alpha: scale of the update, times r.
        rngs: random streams, for A.

    References:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
    """

    def __init__(self, base: nnx.Linear, rank: int, alpha: float, rngs: nnx.Rngs):
        self.in_features, self.out_features = base.in_features, base.out_features
        self.scale = alpha / rank
        self.base = base
        start = nnx.initializers.he_uniform()
        self.lora_a = nnx.LoRAParam(start(rngs.params(), (base.in_features, rank), jnp.float32))
        self.lora_b = nnx.LoRAParam(jnp.zeros((rank, base.out_features), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """From [..., in_features] to [..., out_features]."""
        out = self.base(x)
        low, up = self.lora_a[...].astype(out.dtype), self.lora_b[...].astype(out.dtype)
        return out + (x.astype(out.dtype) @ low @ up) * self.scale

    def merged(self) -> nnx.Linear:
        """`base` with W + (alpha / r) A B for its kernel; `base` itself is changed."""
        kernel = self.base.kernel[...]
        update = (self.lora_a[...] @ self.lora_b[...]) * self.scale
        self.base.kernel[...] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
        return self.base


def add_lora(
    module: nnx.Module, rank: int, rngs: nnx.Rngs, alpha: float | None = None, where: str = PROJECTIONS
) -> list[str]:
    r"""Puts a `LoRALinear` in the place of linear layers, in the module itself; load its weights before.

    Args:
        module: any; its outputs stay the same, bit for bit, until the new variables are trained.
        rank: r.
        rngs: random streams.
        alpha: the updates are multiplied by alpha / r; r itself if None.
        where: regular expression that the end of a layer's path matches, such as "attention.value" in
            "image.blocks.0.attention.value".

    Returns:
        The paths of the layers.

    Raises:
        ValueError: if the rank is below 1 or no `nnx.Linear` is at such a path.

    Example:
        >>> from disam_jax.dg.models.vit import ViT, ViTConfig
        >>> vit = ViT(ViTConfig(image_size=8, patch_size=4, width=8, layers=1, heads=2, hidden=8), rngs=nnx.Rngs(0))
        >>> add_lora(vit, 2, nnx.Rngs(1), where=r"attention\.(query|value)")
        ['blocks.0.attention.query', 'blocks.0.attention.value']
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    pattern = re.compile(rf"(?:.*\.)?(?:{where})")
    layers = {path: layer for path, layer in _at(module, nnx.Linear) if pattern.fullmatch(_dotted(path))}
    if not layers:
        raise ValueError(
            f"no nnx.Linear of the {type(module).__name__} has a path that ends in where={where!r}; its linear layers "
            f"are {_some(_at(module, nnx.Linear))}"
        )
    scale = rank if alpha is None else alpha
    _replace(module, layers, lambda layer: LoRALinear(layer, rank, scale, rngs))
    return [_dotted(path) for path in layers]


def merge_lora(module: nnx.Module) -> list[str]:
    """Folds the updates into the kernels and takes the `LoRALinear` layers out again, in the module itself.

    Args:
        module: after `add_lora`; outputs stay the same to rounding.

    Returns:
        The paths of the layers.

    Raises:
        ValueError: if the module has none.

    Example:
        >>> from disam_jax.dg.models.vit import ViT, ViTConfig
        >>> vit = ViT(ViTConfig(image_size=8, patch_size=4, width=8, layers=1, heads=2, hidden=8), rngs=nnx.Rngs(0))
        >>> added = add_lora(vit, 2, nnx.Rngs(1))   # ... train nnx.LoRAParam ...
        >>> merge_lora(vit) == added
        True
    """
    layers = dict(_at(module, LoRALinear))
    if not layers:
        raise ValueError(f"the {type(module).__name__} has no LoRALinear to merge; call add_lora before")
    _replace(module, layers, LoRALinear.merged)
    return [_dotted(path) for path in layers]


def _at(module: nnx.Module, kind: type) -> Iterator[tuple[tuple[Any, ...], Any]]:
    return ((path, node) for path, node in nnx.iter_graph(module) if isinstance(node, kind) and path)


def _replace(module: nnx.Module, layers: dict[tuple[Any, ...], Any], by: Callable[[Any], nnx.Module]) -> None:
    for path, layer in layers.items():
        parent: Any = functools.reduce(_child, path[:-1], module)
        if isinstance(parent, nnx.Module) and isinstance(path[-1], str):
            setattr(parent, path[-1], by(layer))
        else:
            parent[path[-1]] = by(layer)


def _child(node: Any, key: Any) -> Any:
    return getattr(node, key) if isinstance(node, nnx.Module) and isinstance(key, str) else node[key]


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _some(layers: Iterator[tuple[tuple[Any, ...], Any]]) -> str:
    names = [_dotted(path) for path, _ in layers]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more if names else "none"
