"""Hyperparameters that are tried: defaults, draws that all methods share, and grids."""

import numpy as np
import pytest

from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import METHODS, find_methods
from disam_jax.dg.sweep.hparams import check_grid, default_hparams, grid_candidates, random_candidates
from disam_jax.dg.training.config import TrainConfig

SMALL = TrainConfig(learning_rate=0.25, weight_decay=0.5, rho=0.125)
ADAM = TrainConfig(optimizer="adam", learning_rate=1e-3)
RESNET = TrainConfig(model="resnet18", optimizer="adam", learning_rate=5e-5)


def values(name, hparam, config=SMALL, number=30, seed=0):
    return np.array([each[hparam] for each in random_candidates(METHODS[name], config, number, seed)])


@pytest.mark.parametrize(
    ("name", "config", "own"),
    [
        ("ERM", SMALL, {}),
        ("SAM", SMALL, {"rho": 0.125}),
        ("ASAM", SMALL, {"rho": 1.25}),
        ("DISAM", SMALL, {"rho": 0.125, "lam": 1.0}),
        ("DISAM-std", SMALL, {"rho": 0.125, "lam": 0.4}),
        ("DISAM-control", SMALL, {"rho": 0.125, "lam": -1.0}),
        ("DISAM", TrainConfig(lam=0.25), {"rho": 0.1, "lam": 0.25}),
        ("DISAM-control", TrainConfig(lam=0.25), {"rho": 0.1, "lam": -0.25}),
        # Of DomainBed's 5000 steps; of 400 as many fewer.
        ("VREx", TrainConfig(steps=5000, optimizer="adam"), {"beta": 10.0, "anneal": 500.0}),
        ("VREx", TrainConfig(steps=400, optimizer="adam"), {"beta": 10.0, "anneal": 40.0}),
        # DomainBed's are meant for Adam.
        ("VREx", TrainConfig(steps=400), {"beta": 1.0, "anneal": 40.0}),
        ("GroupDRO", SMALL, {"eta": 0.01}),
        ("CORAL+SAM", SMALL, {"gamma": 1.0, "rho": 0.125}),
        ("IRM", TrainConfig(steps=5000, optimizer="adam"), {"irm_lambda": 100.0, "anneal": 500.0}),
        ("IRM", TrainConfig(steps=5000), {"irm_lambda": 1.0, "anneal": 500.0}),
        ("Mixup", SMALL, {"mixup_alpha": 0.2}),
        ("SD", SMALL, {"sd_reg": 0.1}),
    ],
)
def test_the_defaults_come_first(name, config, own):
    optimizer = {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay}
    default = default_hparams(METHODS[name], config)
    assert default == pytest.approx({**optimizer, **own})
    as_float32 = {each: float(np.float32(value)) for each, value in default.items()}
    for number in (1, 4):
        candidates = random_candidates(METHODS[name], config, number, seed=3)
        assert len(candidates) == number
        assert candidates[0] == as_float32
        assert all(list(each) == list(candidates[0]) for each in candidates)
    assert grid_candidates(METHODS[name], config, {"learning_rate": [0.5]})[0] == as_float32


def test_candidates_are_a_matter_of_seed_and_place():
    method = METHODS["DISAM"]
    long = random_candidates(method, SMALL, 6, seed=1)
    assert random_candidates(method, SMALL, 3, seed=1) == long[:3]
    for name in ("learning_rate", "rho", "lam"):
        assert len({each[name] for each in long}) == 6
    others = random_candidates(method, SMALL, 6, seed=2)
    assert all(mine != other for mine, other in zip(long[1:], others[1:], strict=True))
    # Different hyperparameters of one candidate are drawn apart from each other.
    ranks = np.argsort([[each[name] for each in long[1:]] for name in ("learning_rate", "rho", "lam")])
    assert len(np.unique(ranks, axis=0)) == 3


@pytest.mark.parametrize("config", [SMALL, ADAM, RESNET])
def test_methods_share_their_draws(config):
    first = random_candidates(METHODS["DISAM"], config, 5, seed=0)
    # Those of the penalty "std" are from another range.
    lam = {"DISAM-control": -1.0, "CORAL+DISAM": 1.0, "ASAM+DISAM": 1.0, "GSAM+DISAM": 1.0, "SAGM+DISAM": 1.0}
    for name, method in METHODS.items():
        for mine, other in zip(random_candidates(method, config, 5, seed=0), first, strict=True):
            assert (mine["learning_rate"], mine["weight_decay"]) == (other["learning_rate"], other["weight_decay"])
            if "rho" in method.hparams:
                assert mine["rho"] == pytest.approx(other["rho"] * (10.0 if "ASAM" in name else 1.0))
            if name in lam:
                assert mine["lam"] == lam[name] * other["lam"]


