"""The methods' gradients against formulas in numpy, and what they must be equal to at the ends of their ranges."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import disam_jax
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import METHODS, Hyperparameter, Outputs, coral, coral_penalty, find_methods
from disam_jax.dg.models.network import Network, Output
from disam_jax.dg.training.config import TrainConfig, make_optimizer
from disam_jax.dg.training.step import RunSpec, start, train_step

# Far from the defaults, so that no term is too small to be seen.
HYPER = {
    "rho": 0.3,
    "lam": 0.7,
    "alpha": 0.2,
    "beta": 3.0,
    "anneal": 2.0,
    "eta": 0.8,
    "gamma": 0.6,
}
SHARPNESS_AWARE = {
    "SAM": {},
    "DISAM": {},
    "DISAM-std": {"penalty": "std"},
    "DISAM-control": {},
    "DISAM-std-control": {"penalty": "std"},
    "ASAM": {"adaptive": True},
    "ASAM+DISAM": {"adaptive": True},
    "ASAM+DISAM-std": {"adaptive": True, "penalty": "std"},
    "GSAM": {"variant": ("gsam", 0.2, "ascent")},
    "GSAM+DISAM": {"variant": ("gsam", 0.2, "clean")},
    "GSAM+DISAM-std": {"variant": ("gsam", 0.2, "clean"), "penalty": "std"},
    "SAGM": {"variant": ("sagm", 0.2, "ascent")},
    "SAGM+DISAM": {"variant": ("sagm", 0.2, "clean")},
    "SAGM+DISAM-std": {"variant": ("sagm", 0.2, "clean"), "penalty": "std"},
}


@functools.cache
def problem():
    return problems.make_problem(seed=3, num_domains=3, per_domain=5)


def network_of(problem):
    def apply(params, state, x, key, train):
        features = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"][None])
        logits = features @ params["out"]["w"] + params["out"]["b"][None]
        return Output(logits, features, {"mean": features.mean(0)} if train else state)

    return Network(lambda key: (problem.params, {"mean": jnp.zeros(6, jnp.float32)}), apply)


def hyper_of(name, learning_rate=0.1, weight_decay=0.0, **values):
    """`HYPER`, or other values, of those hyperparameters that a method has; a control's lam with its sign."""
    own = {each: {**HYPER, **values}[each] for each in METHODS[name].hyper}
    if METHODS[name].control:
        own["lam"] = -own["lam"]
    own = {"learning_rate": learning_rate, "weight_decay": weight_decay, **own}
    return {each: jnp.float32(value) for each, value in own.items()}


def train(name, number, setting, **values):
    """A run before and after each of some steps on the same batch."""
    data, spec = problem(), RunSpec(jax.random.key(0), jnp.int32(0), jnp.int32(3), hyper_of(name, **values))
    fixed = {"network": network_of(data), "method": METHODS[name], "setting": setting}
    runs = [start(spec, **fixed, num_sources=3)]
    for step in range(number):
        runs.append(train_step(runs[-1], spec, jnp.int32(step), data.batch["x"], data.batch["y"], **fixed))
    return runs


@functools.cache
def _one_step(name, values):
    return train(name, 1, TrainConfig(momentum=0.5), **dict(values))[1]


def one_step(name, **values):
    return _one_step(name, tuple(values.items()))


def gradient(name, **values):
    # What momentum has gathered in one step is the gradient, bit by bit.
    return optax.tree.get(one_step(name, **values).optimizer, "trace")


def alignment(features):
    """The penalty of correlation alignment of float64 [M, n, F], and its gradient by hand."""
    number, size, width = features.shape
    pairs = list(itertools.combinations(range(number), 2))
    means = features.mean(1)
    covariances = [np.cov(each, rowvar=False).reshape(width, width) for each in features]
    value, slope = 0.0, np.zeros_like(features)
    for i, j in pairs:
        mean, covariance = means[i] - means[j], covariances[i] - covariances[j]
        value += ((mean**2).mean() + (covariance**2).mean()) / len(pairs)
        for k, sign in ((i, 1), (j, -1)):
            of_mean = 2 * sign * mean / width / size
            of_covariance = 4 * sign * (features[k] - means[k]) @ covariance / width**2 / (size - 1)
            slope[k] += (of_mean + of_covariance) / len(pairs)
    return value, slope


