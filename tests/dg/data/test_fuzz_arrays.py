"""Damaged npz files: an error in one line, or exactly what numpy reads and what was written."""

import numpy as np
import pytest
from fuzz import cases, damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from disam_jax.dg.data.arrays import load_arrays
from disam_jax.dg.errors import InputError

pytestmark = pytest.mark.slow

CASES = cases(2500)
RNG = np.random.default_rng(0)
NUMBERS = {"x": RNG.normal(size=(12, 3)).astype(np.float32), "y": np.tile([0, 1, 2], 4), "domain": np.repeat([3, 1], 6)}
NAMES = {
    "x": RNG.integers(0, 256, (12, 2, 2, 3), np.uint8),
    "y": np.tile(["cat", "dog", "é"], 4),
    "domain": np.repeat(["sea", "air"], 6),
    "class_names": ["dog", "cat", "é"],
    "validation": np.arange(12) % 3 == 0,
}
KINDS = [(save, content) for save in (np.savez, np.savez_compressed) for content in (NUMBERS, NAMES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def valid(folder):
    """The bytes of each kind of file, which is read as it is."""
    contents = []
    for save, content in KINDS:
        save(folder / "valid.npz", **content)
        check(folder / "valid.npz", content)
        contents.append((folder / "valid.npz").read_bytes())
    return contents


def check(path, content):
    """What is read is what numpy reads, in the order of the domains, and every array is one that was written."""
    data = load_arrays(path)
    with np.load(path) as npz:
        arrays = {name: npz[name] for name in npz.files}
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, content[name])
    order = np.argsort(arrays["domain"], kind="stable")
    np.testing.assert_array_equal(data.inputs, arrays["x"][order])
    assert [data.class_names[label] for label in data.labels] == [str(y) for y in arrays["y"][order]]
    assert [data.domain_names[each] for each in data.domain_ids] == [str(each) for each in arrays["domain"][order]]
    assert (data.validation is None) == ("validation" not in arrays)
    if data.validation is not None:
        np.testing.assert_array_equal(data.validation, arrays["validation"][order])


@settings(
    max_examples=CASES,
    deadline=5000,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(st.data())
def test_damaged_files_are_refused_or_read_as_numpy_reads_them(folder, valid, data):
    kind = data.draw(st.integers(0, len(KINDS) - 1))
    path = folder / "toy.npz"
    path.write_bytes(data.draw(damaged(valid[kind])))
    try:
        check(path, KINDS[kind][1])
    except InputError as error:
        message = str(error)
    else:
        return
    assert str(path) in message
    assert message.isprintable()
