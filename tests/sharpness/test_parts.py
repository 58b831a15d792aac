"""The file from which an interrupted measure goes on: read as it was written, or named in one line."""

import os
import zipfile

import numpy as np
import pytest
from fuzz import cases, damaged
from hypothesis import given, settings
from hypothesis import strategies as st

from disam_jax.sharpness import _parts

CASES = 1000
LOSSES = np.array([0.5, 1.5], np.float32)
PARTS = {
    "losses": np.arange(6, dtype=np.float32).reshape(3, 2),
    "turned": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "found": np.array([True, False, True]),
    "count": np.arange(3, dtype=np.uint8),
}


def load(path):
    return _parts._load(path, "landscape", "the mark", LOSSES)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("parts") / "measured.npz"
    _parts._save(path, PARTS, "the mark", LOSSES)
    return path, path.read_bytes()


def check(found):
    assert found.keys() == PARTS.keys()
    for name, values in PARTS.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype


def test_a_file_is_read_as_it_was_written(written):
    check(load(written[0]))


@pytest.mark.slow
@settings(max_examples=cases(CASES))
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_rightly(written, data):
    path, content = written
    path.write_bytes(data.draw(damaged(content)))
    try:
        check(load(path))
    except ValueError as error:
        check_message(error, path)
    finally:
        path.write_bytes(content)


def check_message(error, path):
    assert str(path) in str(error)
    assert str(error).isprintable()


def header(shape, dtype="<f4"):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\n"


def with_member(name, content, **options):
    def make(path):
        _parts._save(path, PARTS, "the mark", LOSSES)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, content, **options)

    return make


def absent_part(path):
    _parts._save(path, {}, "the mark", LOSSES)


def uneven_parts(path):
    _parts._save(path, {**PARTS, "more": np.zeros(4)}, "the mark", LOSSES)


def of_no_parts(path):
    _parts._save(path, {**PARTS, "more": np.float32(1.0)}, "the mark", LOSSES)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"mine"),
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to("nothing"),
        lambda path: path.symlink_to("/dev/zero"),
        absent_part,
        uneven_parts,
        of_no_parts,
        with_member("more.npy", b"no array"),
        with_member("more.npy", header("(999999999999999999,)")),
        with_member("more.npy", header("(9999999999, 9999999999, 9999999999)")),
        with_member("more.npy", header("((((((((")),
        with_member("more.npy", header("(3,)", "|O8") + b"0" * 24),
        with_member("more.npy", b"0" * 10**6, compress_type=zipfile.ZIP_DEFLATED),
        with_member("more.npy", b"0" * 100, compress_type=zipfile.ZIP_LZMA),
    ],
)
def test_what_is_no_measure_is_named(tmp_path, make):
    path = tmp_path / "measured.npz"
    make(path)
    with pytest.raises(ValueError, match=r"measured.npz holds no measure of disam_jax.sharpness"):
        load(path)
