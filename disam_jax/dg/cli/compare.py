"""`disam-jax compare` and `sweep`: data, configuration, networks and methods are put together and run."""

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from disam_jax.dg.cli.checks import check, parse_grid, parse_seeds
from disam_jax.dg.cli.progress import say
from disam_jax.dg.errors import InputError

if TYPE_CHECKING:
    from disam_jax.dg.cli.logs import OnRecords
    from disam_jax.dg.cli.options import Compare, TrainingOptions
    from disam_jax.dg.cli.progress import Progress
    from disam_jax.dg.data.domains import Domains
    from disam_jax.dg.methods import Method
    from disam_jax.dg.models.network import Network
    from disam_jax.dg.peft.finetuning import Pretrained
    from disam_jax.dg.progress import OnProgress
    from disam_jax.dg.results import Results
    from disam_jax.dg.saving.blueprint import Blueprint
    from disam_jax.dg.sweep.run import NewClasses, Plan
    from disam_jax.dg.sweep.shards import Shard
    from disam_jax.dg.training.config import FineTuneConfig, TrainConfig

SomeOptions = TypeVar("SomeOptions", bound="TrainingOptions")


def with_own_checkpoint(options: SomeOptions) -> SomeOptions:
    """The options with the checkpoint that a model brings along, where none is given.

    Example:
        >>> from disam_jax.dg.cli.options import Compare
        >>> with_own_checkpoint(Compare(model="efficientnet_lite0")).checkpoint
        'efficientnet_lite0'
    """
    from disam_jax.dg.models.registry import MODELS

    return options if options.checkpoint else replace(options, checkpoint=MODELS[options.model].checkpoint)


def run_compare(options: "Compare", command: str) -> None:
    """Runs the comparison, prints the table and writes the files.

    Args:
        options: Options of the command line.
        command: What was typed, for the record.

    Raises:
        InputError: If the options or the data cannot be used; nothing has been written then.
    """
    options = with_own_checkpoint(options)
    check(options)
    began = time.perf_counter()

    from disam_jax.dg.cli.cluster import run_on_cluster
    from disam_jax.dg.cli.compiled import keep_programs
    from disam_jax.dg.cli.logs import logging_to
    from disam_jax.dg.cli.plan import run_dry
    from disam_jax.dg.cli.progress import progress
    from disam_jax.dg.cli.report import report
    from disam_jax.dg.sweep.hparams import check_grid
    from disam_jax.dg.sweep.shards import parse_shard

    # Before anything takes long, here or on a cluster.
    check_grid(parse_grid(options.grid), chosen_methods(options))
    shard = None if options.shard is None else parse_shard(options.shard, os.environ)
    if options.dry_run:
        run_dry(options, command, shard)
        return
    machine = None
    keep_programs(options.compilation_cache, say)
    with progress() as told, logging_to(options.log, options.out, told.say) as log:
        if options.workers or options.scheduler or options.scheduler_file:
            results, cost, machine = run_on_cluster(options, command, shard, told, log)
        else:
            results, cost = run_here(options, command, shard, told, log)
    if shard is not None:
        say(
            f"shard {shard} has all of its {len(results.runs)} runs in {options.out}; when all {shard.count} have "
            f"theirs, write disam-jax merge and their folders, and --out DIR for the whole"
        )
        return
    report(results, options.select, options.out, cost, command, time.perf_counter() - began, machine)


def run_here(
    options: "Compare", command: str, shard: "Shard | None", told: "Progress", log: "OnRecords"
) -> tuple["Results", dict[str, dict[str, Any]]]:
    """Trains in this process; see `run_sweep`."""
    from disam_jax.dg.cli.plan import say_if_long
    from disam_jax.dg.sweep import run as sweep

    work = prepare(options, told.show)
    told.show("preparing", 0, 1)
    say_if_long(work, shard, options.out, told.say)
    return sweep.run_sweep(
        work.runs.data,
        work.runs.network,
        work.config,
        work.runs.methods,
        replace(work.plan, shard=shard),
        options.out,
        command=command,
        overwrite=options.overwrite,
        runs_at_once=options.runs_at_once,
        memory_budget=memory_budget_of(options),
        checkpoint_every=options.checkpoint_every,
        on_progress=told.show,
        on_line=told.say,
        on_chunk=told.log,
        on_estimate=told.estimate,
        on_records=log,
        select=options.select,
        own_networks=work.runs.own_networks,
        new=work.runs.new,
        save=options.save,
        blueprint=work.runs.blueprint,
    )


class Work(NamedTuple):
    """What the options ask for, read and put together.

    Attributes:
        runs: What is trained, on what.
        config: What all runs share.
        plan: All runs.
    """

    runs: "Runs"
    config: "TrainConfig"
    plan: "Plan"


