import os

import numpy as np
import pytest
from PIL import Image

from disam_jax.dg import features, folder
from disam_jax.dg.errors import InputError


def test_everything_is_listed_in_order(image_folder):
    listed = folder.list_images(image_folder)
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
    data = folder.load_folder(listed, 16, lambda done, total: seen.append((done, total)))
    assert data.name == "pictures"
    assert data.counts.tolist() == [4, 6, 8]
    paths = [path for domain in listed.images for path, _ in domain]
    for row in (0, 5, 17):
        np.testing.assert_array_equal(data.inputs[row], features.image_features(folder.read_image(paths[row], 16)))
    assert seen == [(k, 18) for k in range(1, 19)]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
def test_any_kind_of_colour_becomes_rgb(tmp_path, mode):
    ending = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (9, 5), (255, 255, 255)).convert(mode).save(tmp_path / f"x.{ending}")
    image = folder.read_image(tmp_path / f"x.{ending}", 8)
    assert image.shape == (8, 8, 3)
    assert image.dtype == np.uint8
    assert image.min() >= 250


def test_a_transparent_palette_is_read_without_a_warning(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "x.png", transparency=bytes([0, 255]))
    np.testing.assert_array_equal(folder.read_image(tmp_path / "x.png", 8)[0, 0], [255, 0, 0])


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
        folder.load_folder(folder.list_images(image_folder), size)


def test_a_truncated_image_is_named(image_folder):
    path = image_folder / "photo" / "dog" / "1.jpeg"
    path = next(iter(sorted((image_folder / "photo" / "dog").iterdir())))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=f"cannot read image {path}: "):
        folder.load_folder(folder.list_images(image_folder), 16)


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
