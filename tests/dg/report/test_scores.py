import dataclasses

import numpy as np
import pytest
from synthetic_results import COMPARE, diverge, make_results

from disam_jax.dg.report.findings import diverged_runs, few_seeds, findings
from disam_jax.dg.report.scores import QUANTITIES, score, without
from disam_jax.dg.report.statistics import permutation_test
from disam_jax.dg.report.summary import summarise, title
from disam_jax.dg.sweep.model_selection import Selected, select


def test_without_keeps_the_order():
    values = np.arange(12.0).reshape(2, 2, 3)
    np.testing.assert_array_equal(without(values, np.array([0, 2])), [[[1, 2], [4, 5]], [[6, 7], [9, 10]]])


@pytest.mark.parametrize("criterion", ["validation", "last"])
def test_scores_against_a_loop(criterion):
    results = make_results(grid=({"rho": 0.1}, {"rho": 0.2}))
    odd = [index for index, run in enumerate(results.runs) if run.seed % 2]
    results.accuracy[odd, -1] -= 0.3  # so that an earlier point is chosen
    selected = select(results, criterion)
    assert (selected.point < 3).any() == (criterion == "validation")
    found = score(results, selected)
    assert found.accuracy.shape == (3, 4, 3)
    for at in np.ndindex(3, 4, 3):
        run, point = int(selected.run[at]), int(selected.point[at])
        target = results.runs[run].target
        sources = [d for d in range(3) if d != target]
        losses = results.losses[run][:, 0][:, sources]
        perturbed = results.perturbed_losses[run][:, sources]
        expected = {
            "accuracy": 100.0 * results.accuracy[run, point, 0, target],
            "spread": np.mean([np.std(losses[p]) for p in range(1, 4)]),
            "perturbed_spread": np.mean([np.std(perturbed[p]) for p in range(1, 4)]),
            "mean_loss": np.mean(losses[point]),
            "worst_loss": max(losses[point]),
            "sharpness": np.mean(results.sharpness[run, sources]),
            "target_sharpness": results.sharpness[run, target],
        }
        for quantity, value in expected.items():
            assert getattr(found, quantity)[at] == pytest.approx(value, rel=1e-12), quantity
    assert not found.diverged.any()


