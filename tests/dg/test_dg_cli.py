import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from disam_jax.dg import cli, protocol

FILES = {"results.json", "table.md", "domain_losses.png", "domain_losses.pdf"}


def refused(capsys, *arguments):
    """The one line that says why."""
    assert cli.main(["compare", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("disam-jax: error: ")
    assert printed.err.count("\n") == 1
    assert printed.err.endswith("\n")
    return printed.err


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
        (missing_folder, "no such folder"),
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
    assert f"unknown --target moon: the domains of {image_folder} are art, photo, sketch" in message
    assert "unknown --target moon: the domains of the digits" in refused(capsys, "--target", "moon")
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
        ("--image-size", "0", "--image-size must be a multiple of 4, at least 8, got 0"),
        ("--image-size", "30", "--image-size must be a multiple of 4, at least 8, got 30"),
    ],
)
def test_a_bad_value_is_refused(tmp_path, capsys, option, value, reason):
    assert reason in refused(capsys, option, value, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["compare", "--seeds", "x"], ["compare", "--nothing"], ["other"]])
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


def test_an_interruption_leaves_nothing(tmp_path, capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(protocol, "compare", interrupted)
    assert cli.main(["compare", "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "disam-jax: interrupted\n"
    assert not (tmp_path / "out").exists()


def test_help_needs_no_heavy_package():
    code = """
import sys
from disam_jax.dg import cli
for arguments in (["--help"], ["compare", "--help"]):
    try:
        cli.main(arguments)
    except SystemExit as end:
        assert end.code == 0
heavy = {"matplotlib", "sklearn", "scipy.ndimage", "skimage", "PIL"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("Train ERM, SAM and DISAM by leave-one-domain-out") == 2
    assert "--image-size PIXELS" in done.stdout


def test_target_indices():
    assert cli.target_indices((), "abc", "") == (0, 1, 2)
    assert cli.target_indices("cac", "abc", "") == (2, 0)


def test_digits_from_end_to_end(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["compare", "--seeds", "2", "--steps", "3", "--lam", "-0.5", "--out", str(out)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert max(map(len, printed.out.splitlines())) <= 80
    assert set(os.listdir(out)) == FILES
    found = json.loads((out / "results.json").read_text())
    assert found["command"] == "disam-jax " + " ".join(arguments)
    assert found["methods"]["DISAM"]["lam"] == -0.5
    assert np.shape(found["methods"]["DISAM"]["accuracy"]) == (2, 6)
    assert list(found["data"]["domains"].values()) == [300, 300, 300, 299, 299, 299]
    for name in ("clean", "rotation", "inversion", "blur", "noise", "texture", "mean", "spread at w + e"):
        assert re.search(rf"^ *{re.escape(name)} .*±.*±.*±.*±", printed.out, re.MULTILINE), name
    for sentence in found["findings"]:
        assert sentence in " ".join(printed.out.split())
    mean = found["summary"]["SAM"]["worst_loss"]["mean"]
    assert f"{mean:.3f} ±" in printed.out

    assert cli.main(arguments) == 0
    again = json.loads((out / "results.json").read_text())
    for key in ("methods", "summary", "findings", "settings", "data"):
        assert again[key] == found[key]


@pytest.mark.slow
def test_a_folder_from_end_to_end(image_folder, tmp_path, capsys):
    out = tmp_path / "out"
    data = ["--data", str(image_folder), "--image-size", "16", "--target", "sketch", "art", "--penalty", "std"]
    assert cli.main(["compare", *data, "--seeds", "2", "--steps", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("pictures, leave one domain out: 2 seeds, 2 steps, rho 0.5, lam 0.4")
    assert set(os.listdir(out)) == FILES
    found = json.loads((out / "results.json").read_text())
    assert found["targets"] == ["sketch", "art"]
    assert found["settings"]["penalty"] == "std"
    assert found["settings"]["image_size"] == 16
    assert found["data"]["features"] == 176


def test_a_diverged_run_is_shown(tmp_path, capsys, nans_allowed):
    assert cli.main(["compare", "--seeds", "2", "--steps", "3", "--rho", "1e30", "--out", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"12 of 12 runs of DISAM diverged \(seeds 0, 1\)", printed)
    assert "Whether DISAM and SAM differ in held-out accuracy cannot be said" in printed
    json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.slow
def test_the_default_run_is_quick_and_shows_its_effect(tmp_path):
    began = time.perf_counter()
    command = [sys.executable, "-m", "disam_jax.dg.cli", "compare", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - began < 120.0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(found["seeds"]) == 10
    difference = found["summary"]["DISAM - SAM"]
    assert difference["spread"]["mean"] < -2.0 * difference["spread"]["error"]
    assert difference["perturbed_spread"]["mean"] < -2.0 * difference["perturbed_spread"]["error"]
    # It learns, and what it has learned carries over to some of the shifts.
    assert found["summary"]["ERM"]["accuracy"]["mean"] > 40.0
    assert found["summary"]["ERM"]["accuracy_by_target"]["clean"]["mean"] > 80.0
