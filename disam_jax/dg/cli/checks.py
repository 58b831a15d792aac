"""What can be checked of the options before the data is looked at."""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from disam_jax.dg.errors import InputError

if TYPE_CHECKING:
    from disam_jax.dg.cli.options import Compare, OpenClassOptions, TrainingOptions
    from disam_jax.dg.models.registry import Model

PACKAGES = ("rich", "matplotlib", "scipy", "sklearn", "skimage", "PIL", "flax", "grain")
# For models with texts.
TOKENIZERS = ("tokenizers",)
# Options that have a meaning with a checkpoint only, beside those of `FineTuneConfig`.
WITH_CHECKPOINT = ("revision", "open_class", "base_classes", "cache")


def check(options: "Compare") -> None:
    """Checks what can be checked without looking at the data.

    Args:
        options: Options of the command line.

    Raises:
        InputError: If an option has a value that it cannot have, or has no effect with the others. It is named.
    """
    from disam_jax.dg.reading import exists
    from disam_jax.dg.sweep.logits_files import check_logits_folder
    from disam_jax.dg.sweep.results_file import check_results
    from disam_jax.dg.sweep.results_folder import RESULTS, check_out

    if options.grid and options.candidates > 1:
        raise InputError("--grid and --candidates exclude each other: a grid is no random search")
    if options.search and (options.grid or options.candidates == 1):
        raise InputError("--search is for random draws: write --candidates 2 or more, without --grid")
    if options.draws != "shared" and (options.grid or options.candidates == 1):
        raise InputError(f"--draws {options.draws} is for random draws: write --candidates 2 or more, without --grid")
    if options.eval_every is not None and is_given(options, "evaluations"):
        raise InputError("--eval-every and --evaluations exclude each other: one says when, the other how many times")
    parse_seeds(options.seeds)
    check_training(options)
    check_cluster(options)
    check_logs(options.log)
    check_out(options.out)
    check_results(options.out)
    if options.keep_logits and not exists(options.out / RESULTS):
        check_logits_folder(options.out)


def check_training(options: "TrainingOptions") -> None:
    """Checks the options of all commands that train, and that the packages they need are there.

    Raises:
        InputError: As for `check`.
    """
    from disam_jax.dg.models.registry import MODELS

    check_numbers(options)
    model = MODELS[options.model]
    if options.image_size is not None and not model.of_images:
        from disam_jax.dg.data.features import check_image_size

        check_image_size(options.image_size)
    for package in (*PACKAGES, *(TOKENIZERS if options.checkpoint and model.text else ())):
        if importlib.util.find_spec(package) is None:
            raise InputError(missing(package))
    check_checkpoint(options)
    check_model_options(options)


def check_cluster(options: "Compare") -> None:
    """Checks that at most one cluster is asked for, and that its package is there.

    Raises:
        InputError: If not.
    """
    given = [name for name in ("workers", "scheduler", "scheduler_file") if getattr(options, name) is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(map(flag, given))} exclude each other: each of them names a cluster")
    if options.scheduler is not None and not re.fullmatch(r"(tcp|tls|ucx|ws|wss)://[^\s/]+:[0-9]+", options.scheduler):
        from disam_jax.dg.reading import brief

        raise InputError(f"--scheduler must be an address, as tcp://HOST:8786, got {brief(options.scheduler, 60)}")
    for name in ("checkpoint_every", "data_parallel", "search"):
        if given and is_given(options, name):
            raise InputError(
                f"{flag(name)} is for runs in this process, and {flag(given[0])} trains elsewhere: leave one out, or "
                "train a part in each of several processes with --shard"
            )
    if options.checkpoint_every is not None and importlib.util.find_spec("orbax") is None:
        raise InputError(missing("orbax-checkpoint"))
    if given and importlib.util.find_spec("distributed") is None:
        raise InputError(missing("distributed"))


def check_logs(names: Sequence[str]) -> None:
    """Checks that the packages of the logs are there.

    Raises:
        InputError: If one is missing. It says what to install.

    Example:
        >>> check_logs(())
    """
    from disam_jax.dg.cli.logs import LOGS

    for name in names:
        _, package, how = LOGS[name]
        if importlib.util.find_spec(package) is None:
            raise InputError(f"--log {name} needs the package {package}, which is missing: {how}")


def check_numbers(options: "TrainingOptions") -> None:
    """Checks that every number is in its range.

    Raises:
        InputError: If one is not. The option is named.
    """
    from disam_jax.dg.ranges import RANGES, check_range

    for name in RANGES:
        value = getattr(options, name, None)
        if isinstance(value, int | float):
            check_range(name, value)