@pytest.mark.parametrize("field", ["losses", "probe_losses", "perturbed_losses"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_run_that_was_ever_not_finite_has_no_scores(field, value):
    results = make_results()
    place = next(i for i, run in enumerate(results.runs) if run[:4] == ("SAM", 1, 2, 0))
    getattr(results, field)[place, 1, ..., 0] = value
    found = score(results, select(results, "last"))
    expected = np.zeros((3, 4, 3), bool)
    expected[1, 2, 1] = True
    np.testing.assert_array_equal(found.diverged, expected)
    for quantity in QUANTITIES:
        np.testing.assert_array_equal(np.isnan(getattr(found, quantity)), expected)


def test_perturbed_losses_of_the_held_out_domain_are_not_read():
    results = make_results(targets=[1])
    before = score(results, select(results, "last"))
    results.perturbed_losses[..., 1] = np.nan
    after = score(results, select(results, "last"))
    np.testing.assert_array_equal(before, after)


def test_scores_of_single_runs():
    results = make_results()
    every = np.arange(len(results.runs))
    flat = score(results, Selected(every, np.full(len(every), 3)))
    selected = select(results, "last")
    np.testing.assert_array_equal(flat.spread[selected.run], score(results, selected).spread)


def test_one_source_has_no_spread():
    found = score(results := make_results(domains=("a", "b")), select(results, "last"))
    assert (found.spread == 0.0).all()
    np.testing.assert_array_equal(found.mean_loss, found.worst_loss)


def test_a_summary_averages_targets_first_and_pairs_seeds():
    results = make_results(seeds=5)
    summary = summarise(results, "last")
    sam, disam = summary.scores.spread[1].mean(1), summary.scores.spread[2].mean(1)
    compared = summary.comparison("spread", "DISAM", "SAM")
    assert compared.difference.mean == pytest.approx((disam - sam).mean())
    assert compared.difference.error == pytest.approx((disam - sam).std(ddof=1) / np.sqrt(5))
    assert compared.p == permutation_test(disam - sam)
    assert [each[:2] for each in summary.comparisons["spread"]] == [("DISAM", "SAM"), ("SAM", "ERM"), ("DISAM", "ERM")]
    p_values = sorted(each.p for each in summary.comparisons["spread"])
    corrected = sorted(each.corrected for each in summary.comparisons["spread"])
    assert corrected[0] == pytest.approx(min(1.0, 3 * p_values[0]))
    np.testing.assert_allclose(summary.accuracy.mean[1], summary.scores.accuracy[1].mean(0))
    difference = summary.scores.accuracy[2] - summary.scores.accuracy[1]
    np.testing.assert_allclose(summary.comparison("accuracy", "DISAM", "SAM").by_target.mean, difference.mean(0))
    assert summary.targets == ("clean", "rotation", "inversion")


def test_curves_are_over_the_targets_for_which_a_domain_is_a_source():
    results = make_results(targets=[0, 2])
    summary = summarise(results, "last")
    losses = results.losses[select(results, "last").run[1], :, 0]  # [S, T, P, D]
    curve = summary.curves.domain_losses
    np.testing.assert_allclose(curve.mean[1, :, 0], losses[:, 1, :, 0].mean(0))
    np.testing.assert_allclose(curve.mean[1, :, 1], losses[:, :, :, 1].mean((0, 1)))
    np.testing.assert_allclose(curve.error[1, :, 2], losses[:, 0, :, 2].std(0, ddof=1) / 2.0)
    sources = (losses[:, 0][..., [1, 2]].mean(-1) + losses[:, 1][..., [0, 1]].mean(-1)) / 2
    np.testing.assert_allclose(summary.curves.loss.mean[1], sources.mean(0))
    sharpness = results.sharpness[select(results, "last").run[1]]
    np.testing.assert_allclose(summary.domain_sharpness.mean[1, 0], sharpness[:, 1, 0].mean())
    np.testing.assert_allclose(summary.domain_sharpness.mean[1, 1], sharpness[:, :, 1].mean())


def test_a_domain_that_is_never_a_source_has_no_curve_and_no_sharpness():
    summary = summarise(make_results(targets=[0]), "last")
    assert np.isnan(summary.curves.domain_losses.mean[:, :, 0]).all()
    assert np.isfinite(summary.curves.domain_losses.mean[:, :, 1:]).all()
    assert np.isnan(summary.domain_sharpness.mean[:, 0]).all()
    assert np.isfinite(summary.domain_sharpness.mean[:, 1:]).all()


def without_gain(seeds, **more):
    """SAM and DISAM with the same runs, so that nothing but `more` differs."""
    return make_results(seeds=seeds, grid=({"rho": 0.1},), **more)


def test_a_difference_that_is_not_significant_is_not_claimed():
    accuracy, spread, worst, *_ = findings(summarise(without_gain(10), "last"))
    assert accuracy.startswith("No difference in held-out accuracy between DISAM and SAM is shown (")
    assert spread.startswith("No difference in spread of the domain losses at w between DISAM and SAM is shown (")
    assert worst.startswith("No difference in worst domain loss between DISAM and SAM is shown (")


@pytest.mark.parametrize(("sign", "direction"), [(1.0, "higher"), (-1.0, "lower")])
def test_a_significant_difference_is_said_with_its_direction(sign, direction):
    results = without_gain(10, accuracy_gain={"DISAM": 0.05 * sign}, spread_factor={"DISAM": 1.0 + 0.5 * sign})
    accuracy, spread, worst, plain = findings(summarise(results, "last"))
    assert accuracy.startswith(f"DISAM's held-out accuracy is {direction} than SAM's here ({'+' if sign > 0 else '-'}")
    assert accuracy.endswith("points, corrected p 0.006).")
    assert spread.startswith(f"DISAM's spread of the domain losses at w is {direction} than SAM's here (")
    assert worst.startswith(f"DISAM's worst domain loss is {direction} than SAM's here (")
    assert plain.startswith("Against ERM's, the held-out accuracy is ")


def test_few_seeds_show_nothing_however_large_the_difference():
    summary = summarise(without_gain(4, spread_factor={"DISAM": 0.2}), "last")
    compared = summary.comparison("spread", "DISAM", "SAM")
    assert abs(compared.difference.mean) > 10.0 * compared.difference.error
    assert not compared.shown
    assert few_seeds(summary) == [
        "With 4 seeds the standard errors are themselves uncertain: use 10 or more.",
        "With 4 seeds and 3 comparisons the smallest corrected p is 0.38: nothing can be shown with fewer than "
        "7 seeds.",
    ]
    assert few_seeds(summarise(without_gain(10), "last")) == []
    assert few_seeds(summarise(without_gain(1), "last")) == [
        "With 1 seed there is no standard error and nothing can be shown: use 10 or more."
    ]


CONTROL = {**COMPARE, "control": {"base": "SAM", "control": True, "label": "DISAM, lam < 0"}}


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (1.5, "The control DISAM, lam < 0 is higher (+"),
        (1.0, "The control DISAM, lam < 0 is not shown to differ from SAM ("),
        (0.5, "The control DISAM, lam < 0 is lower as well (-"),
    ],
)
def test_a_claim_says_what_the_control_does(factor, expected):
    results = make_results(CONTROL, seeds=10, spread_factor={"DISAM": 0.5, "control": factor}, grid=({"rho": 0.1},))
    told = findings(summarise(results, "last"))
    spread = next(line for line in told if line.startswith("DISAM's spread"))
    assert expected in spread
    # The control is no variant of its own, and no claim is made of the accuracy, so that it has no control.
    assert not any(line.startswith("DISAM, lam < 0's") for line in told)
    assert "control" not in next(line for line in told if "held-out accuracy between DISAM and SAM" in line)