def prepare(options: "Compare", show: "OnProgress") -> Work:
    """Reads the data and makes networks and candidates.

    Raises:
        InputError: If the options or the data cannot be used.
    """
    from disam_jax.dg.sweep import hparams
    from disam_jax.dg.sweep import run as sweep

    methods, grid = chosen_methods(options), parse_grid(options.grid)
    runs, config, targets = put_together(options, methods, options.out, show)
    seeds = parse_seeds(options.seeds)
    tried = lambda method: options.candidates if method.tuned else 1
    search = tuple(name.replace("-", "_") for name in options.search)
    searched = lambda method: search if method.tuned else ()
    if options.draws == "by-seed":
        drawn = {
            name: hparams.candidates_by_seed(method, config, tried(method), seeds, searched(method))
            for name, method in runs.methods.items()
        }
        named = {name: each.named for name, each in drawn.items()}
        by_seed = {name: each.by_seed for name, each in drawn.items()}
        return Work(runs, config, sweep.Plan(named, targets, seeds, by_seed=by_seed))
    candidates = {
        name: hparams.grid_candidates(method, config, grid)
        if grid and method.tuned
        else hparams.random_candidates(method, config, tried(method), seed=0, search=searched(method))
        for name, method in runs.methods.items()
    }
    return Work(runs, config, sweep.Plan(candidates, targets, seeds))


class ToTrain(NamedTuple):
    """What the options come to.

    Attributes:
        runs: What is trained, on what.
        config: How it is trained.
        targets: Indices of the domains to hold out.
    """

    runs: "Runs"
    config: "TrainConfig"
    targets: tuple[int, ...]


def put_together(
    options: "TrainingOptions", methods: Mapping[str, "Method"], out: Path | None, show: "OnProgress"
) -> ToTrain:
    """Reads weights and data and makes the network.

    Args:
        options: Options of the command line, checked.
        methods: Methods by name.
        out: Folder that results will be written to, if there is one.
        show: Function that shows progress.

    Returns:
        ToTrain.

    Raises:
        InputError: If weights or data cannot be used.
    """
    from disam_jax.dg.data.load import has_images
    from disam_jax.dg.models.registry import MODELS
    from disam_jax.dg.saving.blueprint import inputs_of
    from disam_jax.dg.sweep.run import check_targets

    memory_budget = memory_budget_of(options)
    pretrained = load_checkpoint(options)
    of_weights = pretrained.image_size if pretrained else None
    size = options.image_size or of_weights or MODELS[options.model].image_size
    data = read_data(options, size, memory_budget, show, out)
    config = config_of(options, data)
    inputs = inputs_of(data, size if has_images(options.data) else None)
    targets = check_targets(options.target, data.domain_names, data.name)
    if pretrained is None:
        runs = from_scratch(data, config, methods, inputs)
    else:
        runs = fine_tuned(pretrained, data, config, methods, options, show, memory_budget, inputs)
    return ToTrain(runs, config, targets)


def memory_budget_of(options: "TrainingOptions") -> int | None:
    """Bytes on each device that a program may take, if the options say.

    Example:
        >>> from disam_jax.dg.cli.options import Compare
        >>> memory_budget_of(Compare(memory=0.5)) == 2**29
        True
    """
    return None if options.memory is None else int(options.memory * 2**30)


def chosen_methods(options: "Compare") -> dict[str, "Method"]:
    """The methods that the options name; with --penalty, those of DISAM are the ones with that penalty.

    Example:
        >>> from disam_jax.dg.cli.options import Compare
        >>> list(chosen_methods(Compare())), list(chosen_methods(Compare(penalty="variance")))
        (['ERM', 'SAM', 'DISAM-std'], ['ERM', 'SAM', 'DISAM'])
    """
    from disam_jax.dg.methods import METHODS, find_methods

    names = [name for each in options.method for name in each.split(",") if name]
    found = find_methods(names)
    if options.penalty is not None:
        others = {name: with_penalty(name, options.penalty) for name in found}
        found = {other if other in METHODS else name: METHODS.get(other, found[name]) for name, other in others.items()}
    if not found:
        raise InputError("--method names no method")
    return found


def with_penalty(name: str, penalty: str) -> str:
    """The name that a method has with another penalty, whether there is such a method or not.

    Example:
        >>> with_penalty("DISAM", "std"), with_penalty("DISAM-std-control", "variance")
        ('DISAM-std', 'DISAM-control')
    """
    control = "-control" * name.endswith("-control")
    base = name.removesuffix(control).removesuffix("-std")
    return f"{base}{'-std' * (penalty == 'std')}{control}"


def taken(options: "TrainingOptions", config: type) -> dict[str, Any]:
    """The options that have the name of an attribute of a configuration."""
    return {each.name: getattr(options, each.name) for each in fields(config) if hasattr(options, each.name)}


