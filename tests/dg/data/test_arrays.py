import re

import numpy as np
import pytest

from disam_jax.dg.data import arrays
from disam_jax.dg.errors import InputError

N = 12
Y = np.tile([0, 1, 2], 4)
DOMAIN = np.array([5, 5, 5, 2, 2, 2, 5, 5, 5, 2, 2, 2])
X = np.arange(N * 4, dtype=np.float64).reshape(N, 4)


def save(path, **changes):
    content = {"x": X, "y": Y, "domain": DOMAIN} | changes
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return path


def test_rows_are_put_in_the_order_of_the_domains(tmp_path):
    flags = np.arange(N) % 5 == 0
    data = arrays.load_arrays(save(tmp_path / "toy.npz", validation=flags))
    rows = [3, 4, 5, 9, 10, 11, 0, 1, 2, 6, 7, 8]
    assert data.name == "toy"
    assert data.domain_names == ("2", "5")
    assert data.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(data.inputs, X[rows])
    np.testing.assert_array_equal(data.labels, Y[rows])
    np.testing.assert_array_equal(data.domain_ids, [0] * 6 + [1] * 6)
    np.testing.assert_array_equal(data.validation, flags[rows])
    types = (data.inputs.dtype, data.labels.dtype, data.domain_ids.dtype, data.validation.dtype)
    assert types == (np.float32, np.int32, np.int32, bool)


@pytest.mark.parametrize(
    ("changes", "domain_names", "ids"),
    [
        ({"domain": np.array(["sea", "air"])[Y % 2]}, ("air", "sea"), [1, 0, 1]),
        ({"domain": np.array(["sea", "air"])[Y % 2], "domain_names": ["sea", "air"]}, ("sea", "air"), [0, 1, 0]),
        ({"domain": Y % 2, "domain_names": ["sea", "air"]}, ("sea", "air"), [0, 1, 0]),
        ({"domain": 7 - Y % 2}, ("6", "7"), [1, 0, 1]),
    ],
)
def test_domain_names_come_from_the_values_or_are_given(tmp_path, changes, domain_names, ids):
    data = arrays.load_arrays(save(tmp_path / "toy.npz", **changes), allow_missing_classes=True)
    assert data.domain_names == domain_names
    # By the first column of x, which counts the rows in fours.
    found = dict(zip(data.inputs[:, 0].tolist(), data.domain_ids.tolist(), strict=True))
    assert [found[0.0], found[4.0], found[8.0]] == ids


@pytest.mark.parametrize(
    ("changes", "class_names", "labels"),
    [
        ({"y": np.array(["dog", "cat", "cow"])[Y]}, ("cat", "cow", "dog"), [2, 0, 1]),
        (
            {"y": np.array(["dog", "cat", "cow"])[Y], "class_names": ["dog", "cat", "cow"]},
            ("dog", "cat", "cow"),
            [0, 1, 2],
        ),
        ({"class_names": ["dog", "cat", "cow"]}, ("dog", "cat", "cow"), [0, 1, 2]),
        ({"y": Y.astype(np.uint64)}, ("0", "1", "2"), [0, 1, 2]),
    ],
)
def test_class_names_come_from_the_values_or_are_given(tmp_path, changes, class_names, labels):
    data = arrays.load_arrays(save(tmp_path / "toy.npz", **changes))
    assert data.class_names == class_names
    assert data.labels[:3].tolist() == labels


def test_images_stay_uint8(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (N, 4, 5, 3), np.uint8)
    data = arrays.load_arrays(save(tmp_path / "toy.npz", x=images, domain=np.repeat([0, 1], 6)))
    assert data.inputs.dtype == np.uint8
    np.testing.assert_array_equal(data.inputs, images)


def broken(value):
    x = X.copy()
    x[7, 1] = value
    return x


