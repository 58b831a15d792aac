import colorsys
import math
from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from support import slow

from disam_jax.dg.data import augment as a

LEVEL = 1 / 255
ON = {
    "scale": (0.7, 1.0),
    "flip": 0.5,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
    "hue": 0.3,
    "grayscale": 1.0,
}


@pytest.fixture(scope="module")
def images():
    """Noise with large patches of one colour, so that neither edges nor even areas are missed."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (6, 24, 32, 3), np.uint8)
    patches = rng.integers(0, 256, (6, 3, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    return np.where(rng.random((6, 1, 1, 1)) < 0.5, noise, patches)


def as_float(image):
    return jnp.asarray(image, jnp.float32) / 255.0


def planes(image):
    return a.split_colours(as_float(image))


def joined(colours):
    return np.asarray(a.join_colours(colours))


# Compiled once for all tests, for time.
resize_crop = jax.jit(a.resize_crop)
augment_image = jax.jit(a.augment_image, static_argnames="config")
STRONG = a.Augmentation(scale=(0.05, 1.0), brightness=0.3, contrast=2.0, saturation=2.0, hue=0.5)


def box(*values):
    return a.Crop(*(jnp.int32(value) for value in values))


@pytest.mark.parametrize("crop", [(0, 0, 24, 32), (3, 5, 17, 20), (0, 31, 24, 1), (23, 0, 1, 32), (10, 12, 2, 3)])
def test_a_crop_is_scaled_as_pil_does(images, crop):
    top, left, height, width = crop
    whole = Image.fromarray(images[0])
    expected = whole.crop((left, top, left + width, top + height)).resize((32, 24), Image.Resampling.BILINEAR)
    found = resize_crop(as_float(images[0]), box(*crop))
    # PIL rounds to whole levels after the rows and after the columns.
    np.testing.assert_allclose(found, np.asarray(expected) / 255, atol=1.01 * LEVEL)


@pytest.mark.parametrize("crop", [(3, 5, 17, 20), (1, 0, 23, 32)])
def test_a_crop_is_scaled_as_jax_does(images, crop):
    top, left, height, width = crop
    cut = as_float(images[1])[top : top + height, left : left + width]
    expected = jax.image.resize(cut, (24, 32, 3), "linear", antialias=True)
    np.testing.assert_allclose(resize_crop(as_float(images[1]), box(*crop)), expected, atol=2e-6)


def test_the_whole_image_as_crop_is_the_image(images):
    np.testing.assert_array_equal(resize_crop(as_float(images[0]), box(0, 0, 24, 32)), as_float(images[0]))


def draw_many(draw, number):
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), number)))


def test_crops_are_distributed_as_they_should_be():
    """Against torchvision's rule, run in numpy with other random numbers."""
    height, width, scale, ratio = 24, 32, (0.3, 1.0), (3 / 4, 4 / 3)
    found = draw_many(lambda key: a.draw_crop(key, height, width, scale, ratio), 4000)
    assert all(x.dtype == np.int32 for x in found)
    rng = np.random.default_rng(0)
    expected = []
    while len(expected) < 4000:
        area = rng.uniform(*scale) * height * width
        share = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * share)), round(math.sqrt(area / share))
        if w <= width and h <= height:
            expected.append((rng.integers(height - h + 1), rng.integers(width - w + 1), h, w))
    expected = np.array(expected).T
    assert (found.top >= 0).all()
    assert (found.left >= 0).all()
    assert (found.top + found.height <= height).all()
    assert (found.left + found.width <= width).all()
    for mine, theirs in zip(found, expected, strict=True):
        assert abs(mine.min() - theirs.min()) <= 1
        assert abs(mine.max() - theirs.max()) <= 1
        error = 5 * theirs.std() * math.sqrt(2 / 4000)
        np.testing.assert_allclose(mine.mean(), theirs.mean(), atol=error)
        np.testing.assert_allclose(mine.std(), theirs.std(), atol=error)
        # The greatest distance between the two distribution functions (Kolmogorov and Smirnov).
        grid = np.arange(40)
        distance = np.abs((mine[:, None] <= grid[None]).mean(0) - (theirs[:, None] <= grid[None]).mean(0))
        assert distance.max() < 2.0 * math.sqrt(2 / 4000)