def with_coral(problem, gamma):
    """The reference for the losses L_i + gamma * penalty."""
    plain, x = problems.reference(problem), np.asarray(problem.batch["x"], np.float64)
    bias, kernel = problem.params["hidden"]["b"].size, problem.params["hidden"]["w"].shape

    def penalty(w):
        ends = bias, bias + kernel[0] * kernel[1]
        features = np.tanh(x @ w[ends[0] : ends[1]].reshape(kernel) + w[: ends[0]])
        value, slope = alignment(features)
        slope = slope * (1 - features**2)
        own = np.concatenate([slope.sum((0, 1)), np.einsum("mnf,mnh->fh", x, slope).ravel()])
        return gamma * value, gamma * np.pad(own, (0, len(w) - len(own)))

    return problems.Reference(
        lambda w: plain.losses_at(w) + penalty(w)[0], lambda w: plain.gradients_at(w) + penalty(w)[1]
    )


def expected(name):
    """The gradient of a method at its first step with `HYPER`, flat, in float64."""
    w, plain = problems.flatten(problem().params), problems.reference(problem())
    losses, gradients = plain.losses_at(w), plain.gradients_at(w)
    has = METHODS[name].hyper
    rho = HYPER["rho"] if "rho" in has else 0.0
    lam = 0.0 if "lam" not in has else -HYPER["lam"] if METHODS[name].control else HYPER["lam"]
    if name in SHARPNESS_AWARE:
        return plain.step(w, rho, lam, **SHARPNESS_AWARE[name])["gradient"]
    if name.startswith("CORAL"):
        return with_coral(problem(), HYPER["gamma"]).step(w, rho, lam)["gradient"]
    weights = {
        "ERM": np.full(3, 1 / 3),
        "VREx": (1 + 2 * 1.0 * (losses - losses.mean())) / 3,
        "GroupDRO": np.exp(HYPER["eta"] * losses) / np.exp(HYPER["eta"] * losses).sum(),
    }
    return weights[name] @ gradients


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_each_method_is_its_formula(name):
    run = one_step(name)
    assert problems.relative_error(gradient(name), expected(name)) < 2e-5
    change = jax.tree.map(lambda new, old: (old - new) / 0.1, run.params, problem().params)
    assert problems.relative_error(change, expected(name)) < 2e-5
    # What a network keeps of a batch is that at w, not at w + e.
    np.testing.assert_array_equal(run.state["mean"], one_step("ERM").state["mean"])


# Values at which a method is another one; each of the others is at that of `HYPER`.
@pytest.mark.parametrize(
    ("name", "values", "other", "exactly"),
    [
        ("SAM", {"rho": 0.0}, "ERM", True),
        ("ASAM", {"rho": 0.0}, "ERM", True),
        ("GSAM", {"rho": 0.0}, "ERM", False),
        ("SAGM", {"rho": 0.0, "alpha": 0.0}, "ERM", True),
        ("GSAM", {"alpha": 0.0}, "SAM", True),
        *((name, {"lam": 0.0}, "SAM", True) for name in METHODS if name.startswith("DISAM")),
        *((f"ASAM+{name}", {"lam": 0.0}, "ASAM", True) for name in ("DISAM", "DISAM-std")),
        *((f"GSAM+{name}", {"lam": 0.0}, "GSAM", False) for name in ("DISAM", "DISAM-std")),
        *((f"SAGM+{name}", {"lam": 0.0}, "SAGM", False) for name in ("DISAM", "DISAM-std")),
        ("VREx", {"anneal": 0.0, "beta": 0.0}, "ERM", True),
        ("GroupDRO", {"eta": 0.0}, "ERM", False),
        ("CORAL", {"gamma": 0.0}, "ERM", True),
        ("CORAL+SAM", {"gamma": 0.0}, "SAM", True),
        ("CORAL+SAM", {"rho": 0.0}, "CORAL", False),
        ("CORAL+DISAM", {"gamma": 0.0}, "DISAM", True),
        ("CORAL+DISAM", {"lam": 0.0}, "CORAL+SAM", True),
    ],
)
def test_a_method_without_its_term_is_another_method(name, values, other, exactly):
    got, wanted = gradient(name, **values), gradient(other)
    assert problems.relative_error(got, wanted) <= (0.0 if exactly else 1e-6)
    assert problems.relative_error(gradient(name), wanted) > 1e-3


