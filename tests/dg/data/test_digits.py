from functools import partial

import numpy as np
import pytest
from scipy import ndimage
from sklearn import datasets
from sklearn.model_selection import StratifiedKFold

from disam_jax.dg.data import digits
from disam_jax.dg.data.domains import join_domains

IMAGES = np.asarray(datasets.load_digits(return_X_y=True)[0], np.float64).reshape(-1, 8, 8) / 16.0
LABELS = np.asarray(datasets.load_digits(return_X_y=True)[1], np.int32)


@pytest.mark.parametrize("name", digits.SHIFTS)
def test_a_shift_keeps_shape_and_range_and_leaves_its_input_alone(name):
    before = IMAGES[:50].copy()
    after = digits.SHIFTS[name](before, np.random.default_rng(0))
    assert after.shape == before.shape
    assert after.min() >= 0.0
    assert after.max() <= 1.0
    np.testing.assert_array_equal(before, IMAGES[:50])


@pytest.mark.parametrize("name", [name for name in digits.SHIFTS if name != "clean"])
def test_a_shift_changes_every_image(name):
    after = digits.SHIFTS[name](IMAGES[:200], np.random.default_rng(0))
    assert (np.abs(after - IMAGES[:200]).max((1, 2)) > 0.1).all()


def test_shifts_do_what_their_names_say():
    rng = np.random.default_rng(0)
    image = np.zeros((1, 8, 8))
    image[0, 1, 3:5] = 1.0
    np.testing.assert_array_equal(digits.clean(image, rng), image)
    np.testing.assert_array_equal(digits.inversion(image, rng), 1.0 - image)
    # From the top to the top left: counter-clockwise on the page.
    turned = digits.rotation(image, rng)[0]
    assert turned[:4, :4].sum() > 0.9 * turned.sum()
    blurred = digits.blur(image, rng)[0]
    assert blurred.max() < 0.5
    assert blurred.sum() == pytest.approx(2.0, rel=0.1)
    noisy = digits.noise(np.full((500, 8, 8), 0.5), rng)
    assert noisy.mean() == pytest.approx(0.5, abs=0.01)
    assert (noisy == 0.0).mean() == pytest.approx(0.1587, abs=0.02)
    textured = digits.texture(IMAGES[:300], rng)
    assert (textured >= IMAGES[:300]).all()
    paper = textured[:, :, 0]
    assert 0.2 < paper.mean() < 0.6


# The transpose is a mirror image: a quarter turn to the left is the mirror image of the transpose upside down.
@pytest.mark.parametrize(
    ("degrees", "expected"), [(0.0, IMAGES), (90.0, IMAGES.transpose(0, 2, 1)[:, ::-1]), (180.0, IMAGES[:, ::-1, ::-1])]
)
def test_a_rotation_is_counter_clockwise(degrees, expected):
    turned = digits.rotation(IMAGES, np.random.default_rng(0), degrees=degrees)
    np.testing.assert_allclose(turned, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        (partial(digits.blur, sigma=0.0), IMAGES),
        (partial(digits.noise, deviation=0.0), IMAGES),
        (partial(digits.texture, faintest=0.0, strongest=0.0), IMAGES),
        (partial(digits.noise, deviation=0.1), IMAGES + 0.1 * np.random.default_rng(4).standard_normal(IMAGES.shape)),
        (partial(digits.blur, sigma=2.0), ndimage.gaussian_filter1d(ndimage.gaussian_filter1d(IMAGES, 2.0, 1), 2.0, 2)),
    ],
)
def test_the_parameter_of_a_shift_is_its_strength(shift, expected):
    np.testing.assert_allclose(shift(IMAGES, np.random.default_rng(4)), np.clip(expected, 0.0, 1.0), atol=1e-9)


def test_stripes_repeat_after_four_pixels_and_are_as_strong_as_asked():
    paper = digits.texture(np.zeros((400, 8, 8)), np.random.default_rng(0), faintest=0.2, strongest=0.4)
    np.testing.assert_allclose(paper[:, :, :4], paper[:, :, 4:], atol=1e-9)
    # Along one of the two diagonals nothing changes.
    down = np.abs(paper[:, 1:, 1:] - paper[:, :-1, :-1]).max((1, 2))
    up = np.abs(paper[:, 1:, :-1] - paper[:, :-1, 1:]).max((1, 2))
    assert (np.minimum(down, up) < 1e-9).all()
    assert 0.4 < (down < 1e-9).mean() < 0.6
    strength = np.ptp(paper, (1, 2))
    assert strength.min() > 0.14
    assert 0.35 < paper.max() <= 0.4


def test_no_digit_is_dealt_twice_and_all_are_dealt():
    groups = digits.deal(LABELS, 6, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate(groups)), np.arange(1797))


def test_every_group_has_its_share_of_every_class():
    counts = np.array([np.bincount(LABELS[group], minlength=10) for group in digits.deal(LABELS, 6, seed=3)])
    assert (np.ptp(counts, axis=0) <= 1).all()


