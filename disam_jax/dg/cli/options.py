"""The options of the command line; their documentation is what `--help` shows, their ranges are in `ranges`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg
from tyro.extras import literal_type_from_choices

from disam_jax.dg.cli.logs import LOGS
from disam_jax.dg.data.registry import DATASETS, option_name
from disam_jax.dg.data.sources.registry import SOURCES
from disam_jax.dg.models.registry import MODELS
from disam_jax.dg.peft.registry import FINETUNING
from disam_jax.dg.results import SAVES
from disam_jax.dg.sweep.model_selection import CRITERIA
from disam_jax.dg.training.averaging import AVERAGING
from disam_jax.dg.training.config import BATCHES, OPTIMIZERS, FineTuneConfig, TrainConfig
from disam_jax.dg.training.schedules import SCHEDULES

if TYPE_CHECKING:
    Model = Peft = Criterion = Average = Batches = OptimizerName = LogName = ScheduleName = Save = str
else:
    Model = literal_type_from_choices(MODELS)
    Peft = literal_type_from_choices(FINETUNING)
    Criterion = literal_type_from_choices(CRITERIA)
    Average = literal_type_from_choices(AVERAGING)
    Batches = literal_type_from_choices(BATCHES)
    OptimizerName = literal_type_from_choices(OPTIMIZERS)
    LogName = literal_type_from_choices(LOGS)
    ScheduleName = literal_type_from_choices(SCHEDULES)
    Save = literal_type_from_choices(SAVES)


def _braces(names: Iterable[str]) -> str:
    return f"{{{','.join(names)}}}"


def _data_sets(in_memory: bool) -> str:
    return ", ".join(option_name(name) for name, entry in DATASETS.items() if (entry.load is not None) == in_memory)


DATA_HELP = (
    f"What to train on: {_data_sets(True)}; {_data_sets(False)} (in --data-dir, as DomainBed stores them); a folder of "
    "DIR/domain/class/*.jpg (or .jpeg, .png); an .npz file of arrays x, y, domain."
)


@dataclass(frozen=True)
class DataOptions:
    """What to train on."""

    data: Annotated[str, arg(metavar="NAME|PATH", help=DATA_HELP)] = "digits"

    data_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """DomainBed's data folder, for data sets given by name."""

    split_files: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: 80/20 by seed)")] = None
    """Folder of text lists that say which images train and which validate."""

    duplicates: Annotated[
        Path | None, arg(metavar="FILE", help_behavior_hint="(default: the one beside the images)")
    ] = None
    """DomainNet's list of images to leave out."""

    allow_missing_classes: bool = False
    """Accept an .npz file in which a domain lacks a class that another one has."""

    image_size: Annotated[
        int | None,
        arg(
            metavar="PIXELS",
            help_behavior_hint="(default: 64; 128 for efficientnets; the checkpoint's for clip and vit)",
        ),
    ] = None
    """Side to which images are scaled; a multiple of 4 for --model mlp and linear."""

    stream: Annotated[bool, arg(help_behavior_hint="(default: if their pixels take more than --memory)")] = False
    """Read images from disk as they are needed, for conv and resnets. The results are the same."""

    leave_out: Annotated[tuple[str, ...], arg(metavar="DOMAIN [DOMAIN ...]", help_behavior_hint="(default: none)")] = ()
    """Domains that are neither trained on nor measured, as for leave-one-domain-out selection."""

    target: Annotated[
        tuple[str, ...],
        arg(metavar="DOMAIN [DOMAIN ...]", help_behavior_hint="(default: each in turn)"),
    ] = ()
    """Domains to hold out, each in turn."""


