"""Model selection against loops over candidates and points."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from synthetic_results import make_results

from disam_jax.dg.report import write
from disam_jax.dg.results import TRAIN, VALIDATION, Results, Run
from disam_jax.dg.sweep.model_selection import CRITERIA, leave_one_domain_out, runs_table, select

CANDIDATES = {"ERM": 1, "SAM": 3, "DISAM": 4}
SEEDS, TARGETS, DOMAINS, POINTS = (2, 5), (0, 2), 3, 4


def random_results(seed, candidates=CANDIDATES, targets=TARGETS, domains="abc"):
    """Runs in any order, with many ties and some that diverge."""
    rng = np.random.default_rng(seed)
    runs = [
        Run(method, target, each, candidate, {})
        for method, number in candidates.items()
        for target in targets
        for each in SEEDS
        for candidate in range(number)
    ]
    rng.shuffle(runs)
    shape = (len(runs), POINTS, 2, len(domains))
    losses = rng.uniform(size=shape)
    for place in np.flatnonzero(rng.random(len(runs)) < 0.3):
        losses[place, rng.integers(1, POINTS + 1) :] = np.nan
    return Results(
        header={"methods": dict.fromkeys(candidates), "data": {"domains": dict.fromkeys(domains)}},
        runs=tuple(runs),
        steps=np.array([0, 10, 20, 30]),
        accuracy=rng.integers(0, 5, shape) / 4,
        losses=losses,
        probe_losses=losses[:, :, 0],
        perturbed_losses=losses[:, :, 0],
        sharpness=losses[:, -1, 0],
    )


def chosen(results, criterion, method, seed, target):
    """Run and point, by looking at one after the other."""
    mine = [place for place, run in enumerate(results.runs) if run[:3] == (method, target, seed)]
    mine.sort(key=lambda place: results.runs[place].candidate)
    if criterion == "last":
        return mine[0], POINTS - 1
    criterion, _, ties = criterion.partition("-")
    seen = [target] if criterion == "oracle" else [domain for domain in range(DOMAINS) if domain != target]
    best = (-1.0, None, None)
    for place in reversed(mine) if ties else mine:
        for point in range(1, POINTS) if criterion == "validation" else [POINTS - 1]:
            score = results.accuracy[place, point, VALIDATION, seen].mean()
            if np.isnan(results.losses[place, point]).any():
                score = 0.0
            if score > best[0]:
                best = (score, place, point)
    return best[1:]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_choice_against_a_loop(criterion):
    for data_seed in range(15):
        results = random_results(data_seed)
        selected = select(results, criterion)
        assert selected.run.shape == selected.point.shape == (3, 2, 2)
        for k, s, t in np.ndindex(3, 2, 2):
            wanted = chosen(results, criterion, list(CANDIDATES)[k], SEEDS[s], TARGETS[t])
            assert (selected.run[k, s, t], selected.point[k, s, t]) == wanted, (data_seed, k, s, t)


def changed(results, criterion, where, value):
    """Whether the choice changes with the accuracies and losses at (point, split, domain) of each run."""
    before = select(results, criterion)
    accuracy, losses = results.accuracy.copy(), results.losses.copy()
    for place, run in enumerate(results.runs):
        at = where(run)
        accuracy[place][at] = value(accuracy[place][at])
        losses[place][at] = value(losses[place][at])
    after = select(dataclasses.replace(results, accuracy=accuracy, losses=losses), criterion)
    return not all(np.array_equal(*both) for both in zip(before, after, strict=True))


OTHERS = lambda target: [domain for domain in range(DOMAINS) if domain != target]


@pytest.mark.parametrize(
    ("criterion", "where", "matters"),
    [
        ("validation", lambda run: np.s_[:, :, run.target], False),
        ("validation", lambda run: np.s_[:, 0, :], False),
        ("validation", lambda run: np.s_[:1], False),
        ("validation", lambda run: np.s_[1:, 1, OTHERS(run.target)], True),
        ("oracle", lambda run: np.s_[:, :, OTHERS(run.target)], False),
        ("oracle", lambda run: np.s_[:-1], False),
        ("oracle", lambda run: np.s_[:, 0, :], False),
        ("oracle", lambda run: np.s_[-1:, 1, run.target], True),
        ("last", lambda run: np.s_[:], False),
    ],
)
def test_what_a_criterion_looks_at(criterion, where, matters):
    whole = dict.fromkeys(CANDIDATES, 4)
    results = random_results(0, whole)
    results = dataclasses.replace(results, losses=np.random.default_rng(1).random(results.losses.shape))
    assert changed(results, criterion, where, lambda x: 1.0 - x) == matters


# A target on which a network overflows must not show in what is chosen without it.
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_validation_does_not_see_that_the_target_diverges(value):
    of_target = lambda run: np.s_[:, :, run.target]
    assert not changed(random_results(3), "validation", of_target, lambda x: np.full_like(x, value))


@pytest.mark.parametrize("criterion", ["validation", "oracle"])
def test_a_method_all_of_whose_runs_diverged_has_its_first_choice(criterion):
    results = random_results(4)
    results.losses[:] = np.nan
    selected = select(results, criterion)
    assert all(results.runs[run].candidate == 0 for run in selected.run.ravel())
    assert (selected.point == (1 if criterion == "validation" else POINTS - 1)).all()


def test_the_table_of_runs():
    results = random_results(5)
    table = runs_table(results)
    assert table.shape == (3, 2, 2, 4)
    for k, s, t, c in np.ndindex(table.shape):
        method = results.methods[k]
        candidate = c if c < CANDIDATES[method] else 0
        assert results.runs[table[k, s, t, c]][:4] == (method, TARGETS[t], SEEDS[s], candidate)


def test_errors():
    results = random_results(6)
    with pytest.raises(
        ValueError,
        match="criterion must be one of validation, oracle, last, validation-domainbed, oracle-domainbed, got 'best'",
    ):
        select(results, "best")
    twice = dataclasses.replace(results, runs=(*results.runs[:-1], results.runs[0]))
    with pytest.raises(ValueError, match="appears twice"):
        select(twice, "last")


@pytest.mark.parametrize(
    "absent", [("ERM", 0, 2, 0), ("SAM", 2, 5, 1), ("DISAM", 0, 5, 3)], ids=lambda run: f"{run[0]}-{run[3]}"
)
def test_a_run_that_is_missing(absent):
    results = random_results(7)
    kept = [place for place, run in enumerate(results.runs) if run[:4] != absent]
    method, target, seed, candidate = absent
    fewer = {
        field: getattr(results, field)[kept]
        for field in ("accuracy", "losses", "probe_losses", "perturbed_losses", "sharpness")
    }
    incomplete = dataclasses.replace(results, runs=tuple(results.runs[place] for place in kept), **fewer)
    with pytest.raises(ValueError, match=f"no run of {method}, seed {seed}, target {target}, candidate {candidate}"):
        select(incomplete, "validation")


@pytest.mark.slow
def test_a_report_has_the_three_criteria_and_the_one_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(write, "report_figures", lambda *_: {})
    files = write.report_files(make_results(seeds=2, points=2, targets=(0, 1)), "validation-domainbed")
    assert [*json.loads(files["results.json"])["criteria"]] == ["validation", "oracle", "last", "validation-domainbed"]
    assert "ties as in DomainBed" in files["table.md"].decode()


def without_each(**changed):
    """Results of three domains, each held out, and results without each of them."""
    shape = {"candidates": CANDIDATES, "targets": (0, 1, 2), "domains": "abc"}
    pairs = {
        name: random_results(10 + place, **{**shape, "targets": (0, 1), "domains": "abc".replace(name, ""), **changed})
        for place, name in enumerate("abc")
    }
    return random_results(9, **shape), pairs


def test_leave_one_domain_out_against_loops():
    results, pairs = without_each()
    selected = leave_one_domain_out(results, pairs)
    ties = 0
    for k, s, t in np.ndindex(3, 2, 3):
        method, seed, name = list(CANDIDATES)[k], SEEDS[s], "abc"[t]
        scores = {}
        for candidate, point in itertools.product(range(CANDIDATES[method]), range(1, POINTS)):
            of_domains = []
            for v in range(2):
                index = next(i for i, run in enumerate(pairs[name].runs) if run[:4] == (method, v, seed, candidate))
                diverged = np.isnan(pairs[name].losses[index, point]).any()
                of_domains.append(0.0 if diverged else pairs[name].accuracy[index, point, TRAIN, v])
            scores[candidate, -point] = np.mean(of_domains)
        best = max(scores.values())
        candidate, point = max(each for each, score in scores.items() if score == best)
        ties += len({each[0] for each, score in scores.items() if score == best}) > 1
        assert results.runs[selected.run[k, s, t]][:4] == (method, t, seed, candidate)
        assert selected.point[k, s, t] == -point
    assert ties


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"candidates": {"ERM": 1, "SAM": 3}}, "results without a must have the methods"),
        ({"targets": (0,)}, "results without a must have the targets"),
        ({"domains": "de"}, "results without a must have the domains"),
        ({"candidates": {**CANDIDATES, "SAM": 2}}, "results without a must have the candidates"),
    ],
)
def test_results_of_something_else_are_refused_for_leave_one_domain_out(change, said):
    results, pairs = without_each(**change)
    with pytest.raises(ValueError, match=said):
        leave_one_domain_out(results, pairs)