def config_of(options: "TrainingOptions", data: "Domains") -> "TrainConfig":
    """What all runs share: what the options say, and defaults by data, model and way of fine-tuning.

    Raises:
        InputError: If a value is out of its range.
    """
    from disam_jax.dg.training.config import TrainConfig, make_config

    return make_config(data, finetune=finetune_of(options), **taken(options, TrainConfig))


def finetune_of(options: "TrainingOptions") -> "FineTuneConfig | None":
    """Which part of a pretrained model is trained, and how, if the options name one.

    Raises:
        InputError: If that model cannot be fine-tuned so.
    """
    if options.checkpoint is None:
        return None
    from disam_jax.dg.models.registry import MODELS
    from disam_jax.dg.peft.finetuning import check_finetuning
    from disam_jax.dg.training.config import FineTuneConfig

    values = taken(options, FineTuneConfig)
    values["peft"] = options.peft or MODELS[options.model].peft
    # An augmented image has other features at each step.
    values["cache_features"] = False if options.augment or options.train_from else options.cache_features
    return check_finetuning(options.model, FineTuneConfig(**values))


def load_checkpoint(options: "TrainingOptions") -> "Pretrained | None":
    """The pretrained model that the options name, if they do.

    Raises:
        InputError: if it cannot be loaded, wants images of another size, or has no such stage.
    """
    finetune = finetune_of(options)
    if options.checkpoint is None or finetune is None:
        return None
    from disam_jax.dg.peft.finetuning import check_stage, load
    from disam_jax.dg.peft.registry import FINETUNING

    pretrained = load(
        options.model,
        options.checkpoint,
        revision=options.revision,
        frozen_norm=options.frozen_norm or bool(finetune.train_from) or not FINETUNING[finetune.peft].whole,
        dropout=options.dropout,
    )
    if finetune.train_from:
        check_stage(pretrained.tower, finetune.train_from)
    if options.image_size and pretrained.image_size not in (None, options.image_size):
        raise InputError(
            f"--image-size is {options.image_size}, but {options.checkpoint} is for {pretrained.image_size}: leave it "
            "out"
        )
    return pretrained


def read_data(
    options: "TrainingOptions", image_size: int, memory_budget: int | None, show: "OnProgress", out: Path | None
) -> "Domains":
    """The data set that the options name.

    Raises:
        InputError: if it cannot be read, or has no images for a pretrained model.
    """
    from disam_jax.dg.data.leave_out import leave_out
    from disam_jax.dg.data.load import StreamedImages, has_images, open_data
    from disam_jax.dg.models.registry import MODELS
    from disam_jax.dg.runners.streaming import pixel_budget

    data = open_data(
        options.data,
        data_dir=options.data_dir,
        image_size=image_size,
        features=not MODELS[options.model].of_images,
        split_files=options.split_files,
        duplicates=options.duplicates,
        allow_missing_classes=options.allow_missing_classes,
        stream=options.stream,
        most_bytes=pixel_budget(memory_budget),
        on_progress=lambda done, total: show("reading images", done, total),
        out=out,
    )
    if options.leave_out:
        data = leave_out(data, options.leave_out)
    if isinstance(data, StreamedImages):
        say(f"reading the images of {data.name} from disk as they are needed")
    shape = tuple(data.inputs.shape[1:])
    if options.checkpoint is not None and (len(shape) != 3 or shape[2] != 3 or shape[:2] != (image_size, image_size)):
        raise InputError(
            f"{options.checkpoint} wants images of {image_size} x {image_size} x 3, but an example of {data.name} has "
            f"shape {list(shape)}: write a folder of images"
        )
    if options.image_size is not None and not has_images(options.data):
        raise InputError(f"{data.name} is not a folder of images: leave out --image-size")
    if options.augment and (len(shape) != 3 or data.inputs.dtype != "uint8"):
        raise InputError(
            f"--augment is for images, uint8 [H, W, 3], but an example of {data.name} is {data.inputs.dtype} "
            f"{list(shape)}: leave it out"
        )
    return data


def frozen_activations(
    pretrained: "Pretrained",
    data: "Domains",
    finetune: "FineTuneConfig",
    options: "TrainingOptions",
    show: "OnProgress",
    memory_budget: int | None,
) -> "Domains":
    """The data set with what reaches --train-from in the place of images.

    Raises:
        InputError: If it does not fit into memory or on disk.
    """
    import jax

    from disam_jax.dg.data.array_cache import cache_folder
    from disam_jax.dg.data.load import expand
    from disam_jax.dg.peft.cut import activations_of
    from disam_jax.dg.runners.streaming import pixel_budget

    return activations_of(
        pretrained.tower,
        pretrained.prepare,
        data,
        finetune.train_from,
        cache_folder() if options.cache is None else expand(options.cache),
        dtype=finetune.cache_dtype,
        views=finetune.views,
        # All methods, seeds and sweeps share the views.
        key=jax.random.key(0, impl="threefry2x32"),
        most_bytes=pixel_budget(memory_budget),
        on_progress=lambda done, total: show(f"activations before {finetune.train_from}", done, total),
        say=say,
    )