@dataclass(frozen=True)
class MethodOptions:
    """What is compared."""

    method: Annotated[tuple[str, ...], arg(metavar="METHOD [METHOD ...]")] = ("erm", "sam", "disam-std")
    """Methods to train, also separated by commas. `all` for those of the paper and of its comparisons, `bases` for all
    that do not perturb, `everything` for all but the controls. See `disam-jax list`."""

    penalty: Annotated[
        Literal["variance", "std"] | None,
        arg(metavar="{variance,std}", help_behavior_hint="(default: that of each method's name)"),
    ] = None
    """Penalty of every DISAM method: variance, the paper's, makes disam of disam-std; std, the scale-free one that we
    recommend, makes disam-std of disam."""

    lam: Annotated[
        float | None,
        arg(metavar="FLOAT", help_behavior_hint="(default: 1, 0.4 for the std penalty)"),
    ] = None
    """Weight of the penalty in DISAM's ascent objective; negative for a control of wrong sign."""


@dataclass(frozen=True)
class ModelOptions:
    """The network, and what is trained of it."""

    model: Model = TrainConfig.model
    """Network. mlp and linear get images as 176 features, the others get pixels; resnets have a stem for small images
    up to 64 pixels. clip and vit need a --checkpoint, resnets take one, efficientnets come with ImageNet weights (extra
    imagenet)."""

    checkpoint: Annotated[
        str | None, arg(metavar="PATH|REPO", help_behavior_hint="(default: the model's own, or none)")
    ] = None
    """Pretrained weights: a folder with model.safetensors and config.json as Hugging Face has them, a .safetensors
    file, or the name of a repository there, as in openai/clip-vit-base-patch16."""

    revision: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: main)")] = None
    """Branch, tag or commit of a repository."""

    peft: Annotated[
        Peft | None,
        arg(metavar=_braces(FINETUNING), help_behavior_hint="(default: coop for clip, else full)"),
    ] = None
    """What to train of a checkpoint: everything, a linear head, low-rank updates of the projections, the context of
    CLIP's prompts, or the scales of normalisations and all biases. Only these variables are perturbed."""

    context: Annotated[int, arg(metavar="N")] = FineTuneConfig.context
    """Number of learned context vectors, for --peft coop."""

    class_contexts: bool = FineTuneConfig.class_contexts
    """Learn a separate context for each class."""

    context_words: Annotated[str, arg(metavar="WORDS", help_behavior_hint="(default: random vectors)")] = (
        FineTuneConfig.context_words
    )
    """Words from which the context starts, such as "a photo of a"; they determine its length."""

    rank: Annotated[int, arg(metavar="N")] = FineTuneConfig.rank
    """Rank of the updates, for --peft lora."""

    template: Annotated[str, arg(metavar="SENTENCE")] = FineTuneConfig.template
    """Sentence that CLIP reads for a class if the prompt is not learned: zero-shot, lora, norm-bias and full."""

    cache_features: Annotated[
        bool | None, arg(help_behavior_hint="(default: for probe and coop, without --augment)")
    ] = None
    """Compute the features of a frozen image tower once."""

    train_from: Annotated[str, arg(metavar="STAGE", help_behavior_hint="(default: the whole tower is run)")] = (
        FineTuneConfig.train_from
    )
    """Train the image tower from this stage on. The part before it is frozen, and its activations are computed once
    and kept on disk. Stages are layer1 to layer4 of resnets, blocks.0 to blocks.6 of efficientnets, layers.0,
    layers.1, ... of vit and clip, and head or classifier of any."""

    cache_dtype: Literal["float32", "float16"] = FineTuneConfig.cache_dtype
    """Type of the kept activations; float16 takes half the memory and rounds to 3 digits."""

    views: Annotated[int, arg(metavar="K")] = FineTuneConfig.views
    """Number of augmented views of each image, for --train-from with --augment."""

    cache: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: disam-jax in the user's cache)")] = (
        None
    )
    """Folder in which --train-from keeps activations, for later runs too."""


