"""One image from a file: pixels of the right shape, or one line that names the file; no hang and no warning."""

import io
import os
import struct
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from support import save_image

from disam_jax.dg.data import images
from disam_jax.dg.data.folder import list_images, load_images
from disam_jax.dg.errors import InputError


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *before, bits=8, colour=2, rows=b""):
    """A PNG that claims a size, whatever pixels it has."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *before, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def whole(kind):
    """The bytes of a good image."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\0", "no BMP, GIF, JPEG, PNG, PPM, TIFF or WEBP image"),
        (b"not an image at all", "no BMP, GIF, JPEG, PNG, PPM, TIFF or WEBP image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no BMP, GIF, JPEG, PNG, PPM, TIFF or WEBP image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no BMP, GIF, JPEG, PNG, PPM, TIFF or WEBP image"),
        (b"P5 8 8 65535\n" + bytes(128), r"pixels of more than 8 bits \(mode I"),
        (b"P6 8 8 255\n" + bytes(10), "not enough image data|truncated|buffer"),
        (png(0, 8), "0 x 8 pixels|image"),
        (png(8, 8), "image file is truncated|cannot|broken"),
        (png(100_000, 100_000), "10000000000 pixels"),
        (png(2**31 - 1, 2**31 - 1), "pixels"),
        (png(10_000, 10_000), "it has 10000 x 10000 pixels, more than 89,478,485; scale it down"),
        (png(8, 8, bits=16, colour=0, rows=bytes(8 * 17)), r"pixels of more than 8 bits \(mode I;16"),
        (png(8, 8, bits=7), "image"),
        (png(8, 8, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(10**8), 1))[:300]), "."),
        (whole("PNG")[:60], "(?i:truncated)|image"),
        (whole("PNG")[:-40], "image file is truncated"),
        (whole("JPEG")[:300], "(?i:truncated)|image"),
        (whole("JPEG")[:-20], "(?i:truncated)|image"),
        (whole("WEBP")[:-20], "image|decode|WebP|data"),
        (whole("TIFF")[:-20], "image file is truncated"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_what_is_no_image_is_one_line_that_names_the_file(tmp_path, content, message, ending):
    path = tmp_path / f"two  spaces\nand a line.{ending}"
    path.write_bytes(content)
    name = rf"two  spaces\\nand a line\.{ending}"
    with pytest.raises(InputError, match=f"cannot read image .*{name}: .*({message})") as caught:
        images.read_image(path, 4)
    assert str(caught.value).isprintable()


def test_a_size_is_refused_before_memory_is_taken(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(png(9000, 9000, rows=bytes(100)))
    loaded = []
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9000 * 9000 - 1)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: loaded.append(self))
    with pytest.raises(InputError, match="it has 9000 x 9000 pixels, more than 80,999,999; scale it down"):
        images.read_image(tmp_path / "x.png", 4)
    assert not loaded


def test_the_largest_size_is_read(tmp_path, monkeypatch):
    save_image(tmp_path / "x.png", seed=0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20 * 24)
    assert images.read_image(tmp_path / "x.png", 4).shape == (4, 4, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert images.read_image(tmp_path / "x.png", 4).shape == (4, 4, 3)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "nothing", "link to nothing", "circle"])
def test_what_is_no_file_is_one_line_and_does_not_hang(tmp_path, kind):
    path = tmp_path / "x.jpg"
    make = {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
        "nothing": lambda: None,
        "link to nothing": lambda: path.symlink_to("nothing"),
        "circle": lambda: path.symlink_to(path),
    }
    make[kind]()
    with pytest.raises(InputError, match=f"cannot read {path}: "):
        images.read_image(path, 4)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_system_that_refuses_to_read_is_quoted(tmp_path, monkeypatch, error):
    save_image(tmp_path / "x.png", seed=0)

    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(images, "open", refuse, raising=False)
    with pytest.raises(InputError, match=f"cannot read image {tmp_path}/x.png: {error.strerror}$"):
        images.read_image(tmp_path / "x.png", 4)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    save_image(tmp_path / "x.png", seed=0)
    (tmp_path / "x.png").chmod(0)
    with pytest.raises(InputError, match=f"cannot read image {tmp_path}/x.png: Permission denied$"):
        images.read_image(tmp_path / "x.png", 4)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 0, 200))]
    frames[0].save(tmp_path / "x.jpg", kind, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(images.read_image(tmp_path / "x.jpg", 2)[0, 0].astype(int), [200, 0, 0], atol=8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_orientation_in_exif_data_is_ignored(tmp_path, kind):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(pixels).save(tmp_path / "x.jpg", kind, exif=exif)
    np.testing.assert_allclose(images.read_image(tmp_path / "x.jpg", 8).astype(int), pixels, atol=8)


def test_warnings_about_metadata_are_not_passed_on_and_all_others_are(tmp_path):
    rows = b"\0\xff\0\0"
    (tmp_path / "x.png").write_bytes(png(1, 1, chunk(b"acTL", struct.pack(">II", 0, 0)), rows=rows))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Image.open(tmp_path / "x.png"):
            pass
        assert "Invalid APNG" in str(caught.pop().message)
        before = list(warnings.filters)
        assert images.read_image(tmp_path / "x.png", 1).tolist() == [[[255, 0, 0]]]
        assert not caught
        assert list(warnings.filters) == before


def test_many_threads_that_read_leave_the_warnings_as_they_were(image_folder):
    before = list(warnings.filters)
    stop = threading.Event()
    listed = list_images(image_folder)

    def read():
        while not stop.is_set():
            load_images(listed, 4)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [
        ("1", ("PNG", "TIFF")),
        ("L", ("PNG", "TIFF", "JPEG", "GIF", "WEBP", "PPM", "BMP")),
        ("LA", ("PNG", "TIFF")),
        ("P", ("PNG", "TIFF", "GIF")),
        ("RGBA", ("PNG", "TIFF", "WEBP")),
        ("CMYK", ("TIFF", "JPEG")),
        ("YCbCr", ("TIFF", "JPEG")),
    ],
)
def test_every_mode_of_8_bits_is_read(tmp_path, mode, kinds):
    for kind in kinds:
        Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / "x.jpg", kind)
        np.testing.assert_allclose(images.read_image(tmp_path / "x.jpg", 4), 255, atol=2)


@pytest.mark.parametrize(("mode", "kind"), [("I", "TIFF"), ("I;16", "PNG"), ("I;16", "TIFF"), ("F", "TIFF")])
def test_pixels_of_more_than_8_bits_are_refused(tmp_path, mode, kind):
    Image.new(mode, (8, 8)).save(tmp_path / "x.png", kind)
    with pytest.raises(
        InputError, match=f"cannot read image {tmp_path}/x.png: pixels of more than 8 bits .mode {mode[0]}"
    ):
        images.read_image(tmp_path / "x.png", 4)
