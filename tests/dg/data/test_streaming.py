import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from disam_jax.dg.data import batches, sampling, streaming
from disam_jax.dg.data.domains import join_domains
from disam_jax.dg.data.folder import list_images, load_images
from disam_jax.dg.data.splits import seeded_split
from disam_jax.dg.errors import InputError

SIZE = 12
GIVEN = {"sources": (2, 0), "seed": 1, "target": 1, "per_domain": 3, "steps": 20}


@pytest.fixture
def listing(tmp_path):
    """Three domains of 10, 12 and 14 images."""
    rng = np.random.default_rng(0)
    for d, domain in enumerate("abc"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pictures" / domain / name
            folder.mkdir(parents=True)
            for k in range(5 + d):
                pixels = rng.integers(0, 256, (9 + k, 14, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.{'png' if k % 2 else 'jpg'}")
    return list_images(tmp_path / "pictures")


def make_stream(listing, **changes):
    split = seeded_split([len(domain) for domain in listing.images], 0)
    return streaming.StreamingBatches(listing, split, **(GIVEN | {"image_size": SIZE, "threads": 2} | changes))


def make_memory(listing, **changes):
    data = load_images(listing, SIZE)
    return batches.MemoryBatches(data, seeded_split(data.counts, 0), **(GIVEN | changes))


def assert_same(one, other):
    for left, right in zip(one, other, strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def threads_end(within=10.0):
    deadline = time.monotonic() + within
    while any(thread.name.startswith("grain") for thread in threading.enumerate()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("form", sampling.FORMS)
def test_batches_from_files_are_those_from_memory(listing, form):
    options = {"form": form, "batch_size": 7 if form == "merged" else None}
    stream = make_stream(listing, **options)
    assert isinstance(stream, batches.Batches)
    assert len(stream) == 20
    given = list(stream)
    assert given[0].x.dtype == np.uint8
    assert given[0].x.std() > 20
    for old, new in zip(make_memory(listing, **options), given, strict=True):
        assert_same(old, new)
    assert threads_end()


@pytest.mark.parametrize("taken", [0, 7, 20])
def test_a_state_saved_in_the_middle_is_followed_by_the_same_batches(listing, taken):
    whole = list(make_stream(listing))
    with make_stream(listing) as first:
        for _ in range(taken):
            next(first)
        state = json.loads(json.dumps(first.get_state()))
    # From other threads, from memory, and by the same object that was elsewhere meanwhile.
    for again in (make_stream(listing, threads=1, prefetch=1), make_memory(listing), first):
        again.set_state(state)
        rest = list(again)
        assert len(rest) == 20 - taken
        for old, new in zip(whole[taken:], rest, strict=True):
            assert_same(old, new)


def test_a_state_of_other_images_is_refused(listing):
    stream = make_stream(listing)
    with pytest.raises(InputError, match="belongs to other batches"):
        stream.set_state(make_stream(listing, image_size=SIZE + 1).get_state())
    fewer = (*listing.images[:2], listing.images[2][:-1])
    with pytest.raises(InputError, match="belongs to other batches"):
        stream.set_state(make_stream(type(listing)(listing.root, "x", listing.domain_names, "cd", fewer)).get_state())


def test_looking_up_a_step_does_not_move_the_iteration(listing):
    with make_stream(listing) as stream:
        first = next(stream)
        assert_same(stream[9], make_memory(listing)[9])
        assert_same(stream[0], first)
        assert_same(next(stream), stream[1])
        assert_same(next(stream), stream[2])


def test_an_iteration_left_early_lets_its_threads_go_and_can_be_taken_up(listing):
    with make_stream(listing, prefetch=4) as stream:
        next(stream)
        assert not threads_end(within=0.0)
    assert threads_end()
    assert_same(next(stream), make_memory(listing)[1])
    stream.close()
    stream.close()
    assert threads_end()
    next(stream)
    del stream
    assert threads_end()


def test_a_broken_image_is_named_when_its_step_comes(listing):
    stream = make_stream(listing, threads=2, prefetch=6)
    rows = stream.plan.rows()
    first_use = {row: step for step in reversed(range(20)) for row in rows[step].reshape(-1).tolist()}
    row, step = max(first_use.items(), key=lambda item: item[1])
    assert step > 0
    path = listing.paths[row]
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    for k in range(step):
        assert_same(next(stream), make_stream(listing)[k])
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            next(stream)
        assert str(caught.value).startswith(f"cannot read image {path}: ")
        assert "\n" not in str(caught.value)
        assert not hasattr(caught.value, "__notes__")
        assert stream.get_state()["step"] == step
    assert threads_end()
    with pytest.raises(InputError, match="cannot read image"):
        stream[step]
    path.write_bytes(whole)
    assert_same(next(stream), make_memory(listing)[step])
    stream.close()


@pytest.mark.parametrize("name", ["image_size", "threads", "prefetch", "per_domain"])
def test_what_must_be_positive_is_checked(listing, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        make_stream(listing, **{name: 0})


@pytest.mark.parametrize("block", [1, 4, 5, 40])
@pytest.mark.parametrize("in_files", [True, False])
def test_evaluation_sees_every_row_once_in_its_order(listing, in_files, block):
    data = load_images(listing, SIZE)
    rows = np.array([7, 0, 30, 30, 12, 35, 3, 4])
    blocks = list(streaming.eval_blocks(listing if in_files else data, rows, block, image_size=SIZE, threads=2))
    assert len(blocks) == -(-8 // block)
    for one in blocks:
        assert one.x.shape == (block, SIZE, SIZE, 3)
        assert one.y.shape == one.valid.shape == (block,)
        assert (one.x.dtype, one.y.dtype, one.valid.dtype) == (np.uint8, np.int32, bool)
        assert not one.x[~one.valid].any()
        assert not one.y[~one.valid].any()
    valid = np.concatenate([one.valid for one in blocks])
    assert valid.tolist() == [True] * 8 + [False] * (len(valid) - 8)
    np.testing.assert_array_equal(np.concatenate([one.x for one in blocks])[:8], data.inputs[rows])
    np.testing.assert_array_equal(np.concatenate([one.y for one in blocks])[:8], data.labels[rows])


def test_evaluation_of_nothing_has_no_block(listing):
    assert list(streaming.eval_blocks(listing, np.array([], int), 4)) == []


def test_evaluation_can_be_left_early_and_names_a_broken_image(listing):
    path = listing.paths[9]
    path.write_bytes(b"no image")
    blocks = streaming.eval_blocks(listing, np.arange(12), 4, image_size=SIZE, threads=2)
    next(blocks)
    next(blocks)
    with pytest.raises(InputError, match=f"cannot read image {path}: "):
        next(blocks)
    assert threads_end()
    blocks = streaming.eval_blocks(listing, np.arange(36), 4, image_size=SIZE, threads=2)
    next(blocks)
    del blocks
    assert threads_end()


@pytest.mark.parametrize(
    ("rows", "block", "message"),
    [([0, 36], 2, r"rows must be \[K\] in 0\.\.35"), ([-1], 2, "rows"), ([[0]], 2, "rows"), ([0], 0, "block must be")],
)
def test_evaluation_of_rows_that_do_not_exist_is_refused_at_once(listing, rows, block, message):
    with pytest.raises(ValueError, match=message):
        streaming.eval_blocks(listing, np.array(rows), block)


def test_features_are_evaluated_from_memory():
    data = join_domains("toy", [np.eye(3), np.eye(3)], [np.arange(3)] * 2, "ab", "xyz")
    (block,) = streaming.eval_blocks(data, np.array([1, 5]), 3)
    np.testing.assert_array_equal(block.x, [[0, 1, 0], [0, 0, 1], [0, 0, 0]])
    assert block.x.dtype == np.float32


@pytest.mark.slow
def test_a_program_that_ends_in_the_middle_does_not_hang(listing):
    program = f"""
from pathlib import Path
from disam_jax.dg.data import folder, splits, streaming
listing = folder.list_images(Path({str(listing.root)!r}))
split = splits.seeded_split([len(domain) for domain in listing.images], 0)
stream = streaming.StreamingBatches(listing, split, (0, 1), 0, 2, 2, 1000, image_size=8)
next(stream)
print("left")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr
