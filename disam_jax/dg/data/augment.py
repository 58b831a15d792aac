"""Random crops, flips and colours of images, on the device.

Every operation is two functions: one draws its parameters from a key, the other applies given parameters, so that the
second can be checked on its own. Images are float32 [H, W, 3] in [0, 1] inside, one at a time; `augment` takes a whole
uint8 batch of any shape.

The operations are those of torchvision on float tensors, which unlike PIL images are not rounded to 256 levels between
two operations. The grey value is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601, as PIL has it).
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

ATTEMPTS = 10
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each image; the defaults are DomainBed's.

    Attributes:
        scale: least and greatest area of the crop, as a fraction of the image's area, in (0, 1]; None for no crop.
        ratio: least and greatest width / height of the crop.
        flip: probability of a horizontal flip.
        brightness: the factor is drawn from [max(0, 1 - brightness), 1 + brightness]; 0 switches it off.
        contrast: likewise.
        saturation: likewise.
        hue: the shift is drawn from [-hue, hue], in turns of the colour circle, at most 0.5; 0 switches it off.
        grayscale: probability that all colour is taken away.

    Raises:
        ValueError: if a value is out of range.

    Example:
        >>> Augmentation(scale=None, flip=0.0).colours
        True

    References:
        Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, ICLR 2021, and its code, DomainBed.
    """

    scale: tuple[float, float] | None = (0.7, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.3
    grayscale: float = 0.1

    def __post_init__(self):
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be None or two ascending fractions in (0, 1], got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio must be two ascending positive numbers, got {self.ratio}")
        for name, most in (("flip", 1), ("grayscale", 1), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be in [0, {most}], got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def colours(self) -> bool:
        """Whether any of brightness, contrast, saturation and hue is changed."""
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0


OFF = Augmentation(scale=None, flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grayscale=0.0)


class Crop(NamedTuple):
    """A box in pixels, inside the image: int32 [] each."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


class Jitter(NamedTuple):
    """How colours are changed.

    Attributes:
        order: int32 [4], a permutation of `BRIGHTNESS, CONTRAST, SATURATION, HUE`.
        brightness: float32 [], a factor.
        contrast: float32 [], a factor.
        saturation: float32 [], a factor.
        hue: float32 [], a shift in turns of the colour circle.
    """

    order: jax.Array
    brightness: jax.Array
    contrast: jax.Array
    saturation: jax.Array
    hue: jax.Array


def draw_crop(
    key: jax.Array, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Crop:
    """Draws the box of a random-resized crop.

    The area is uniform in `scale` and the logarithm of width / height uniform in `ratio`. Of ten such boxes the first
    that fits is placed uniformly; if none does, the greatest central box within `ratio` is taken, as in torchvision.

    Args:
        key: random key.
        height: of the image, in pixels.
        width: of the image, in pixels.
        scale: least and greatest fraction of the area.
        ratio: least and greatest width / height.

    Returns:
        Crop.

    Example:
        >>> box = draw_crop(jax.random.key(0), 32, 32, scale=(1.0, 1.0), ratio=(1.0, 1.0))
        >>> [int(x) for x in box]
        [0, 0, 32, 32]

    References:
        Szegedy et al., Going Deeper with Convolutions, CVPR 2015; RandomResizedCrop of torchvision.
    """
    # All numbers at once: each call would add half a second to the time that a program takes to compile.
    numbers = jax.random.uniform(key, (2 * ATTEMPTS + 2,), jnp.float32)
    shares, turns, (down, along) = numbers[:ATTEMPTS], numbers[ATTEMPTS:-2], numbers[-2:]
    area = (scale[0] + (scale[1] - scale[0]) * shares) * (height * width)
    drawn = jnp.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * turns)
    heights = jnp.round(jnp.sqrt(area / drawn)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(area * drawn)).astype(jnp.int32)
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first, any_fits = jnp.argmax(fits), jnp.any(fits)
    spare = _central_size(height, width, ratio)
    h = jnp.where(any_fits, heights[first], spare[0])
    w = jnp.where(any_fits, widths[first], spare[1])
    top = jnp.where(any_fits, _place(down, height - h), (height - h) // 2)
    left = jnp.where(any_fits, _place(along, width - w), (width - w) // 2)
    return Crop(top, left, h, w)


def _place(share: jax.Array, room: jax.Array) -> jax.Array:
    """One of 0 .. room, all equally likely, from a number that is uniform in [0, 1)."""
    return jnp.floor(share * (room + 1).astype(jnp.float32)).astype(jnp.int32)


def _central_size(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    if width / height < ratio[0]:
        return round(width / ratio[0]), width
    if width / height > ratio[1]:
        return height, round(height * ratio[1])
    return height, width


def resize_crop(image: jax.Array, box: Crop) -> jax.Array:
    """Scales a box of an image to the size of the image, bilinearly.

    Nothing outside the box is looked at. A box is never larger than the image, so that no filter against aliasing is
    needed: with or without one torchvision computes the same.

    Args:
        image: float32 [H, W, C].
        box: inside the image.

    Returns:
        float32 [H, W, C].

    Example:
        >>> image = jnp.arange(4.0).reshape(1, 4, 1)
        >>> right_half = Crop(*jnp.array([0, 2, 1, 2]))
        >>> jax.jit(resize_crop)(image, right_half).ravel().tolist()
        [2.0, 2.25, 2.75, 3.0]
    """
    # Two gathers; matrices of weights would be multiplied in reduced precision on some accelerators.
    upper, lower, down = _neighbours(box.top, box.height, image.shape[0])
    rows = _between(image[upper], image[lower], down[:, None, None])
    nearer, farther, along = _neighbours(box.left, box.width, image.shape[1])
    return _between(rows[:, nearer], rows[:, farther], along[None, :, None])


def _neighbours(start: jax.Array, length: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For each of `size` samples along [start, start + length): the pixels on both sides and how far it is between."""
    centres = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (length.astype(jnp.float32) / size) - 0.5
    centres = jnp.maximum(centres, 0.0)
    below = jnp.floor(centres).astype(jnp.int32)
    above = jnp.minimum(below + 1, length - 1)
    return start + below, start + above, centres - below.astype(jnp.float32)


def _between(first: jax.Array, second: jax.Array, share: jax.Array) -> jax.Array:
    return first + share * (second - first)


def random_resized_crop(
    key: jax.Array,
    image: jax.Array,
    scale: tuple[float, float] = (0.7, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> jax.Array:
    """Crops a random box and scales it to the size of the image; see `draw_crop` and `resize_crop`.

    Args:
        key: random key.
        image: float32 [H, W, C].
        scale: least and greatest fraction of the area.
        ratio: least and greatest width / height.

    Returns:
        float32 [H, W, C].

    Example:
        >>> image = jax.jit(random_resized_crop)(jax.random.key(0), jnp.ones((4, 6, 3)))
        >>> image.shape, float(image.min())
        ((4, 6, 3), 1.0)
    """
    return resize_crop(image, draw_crop(key, image.shape[0], image.shape[1], scale, ratio))


def random_flip(key: jax.Array, image: jax.Array, p: float = 0.5) -> jax.Array:
    """Exchanges left and right with probability p.

    Args:
        key: random key.
        image: [H, W, C].
        p: probability.

    Returns:
        [H, W, C], the same dtype.

    Example:
        >>> random_flip(jax.random.key(0), jnp.array([[[1], [2], [3]]]), p=1.0).ravel().tolist()
        [3, 2, 1]
    """
    columns = jnp.arange(image.shape[1], dtype=jnp.int32)
    # A gather: a selection between the image and its mirror image would compute what comes before it twice.
    return image[:, jnp.where(jax.random.bernoulli(key, p), columns[::-1], columns)]


class Colours(NamedTuple):
    """An image as three planes, float32 [H, W] in [0, 1] each.

    The colour operations work on planes: on a CPU they are ten times faster so than on an array [H, W, 3].
    """

    red: jax.Array
    green: jax.Array
    blue: jax.Array


def split_colours(image: jax.Array) -> Colours:
    """The planes of an image [H, W, 3].

    Example:
        >>> split_colours(jnp.array([[[0.25, 0.5, 1.0]]])).blue.tolist()
        [[1.0]]
    """
    return Colours(image[..., 0], image[..., 1], image[..., 2])


def join_colours(colours: Colours) -> jax.Array:
    """The image [H, W, 3] of three planes.

    Example:
        >>> join_colours(Colours(jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.ones((1, 1)))).tolist()
        [[[0.0, 0.0, 1.0]]]
    """
    return jnp.stack(colours, -1)


def grey(colours: Colours) -> jax.Array:
    """The grey value of each pixel, 0.299 R + 0.587 G + 0.114 B: float32 [H, W].

    Example:
        >>> red = Colours(jnp.ones((1, 1)), jnp.zeros((1, 1)), jnp.zeros((1, 1)))
        >>> round(float(grey(red)[0, 0]), 3)
        0.299
    """
    return 0.299 * colours.red + 0.587 * colours.green + 0.114 * colours.blue


def change_brightness(colours: Colours, factor: jax.Array) -> Colours:
    """Each channel x becomes f x, cut to [0, 1].

    Args:
        colours: of the image.
        factor: f, float32 [], not negative; 1 changes nothing.

    Returns:
        Colours.

    Example:
        >>> colours = split_colours(jnp.array([[[0.0, 0.25, 0.75]]]))
        >>> join_colours(change_brightness(colours, jnp.array(2.0))).tolist()
        [[[0.0, 0.5, 1.0]]]
    """
    return _blend(colours, jnp.zeros_like(colours.red), factor)


def change_contrast(colours: Colours, factor: jax.Array) -> Colours:
    """Each channel x becomes f x + (1 - f) m, cut to [0, 1], with the mean m of the grey value over the image.

    Args and Returns: as in `change_brightness`.

    Example:
        >>> black_and_white = split_colours(jnp.array([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]))
        >>> [round(x, 3) for x in change_contrast(black_and_white, jnp.array(0.5)).red[0].tolist()]
        [0.25, 0.75]
    """
    return _blend(colours, jnp.full_like(colours.red, jnp.mean(grey(colours))), factor)


def change_saturation(colours: Colours, factor: jax.Array) -> Colours:
    """Each channel x becomes f x + (1 - f) g, cut to [0, 1], with the grey value g of the pixel.

    Args and Returns: as in `change_brightness`.

    Example:
        >>> red = split_colours(jnp.array([[[1.0, 0.0, 0.0]]]))
        >>> [round(float(x[0, 0]), 3) for x in change_saturation(red, jnp.array(0.0))]
        [0.299, 0.299, 0.299]
    """
    return _blend(colours, grey(colours), factor)


def _blend(colours: Colours, other: jax.Array, factor: jax.Array) -> Colours:
    return Colours(*(jnp.clip(factor * x + (1 - factor) * other, 0.0, 1.0) for x in colours))


def change_hue(colours: Colours, shift: jax.Array) -> Colours:
    """Turns the hue of every pixel, in the hexagonal HSV model, and keeps saturation and value.

    With the greatest channel v, the chroma c = v - min and the hue h in sixths of a turn, the new channels are
    v - c clip(min(k, 4 - k), 0, 1), k = (n + h + 6 shift) mod 6, for n = 5, 3, 1.

    Args:
        colours: of the image.
        shift: float32 [], in turns; whole turns change nothing.

    Returns:
        Colours.

    Example:
        >>> red = split_colours(jnp.array([[[1.0, 0.0, 0.0]]]))
        >>> join_colours(change_hue(red, jnp.array(0.5))).tolist()
        [[[0.0, 1.0, 1.0]]]

    References:
        Smith, Color gamut transform pairs, SIGGRAPH 1978.
    """
    red, green, blue = colours
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    # A grey pixel has no hue; with its chroma of 0 any will do.
    divisor = jnp.where(chroma > 0, chroma, 1.0)
    after_green, after_blue = 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor
    hue = jnp.where(value == red, (green - blue) / divisor, jnp.where(value == green, after_green, after_blue))

    def channel(offset: float) -> jax.Array:
        k = offset + hue + 6.0 * shift
        # As jnp.mod(k, 6), whose remainder is a slow call of the C library on a CPU.
        k = k - 6.0 * jnp.floor(k / 6.0)
        return value - chroma * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)

    return Colours(channel(5.0), channel(3.0), channel(1.0))


def draw_jitter(
    key: jax.Array, brightness: float = 0.3, contrast: float = 0.3, saturation: float = 0.3, hue: float = 0.3
) -> Jitter:
    """Draws how colours are changed and in which order.

    Args:
        key: random key.
        brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness].
        contrast: likewise.
        saturation: likewise.
        hue: the shift is uniform in [-hue, hue].

    Returns:
        Jitter.

    Example:
        >>> jitter = draw_jitter(jax.random.key(0), brightness=0.0)
        >>> float(jitter.brightness), sorted(jitter.order.tolist())
        (1.0, [0, 1, 2, 3])
    """
    numbers = jax.random.uniform(key, (8,), jnp.float32)
    order = jnp.argsort(numbers[:4]).astype(jnp.int32)
    least = jnp.array([*(max(0.0, 1 - spread) for spread in (brightness, contrast, saturation)), -hue], jnp.float32)
    most = jnp.array([1 + brightness, 1 + contrast, 1 + saturation, hue], jnp.float32)
    amounts = least + (most - least) * numbers[4:]
    return Jitter(order, *amounts)


def apply_jitter(image: jax.Array, jitter: Jitter) -> jax.Array:
    """Changes brightness, contrast, saturation and hue in the given order.

    Args:
        image: float32 [H, W, 3] in [0, 1].
        jitter: from `draw_jitter`.

    Returns:
        float32 [H, W, 3] in [0, 1].

    Example:
        >>> colourless = Jitter(jnp.arange(4), *jnp.array([1.0, 1.0, 0.0, 0.0]))
        >>> image = apply_jitter(jnp.array([[[1.0, 0.0, 0.0]]]), colourless)
        >>> [round(x, 3) for x in image[0, 0].tolist()]
        [0.299, 0.299, 0.299]
    """
    changes = (
        lambda colours: change_brightness(colours, jitter.brightness),
        lambda colours: change_contrast(colours, jitter.contrast),
        lambda colours: change_saturation(colours, jitter.saturation),
        lambda colours: change_hue(colours, jitter.hue),
    )

    def change(place: jax.Array, colours: Colours) -> Colours:
        return jax.lax.switch(jitter.order[place], changes, colours)

    # A loop on the device: unrolled, XLA would fuse the four changes and compute the first ones many times over.
    return join_colours(jax.lax.fori_loop(0, 4, change, split_colours(image)))


def colour_jitter(
    key: jax.Array,
    image: jax.Array,
    brightness: float = 0.3,
    contrast: float = 0.3,
    saturation: float = 0.3,
    hue: float = 0.3,
) -> jax.Array:
    """Changes colours by random amounts in a random order, as torchvision's ColorJitter does.

    Args:
        key: random key.
        image: float32 [H, W, 3] in [0, 1].
        brightness: as in `draw_jitter`.
        contrast: likewise.
        saturation: likewise.
        hue: likewise.

    Returns:
        float32 [H, W, 3] in [0, 1].

    Example:
        >>> image = colour_jitter(jax.random.key(0), jnp.full((1, 1, 3), 0.5), brightness=0.0, contrast=0.0)
        >>> [round(x, 3) for x in image[0, 0].tolist()]
        [0.5, 0.5, 0.5]
    """
    return apply_jitter(image, draw_jitter(key, brightness, contrast, saturation, hue))


def random_grayscale(key: jax.Array, image: jax.Array, p: float = 0.1) -> jax.Array:
    """Takes all colour away with probability p.

    Args:
        key: random key.
        image: float32 [H, W, 3].
        p: probability.

    Returns:
        float32 [H, W, 3]: the image, or its grey value in all three channels.

    Example:
        >>> image = random_grayscale(jax.random.key(0), jnp.array([[[0.0, 1.0, 0.0]]]), p=1.0)
        >>> [round(x, 3) for x in image[0, 0].tolist()]
        [0.587, 0.587, 0.587]
    """
    return jnp.where(jax.random.bernoulli(key, p), grey(split_colours(image))[..., None], image)


def augment_image(key: jax.Array, image: jax.Array, config: Augmentation) -> jax.Array:
    """Augments one image: crop, flip, colours, grey, in DomainBed's order.

    Each part has a key of its own: what one draws does not depend on which others are on.

    Args:
        key: random key of this image.
        image: uint8 [H, W, 3].
        config: what to draw; static.

    Returns:
        float32 [H, W, 3] in [0, 1].

    Example:
        >>> image = augment_image(jax.random.key(0), jnp.array([[[0, 51, 255]]], jnp.uint8), OFF)
        >>> [round(x, 3) for x in image[0, 0].tolist()]
        [0.0, 0.2, 1.0]
    """
    crop_key, flip_key, colour_key, grey_key = jax.random.split(key, 4)
    out = image.astype(jnp.float32) / 255.0
    if config.scale is not None:
        out = random_resized_crop(crop_key, out, config.scale, config.ratio)
    if config.flip > 0:
        out = random_flip(flip_key, out, config.flip)
    if config.colours:
        out = colour_jitter(colour_key, out, config.brightness, config.contrast, config.saturation, config.hue)
    if config.grayscale > 0:
        out = random_grayscale(grey_key, out, config.grayscale)
    return jnp.clip(out, 0.0, 1.0)


@functools.partial(jax.jit, static_argnames=("config",))
def augment(key: jax.Array, images: jax.Array, config: Augmentation) -> jax.Array:
    """Augments a batch of images, each on its own.

    The image at flat position i is drawn from `fold_in(key, i)`: grouped and flat batches of the same images come out
    the same, and so do the first images of a smaller batch.

    Args:
        key: random key of the batch.
        images: uint8 [..., H, W, 3].
        config: what to draw; static.

    Returns:
        float32 [..., H, W, 3] in [0, 1].

    Raises:
        TypeError: if the images are not uint8.
        ValueError: if the shape does not end in H, W, 3.

    Example:
        >>> images = jnp.zeros((2, 5, 8, 8, 3), jnp.uint8)
        >>> augment(jax.random.key(0), images, OFF).shape
        (2, 5, 8, 8, 3)
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f"images to augment must be uint8, got {images.dtype}")
    if images.ndim < 3 or images.shape[-1] != 3:
        raise ValueError(f"images to augment must be [..., H, W, 3], got shape {images.shape}")
    flat = images.reshape(-1, *images.shape[-3:])
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(len(flat), dtype=jnp.uint32))
    return jax.vmap(functools.partial(augment_image, config=config))(keys, flat).reshape(images.shape)
