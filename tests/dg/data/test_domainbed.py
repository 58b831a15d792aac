import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import slow

from disam_jax.dg.data import domainbed, folder
from disam_jax.dg.errors import InputError

SHARED = os.environ.get("DISAM_JAX_SHARED")


def build(root, layout, classes=None):
    """One empty file for each class of each domain; listing opens none of them."""
    for domain in layout.domain_names:
        for name in classes or layout.class_names:
            (root / domain / name).mkdir(parents=True)
            (root / domain / name / f"{domain}_1.jpg").touch()
    return root


@pytest.mark.parametrize(
    ("name", "domains", "classes"),
    [("PACS", 4, 7), ("VLCS", 4, 5), ("OfficeHome", 4, 65), ("TerraIncognita", 4, 10), ("DomainNet", 6, 345)],
)
def test_the_size_and_the_order_of_a_layout(name, domains, classes):
    layout = domainbed.DATASETS[name].layout
    assert (len(layout.domain_names), len(layout.letters), len(layout.class_names)) == (domains, domains, classes)
    assert len(set(layout.class_names)) == classes
    # DomainBed and torchvision number what they find in the order of the names.
    assert list(layout.domain_names) == sorted(layout.domain_names)
    assert list(layout.class_names) == sorted(layout.class_names)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("pacs", "PACS"),
        ("VLCS", "VLCS"),
        ("office_home", "OfficeHome"),
        ("OfficeHome", "OfficeHome"),
        ("terra_incognita", "TerraIncognita"),
        ("terraincognita", "TerraIncognita"),
        ("domain-net", "DomainNet"),
        ("domainnet", "DomainNet"),
    ],
)
def test_a_layout_is_found_by_its_names(given, name):
    assert domainbed.find_layout(given) is domainbed.DATASETS[name].layout


@pytest.mark.parametrize("name", [slow(name)[0] if name == "DomainNet" else name for name in domainbed.layouts()])
def test_a_layout_is_read_as_a_folder_of_its_own_would_be(tmp_path, name):
    layout = domainbed.layouts()[name]
    root = build(tmp_path / layout.folder, layout)
    listed = domainbed.list_layout(layout.name, tmp_path)
    assert listed.name == layout.name
    assert listed.left_out == ()
    plain = folder.list_images(root)
    assert (listed.domain_names, listed.class_names, listed.images) == (
        plain.domain_names,
        plain.class_names,
        plain.images,
    )
    assert domainbed.list_layout(layout.name, root) == listed


def test_folders_in_other_letters_and_files_beside_them(tmp_path):
    root = build(tmp_path / "home", domainbed.OFFICE_HOME)
    (root / "Real World").rename(root / "real_world")
    (root / "Art" / "ToothBrush").rename(root / "Art" / "Toothbrush")
    (root / "ImageInfo.csv").touch()
    (root / ".cache").mkdir()
    listed = domainbed.list_layout("officehome", root)
    assert listed.domain_names == domainbed.OFFICE_HOME.domain_names
    assert [label for _, label in listed.images[0]] == list(range(65))
    assert [label for _, label in listed.images[3]] == list(range(65))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "painting").mkdir(), r"{root}/painting is not a domain of PACS: move it elsewhere"),
        (lambda root: shutil.rmtree(root / "photo"), r"domain missing: PACS needs the folder {root}/photo"),
        (lambda root: (root / "photo" / "cat").mkdir(), r"{root}/photo/cat is not a class of PACS"),
        (lambda root: shutil.rmtree(root / "photo" / "dog"), r"class missing in a domain: .* needs .*{root}/photo/dog"),
        (lambda root: (root / "photo" / "dog" / "photo_1.jpg").unlink(), r"empty class: {root}/photo/dog has no image"),
        (lambda root: (root / "Photo").mkdir(), r"{root}/photo and {root}/Photo are the same domain|the same domain"),
        (lambda root: (root / "photo" / "dog" / "photo_1.jpg").rename(root / "photo" / "dog" / "x.gif"), "empty class"),
    ],
)
def test_what_is_missing_or_too_much_is_named(tmp_path, change, message):
    root = build(tmp_path / "PACS", domainbed.PACS)
    change(root)
    with pytest.raises(InputError, match=message.replace("{root}", re.escape(str(root)))):
        domainbed.list_layout("pacs", tmp_path)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("pacs", lambda path: None, "no such folder"),
        (
            "pacs",
            lambda path: (path / "other").mkdir(parents=True),
            "no PACS in .* expected .*/PACS or the folders art",
        ),
        ("mnist", lambda path: path.mkdir(), "no layout 'mnist'; there are PACS, VLCS"),
    ],
)
def test_a_folder_that_holds_no_layout(tmp_path, name, make, message):
    make(tmp_path / "data")
    with pytest.raises(InputError, match=message):
        domainbed.list_layout(name, tmp_path / "data")


