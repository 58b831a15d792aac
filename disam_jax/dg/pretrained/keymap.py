"""From the keys of a checkpoint to the variables of a module: every tensor and every variable accounted for."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import shown

_SHOWN = 8
_LONGEST = 400


def unchanged(tensor: np.ndarray) -> np.ndarray:
    """The tensor as it is."""
    return tensor


def linear_kernel(tensor: np.ndarray) -> np.ndarray:
    """The weight of a linear layer: torch's [out, in] to Flax's [in, out]."""
    return np.transpose(tensor, (1, 0))


def conv_kernel(tensor: np.ndarray) -> np.ndarray:
    """The weight of a convolution: torch's [out, in, H, W] to Flax's [H, W, in, out]."""
    return np.transpose(tensor, (2, 3, 1, 0))


class Rule(NamedTuple):
    r"""What happens to the keys of one form.

    Attributes:
        pattern: matched with `re.fullmatch` against the checkpoint's key.
        path: of the variable, dotted: "layer1.0.conv1.kernel", or with the pattern's groups, `r"layer\1.conv1.kernel"`.
            None: a tensor that is left out on purpose.
        transform: from the checkpoint's tensor to the variable's layout.
    """

    pattern: str
    path: str | None
    transform: Callable[[np.ndarray], np.ndarray] = unchanged


# How often BatchNorm has run, which only an average without momentum needs.
NOT_NEEDED = Rule(r".*\.num_batches_tracked", None)
_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def conv_rule(pattern: str, path: str) -> Rule:
    r"""For a convolution without bias.

    Args:
        pattern: Of its key, without ".weight".
        path: Of its module, dotted.

    Returns:
        Rule.

    Example:
        >>> conv_rule(r"layer(\d)", r"blocks.\1").path
        'blocks.\\1.kernel'
    """
    return Rule(rf"{pattern}\.weight", f"{path}.kernel", conv_kernel)


def norm_rules(pattern: str, path: str) -> list[Rule]:
    """For a BatchNorm, with its running statistics.

    Args:
        pattern: Of its key, without ".weight" and the like.
        path: Of its module, dotted.

    Returns:
        Rules.

    Example:
        >>> [rule.path for rule in norm_rules("bn1", "norm")]
        ['norm.scale', 'norm.bias', 'norm.mean', 'norm.var']
    """
    return [Rule(rf"{pattern}\.{entry}", f"{path}.{variable}") for entry, variable in _NORM.items()]


def head_rules(key: str, path: str | None) -> list[Rule]:
    """For the last layer.

    Args:
        key: Its key.
        path: Of its module, dotted; None leaves it out.

    Returns:
        Rules.

    Example:
        >>> [rule.path for rule in head_rules("classifier.1", "fc")]
        ['fc.kernel', 'fc.bias']
    """
    pattern = re.escape(key)
    if path is None:
        return [Rule(rf"{pattern}\.(weight|bias)", None)]
    return [Rule(rf"{pattern}\.weight", f"{path}.kernel", linear_kernel), Rule(rf"{pattern}\.bias", f"{path}.bias")]


class Recipe(NamedTuple):
    """Rules that turn a checkpoint into a module.

    Attributes:
        make: makes the module, with every variable that the checkpoint fills and no other.
        rules: for the checkpoint's keys, see `fill`.
        add_head: puts a new head on the filled module, as its random streams say; None: there is nothing to add.
    """

    make: Callable[[nnx.Rngs], nnx.Module]
    rules: Sequence[Rule]
    add_head: Callable[[nnx.Module, nnx.Rngs], None] | None = None


def fill(
    module: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    where: str,
    dtype: DTypeLike = jnp.float32,
) -> None:
    r"""Sets every `nnx.Param` and `nnx.BatchStat` of a module from the tensors of a checkpoint.

    The first rule that matches a key decides. Either everything fits and everything is set, or nothing is. The tensors
    are asked for one at a time, so that a mapping that reads them from a file needs no memory for all of them.

    Args:
        module: the module, its variables concrete or abstract (`nnx.eval_shape`).
        tensors: by the checkpoint's keys; floating point of any width.
        rules: from keys to variables.
        where: the checkpoint's name for messages.
        dtype: floating point, of the parameters. Running statistics are held in float32 at least, as Flax does.

    Raises:
        InputError: one that lists all variables without a tensor, keys without a variable, variables with two keys,
            and tensors that have another shape or are no floating point numbers.
        TypeError: if `dtype` is no floating point type.

    Example:
        >>> layer = nnx.eval_shape(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        >>> tensors = {"fc.weight": np.ones((2, 3), np.float16), "fc.bias": np.zeros(2, np.float16)}
        >>> rules = [Rule("fc.weight", "kernel", linear_kernel), Rule(r"fc.(bias)", r"\1")]
        >>> fill(layer, tensors, rules, "model.safetensors")
        >>> layer(jnp.ones((1, 3))).tolist()
        [[3.0, 3.0]]
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be floating point, got {dtype}")
    variables = {_dotted(path): (path, leaf) for path, leaf in _flat_state(module)}
    sources, complaints = _sources(tensors, variables, rules)
    arrays: dict[tuple, jax.Array] = {}
    misfits = []
    for name, (key, transform) in sources.items():
        path, variable = variables[name]
        tensor = tensors[key]
        misfit = _misfit(key, tensor, transform, name, variable.shape)
        if misfit:
            misfits.append(misfit)
        elif not (misfits or complaints):
            widened = isinstance(variable, nnx.BatchStat) and jnp.finfo(dtype).bits < 32
            # A copy: on a CPU jax would otherwise share the memory of the caller's tensor.
            arrays[path] = jnp.array(transform(tensor), dtype=jnp.float32 if widened else dtype)
    complaints += _listed("misshapen", misfits)
    if complaints:
        raise InputError(f"{where} does not fit {type(module).__name__}: {'; '.join(complaints)}")
    nnx.update(module, nnx.from_flat_state(arrays))


def _flat_state(module: nnx.Module):
    return nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat)))


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))