def flag(name: str) -> str:
    """How an option is written.

    Example:
        >>> flag("class_contexts")
        '--class-contexts'
    """
    return f"--{name.replace('_', '-')}"


def is_given(options: "TrainingOptions", name: str) -> bool:
    """Whether an option differs from its default; one that the command does not have is not given."""
    return hasattr(options, name) and getattr(options, name) != _default(options, name)


def _default(options: Any, name: str) -> Any:
    (value,) = (each.default for each in fields(options) if each.name == name)
    assert value is not MISSING
    return value


def _takers(takes: dict[str, bool]) -> str:
    *first, last = [name for name, taken in takes.items() if taken]
    return f"{', '.join(first)} and {last}" if first else last


def check_model_options(options: "TrainingOptions") -> None:
    """Checks that the model takes the options that are about networks.

    Raises:
        InputError: If an option has no effect with the model. Both are named.
    """
    from disam_jax.dg.models.registry import MODELS

    def takes(model: "Model", name: str) -> bool:
        if options.checkpoint is not None:
            return name in model.checkpoint_options
        return model.make is not None and (name == "dropout" or name in model.options)

    for name in ("norm", "dropout", "frozen_norm"):
        if is_given(options, name) and not takes(MODELS[options.model], name):
            takers = {other: takes(each, name) for other, each in MODELS.items()}
            value = "" if isinstance(getattr(options, name), bool) else f" {getattr(options, name)}"
            raise InputError(
                f"--model {options.model}{' with --checkpoint' if options.checkpoint else ''} has no "
                f"{name.replace('_', ' ')}, got {flag(name)}{value}: it is for {_takers(takers)}"
                if any(takers.values())
                else f"no model has {flag(name)} with --checkpoint, got {flag(name)}{value}"
            )
    if options.augment and not MODELS[options.model].of_images:
        takers = {other: each.of_images for other, each in MODELS.items()}
        raise InputError(f"--augment is for pixels, which {_takers(takers)} take: --model is {options.model}")


def check_checkpoint(options: "TrainingOptions") -> None:
    """Checks that the options about pretrained weights go together.

    Raises:
        InputError: If they do not. The option is named.
    """
    from disam_jax.dg.cli.options import OpenClassOptions
    from disam_jax.dg.models.registry import MODELS
    from disam_jax.dg.training.config import FineTuneConfig

    model = MODELS[options.model]
    if options.checkpoint is None:
        if model.checkpoints == "required":
            raise InputError(f"--model {options.model} needs --checkpoint: a folder or a repository of Hugging Face")
        for name in (*(each.name for each in fields(FineTuneConfig)), *WITH_CHECKPOINT):
            if is_given(options, name):
                raise InputError(f"{flag(name)} is for pretrained models: give a --checkpoint too")
        return
    if model.checkpoints == "none":
        takers = _takers({name: each.checkpoints != "none" for name, each in MODELS.items()})
        raise InputError(f"--checkpoint is for {takers}: --model is {options.model}")
    peft = options.peft or model.peft
    if isinstance(options, OpenClassOptions):
        check_open_class(options, model, peft, options.class_contexts)
    check_finetuning_options(options, peft)


def check_open_class(options: "OpenClassOptions", model: "Model", peft: str, class_contexts: bool) -> None:
    """Checks that classes that are not trained on can be told by their texts, if they are asked for.

    Args:
        options: Options of the command line.
        model: Model that they name.
        peft: Name of the way of fine-tuning.
        class_contexts: Whether each class has a context of its own.

    Raises:
        InputError: If they cannot.
    """
    from disam_jax.dg.models.registry import MODELS
    from disam_jax.dg.peft.registry import FINETUNING

    way = FINETUNING[peft]
    if options.open_class and (not model.text or way.classifier == "head" or class_contexts):
        texts = _takers({name: each.text for name, each in MODELS.items()})
        ways = _takers({name: each.classifier != "head" for name, each in FINETUNING.items()})
        raise InputError(
            f"--open-class needs a text for classes that were not trained on: --model {texts} with --peft {ways}, "
            "without --class-contexts"
        )
    if options.base_classes and not options.open_class:
        raise InputError("--base-classes is for --open-class")


