"""Models that are kept: another process builds the same network, and evaluates to the numbers of the tables."""

import dataclasses
import functools
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from support import save_image
from timeless import timeless

from disam_jax.dg import load_model
from disam_jax.dg.cli import main as cli
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import METHODS
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.models.stages import front
from disam_jax.dg.peft.features import tower_features
from disam_jax.dg.peft.finetuning import check_finetuning, load, make_networks
from disam_jax.dg.pretrained.tiny import write_tiny_clip, write_tiny_vit
from disam_jax.dg.results import TRAIN, VALIDATION, Run, validation_score
from disam_jax.dg.runners.keep import Keeper
from disam_jax.dg.saving import blueprint, files
from disam_jax.dg.saving.module import by_name
from disam_jax.dg.saving.predict import evaluate
from disam_jax.dg.sweep.merge import merge
from disam_jax.dg.sweep.model_selection import select
from disam_jax.dg.sweep.results_file import load_results
from disam_jax.dg.sweep.results_folder import has_models, set_aside
from disam_jax.dg.sweep.run import Plan, run_sweep
from disam_jax.dg.sweep.shards import Shard
from disam_jax.dg.testing import save_toy_model, toy
from disam_jax.dg.training.config import FineTuneConfig, TrainConfig
from disam_jax.dg.training.evaluation import Metrics

CONFIG = TrainConfig(hidden=4, steps=6, evaluations=3, per_domain=2, standardise=True)
CANDIDATES = [{"learning_rate": rate, "weight_decay": 0.0} for rate in (0.01, 1.0)]


def sweep(folder, data=None, config=CONFIG, seeds=(0, 1), **options):
    """A sweep of two candidates, with its lines."""
    data = toy() if data is None else data
    own = {"hidden": (config.hidden,)} if config.model == "mlp" else {"norm": config.norm}
    network = make_network(config.model, data.inputs.shape[1:], len(data.class_names), **own)
    shard = options.pop("shard", None)
    plan = Plan({"ERM": CANDIDATES}, targets=(0, 2), seeds=seeds, shard=shard)
    lines = []
    results, _ = run_sweep(
        data, network, config, {"ERM": METHODS["ERM"]}, plan, folder, on_line=lines.append, runs_at_once=4, **options
    )
    return results, lines


def models_in(folder):
    return sorted((folder / "models").glob("*.json"))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "models").iterdir())}


def of_arrays(model, data):
    """The target's examples, evaluated."""
    from disam_jax.dg.saving.examples import _of_domain

    return evaluate(model, _of_domain(data, None, model), batch=5)


def measured_of(results, run, point):
    """Accuracy of a run's target on both splits, as the tables have it."""
    return {
        "training": results.accuracy[run, point, TRAIN, results.runs[run].target],
        "validation": results.accuracy[run, point, VALIDATION, results.runs[run].target],
    }


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    folder = tmp_path_factory.mktemp("best")
    results, lines = sweep(folder, save="best")
    return folder, results, lines


# What is kept.


