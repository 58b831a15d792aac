import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from disam_jax.dg.data import domainbed, folder, splits
from disam_jax.dg.data.domains import join_domains
from disam_jax.dg.errors import InputError

SHARED = os.environ.get("DISAM_JAX_SHARED")


def parts(split, starts, counts):
    """The training and the validation rows of each domain."""
    ends = starts + split.train_counts
    return [
        (split.order[start:end].tolist(), split.order[end : start + count].tolist())
        for start, end, count in zip(starts, ends, counts, strict=True)
    ]


# By md5sum.
@pytest.mark.parametrize(
    ("args", "digest"),
    [
        ((0, 0), "bb9fd77684530503f3765280b54c2413"),
        ((0, 1), "4dabab2d922d2e80fc4d8be85a41ff51"),
        ((7, 2), "1ab8eee17ae84ccb960d5ca9854655cf"),
    ],
)
def test_the_hash_of_a_seed(args, digest):
    assert splits.seed_hash(*args) == int(digest, 16) % 2**31


@pytest.mark.parametrize(("seed", "holdout"), [(0, 0.2), (1, 0.2), (5, 0.5), (0, 0.37)])
def test_a_seeded_split_is_that_of_domainbed(seed, holdout):
    counts = np.array([5, 23, 100])
    split = splits.seeded_split(counts, seed, holdout)
    starts = np.array([0, 5, 28])
    assert split.order.dtype == split.train_counts.dtype == np.int32
    for place, (training, validating) in enumerate(parts(split, starts, counts)):
        keys = list(range(counts[place]))
        np.random.RandomState(splits.seed_hash(seed, place)).shuffle(keys)
        held = int(counts[place] * holdout)
        assert validating == [starts[place] + key for key in keys[:held]]
        assert training == [starts[place] + key for key in keys[held:]]


@pytest.mark.parametrize("seed", range(2))
def test_the_rows_after_the_training_ones_of_each_domain_validate(seed):
    counts = [4, 7, 5]
    data = join_domains("toy", [np.zeros((n, 1)) for n in counts], [np.zeros(n, int) for n in counts], "abc", ["x"])
    split = splits.seeded_split(counts, seed)
    mask = splits.validates(split, data)
    for training, validating in parts(split, data.starts, data.counts):
        assert not mask[training].any()
        assert mask[validating].all()


# From numpy's RandomState(int("4dabab2d922d2e80fc4d8be85a41ff51", 16) % 2**31), whose numbers never change.
def test_a_seeded_split_in_numbers():
    split = splits.seeded_split([5, 10], seed=0)
    assert split.train_counts.tolist() == [4, 8]
    assert split.order[13:].tolist() == [10, 5]


@pytest.mark.parametrize(
    ("counts", "holdout", "message"),
    [
        ([10, 10], 0.0, "must lie between 0 and 1, got 0"),
        ([10, 10], 1.0, "must lie between 0 and 1, got 1"),
        ([10, 10], float("nan"), "must lie between 0 and 1, got nan"),
        ([10, 1], 0.2, "domain b has 1 example: at least two are needed"),
    ],
)
def test_a_split_that_leaves_nothing_is_refused(counts, holdout, message):
    with pytest.raises(InputError, match=message):
        splits.seeded_split(counts, 0, holdout, "ab")


def flagged(toy, flags):
    return dataclasses.replace(toy, validation=np.array(flags, bool))


def test_a_fixed_split_keeps_the_order_of_the_rows(toy):
    flags = np.random.default_rng(0).random(24) < 0.4
    data = flagged(toy, flags)
    split = splits.split(data, seed=3)
    assert split.order.dtype == split.train_counts.dtype == np.int32
    for place, (training, validating) in enumerate(parts(split, data.starts, data.counts)):
        assert training == np.flatnonzero((data.domain_ids == place) & ~flags).tolist()
        assert validating == np.flatnonzero((data.domain_ids == place) & flags).tolist()


def test_data_without_flags_is_split_with_the_seed(toy):
    one, other = splits.split(toy, seed=3), splits.seeded_split(toy.counts, 3)
    np.testing.assert_array_equal(one.order, other.order)
    np.testing.assert_array_equal(one.train_counts, other.train_counts)
    with pytest.raises(ValueError, match="toy has no validation flags"):
        splits.fixed_split(toy)


