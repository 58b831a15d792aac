import numpy as np
import pytest

from disam_jax.dg.protocol import History
from disam_jax.dg.scores import score, source_losses
from disam_jax.dg.statistics import Estimate, estimate, paired, shown
from disam_jax.dg.summary import findings, summarise, table_rows

HELD_OUT = np.array([[True, False, False], [False, False, True]])


def history(seed=0, shift=0.0):
    """Three points, four seeds, two targets of three domains."""
    rng = np.random.default_rng(seed)
    losses = rng.uniform(0.5, 2.0, (3, 4, 2, 3)) + shift
    return History(np.array([0, 5, 9]), rng.uniform(0, 1, (3, 4, 2, 3)), losses, losses + 0.5, HELD_OUT)


def test_estimate_in_closed_form():
    found = estimate(np.array([[1.0, 5.0], [3.0, 5.0]]))
    np.testing.assert_allclose(found.mean, [2.0, 5.0])
    np.testing.assert_allclose(found.error, [1.0, 0.0])  # sd sqrt(2), over sqrt(2)


def test_the_error_shrinks_with_the_root_of_the_number_of_seeds():
    values = np.random.default_rng(0).normal(0.0, 3.0, 900)
    assert estimate(values).error == pytest.approx(0.1, rel=0.05)


def test_one_seed_has_no_error():
    with pytest.raises(ValueError, match="at least two seeds, got 1"):
        estimate(np.array([1.0]))


def test_pairing_takes_out_what_seeds_share():
    shared = np.array([0.0, 10.0, 100.0])
    found = paired(shared + np.array([1.0, 2.0, 3.0]), shared)
    assert found.mean == pytest.approx(2.0)
    assert found.error == pytest.approx(1.0 / np.sqrt(3.0))
    assert estimate(shared).error > 30.0


@pytest.mark.parametrize(
    ("mean", "error", "expected"), [(2.1, 1.0, True), (-2.1, 1.0, True), (2.0, 1.0, False), (0.0, 0.0, False)]
)
def test_two_standard_errors(mean, error, expected):
    assert shown(Estimate(np.array(mean), np.array(error))) is expected


def test_source_losses_keep_the_order():
    losses = np.arange(12.0).reshape(2, 2, 3)
    np.testing.assert_array_equal(source_losses(losses, HELD_OUT), [[[1, 2], [3, 4]], [[7, 8], [9, 10]]])


def test_scores_against_a_loop():
    told = history()
    found = score(told)
    for seed in range(4):
        for place, held_out in enumerate((0, 2)):
            sources = [d for d in range(3) if d != held_out]
            at_w = [told.losses[p, seed, place, sources] for p in range(3)]
            perturbed = [told.perturbed_losses[p, seed, place, sources] for p in range(3)]
            assert found.accuracy[seed, place] == pytest.approx(100 * told.accuracy[-1, seed, place, held_out])
            assert found.spread[seed, place] == pytest.approx((np.std(at_w[1]) + np.std(at_w[2])) / 2)
            assert found.perturbed_spread[seed, place] == pytest.approx(
                (np.std(perturbed[1]) + np.std(perturbed[2])) / 2
            )
            assert found.mean_loss[seed, place] == pytest.approx(at_w[2].mean())
            assert found.worst_loss[seed, place] == pytest.approx(at_w[2].max())
    assert not found.diverged.any()