def test_the_defaults_of_domainbed_keep_seven_tenths_of_the_area():
    found = draw_many(lambda key: a.draw_crop(key, 64, 64, (0.7, 1.0)), 2000)
    area = found.height * found.width / 64**2
    assert 0.68 < area.min() < 0.72
    assert 0.98 < area.max() <= 1.0
    assert 0.74 < (found.width / found.height).min() < 0.8
    assert 1.25 < (found.width / found.height).max() < 1.35


@pytest.mark.parametrize(
    ("size", "expected"),
    [((10, 40), (0, 13, 10, 13)), ((40, 10), (13, 0, 13, 10)), ((24, 24), (0, 0, 24, 24))],
)
def test_where_no_box_fits_the_central_one_is_taken(size, expected):
    # All of the area with another shape than the image's never fits; the square fits at once.
    found = a.draw_crop(
        jax.random.key(1), *size, scale=(1.0, 1.0), ratio=(3 / 4, 4 / 3) if size[0] != size[1] else (1, 1)
    )
    assert tuple(int(x) for x in found) == expected


def test_flips_mirror_half_of_the_images_exactly(images):
    image = jnp.asarray(images[0])
    flipped = jax.vmap(a.random_flip, (0, None))(jax.random.split(jax.random.key(0), 600), image)
    mirrored = [bool((one == images[0][:, ::-1]).all()) for one in np.asarray(flipped)]
    kept = [bool((one == images[0]).all()) for one in np.asarray(flipped)]
    assert all(x != y for x, y in zip(mirrored, kept, strict=True))
    assert abs(np.mean(mirrored) - 0.5) < 5 * math.sqrt(0.25 / 600)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_a_certain_flip_is_certain(images, p):
    for seed in range(5):
        found = a.random_flip(jax.random.key(seed), jnp.asarray(images[0]), p)
        np.testing.assert_array_equal(found, images[0][:, ::-1] if p else images[0])


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.0, 1.3])
@pytest.mark.parametrize(
    ("change", "enhance"),
    [
        (a.change_brightness, ImageEnhance.Brightness),
        (a.change_contrast, ImageEnhance.Contrast),
        (a.change_saturation, ImageEnhance.Color),
    ],
)
def test_brightness_contrast_and_saturation_are_those_of_pil(images, change, enhance, factor):
    for image in images[:3]:
        expected = np.asarray(enhance(Image.fromarray(image)).enhance(factor)) / 255
        # PIL rounds the grey value and cuts the result down to whole levels.
        np.testing.assert_allclose(joined(change(planes(image), jnp.float32(factor))), expected, atol=1.6 * LEVEL)


def test_contrast_and_saturation_are_blends_with_grey(images):
    x = images[0] / 255
    grey = x @ np.array([0.299, 0.587, 0.114])
    found = joined(a.change_contrast(planes(images[0]), jnp.float32(1.2)))
    np.testing.assert_allclose(found, np.clip(1.2 * x - 0.2 * grey.mean(), 0, 1), atol=1e-6)
    found = joined(a.change_saturation(planes(images[0]), jnp.float32(0.8)))
    np.testing.assert_allclose(found, 0.8 * x + 0.2 * grey[..., None], atol=1e-6)


