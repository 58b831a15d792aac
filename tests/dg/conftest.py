"""A folder of images, a toy data set, and a tiny CLIP and ViT with a batch for them."""

import functools

import numpy as np
import pytest
from flax import nnx
from support import save_image
from tiny_networks import CLIP_CONFIG, VIT_CONFIG, filled

from disam_jax.dg.data.domains import join_domains
from disam_jax.dg.models.clip import CLIP
from disam_jax.dg.models.vit import ViT
from disam_jax.dg.report import figures

# Start 28, end 29: names of one, two and three tokens.
CLASS_IDS = np.array([[28, 5, 29, 0, 0, 0], [28, 6, 7, 29, 0, 0], [28, 8, 9, 10, 29, 0]], np.int32)


@pytest.fixture
def rendered():
    """For a test of a command that needs its figures."""


@pytest.fixture(autouse=True)
def _figures_are_not_rendered(request, monkeypatch):
    """Rendering takes nine tenths of the time of a report, and the tests of the report itself do it."""
    if "report" not in request.path.parts and "rendered" not in request.fixturenames:
        monkeypatch.setattr(figures, "render", lambda figure, suffix: suffix.encode())


@pytest.fixture
def image_folder(tmp_path):
    """Three domains of unequal size, two classes, the endings mixed."""
    root = tmp_path / "pictures"
    endings = [".jpg", ".JPG", ".jpeg", ".png", ".PNG", ".Jpeg"]
    for d, domain in enumerate(("art", "photo", "sketch")):
        for c, name in enumerate(("cat", "dog")):
            folder = root / domain / name
            folder.mkdir(parents=True)
            for k in range(2 + d):
                save_image(folder / f"{k}{endings[(d + k) % len(endings)]}", seed=100 * d + 10 * c + k)
    return root


@pytest.fixture(scope="session")
def toy():
    """Three domains of 5, 11 and 8 examples with 4 features and 3 classes."""
    rng = np.random.default_rng(7)
    sizes = (5, 11, 8)
    inputs = [rng.normal(place, 1.0 + place, (size, 4)) for place, size in enumerate(sizes)]
    labels = [rng.integers(0, 3, size) for size in sizes]
    return join_domains("toy", inputs, labels, ("a", "b", "c"), ("x", "y", "z"))


@functools.cache
def spread(kind, config):
    """A network with random numbers for all its parameters, so that no scale is 1 and no bias 0."""
    return filled(lambda: kind(config, rngs=nnx.Rngs(0)), nnx.Param, lambda rng, shape: rng.normal(0, 0.4, shape))


@pytest.fixture
def clip():
    return nnx.clone(spread(CLIP, CLIP_CONFIG))


@pytest.fixture
def vit():
    return nnx.clone(spread(ViT, VIT_CONFIG))


@pytest.fixture
def class_ids():
    return CLASS_IDS


@pytest.fixture
def batch():
    """Three domains of four images, as [M, n, ...]."""
    rng = np.random.default_rng(1)
    return {
        "x": rng.normal(size=(3, 4, 8, 8, 3)).astype(np.float32),
        "y": rng.integers(0, 3, (3, 4)).astype(np.int32),
    }
