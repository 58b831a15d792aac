import dataclasses
import importlib.util
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from synthetic_results import write_results

import disam_jax
from disam_jax.dg.cli import checks, compare
from disam_jax.dg.cli import help as cli_help
from disam_jax.dg.cli import main as cli
from disam_jax.dg.data.registry import DATASETS, find_data_set
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import METHODS, find_methods
from disam_jax.dg.models.registry import MODELS
from disam_jax.dg.report import write
from disam_jax.dg.sweep import hparams
from disam_jax.dg.sweep import run as sweep

FILES = {
    "results.json",
    "results.jsonl",
    "record.json",
    "runs.csv",
    "table.md",
    "domain_losses.png",
    "domain_losses.pdf",
}


def refused(capsys, *arguments):
    """The one line that says why."""
    command = [] if arguments and arguments[0] == "report" else ["compare"]
    assert cli.main([*command, *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("disam-jax: error: ")
    assert printed.err.count("\n") == 1
    assert printed.err.endswith("\n")
    return printed.err


def told(err):
    """Whether only lines of progress were printed, which say first what is run and at the end that it is done."""
    lines = err.splitlines()
    assert all(line.startswith("disam-jax: ") and line.isprintable() for line in lines)
    return " seeds = " in lines[0] and "runs are finished" in lines[-1]


def missing_folder(root):
    shutil.rmtree(root)
    return root


def one_domain(root):
    shutil.rmtree(root / "art")
    shutil.rmtree(root / "photo")
    return root


def no_domain(root):
    shutil.rmtree(root)
    root.mkdir()
    return root


def missing_class(root):
    shutil.rmtree(root / "photo" / "dog")
    return root / "photo" / "dog"


def one_class(root):
    for domain in ("art", "photo", "sketch"):
        shutil.rmtree(root / domain / "dog")
    return root


def empty_class(root):
    folder = root / "sketch" / "cat"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "image.txt").write_text("")
    return folder


def corrupt_image(root):
    path = root / "sketch" / "dog" / "corrupt.jpg"
    path.write_bytes(b"no image")
    return path


def empty_image(root):
    path = root / "art" / "cat" / "empty.png"
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (missing_folder, "is neither a known name nor a folder"),
        (one_domain, "only one domain, sketch"),
        (no_domain, "no domain"),
        (missing_class, "class missing in a domain"),
        (one_class, "only one class, cat"),
        (empty_class, "empty class"),
        (corrupt_image, "cannot read image"),
        (empty_image, "cannot read image"),
    ],
)
def test_a_bad_folder_is_refused(image_folder, tmp_path, capsys, damage, reason):
    named = damage(image_folder)
    message = refused(capsys, "--data", image_folder, "--out", tmp_path / "out")
    assert reason in message
    assert str(named) in message
    assert not (tmp_path / "out").exists()