@pytest.mark.parametrize("name", METHODS)
def test_signs_are_the_methods(name):
    for hparam in METHODS[name].hparams:
        negative = METHODS[name].control and hparam == ("descent_lam" if "descent" in name else "lam")
        given = METHODS[name].hparams[hparam]
        # Some are off by default, or may be drawn so.
        off = {0.0} & {given.default, *given.choices}
        assert {*np.sign(values(name, hparam, number=4))} <= {-1.0 if negative else 1.0, *off}


# Powers of ten. The first are those of DomainBed's `hparams_registry`, the others ours.
@pytest.mark.parametrize(
    ("name", "hparam", "config", "low", "high"),
    [
        ("ERM", "learning_rate", ADAM, -4.5, -2.5),
        ("ERM", "learning_rate", RESNET, -5.0, -3.5),
        ("ERM", "weight_decay", RESNET, -6.0, -2.0),
        ("VREx", "beta", ADAM, -1.0, 5.0),
        ("VREx", "beta", SMALL, -1.0, 0.0),
        ("VREx", "anneal", TrainConfig(steps=5000), 0.0, 4.0),
        ("VREx", "anneal", TrainConfig(steps=500), -1.0, 3.0),
        ("GroupDRO", "eta", SMALL, -3.0, -1.0),
        ("CORAL", "gamma", SMALL, -1.0, 1.0),
        ("IRM", "irm_lambda", ADAM, -1.0, 5.0),
        ("IRM", "irm_lambda", SMALL, -1.0, 0.0),
        ("IRM", "anneal", TrainConfig(steps=5000), 0.0, 4.0),
        ("Mixup", "mixup_alpha", SMALL, -1.0, 1.0),
        ("SD", "sd_reg", SMALL, -5.0, -1.0),
        ("MMD", "gamma", SMALL, -1.0, 1.0),
        ("CausIRL-CORAL", "gamma", SMALL, -1.0, 1.0),
        ("CausIRL-MMD", "gamma", SMALL, -1.0, 1.0),
        ("IB-ERM", "ib_lambda", SMALL, -1.0, 5.0),
        ("IB-ERM", "ib_anneal", TrainConfig(steps=5000), 0.0, 4.0),
        ("IB-IRM", "irm_lambda", SMALL, -1.0, 5.0),
        ("Fishr", "fishr_lambda", SMALL, 1.0, 4.0),
        ("IGA", "iga_penalty", SMALL, 1.0, 5.0),
        ("MLDG", "mldg_beta", SMALL, -1.0, 1.0),
        ("EQRM", "burn_in", TrainConfig(steps=5000), 2.5, 3.5),
        ("DANN", "dann_lambda", SMALL, -2.0, 2.0),
        ("DANN", "lr_d", SMALL, -4.5, -2.5),
        ("CDANN", "weight_decay_d", SMALL, -6.0, -2.0),
        ("CDANN", "grad_penalty", SMALL, -2.0, 1.0),
        ("ERM", "learning_rate", SMALL, np.log10(0.25) - 0.7, np.log10(0.25) + 0.3),
        ("SAM", "rho", SMALL, np.log10(0.125) - 1.0, np.log10(0.125) + 0.5),
        ("ASAM", "rho", SMALL, np.log10(1.25) - 1.0, np.log10(1.25) + 0.5),
        ("DISAM", "lam", SMALL, -1.0, 1.0),
        ("DISAM", "lam", TrainConfig(lam=50.0), -1.0, 1.0),
        ("DISAM-std", "lam", SMALL, -1.0, -0.25),
        ("DISAM-descent-std", "descent_lam", SMALL, -1.0, -0.25),
        ("GSAM", "alpha", SMALL, -1.0, 0.0),
        ("SAGM", "alpha", SMALL, -4.0, -2.0),
    ],
)
def test_draws_are_log_uniform_over_the_range(name, hparam, config, low, high):
    drawn = np.sort((np.log10(values(name, hparam, config, 401)[1:]) - low) / (high - low))
    assert -1e-6 < drawn[0] < drawn[-1] < 1 + 1e-6
    # Kolmogorov's test at one in a thousand.
    assert np.abs(drawn - (np.arange(400) + 0.5) / 400).max() < 1.95 / np.sqrt(400)


# DomainBed's too.
@pytest.mark.parametrize(
    ("name", "hparam", "default", "low", "high"),
    [
        ("Fishr", "fishr_ema", 0.95, 0.90, 0.99),
        ("Fishr", "fishr_anneal", 1500, 0, 5000),
        ("EQRM", "quantile", 0.75, 0.5, 0.99),
        ("RDM", "rdm_lambda", 5.0, 0.1, 10.0),
        ("RDM", "variance_weight", 0.004, 0.001, 0.007),
        ("RDM", "rdm_anneal", 1500, 800, 2700),
        ("AND-mask", "tau", 1.0, 0.5, 1.0),
        ("RSC", "feature_drop", 1 / 3, 0.0, 0.5),
        ("RSC", "batch_drop", 1 / 3, 0.0, 0.5),
    ],
)
def test_uniform_draws(name, hparam, default, low, high):
    found = values(name, hparam, TrainConfig(steps=5000), 401)
    assert found[0] == pytest.approx(default)
    drawn = np.sort((found[1:] - low) / (high - low))
    assert np.abs(drawn - (np.arange(400) + 0.5) / 400).max() < 1.95 / np.sqrt(400)


