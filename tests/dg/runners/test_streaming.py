"""Streamed sweeps: the results of the sweep in memory, from images that stay in their files."""

import dataclasses
import functools
import json
import os
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from timeless import timeless

from disam_jax.dg.cli import main as cli
from disam_jax.dg.data.batches import Batch
from disam_jax.dg.data.folder import list_images, load_features, load_images
from disam_jax.dg.data.load import CachedFeatures, StreamedImages, fingerprint, open_data, pixel_bytes, stream_images
from disam_jax.dg.data.splits import split
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import find_methods
from disam_jax.dg.models.network import Network, Output
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.results import Run
from disam_jax.dg.runners import base, make, stacks
from disam_jax.dg.runners import streaming as streamed
from disam_jax.dg.runners.devices import layout
from disam_jax.dg.sweep import hparams, results_file
from disam_jax.dg.sweep import run as sweep
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.metrics import METRICS, Metric

SIZE = 8
# Seven steps in segments of three, the last one shorter; blocks of ten, the last one filled up.
CONFIG = TrainConfig(
    model="conv", steps=7, learning_rate=0.1, rho=0.3, lam=0.5, per_domain=3, evaluations=3, block=10, probe=5
)


def apply(params, state, x, key, train):
    features = (x.astype(jnp.float32) / 255 - 0.5).reshape(len(x), -1)
    return Output(features @ params["kernel"] + params["bias"][None], features, state)


def init(key):
    phase = (jax.random.key_data(key)[0] % 1000).astype(jnp.float32)
    kernel = 0.1 * jnp.sin(phase + jnp.arange(SIZE**2 * 3 * 2, dtype=jnp.float32)).reshape(-1, 2)
    return {"kernel": kernel, "bias": jnp.zeros(2)}, {}