def test_every_method_is_compared_with_one_that_has_fewer_terms():
    for name, method in METHODS.items():
        if name != "ERM":
            assert set(METHODS[method.base].hyper) < set(method.hyper), name
        assert method.note, name
        assert method.control == name.endswith("control")
    assert METHODS["ERM"].base is None


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_optimizer_in_numpy(optimizer):
    gradients = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    w, first, second = np.linspace(-1, 1, 5), np.zeros(5), np.zeros(5)
    params, rate, decay = jnp.asarray(w, jnp.float32), 0.2, 0.05
    hyper = {"learning_rate": jnp.float32(rate), "weight_decay": jnp.float32(decay)}
    transformation = make_optimizer(TrainConfig(optimizer=optimizer, momentum=0.7), hyper)
    # Optax's adam relies on promotion.
    with jax.numpy_dtype_promotion("strict" if optimizer == "sgd" else "standard"):
        state = transformation.init(params)
        for count, gradient in enumerate(gradients, 1):
            updates, state = transformation.update(jnp.asarray(gradient), state, params)
            params = params + updates
            g = gradient + decay * w
            if optimizer == "sgd":
                first = 0.7 * first + g
                w = w - rate * first
            else:
                first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
                w = w - rate * (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
            np.testing.assert_allclose(params, w, rtol=2e-5)


def test_vrex_penalises_by_beta_after_the_annealing():
    plain, w = problems.reference(problem()), problems.flatten(problem().params)
    runs = train("VREx", 4, TrainConfig(momentum=0.0))
    for step in range(4):
        beta = 1.0 if step < HYPER["anneal"] else HYPER["beta"]
        losses = plain.losses_at(w)
        w = w - 0.1 * (1 + 2 * beta * (losses - losses.mean())) / 3 @ plain.gradients_at(w)
        assert problems.relative_error(runs[step + 1].params, w) < 1e-5
        assert int(runs[step + 1].memory) == step + 1


def test_group_dro_raises_the_shares_of_high_losses():
    plain, w = problems.reference(problem()), problems.flatten(problem().params)
    runs = train("GroupDRO", 4, TrainConfig(momentum=0.0))
    shares = np.full(3, 1 / 3)
    np.testing.assert_allclose(runs[0].memory, shares, rtol=1e-6)
    for run in runs[1:]:
        shares = shares * np.exp(HYPER["eta"] * plain.losses_at(w))
        shares = shares / shares.sum()
        w = w - 0.1 * shares @ plain.gradients_at(w)
        np.testing.assert_allclose(run.memory, shares, rtol=1e-5)
        assert problems.relative_error(run.params, w) < 1e-5


def test_group_dro_stands_losses_that_overflow():
    objective = lambda losses: METHODS["GroupDRO"].gradient(
        losses, lambda losses: Outputs(losses, jnp.zeros((2, 1, 1)), {}), {"eta": jnp.float32(1.0)}, jnp.full(2, 0.5)
    )
    grads, _, shares = objective(jnp.array([1.0, 1e4], jnp.float32))
    assert shares.tolist() == grads.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("number", "size", "width"), [(2, 7, 3), (3, 4, 5), (4, 2, 1)])
def test_correlation_alignment_in_numpy(number, size, width):
    features = np.random.default_rng(number).normal(1.0, 2.0, (number, size, width)).astype(np.float32)
    wanted = alignment(features.astype(np.float64))[0]
    penalty = jax.jit(coral_penalty)
    # In any order, and whatever all domains share.
    for same in (features, features[::-1].copy(), np.roll(features, 1, 0), features + np.float32(3.0)):
        np.testing.assert_allclose(penalty(same), wanted, rtol=1e-4)


def test_correlation_alignment_of_one_domain_is_nothing():
    assert float(coral_penalty(jnp.ones((1, 3, 2)))) == 0.0