def _sources(tensors: Mapping[str, np.ndarray], variables: Mapping[str, tuple], rules: Sequence[Rule]):
    """Which key and transform each variable comes from, and what cannot be assigned."""
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    sources: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {}
    unexpected, doubled = [], []
    for key in tensors:
        match, rule = next(((found, rule) for form, rule in compiled if (found := form.fullmatch(key))), (None, None))
        if match is None or rule is None:
            unexpected.append(key)
            continue
        if rule.path is None:
            continue
        name = match.expand(rule.path)
        if name not in variables:
            unexpected.append(key)
        elif name in sources:
            doubled.append(f"{sources[name][0]} and {key} for {name}")
        else:
            sources[name] = (key, rule.transform)
    missing = [name for name in variables if name not in sources]
    return sources, [
        *_listed("no tensor for", missing),
        *_listed("unexpected keys", unexpected),
        *_listed("two keys for one variable", doubled),
    ]


def _misfit(
    key: str, tensor: np.ndarray, transform: Callable[[np.ndarray], np.ndarray], name: str, shape: tuple[int, ...]
) -> str | None:
    seen = f"{key} {tensor.dtype}{list(tensor.shape)}"
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        return f"{seen} is not floating point"
    try:
        found = transform(tensor).shape
    except (ValueError, IndexError):
        return f"{seen} cannot be brought into {name} {list(shape)}"
    return None if found == shape else f"{seen} makes {list(found)} where {name} is {list(shape)}"


def _listed(title: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    more = [f"and {len(entries) - _SHOWN} more"] if len(entries) > _SHOWN else []
    return [f"{title}: {', '.join([*(shown(entry)[:_LONGEST] for entry in entries[:_SHOWN]), *more])}"]
