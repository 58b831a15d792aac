"""Images that were damaged on their way: pixels of the right shape, or one line that names the file."""

import io
import time
import warnings

import numpy as np
import pytest
from fuzz import cases, damaged
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from disam_jax.dg.data import images
from disam_jax.dg.errors import InputError

CASES = 2_000
SIZE = 4
MOST_SECONDS = 20.0


def saved(kind, mode, **options):
    """The bytes of a small picture of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera"
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, exif=exif, **options)
    return file.getvalue()


WHOLE = [
    *(saved("PNG", mode) for mode in ("RGB", "RGBA", "P", "L", "1", "LA")),
    saved("PNG", "RGB", save_all=True, append_images=[Image.new("RGB", (9, 7))]),
    *(saved("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
    saved("JPEG", "RGB", progressive=True),
    saved("MPO", "RGB", save_all=True, append_images=[Image.new("RGB", (9, 7))]),
]


@pytest.mark.slow
@settings(max_examples=cases(CASES))
@given(content=st.sampled_from(WHOLE).flatmap(damaged), ending=st.sampled_from(["png", "jpg"]))
@example(content=b"", ending="png")
def test_a_damaged_image_is_read_or_named(tmp_path_factory, content, ending):
    path = tmp_path_factory.getbasetemp() / f"damaged.{ending}"
    path.write_bytes(content)
    began = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            image, message = images.read_image(path, SIZE), None
        except InputError as error:
            image, message = None, str(error)
    if image is not None:
        assert (image.shape, image.dtype) == ((SIZE, SIZE, 3), np.uint8)
    else:
        assert message.startswith(f"cannot read image {path}: ")
        assert message.isprintable()
    assert not caught
    assert time.monotonic() - began < MOST_SECONDS
