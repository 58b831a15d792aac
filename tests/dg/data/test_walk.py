"""Every file once, in its own class: links, leftovers, results and what only looks like an image."""

import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

from disam_jax.dg.data import domainbed, folder, walk
from disam_jax.dg.data.load import open_data, stream_images
from disam_jax.dg.errors import InputError
from disam_jax.dg.sweep.results_file import FILE

DOMAINS, CLASSES, IMAGES = ("a", "b"), ("cat", "dog"), 2
LEFTOVERS = [
    ".ipynb_checkpoints",
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "LOST+FOUND",
    ".git",
    ".unfinished-abc",
]


@pytest.fixture
def root(tmp_path):
    """Two domains of two classes of two images; listing opens none of them."""
    for domain in DOMAINS:
        for name in CLASSES:
            (tmp_path / "data" / domain / name).mkdir(parents=True)
            for k in range(IMAGES):
                (tmp_path / "data" / domain / name / f"{k}.jpg").touch()
    return tmp_path / "data"


@pytest.fixture
def store(tmp_path):
    """A folder of images outside of the data set, with a folder within."""
    (tmp_path / "store" / "deep").mkdir(parents=True)
    for name in ("x.jpg", "y.jpg", "deep/z.jpg"):
        (tmp_path / "store" / name).touch()
    return tmp_path / "store"


def found(root):
    """The images of each class of each domain, from the root on."""
    listed = folder.list_images(root)
    return {
        (domain, name): [path.relative_to(root / domain / name).as_posix() for path, y in images if y == label]
        for domain, images in zip(listed.domain_names, listed.images, strict=True)
        for label, name in enumerate(listed.class_names)
    }


PLAIN = {(domain, name): ["0.jpg", "1.jpg"] for domain in DOMAINS for name in CLASSES}


@pytest.mark.parametrize("name", LEFTOVERS)
@pytest.mark.parametrize("level", [".", "a", "a/cat", "a/cat/more"])
def test_leftovers_are_passed_over_at_every_level(root, level, name):
    (root / level / name / "cat" / "deep").mkdir(parents=True)
    for place in (".", "cat", "cat/deep"):
        (root / level / name / place / "0-checkpoint.jpg").touch()
    assert found(root) == PLAIN


@pytest.mark.parametrize("name", ["._0.jpg", ".0.jpg", "Thumbs.db", "desktop.ini", ".DS_Store", "0.jpg.part"])
def test_files_that_are_left_over_are_passed_over_at_every_level(root, name):
    for level in (".", "a", "a/cat"):
        (root / level / name).write_bytes(b"no image")
    assert found(root) == PLAIN


def test_leftovers_in_a_layout(tmp_path):
    for domain in domainbed.PACS.domain_names:
        for name in domainbed.PACS.class_names:
            (tmp_path / "PACS" / domain / name / "@eaDir").mkdir(parents=True)
            (tmp_path / "PACS" / domain / name / "@eaDir" / "1.jpg").touch()
            (tmp_path / "PACS" / domain / name / "1.jpg").touch()
    for level in (".", "photo", "photo/dog"):
        (tmp_path / "PACS" / level / "__MACOSX").mkdir()
        (tmp_path / "PACS" / level / "__MACOSX" / "1.jpg").touch()
    (tmp_path / "PACS" / "results").mkdir()
    (tmp_path / "PACS" / "results" / FILE).touch()
    (tmp_path / "PACS" / "photo" / "dog" / "up").symlink_to("../..")
    (tmp_path / "PACS" / "photo" / "dogs").symlink_to("dog")
    listed = domainbed.list_layout("pacs", tmp_path)
    assert [len(domain) for domain in listed.images] == [7] * 4


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("a/cat/self", "."),
        ("a/cat/parent", ".."),
        ("a/cat/up", "../.."),
        ("a/cat/above", "../../.."),
        ("a/cat/top", "/"),
        ("a/cat/other", "../dog"),
        ("a/cat/elsewhere", "../../b/cat"),
        ("a/cat/circle", "circle"),
        ("a/self", "."),
        ("a/up", ".."),
        ("a/kitten", "cat"),
        ("a/cow", "../b/cat"),
        ("self", "."),
        ("above", ".."),
        ("c", "a"),
        ("circle", "circle"),
    ],
)
def test_a_link_back_into_the_data_set_changes_nothing(root, link, target):
    (root / link).symlink_to(target)
    assert found(root) == PLAIN