def check_finetuning_options(options: "TrainingOptions", peft: str) -> None:
    """Checks that the model and the way of fine-tuning take the options that are about fine-tuning.

    Args:
        options: Options of the command line.
        peft: Name of the way of fine-tuning.

    Raises:
        InputError: If an option has no effect. It is named, and so is what takes it.
    """
    from disam_jax.dg.models.registry import MODELS
    from disam_jax.dg.peft.finetuning import check_finetuning
    from disam_jax.dg.peft.registry import FINETUNING
    from disam_jax.dg.training.config import OF_A_CUT, FineTuneConfig

    if options.augment and options.cache_features:
        raise InputError("--cache-features and --augment exclude each other: an augmented image has other features")
    for name in (*OF_A_CUT, "cache"):
        if is_given(options, name) and not options.train_from:
            raise InputError(f"{flag(name)} is for --train-from STAGE: give that too")
    if options.train_from and options.augment and not options.views:
        raise InputError(
            "--augment with --train-from needs augmented views of the images that are computed beforehand: write "
            "--views 8 for eight of each image, or leave out --augment"
        )
    if options.views and not options.augment:
        raise InputError("--views are augmented views of the images: write --augment too")
    cache_features, train_from = options.cache_features, options.train_from
    check_finetuning(options.model, FineTuneConfig(peft, cache_features=cache_features, train_from=train_from))
    own = {name for way in FINETUNING.values() for name in way.options}
    for name in (each.name for each in fields(FineTuneConfig)):
        if name in own and is_given(options, name) and name not in FINETUNING[peft].options:
            takers = _takers({other: name in way.options for other, way in FINETUNING.items()})
            raise InputError(f"{flag(name)} is for --peft {takers}: --peft is {peft}")
    if options.context_words and is_given(options, "context"):
        raise InputError("--context-words decide how many context vectors there are: leave out --context")
    if is_given(options, "template") and not MODELS[options.model].text:
        takers = _takers({name: each.text for name, each in MODELS.items()})
        raise InputError(f"--template is for --model {takers}: --model {options.model} has no text")


def missing(package: str) -> str:
    """The message that a package is not installed.

    Example:
        >>> missing("tokenizers")
        'the package tokenizers is missing: pip install "disam-jax[dg,pretrained]"'
    """
    extras = "dg,pretrained" if package in (*TOKENIZERS, "huggingface_hub") else "dg"
    extras = "dg,cluster" if package == "distributed" else extras
    return f'the package {package} is missing: pip install "disam-jax[{extras}]"'


# What the keys of a run are made of.
LARGEST_SEED = 2**31 - 1


def parse_seeds(texts: Sequence[str]) -> tuple[int, ...]:
    """Seeds, ascending, from one number of them, or from seeds and ranges A..B.

    Raises:
        InputError: On anything else, a seed twice, or fewer than two.

    Example:
        >>> parse_seeds(["3"]), parse_seeds(["3..5"]), parse_seeds(["7", "0..1", "4"])
        ((0, 1, 2), (3, 4, 5), (0, 1, 4, 7))
    """
    from disam_jax.dg.ranges import RANGES, check_range
    from disam_jax.dg.reading import brief

    how = "a number of seeds as 20, a range as 3..9, or seeds as 0 4 7"
    if len(texts) == 1 and re.fullmatch(r"[+-]?[0-9]{1,4000}", texts[0]):
        check_range("seeds", int(texts[0]))
        return tuple(range(int(texts[0])))
    seeds: list[int] = []
    for text in texts:
        match = re.fullmatch(r"([0-9]{1,4000})(?:\.\.([0-9]{1,4000}))?", text)
        if match is None:
            raise InputError(f"--seeds must be {how}, got {brief(text, 40)}")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last or last > LARGEST_SEED:
            raise InputError(f"--seeds must be {how}, ascending and up to {LARGEST_SEED}, got {brief(text, 40)}")
        check_range("seeds", max(2, len(seeds) + last - first + 1))
        seeds += range(first, last + 1)
    if len({*seeds}) < len(seeds):
        raise InputError(f"--seeds must be {how}, each once, got {brief(' '.join(texts), 40)}")
    if len(seeds) < RANGES["seeds"].least:
        raise InputError(f"--seeds must be at least two, got {brief(' '.join(texts), 40)}: write {how}")
    return tuple(sorted(seeds))


def parse_grid(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Values by name, from NAME=V,V,... each.

    Raises:
        InputError: on anything else.

    Example:
        >>> parse_grid(["rho=0.05,0.1", "lam=1"])
        {'rho': (0.05, 0.1), 'lam': (1.0,)}
    """
    grid = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.replace("-", "_")
        if name in grid:
            raise InputError(f"--grid has {name} twice: write all its values in one, as in rho=0.05,0.1")
        try:
            grid[name] = tuple(float(value) for value in values.split(","))
        except ValueError as error:
            raise InputError(f"--grid {text} must be NAME=V,V,... with numbers, as in rho=0.05,0.1") from error
        if not equals:
            raise InputError(f"--grid {text} must be NAME=V,V,... with numbers, as in rho=0.05,0.1")
    return grid