@pytest.mark.slow
def test_the_best_model_is_the_one_that_the_report_selects_and_evaluates_to_its_accuracy(best):
    folder, results, lines = best
    chosen = select(results, "validation")
    assert len(models_in(folder)) == 4
    assert "--save best: 4 models take" in lines[0]
    for seed in (0, 1):
        for place, target in enumerate((0, 2)):
            run, point = (int(each[0, seed, place]) for each in chosen)
            name = toy().domain_names[target]
            model = load_model(folder / "models" / f"ERM-{name}-seed{seed}-best.json")
            assert model.record["run"]["candidate"] == results.runs[run].candidate
            assert model.record["run"]["step"] == results.steps[point]
            assert model.record["data"]["trained_on"] == [each for each in toy().domain_names if each != name]
            found = of_arrays(model, toy())
            for part, accuracy in measured_of(results, run, point).items():
                assert found[part].accuracy == pytest.approx(accuracy, abs=5e-7)
                assert model.record["measured"][name][part]["accuracy"] == accuracy
                assert found[part].loss == pytest.approx(model.record["measured"][name][part]["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_model_that_is_lost_has_its_run_trained_again_and_nothing_else_is(best, tmp_path):
    folder = best[0]
    before, rows = contents(folder), (folder / "results.jsonl").read_bytes()
    lost, torn = models_in(folder)[0].stem, models_in(folder)[2].with_suffix(".safetensors")
    for ending in (".json", ".safetensors"):
        (folder / "models" / (lost + ending)).unlink()
    torn.write_bytes(torn.read_bytes()[:-8])
    _, lines = sweep(folder, save="best")
    assert "the models of 2 runs of ERM are not there: these runs are trained again" in lines
    assert contents(folder) == before
    assert (folder / "results.jsonl").read_bytes() == rows
    assert not [line for line in sweep(folder, save="best")[1] if "trained again" in line]


@pytest.mark.slow
def test_models_of_a_finished_sweep_can_be_had_later_and_of_every_run(best, tmp_path):
    sweep(tmp_path)
    assert not (tmp_path / "models").exists()
    _, lines = sweep(tmp_path, save="best")
    assert "the models of 4 runs of ERM are not there: these runs are trained again" in lines
    assert contents(tmp_path) == contents(best[0])
    sweep(tmp_path, save="last")
    assert len(models_in(tmp_path)) == 4 + 8
    for path in models_in(tmp_path):
        record = load_model(path).record
        if record["saved"]["which"] == "last":
            assert record["run"]["step"] == CONFIG.steps


@pytest.mark.slow
def test_shards_are_merged_with_the_models_of_one_process(best, tmp_path):
    folders = [tmp_path / str(index) for index in range(2)]
    for index, folder in enumerate(folders):
        sweep(folder, shard=Shard(index, 2), save="best")
    merge(folders, tmp_path / "whole")
    assert contents(tmp_path / "whole") == contents(best[0])


@pytest.mark.slow
@pytest.mark.parametrize("averaging", ["ema", "swad"])
def test_an_average_is_what_is_kept(tmp_path, averaging):
    config = TrainConfig(hidden=4, steps=12, evaluations=6, per_domain=2, averaging=averaging)
    results, _ = sweep(tmp_path, config=config, save="last", seeds=(0,))
    for number, run in enumerate(results.runs):
        name = files.model_name(run, toy().domain_names[run.target], "last")
        model = load_model(tmp_path / "models" / f"{name}.safetensors")
        assert model.record["saved"]["weights"] == averaging
        found = of_arrays(model, toy())
        wanted = results.losses[number, -1, TRAIN, run.target]
        assert found["training"].loss == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("stand_in", "said"),
    [
        (lambda out: (out / "models").write_text("mine"), "models, where a file is: move it"),
        (lambda out: foreign(out), "ERM-photo-seed0-best.json is not a model of disam-jax"),
    ],
)
def test_what_is_not_ours_is_not_written_over(tmp_path, stand_in, said):
    stand_in(tmp_path)
    with pytest.raises(InputError, match=said):
        sweep(tmp_path, save="best")
    assert not (tmp_path / "results.jsonl").exists()


def foreign(out):
    (out / "models").mkdir()
    (out / "models" / "ERM-photo-seed0-best.json").write_text('{"mine": 1}')


def test_a_disk_without_room_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(
        InputError, match=r"--save best takes 416 bytes in .*models, where 100 bytes are free: make room"
    ):
        sweep(tmp_path, save="best")


@pytest.mark.slow
def test_a_disk_that_is_full_while_a_model_is_written_loses_nothing(tmp_path):
    # A model of 128 KB at least, which is more than the results take.
    config = dataclasses.replace(CONFIG, hidden=4096)
    sweep(tmp_path / "whole", config=config, save="best")
    (soft, hard), handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        with pytest.raises(InputError, match=r"cannot write the model to .*models: .*; what was finished"):
            sweep(tmp_path / "out", config=config, save="best")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    # The runs of the chunk are in the results, and nothing half written is left.
    assert len(load_results(tmp_path / "out").runs) == 4
    assert models_in(tmp_path / "out") == []
    sweep(tmp_path / "out", config=config, save="best")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert timeless(tmp_path / "out") == timeless(tmp_path / "whole")


def test_models_are_moved_aside_with_their_results(tmp_path):
    record = save_toy_model(tmp_path)
    (tmp_path / "results.jsonl").touch()
    assert has_models(tmp_path)
    aside = set_aside(tmp_path)
    assert (aside / "models" / record.name).exists()
    assert not (tmp_path / "models").exists()
    # A folder of the user's stays.
    (tmp_path / "models").mkdir()
    (tmp_path / "results.jsonl").touch()
    set_aside(tmp_path)
    assert (tmp_path / "models").exists()


def metrics_of(accuracy, losses=None):
    """Of two runs: accuracy of a source and of the target on the validation splits."""
    accuracy = np.stack([np.zeros_like(accuracy), accuracy], 1)
    losses = np.ones_like(accuracy) if losses is None else losses
    return Metrics(accuracy, losses, losses[:, 0], losses[:, 0], None, {})


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ([[0.9, 0.9], [0.5, 0.1], [0.7, 0.1], [0.6, 0.2]], [2, 3]),
        # Ties go to the earlier point, also of what is written in six digits.
        ([[0.0, 0.0], [0.5, 0.5], [0.5, 0.5000001], [0.4, 0.5]], [1, 1]),
        ([[0.0, 0.0], [np.nan, 0.5], [0.5, np.nan], [0.4, 0.5]], [2, 1]),
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_the_point_that_is_kept_is_that_of_the_selection(source, kept, resumed):
    config = TrainConfig(steps=3, evaluations=3)
    runs = [Run("ERM", target=1, seed=0, candidate=candidate, hparams={}) for candidate in range(2)]
    keeper, points = Keeper("best", runs, config), []
    for place, of_source in enumerate(source):
        accuracy = np.array([[each, 1.0] for each in of_source])
        losses = np.where(np.isnan(accuracy), np.nan, 1.0)[:, None].repeat(2, 1)
        points.append(metrics_of(accuracy, losses))
        keeper.before(({"weight": np.full((2, 3), place)}, {}))
        keeper.after(place, points[-1])
        if resumed:
            before, keeper = keeper, Keeper("best", runs, config)
            keeper.resume(before.so_far(), ({"weight": 0}, {}))
    found = keeper.kept({"weight": np.full((2, 3), -1)}, {}, dict)["kept"]
    assert found["point"].tolist() == kept
    assert found["tensors"]["weight"][:, 0].tolist() == kept
    rounded = [np.round(np.stack([getattr(each, name) for each in points], 1), 6) for name in ("accuracy", "losses")]
    for number in range(2):
        scores = [validation_score(*(each[number, point] for each in rounded), target=1) for point in range(1, 4)]
        assert 1 + int(np.argmax(scores)) == kept[number]


def test_nothing_is_carried_where_nothing_is_saved():
    keeper = Keeper("none", [Run("ERM", 0, 0, 0, {})], TrainConfig(steps=3, evaluations=3))
    keeper.before(None)
    keeper.after(1, None)
    assert keeper.kept(None, None, None) == {}


# Pretrained networks.


@functools.cache
def checkpoint(kind, folder):
    return load(kind, (write_tiny_vit if kind == "vit" else write_tiny_clip)(folder))


WAYS = [
    ("vit", FineTuneConfig("lora", rank=2), False),
    ("vit", FineTuneConfig("probe"), False),
    ("vit", FineTuneConfig("probe", cache_features=False), False),
    ("vit", FineTuneConfig("full"), False),
    ("vit", FineTuneConfig("norm-bias", train_from="layers.1", cache_dtype="float16"), False),
    ("vit", FineTuneConfig("full", train_from="classifier"), False),
    ("clip", FineTuneConfig("coop", context=2), False),
    ("clip", FineTuneConfig("coop", context_words="a photo of a", cache_features=False), False),
    ("clip", FineTuneConfig("lora", rank=2, train_from="layers.1"), False),
    ("clip", FineTuneConfig("full", template="a sketch of a {}."), True),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {kind: tmp_path_factory.mktemp(kind) for kind in ("vit", "clip")}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "finetune", "zero_shot"), WAYS, ids=lambda each: getattr(each, "peft", each))