@dataclass(frozen=True)
class OpenClassOptions:
    """Which classes are trained on."""

    open_class: bool = False
    """Train on base classes and measure new classes too: base, new and their harmonic mean. For clip."""

    base_classes: Annotated[
        tuple[str, ...], arg(metavar="CLASS [CLASS ...]", help_behavior_hint="(default: the first half)")
    ] = ()
    """Classes to train on, with --open-class."""


@dataclass(frozen=True)
class OptimizerOptions:
    """How a run is trained."""

    rho: Annotated[
        float | None,
        arg(metavar="FLOAT", help_behavior_hint="(default: 0.1 for digits, 0.5 for features, 0.05 for pixels)"),
    ] = None
    """Length of the perturbation; adaptive methods use ten times this value."""

    learning_rate: Annotated[
        float | None,
        arg(metavar="FLOAT", help_behavior_hint="(default: by data and optimizer)"),
    ] = None
    """Learning rate of the optimizer."""

    weight_decay: Annotated[float, arg(metavar="FLOAT")] = TrainConfig.weight_decay
    """Factor of the weights that is added to the gradient."""

    optimizer: Annotated[
        OptimizerName | None,
        arg(
            metavar=_braces(OPTIMIZERS),
            help_behavior_hint="(default: sgd; adam for resnets, and for checkpoints but coop)",
        ),
    ] = None
    """Stochastic gradient descent with momentum 0.9, or Adam."""

    augment: bool = TrainConfig.augment
    """Augment images by random crops, flips, colours and grey, for pixels."""

    dropout: Annotated[float, arg(metavar="FLOAT")] = TrainConfig.dropout
    """Probability of dropout before the last layer."""

    norm: Annotated[
        Literal["none", "batch", "group"] | None,
        arg(metavar="{none,batch,group}", help_behavior_hint="(default: batch)"),
    ] = None
    """Normalisation of --model conv."""

    frozen_norm: bool = TrainConfig.frozen_norm
    """Batch normalisation with fixed statistics, as in DomainBed; for pretrained networks."""

    per_domain: Annotated[int, arg(metavar="N")] = TrainConfig.per_domain
    """Number of examples of each source domain in a batch."""

    steps: Annotated[
        int | None,
        arg(
            metavar="N",
            help_behavior_hint="(default: 400 for digits, 2000 for features, 600 for pixels, 500 with a checkpoint)",
        ),
    ] = None
    """Optimizer steps of each run."""

    memory: Annotated[
        float | None,
        arg(metavar="GIB", help_behavior_hint="(default: half of what is free)"),
    ] = None
    """Memory that a program may take on each device. If the runs do not fit, fewer share a program."""

    compilation_cache: bool = True
    """Keep compiled programs in the user's cache, so that a sweep that continues does not compile them again. If
    JAX_COMPILATION_CACHE_DIR is set, they are kept there."""


@dataclass(frozen=True)
class TrainingOptions(OptimizerOptions, ModelOptions, DataOptions):
    """What all commands that train have in common."""


