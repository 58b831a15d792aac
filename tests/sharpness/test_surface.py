"""Domain losses in blocks: exact whatever the block, from arrays and from a reader; what is refused, and how."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import IDS, NAMES, quadratic_loss
from support import slow

from disam_jax import sharpness


@pytest.mark.parametrize("block", [2, *slow(1, 3, 100)])
def test_losses_are_the_means_whatever_the_block(known, w, block):
    surface = sharpness.loss_surface(quadratic_loss, known.data, IDS, names=NAMES, block=block)
    out = sharpness.domain_losses(surface, w)
    np.testing.assert_allclose(out.values, known.losses(w), rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [1 / 3, 1 / 3, 1 / 3]),
        ({"held_out": "art"}, [0, 1 / 2, 1 / 2]),
        ({"held_out": 2}, [1 / 2, 1 / 2, 0]),
        ({"shares": [1, 3, 0]}, [1 / 4, 3 / 4, 0]),
        ({"shares": [1, 3, 0], "held_out": "sketch"}, [1 / 4, 3 / 4, 0]),
    ],
)
def test_shares_of_the_mixture(known, given, expected):
    surface = sharpness.loss_surface(quadratic_loss, known.data, IDS, names=NAMES, **given)
    np.testing.assert_allclose(surface.shares, expected)


def test_each_unit_walks_its_own_blocks_once(surface):
    blocks = jax.tree.map(np.asarray, surface.blocks)
    for unit, domains in enumerate([{0}, {1}, {2}, {0, 1}]):
        walked = blocks.order[blocks.first[unit] : blocks.end[unit]]
        rows = np.sort(blocks.rows[walked][blocks.counted[walked]])
        np.testing.assert_array_equal(rows, np.flatnonzero(np.isin(IDS, list(domains))))


@pytest.mark.slow
def test_a_reader_gives_the_numbers_of_arrays(known, surface, w):
    seen = []

    def read(rows):
        seen.append(len(rows))
        return jax.tree.map(lambda x: x[rows].astype(np.float64), known.data)

    streamed = sharpness.loss_surface(quadratic_loss, read, IDS, names=NAMES, held_out="sketch", block=2)
    a, b = (sharpness.domain_sharpness(s, w, rho=0.1, steps=2) for s in (surface, streamed))
    np.testing.assert_allclose(a.values, b.values, rtol=1e-6)
    np.testing.assert_allclose(a.mixture, b.mixture, rtol=1e-6)
    assert set(seen) == {2}  # never more than a block on the device


@pytest.mark.slow
def test_half_precision_is_measured_in_float32(known, surface, w):
    half = jnp.asarray(w, jnp.bfloat16)  # these weights are exact in bfloat16; w + e is not
    a, b = (sharpness.domain_sharpness(surface, p, rho=1e-4) for p in (half, w))
    np.testing.assert_array_equal(a.values, b.values)


def test_collect_takes_the_first_examples():
    batches = (({"x": np.full((n, 2), n)}, np.arange(n)) for n in (2, 3, 4))
    data, ids = sharpness.collect(batches, num_examples=4)
    np.testing.assert_array_equal(data["x"][:, 0], [2, 2, 3, 3])
    np.testing.assert_array_equal(ids, [0, 1, 0, 1])


ONE = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("batches", "number", "message"),
    [
        ([], None, "iterator is empty"),
        ([(ONE, [0, 1, 1])], 5, "ended after 3 of 5 examples: write num_examples=3"),
        ([(ONE, [0, 1])], None, "batch 0 must have leaves"),
        ([(ONE, [0, 1, 1]), ({"x": ONE}, [0, 1, 1])], None, "differ in structure"),
        ([(ONE, [0, 1, 1])], 0, "num_examples must be at least 1"),
    ],
)
def test_an_iterator_that_ends_early_is_refused(batches, number, message):
    with pytest.raises(ValueError, match=message):
        sharpness.collect(batches, number)


def identity(w, x):
    return x * w


@pytest.mark.parametrize(
    ("data", "ids", "options", "error", "message"),
    [
        (ONE, [0, 1], {}, ValueError, r"data does not fit: it has shape \(3,\), but domain_ids has 2"),
        ({"x": ONE[:2]}, [0, 1, 1], {}, ValueError, r"data\['x'\] ends early: it has shape \(2,\)"),
        ({}, [0, 1, 1], {}, ValueError, "data has no arrays"),
        (np.ones(0), [], {}, ValueError, "domain_ids is empty"),
        (ONE, [0.0, 1.0, 1.0], {}, TypeError, "domain_ids must be integers, got float64"),
        (ONE, [[0, 1, 1]], {}, ValueError, r"domain_ids must be \[N\]"),
        (ONE, [0, -1, 1], {}, ValueError, "the id -1"),
        (ONE, [0, 1, 4], {"num_domains": 3}, ValueError, "id 4, but there are 3 domains"),
        (ONE, [0, 2, 2], {"names": NAMES}, ValueError, "no example of photo"),
        (ONE, [0, 1, 1], {"names": ("a", "a")}, ValueError, "2 different names"),
        (ONE, [0, 1, 1], {"names": "ab"}, TypeError, "the one string 'ab'"),
        (ONE, [0, 1, 1], {"held_out": "cartoon"}, ValueError, "'cartoon' is not a domain: write one of domain 0"),
        (ONE, [0, 1, 1], {"shares": [1, -1]}, ValueError, "shares must be 2 numbers"),
        (ONE, [0, 1, 1], {"shares": [1, 1], "held_out": 1}, ValueError, "domain 1 has the share 1: write 0"),
        (ONE, [0, 0, 0], {"held_out": 0}, ValueError, "not all 0"),
        (ONE, [0, 1, 1], {"block": 0}, ValueError, "block must be"),
        (lambda rows: np.ones(1), [0, 1, 1], {"block": 2}, ValueError, r"data\(rows\) ends early: shape \(1,\)"),
        (lambda rows: {}, [0, 1, 1], {}, ValueError, r"data\(rows\) returned no arrays"),
    ],
)
def test_bad_data_are_named(data, ids, options, error, message):
    with pytest.raises(error, match=message):
        sharpness.loss_surface(identity, data, ids, **options)


def test_a_reader_that_ends_early_later_is_named(nans_allowed):
    def read(rows):
        return np.ones(10, np.float32)[:7][rows[rows < 7]]

    surface = sharpness.loss_surface(identity, read, np.arange(10) // 5, block=3)
    with pytest.raises(ValueError, match=r"^data\(rows\) ends early: shape \(2,\) for 3 rows in 5..7"):
        sharpness.domain_losses(surface, np.float32(1))


@pytest.mark.parametrize(
    ("loss_fn", "params", "error", "message"),
    [
        (identity, {}, ValueError, "params has no arrays"),
        (identity, [np.zeros((0, 3), np.float32)], ValueError, "params has no arrays"),
        (identity, np.int32(1), TypeError, "params is int32"),
        (lambda w, x: jnp.mean(x * w), np.float32(1), ValueError, r"loss of each example, \[n\], got shape \(\)"),
        (lambda w, x: x > w, np.float32(1), TypeError, "floating point losses, got bool"),
        (lambda w, x: w / (x - 2), np.float32(1), ValueError, "the loss of domain 1 is inf at the parameters"),
        (lambda w, x: jnp.log(w * (1 - x)), np.float32(1), ValueError, "domain 0 is -inf, domain 1 is nan at"),
    ],
)
def test_bad_parameters_and_losses_are_named(loss_fn, params, error, message, nans_allowed):
    surface = sharpness.loss_surface(loss_fn, np.array([1.0, 2.0], np.float32), [0, 1])
    with pytest.raises(error, match=message):
        sharpness.domain_sharpness(surface, params)