def test_a_pretrained_network_is_built_again_exactly(tmp_path, checkpoints, kind, finetune, zero_shot):
    pretrained, finetune = checkpoint(kind, checkpoints[kind]), check_finetuning(kind, finetune)
    rng = np.random.default_rng(0)
    data = toy(images=True)
    images = rng.integers(256, size=(5, 32, 32, 3), dtype=np.uint8)
    network, untrained = make_networks(pretrained, finetune, data.class_names)
    network = untrained if zero_shot else network
    inputs = {"kind": "images", "shape": [32, 32, 3], "dtype": "uint8", "image_size": 32}
    config = TrainConfig(model=kind, finetune=finetune)
    plan = blueprint.fine_tuned(network, pretrained, config, data, inputs, "tiny", zero_shot)
    random = lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype)
    params, state = jax.tree.map(random, network.init(jax.random.key(0)))
    named = {f"network.{name}": each for tree in (params, state) for name, each in by_name(tree).items()}
    frozen = files.write_frozen(tmp_path, plan.frozen)
    record = {name: dict.fromkeys(inside) for name, (_, inside) in files.FIELDS.items()}
    record |= {"network": dict(plan.made), "classes": list(plan.classes)}
    tensors = {name: named[name] for name in plan.trained}
    files.write_model(tmp_path, "model", {**record, "inputs": inputs, "tensors": {"frozen": frozen}}, tensors)

    @jax.jit
    def expected(images):
        x = images
        if finetune.cache_features:
            x = tower_features(pretrained.tower, pretrained.prepare(x), jax.random.key(0))
        elif finetune.train_from:
            x = front(pretrained.tower, finetune.train_from, pretrained.prepare(x)).astype(finetune.cache_dtype)
        return network.apply(params, state, x, jax.random.key(0), False).logits

    model = load_model(tmp_path / "model.json")
    np.testing.assert_allclose(model(images), expected(images), rtol=1e-5, atol=1e-5)
    assert {*plan.trained}.isdisjoint(plan.frozen)
    # Nothing of the writing process is needed: the names of what it was made of are no paths.
    assert str(checkpoints[kind]) not in (tmp_path / "model.json").read_text()


