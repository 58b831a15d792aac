import numpy as np
import pytest
from support import save_image

from disam_jax.dg.data.domains import join_domains


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