def test_an_unknown_target_is_refused(image_folder, tmp_path, capsys):
    message = refused(capsys, "--data", image_folder, "--target", "photo", "moon", "--out", tmp_path / "out")
    assert f"unknown --target moon: the domains of {image_folder.name} are art, photo, sketch" in message
    assert "unknown --target moon: the domains of digits are clean" in refused(capsys, "--target", "moon")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--seeds", "1", "--seeds must be at least 2, got 1"),
        ("--seeds", "0", "--seeds must be at least 2, got 0"),
        ("--steps", "0", "--steps must be at least 1, got 0"),
        ("--rho", "-0.1", "--rho must be finite and not negative, got -0.1"),
        ("--rho", "nan", "--rho must be finite"),
        ("--rho", "inf", "--rho must be finite"),
        ("--lam", "nan", "--lam must be finite"),
        ("--learning-rate", "-1", "--learning-rate must be positive and finite, got -1"),
        ("--per-domain", "0", "--per-domain must be at least 1, got 0"),
        ("--candidates", "0", "--candidates must be at least 1, got 0"),
        ("--memory", "0", "--memory must be positive and finite, got 0"),
        ("--runs-at-once", "0", "--runs-at-once must be at least 1, got 0"),
        ("--method", "erm,adam", "unknown --method adam: the methods are ERM, SAM, DISAM"),
        ("--grid", "rho", "--grid rho must be NAME=V,V,..."),
        ("--grid", "rho=a", "--grid rho=a must be NAME=V,V,..."),
        ("--grid", "size=1", "unknown hyperparameter size in --grid: these methods have"),
        ("--grid", "rho=-1", "--grid rho must be finite and not negative, got -1"),
        ("--grid", "lam=nan", "--grid lam must be finite, got nan"),
        ("--model", "conv", "conv"),
        ("--data", "imagenet", "imagenet is neither a known name nor a folder"),
        ("--data", "pacs", "PACS is read from a data directory"),
        ("--image-size", "0", "--image-size must be at least 1, got 0"),
        ("--image-size", "30", "--image-size must be a multiple of 4, at least 8, got 30"),
    ],
)
def test_a_bad_value_is_refused(tmp_path, capsys, option, value, reason):
    assert reason in refused(capsys, option, value, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--norm", "group"], "--model mlp has no norm, got --norm group: it is for conv"),
        (["--norm", "none", "--model", "resnet18"], "--model resnet18 has no norm, got --norm none: it is for conv"),
        (
            ["--frozen-norm", "--model", "linear"],
            "--model linear has no frozen norm, got --frozen-norm: it is for conv, resnet18 and resnet50",
        ),
        (
            ["--augment"],
            "--augment is for pixels, which conv, resnet18, resnet50, "
            "efficientnet_lite0, efficientnet_lite2, clip and vit take: --model is mlp",
        ),
        (["--allow-missing-classes"], "digits is not an .npz file: leave out --allow-missing-classes"),
        (["--image-size", "32"], "digits is not a folder of images: leave out --image-size"),
        (["--remat"], "--remat is for networks of blocks, and what is trained here has none: leave it out"),
        (
            ["--checkpoint-every", "5", "--workers", "2"],
            "--checkpoint-every is for runs in this process, and --workers",
        ),
        (["--data-parallel", "--workers", "2"], "--data-parallel is for runs in this process, and --workers"),
        (["--eval-every", "5", "--evaluations", "3"], "--eval-every and --evaluations exclude each other"),
    ],
)
def test_an_option_without_effect_is_refused(tmp_path, capsys, arguments, message):
    assert message in refused(capsys, *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_augmentation_of_what_is_no_image_is_refused(tmp_path, capsys):
    images = np.zeros((12, 8, 8, 3), np.float32)
    np.savez(tmp_path / "floats.npz", x=images, y=np.arange(12) % 2, domain=np.arange(12) // 4)
    options = ["--data", tmp_path / "floats.npz", "--model", "conv", "--augment", "--out", tmp_path / "out"]
    assert "--augment is for images, uint8 [H, W, 3]" in refused(capsys, *options)


def test_spaces_in_a_name_stay_in_a_message(tmp_path, capsys):
    assert "two  spaces is neither a known name nor a folder" in refused(
        capsys, "--data", "two  spaces", "--out", tmp_path / "out"
    )


def test_a_name_that_is_nearly_right_is_told(capsys):
    assert "; is 'rotation' meant?" in refused(capsys, "--target", "rotatio")
    assert "'Clean' and 'clean' differ in upper and lower case" in refused(capsys, "--target", "Clean")


def test_an_option_has_one_name_from_the_command_line_to_its_use():
    """And, where both have one, one default."""
    import dataclasses
    import inspect

    from disam_jax.dg.cli.options import Compare
    from disam_jax.dg.data.load import open_data
    from disam_jax.dg.peft import finetuning
    from disam_jax.dg.peft.cut import activations_of
    from disam_jax.dg.training.config import FineTuneConfig, TrainConfig

    options = {each.name: each.default for each in dataclasses.fields(Compare)}
    used = {}
    for config in (TrainConfig, FineTuneConfig):
        used |= {each.name: each.default for each in dataclasses.fields(config)}
    for function in (open_data, finetuning.load, activations_of, sweep.run_sweep):
        used |= {each.name: each.default for each in inspect.signature(function).parameters.values()}
    # These become something else: names that are looked up, a plan, bytes, a split of the classes.
    parsed = {"target", "leave_out", "method", "penalty", "candidates", "draws", "search", "grid", "seeds", "memory"}
    where = {"workers", "scheduler", "scheduler_file", "shard", "dry_run", "compilation_cache", "log"}
    assert options.keys() - used.keys() == {*parsed, *where, "open_class", "base_classes"}
    for name in options.keys() & used.keys():
        plain = used[name] not in (dataclasses.MISSING, inspect.Parameter.empty)
        # None: the default depends on the data and the model. The commands differ in what they select.
        if plain and options[name] is not None and name not in ("select", "frozen_norm"):
            assert options[name] == used[name], name


NUMBERS = {
    "--image-size": (8, int),
    "--context": (1, int),
    "--rank": (1, int),
    "--views": (0, int),
    "--rho": (0.0, float),
    "--lam": (None, float),
    "--learning-rate": (1e-30, float),
    "--weight-decay": (0.0, float),
    "--candidates": (1, int),
    "--dropout": (0.0, float),
    "--per-domain": (1, int),
    "--batch-size": (1, int),
    "--epochs": (1, int),
    "--steps": (1, int),
    "--evaluations": (1, int),
    "--eval-every": (1, int),
    "--checkpoint-every": (1, int),
    "--warmup": (0.0, float),
    "--begin": (0.0, float),
    "--fraction": (1e-30, float),
    "--runs-at-once": (1, int),
    "--workers": (1, int),
    "--memory": (1e-30, float),
}
BEYOND_FLOATS = ["nan", "inf", "-inf", "1e300", "-1e300", "1e999"]
BEYOND_INTEGERS = ["-1", str(2**31), str(2**32 + 1), str(2**64), "9" * 20, "-" + "9" * 20, "9" * 400]


def beyond(option):
    """Values of an option that it cannot have."""
    least, kind = NUMBERS[option]
    values = BEYOND_FLOATS if kind is float else BEYOND_INTEGERS
    return [kind(value) for value in (*values, *(["-1"] * (least is not None)), *(["0"] * bool(least)))]


@pytest.mark.parametrize("option", NUMBERS)
def test_a_number_beyond_its_range_is_named(tmp_path, option):
    import dataclasses

    from disam_jax.dg.cli.options import Compare

    for value in beyond(option):
        with pytest.raises(InputError, match=f"^{option} must be ") as error:
            checks.check(dataclasses.replace(Compare(), **{option[2:].replace("-", "_"): value}, out=tmp_path / "out"))
        assert len(str(error.value)) < 150


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--memory", "inf"),
        ("--rho", "1e300"),
        ("--steps", "99999999999999999999"),
        ("--seeds", "9" * 400),
        *(("--seeds", value) for value in ("x", "3..", "..3", "9..3", "3..3", "0 4", "1.5", "", f"0..{2**31}")),
        *(pytest.param(name, str(value), marks=pytest.mark.slow) for name in NUMBERS for value in beyond(name)),
    ],
)
@pytest.mark.parametrize("command", ["compare", pytest.param("sweep", marks=pytest.mark.slow)])
def test_a_number_beyond_its_range_is_refused_before_any_work(tmp_path, capsys, monkeypatch, command, option, value):
    monkeypatch.setattr(compare, "read_data", pytest.fail)
    out = tmp_path / "out"
    assert cli.main([command, option, value, "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"disam-jax: error: {option} must be ")
    assert printed.err.count("\n") == 1
    assert len(printed.err) < 200
    assert not out.exists()


def test_every_option_that_is_a_number_has_a_range():
    import dataclasses
    import typing

    from disam_jax.dg.cli.options import Compare
    from disam_jax.dg.ranges import RANGES

    hints = typing.get_type_hints(Compare)
    numbers = {
        each.name
        for each in dataclasses.fields(Compare)
        if {int, float} & {hints[each.name], *typing.get_args(hints[each.name])}
    }
    assert numbers <= RANGES.keys()
    assert {f"--{name.replace('_', '-')}" for name in numbers} == NUMBERS.keys()


@pytest.mark.parametrize(
    "name",
    dict.fromkeys(
        [
            "learning_rate",
            "weight_decay",
            *(each for m in METHODS.values() for each in m.hparams if each not in ("lam", "descent_lam")),
        ]
    ),
)
def test_a_value_of_a_grid_beyond_its_range_is_refused(name):
    for value in (math.inf, math.nan, 1e300, -0.1):
        with pytest.raises(InputError, match=f"--grid {name} must be "):
            hparams.check_grid({name: (0.1, value)}, METHODS)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--grid", "rho=0.1", "rho=0.2"], "--grid has rho twice"),
        (
            ["--grid", *(f"{name}={','.join(map(str, range(1, 41)))}" for name in ("rho", "lam", "learning_rate"))],
            "64,000",
        ),
        (["--seeds", "10000", "--candidates", "1000"], "runs: take fewer --candidates, --seeds or methods"),
    ],
)
def test_more_than_can_be_run_is_refused(tmp_path, capsys, arguments, reason):
    assert reason in refused(capsys, *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Where what is printed goes.


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


PRINTED = [["list"], ["--help"], ["compare", "--help"], ["diagnose", "--help"], ["report"]]


@pytest.fixture
def results(tmp_path):
    write_results(tmp_path, seeds=3)
    return tmp_path


def arguments_of(command, results, monkeypatch):
    monkeypatch.setattr(write, "report_figures", lambda *_: {})
    return [*command, str(results)] if command == ["report"] else command


@pytest.mark.parametrize("command", PRINTED, ids=" ".join)
def test_a_full_disk_behind_standard_output_is_one_line(results, capsys, monkeypatch, command):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(arguments_of(command, results, monkeypatch)) == 2
        message = "disam-jax: error: cannot write to standard output: No space left on device\n"
        assert capsys.readouterr().err == message
        # Python writes what is left when it ends.
        full.flush()


@pytest.mark.parametrize("command", PRINTED, ids=" ".join)
def test_a_pipe_that_nobody_reads_ends_the_command_quietly(results, capsys, monkeypatch, command):
    with closed_pipe() as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert cli.main(arguments_of(command, results, monkeypatch)) == 141
        assert capsys.readouterr().err == ""


def test_standard_output_that_is_closed_is_no_error(results, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["list"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "status", "lines"), [(">/dev/full", 2, 1), ("| head -1", 141, 0), (">&-", 0, 0)], ids=str
)
def test_what_a_shell_sees(redirection, status, lines):
    command = f"set -o pipefail; {sys.executable} -m disam_jax.dg.cli list {redirection}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    # A quick reader takes all lines before it goes.
    assert done.returncode == status or (status == 141 and done.returncode == 0)
    assert done.stderr.count("\n") == lines


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_are_printed_in_any_encoding(tmp_path, monkeypatch, encoding):
    write_results(tmp_path, domains=("café", "日本", "_a|b"), seeds=3)
    monkeypatch.setattr(write, "report_figures", lambda *_: {})
    with open(tmp_path / "printed", "w", encoding=encoding) as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert cli.main(["report", str(tmp_path)]) == 0
    printed = (tmp_path / "printed").read_text(encoding=encoding)
    assert ("日本" if encoding == "utf-8" else r"\u65e5\u672c") in printed


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["comprae"], "compare"),
        (["compare", "--model", "resnet-18"], "resnet18"),
        (["compare", "--model=resnt50"], "resnet50"),
        (["sweep", "--peft", "probes"], "probe"),
        (["report", "DIR", "--select", "orcale"], "oracle"),
        (["compare", "--method", "erm", "disma"], "DISAM"),
        (["compare", "--data", "digits-rotatd"], "digits-rotated"),
    ],
)
def test_what_is_nearly_a_name_is_told_which(capsys, tmp_path, monkeypatch, arguments, meant):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert re.search(rf"; is '?{meant}'? meant\?$", printed.err)