def test_links_that_multiply_end(root):
    for name in ("one", "two"):
        for place in ("a/cat", "a/dog", "b/cat"):
            (root / place / name).symlink_to("../..")
        (root / name).symlink_to(".")
    assert found(root) == PLAIN


def test_a_store_of_files_that_links_back_and_in_circles_ends(root, store):
    (root / "a" / "cat" / "more").symlink_to(store)
    (store / "self").symlink_to(".")
    (store / "deep" / "up").symlink_to("..")
    (store / "deep" / "above").symlink_to("../..")
    (store / "back").symlink_to(root / "a" / "dog")
    (store / "one").symlink_to("deep")
    (store / "dog.jpg").symlink_to(root / "a" / "dog" / "0.jpg")
    assert found(root)["a", "cat"] == ["0.jpg", "1.jpg", "more/x.jpg", "more/y.jpg", "more/deep/z.jpg"]
    assert {key: value for key, value in found(root).items() if key != ("a", "cat")} == {
        key: value for key, value in PLAIN.items() if key != ("a", "cat")
    }


def test_a_link_to_the_folder_above_another_link_s_end_is_passed_over(root, store):
    (root / "a" / "cat" / "more").symlink_to(store / "deep")
    (store / "deep" / "up").symlink_to("..")
    assert found(root)["a", "cat"] == ["0.jpg", "1.jpg", "more/z.jpg"]


def test_folders_that_all_link_to_each_other_end(root, store):
    (root / "a" / "cat" / "more").symlink_to(store)
    names = [f"n{k}" for k in range(12)]
    for name in names:
        (store / name).mkdir()
        (store / name / f"{name}.jpg").touch()
        for other in names:
            (store / name / f"to_{other}").symlink_to(f"../{other}")
    listed = found(root)["a", "cat"]
    assert len(listed) == 2 + 3 + 12
    assert len({os.path.basename(name) for name in listed}) == len(listed)


def test_a_link_to_a_file_whose_name_is_no_image_s_is_an_image(root):
    (root / "a" / "cat" / "blob").touch()
    for name in ("m.jpg", "n.jpg"):
        (root / "a" / "cat" / name).symlink_to("blob")
    assert found(root)["a", "cat"] == ["0.jpg", "1.jpg", "m.jpg"]


def test_links_to_another_disk_are_followed_at_every_level(root, tmp_path):
    shutil.move(root / "a", tmp_path / "disk_a")
    (root / "a").symlink_to(tmp_path / "disk_a")
    shutil.move(root / "b" / "dog", tmp_path / "disk_dog")
    (root / "b" / "dog").symlink_to(tmp_path / "disk_dog")
    (tmp_path / "disk_a" / "cat" / "self").symlink_to(".")
    (tmp_path / "disk_a" / "cat" / "back").symlink_to(root / "b")
    shutil.move(root, tmp_path / "disk_root")
    root.symlink_to(tmp_path / "disk_root")
    assert found(root) == PLAIN
    assert folder.list_images(root).name == "data"


@pytest.mark.parametrize("where", ["../../.git/objects", "../../../elsewhere"])
def test_a_class_whose_files_are_all_links(root, where):
    pool = root / "a" / "cat" / where
    pool.mkdir(parents=True)
    for domain, name in PLAIN:
        for k in range(IMAGES):
            path = root / domain / name / f"{k}.jpg"
            # A name that is no image's, as stores of large files have it.
            path.rename(pool / f"{domain}{name}{k}")
            path.symlink_to(pool / f"{domain}{name}{k}")
    listed = folder.list_images(root)
    assert found(root) == PLAIN
    assert listed.left_out == ()


def test_links_to_files_count_once_and_in_the_class_where_the_file_lies(root, store):
    cat = root / "a" / "cat"
    (cat / "again.jpg").symlink_to("0.jpg")
    (cat / "dog.jpg").symlink_to("../dog/0.jpg")
    (cat / "b.jpg").symlink_to("../../b/cat/0.jpg")
    (cat / "m.jpg").symlink_to(store / "x.jpg")
    (cat / "n.jpg").symlink_to(store / "x.jpg")
    assert found(root)["a", "cat"] == ["0.jpg", "1.jpg", "m.jpg"]
    listed = folder.list_images(root)
    assert sorted(path.name for path in listed.left_out) == ["again.jpg", "b.jpg", "dog.jpg", "n.jpg"]
    assert listed.notes == ("data: 4 duplicate images are left out.",)