def at(values, place, value):
    values = np.array(values)
    values[place] = value
    return values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": None}, "has no array 'y', only x, domain"),
        ({"labels": Y}, "unknown array 'labels'; known are x, y"),
        ({"y": Y[:-1]}, r"y must have shape \[12\] like x, got \[11\]"),
        ({"domain": DOMAIN[:, None]}, r"domain must have shape \[12\] like x, got \[12, 1\]"),
        ({"x": X[:, 0]}, r"x must be \[N, ...\].*got shape \[12\]"),
        ({"x": X[:0], "y": Y[:0], "domain": DOMAIN[:0]}, "x must be .* at least one row"),
        ({"x": broken(np.nan)}, r"x is not finite in 1 rows, the first 7 \(from 0\)"),
        ({"x": broken(-np.inf)}, "x is not finite in 1 rows, the first 7"),
        ({"x": broken(1e300)}, "x is not finite in 1 rows, the first 7"),
        ({"x": X.astype(np.int64)}, "x must be floating point or uint8, got int64"),
        ({"x": X.astype(np.uint8)}, r"x of uint8 must be images \[N, H, W, 3\], got \[12, 4\]"),
        ({"y": np.array([None] * N)}, "y holds Python objects; save numbers or strings"),
        ({"y": Y.astype(np.float32)}, "y must be integers or strings, got float32"),
        ({"domain": DOMAIN > 3}, "domain must be integers or strings, got bool"),
        ({"y": at(Y, 4, -1)}, "label -1 in row 4 of y; labels count from 0"),
        ({"y": at(Y, 4, 10**9)}, "label 1000000000 in row 4 of y; labels count from 0"),
        ({"class_names": ["a", "b"]}, "label 2 in row 2 of y; labels count from 0 for 2 class_names"),
        ({"y": Y + 1}, "no example of the class 0 in any domain"),
        ({"class_names": ["a", "b", "c", "d"]}, "no example of the class d in any domain"),
        ({"class_names": ["a", "a", "b"]}, "class_names must be different strings"),
        ({"class_names": [1, 2, 3]}, "class_names must be different strings, got int64"),
        ({"y": np.array(["u", "v", "w"])[Y], "class_names": ["u", "v"]}, "'w' in y is not among the class_names: u, v"),
        ({"domain_names": ["a", "b"]}, "domain 5 in row 0, but there are 2 domain_names"),
        ({"domain": Y % 2, "domain_names": ["a", "b", "c"]}, "no example of the domain c"),
        ({"y": at(Y, [2, 8], 0)}, "class 2 is missing in domain 5"),
        ({"domain": DOMAIN * 0}, "only one domain"),
        ({"y": Y * 0}, "only one class"),
        ({"validation": Y}, "validation must be bool, got int64"),
    ],
)
def test_arrays_that_cannot_be_are_refused(tmp_path, changes, message):
    path = save(tmp_path / "toy.npz", **changes)
    with pytest.raises(InputError, match=message) as error:
        arrays.load_arrays(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_classes_can_be_allowed(tmp_path):
    data = arrays.load_arrays(save(tmp_path / "toy.npz", y=at(Y, [2, 8], 0)), allow_missing_classes=True)
    assert np.bincount(data.labels[data.domain_ids == 1], minlength=3).tolist() == [4, 2, 0]


def single(path):
    with path.open("wb") as file:
        np.save(file, X)


def truncated(path):
    path.write_bytes(save(path).read_bytes()[:300])


def damaged(path):
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(N, 90)), y=Y, domain=DOMAIN)
    content = bytearray(path.read_bytes())
    content[400:500] = bytes(100)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot read .*: No such file"),
        (lambda path: path.write_text("x"), "cannot read .*: not a complete npz file"),
        (lambda path: path.write_bytes(b""), "cannot read .*: not a complete npz file"),
        (truncated, "cannot read .*: not a complete npz file"),
        (damaged, "cannot read x of "),
        (single, "a single array; write np.savez"),
    ],
)
def test_a_file_that_holds_no_arrays_is_refused(tmp_path, make, message):
    path = tmp_path / "toy.npz"
    make(path)
    with pytest.raises(InputError, match=message) as error:
        arrays.load_arrays(path)
    assert re.search(re.escape(str(path)), str(error.value))