def test_a_value_that_is_no_name_is_left_to_the_parser():
    cli.check_known(["compare", "--out", "comprae", "--data", "--model", "mlp", "--target", "sweeep"])


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"disam-jax {disam_jax.__version__}\n"


@pytest.mark.parametrize("command", ["compare", "sweep"])
def test_help_has_every_option_once_under_its_subject(capsys, command):
    options = cli.commands()[command]
    assert cli.main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^(\w+):$", printed, re.MULTILINE) == [*cli_help.SUBJECTS, "examples"]
    names = re.findall(r"^  --([a-z-]+)", printed, re.MULTILINE)
    assert sorted(names) == sorted(each.name.replace("_", "-") for each in dataclasses.fields(options))
    assert cli_help.APART.keys() <= {each.name for each in dataclasses.fields(options)}
    examples = re.findall(r"^  disam-jax (.*?)  +#", printed, re.MULTILINE)
    assert len(examples) == len(cli_help.EXAMPLES[command])
    for example in examples:
        assert isinstance(cli.parse(example.split()), options)


@pytest.mark.parametrize("arguments", [[], ["compare", "--steps", "x"], ["compare", "--nothing"], ["other"]])
def test_what_cannot_be_parsed_exits_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert capsys.readouterr().out == ""


def test_an_out_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert f"{tmp_path / 'out'} is not a folder" in refused(capsys, "--out", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "skimage" else found(name))
    message = refused(capsys, "--out", tmp_path / "out")
    assert 'the package skimage is missing: pip install "disam-jax[dg]"' in message