@pytest.mark.parametrize(
    ("flags", "part"), [([True] * 5 + [False, True] * 9 + [True], "train"), ([False] * 24, "vali")]
)
def test_a_fixed_split_that_leaves_nothing_is_refused(toy, flags, part):
    with pytest.raises(InputError, match=f"domain a: the split leaves nothing to {part}"):
        splits.split(flagged(toy, flags), seed=0)


def test_a_domain_smaller_than_the_batch_is_named():
    data = join_domains("t", [np.zeros((10, 1)), np.zeros((40, 1))], [np.zeros(10, int), np.zeros(40, int)], "ab", "xy")
    split = splits.split(data, seed=0)
    assert splits.small_domains(data, split, 8) == []
    assert splits.small_domains(data, split, 9) == [
        "Domain a has 8 training examples, fewer than the 9 that a batch draws of it: its batches repeat examples."
    ]
    assert len(splits.small_domains(data, split, 33)) == 2


@pytest.mark.parametrize(("size", "train"), [(2, 1), (4, 3), (5, 4), (9, 8), (10, 8)])
def test_one_example_validates_at_least(size, train):
    split = splits.seeded_split([size, 10], seed=0)
    assert split.train_counts.tolist() == [train, 8]
    assert splits.seeded_split([size, 10], seed=0, holdout=0.99).train_counts.tolist() == [1, 1]


@pytest.fixture
def listing(tmp_path):
    for domain in ("art", "real world"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / domain / name).mkdir(parents=True)
            for k in range(3):
                (tmp_path / "images" / domain / name / f"{k} {domain}.jpg").touch()
    return folder.list_images(tmp_path / "images")


def lines_of(listing, choose, form="{path} {label}", offset=0):
    relative = [(path.relative_to(listing.root), label) for domain in listing.images for path, label in domain]
    return [form.format(path=path, label=label + offset) for path, label in relative if choose(path)]


def is_last(path):
    return path.name.startswith("2")


def write(directory, files):
    directory.mkdir(exist_ok=True)
    for name, lines in files.items():
        (directory / name).write_text("\n".join(lines) + "\n")
    return directory


A_LINE = "art/cat/0 art.jpg 0"
EXPECTED = ((False, False, True, False, False, True),) * 2


@pytest.mark.parametrize(
    ("form", "offset"),
    [
        ("{path} {label}", 1),
        ("{path} {label}", 0),
        ("{path}\t{label}", 7),
        ("{path}", 0),
        ("/home/someone/art/data/{path} {label}", 0),
        ("./{path}  {label}", 0),
    ],
)
def test_split_files_say_what_validates(tmp_path, listing, form, offset):
    files = {
        "art_train_kfold.txt": lines_of(listing, lambda p: p.parts[0] == "art" and not is_last(p), form, offset),
        "art_crossval_kfold.txt": lines_of(listing, lambda p: p.parts[0] == "art" and is_last(p), form, offset),
        "real world_train.txt": lines_of(listing, lambda p: p.parts[0] != "art" and not is_last(p), form, offset),
        "train_crossing_VAL.txt": ["", *lines_of(listing, lambda p: p.parts[0] != "art" and is_last(p), form, offset)],
        "art_test_kfold.txt": ["nothing/of/this is read"],
        "readme.txt": ["nor this"],
    }
    directory = write(tmp_path / "lists", files)
    read = splits.read_split_files(directory, listing)
    assert read.validation == EXPECTED
    assert dataclasses.replace(read, validation=None) == listing
    assert splits.read_split_files([directory / name for name in sorted(files)], listing).validation == EXPECTED


def test_an_image_saved_anew_is_found_by_its_name(tmp_path, listing):
    lines = [line.replace(".jpg", ".png") for line in lines_of(listing, lambda p: True)]
    held = [line for line in lines if "/2 " in line]
    directory = write(tmp_path / "lists", {"train.txt": [x for x in lines if x not in held], "val.txt": held})
    assert splits.read_split_files(directory, listing).validation == EXPECTED


def test_two_images_of_one_name_are_told_apart_by_their_endings(tmp_path, listing):
    path = listing.images[0][0][0]
    path.with_suffix(".png").touch()
    both = folder.list_images(listing.root)
    held = lines_of(both, is_last)
    training = [line for line in lines_of(both, lambda p: True) if line not in held]
    directory = write(tmp_path / "lists", {"train.txt": training, "val.txt": held})
    assert splits.read_split_files(directory, both).validation[0] == (False, *EXPECTED[0])
    write(directory, {"train.txt": [line.replace(".png", ".gif") for line in training]})
    with pytest.raises(InputError, match=r"no image art/cat/0 art\.gif in"):
        splits.read_split_files(directory, both)


