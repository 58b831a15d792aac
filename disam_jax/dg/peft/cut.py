"""A network that is trained from a cut: what its frozen front makes of the images is computed once and kept on disk."""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from disam_jax.dg.data import augment, keys
from disam_jax.dg.data.array_cache import Wanted, differences, in_words, keep, stored
from disam_jax.dg.data.domains import Domains
from disam_jax.dg.data.load import CachedFeatures, StreamedImages, fingerprint
from disam_jax.dg.data.streaming import eval_blocks
from disam_jax.dg.errors import InputError
from disam_jax.dg.models.stages import front, in_front, rest, without_front
from disam_jax.dg.progress import duration
from disam_jax.dg.reading import shown

DTYPES = ("float32", "float16")


class Rest(nnx.Module):
    """The part of a network after a cut: a tower from one of its stages on, called with activations instead of images.

    Args:
        tower: `ImageTower`, `ViT`, `ResNet` or `EfficientNetLite` with its weights. The rest is a copy. Its running
            statistics stay as they are in training if the tower was made with `frozen_norm`.
        stage: One of `models.stages.stage_names(tower)`.

    Raises:
        ValueError: If there is no such stage.

    Example:
        >>> from disam_jax.dg.models.vit import ViT, ViTConfig
        >>> config = ViTConfig(image_size=8, patch_size=4, width=8, layers=2, heads=2, hidden=8)
        >>> tower = nnx.eval_shape(lambda: Rest(ViT(config, rngs=nnx.Rngs(0)), "layers.1"))
        >>> [place for place, block in enumerate(tower.tower.blocks) if block is not None]
        [1]
    """

    def __init__(self, tower: nnx.Module, stage: str):
        self.tower = without_front(tower, stage)
        self.stage = stage

    def __call__(self, activations: jax.Array) -> jax.Array:
        """Features [N, F], before dropout, of activations [N, ...]."""
        return rest(self.tower, self.stage, activations)