class Runs(NamedTuple):
    """What is trained, on what.

    Attributes:
        data: Data of the classes that are trained on.
        network: Network to train.
        methods: Methods by name.
        own_networks: Networks of the methods that have one of their own.
        blueprint: (name of a method) -> how its network is built again.
        new: Classes that are not trained on.
    """

    data: "Domains"
    network: "Network"
    methods: Mapping[str, "Method"]
    own_networks: Mapping[str, "Network"]
    blueprint: Callable[[str], "Blueprint"]
    new: "NewClasses | None" = None


def from_scratch(
    data: "Domains", config: "TrainConfig", methods: Mapping[str, "Method"], inputs: Mapping[str, Any]
) -> Runs:
    """A network by name, for a data set."""
    from disam_jax.dg.models.compute import Compute
    from disam_jax.dg.models.registry import MODELS, make_network
    from disam_jax.dg.saving import blueprint

    shape = data.inputs.shape[1:]
    network = make_network(
        config.model,
        shape,
        len(data.class_names),
        dropout=config.dropout,
        frozen_norm=config.frozen_norm,
        compute=Compute(config.dtype, config.remat),
        **MODELS[config.model].options_of(config, shape),
    )
    described = functools.cache(lambda: blueprint.from_scratch(network, config, data, inputs))
    return Runs(data, network, methods, {}, lambda _: described())


def fine_tuned(
    pretrained: "Pretrained",
    data: "Domains",
    config: "TrainConfig",
    methods: Mapping[str, "Method"],
    options: "TrainingOptions",
    show: "OnProgress",
    memory_budget: int | None,
    inputs: Mapping[str, Any],
) -> Runs:
    """A pretrained network; for CLIP, also as it is, and with classes that are not trained on.

    Raises:
        InputError: if classes have no names that can be told apart, a domain has none of the base classes, or the
            activations before a cut do not fit.
    """
    from disam_jax.dg.cli.options import OpenClassOptions
    from disam_jax.dg.data.classes import check_bases, split_classes, take_classes
    from disam_jax.dg.methods import ZERO_SHOT, zero_shot
    from disam_jax.dg.models.compute import Compute
    from disam_jax.dg.models.registry import MODELS
    from disam_jax.dg.peft.finetuning import cache, make_networks
    from disam_jax.dg.saving import blueprint
    from disam_jax.dg.sweep.run import NewClasses

    finetune = config.finetune
    assert finetune is not None
    bases = data.class_names
    news: Sequence[str] = ()
    if isinstance(options, OpenClassOptions) and options.open_class:
        bases, news = split_classes(data.class_names, options.base_classes)
        check_bases(take_classes(data, bases), bases)
    compute = Compute(config.dtype, config.remat)
    # Names are checked before anything takes long.
    network, untrained = make_networks(pretrained, finetune, bases, compute)
    of_new = make_networks(pretrained, finetune, news, compute) if news else None
    # What takes long is not done only to be looked at.
    dry = getattr(options, "dry_run", False)
    if finetune.cache_features and not dry:
        data = cache(pretrained, data, on_progress=lambda done, total: show("image features", done, total))
    if finetune.train_from and not dry:
        data = frozen_activations(pretrained, data, finetune, options, show, memory_budget)
    if "dropout" in MODELS[options.model].checkpoint_options:

        def dropping(rate: float) -> "Network":
            again = load_checkpoint(replace(options, dropout=rate))
            assert again is not None
            return make_networks(again, finetune, bases, compute)[0]

        network = network._replace(with_dropout=dropping)
    own = {} if untrained is None else {ZERO_SHOT: untrained}
    methods = {**({ZERO_SHOT: zero_shot} if own else {}), **methods}
    new = None
    if of_new is not None:
        trained, as_it_is = of_new
        networks = {name: as_it_is if name == ZERO_SHOT and as_it_is else trained for name in methods}
        new = NewClasses(take_classes(data, news), networks)
        data = take_classes(data, bases)
    trained_on = data

    @functools.cache
    def described(zero_shot: bool) -> "Blueprint":
        of_method = own[ZERO_SHOT] if zero_shot else network
        return blueprint.fine_tuned(
            of_method, pretrained, config, trained_on, inputs, str(options.checkpoint), zero_shot
        )

    return Runs(data, network, methods, own, lambda name: described(name == ZERO_SHOT and bool(own)), new)