def test_a_package_that_fails_to_import_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert 'tyro is missing: pip install "disam-jax[dg]"' in refused(capsys)


def test_a_missing_package_that_is_not_ours_to_name_is_not_hidden(monkeypatch):
    def broken(arguments):
        raise ModuleNotFoundError("no", name="something_else")

    monkeypatch.setattr(cli, "run", broken)
    with pytest.raises(ModuleNotFoundError):
        cli.main([])


def test_an_interruption_keeps_what_was_finished(tmp_path, capsys, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_sweep", interrupted)
    assert cli.main(["compare", "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.startswith("disam-jax: interrupted")


def test_a_report_without_results(tmp_path, capsys):
    assert "cannot read" in refused(capsys, "report", "--out", tmp_path)


def test_the_list_names_everything(capsys):
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    names = {line.split()[0] for line in printed.splitlines() if line.strip()}
    for registry in (METHODS, MODELS, DATASETS):
        assert {*registry} <= names
    # Whatever is listed is taken.
    for name in METHODS:
        assert list(find_methods([name])) == [name]
    for name in DATASETS:
        assert find_data_set(name) == name


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--method", "erm,SAM", "disam"], ["ERM", "SAM", "DISAM"]),
        ([], ["ERM", "SAM", "DISAM-std"]),  # what the documentation recommends
        (["--penalty", "variance"], ["ERM", "SAM", "DISAM"]),
        (["--penalty", "variance", "--method", "disam-std-control,sagm+disam-std"], ["DISAM-control", "SAGM+DISAM"]),
        (["--method", "erm", "disam", "--penalty", "std"], ["ERM", "DISAM-std"]),
        (["--method", "asam+disam", "disam-control", "--penalty", "std"], ["ASAM+DISAM-std", "DISAM-std-control"]),
    ],
)
def test_methods_by_name(arguments, names):
    import tyro

    from disam_jax.dg.cli.options import Compare

    assert list(compare.chosen_methods(tyro.cli(Compare, args=arguments))) == names


def test_help_needs_no_heavy_package():
    code = """
import sys
import disam_jax
from disam_jax.dg.cli import checks, compare
from disam_jax.dg.cli import help as cli_help
from disam_jax.dg.cli import main as cli
for arguments in (["--help"], ["compare", "--help"]):
    try:
        cli.main(arguments)
    except SystemExit as end:
        assert end.code == 0
heavy = {"flax", "matplotlib", "sklearn", "scipy.ndimage", "skimage", "PIL"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("Train methods by leave-one-domain-out") == 2
    assert "--image-size PIXELS" in done.stdout


def test_targets_by_name():
    assert sweep.check_targets((), "abc", "") == (0, 1, 2)
    assert sweep.check_targets("cac", "abc", "") == (2, 0)


@pytest.mark.slow
def test_digits_from_end_to_end(tmp_path, capsys, rendered):
    out = tmp_path / "out"
    arguments = ["compare", "--seeds", "2", "--steps", "3", "--lam", "-0.5", "--out", str(out)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    assert told(printed.err)
    assert max(map(len, printed.out.splitlines())) <= 80
    assert set(os.listdir(out)) >= FILES
    found = json.loads((out / "results.json").read_text())
    assert found["header"]["command"] == "disam-jax " + " ".join(arguments)
    assert found["header"]["candidates"]["DISAM-std"][0]["lam"] == -0.5
    methods = found["criteria"]["last"]["methods"]
    assert np.shape(methods["DISAM-std"]["scores"]["accuracy"]) == (2, 6)
    assert list(found["header"]["data"]["domains"].values()) == [300, 300, 300, 299, 299, 299]
    for name in ("clean", "rotation", "inversion", "blur", "noise", "texture", "mean", "spread at w + e"):
        assert re.search(rf"^ *{re.escape(name)} .*±.*±.*±.*±", printed.out, re.MULTILINE), name
    for sentence in found["findings"]:
        assert sentence in " ".join(printed.out.split())
    assert f"{methods['SAM']['overall']['worst_loss']['mean']:.3f} ±" in printed.out

    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert cli.main(arguments) == 0
    different = {name for name in before if before[name] != (out / name).read_bytes()}
    assert different <= {"record.json", "cost.md", "cost.csv", "cost.tex"}
    capsys.readouterr()
    assert cli.main(["report", "--out", str(out), "--select", "last"]) == 0
    assert (out / "table.md").read_bytes() == before["table.md"]


@pytest.mark.slow
def test_a_folder_from_end_to_end(image_folder, tmp_path, capsys):
    out = tmp_path / "out"
    data = ["--data", str(image_folder), "--image-size", "16", "--target", "sketch", "art", "--penalty", "std"]
    assert cli.main(["compare", *data, "--seeds", "2", "--steps", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert told(printed.err)
    assert printed.out.startswith("pictures, leave one domain out: 2 seeds, 2 steps, rho 0.5, lam 0.4")
    assert set(os.listdir(out)) >= FILES
    found = json.loads((out / "results.json").read_text())
    assert found["targets"] == ["art", "sketch"]  # in the order of the data
    assert found["header"]["data"]["shape"] == [176]
    assert list(found["header"]["methods"]) == ["ERM", "SAM", "DISAM-std"]
    assert "Domain art has" in " ".join(printed.out.split())


@pytest.mark.slow
def test_pixels_from_end_to_end(image_folder, tmp_path, capsys):
    out = tmp_path / "out"
    data = ["--data", str(image_folder), "--image-size", "16", "--target", "sketch", "--model", "conv", "--augment"]
    data += ["--averaging", "ema", "--method", "disam", "--candidates", "2", "--select", "validation"]
    assert cli.main(["compare", *data, "--seeds", "2", "--steps", "2", "--out", str(out)]) == 0
    found = json.loads((out / "results.json").read_text())
    assert found["header"]["data"]["shape"] == [16, 16, 3]
    assert found["header"]["setting"]["augment"] is True


@pytest.mark.slow
def test_arrays_from_end_to_end(tmp_path, capsys, nans_allowed):
    rng = np.random.default_rng(0)
    domain = np.repeat(np.arange(3), 30)
    np.savez(tmp_path / "sites.npz", x=rng.normal(domain[:, None], 1.0, (90, 5)), y=np.arange(90) % 2, domain=domain)
    out = tmp_path / "out"
    arguments = ["--data", str(tmp_path / "sites.npz"), "--seeds", "2", "--steps", "3", "--out", str(out)]
    # Diverged runs are shown.
    assert cli.main(["compare", *arguments, "--method", "sam,disam", "--rho", "1e30"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "sites, leave one domain out" in printed
    assert re.search(r"6 of 6 runs of DISAM diverged \(seeds 0, 1\)", printed)
    assert "Whether DISAM and SAM differ in held-out accuracy cannot be said" in printed
    json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.slow
def test_the_default_run_is_quick_and_shows_its_effect(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "disam_jax.dg.cli", "compare", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Seconds of the processor, which other tests beside this one lengthen less than they do the clock's: 110 alone.
    assert after.ru_utime - before.ru_utime < 300.0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(found["seeds"]) == 10
    last = found["criteria"]["last"]
    for quantity in ("spread", "perturbed_spread"):
        (against_sam,) = (each for each in last["comparisons"][quantity] if each["baseline"] == "SAM")
        assert against_sam["method"] == "DISAM-std"
        assert against_sam["interval"][1] < 0.0
    # It learns, and what it has learned carries over to some of the shifts.
    assert last["methods"]["ERM"]["overall"]["accuracy"]["mean"] > 40.0
    assert last["methods"]["ERM"]["accuracy_by_target"]["mean"][0] > 80.0