@pytest.mark.parametrize("penalty", ["variance", "std"])
def test_a_common_term_changes_no_domain_weight(penalty):
    losses = problems.reference(problem()).losses_at(problems.flatten(problem().params)).astype(np.float32)
    features = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 6)), jnp.float32)
    common = coral(Outputs(jnp.asarray(losses), features, {}), {"gamma": jnp.float32(5.0)})
    np.testing.assert_allclose(np.ptp(common - losses), 0.0, atol=1e-6)
    assert float(common[0] - losses[0]) > 0.1
    weights = functools.partial(disam_jax.domain_weights, lam=HYPER["lam"], penalty=penalty)
    np.testing.assert_allclose(weights(common), weights(losses), atol=1e-6)


# That the methods' gradients are those of this reference is tested above.
@pytest.mark.parametrize("penalty", ["variance", "std"])
def test_the_control_perturbs_towards_more_spread_and_disam_towards_less(penalty):
    name = "DISAM" if penalty == "variance" else "DISAM-std"
    lam, wrong = (METHODS[each].hyper["lam"].default for each in (name, f"{name}-control"))
    assert wrong == -lam
    step = functools.partial(problems.reference(problem()).step, problems.flatten(problem().params), 0.01)
    less, sam, more = (np.var(step(value, penalty)["perturbed_domain_losses"]) for value in (lam, 0.0, wrong))
    assert less < sam - 1e-4 < more - 2e-4


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["erm", "Sam", "vrex"], ["ERM", "SAM", "VREx"]),
        (["DISAM", "sam", "disam", "DiSAM"], ["DISAM", "SAM"]),
        (["coral+disam", "disam-CONTROL"], ["CORAL+DISAM", "DISAM-control"]),
        (["all"], [name for name in METHODS if "control" not in name]),
        (["SAGM", "All"], ["SAGM", *(name for name in METHODS if "control" not in name and name != "SAGM")]),
        (["all", "disam-control"], [*(name for name in METHODS if "control" not in name), "DISAM-control"]),
        ([], []),
    ],
)
def test_methods_by_name(names, found):
    methods = find_methods(names)
    assert list(methods) == found
    assert all(methods[name] is METHODS[name] for name in found)


@pytest.mark.parametrize("name", ["SAMM", "", "sam "])
def test_an_unknown_method_is_refused(name):
    with pytest.raises(InputError, match=f"unknown --method {name}: the methods are ERM, SAM, .*, and all"):
        find_methods(["ERM", name])


def test_methods_of_another_table():
    mine = {"Mine": METHODS["ERM"]}
    assert find_methods(["mine", "all"], mine) == mine
    with pytest.raises(InputError, match="the methods are Mine, and all"):
        find_methods(["ERM"], mine)


PLAIN = Hyperparameter(0.5, -1.0, 2.0)
TENFOLD = Hyperparameter(0.5, -1.0, 0.0, times=10.0, relative=True)
NEGATIVE = Hyperparameter(-1.0, -1.0, 1.0, times=-1.0)


@pytest.mark.parametrize(
    ("hyperparameter", "defaults", "value", "lowest", "middle"),
    [
        (PLAIN, {}, 0.5, 0.1, 10**0.5),
        (PLAIN, {"lam": 3.0}, 0.5, 0.1, 10**0.5),
        (PLAIN, {"rho": 3.0}, 3.0, 0.1, 10**0.5),
        (TENFOLD, {}, 0.5, 0.05, 0.5 * 10**-0.5),
        (TENFOLD, {"rho": 0.2}, 2.0, 0.2, 2.0 * 10**-0.5),
        (NEGATIVE, {}, -1.0, -0.1, -1.0),
        (NEGATIVE, {"rho": 0.3}, -0.3, -0.1, -1.0),
    ],
)
def test_a_hyperparameter_by_default_and_drawn(hyperparameter, defaults, value, lowest, middle):
    assert hyperparameter.value(defaults, "rho") == pytest.approx(value)
    assert hyperparameter.draw(0.0, defaults, "rho") == pytest.approx(lowest)
    assert hyperparameter.draw(0.5, defaults, "rho") == pytest.approx(middle)