def test_two_links_to_one_folder_count_once(root, store):
    for name, target in (("m", store / "deep"), ("n", store), ("o", store)):
        (root / "a" / "cat" / name).symlink_to(target)
    assert sorted(os.path.basename(name) for name in found(root)["a", "cat"]) == [
        "0.jpg",
        "1.jpg",
        "x.jpg",
        "y.jpg",
        "z.jpg",
    ]


def test_hard_links_are_files_of_their_own(root):
    os.link(root / "a" / "cat" / "0.jpg", root / "a" / "cat" / "2.jpg")
    assert found(root)["a", "cat"] == ["0.jpg", "1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    ("one", "other", "target"),
    [
        ("a/cat/m", "a/dog/m", "{store}"),
        ("a/cat/m", "b/cat/m", "{store}"),
        ("a/cat/m.jpg", "a/dog/n.jpg", "{store}/x.jpg"),
        ("a/cat/m.jpg", "b/cat/m.jpg", "{store}/x.jpg"),
        ("a/cat/m.jpg", "a/dog/m.jpg", "{data}/a/cat/.hidden/1.jpg"),
        ("a/cat/m", "b/dog/m", "{data}/a/cat/.hidden"),
    ],
)
def test_an_image_that_two_classes_link_to_is_refused(root, store, one, other, target):
    for link in (one, other):
        (root / link).symlink_to(target.format(store=store, data=root))
    (root / "a" / "cat" / ".hidden").mkdir()
    (root / "a" / "cat" / ".hidden" / "1.jpg").touch()
    with pytest.raises(InputError, match=rf"{root / one}.* and {root / other}.* are the same file"):
        folder.list_images(root)


def test_two_links_to_one_domain_are_refused(root, tmp_path):
    shutil.move(root / "a", tmp_path / "disk")
    for name in ("a", "c"):
        (root / name).symlink_to(tmp_path / "disk")
    with pytest.raises(InputError, match=r"a/cat and .*c/cat are the same folder: remove one"):
        folder.list_images(root)


@pytest.mark.parametrize("link", ["c", "a/cow", "a/cat/more", "a/cat/2.jpg"])
def test_a_link_that_leads_nowhere_is_named(root, link):
    (root / link).symlink_to("/nowhere/at/all")
    with pytest.raises(InputError, match=f"{root / link} is a link that leads nowhere .No such file"):
        folder.list_images(root)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: (root / "b/cat").symlink_to("../a/cat"), "b/cat is a link to .*a/cat, which belongs to the data"),
        (
            lambda root: [p.symlink_to("../../a/cat/0.jpg") for p in [root / "b/cat/0.jpg"]],
            "no image of its own, only 1",
        ),
    ],
)
def test_a_class_of_links_to_another_one_says_so(root, make, message):
    shutil.rmtree(root / "b" / "cat")
    if "own" in message:
        (root / "b" / "cat").mkdir()
    make(root)
    with pytest.raises(InputError, match=message):
        folder.list_images(root)


@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a pipe", "device"])
def test_what_only_has_the_name_of_an_image_is_named_and_not_opened(root, tmp_path, monkeypatch, kind):
    path = root / "a" / "cat" / "2.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        # The name of a socket must be short.
        monkeypatch.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    with pytest.raises(InputError, match=f"{path} has the name of an image, but is not a file"):
        folder.list_images(root)


@pytest.mark.parametrize("where", ["results", "runs/first", "runs/first/second", "a/results", "a/cat/results", ".out"])
def test_results_in_the_data_folder_are_no_data(root, where):
    (root / where).mkdir(parents=True)
    (root / where / FILE).touch()
    (root / where / "convergence.png").touch()
    (root / where / ".unfinished-xyz").mkdir()
    (root / where / ".unfinished-xyz" / "losses.png").touch()
    assert found(root) == PLAIN
    # An own picture beside the results, a report in a folder within, and earlier results set aside there.
    (root / where / "own.png").touch()
    for within in ("select-oracle", "earlier-1", "earlier-2"):
        (root / where / within).mkdir()
        for name in ("table.md", "convergence.png", "convergence.pdf"):
            (root / where / within / name).touch()
    (root / where / "earlier-2" / FILE).touch()
    (root / where / "empty").mkdir()
    assert found(root) == PLAIN


def test_results_in_the_folder_of_a_domain_do_not_hide_it(root):
    for where in (".", "a", "b"):
        (root / where / FILE).touch()
        (root / where / "convergence.png").touch()
    assert found(root) == PLAIN
    shutil.move(root / "a" / "cat", root.parent / "cat")
    (root / "a" / "cat").symlink_to(root.parent / "cat")
    shutil.rmtree(root / "a" / "dog")
    with pytest.raises(InputError, match=r"class missing in a domain: .*a/dog does not exist"):
        folder.list_images(root)


