"""Pretrained models in the benchmark: loads a checkpoint and makes the networks that are fine-tuned."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.load import CachedFeatures, StreamedImages, fingerprint
from disam_jax.dg.data.names import hint
from disam_jax.dg.data.streaming import eval_blocks
from disam_jax.dg.errors import InputError
from disam_jax.dg.models.adapter import FLOAT32, from_nnx, from_weights, untrained
from disam_jax.dg.models.clip import CLIP, CLIP_MEAN, CLIP_STD
from disam_jax.dg.models.compute import Compute
from disam_jax.dg.models.efficientnet import MEAN, STD, EfficientNetLite
from disam_jax.dg.models.inputs import images, to_float
from disam_jax.dg.models.linear import LinearHead
from disam_jax.dg.models.network import Network
from disam_jax.dg.models.registry import find_model
from disam_jax.dg.models.stages import stage_names
from disam_jax.dg.models.vit import ViT
from disam_jax.dg.peft import TRAINABLE, CoOp, LinearProbe, TextClassifier
from disam_jax.dg.peft.cut import Rest
from disam_jax.dg.peft.features import feature_size, tower_features
from disam_jax.dg.peft.registry import FINETUNING
from disam_jax.dg.pretrained import from_pretrained
from disam_jax.dg.pretrained.files import checkpoint_path
from disam_jax.dg.pretrained.packages import is_packaged
from disam_jax.dg.pretrained.tokenizer import Tokenizer, class_prompts, load_tokenizer
from disam_jax.dg.reading import is_folder
from disam_jax.dg.training.config import FineTuneConfig


class Pretrained(NamedTuple):
    """A model with its weights, and how it wants its inputs.

    Attributes:
        module: `CLIP`, `ViT`, `ResNet` or `EfficientNetLite`, in evaluation mode.
        image_size: Pixels on each side of an image, if the weights fix them.
        prepare: images of a data set -> inputs of the module.
        tokenizer: Tokenizer of CLIP; None for other models.
    """

    module: Any
    image_size: int | None
    prepare: Callable[[jax.Array], jax.Array]
    tokenizer: Tokenizer | None = None

    @property
    def tower(self) -> nnx.Module:
        """What makes features of images."""
        return self.module.image if isinstance(self.module, CLIP) else self.module


@dataclass(frozen=True)
class Normalize:
    """Images with values in [0, 1], normalised channel by channel; equal to another one of the same numbers."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """From uint8 in 0..255 or floating point [N, H, W, C] to float32."""
        return images(inputs, self.mean, self.std)


def load(
    model: str, checkpoint: str | Path, *, revision: str | None = None, frozen_norm: bool = True, dropout: float = 0.0
) -> Pretrained:
    """Loads a checkpoint for the benchmark.

    Args:
        model: Name of an entry of `MODELS` that takes checkpoints.
        checkpoint: Folder, .safetensors file or repository of Hugging Face, see `from_pretrained`.
        revision: Branch, tag or commit of the repository.
        frozen_norm: Whether the BatchNorm of a ResNet keeps its statistics.
        dropout: Fraction of a ResNet's features that is dropped in training.

    Returns:
        Pretrained.

    Raises:
        InputError: If the checkpoint cannot be loaded, as in `from_pretrained`, or CLIP's vocabulary does not fit.

    Example:
        >>> import tempfile
        >>> from disam_jax.dg.pretrained.tiny import write_tiny_vit
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pretrained = load("vit", write_tiny_vit(folder))
        >>> type(pretrained.module).__name__, pretrained.image_size
        ('ViT', 32)
    """
    # Weights of a package have a name and no path that `from_pretrained` would take.
    path = Path(checkpoint) if is_packaged(checkpoint) else checkpoint_path(checkpoint, revision)
    values = {"frozen_norm": frozen_norm, "dropout": dropout}
    options: dict[str, Any] = {name: values[name] for name in find_model(model).checkpoint_options}
    module = from_pretrained(path, model=model, **options)
    if isinstance(module, CLIP):
        tokenizer = load_tokenizer(path if is_folder(path) else path.parent)
        tokenizer.check(module.config.vocab_size, module.config.eos_token_id)
        return Pretrained(module, module.config.image_size, Normalize(CLIP_MEAN, CLIP_STD), tokenizer)
    if isinstance(module, ViT):
        config = module.config
        return Pretrained(module, config.image_size, Normalize(config.mean, config.std))
    return Pretrained(module, None, Normalize(MEAN, STD) if isinstance(module, EfficientNetLite) else images)


def make_networks(
    pretrained: Pretrained, finetune: FineTuneConfig, class_names: Sequence[str], compute: Compute = FLOAT32
) -> tuple[Network, Network | None]:
    """The network that is trained, and CLIP's zero-shot classifier.

    Args:
        pretrained: Pretrained model.
        finetune: What is trained of it.
        class_names: C names of classes.
        compute: How they compute.

    Returns:
        The network to train, and for CLIP its zero-shot classifier, whose parameter has no effect.

    Raises:
        InputError: If two classes cannot be told apart by their names, a prompt is too long, a cut leaves nothing to
            train, or `compute` has `remat` and what is trained has no blocks.

    Example:
        >>> from disam_jax.dg.models.vit import ViTConfig
        >>> config = ViTConfig(image_size=8, patch_size=4, width=8, layers=1, heads=2, hidden=8)
        >>> pretrained = Pretrained(ViT(config, rngs=nnx.Rngs(0)), 8, images)
        >>> network, zero_shot = make_networks(pretrained, FineTuneConfig("probe"), ["cat", "dog"])
        >>> params, state = network.init(jax.random.key(0))
        >>> [leaf.shape for leaf in jax.tree.leaves(params)], zero_shot
        ([(2,), (8, 2)], None)
    """
    if finetune.train_from:
        pretrained = cut_at(pretrained, finetune.train_from)
    module: Any = pretrained.module
    way = FINETUNING[finetune.peft]
    number, size = len(class_names), feature_size(pretrained.tower)
    prepare = to_float if finetune.cache_features else pretrained.prepare
    make = functools.partial(from_weights, trained=TRAINABLE[finetune.peft], prepare=prepare, compute=compute)
    head = (
        from_nnx(lambda rngs: LinearHead(size, number, rngs=rngs), compute=compute) if finetune.cache_features else None
    )

    def probe(tower: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        module = LinearProbe(tower, number, rngs)
        _adapt(module.tower, finetune, rngs)
        return module

    if not isinstance(module, CLIP):
        return head or make(module, probe), None
    tokenizer, length = pretrained.tokenizer, module.config.context_length
    assert tokenizer is not None
    sentences = tokenizer.tokenize(class_prompts(class_names, finetune.template), length)
    if finetune.cache_features:
        module = _with_tower(module, Identity())

    def by_texts(clip: Any, rngs: nnx.Rngs) -> nnx.Module:
        classifier = TextClassifier(clip, sentences)
        _adapt(classifier.image, finetune, rngs)
        return classifier

    def as_it_is(clip: Any, rngs: nnx.Rngs) -> nnx.Module:
        del rngs
        return TextClassifier(clip, sentences)

    def clip_probe(clip: Any, rngs: nnx.Rngs) -> nnx.Module:
        return probe(clip.image, rngs)

    zero_shot = untrained(make(module, as_it_is, trained=nnx.Nothing()))
    match way.classifier:
        case "head":
            network = head or make(module, clip_probe)
        case "prompts":
            try:
                network = make(module, _prompts(finetune, tokenizer, class_names, length))
            except ValueError as error:
                raise InputError(f"--context: {error}") from error
        case "texts":
            network = make(module, by_texts)
    if finetune.train_from and not jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0))[0]):
        raise InputError(f"--train-from {finetune.train_from} leaves nothing to train with --peft {finetune.peft}")
    return network, zero_shot


def _adapt(tower: nnx.Module, finetune: FineTuneConfig, rngs: nnx.Rngs) -> None:
    try:
        FINETUNING[finetune.peft].adapt(tower, finetune, rngs)
    except ValueError as error:
        if not finetune.train_from:
            raise
        raise InputError(f"--peft {finetune.peft} with --train-from {finetune.train_from}: {error}") from error


def check_stage(tower: nnx.Module, stage: str) -> None:
    """Checks that a tower can be cut at a stage.

    Args:
        tower: Tower of a `Pretrained`.
        stage: Name of the stage.

    Raises:
        InputError: If it has no such stage; the message lists those that it has.

    Example:
        >>> from disam_jax.dg.models.vit import ViTConfig
        >>> config = ViTConfig(image_size=8, patch_size=4, width=8, layers=1, heads=2, hidden=8)
        >>> check_stage(nnx.eval_shape(lambda: ViT(config, rngs=nnx.Rngs(0))), "layers.1")
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: unknown --train-from layers.1: the stages are layers.0, ...
    """
    names = stage_names(tower)
    if stage not in names:
        raise InputError(f"unknown --train-from {stage}: the stages are {', '.join(names)}{hint(stage, names)}")


def cut_at(pretrained: Pretrained, stage: str) -> Pretrained:
    """A pretrained model without the part of its tower before a stage: it gets activations in the place of images.

    Args:
        pretrained: Pretrained model.
        stage: One of `stage_names(pretrained.tower)`.

    Returns:
        Pretrained model whose tower is a `Rest`.

    Raises:
        InputError: If there is no such stage.

    Example:
        >>> from disam_jax.dg.models.vit import ViTConfig
        >>> config = ViTConfig(image_size=8, patch_size=4, width=8, layers=1, heads=2, hidden=8)
        >>> module = nnx.eval_shape(lambda: ViT(config, rngs=nnx.Rngs(0)))
        >>> type(cut_at(Pretrained(module, 8, images), "head").tower).__name__
        'Rest'
    """
    check_stage(pretrained.tower, stage)
    tower = Rest(pretrained.tower, stage)
    module = _with_tower(pretrained.module, tower) if isinstance(pretrained.module, CLIP) else tower
    return pretrained._replace(module=module, prepare=to_float)


class Identity(nnx.Module):
    """Stands in for a tower whose features are computed already."""

    def __call__(self, features: jax.Array) -> jax.Array:
        """The features themselves."""
        return features


def _with_tower(clip: CLIP, tower: nnx.Module) -> Any:
    copy: Any = nnx.merge(*nnx.split(clip))
    copy.image = tower
    return copy


def _prompts(
    finetune: FineTuneConfig, tokenizer: Tokenizer, class_names: Sequence[str], length: int
) -> Callable[[nnx.Module, nnx.Rngs], nnx.Module]:
    names = tokenizer.tokenize(class_prompts(class_names, "{}."), length)
    words = tokenizer.words(finetune.context_words) if finetune.context_words else None
    count = None if words else finetune.context

    def extend(clip: Any, rngs: nnx.Rngs) -> nnx.Module:
        return CoOp(
            clip,
            names,
            count,
            rngs=rngs,
            class_contexts=finetune.class_contexts,
            context_words=words,
            class_names=class_names,
        )

    return extend


def cache(
    pretrained: Pretrained,
    data: Domains,
    block: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> CachedFeatures:
    """The data set with the features of a frozen tower in the place of images, computed once.

    In evaluation no image sees another one, so that these are the features that the tower makes in training, to
    rounding.

    Args:
        pretrained: Pretrained model, whose tower is used.
        data: Images, in memory or in files.
        block: Number of images at a time; memory on the device does not grow with the data set.
        on_progress: Called with the number of images that are done, and of all images.

    Returns:
        The data set with inputs float32 [N, F].

    Example:
        >>> from disam_jax.dg.models.vit import ViTConfig
        >>> from disam_jax.dg.testing import toy
        >>> config = ViTConfig(image_size=8, patch_size=4, width=8, layers=1, heads=2, hidden=8)
        >>> pretrained = Pretrained(ViT(config, rngs=nnx.Rngs(0)), 8, images)
        >>> cache(pretrained, toy(images=True)).inputs.shape
        (24, 8)
    """
    graph, variables = nnx.split(_evaluating(pretrained.tower))

    @jax.jit
    def features(variables: Any, pixels: jax.Array) -> jax.Array:
        tower = nnx.merge(graph, variables)
        return tower_features(tower, pretrained.prepare(pixels), jax.random.key(0)).astype(jnp.float32)

    number = len(data.labels)
    size = {"image_size": data.image_size} if isinstance(data, StreamedImages) else {}
    source = data.listing if isinstance(data, StreamedImages) else data
    found = np.empty((number, feature_size(pretrained.tower)), np.float32)
    done = 0
    for each in eval_blocks(source, np.arange(number), min(block, number), **size):
        part = np.asarray(features(variables, each.x))[each.valid]
        found[done : done + len(part)] = part
        done += len(part)
        if on_progress is not None:
            on_progress(done, number)
    return CachedFeatures.of(
        data, found, origin=f"{fingerprint(data)} {weights_fingerprint(nnx.state(pretrained.tower))}"
    )


def _evaluating(module: nnx.Module) -> nnx.Module:
    copy = nnx.merge(*nnx.split(module))
    copy.eval()
    return copy


def weights_fingerprint(weights: Any) -> str:
    """A hash of all arrays, 16 hexadecimal digits: tells one checkpoint from another.

    Example:
        >>> weights_fingerprint({"kernel": np.zeros((2, 3), np.float32)})
        '2bb6ae06ad472028'
    """
    digest = hashlib.blake2b(digest_size=8)
    for leaf in jax.tree.leaves(weights):
        digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return digest.hexdigest()


def check_finetuning(model: str, finetune: FineTuneConfig) -> FineTuneConfig:
    """Checks that a model can be fine-tuned in this way, and decides whether features are cached.

    Args:
        model: Name of the model.
        finetune: Configuration as it was asked for; `cache_features` None means: wherever the image tower is frozen.

    Returns:
        The same, with `cache_features` settled.

    Raises:
        InputError: If the way and the model do not go together, or an option has no effect; it names the option.

    Example:
        >>> [check_finetuning("vit", FineTuneConfig(peft)).cache_features for peft in ("probe", "lora")]
        [True, False]
    """
    entry, way = find_model(model), FINETUNING[finetune.peft]
    if (way.classifier == "prompts" and not entry.text) or (way.transformer and not entry.transformer):
        others = [
            name
            for name, each in FINETUNING.items()
            if (each.classifier != "prompts" or entry.text) and (not each.transformer or entry.transformer)
        ]
        lacks = f"needs a transformer, got {model}" if way.transformer else f"learns prompts and {model} has no text"
        raise InputError(f"--peft {finetune.peft} {lacks}: write one of {', '.join(others)}")
    if finetune.cache_features and not way.frozen:
        raise InputError(f"--cache-features needs a frozen image tower, --peft {finetune.peft} trains it")
    if finetune.cache_features and finetune.train_from:
        raise InputError("--cache-features and --train-from exclude each other: --train-from classifier has features")
    cached = way.frozen and not finetune.train_from
    return replace(finetune, cache_features=cached if finetune.cache_features is None else finetune.cache_features)
