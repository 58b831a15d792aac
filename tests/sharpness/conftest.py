import numpy as np
import pytest
from quadratics import IDS, NAMES, quadratic, quadratic_loss

from disam_jax import sharpness


@pytest.fixture(scope="session")
def known():
    return quadratic()


@pytest.fixture(scope="session")
def surface(known):
    return sharpness.loss_surface(quadratic_loss, known.data, IDS, names=NAMES, held_out="sketch", block=2)


@pytest.fixture
def w():
    return np.array([0.5, -1.0, 0.25, 2.0, -0.75], np.float32)