# Another process.


def write_folder(root):
    """Images that a network can tell apart, of three domains and two classes."""
    for d, domain in enumerate(("art painting", "photo", "sketch")):
        for c, name in enumerate(("cat", "dog")):
            folder = root / domain / name
            folder.mkdir(parents=True)
            for k in range(5 + d):
                save_image(folder / f"{k}.png", seed=100 * d + 10 * c + k)
    return root


SCRIPT = """
import pathlib, sys
from disam_jax.dg.cli.main import main
folder, data = map(pathlib.Path, sys.argv[1:3])
for path in sorted((folder / "models").glob("*.json")):
    target = path.name.split("-")[1].partition("~")[0]
    domain = ["--domain", {"art": "art painting"}.get(target, target)] if data.is_dir() else []
    out = str(path.with_suffix(".evaluated"))
    assert main(["evaluate", str(path), "--data", sys.argv[2], *domain, "--out", out]) == 0
"""


def environment():
    kept = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return {**kept, "PYTHONPATH": str(pathlib.Path(cli.__file__).parents[3])}


CONV = ["--model", "conv", "--image-size", "8", "--steps", "4", "--method", "erm"]
VIT = ["--model", "vit", "--peft", "lora", "--steps", "4", "--method", "erm", "--target", "photo", "--optimizer", "sgd"]
COMMANDS = {
    "digits": ["--method", "disam,erm", "--target", "clean", "rotation", "--steps", "40", "--save", "best"],
    "conv": [*CONV, "--save", "last", "--dtype", "bfloat16", "--target", "art painting", "photo"],
    "streamed": [*CONV, "--save", "best", "--stream", "--target", "art painting"],
    "vit": [*VIT, "--save", "last"],
    "features": ["--steps", "4", "--image-size", "16", "--method", "erm", "--save", "best", "--target", "photo"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_another_process_evaluates_to_the_accuracy_of_the_tables(tmp_path, name, capsys):
    data = "digits" if name == "digits" else str(write_folder(tmp_path / "pictures"))
    command = [*COMMANDS[name], "--data", data, "--seeds", "2", "--evaluations", "2", "--per-domain", "2"]
    if name == "vit":
        command += ["--checkpoint", str(write_tiny_vit(tmp_path / "vit"))]
    out = tmp_path / "out"
    saved = command[command.index("--save") + 1]
    selection = ["--select", "last" if saved == "last" else "validation"]
    assert cli.main(["compare", *command, *selection, "--out", str(out)]) == 0
    if name == "vit":
        for path in (tmp_path / "vit").iterdir():
            path.unlink()
    subprocess.run([sys.executable, "-c", SCRIPT, str(out), data], env=environment(), check=True, capture_output=True)
    results = load_results(out)
    chosen = select(results, "last" if saved == "last" else "validation")
    methods, targets = results.methods, results.targets
    evaluated = sorted((out / "models").glob("*.evaluated"))
    assert len(evaluated) == chosen.run.size
    for path in evaluated:
        record = json.loads(path.with_suffix(".json").read_text())
        run = record["run"]
        target = list(results.domain_names).index(run["target"])
        at = (methods.index(run["method"]), run["seed"], targets.index(target))
        measured = measured_of(results, int(chosen.run[at]), int(chosen.point[at]))
        found = json.loads(path.read_text())["measured"]
        for part in ("training", "validation"):
            # To the last digit that is written down.
            assert float(f"{found[part]['accuracy']:.6g}") == measured[part]