@pytest.mark.parametrize(
    ("name", "hparam", "default", "choices"),
    [("Fish", "meta_lr", 0.5, (0.05, 0.1, 0.5)), ("DANN", "beta1", 0.5, (0.0, 0.5))],
)
def test_draws_from_a_few_values(name, hparam, default, choices):
    found = values(name, hparam, SMALL, 401)
    assert found[0] == np.float32(default)
    counts = [(found[1:] == np.float32(value)).sum() for value in choices]
    assert sum(counts) == 400
    assert min(counts) > 400 / len(choices) - 5 * 400**0.5 / 2


@pytest.mark.parametrize("config", [SMALL, ADAM])
def test_weight_decay_is_drawn_for_large_images_only(config):
    assert (values("ERM", "weight_decay", config) == np.float32(config.weight_decay)).all()


@pytest.mark.parametrize(
    ("name", "grid", "found"),
    [
        # (rho, lam), the defaults 0.125 and 1 first.
        ("DISAM", {"rho": [0.5, 1.0], "lam": [2.0, 4.0]}, [(0.125, 1), (0.5, 2), (0.5, 4), (1, 2), (1, 4)]),
        ("DISAM", {"lam": [2.0, 4.0], "rho": [0.5, 1.0]}, [(0.125, 1), (0.5, 2), (1, 2), (0.5, 4), (1, 4)]),
        ("DISAM", {"lam": [2.0, 1.0, 2.0, 0.0]}, [(0.125, 1), (0.125, 2), (0.125, 0)]),
        ("DISAM", {"rho": [0.125 + 1e-12, 0.0]}, [(0.125, 1), (0.0, 1)]),
        ("DISAM-control", {"rho": [0.5], "lam": [2.0]}, [(0.125, -1), (0.5, -2)]),
        ("ASAM+DISAM", {"rho": [0.5], "lam": [2.0]}, [(1.25, 1), (5, 2)]),
        ("SAM", {"rho": [0.5, 1.0], "lam": [2.0, 4.0]}, [(0.125, None), (0.5, None), (1, None)]),
        ("ERM", {"rho": [0.5, 1.0], "lam": [2.0, 4.0]}, [(None, None)]),
        ("CORAL", {}, [(None, None)]),
    ],
)
def test_a_grid(name, grid, found):
    candidates = grid_candidates(METHODS[name], SMALL, grid)
    assert [(each.get("rho"), each.get("lam")) for each in candidates] == found
    rest = [{key: value for key, value in each.items() if key not in ("rho", "lam")} for each in candidates]
    assert all(each == rest[0] for each in rest)
    assert (rest[0]["learning_rate"], rest[0]["weight_decay"]) == (0.25, 0.5)


def test_a_grid_over_the_optimizer():
    candidates = grid_candidates(METHODS["ERM"], SMALL, {"learning_rate": [0.5], "weight_decay": [0.0, 0.5]})
    assert [tuple(each.values()) for each in candidates] == [(0.25, 0.5), (0.5, 0.0), (0.5, 0.5)]


@pytest.mark.parametrize(
    ("methods", "grid", "message"),
    [
        (["ERM", "SAM"], {"lam": [1.0]}, "unknown hyperparameter lam in --grid: these methods have learning_rate, rho"),
        (["all"], {"mu": [1.0]}, "unknown hyperparameter mu in --grid"),
        (["SAM"], {"rho": []}, "--grid rho must have at least one value, got none"),
        (["SAM"], {"rho": [0.1, float("nan")]}, "--grid rho must be finite and not negative, got nan"),
        (["DISAM"], {"lam": [float("inf")]}, "--grid lam must be finite, got inf"),
        (["SAM"], {"rho": [0.1, -0.5]}, "--grid rho must be finite and not negative, got -0.5"),
        (["ERM"], {"learning_rate": [-1.0]}, "--grid learning_rate must be positive and finite, got -1.0"),
        (["ERM"], {"weight_decay": [-1.0]}, "--grid weight_decay must be finite and not negative, got -1.0"),
    ],
)
def test_a_grid_that_cannot_be(methods, grid, message):
    with pytest.raises(InputError, match=message):
        check_grid(grid, find_methods(methods))


def test_a_grid_that_can_be():
    check_grid({"lam": [-1.0, 0.0], "rho": [0.0], "learning_rate": [1.0]}, find_methods(["ERM", "DISAM"]))
