"""One image from a file: every failure is one line that names the file."""

import contextlib
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import reason, regular_file, shown

# What files with these names hold, be it another one's format. Pillow reads more, some of it with other programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# What decoders raise on bytes that are no image, besides the errors of the system: whatever their arithmetic, indices
# and look-ups come upon.
DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def read_image(path: Path, size: int, resample: Literal["bilinear", "lanczos"] = "bilinear") -> np.ndarray:
    """Reads an image and scales it to a square.

    Of an animation this is the first frame. The orientation in EXIF data is ignored, as in DomainBed. A truncated image
    is an error here, where DomainBed fills in what is missing.

    Args:
        path: Path of the image.
        size: Pixels on each side of the result.
        resample: Filter to scale with.

    Returns:
        uint8 [size, size, 3], scaled with antialiasing.

    Raises:
        InputError: If the file is not a complete image of 8 bits per colour, or has more pixels than Pillow takes for
            safe (`PIL.Image.MAX_IMAGE_PIXELS`); this is decided by its header.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (2, 3), "red").save(Path(folder, "1.png"))
        ...     read_image(Path(folder, "1.png"), size=1).tolist()
        [[[255, 0, 0]]]
    """
    from PIL import Image, UnidentifiedImageError

    empty = regular_file(path) == 0
    try:
        if empty:
            raise ValueError("the file is empty")
        with open(path, "rb") as file, _without_warnings(), Image.open(file, formats=FORMATS) as image:
            _check_header(image, Image.MAX_IMAGE_PIXELS)
            # Palettes and transparency only become colours by way of RGBA.
            if image.mode == "P" or "transparency" in image.info:
                image = image.convert("RGBA")
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling[resample.upper()]))
    except UnidentifiedImageError as error:
        text = f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
        raise InputError(f"cannot read image {shown(path)}: {text}") from error
    except (Image.DecompressionBombError, *DECODER_ERRORS) as error:
        raise InputError(f"cannot read image {shown(path)}: {reason(error)}") from error


def _check_header(image: Any, most: int | None) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"it has {width} x {height} pixels")
    if most is not None and width * height > most:
        raise ValueError(f"it has {width} x {height} pixels, more than {most:,}; scale it down")
    # Pillow cuts such pixels off at 255 without a word.
    if image.mode[0] in "IF":
        raise ValueError(f"pixels of more than 8 bits (mode {image.mode}); save it with 8 bits")


_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Ignores Pillow's warnings, which are about metadata.

    Threads read side by side, so that `warnings.catch_warnings` would restore the filters of one while another reads.
    Here each puts in a filter of its own and takes one out.
    """
    cast(Any, warnings.filters).insert(0, _FILTER)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            cast(Any, warnings.filters).remove(_FILTER)