@pytest.mark.parametrize("shift", [-0.5, -0.3, -0.01, 0.0, 0.2, 0.3, 0.5])
def test_hue_is_that_of_colorsys(images, shift):
    patches = images[:, ::4, ::4].reshape(-1, 1, 3)
    corners = np.array([[r, g, b] for r in (0, 128, 255) for g in (0, 128, 255) for b in (0, 128, 255)], np.uint8)
    sample = np.concatenate([patches, corners[:, None]])
    found = joined(a.change_hue(planes(sample), jnp.float32(shift)))[:, 0]
    for pixel, new in zip(sample[:, 0] / 255, found, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        np.testing.assert_allclose(new, colorsys.hsv_to_rgb((h + shift) % 1, s, v), atol=3e-6)


def test_jitter_applies_its_four_changes_in_its_order(images):
    changes = (a.change_brightness, a.change_contrast, a.change_saturation, a.change_hue)
    amounts = tuple(jnp.float32(x) for x in (1.3, 0.7, 1.25, 0.2))
    results = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        colours = planes(images[0])
        for place in order:
            colours = changes[place](colours, amounts[place])
        results.append(joined(colours))
        jitter = a.Jitter(jnp.array(order, jnp.int32), *amounts)
        np.testing.assert_allclose(a.apply_jitter(as_float(images[0]), jitter), results[-1], atol=2e-6)
    assert min(np.abs(results[0] - results[1]).max(), np.abs(results[0] - results[2]).max()) > 0.02


def test_jitter_is_drawn_from_its_ranges_in_all_orders():
    found = draw_many(lambda key: a.draw_jitter(key, 0.1, 0.2, 1.5, 0.4), 2400)
    for values, (least, most) in zip(found[1:], [(0.9, 1.1), (0.8, 1.2), (0.0, 2.5), (-0.4, 0.4)], strict=True):
        width = most - least
        assert least <= values.min() < least + 0.01 * width
        assert most - 0.01 * width < values.max() <= most + 1e-6
        np.testing.assert_allclose(values.mean(), (least + most) / 2, atol=5 * width / math.sqrt(12 * 2400))
    orders, times = np.unique(found.order, axis=0, return_counts=True)
    assert orders.shape == (24, 4)
    assert np.abs(times - 100).max() < 50
    assert np.abs(np.corrcoef(np.stack(found[1:])) - np.eye(4)).max() < 0.1


def test_grey_is_that_of_pil_and_comes_as_often_as_asked(images):
    expected = np.asarray(Image.fromarray(images[0]).convert("L"))[..., None] / 255
    certain = a.random_grayscale(jax.random.key(0), as_float(images[0]), 1.0)
    np.testing.assert_allclose(certain, np.broadcast_to(expected, (24, 32, 3)), atol=0.51 * LEVEL)
    keys = jax.random.split(jax.random.key(1), 2000)
    some = jax.vmap(lambda key: a.random_grayscale(key, as_float(images[0][:1, :2])))(keys)
    share = np.mean(np.ptp(np.asarray(some), axis=-1).max((1, 2)) < 1e-6)
    assert abs(share - 0.1) < 5 * math.sqrt(0.09 / 2000)


def test_nothing_is_changed_where_all_is_off(images):
    found = a.augment(jax.random.key(0), jnp.asarray(images), a.OFF)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, images / 255, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["scale", "flip", "brightness", "grayscale", *slow("contrast", "saturation", "hue")])
def test_each_part_can_be_on_alone(images, part):
    """The result of one part on its own is that of its function with its key."""
    config = replace(a.OFF, **{part: ON[part]})
    key = jax.random.key(3)
    crop_key, flip_key, colour_key, grey_key = jax.random.split(key, 4)
    x = as_float(images[1])
    expected = {
        "scale": lambda: a.random_resized_crop(crop_key, x),
        "flip": lambda: a.random_flip(flip_key, x),
        "grayscale": lambda: a.random_grayscale(grey_key, x, 1.0),
    }.get(part, lambda: a.colour_jitter(colour_key, x, **dict.fromkeys(COLOURS, 0.0) | {part: 0.3}))()
    found = augment_image(key, jnp.asarray(images[1]), config)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert part == "flip" or np.abs(found - x).max() > 0.01