# --help shows the options of the last base first.
@dataclass(frozen=True)
class Compare(TrainingOptions, OpenClassOptions, ModelOptions, MethodOptions, DataOptions):
    """Train methods by leave-one-domain-out and print how they differ.

    By default ERM, SAM and DISAM with the std penalty at lam 0.4, on scikit-learn's handwritten digits under six
    shifts: nothing is downloaded, and it takes about half a minute.

    Every method starts from the same weights and sees the same batches. Prints one table and writes the report: one
    page report.html, tables, figures, results.json, and every run in results.jsonl. After an interruption the same
    command continues where it was. With more seeds, methods, targets or candidates it adds the missing runs. If --out
    holds results of anything else, nothing is done.
    """

    candidates: Annotated[int, arg(metavar="N")] = 1
    """Choices of hyperparameters for each method, target and seed: the defaults, and N - 1 random draws from
    DomainBed's ranges (ours for rho, lam and SGD), the same draws for every method."""

    draws: Literal["shared", "by-seed"] = "shared"
    """Whether all seeds share the random draws, which pairs the seeds of a candidate, or each seed has its own, as each
    trial has in DomainBed."""

    search: Annotated[
        tuple[Literal["per-domain", "dropout"], ...], arg(metavar="NAME [...]", help_behavior_hint="(default: neither)")
    ] = ()
    """What --candidates draws too, from DomainBed's ranges: per-domain, the examples of each source domain in a batch,
    and dropout. Each pair of values is a program of its own, which takes time to compile."""

    grid: Annotated[tuple[str, ...], arg(metavar="NAME=V,V,... [...]")] = ()
    """Use all combinations of these values instead of random draws: `--grid rho=0.05,0.1,0.2 lam=-1,0,1`."""

    select: Criterion = "last"
    """Which point of training and which candidate the printed table reports: the best by the source domains' validation
    splits, the best by the target's, or the last step of the defaults. The report has all three. The folder keeps the
    first one that it is given, and puts the tables of another one into a folder of their own."""

    save: Save = "none"
    """Keep models for predict and evaluate, in the folder models of --out: the last step of every run, or for each
    method, target and seed the candidate and point that the accuracy on the source domains' validation splits chooses.
    The same command with another --save later trains only the runs whose model is missing."""

    batches: Batches = TrainConfig.batches
    """What a batch is: as many examples of each source domain, drawn with replacement as in DomainBed; or merged, a
    fixed number of examples of all source domains together, shuffled in each epoch as the DISAM paper trains. For ERM
    and the sharpness-aware methods."""

    batch_size: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: --per-domain of each source domain)")
    ] = None
    """Examples in a merged batch."""

    epochs: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: by --steps)")] = None
    """Train for N epochs of merged batches, in the place of --steps."""

    averaging: Average = TrainConfig.averaging
    """How to average the weights along training, for every method."""

    seeds: Annotated[tuple[str, ...], arg(metavar="N|A..B|A B C")] = ("10",)
    """Seeds, at least 2: 20 means the first twenty, 3..9 those from 3 to 9, and 0 4 7 these three."""

    evaluations: Annotated[int, arg(metavar="N")] = TrainConfig.evaluations
    """How many times runs are measured along training."""

    eval_every: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: by --evaluations)")] = None
    """Measure runs every N steps, and after the last one."""

    schedule: ScheduleName = TrainConfig.schedule
    """How the learning rate changes along a run: not at all, down to zero as a cosine, or to a tenth after half of the
    steps and a hundredth after three quarters."""

    warmup: Annotated[float, arg(metavar="N|SHARE")] = TrainConfig.warmup
    """Steps over which the learning rate first rises from nearly zero; below 1, their share of all steps."""

    fraction: float = TrainConfig.fraction
    """Share of each domain's examples that methods with a rho perturb. A step then costs 1 + FLOAT plain steps instead
    of 2. The other examples have the plain gradient, so use a larger rho."""

    begin: Annotated[float, arg(metavar="N|SHARE")] = TrainConfig.begin
    """First step that perturbs; below 1, its share of all steps. The steps before it are plain, at their cost."""

    dtype: Literal["float32", "bfloat16"] = TrainConfig.dtype
    """Type in which the network computes. Its parameters, the optimizer, logits and losses are always float32."""

    remat: bool = TrainConfig.remat
    """Recompute the activations inside blocks for the gradient: less memory, a third more work. For resnets,
    efficientnets, clip and vit."""

    data_parallel: bool = TrainConfig.data_parallel
    """Split each batch over all devices instead of training a run on each, for a model that is too large for one."""

    keep_logits: bool = TrainConfig.keep_logits
    """Keep the logits of the target's examples at the points of training that --select can choose, so that the report
    has every metric without training again. A run takes at most 4 bytes for each example and class."""

    runs_at_once: Annotated[
        int | None,
        arg(
            metavar="N",
            help_behavior_hint="(default: 8 on each core, 1 for pixels; 256 on each accelerator, 32 for pixels)",
        ),
    ] = None
    """Largest number of runs that are trained at once, on all devices. A run has the same numbers, bit for bit, in all
    sweeps with equally many runs on each device."""

    checkpoint_every: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: interrupted runs start again)")
    ] = None
    """Save the runs in training to --out every N steps, so that the same command continues there after an interruption.
    If the data are in memory, this happens at the next measurement. The checkpoints of finished runs are removed."""

    workers: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: this process trains)")] = None
    """Train in N processes on this machine, each with its share of the cores or its own accelerator. Extra cluster."""

    scheduler: Annotated[str | None, arg(metavar="tcp://HOST:PORT", help_behavior_hint="")] = None
    """Train on the workers of a running Dask cluster."""

    scheduler_file: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """The same, given by the file that its scheduler wrote."""

    shard: Annotated[str | None, arg(metavar="I/N|auto", help_behavior_hint="(default: all runs)")] = None
    """Train one of N shards of the runs, with I from 0, in an --out of its own, for machines that share no network.
    `auto` reads the index of the job from an array of SLURM or an indexed job of Kubernetes. `disam-jax merge` merges
    the shards."""

    dry_run: bool = False
    """Say what would be run, and check what can be checked without training. Nothing is written."""

    out: Annotated[Path, arg(metavar="DIR")] = Path("disam-jax-results")
    """Folder for the files, created if it does not exist."""

    log: Annotated[tuple[LogName, ...], arg(metavar=f"{_braces(LOGS)} [...]", help_behavior_hint="")] = ()
    """Where to log the losses and accuracies of each run along training, when its chunk is finished: event files in
    a folder `tensorboard` of --out (extra tensorboard), or Weights & Biases (package wandb)."""

    overwrite: bool = False
    """If --out holds results of something else, move them into a folder earlier-1 inside it and start again."""


