import dataclasses
import re
import time

import numpy as np
import pytest
from PIL import Image

from disam_jax.dg.cli import main as cli
from disam_jax.dg.data import digits, domainbed, folder
from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.load import fingerprint, list_data, open_data
from disam_jax.dg.data.registry import DATASETS
from disam_jax.dg.errors import InputError


def save_image(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)).save(path)


def same(one: Domains, other: Domains):
    np.testing.assert_array_equal(one.inputs, other.inputs)
    np.testing.assert_array_equal(one.labels, other.labels)
    assert (one.name, one.domain_names, one.class_names) == (other.name, other.domain_names, other.class_names)


@pytest.fixture
def pacs(tmp_path):
    for d, domain in enumerate(domainbed.PACS.domain_names):
        for c, name in enumerate(domainbed.PACS.class_names):
            (tmp_path / "data" / "PACS" / domain / name).mkdir(parents=True)
            save_image(tmp_path / "data" / "PACS" / domain / name / "1.jpg", seed=10 * d + c)
    return tmp_path / "data"


def test_the_names():
    assert list(DATASETS) == [
        "digits",
        "digits-rotated",
        "PACS",
        "VLCS",
        "OfficeHome",
        "TerraIncognita",
        "DomainNet",
    ]


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("digits", digits.load_digits),
        ("Digits", digits.load_digits),
        ("digits-rotated", digits.load_rotated_digits),
    ],
)
def test_digits_by_name(name, load):
    same(open_data(name), load())


@pytest.mark.parametrize("name", ["PACS", "pacs"])
def test_a_layout_by_name(pacs, name):
    data = open_data(name, data_dir=pacs, image_size=8, features=False)
    assert data.name == "PACS"
    same(data, folder.load_images(domainbed.list_layout("pacs", pacs), 8))
    assert list_data(name, data_dir=pacs) == domainbed.list_layout("pacs", pacs)


def test_a_folder_by_its_path(image_folder):
    seen = []
    data = open_data(str(image_folder), image_size=8, on_progress=lambda done, total: seen.append((done, total)))
    same(data, folder.load_features(folder.list_images(image_folder), 8))
    assert seen[-1] == (18, 18)
    assert open_data(str(image_folder), image_size=12, features=False).inputs.shape == (18, 12, 12, 3)


def test_arrays_by_their_path(tmp_path):
    path = tmp_path / "toy.npz"
    np.savez(path, x=np.ones((4, 2)), y=[0, 1, 0, 0], domain=[0, 0, 1, 1])
    with pytest.raises(InputError, match="class 1 is missing in domain 1"):
        open_data(str(path))
    data = open_data(str(path), allow_missing_classes=True)
    assert (data.name, data.counts.tolist()) == ("toy", [2, 2])


def test_a_name_goes_before_a_folder_of_that_name(image_folder, monkeypatch):
    image_folder.rename(image_folder.parent / "digits")
    monkeypatch.chdir(image_folder.parent)
    assert len(open_data("digits").labels) == 1797
    assert len(open_data("./digits", image_size=8).labels) == 18


def test_split_files_and_duplicates_are_passed_on(pacs, tmp_path):
    for path in list(pacs.rglob("1.jpg")):
        save_image(path.with_name("2.jpg"), seed=0)
    root = pacs / "PACS"
    (tmp_path / "lists").mkdir()
    for part, k in (("train", 1), ("val", 2)):
        lines = [path.relative_to(root).as_posix() for path in root.rglob(f"{k}.jpg")]
        (tmp_path / "lists" / f"{part}.txt").write_text("\n".join(lines))
    data = open_data("pacs", data_dir=pacs, image_size=8, split_files=tmp_path / "lists")
    assert data.validation.tolist() == [False, True] * 28
    with pytest.raises(InputError, match="PACS has no list of duplicates"):
        open_data("pacs", data_dir=pacs, duplicates=tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnist", {}, "mnist is neither a known name nor a folder: write one of digits, digits-rotated, PACS, VLCS"),
        ("{tmp}/none", {}, "{tmp}/none is neither a known name nor a folder"),
        ("{tmp}/x.csv", {}, "{tmp}/x.csv is a file, but no .npz file: write"),
        ("{tmp}/x.npz", {}, "cannot read {tmp}/x.npz: No such file"),
        ("{tmp}", {}, "{tmp} has no domain"),
        (
            "PACS",
            {},
            r"PACS is read from a data directory: give --data-dir DIR .*that holds PACS/; .*https://github.com/facebookresearch/DomainBed",
        ),
        ("domain_net", {"data_dir": "{tmp}"}, "no DomainNet in {tmp}: expected {tmp}/domain_net"),
        ("digits", {"split_files": "{tmp}"}, "digits is not a folder of images and has no split files"),
        ("digits", {"duplicates": "{tmp}"}, "digits is not a folder of images and has no list of duplicates"),
        ("{tmp}", {"duplicates": "{tmp}"}, "{tmp} has no list of duplicates"),
    ],
)
def test_what_cannot_be_opened_is_named(tmp_path, name, options, message):
    (tmp_path / "x.csv").touch()
    options = {key: type(tmp_path)(value.replace("{tmp}", str(tmp_path))) for key, value in options.items()}
    with pytest.raises(InputError, match=message.replace("{tmp}", re.escape(str(tmp_path)))):
        open_data(name.replace("{tmp}", str(tmp_path)), **options)


