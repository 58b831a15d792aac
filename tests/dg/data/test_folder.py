import dataclasses
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from disam_jax.dg.data import features, folder, images, walk
from disam_jax.dg.errors import InputError


def test_everything_is_listed_in_order(image_folder):
    listed = folder.list_images(image_folder)
    assert listed.name == "pictures"
    assert listed.domain_names == ("art", "photo", "sketch")
    assert listed.class_names == ("cat", "dog")
    assert [len(domain) for domain in listed.images] == [4, 6, 8]
    assert [label for _, label in listed.images[1]] == [0, 0, 0, 1, 1, 1]
    assert all(path.parent.name == listed.class_names[label] for path, label in listed.images[2])


def test_what_is_no_image_is_passed_over(image_folder):
    (image_folder / "art" / "cat" / "notes.txt").write_text("x")
    (image_folder / "art" / "cat" / ".hidden.jpg").write_text("x")
    (image_folder / "art" / "cat" / "folder.jpg").mkdir()
    (image_folder / "README.md").write_text("x")
    (image_folder / ".cache").mkdir()
    assert [len(domain) for domain in folder.list_images(image_folder).images] == [4, 6, 8]


def test_loading_gives_every_image_its_row(image_folder):
    listed = folder.list_images(image_folder)
    seen = []
    data = folder.load_features(listed, 16, lambda done, total: seen.append((done, total)))
    assert data.name == "pictures"
    assert data.counts.tolist() == [4, 6, 8]
    assert data.labels.tolist() == [label for domain in listed.images for _, label in domain]
    assert data.validation is None
    for row in (0, 5, 17):
        expected = features.image_features(images.read_image(listed.paths[row], 16))
        np.testing.assert_array_equal(data.inputs[row], expected)
    assert seen == [(k, 18) for k in range(1, 19)]


def test_images_are_read_as_pillow_reads_them(image_folder):
    listed = folder.list_images(image_folder)
    data = folder.load_images(listed, 10)
    assert data.inputs.shape == (18, 10, 10, 3)
    assert data.inputs.dtype == np.uint8
    assert data.counts.tolist() == [4, 6, 8]
    for row in (0, 9, 17):
        with Image.open(listed.paths[row]) as image:
            expected = np.asarray(image.convert("RGB").resize((10, 10), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(data.inputs[row], expected)


def test_the_validation_flags_of_a_listing_reach_the_data(image_folder):
    listed = folder.list_images(image_folder)
    flags = tuple(tuple(k % 2 == 0 for k in range(len(domain))) for domain in listed.images)
    data = folder.load_images(dataclasses.replace(listed, validation=flags), 4)
    assert data.validation.dtype == bool
    assert data.validation.tolist() == [flag for domain in flags for flag in domain]


# torchvision's ImageFolder goes through the folders of a class sorted by path, and through the files of each by name.
def test_the_order_is_that_of_torchvision(tmp_path):
    expected = ["B.png", "a10.png", "a2.png", "b.png", "a/z.png", "a b/x.png", "a/b/y.png", "c/w.png"]
    for name in expected:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    walked = sorted(os.walk(tmp_path))
    assert expected == [os.path.relpath(f"{d}/{name}", tmp_path) for d, _, names in walked for name in sorted(names)]
    assert walk.class_images(tmp_path) == [tmp_path / name for name in expected]


@pytest.mark.parametrize("ending", [".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".WebP"])
def test_every_ending_of_domainbed_is_read(tmp_path, ending):
    mode = "L" if ending == ".pgm" else "RGB"
    Image.new("RGB", (6, 6), (200, 200, 200)).convert(mode).save(tmp_path / f"x{ending}")
    assert walk.class_images(tmp_path) == [tmp_path / f"x{ending}"]
    np.testing.assert_allclose(images.read_image(tmp_path / f"x{ending}", 4), 200, atol=2)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
def test_any_kind_of_colour_becomes_rgb(tmp_path, mode):
    ending = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (9, 5), (255, 255, 255)).convert(mode).save(tmp_path / f"x.{ending}")
    image = images.read_image(tmp_path / f"x.{ending}", 8)
    assert image.shape == (8, 8, 3)
    assert image.dtype == np.uint8
    assert image.min() >= 250


def test_a_transparent_palette_is_read_without_a_warning(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "x.png", transparency=bytes([0, 255]))
    np.testing.assert_array_equal(images.read_image(tmp_path / "x.png", 8)[0, 0], [255, 0, 0])


def test_features_are_edges_and_colours_of_cells():
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, 8:, 0] = 255  # a vertical edge in the middle; the right half red
    row = features.image_features(image)
    assert row.shape == (features.NUM_FEATURES,)
    assert row.dtype == np.float32
    edges, colours = row[:128].reshape(4, 4, 8), row[128:].reshape(4, 4, 3)
    np.testing.assert_allclose(colours[:, :2], 0.0)
    np.testing.assert_allclose(colours[:, 2:], np.broadcast_to([1.0, 0.0, 0.0], (4, 2, 3)))
    assert edges[:, 1:3].sum() == pytest.approx(edges.sum())
    # All edges have one orientation, and the whole image is normalised together.
    assert (edges.sum((0, 1)) > 0).sum() == 1
    assert np.linalg.norm(edges) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("size", [-4, 0, 4, 30])
def test_a_size_that_has_no_cells_is_refused(image_folder, size):
    with pytest.raises(InputError, match="--image-size must be a multiple of 4"):
        folder.load_features(folder.list_images(image_folder), size)


def test_a_truncated_image_is_named(image_folder):
    path = image_folder / "photo" / "dog" / "1.jpeg"
    path = next(iter(sorted((image_folder / "photo" / "dog").iterdir())))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=f"cannot read image {path}: "):
        folder.load_features(folder.list_images(image_folder), 16)


def test_pixels_of_16_bits_are_refused_not_cut_off(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"cannot read image .*x.png: pixels of more than 8 bits \(mode I;16\)"):
        images.read_image(tmp_path / "x.png", 4)


def test_an_image_of_no_size_is_refused(image_folder):
    with pytest.raises(InputError, match="--image-size must be at least 1, got 0"):
        folder.load_images(folder.list_images(image_folder), 0)


def test_a_class_that_one_domain_lacks_is_named(image_folder):
    shutil.rmtree(image_folder / "photo" / "cat")
    with pytest.raises(InputError, match=f"class missing in a domain: {image_folder / 'photo' / 'cat'} does not"):
        folder.list_images(image_folder)


def test_an_empty_class_is_named(image_folder):
    for path in (image_folder / "photo" / "cat").iterdir():
        path.rename(path.with_suffix(".gif"))
    with pytest.raises(InputError, match=f"empty class: {image_folder / 'photo' / 'cat'} has no image"):
        folder.list_images(image_folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_a_folder_that_cannot_be_listed_is_named(image_folder):
    locked = image_folder / "art"
    locked.chmod(0)
    try:
        with pytest.raises(InputError, match=f"cannot list {locked}: Permission denied"):
            folder.list_images(image_folder)
    finally:
        locked.chmod(0o755)


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match=f"cannot list {tmp_path / 'x'}: Not a directory"):
        folder.list_images(tmp_path / "x")