@dataclass(frozen=True)
class Sweep(Compare):
    """Train many runs, resumably: all methods, tuned at equal budgets.

    The same as compare, with other defaults. Kill it at any moment and start the same command again: it continues where
    it was and ends with the same tables.
    """

    method: Annotated[tuple[str, ...], arg(metavar="METHOD [METHOD ...]")] = ("all",)
    candidates: Annotated[int, arg(metavar="N")] = 5
    select: Criterion = "validation"
    seeds: Annotated[tuple[str, ...], arg(metavar="N|A..B|A B C")] = ("20",)
    evaluations: Annotated[int, arg(metavar="N")] = 10
    out: Annotated[Path, arg(metavar="DIR")] = Path("disam-jax-sweep")


@dataclass(frozen=True)
class Diagnose(TrainingOptions):
    """Forecast, before training, whether DISAM gains over SAM on a data set.

    Trains a short plain trial for each held-out domain, a tenth of a run's steps, and measures on the source domains
    alone how much their losses and gradients differ. Prints these signals, the gain that they predict in points of
    held-out accuracy, and how reliable such forecasts are. --out writes signals.csv and diagnosis.json.
    """

    method: Annotated[str, arg(metavar="METHOD")] = "DISAM-std"
    """Method whose gain over SAM is forecast: DISAM or DISAM-std."""

    memory: Annotated[float | None, arg(metavar="GIB", help_behavior_hint="(default: half of all memory)")] = None
    """Images whose pixels take more memory than this are read from their files as they are needed."""

    seeds: Annotated[int, arg(metavar="N")] = 3
    """Number of trials of each held-out domain, at least 2."""

    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: no files)")] = None
    """Folder for the files, created if it does not exist."""