def test_a_class_that_is_taken_for_results_is_named(root):
    (root / "a" / "cat" / FILE).touch()
    with pytest.raises(InputError, match=f"class missing in a domain: {root}/a/cat holds results .{FILE}"):
        folder.list_images(root)


@pytest.mark.parametrize("where", ["a/cat", "a/cat/more"])
def test_results_are_not_written_among_the_images(root, where):
    (root / "a" / "cat" / "more").mkdir()
    (root / "a" / "cat" / "more" / "deep").mkdir()
    (root / "a" / "cat" / "more" / "deep" / "3.jpg").touch()
    with pytest.raises(InputError, match=f"--out {root / where} holds images of data: give another"):
        open_data(str(root), features=False, stream=True, out=root / where)
    for free in (root, root / "a", root / "results", root / "a" / "cat" / "results"):
        assert len(open_data(str(root), features=False, stream=True, out=free).labels) == 9


@pytest.mark.parametrize(
    "name",
    [b"caf\xe9.jpg", "cafe\u0301.jpg".encode(), "caf\u00e9.jpg".encode(), b"new\nline.jpg", b"\x1b[31m.jpg", b" .jpg"],
)
def test_an_image_may_have_any_name(image_folder, name):
    path = image_folder / "art" / "cat" / os.fsdecode(name)
    shutil.copy(image_folder / "art" / "cat" / "0.jpg", path)
    listed = folder.list_images(image_folder)
    assert path in listed.paths
    data = folder.load_images(listed, 4)
    streamed = stream_images(listed, 4)
    assert len(data.labels) == len(streamed.labels) == 19
    path.write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        folder.load_images(listed, 4)
    assert str(caught.value).isprintable()
    assert str(image_folder / "art" / "cat") in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
@pytest.mark.parametrize("where", ["a", "a/cat", "a/cat/more"])
def test_a_folder_that_may_not_be_listed_is_named(root, where):
    (root / "a" / "cat" / "more").mkdir()
    (root / where).chmod(0)
    try:
        with pytest.raises(InputError, match=f"cannot list {root / where}: Permission denied"):
            folder.list_images(root)
    finally:
        (root / where).chmod(0o755)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_system_that_refuses_to_list_is_quoted(root, monkeypatch, error):
    listed = os.scandir
    refuse = lambda path: (_ for _ in ()).throw(error) if str(path).endswith("b/dog") else listed(path)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=f"cannot list {root}/b/dog: {error.strerror}"):
        folder.list_images(root)


@pytest.mark.slow
def test_folders_may_be_nested_deeper_than_the_stack_of_the_interpreter(root):
    start = root / "a" / "cat"
    folders = [Path(start, *["d"] * depth) for depth in range(1, 1201)]
    for path in folders:
        path.mkdir()
    (folders[-1] / "2.jpg").touch()
    try:
        assert found(root)["a", "cat"][-1].endswith("d/2.jpg")
    finally:
        (folders[-1] / "2.jpg").unlink()
        for path in reversed(folders):
            path.rmdir()


def test_places_know_what_lies_in_them_and_around_them(tmp_path):
    (tmp_path / "data" / "cat").mkdir(parents=True)
    known = walk.places([tmp_path / "data"])
    data = os.path.realpath(tmp_path / "data")
    assert [known.has(place) for place in (data, f"{data}/cat/1.jpg", f"{data}/.git/1", f"{data}2", "/")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert known.lead_back("/")
    # What is hidden above a data set hides nothing in it.
    assert walk.places([tmp_path / ".cache" / "data"]).has(os.path.realpath(tmp_path / ".cache" / "data" / "cat"))
    assert not known.lead_back(f"{data}2")


def test_streamed_images_are_those_in_memory(image_folder):
    (image_folder / "art" / "cat" / "loop").symlink_to("../..")
    (image_folder / "art" / "cat" / "@eaDir").mkdir()
    shutil.copy(image_folder / "art" / "cat" / "0.jpg", image_folder / "art" / "cat" / "@eaDir")
    memory = open_data(str(image_folder), image_size=4, features=False)
    streamed = open_data(str(image_folder), image_size=4, features=False, stream=True)
    np.testing.assert_array_equal(memory.labels, streamed.labels)
    assert memory.inputs.shape == streamed.inputs.shape == (18, 4, 4, 3)
