"""Arrays that are kept on disk: what is not whole, or of something else, is never believed."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from disam_jax.dg.data.array_cache import Wanted, differences, keep, stored
from disam_jax.dg.errors import InputError

WANTED = Wanted("toy", {"weights": "abc", "image_size": [8, 8, 3]}, (5, 3), "float32")
ARRAY = np.arange(15, dtype=np.float32).reshape(5, 3)


def blocks():
    return iter([ARRAY[:2], ARRAY[2:4], ARRAY[4:]])


def never():
    raise AssertionError("computed again")


def put(folder, wanted=WANTED):
    return keep(folder, wanted, blocks, pytest.fail)


def test_an_array_is_computed_once_and_mapped(tmp_path):
    np.testing.assert_array_equal(put(tmp_path / "new"), ARRAY)
    said = []
    found = stored(tmp_path / "new", WANTED, said.append)
    np.testing.assert_array_equal(found, ARRAY)
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable
    assert not said
    assert sorted(path.suffix for path in (tmp_path / "new").iterdir()) == [".json", ".npy"]


def test_float16_is_half_of_it(tmp_path):
    half = WANTED._replace(dtype="float16")
    found = put(tmp_path, half)
    assert (found.dtype, 2 * half.bytes) == (np.float16, WANTED.bytes)
    np.testing.assert_array_equal(found, ARRAY.astype(np.float16))


def test_another_origin_shape_or_type_is_another_array(tmp_path):
    put(tmp_path)
    others = [
        (WANTED._replace(origin={**WANTED.origin, "weights": "xyz"}), ["weights"]),
        (WANTED._replace(origin={**WANTED.origin, "image_size": [16, 16, 3]}), ["image_size"]),
        (WANTED._replace(origin={**WANTED.origin, "view": 1}), ["view"]),
        (WANTED._replace(shape=(3, 5)), ["shape"]),
        (WANTED._replace(dtype="float16"), ["dtype"]),
    ]
    for other, different in others:
        assert stored(tmp_path, other) is None
        assert list(differences(tmp_path, other).values()) == [different]
    assert differences(tmp_path, WANTED) == {}


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def no_header(path):
    path.write_bytes(b"\0" * path.stat().st_size)


def other_values(path):
    np.save(path, ARRAY.astype(np.int32))


def other_shape(path):
    np.save(path, ARRAY.reshape(3, 5))


def no_record(path):
    path.with_suffix(".json").unlink()


def half_a_record(path):
    record = path.with_suffix(".json")
    record.write_bytes(record.read_bytes()[:20])


def record_of_other_weights(path):
    record = json.loads(path.with_suffix(".json").read_text())
    record["origin"]["weights"] = "xyz"
    path.with_suffix(".json").write_text(json.dumps(record))


DAMAGES = [truncated, empty, no_header, other_values, other_shape, no_record, half_a_record, record_of_other_weights]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_whole_is_told_and_computed_anew(tmp_path, damage):
    put(tmp_path)
    damage(WANTED.path(tmp_path))
    said = []
    assert stored(tmp_path, WANTED, said.append) is None
    (line,) = said
    assert str(WANTED.path(tmp_path)) in line
    np.testing.assert_array_equal(put(tmp_path), ARRAY)
    assert stored(tmp_path, WANTED, pytest.fail) is not None


def test_a_run_that_fails_leaves_nothing(tmp_path):
    def fails():
        yield ARRAY[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, WANTED, fails, pytest.fail)
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(put(tmp_path), ARRAY)


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_that_is_believed(tmp_path):
    code = """
import os, sys
from pathlib import Path
import numpy as np
from disam_jax.dg.data.array_cache import Wanted, keep
def blocks():
    yield np.ones((2, 3))
    os.kill(os.getpid(), 9)
keep(Path(sys.argv[1]), Wanted("toy", {"weights": "abc", "image_size": [8, 8, 3]}, (5, 3), "float32"), blocks, print)
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    assert stored(tmp_path, WANTED, pytest.fail) is None
    # Another array's run clears up what the killed one left.
    put(tmp_path, WANTED._replace(name="other"))
    assert not list(tmp_path.glob("*.partial"))
    np.testing.assert_array_equal(put(tmp_path), ARRAY)


def test_two_runs_at_once_compute_it_once(tmp_path):
    begun, go_on, said, found = threading.Event(), threading.Event(), [], []

    def slowly():
        begun.set()
        assert go_on.wait(10)
        return blocks()

    def waits(line):
        said.append(line)
        go_on.set()

    first = threading.Thread(target=lambda: found.append(keep(tmp_path, WANTED, slowly, pytest.fail)))
    first.start()
    assert begun.wait(10)
    np.testing.assert_array_equal(keep(tmp_path, WANTED, never, waits), ARRAY)
    first.join()
    np.testing.assert_array_equal(found[0], ARRAY)
    (line,) = said
    assert "another process" in line


def test_a_full_disk_is_told_before_the_work(tmp_path):
    with pytest.raises(InputError, match=r"takes 3725290298\.5 GiB and .* give another folder with --cache DIR"):
        keep(tmp_path, WANTED._replace(shape=(10**18,)), never, pytest.fail)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*file.*; give another folder with --cache DIR"):
        put(tmp_path / "file")