@dataclass(frozen=True)
class Predict:
    """Classify images or arrays with a model that --save kept, and write a CSV file.

    It has a row for each example: its file, or its row in the array; its class; and the probability of each class.
    """

    model: Annotated[Positional[Path], arg(metavar="MODEL")]
    """One of the two files of a model, NAME.json or NAME.safetensors."""

    data: Annotated[str, arg(metavar="DIR|FILE.npz")]
    """Folder of images, with or without class folders, or an .npz file with an array x."""

    out: Annotated[Path, arg(metavar="FILE")] = Path("predictions.csv")
    """File to write."""

    batch: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: as many as take 4 MiB, 32 to 4096)")
    ] = None
    """Examples at a time."""


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a model that --save kept on its held-out domain or on a new one.

    Prints accuracy and loss with standard errors. For the domain that the model's sweep held out, prints those of its
    two splits too; the tables report the training split.
    """

    model: Annotated[Positional[Path], arg(metavar="MODEL")]
    """One of the two files of a model, NAME.json or NAME.safetensors."""

    data: Annotated[str, arg(metavar="DIR|FILE.npz|NAME")]
    """Folder of DIR/class/*.jpg, an .npz file of arrays x and y, or a built-in data set."""

    domain: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the model's target)")] = None
    """Domain to evaluate on, if the data have several: a folder in DIR, or a value of the array domain."""

    batch: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: as many as take 4 MiB, 32 to 4096)")
    ] = None
    """Examples at a time."""

    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: no file)")] = None
    """JSON file for the printed numbers with all digits."""


@dataclass(frozen=True)
class Report:
    """Make the tables and figures of a folder's results again, also while the sweep runs."""

    folder: Annotated[Positional[Path | None], arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder with results.jsonl."""

    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """The same folder, given as an option."""

    select: Annotated[
        Criterion | None,
        arg(metavar=_braces(CRITERIA), help_behavior_hint="(default: as when the runs were trained)"),
    ] = None
    """Which point of training and which candidate to report. A choice other than the folder's own goes into a folder
    of its own, inside."""

    metrics: Annotated[
        tuple[str, ...], arg(metavar="NAME [NAME ...]", help_behavior_hint="(default: all, where logits were kept)")
    ] = ()
    """Metrics of the logits that --keep-logits kept, also separated by commas; `none` for none. See
    `disam-jax list`."""


@dataclass(frozen=True)
class Merge:
    """Merge the folders of all shards of a sweep. The tables are those of one process.

    The folders must have the same data, setting and runs. A missing or duplicate run is an error.
    """

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR DIR [DIR ...]")]
    """Folders that `sweep --shard I/N` wrote, in any order."""

    out: Annotated[Path, arg(metavar="DIR")]
    """New folder for the merged results."""

    select: Annotated[
        Criterion | None,
        arg(metavar=_braces(CRITERIA), help_behavior_hint="(default: as when the runs were trained)"),
    ] = None
    """Which point of training and which candidate to report."""


@dataclass(frozen=True)
class Status:
    """Say how many runs of a sweep are done, missing and diverged, and how long the rest takes; also while it runs."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """Folder with results.jsonl."""


@dataclass(frozen=True)
class Data:
    """Fetch a data set from its public Git repository and write it in a form that --data reads.

    One commit is fetched and kept in the cache. The numbers of examples and the checksum of the written files are
    compared with the known ones, and printed with the licence and the papers to cite. Needs the program git.
    """

    name: Annotated[Positional[str], arg(metavar=_braces(SOURCES))]
    """Data set to fetch. See `disam-jax list`."""

    to: Annotated[Path, arg(metavar="DIR")]
    """Folder to write to, empty or new: DIR/domain/class/image, or DIR/name.npz for a table."""

    image_size: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="(default: as they are)")] = None
    """Side to which images are scaled; they become JPEG files of quality 88."""

    source: Annotated[
        str | None, arg(metavar="URL|DIR", help_behavior_hint="(default: the known address of the data set)")
    ] = None
    """Another copy of the repository, for example a clone; it must have the same commit."""

    cache: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: ~/.cache/disam-jax)")] = None
    """Folder in which fetched commits are kept."""


@dataclass(frozen=True)
class List:
    """List the methods, networks and data sets."""