COLOURS = ("brightness", "contrast", "saturation", "hue")


@pytest.mark.slow
@pytest.mark.parametrize("config", [replace(a.OFF, flip=0.5, grayscale=0.5), *slow(a.Augmentation())])
def test_a_batch_is_augmented_one_by_one_whatever_its_shape(images, config):
    key = jax.random.key(12)
    flat = a.augment(key, jnp.asarray(images), config)
    alone = [augment_image(jax.random.fold_in(key, i), jnp.asarray(images[i]), config) for i in (0, 4)]
    np.testing.assert_allclose(flat[jnp.array([0, 4])], jnp.stack(alone), atol=1e-5)
    grouped = a.augment(key, jnp.asarray(images).reshape(2, 3, 24, 32, 3), config)
    np.testing.assert_allclose(grouped.reshape(flat.shape), flat, atol=1e-6)
    runs = jax.vmap(a.augment, (0, None, None))(jnp.stack([jax.random.key(13), key]), jnp.asarray(images), config)
    np.testing.assert_allclose(runs[1], flat, atol=1e-6)
    np.testing.assert_array_equal(a.augment(key, jnp.asarray(images), config), flat)
    assert np.abs(runs[0] - runs[1]).max() > 0.1
    same = np.asarray(a.augment(key, jnp.asarray(images[:1].repeat(6, 0)), config))
    assert len({image.tobytes() for image in same}) == (6 if config.colours else 4)


@pytest.mark.slow
def test_black_white_and_grey_images_stay_what_they_are():
    levels = np.array([0, 0, 255, 255, 128, 128], np.uint8)
    images = jnp.asarray(np.broadcast_to(levels[:, None, None, None], (6, 24, 32, 3)))
    for seed in range(10):
        found = np.asarray(a.augment(jax.random.key(seed), images, STRONG))
        # Grey has no colour to turn or to take away, and a flat image nothing to crop.
        np.testing.assert_allclose(np.ptp(found, axis=(1, 2, 3)), 0.0, atol=1e-6)
        assert (found[:2] == 0).all()
        assert (found[2:4] >= 0.69).all()
        assert (found[4:] >= 0.69 * 0.5).all()
        assert (found[4:] <= 1.31 * 0.51).all()


def test_the_range_is_kept(images):
    found = np.asarray(a.augment(jax.random.key(0), jnp.asarray(images), STRONG))
    assert found.dtype == np.float32
    assert found.shape == images.shape
    assert np.isfinite(found).all()
    assert (found.min(), found.max()) == (0.0, 1.0)


def test_the_defaults_are_domainbeds():
    assert [getattr(a.Augmentation(), f.name) for f in fields(a.Augmentation)] == [
        (0.7, 1.0),
        (3 / 4, 4 / 3),
        0.5,
        *[0.3] * 4,
        0.1,
    ]
    assert hash(a.Augmentation()) == hash(a.Augmentation())


@pytest.mark.parametrize(
    "change",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.5)},
        {"scale": (0.5, 1.1)},
        {"ratio": (0.0, 1.0)},
        {"ratio": (2.0, 1.0)},
        {"flip": 1.1},
        {"grayscale": -0.1},
        {"hue": 0.6},
        {"brightness": -0.1},
        {"contrast": math.nan},
        {"saturation": math.inf},
    ],
)
def test_values_out_of_range_are_refused(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"^{name} must"):
        a.Augmentation(**change)


def test_what_is_no_batch_of_images_is_refused():
    with pytest.raises(TypeError, match="must be uint8, got float32"):
        a.augment(jax.random.key(0), jnp.zeros((2, 8, 8, 3), jnp.float32), a.OFF)
    with pytest.raises(ValueError, match=r"must be \[\.\.\., H, W, 3\], got shape \(2, 8, 8, 1\)"):
        a.augment(jax.random.key(0), jnp.zeros((2, 8, 8, 1), jnp.uint8), a.OFF)