LINEAR = Network(init, apply)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three domains of 12, 14 and 16 images."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("data") / "pictures"
    for d, domain in enumerate("abc"):
        for c, name in enumerate(("cat", "dog")):
            folder = root / domain / name
            folder.mkdir(parents=True)
            for k in range(6 + d):
                pixels = rng.integers(0, 120 + 60 * c + 20 * d, (9, 11, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    return root


@pytest.fixture
def data(root):
    return stream_images(list_images(root), SIZE)


@pytest.fixture
def small_stacks(monkeypatch):
    """Stacks of two batches of `CONFIG`, so that a segment of three steps has two of them."""
    monkeypatch.setattr(stacks, "STACK_BYTES", 2 * 2 * CONFIG.per_domain * SIZE**2 * 3)


def run(data, out, methods=("erm",), config=CONFIG, network=LINEAR, candidates=2, targets=(0, 2), **options):
    found = find_methods(methods)
    chosen = {name: hparams.random_candidates(method, config, candidates, 0) for name, method in found.items()}
    return sweep.run_sweep(data, network, config, found, sweep.Plan(chosen, targets, (0, 1)), out, **options)


def assert_same(one, other):
    assert one.runs == other.runs
    assert one.steps.tolist() == other.steps.tolist()
    for field in results_file.MEASURED:
        np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=2e-5, atol=2e-6, err_msg=field)


def assert_different(results):
    """The runs differ from each other, so that their equality with others says something."""
    last = results.losses[:, -1].reshape(len(results.runs), -1)
    assert min(np.abs(last[i] - last[j]).max() for i in range(len(last)) for j in range(i)) > 1e-4


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    return {"out": tmp_path_factory.mktemp("streamed")}


@pytest.fixture
def whole(computed, data, small_stacks):
    """The streamed sweep that most tests look at; computed inside a test, since jax is strict only there."""
    if "results" not in computed:
        computed["results"], computed["cost"] = run(data, computed["out"], runs_at_once=2)
    return computed["results"]


@pytest.mark.slow
@pytest.mark.parametrize("views", [0, 2])
def test_activations_on_disk_have_the_results_of_those_in_memory(data, tmp_path, views):
    images = load_images(data.listing, SIZE)
    shifted = tuple((images.inputs + 9.0 * (1 + view)).astype(np.float16) for view in range(views))
    kept = CachedFeatures.of(images, images.inputs.astype(np.float16), origin="kept", views=shifted)
    whole, _ = run(kept, tmp_path / "memory", targets=(0,), runs_at_once=4)
    on_disk, _ = run(dataclasses.replace(kept, streamed=True), tmp_path / "disk", targets=(0,), runs_at_once=2)
    assert_same(on_disk, whole)
    assert_different(whole)


@pytest.mark.slow
def test_a_streamed_sweep_has_the_results_of_the_one_in_memory(whole, computed, data, tmp_path):
    results, cost = run(load_images(data.listing, SIZE), tmp_path, runs_at_once=4)
    assert_same(whole, results)
    assert_different(whole)
    assert len(whole.runs) == 8
    assert computed["cost"]["ERM"]["flops"] == pytest.approx(cost["ERM"]["flops"], rel=0.1)


CONV = make_network("conv", (SIZE, SIZE, 3), 2, widths=(4,), norm="batch", dropout=0.3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("methods", "changes"),
    [
        (("disam",), {"augment": True, "averaging": "ema", "schedule": "cosine", "warmup": 2, "eval_every": 4}),
        # A segment of one stack, an evaluation of one block.
        (("sagm+disam",), {"averaging": "swad", "evaluations": 7, "block": 100}),
    ],
)
def test_the_results_of_a_network_with_all_options_are_those_in_memory(data, tmp_path, small_stacks, methods, changes):
    options = {"methods": methods, "config": dataclasses.replace(CONFIG, **changes), "network": CONV}
    results, _ = run(data, tmp_path / "streamed", **options, runs_at_once=2)
    wanted, _ = run(load_images(data.listing, SIZE), tmp_path / "memory", **options, runs_at_once=1)
    assert_same(results, wanted)
    assert_different(results)


@pytest.mark.slow
def test_a_further_metric_is_that_in_memory(data, tmp_path, small_stacks, monkeypatch):
    monkeypatch.setitem(METRICS._read(), "square", Metric(lambda logits, y: jnp.square(logits).mean(-1), "square"))
    one, other = (
        run(each, tmp_path / name, targets=(1,), runs_at_once=2)[0]
        for name, each in (("streamed", data), ("memory", load_images(data.listing, SIZE)))
    )
    assert_same(one, other)
    assert np.abs(one.metrics["square"]).min() > 0
    np.testing.assert_allclose(one.metrics["square"], other.metrics["square"], rtol=2e-5, atol=2e-6)


@pytest.mark.slow
def test_candidates_are_spread_over_the_devices(data, tmp_path, small_stacks):
    assert jax.device_count() == 8
    options = {"candidates": 10, "targets": (1,)}
    results, _ = run(data, tmp_path / "streamed", **options, runs_at_once=8)
    # Ten candidates are a chunk of eight, and one of two that is filled up.
    assert results.header["methods"]["ERM"]["runs_at_once"] == 1
    wanted, _ = run(load_images(data.listing, SIZE), tmp_path / "memory", **options, runs_at_once=8)
    assert_same(results, wanted)


@pytest.mark.parametrize(("number", "devices"), [(1, 1), (2, 2), (5, 5), (11, 1), (12, 6), (16, 8)])
def test_runs_lie_on_as_many_devices_as_have_equally_many(number, devices):
    apart, everywhere = layout(number)
    assert len(apart.device_set) == len(everywhere.device_set) == devices
    assert apart.shard_shape((number, 3)) == (number // devices, 3)
    assert everywhere.shard_shape((number, 3)) == (number, 3)


@pytest.mark.slow
def test_a_split_from_files_is_the_one_that_is_measured(data, tmp_path, small_stacks):
    flags = tuple(tuple(k % 3 == d for k in range(len(each))) for d, each in enumerate(data.listing.images))
    listing = dataclasses.replace(data.listing, validation=flags)
    results, _ = run(stream_images(listing, SIZE), tmp_path / "streamed")
    assert_same(results, run(load_images(listing, SIZE), tmp_path / "memory", runs_at_once=4)[0])


# Interruptions and errors.


@pytest.mark.slow
def test_goes_on_where_it_was_interrupted(whole, computed, data, tmp_path, small_stacks):
    lines = (computed["out"] / results_file.FILE).read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 + 4
    # The header, the program, a chunk and what a kill leaves of the next one.
    (tmp_path / results_file.FILE).write_bytes(b"".join(lines[:3]) + lines[3][:200])
    shown = []
    results, _ = run(data, tmp_path, runs_at_once=2, on_progress=lambda what, done, total: shown.append((what, done)))
    assert min(done for what, done in shown if "training" in what) >= 2
    assert timeless(tmp_path) == timeless(computed["out"])
    np.testing.assert_array_equal(results.losses, whole.losses)


def threads_end(within=10.0):
    deadline = time.monotonic() + within
    while any(thread.name.startswith("grain") for thread in threading.enumerate()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def copied(root, tmp_path):
    shutil.copytree(root, tmp_path / "pictures")
    return tmp_path / "pictures"


class Uncompiled(streamed.StreamingRunner):
    """Reads all that it is to read, and learns nothing."""

    def compile(self, runs):
        sums = np.zeros((len(runs), 2, 6))
        return streamed.Compiled(
            lambda own, states, *rest: states,
            lambda *rest: sums,
            lambda *rest: (sums[:, 0, :3], sums[:, 0, :3]),
            None,
        )

    def bytes(self, runs):
        return 0

    def flops(self, run):
        return None


@pytest.mark.slow
def test_an_image_that_cannot_be_read_is_named_and_no_run_is_written(root, tmp_path, monkeypatch):
    monkeypatch.setattr(make, "StreamingRunner", Uncompiled)
    folder = copied(root, tmp_path)
    path = folder / "c" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match="cannot read image") as caught:
        run(stream_images(list_images(folder), SIZE), tmp_path / "out", methods=["erm"])
    assert str(path) in str(caught.value)
    del caught
    assert threads_end()
    content = (tmp_path / "out" / results_file.FILE).read_text()
    assert content.endswith("\n")
    assert [next(iter(json.loads(line))) for line in content.splitlines()] == ["header", "program"]


# Memory.


def make_program(data, config=CONFIG, seeds=(0, 1)):
    splits = [split(data, seed) for seed in seeds]
    return streamed.StreamingRunner(LINEAR, find_methods(["erm"])["ERM"], config, data, splits, seeds, probe=5)


RUNS = [Run("ERM", 0, 0, k, {"learning_rate": 0.1, "weight_decay": 0.0}) for k in range(3)]


@pytest.mark.slow
def test_the_programs_bytes_do_not_depend_on_the_number_of_images(data):
    more = dataclasses.replace(data.listing, images=tuple(each * 5 for each in data.listing.images))
    of = {name: make_program(each) for name, each in (("few", data), ("many", stream_images(more, SIZE)))}
    assert of["few"].bytes(RUNS) == of["many"].bytes(RUNS)
    assert of["few"].bytes(RUNS) < of["few"].bytes(RUNS * 4)


@pytest.mark.slow
def test_fewer_candidates_go_into_a_program_that_may_take_less_memory(data):
    it = make_program(data)
    runs = [RUNS[0]._replace(seed=seed, candidate=k) for seed in (0, 1) for k in range(16)]
    # On eight devices, one and two runs on each.
    needed = {number: it.bytes(runs[:number]) for number in (8, 16)}
    assert needed[8] < needed[16]
    assert it.runs_at_once(runs, 100, needed[16]) == 2
    assert it.runs_at_once(runs, 100, needed[16] - 1) == 1
    with pytest.raises(InputError, match="--memory"):
        it.runs_at_once(runs, 100, needed[8] // 2)


@pytest.mark.parametrize(("segment", "size", "length"), [(20, 1, 20), (20, 5, 10), (7, 17, 3), (7, 64, 1), (7, 65, 1)])
def test_a_stack_has_as_many_batches_as_fit(segment, size, length):
    assert stacks.stack_length(segment, size * 2**20) == length


@pytest.mark.parametrize(
    ("first", "last", "length", "begins"), [(0, 6, 2, [0, 2, 4]), (3, 8, 3, [3, 6]), (4, 4, 2, [])]
)
def test_stacks_are_the_batches_one_after_the_other(first, last, length, begins):
    full = lambda shape, step, dtype: np.full(shape, step + 1, dtype)
    batch_of = lambda step: Batch(full((2, 3, 4, 4, 3), step, np.uint8), full((2, 3), step, np.int32), None)
    stream = map(batch_of, range(first, 100))
    found = list(stacks.stacks(stream, first, last, length))
    assert [begin for begin, _ in found] == begins
    for begin, (images, labels) in found:
        wanted = [step + 1 if step < last else 0 for step in range(begin, begin + length)]
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(images, np.broadcast_to(np.reshape(wanted, (-1, 1, 1, 1, 1, 1)), images.shape))
        np.testing.assert_array_equal(labels, np.broadcast_to(np.reshape(wanted, (-1, 1, 1)), (length, 2, 3)))
    assert next(stream).y[0, 0] == last + 1


# Parts.


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_runs_of_a_chunk_share_their_batches(size):
    runs = [Run("SAM", t, s, k, {}) for k in range(3) for t in range(2) for s in range(2)]
    found = base.by_seed_and_target(runs, size)
    assert sorted(run[:4] for chunk in found for run in chunk) == sorted(run[:4] for run in runs)
    assert all(len({run[1:3] for run in chunk}) == 1 for chunk in found)
    assert {len(chunk) for chunk in found} <= {size, 3 % size or size, min(3, size)}
    # Each seed's probe is decoded once.
    seeds = [chunk[0].seed for chunk in found]
    assert seeds == sorted(seeds)


def test_other_runs_are_refused(data):
    with pytest.raises(ValueError, match="seed and target in common"):
        make_program(data).specs([RUNS[0], RUNS[1]._replace(seed=1)])


def test_sums_over_a_block(nans_allowed):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32).at[3].set(jnp.nan)
    labels, group = jnp.array([0, 1, 2, 0, 1], jnp.int32), jnp.array([1, 0, 1, 2, -1], jnp.int32)
    network = Network(init, lambda params, state, x, key, train: Output(logits, x, state))
    spec = streamed.OVER_RUNS._replace(hparams={})
    sums = jax.jit(functools.partial(streamed.block_sums, network=network, groups=4))
    found = sums({}, {}, spec, logits, labels, group)
    values = np.asarray(logits, np.float64)
    losses = np.log(np.exp(values).sum(1)) - values[np.arange(5), labels]
    right = values.argmax(1) == np.asarray(labels)
    np.testing.assert_allclose(found[0], [losses[1], losses[0] + losses[2], np.nan, 0.0], rtol=1e-5)
    np.testing.assert_array_equal(found[1, :2], [right[1], int(right[0]) + int(right[2])])


# Data.


def test_the_data_is_that_in_memory_without_the_pixels(data):
    read = load_images(data.listing, SIZE)
    assert (data.inputs.shape, data.inputs.dtype, data.inputs.ndim) == (read.inputs.shape, read.inputs.dtype, 4)
    for name in ("labels", "domain_ids", "counts", "starts"):
        np.testing.assert_array_equal(getattr(data, name), getattr(read, name))
    assert (data.name, data.domain_names, data.class_names) == (read.name, read.domain_names, read.class_names)
    assert pixel_bytes(data.listing, SIZE) == read.inputs.nbytes
    with pytest.raises(InputError, match="--image-size"):
        stream_images(data.listing, 0)


@pytest.mark.parametrize(("options", "streams"), [({}, False), ({"stream": True}, True), ({"most_bytes": 0}, True)])
def test_images_are_left_in_their_files_where_asked_or_too_many(root, options, streams):
    opened = open_data(str(root), image_size=SIZE, features=False, **options)
    assert isinstance(opened, StreamedImages) == streams


def test_the_limit_is_what_the_pixels_take(root):
    size = 42 * SIZE**2 * 3
    for most, streams in ((size, False), (size - 1, True)):
        opened = open_data(str(root), image_size=SIZE, features=False, most_bytes=most)
        assert isinstance(opened, StreamedImages) == streams


def test_features_fit_whatever_the_limit(root):
    wanted = load_features(list_images(root), SIZE)
    np.testing.assert_array_equal(open_data(str(root), image_size=SIZE, most_bytes=0).inputs, wanted.inputs)


@pytest.mark.parametrize(
    ("arguments", "reason"), [(["--data", "{root}"], "features are computed once"), ([], "digits")]
)
def test_what_cannot_be_streamed_is_refused(root, tmp_path, capsys, arguments, reason):
    arguments = [each.format(root=root) for each in arguments]
    assert cli.main(["compare", *arguments, "--stream", "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert reason in message
    assert "leave out --stream" in message
    assert not (tmp_path / "out").exists()


def rename(folder):
    (folder / "a" / "cat" / "1.png").rename(folder / "a" / "cat" / "01.png")


def grow(folder):
    with (folder / "a" / "cat" / "1.png").open("ab") as file:
        file.write(b"0")


def relabel(folder):
    (folder / "a" / "cat" / "1.png").rename(folder / "a" / "dog" / "01.png")


@pytest.mark.parametrize("change", [rename, grow, relabel])
def test_the_fingerprint_is_that_of_the_files(data, root, tmp_path, change):
    folder = copied(root, tmp_path)
    assert fingerprint(stream_images(list_images(folder), SIZE)) == fingerprint(data)
    change(folder)
    assert fingerprint(stream_images(list_images(folder), SIZE)) != fingerprint(data)


def test_the_fingerprint_is_that_of_the_size_and_the_split(data):
    flags = tuple(tuple(k == 0 for k in range(len(each))) for each in data.listing.images)
    others = [
        stream_images(data.listing, SIZE + 1),
        stream_images(dataclasses.replace(data.listing, validation=flags), SIZE),
        load_images(data.listing, SIZE),
    ]
    assert len({fingerprint(each) for each in (data, *others)}) == 4


def test_an_image_that_is_gone_is_named(root, tmp_path):
    folder = copied(root, tmp_path)
    gone = stream_images(list_images(folder), SIZE)
    (folder / "b" / "dog" / "2.png").unlink()
    with pytest.raises(InputError, match=r"cannot read image .*2\.png"):
        fingerprint(gone)


def test_the_budget_is_the_same_at_every_start():
    assert streamed.pixel_budget(123) == 123
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < streamed.pixel_budget() == streamed.pixel_budget() <= total // 2


@pytest.mark.parametrize(
    ("options", "streams"),
    [([], False), (["--stream"], True), (["--memory", "1e-6"], True), (["--memory", "1"], False)],
)
def test_the_command_line_says_where_the_images_are(root, tmp_path, capsys, options, streams):
    arguments = ["--data", str(root), "--model", "conv", "--out", str(tmp_path / "out"), "--target", "moon"]
    assert cli.main(["compare", *arguments, *options]) == 2
    message = capsys.readouterr().err
    assert "unknown --target moon" in message
    assert ("reading the images of pictures from disk as they are needed\n" in message) == streams


@pytest.mark.slow
def test_a_comparison_on_the_command_line(root, tmp_path, capsys):
    arguments = ["--data", str(root), "--model", "conv", "--image-size", str(SIZE), "--method", "sam"]
    arguments += ["--seeds", "2", "--steps", "4", "--evaluations", "2", "--target", "b", "--out"]
    assert cli.main(["compare", *arguments, str(tmp_path / "memory")]) == 0
    assert cli.main(["compare", *arguments, str(tmp_path / "streamed"), "--stream"]) == 0
    one, other = (results_file.load_results(tmp_path / name) for name in ("memory", "streamed"))
    place = {run[:4]: k for k, run in enumerate(other.runs)}
    order = [place[run[:4]] for run in one.runs]
    for field in results_file.MEASURED:
        found = getattr(other, field)[order]
        np.testing.assert_allclose(found, getattr(one, field), rtol=2e-5, atol=2e-6, err_msg=field)
    capsys.readouterr()
    arguments += [str(tmp_path / "streamed"), "--candidates", "1"]
    assert cli.main(["sweep", *arguments]) == 2
    assert "data.streamed is true there and false here" in capsys.readouterr().err