@pytest.mark.parametrize("name", domainbed.layouts())
@pytest.mark.parametrize("form", [str, str.lower])
def test_a_data_set_by_name_without_its_folder_says_what_to_give_and_where_to_get_it(
    tmp_path, monkeypatch, capsys, name, form
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", "--data", form(name)]) == 2
    error = capsys.readouterr().err
    assert f"{name} is read from a data directory: give --data-dir DIR" in error
    assert f"the folder that holds {domainbed.DATASETS[name].layout.folder}/" in error
    assert "https://github.com/facebookresearch/DomainBed" in error
    assert "./" not in error
    # The name goes before the folder.
    (tmp_path / form(name)).mkdir()
    assert cli.main(["compare", "--data", form(name)]) == 2
    assert f"for the folder of that name here write ./{form(name)}" in capsys.readouterr().err


@pytest.mark.parametrize("data_dir", ["empty", "nothing"])
def test_a_data_folder_without_the_data_set_says_where_to_get_it(tmp_path, data_dir):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"{tmp_path / data_dir}.*https://github.com/facebookresearch/DomainBed"):
        open_data("pacs", data_dir=tmp_path / data_dir)


@pytest.mark.parametrize("data", ["digits", "digits-rotated", "{folder}", "{tmp}/x.npz"])
def test_a_data_folder_for_other_data_is_refused_and_not_ignored(tmp_path, image_folder, data):
    np.savez(tmp_path / "x.npz", x=np.ones((4, 2)), y=[0, 1, 0, 1], domain=[0, 0, 1, 1])
    data = data.format(folder=image_folder, tmp=tmp_path)
    with pytest.raises(InputError, match=f"--data-dir {tmp_path} is for PACS, VLCS, .*but the data is {data}$"):
        open_data(data, data_dir=tmp_path, image_size=8)


@pytest.mark.parametrize(("given", "meant"), [("pac", "PACS"), ("digit", "digits"), ("ofice_home", "OfficeHome")])
def test_a_name_that_is_unknown_by_a_hair_is_named_with_the_one_there_is(tmp_path, monkeypatch, given, meant):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"{given} is neither a known name nor a folder: .*; is {meant} meant\?"):
        open_data(given)


@pytest.mark.slow
def test_compare_twice_where_the_data_is_gives_the_same_results(image_folder, monkeypatch):
    monkeypatch.chdir(image_folder)
    command = ["compare", "--data", ".", "--image-size", "8", "--seeds", "2", "--steps", "2", "--method", "erm"]
    tables = []
    for out in ("disam-jax-results", "disam-jax-results", "runs/first", "art/cat/results"):
        assert cli.main([*command, "--evaluations", "1", "--out", out]) == 0
        tables.append((image_folder / out / "accuracy.csv").read_bytes())
    assert len(set(tables)) == 1


def changed(values, place=0):
    values = values.copy()
    values[place] += 1
    return values


@pytest.mark.parametrize(
    "change",
    [
        lambda data: {"inputs": changed(data.inputs, (-1, -1))},
        lambda data: {"inputs": data.inputs.reshape(24, 2, 2)},
        lambda data: {"inputs": data.inputs.view(np.int32)},
        lambda data: {"labels": changed(data.labels, 23)},
        lambda data: {"domain_ids": changed(data.domain_ids, 4)},
        lambda data: {"domain_names": ("a", "b", "d")},
        lambda data: {"domain_names": ("a", "b"), "class_names": ("c", "x", "y", "z")},
        lambda data: {"class_names": ("x", "y", "zz")},
        lambda data: {"validation": np.zeros(24, bool)},
        lambda data: {"validation": changed(np.zeros(24, np.uint8)).astype(bool)},
    ],
)
def test_a_fingerprint_tells_data_apart(toy, change):
    assert fingerprint(dataclasses.replace(toy, **change(toy))) != fingerprint(toy)


def test_a_fingerprint_is_the_same_for_the_same_data(toy):
    copied = dataclasses.replace(toy, inputs=np.asfortranarray(toy.inputs), name="moved")
    assert fingerprint(copied) == fingerprint(toy)
    assert re.fullmatch("[0-9a-f]{16}", fingerprint(toy))


@pytest.mark.slow
def test_a_fingerprint_of_100_megabytes_takes_about_a_second(toy):
    data = dataclasses.replace(toy, inputs=np.zeros((24, 100 * 2**20 // 96), np.float32))
    start = time.process_time()
    fingerprint(data)
    assert time.process_time() - start < 2.0
