import itertools

import numpy as np
import pytest
from scipy import stats

from disam_jax.dg.report.statistics import (
    EXACT_UP_TO,
    confidence_interval,
    estimate,
    holm,
    paired,
    permutation_test,
    smallest_p,
)


def test_estimate_in_closed_form():
    found = estimate(np.array([[1.0, 5.0], [3.0, 5.0]]))
    np.testing.assert_allclose(found.mean, [2.0, 5.0])
    np.testing.assert_allclose(found.error, [1.0, 0.0])  # sd sqrt(2), over sqrt(2)


def test_the_error_shrinks_with_the_root_of_the_number_of_seeds():
    values = np.random.default_rng(0).normal(0.0, 3.0, 900)
    assert estimate(values).error == pytest.approx(0.1, rel=0.05)


def test_one_seed_has_a_mean_and_no_error():
    found = estimate(np.array([[1.0, 2.0]]))
    np.testing.assert_array_equal(found.mean, [1.0, 2.0])
    assert np.isnan(found.error).all()
    assert np.isnan(confidence_interval(np.array([1.0]))).all()
    assert permutation_test(np.array([1.0])) == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_spoils_its_own_place_only(value):
    values = np.array([[1.0, value], [3.0, 5.0], [4.0, 5.0]])
    for found in (estimate(values), confidence_interval(values)):
        assert np.isfinite(found[0][0])
        assert not np.isfinite(found[0][1])
        assert np.isnan(found[1][1])
    assert np.isnan(permutation_test(values[:, 1]))


def test_pairing_takes_out_what_seeds_share():
    shared = np.array([0.0, 10.0, 100.0])
    found = paired(shared + np.array([1.0, 2.0, 3.0]), shared)
    assert found.mean == pytest.approx(2.0)
    assert found.error == pytest.approx(1.0 / np.sqrt(3.0))
    assert estimate(shared).error > 30.0


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("seeds", [2, 5, 20])
def test_the_interval_is_that_of_scipy(seeds, level):
    rng = np.random.default_rng(seeds)
    one, other = rng.normal(0.3, 1.0, seeds), rng.normal(0.0, 1.0, seeds)
    expected = stats.ttest_rel(one, other).confidence_interval(level)
    np.testing.assert_allclose(confidence_interval(one - other, level), expected, rtol=1e-10)


@pytest.mark.parametrize("seeds", [1, 3, 6, 9])
def test_the_exact_test_by_brute_force(seeds):
    differences = np.random.default_rng(seeds).normal(0.5, 1.0, seeds)
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=seeds)
    ]
    expected = np.mean([each >= abs(differences.sum()) - 1e-12 for each in sums])
    assert permutation_test(differences) == pytest.approx(expected, abs=1e-15)


def test_ties_count_whatever_the_order_of_the_sum():
    # 0.1 + 0.2 + 0.3 in another order is another float.
    differences = np.array([0.3, 0.1, 0.2, -0.6])
    sums = [abs(sum(signs)) for signs in itertools.product((-1, 1), (-2, 2), (-3, 3), (-6, 6))]
    assert permutation_test(differences) == np.mean([each >= 0 for each in sums]) == 1.0
    tied = np.array([0.1] * 10)
    assert permutation_test(tied) == smallest_p(10) == 2 / 2**10


def test_no_difference_at_all_has_p_one():
    assert permutation_test(np.zeros(5)) == 1.0
    assert permutation_test(np.zeros(20)) == 1.0


def test_the_test_has_two_sides():
    differences = np.array([0.4, 1.0, -0.2, 0.7, 0.9])
    assert permutation_test(differences) == permutation_test(-differences)


def test_the_drawn_test_agrees_with_the_exact_one():
    differences = np.random.default_rng(3).normal(0.4, 1.0, 16)
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=16)))
    exact = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12).mean()
    found = permutation_test(differences, num=20_000, seed=1)
    assert found == pytest.approx(exact, abs=4.0 * np.sqrt(exact * (1 - exact) / 20_000))
    assert found == permutation_test(differences, num=20_000, seed=1)
    assert found != permutation_test(differences, num=20_000, seed=2)


def test_a_drawn_p_is_never_zero():
    far = np.full(EXACT_UP_TO + 16, 5.0)
    assert permutation_test(far, num=99) == 1 / 100 == smallest_p(len(far), num=99)


def test_half_of_true_nulls_are_below_one_half():
    rng = np.random.default_rng(0)
    p_values = np.array([permutation_test(rng.normal(0.0, 1.0, 8)) for _ in range(400)])
    assert (p_values <= 0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert (p_values <= 0.5).mean() == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([], []),
        ([0.03], [0.03]),
        # 4 * 0.01, 3 * 0.02, 2 * 0.04, 1 * 0.05 and never less than the one before
        ([0.04, 0.01, 0.05, 0.02], [0.08, 0.04, 0.08, 0.06]),
        ([0.5, 0.6, 0.9], [1.0, 1.0, 1.0]),
        ([0.01, 0.01], [0.02, 0.02]),
        # what could not be computed counts in the family and stays
        ([0.01, np.nan, 0.04], [0.03, np.nan, 0.08]),
        ([np.nan, np.nan], [np.nan, np.nan]),
    ],
)
def test_holm_by_hand(p_values, expected):
    np.testing.assert_allclose(holm(p_values), expected, rtol=1e-12)