def test_many_variants_are_not_shown_in_one_sentence():
    methods = {"ERM": {}}
    for name in "ABC":
        methods |= {name: {"base": "ERM"}, f"{name}+": {"base": name}}
    results = make_results(methods)
    diverge(results, "A+", 0, 1)
    told = findings(summarise(results, "last"))
    assert told[0].startswith("No difference in held-out accuracy is shown between B+ and B (")
    assert "C+ and C (" in told[0]
    assert "A+" not in told[0]
    assert told[1] == "Whether A+ and A differ in held-out accuracy cannot be said: a run diverged."


def test_a_missing_base_is_said():
    told = findings(summarise(make_results({"DISAM": {"base": "SAM"}}), "last"))
    assert told[:2] == [
        "ERM was not run: nothing is compared with it.",
        "SAM was not run: nothing is compared with it.",
    ]


def test_accuracy_far_below_guessing_is_explained_where_every_method_has_it():
    results = make_results()
    inversion = results.domain_names.index("inversion")
    results.accuracy[..., inversion] = 0.0
    summary = summarise(results, "last")
    guessing = 100 / summary.classes
    sentence = f"On inversion every method is far below guessing ({guessing:.1f} %): what the other domains teach is "
    assert [line for line in findings(summary) if "guessing" in line] == [f"{sentence}wrong there."]
    one = results.runs.index(next(run for run in results.runs if run.method == "SAM" and run.target == inversion))
    results.accuracy[one] = 1.0  # the mean of SAM is above, so it is no matter of the domain alone
    assert not any("guessing" in line for line in findings(summarise(results, "last")))


def test_a_diverged_run_is_counted_and_spoils_its_means():
    results = make_results()
    diverge(results, "DISAM", 0, 1)
    diverge(results, "DISAM", 3, 2)
    summary = summarise(results, "last")
    assert findings(summary)[0] == "Whether DISAM and SAM differ in held-out accuracy cannot be said: a run diverged."
    assert diverged_runs(summary) == [
        "2 of 12 runs of DISAM diverged (seeds 0, 3): a loss was not finite. Every mean that they enter says "
        "'diverged'."
    ]
    assert np.isnan(summary.overall["accuracy"].mean).tolist() == [False, False, True]
    assert np.isnan(summary.accuracy.mean[2]).tolist() == [False, True, True]
    others = summary.comparison("accuracy", "SAM", "ERM")
    assert np.isfinite(others.difference.mean)
    assert others.corrected == min(1.0, 3 * others.p)


def test_the_title_has_rho_and_lam_if_they_are_the_same_everywhere():
    assert title(make_results()) == "digits, leave one domain out: 4 seeds, 400 steps, rho 0.1, lam 1"
    several = make_results(grid=({"rho": 0.1}, {"rho": 0.2}))
    assert title(several) == "digits, leave one domain out: 4 seeds, 400 steps"


def test_a_missing_run_is_named():
    results = make_results()
    short = dataclasses.replace(
        results,
        **{
            name: getattr(results, name)[:-1]
            for name in ("runs", "accuracy", "losses", "probe_losses", "perturbed_losses", "sharpness")
        },
    )
    with pytest.raises(ValueError, match="no run of DISAM, seed 3, target 2, candidate 0"):
        summarise(short, "last")