def test_a_list_may_name_what_is_left_out(tmp_path, listing):
    lines = lines_of(listing, lambda p: True)
    held = lines_of(listing, is_last)
    gone = listing.images[0][0][0]
    fewer = dataclasses.replace(listing, images=(listing.images[0][1:], listing.images[1]), left_out=(gone,))
    directory = write(tmp_path / "lists", {"train.txt": [x for x in lines if x not in held], "val.txt": held})
    assert splits.read_split_files(directory, fewer).validation == (EXPECTED[0][1:], EXPECTED[1])


@pytest.mark.parametrize(
    ("training", "validation", "message"),
    [
        (lambda a: a[1:], lambda b: b, "1 of 6 images of art are in no split file, the first .*0 art.jpg"),
        (
            lambda a: [*a, a[0]],
            lambda b: b,
            "train.txt line 9: .*0 art.jpg is listed twice, first in .*train.txt line 1",
        ),
        (lambda a: a, lambda b: [*b, A_LINE], r"val.txt line 5: .* is listed twice, first in .*train.txt line 1"),
        (lambda a: ["art/cat/9.jpg 0", *a], lambda b: b, "train.txt line 1: no image art/cat/9.jpg in "),
        (lambda a: ["x/cat/9.jpg 0", *a], lambda b: b, "train.txt line 1: no image x/cat/9.jpg in "),
        (
            lambda a: [*a[:3], a[3][:-1] + "0", *a[4:]],
            lambda b: b,
            "line 4: class dog with label 0, but with label 1 in",
        ),
        (lambda a: [x[:-1] + "0" for x in a], lambda b: b, "line 3: label 0 with class dog, but with class cat in"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path, listing, training, validation, message):
    held = lines_of(listing, is_last)
    rest = lines_of(listing, lambda p: not is_last(p))
    directory = write(tmp_path / "lists", {"train.txt": training(rest), "val.txt": validation(held)})
    with pytest.raises(InputError, match=message):
        splits.read_split_files(directory, listing)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["art_val.txt"], "no split file named like DOMAIN_train.txt among .*art_val.txt"),
        (["train_set.txt", "a.txt", "b.txt", "c.txt"], "no split file named like DOMAIN_val.txt among .* and 1 more"),
        ([], "no split file named like DOMAIN_train.txt among .*lists"),
        (None, "no such folder of split files: .*lists"),
    ],
)
def test_a_folder_without_lists_is_refused(tmp_path, listing, names, message):
    if names is not None:
        write(tmp_path / "lists", {name: [] for name in names})
    with pytest.raises(InputError, match=message):
        splits.read_split_files(tmp_path / "lists", listing)


def test_split_files_reach_the_split(image_folder, tmp_path):
    listing = folder.list_images(image_folder)
    names = [path.relative_to(image_folder).as_posix() for path in listing.paths]
    write(tmp_path / "lists", {"train.txt": names[::2], "val.txt": names[1::2]})
    data = folder.load_images(splits.read_split_files(tmp_path / "lists", listing), 4)
    split = splits.split(data, seed=0)
    assert split.train_counts.tolist() == [2, 3, 4]
    training, validating = parts(split, data.starts, data.counts)[1]
    assert (training, validating) == ([4, 6, 8], [5, 7, 9])


@pytest.mark.slow
@pytest.mark.skipif(SHARED is None, reason="DISAM_JAX_SHARED names no folder with data/PACS96")
def test_lists_of_real_pacs(tmp_path):
    listing = domainbed.list_layout("PACS", Path(SHARED, "data", "PACS96"))
    files = {}
    expected = []
    for name, domain in zip(listing.domain_names, listing.images, strict=True):
        held = np.random.default_rng(len(domain)).random(len(domain)) < 0.1
        expected.append(tuple(held.tolist()))
        # As PACS has them: labels from 1, and the sketches in .png.
        lines = [f"{path.relative_to(listing.root).as_posix()} {label + 1}" for path, label in domain]
        lines = [line.replace(".jpg", ".png") if name == "sketch" else line for line in lines]
        files[f"{name}_train_kfold.txt"] = [line for line, flag in zip(lines, held, strict=True) if not flag]
        files[f"{name}_crossval_kfold.txt"] = [line for line, flag in zip(lines, held, strict=True) if flag]
        files[f"{name}_test_kfold.txt"] = lines
    assert splits.read_split_files(write(tmp_path / "lists", files), listing).validation == tuple(expected)