def activations_of(
    tower: Any,
    prepare: Callable[[jax.Array], jax.Array],
    data: Domains,
    stage: str,
    cache: Path,
    *,
    dtype: str = "float32",
    views: int = 0,
    key: jax.Array | None = None,
    block: int = 64,
    most_bytes: int | None = None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
) -> CachedFeatures:
    """The data set with what reaches a stage of a frozen tower in the place of images.

    It is computed once, as in evaluation, and kept in a folder, from which later runs with the same weights, stage,
    image size and data map it into memory. Blocks of images go through the tower one after the other: what the device
    holds meanwhile does not grow with the data set.

    Args:
        tower: `ImageTower`, `ViT`, `ResNet` or `EfficientNetLite`, which is not changed.
        prepare: From the images of the data set to inputs of the tower.
        data: N images, in memory or in files.
        stage: One of `models.stages.stage_names(tower)`.
        cache: Folder for the arrays, see `array_cache`.
        dtype: "float32", or "float16" for half the memory.
        views: Number K of augmented views of each image, beside the plain one.
        key: Random key of the views; needed if there are any.
        block: Number of images at a time.
        most_bytes: Above this the arrays stay on disk and are read as they are needed; None for no limit.
        on_progress: Called with the number of images that are done, and of all that are to be computed.
        say: Called with lines: what memory it takes before the work starts, how long it takes after the first block.

    Returns:
        The data set with inputs [N, ...] and K views [N, ...] of the same shape.

    Raises:
        ValueError: If there is no such stage or type, or views without a key.
        InputError: If the folder cannot be used, or an activation is beyond float16.

    Example:
        >>> import tempfile
        >>> from disam_jax.dg.models.inputs import images
        >>> from disam_jax.dg.models.vit import ViT, ViTConfig
        >>> from disam_jax.dg.testing import toy
        >>> config = ViTConfig(image_size=8, patch_size=4, width=8, layers=1, heads=2, hidden=8)
        >>> tower = jax.jit(lambda: nnx.split(ViT(config, rngs=nnx.Rngs(0))))()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     activations_of(nnx.merge(*tower), images, toy(images=True), "head", Path(folder)).inputs.shape
        (24, 5, 8)
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if views and key is None:
        raise ValueError(f"views={views} are drawn from a key: give key=jax.random.key(0)")
    program = _Front(tower, prepare, stage, dtype)
    shape = (len(data.labels), *program.shape(data))
    of_data = fingerprint(data)
    wanted = []
    for view in range(views + 1):
        drawn = {} if view == 0 or key is None else {"view": view, "key": jax.random.key_data(key).tolist()}
        origin = {**program.origin, "image_size": list(data.inputs.shape[1:]), "data": of_data, **drawn}
        wanted.append(Wanted(f"{_file_name(data.name)}-{stage}", origin, shape, dtype))
    needed = sum(each.bytes for each in wanted)
    streamed = most_bytes is not None and needed > most_bytes
    found = [stored(cache, each, say) for each in wanted]
    missing = [view for view, array in enumerate(found) if array is None]
    size, total = in_words(wanted[0].bytes), f", {in_words(needed)} with {views} views" if views else ""
    say(
        f"activations before {stage}: {shape[0]:,} x {' x '.join(map(str, shape[1:]))} {dtype} take {size}{total}, "
        f"{'are computed once and kept' if missing else 'are there already'} in {shown(cache)}"
        f"{', and stay on disk' if streamed else ''}"
    )
    if missing:
        for name, different in differences(cache, wanted[missing[0]]).items():
            if "view" not in different:
                say(f"{name} is not used: it is of another {', '.join(different)}")
    to_do = shape[0] * len(missing)
    for number, view in enumerate(missing):
        progress = lambda done, number=number: on_progress(number * shape[0] + done, to_do)
        blocks = lambda view=view, progress=progress, number=number: program.blocks(
            data, block, view, key, progress, say, len(missing) if number == 0 else 0
        )
        found[view] = keep(cache, wanted[view], blocks, say)
    inputs, *others = [each for each in found if each is not None]
    return CachedFeatures.of(
        data,
        inputs,
        origin=" ".join(each.key for each in wanted),
        views=tuple(others),
        streamed=streamed,
    )


class _Front:
    """The frozen front of a tower as a program over blocks of images.

    Args:
        tower: Tower.
        prepare: From images to its inputs.
        stage: Stage before which it is cut.
        dtype: Type of the result.
    """

    def __init__(self, tower: Any, prepare: Callable[[jax.Array], jax.Array], stage: str, dtype: str):
        # As for evaluation; the tower that is given may be in training.
        copy = nnx.merge(*nnx.split(tower))
        copy.eval()
        self.stage, self.dtype, self.prepare = stage, dtype, prepare
        self.graph, self.variables = nnx.split(copy)
        self.origin = {
            "weights": _digest(nnx.state(copy, in_front(copy, stage))),
            "network": _settings(copy, stage),
            "stage": stage,
            "preprocessing": getattr(prepare, "__qualname__", None) or repr(prepare),
            "platform": jax.default_backend(),
        }

    def __call__(self, variables: Any, pixels: jax.Array) -> jax.Array:
        """Activations, float32."""
        return front(nnx.merge(self.graph, variables), self.stage, self.prepare(pixels)).astype(jnp.float32)

    def of_view(self, variables: Any, pixels: jax.Array, key: jax.Array, view: jax.Array, rows: jax.Array) -> jax.Array:
        """Activations of a view of the images of given rows, float32."""
        draw = jax.vmap(keys.view_key, in_axes=(None, None, 0))(key, view, rows)
        one = functools.partial(augment.augment_image, config=augment.Augmentation())
        return self(variables, jax.vmap(one)(draw, pixels))

    def shape(self, data: Domains) -> tuple[int, ...]:
        """Of the activations of one image."""
        pixels = jax.ShapeDtypeStruct((1, *data.inputs.shape[1:]), data.inputs.dtype)
        return jax.eval_shape(self.__call__, self.variables, pixels).shape[1:]

    def blocks(
        self,
        data: Domains,
        block: int,
        view: int,
        key: jax.Array | None,
        on_progress: Callable[[int], None],
        say: Callable[[str], None],
        times: int,
    ) -> Iterator[np.ndarray]:
        """Activations of all images, a block at a time.

        Args:
            data: Images.
            block: Number of images at a time.
            view: Number of the view; 0 for the images as they are.
            key: Random key of the views.
            on_progress: Called with the number of images that are done.
            say: Called with the time that all blocks take, after the first one.
            times: How many views there are to compute, for that line; 0 for no line.

        Yields:
            [B, ...].

        Raises:
            InputError: If an activation is beyond float16.
        """
        number = len(data.labels)
        block = min(block, number)
        size = {"image_size": data.image_size} if isinstance(data, StreamedImages) else {}
        source = data.listing if isinstance(data, StreamedImages) else data
        pixels = jax.ShapeDtypeStruct((block, *data.inputs.shape[1:]), data.inputs.dtype)
        extra = lambda first: (key, jnp.uint32(view), first + jnp.arange(block, dtype=jnp.uint32)) if view else ()
        program = jax.jit(self.of_view if view else self.__call__)
        # Compiled before the clock starts.
        compiled = program.lower(self.variables, pixels, *extra(jnp.uint32(0))).compile()
        began, done = time.monotonic(), 0
        for each in eval_blocks(source, np.arange(number), block, **size):
            made = np.asarray(compiled(self.variables, each.x, *extra(jnp.uint32(done))))[each.valid]
            if done == 0 and times:
                seconds = (time.monotonic() - began) * -(-number // block) * times
                say(f"computing them takes about {duration(seconds)}")
            done += len(made)
            yield self._narrowed(made)
            on_progress(done)

    def _narrowed(self, activations: np.ndarray) -> np.ndarray:
        largest = float(np.abs(activations).max())
        if largest > float(np.finfo(self.dtype).max):
            raise InputError(
                f"an activation before {self.stage} is {largest:.3g}, beyond float16: write --cache-dtype float32"
            )
        return activations.astype(self.dtype)


def _file_name(name: str) -> str:
    """A name as a part of a file name."""
    return "".join(char if char.isascii() and (char.isalnum() or char in "-_") else "-" for char in name)[:40]


def _digest(weights: Any) -> str:
    """SHA-256 of variables: their paths, types and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(weights)):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def _settings(network: nnx.Module, stage: str) -> str:
    """SHA-256 of what the front computes by, besides its weights: sizes, strides, activations."""

    def plain(value: Any) -> bool:
        if isinstance(value, tuple):
            return all(map(plain, value))
        return isinstance(value, (bool, int, float, str)) or dataclasses.is_dataclass(value)

    inside = in_front(network, stage)
    found = [
        (".".join(map(str, path)), type(node).__name__, name, repr(value))
        for path, node in nnx.iter_graph(network)
        if isinstance(node, nnx.Module) and (not path or inside(path, node))
        for name, value in sorted(vars(node).items())
        if not name.startswith("_") and plain(value)
    ]
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()