def test_other_locations_are_no_domains_of_terra_incognita(tmp_path):
    root = build(tmp_path / "terra_incognita", domainbed.TERRA_INCOGNITA)
    (root / "location_7" / "bird").mkdir(parents=True)
    assert domainbed.list_layout("terraincognita", tmp_path).domain_names == domainbed.TERRA_INCOGNITA.domain_names
    (root / "images").mkdir()
    with pytest.raises(InputError, match="images is not a domain of TerraIncognita"):
        domainbed.list_layout("terraincognita", tmp_path)


def test_a_class_that_never_passed_a_location_does_not_shift_its_labels(tmp_path):
    root = build(tmp_path / "terra_incognita", domainbed.TERRA_INCOGNITA)
    shutil.rmtree(root / "location_43" / "bobcat")
    listed = domainbed.list_layout("terraincognita", tmp_path)
    assert [label for _, label in listed.images[2]] == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert all(path.parent.name == listed.class_names[label] for path, label in listed.images[2])
    shutil.rmtree(root / "location_43")
    (root / "location_43").mkdir()
    with pytest.raises(InputError, match="class missing in a domain"):
        domainbed.list_layout("terraincognita", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("given", [False, True])
def test_duplicates_of_domain_net_are_left_out_and_counted(tmp_path, given):
    root = build(tmp_path / "domain_net", domainbed.DOMAIN_NET)
    for name in ("clipart_2.jpg", "clipart_3.jpg"):
        (root / "clipart" / "bear" / name).touch()
    lines = "clipart/bear/clipart_2.jpg\nclipart/bear/clipart_1.jpg\n\nreal/bear/gone_already.jpg\n"
    path = tmp_path / "list.txt" if given else root / "domain_net_duplicates.txt"
    path.write_text(lines)
    listed = domainbed.list_layout("domainnet", tmp_path, path if given else None)
    bear = root / "clipart" / "bear"
    assert listed.left_out == (bear / "clipart_1.jpg", bear / "clipart_2.jpg")
    label = domainbed.DOMAIN_NET.class_names.index("bear")
    assert [path.name for path, y in listed.images[0] if y == label] == ["clipart_3.jpg"]
    assert [len(domain) for domain in listed.images] == [345] * 6


@pytest.fixture(scope="module")
def domain_net(tmp_path_factory):
    """2,070 folders, which take a second to make."""
    folder = tmp_path_factory.mktemp("data")
    build(folder / "domain_net", domainbed.DOMAIN_NET)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"clipart/bear/clipart_1.jpg\n", "names all images of clipart/bear"),
        (b"\ndomain_net/clipart/bear/x.jpg\n", "line 2: expected a path like clipart/bear/image.jpg, got 'domain_net"),
        (b"\xff\xfe\x00", "cannot read .*list.txt: .*utf-8"),
        (None, "cannot read .*list.txt: No such file"),
    ],
)
def test_a_list_of_duplicates_that_cannot_be_is_refused(tmp_path, domain_net, lines, message):
    path = tmp_path / "list.txt"
    if lines is not None:
        path.write_bytes(lines)
    with pytest.raises(InputError, match=message):
        domainbed.list_layout("domainnet", domain_net, path)


def test_only_domain_net_has_duplicates(tmp_path):
    with pytest.raises(InputError, match="PACS has no list of duplicates"):
        domainbed.list_layout("pacs", tmp_path, tmp_path / "list.txt")


@pytest.mark.slow
@pytest.mark.skipif(SHARED is None, reason="DISAM_JAX_SHARED names no folder with data/PACS96")
def test_real_pacs(tmp_path):
    listed = domainbed.list_layout("pacs", Path(SHARED, "data", "PACS96"))
    assert [len(domain) for domain in listed.images] == [2048, 2344, 1670, 3929]
    counts = np.array([np.bincount([label for _, label in domain]) for domain in listed.images])
    assert counts.sum(0).tolist() == [1729, 1654, 1566, 1113, 1540, 943, 1446]
    data = folder.load_images(listed, 32)
    assert data.inputs.shape == (9991, 32, 32, 3)
    assert data.counts.tolist() == [2048, 2344, 1670, 3929]
    # A sketch is black on white, and has no colour.
    sketch = data.inputs[data.domain_ids == 3].astype(int)
    assert sketch.mean() > 200
    assert np.ptp(sketch, axis=-1).mean() < 1 < np.ptp(data.inputs[:2048].astype(int), axis=-1).mean()