@pytest.mark.parametrize("field", ["losses", "perturbed_losses"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_run_that_was_ever_not_finite_has_no_scores(field, value):
    told = history()
    getattr(told, field)[1, 2, 0, 1] = value
    found = score(told)
    expected = np.zeros((4, 2), bool)
    expected[2, 0] = True
    np.testing.assert_array_equal(found.diverged, expected)
    for values in found[:-1]:
        np.testing.assert_array_equal(np.isnan(values), expected)


def three(**changes):
    told = {"ERM": history(0), "SAM": history(1), "DISAM": history(2)}
    return {**told, **changes}


def test_a_summary_averages_targets_first_and_pairs_seeds():
    told = three()
    found = summarise(told)
    sam, disam = score(told["SAM"]), score(told["DISAM"])
    by_seed = disam.spread.mean(1) - sam.spread.mean(1)
    assert found.overall["DISAM - SAM"]["spread"].mean == pytest.approx(by_seed.mean())
    assert found.overall["DISAM - SAM"]["spread"].error == pytest.approx(by_seed.std(ddof=1) / 2.0)
    np.testing.assert_allclose(found.by_target["SAM"].mean, sam.accuracy.mean(0))
    assert found.targets == (0, 2)


def test_a_curve_is_over_the_targets_for_which_the_domain_is_a_source():
    told = three()
    curve = summarise(told)
    losses = told["SAM"].losses
    np.testing.assert_allclose(curve.curves["SAM"].mean[:, 0], losses[:, :, 1, 0].mean(1))
    np.testing.assert_allclose(curve.curves["SAM"].mean[:, 1], losses[:, :, :, 1].mean((1, 2)))
    np.testing.assert_allclose(curve.curves["SAM"].error[:, 2], losses[:, :, 0, 2].std(1, ddof=1) / 2.0)


def test_a_domain_that_is_never_a_source_has_no_curve():
    told = {
        name: each._replace(
            accuracy=each.accuracy[:, :, :1],
            losses=each.losses[:, :, :1],
            perturbed_losses=each.perturbed_losses[:, :, :1],
            held_out=HELD_OUT[:1],
        )
        for name, each in three().items()
    }
    curve = summarise(told).curves["DISAM"]
    assert np.isnan(curve.mean[:, 0]).all()
    assert np.isfinite(curve.mean[:, 1:]).all()


def test_a_difference_within_two_errors_is_not_claimed():
    told = three(DISAM=history(1))
    accuracy, spread, worst, few = findings(summarise(told))
    assert accuracy == "No difference in held-out accuracy between DISAM and SAM is shown (+0.00 ± 0.00 points)."
    assert spread.startswith("No difference in spread")
    assert worst.startswith("No difference in worst domain loss")
    assert few == "With 4 seeds the standard errors are themselves uncertain: use 10 or more."


@pytest.mark.parametrize(("sign", "direction"), [(1.0, "higher"), (-1.0, "lower")])
def test_a_difference_beyond_two_errors_is_said_with_its_direction(sign, direction):
    sam = history(1)
    changed = sam._replace(
        accuracy=sam.accuracy + sign * 0.01, losses=sam.losses * (1.0 + 0.3 * sign), perturbed_losses=sam.losses
    )
    accuracy, spread, worst, _ = findings(summarise(three(SAM=sam, DISAM=changed)))
    assert accuracy == f"DISAM's held-out accuracy is {direction} than SAM's here ({sign:+.2f} ± 0.00 points)."
    assert spread.startswith(f"DISAM's spread of the domain losses at w is {direction} than SAM's here (")
    assert worst.startswith(f"DISAM's worst domain loss is {direction} than SAM's here (")


def test_ten_seeds_need_no_warning():
    many = {
        name: each._replace(
            **{
                field: np.repeat(getattr(each, field), 3, axis=1)
                for field in ("accuracy", "losses", "perturbed_losses")
            }
        )
        for name, each in three().items()
    }
    assert len(findings(summarise(many))) == 3


def test_a_diverged_run_is_counted_and_spoils_its_means():
    bad = history(2)
    bad.losses[2, 3, 1, 0] = np.nan
    bad.losses[1, 0, 0, 1] = np.inf
    summary = summarise(three(DISAM=bad))
    accuracy, *_, count = findings(summary)
    assert accuracy == "Whether DISAM and SAM differ in held-out accuracy cannot be said: a run diverged."
    assert count.startswith("2 of 8 runs of DISAM diverged (seeds 0, 3): a loss was not finite.")
    rows = dict(table_rows(summary, ("a", "b", "c")))
    assert rows["  mean"][2:] == ["diverged", "diverged"]
    assert "diverged" not in rows["  mean"][:2]


def test_the_table_has_a_row_for_each_target_and_quantity():
    summary = summarise(three())
    rows = table_rows(summary, ("a", "b", "c"))
    assert [label for label, _ in rows] == [
        "held-out accuracy",
        "  a",
        "  c",
        "  mean",
        "spread at w",
        "spread at w + e",
        "mean domain loss",
        "worst domain loss",
    ]
    spread = summary.overall["ERM"]["spread"]
    assert rows[4][1][0] == f"{spread.mean:.3f} ± {spread.error:.3f}"
    difference = summary.overall["DISAM - SAM"]["spread"]
    assert rows[4][1][3] == f"{difference.mean:+.4f} ± {difference.error:.4f}"