def test_the_domains_are_disjoint_and_labelled_right():
    data = digits.load_digits()
    assert data.domain_names == ("clean", "rotation", "inversion", "blur", "noise", "texture")
    assert data.inputs.shape == (1797, 64)
    assert data.inputs.dtype == np.float32
    # An inverted digit, inverted back, is one of scikit-learn's, with the same label, and not one of the clean ones.
    original = {image.astype(np.float32).tobytes(): label for image, label in zip(IMAGES, LABELS, strict=True)}
    inverted = (1.0 - data.inputs[data.domain_ids == 2]).astype(np.float32)
    labels = [original[image.reshape(8, 8).tobytes()] for image in inverted]
    np.testing.assert_array_equal(labels, data.labels[data.domain_ids == 2])
    clean = {image.tobytes() for image in data.inputs[data.domain_ids == 0]}
    assert not clean & {image.tobytes() for image in inverted}


# Groups, seeds and parameters as at the first release: results of different versions can be compared.
def test_the_six_domains_are_the_same_as_ever():
    data = digits.load_digits(seed=3)
    folds = StratifiedKFold(6, shuffle=True, random_state=3).split(LABELS, LABELS)
    groups = [group for _, group in folds]
    np.testing.assert_array_equal(data.labels, LABELS[np.concatenate(groups)])
    rng = np.random.default_rng([3, 4])
    noisy = np.clip(IMAGES[groups[4]] + 0.5 * rng.standard_normal((len(groups[4]), 8, 8)), 0.0, 1.0)
    np.testing.assert_allclose(data.inputs[data.domain_ids == 4], noisy.reshape(-1, 64), atol=1e-6)
    for place, name in enumerate(digits.SHIFTS):
        expected = digits.SHIFTS[name](IMAGES[groups[place]], np.random.default_rng([3, place]))
        np.testing.assert_array_equal(
            data.inputs[data.domain_ids == place], expected.reshape(-1, 64).astype(np.float32)
        )


def test_rotated_digits_are_six_angles_of_different_digits():
    data = digits.load_rotated_digits(seed=2)
    assert data.name == "digits-rotated"
    assert data.domain_names == ("0", "15", "30", "45", "60", "75")
    assert data.inputs.shape == (1797, 64)
    groups = digits.deal(LABELS, 6, seed=2)
    for place, group in enumerate(groups):
        turned = ndimage.rotate(IMAGES[group], 15.0 * place, axes=(1, 2), reshape=False, order=1)
        mine = data.inputs[data.domain_ids == place]
        np.testing.assert_allclose(mine, np.clip(turned, 0, 1).reshape(-1, 64), atol=1e-6)
    np.testing.assert_array_equal(data.inputs[:300], IMAGES[groups[0]].reshape(-1, 64).astype(np.float32))


def test_a_mixture_of_ones_own():
    data = digits.make_digits({"plain": digits.clean, "negative": digits.inversion}, "mine", seed=5)
    assert (data.name, data.domain_names) == ("mine", ("plain", "negative"))
    groups = digits.deal(LABELS, 2, seed=5)
    np.testing.assert_allclose(data.inputs[data.domain_ids == 1], 1 - IMAGES[groups[1]].reshape(-1, 64), atol=1e-6)


@pytest.mark.parametrize(
    ("shifts", "message"),
    [
        ({"plain": digits.clean}, "at least two shifts"),
        ({"plain": digits.clean, "cut": lambda images, rng: images[:, :4]}, "the shift 'cut' must keep the shape"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(shifts, message):
    with pytest.raises(ValueError, match=message):
        digits.make_digits(shifts, "mine")


def test_the_seed_decides_everything():
    one, same, other = digits.load_digits(0), digits.load_digits(0), digits.load_digits(1)
    np.testing.assert_array_equal(one.inputs, same.inputs)
    np.testing.assert_array_equal(one.labels, same.labels)
    assert (one.inputs[:290] != other.inputs[:290]).any(1).mean() > 0.9


def test_joining_keeps_the_rows_of_each_domain_together(toy):
    assert toy.counts.tolist() == [5, 11, 8]
    assert toy.starts.tolist() == [0, 5, 16]
    assert toy.domain_ids.tolist() == [0] * 5 + [1] * 11 + [2] * 8


@pytest.mark.parametrize(
    ("sizes", "label_sizes", "names", "message"),
    [
        ((2, 3), (2, 2), "ab", r"inputs of \[2, 3\] rows, labels of \[2, 2\]"),
        ((2, 3), (2, 3), "abc", "3 names"),
        ((2, 0), (2, 0), "ab", "domain 'b' has no example"),
    ],
)
def test_joining_refuses_what_does_not_fit(sizes, label_sizes, names, message):
    with pytest.raises(ValueError, match=message):
        join_domains("t", [np.zeros((n, 1)) for n in sizes], [np.zeros(n, int) for n in label_sizes], names, "xy")
