"""Names of domains and classes: refused before any work where no table can hold them, told apart where similar."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from disam_jax.dg.cli import main as cli
from disam_jax.dg.data import domainbed, folder, names
from disam_jax.dg.data.domains import join_domains
from disam_jax.dg.data.load import list_data
from disam_jax.dg.data.splits import read_split_files
from disam_jax.dg.errors import InputError

NFC, NFD = "caf\u00e9", "cafe\u0301"
BAD = [
    (os.fsdecode(b"caf\xe9"), "is not UTF-8"),
    ("a\ud800", "is not UTF-8"),
    ("two\nlines", "has a line break or control character"),
    ("tab\t", "has a line break or control character"),
    ("\x1b[31mred", "has a line break or control character"),
    ("line\u2028separator", "has a line break or control character"),
    ("  ", "is empty"),
]
ON_DISK = [(name, why) for name, why in BAD if "\ud800" not in name]
GOOD = ["cat", "Real World", NFC, NFD, "日本", "кот", "_background", "$x_1%", "👩\u200d🔬", "l'été", "-1"]


@pytest.fixture
def root(tmp_path):
    for domain in ("a", "b", "c"):
        for name in ("cat", "dog"):
            (tmp_path / "data" / domain / name).mkdir(parents=True)
            (tmp_path / "data" / domain / name / "1.jpg").touch()
    return tmp_path / "data"


def build(root, classes):
    """One empty image for each class, of which each domain has a list of its own."""
    for domain, of_domain in classes.items():
        for name in of_domain:
            (root / domain / name).mkdir(parents=True)
            (root / domain / name / "1.jpg").touch()
    return root


def assert_one_line(message):
    assert message.isprintable()
    message.encode()


@pytest.mark.parametrize(("name", "why"), ON_DISK)
@pytest.mark.parametrize("level", ["a", "a/cat", "."])
def test_a_folder_whose_name_no_table_can_hold_is_refused_before_any_work(root, level, name, why):
    if level == "a/cat":
        for domain in ("b", "c"):
            (root / domain / "cat").rename(root / domain / name)
    moved = (root / level).rename((root / level).parent / name) if level != "." else root.rename(root.parent / name)
    what = {"a": "domain", "a/cat": "class", ".": "data set"}[level]
    with pytest.raises(InputError, match=f"the name of the {what} '.*' {why}: rename ") as caught:
        folder.list_images(moved if level == "." else root)
    assert_one_line(str(caught.value))


@pytest.mark.parametrize("name", GOOD)
def test_any_other_name_is_taken(tmp_path, name):
    listed = folder.list_images(build(tmp_path / name, dict.fromkeys(("a", name), ("cow", name))))
    assert (listed.name, sorted(listed.domain_names), sorted(listed.class_names)) == (
        name,
        sorted(["a", name]),
        sorted(["cow", name]),
    )


@pytest.mark.parametrize(("name", "why"), BAD)
@pytest.mark.parametrize("place", ["name", "domain_names", "class_names"])
def test_names_are_checked_wherever_the_data_comes_from(name, why, place):
    given = {"name": "toy", "domain_names": ["a", "b"], "class_names": ["x", "y"]}
    given[place] = name if place == "name" else [given[place][0], name]
    with pytest.raises(InputError, match=why) as caught:
        join_domains(inputs=[np.zeros((2, 1))] * 2, labels=[np.array([0, 1])] * 2, **given)
    assert_one_line(str(caught.value))


@pytest.mark.parametrize(("name", "why"), ON_DISK)
def test_the_command_line_refuses_in_one_line(root, tmp_path, monkeypatch, capsys, name, why):
    (root / "a").rename(root / name)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", "--data", "data", "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert why in error
    assert_one_line(error.removesuffix("\n").rpartition("\r")[2])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (NFC, NFD, ": {missing!a} and {there!a} differ in the Unicode form of their letters"),
        ("Cat", "cat", ": '{missing}' and '{there}' differ in upper and lower case"),
        ("cat ", "cat", ": '{missing}' and '{there}' differ in spaces"),
        ("hot  dog", "hot dog", ": '{missing}' and '{there}' differ in spaces"),
        ("hot_dog", "hot-dog", ": '{missing}' and '{there}' differ"),
        ("hot dog", "hotdog", "; is '{there}' meant?"),
        ("giraffe", "girafe", "; is '{there}' meant?"),
    ],
)
def test_a_class_that_is_missing_by_a_hair_is_named_with_the_one_that_is_there(tmp_path, one, other, message):
    for there, missing in ((one, other), (other, one)):
        root = build(tmp_path / there, {"a": ("dog", there), "b": ("dog", missing)})
        with pytest.raises(InputError) as caught:
            folder.list_images(root)
        expected = f"class missing in a domain: {root}/a/{missing} does not exist" + message.format(**locals())
        assert str(caught.value) == expected


@pytest.mark.parametrize(("one", "other"), [(NFC, NFD), ("cat", "cat "), ("cat", " cat")])
@pytest.mark.parametrize("what", ["domain", "class"])
def test_two_names_that_look_the_same_are_refused(tmp_path, what, one, other):
    classes = {one: ("x", "y"), other: ("x", "y")} if what == "domain" else dict.fromkeys("ab", (one, other))
    with pytest.raises(InputError, match=f"two names of a {what} look the same: .* differ in "):
        folder.list_images(build(tmp_path, classes))
    given = {"domain_names": "ab", "class_names": "xy"} | {f"{what}_names": (one, other)}
    with pytest.raises(InputError, match=f"two names of a {what} look the same"):
        join_domains("toy", inputs=[np.zeros((2, 1))] * 2, labels=[np.array([0, 1])] * 2, **given)


def test_a_class_that_is_missing_altogether_has_no_hint(tmp_path):
    root = build(tmp_path, {"a": ("cow", "dog"), "b": ("dog",)})
    with pytest.raises(InputError, match=r"b/cow does not exist$"):
        folder.list_images(root)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dog ", "photo/dog  is not a class of PACS: 'dog ' and 'dog' differ in spaces; rename or move it"),
        ("girafe", "photo/girafe is not a class of PACS: 'girafe' and 'giraffe' differ; rename or move it"),
        ("zebra", "photo/zebra is not a class of PACS: move it elsewhere"),
    ],
)
def test_a_layout_names_the_class_that_is_meant(tmp_path, name, message):
    root = build(tmp_path / "PACS", dict.fromkeys(domainbed.PACS.domain_names, domainbed.PACS.class_names))
    (root / "photo" / name).mkdir()
    with pytest.raises(InputError, match=message):
        domainbed.list_layout("pacs", tmp_path)


@pytest.mark.parametrize(("of_folder", "of_list"), [(NFC, NFD), (NFD, NFC)])
def test_split_files_may_have_the_other_unicode_form(tmp_path, of_folder, of_list):
    listing = folder.list_images(build(tmp_path / "data", dict.fromkeys((of_folder, "b"), (of_folder, "dog"))))
    for path in list(listing.paths):
        shutil.copy(path, path.with_name(f"{of_folder}.jpg"))
    listing = folder.list_images(tmp_path / "data")
    (tmp_path / "lists").mkdir()
    for part, chosen in (("train", "1"), ("val", of_folder)):
        lines = [path.relative_to(tmp_path / "data").as_posix() for path in listing.paths if path.stem == chosen]
        text = "\r\n".join(lines).replace(of_folder, of_list)
        (tmp_path / "lists" / f"{part}.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    # What macOS puts beside files on other systems' disks.
    (tmp_path / "lists" / "._train.txt").write_bytes(b"\x00\x05\x16\x07")
    read = read_split_files(tmp_path / "lists", listing)
    assert read.validation == tuple(tuple(path.stem == of_folder for path, _ in domain) for domain in listing.images)


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "a\0b", "~nobody-of-that-name/x"])
@pytest.mark.parametrize("data", ["{name}", "pacs"])
def test_paths_that_cannot_be_are_one_line(name, data):
    options = {"data_dir": Path(name)} if data == "pacs" else {}
    with pytest.raises(InputError) as caught:
        list_data(data.format(name=name), **options)
    assert_one_line(str(caught.value))


def test_near_names():
    assert names.near("cat", ["Cat", "cats"]) == "Cat"
    assert names.near("cat", []) is None
    assert names.near("x", ["cat", "dog"]) is None
