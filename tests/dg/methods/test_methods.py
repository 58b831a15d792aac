"""The methods' gradients against formulas in numpy, and what they must be equal to at the ends of their ranges."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from support import quick, slow

import disam_jax
from disam_jax.dg.data import keys
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import (
    METHODS,
    Batch,
    Hyperparameter,
    Method,
    MethodError,
    Outputs,
    choice,
    coral,
    coral_penalty,
    find_methods,
    from_objective,
    irm,
    irm_penalty,
    mixup_pairs,
    sd,
    sharpness_aware,
)
from disam_jax.dg.methods.base import NEEDS
from disam_jax.dg.methods.sam_family import RELATIVES
from disam_jax.dg.models.network import Network, Output
from disam_jax.dg.training.config import TrainConfig, make_optimizer
from disam_jax.dg.training.step import RunSpec, start, train_step

# Far from the defaults, so that no term is too small to be seen.
HYPER = {
    "rho": 0.3,
    "lam": 0.7,
    "descent_lam": 0.5,
    "alpha": 0.2,
    "beta": 3.0,
    "anneal": 2.0,
    "eta": 0.8,
    "gamma": 0.6,
    "irm_lambda": 5.0,
    "mixup_alpha": 0.7,
    "sd_reg": 0.4,
}
KEY = jax.random.key(0)
SHARPNESS_AWARE = {
    "SAM": {},
    "DISAM": {},
    "DISAM-std": {"penalty": "std"},
    "DISAM-control": {},
    "DISAM-std-control": {"penalty": "std"},
    "DISAM-descent-std": {"penalty": "std", "descent_lam": 0.5},
    "DISAM-descent-std-control": {"penalty": "std", "descent_lam": -0.5},
    "SAM-normalised": {"domain_gradients": "normalised"},
    "DISAM-normalised-std": {"penalty": "std", "domain_gradients": "normalised"},
    "DISAM-normalised-std-control": {"penalty": "std", "domain_gradients": "normalised"},
    "SAM-own": {"domain_gradients": "own"},
    "DISAM-own-std": {"penalty": "std", "domain_gradients": "own"},
    "DISAM-own-std-control": {"penalty": "std", "domain_gradients": "own"},
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


# SAM's relatives are held against their formulas in test_sam_family, and the other methods that are extra in
# test_benchmark_methods.
FAMILY = [name for name in METHODS if name.removesuffix("+DISAM") in RELATIVES]
OTHERS = [name for name, method in METHODS.items() if not method.extra]


@functools.cache
def problem():
    return problems.make_problem(seed=3, num_domains=3, per_domain=5)


def network_of(problem):
    def apply(params, state, x, key, train):
        features = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"][None])
        logits = features @ params["out"]["w"] + params["out"]["b"][None]
        return Output(logits, features, {"mean": features.mean(0)} if train else state)

    return Network(lambda key: (problem.params, {"mean": jnp.zeros(6, jnp.float32)}), apply)


def hparams_of(name, learning_rate=0.1, weight_decay=0.0, **values):
    """`HYPER`, or other values, of those hyperparameters that a method has; those of a control with its sign."""
    own = {
        each: {**HYPER, **values}.get(each, given.default) * (-1 if given.default < 0 else 1)
        for each, given in METHODS[name].hparams.items()
    }
    own = {"learning_rate": learning_rate, "weight_decay": weight_decay, **own}
    return {each: jnp.float32(value) for each, value in own.items()}


def train(name, number, config, **values):
    """A run before and after each of some steps on the same batch."""
    data, spec = problem(), RunSpec(KEY, jnp.int32(0), jnp.int32(3), hparams_of(name, **values))
    fixed = {"network": network_of(data), "method": METHODS[name], "config": config}
    runs = [start(spec, **fixed, num_sources=3, example=jax.ShapeDtypeStruct((4,), jnp.float32))]
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
    has = METHODS[name].hparams
    rho = HYPER["rho"] if "rho" in has else 0.0
    lam = 0.0 if "lam" not in has else np.copysign(HYPER["lam"], has["lam"].default)
    if name in SHARPNESS_AWARE:
        return plain.step(w, rho, lam, **SHARPNESS_AWARE[name])["gradient"]
    if name.startswith("CORAL"):
        return with_coral(problem(), HYPER["gamma"]).step(w, rho, lam)["gradient"]
    if name in OBJECTIVES:
        return slope(OBJECTIVES[name], w, step=0)
    weights = {
        "ERM": np.full(3, 1 / 3),
        "VREx": (1 + 2 * 1.0 * (losses - losses.mean())) / 3,
        "GroupDRO": np.exp(HYPER["eta"] * losses) / np.exp(HYPER["eta"] * losses).sum(),
    }
    return weights[name] @ gradients if name in weights else None


# Of methods that look at other numbers than the domain losses: objectives in float64, one forward pass of `logits`.


def unflatten(w):
    """The parameters of `problem` as float64 arrays, from a flat vector in the order of `problems.flatten`."""
    leaves, structure = jax.tree.flatten(problem().params)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = [part.reshape(leaf.shape) for part, leaf in zip(np.split(w, ends), leaves, strict=True)]
    return structure.unflatten(parts)


def features_at(w, x):
    params = unflatten(w)
    return np.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])


def logits_at(w, x):
    params = unflatten(w)
    return features_at(w, x) @ params["out"]["w"] + params["out"]["b"]


def cross_entropy(logits, labels):
    """Of one domain: [n, C] and [n]."""
    shifted = logits - logits.max(-1, keepdims=True)
    return (np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(labels)), labels]).mean()


def slope_of_scale(logits, labels):
    """d/ds of the cross-entropy of s times the logits at s = 1, by central differences."""
    step = 1e-5
    return (cross_entropy((1 + step) * logits, labels) - cross_entropy((1 - step) * logits, labels)) / (2 * step)


def irm_objective(w, step):
    weight = 1.0 if step < HYPER["anneal"] else HYPER["irm_lambda"]
    total = 0.0
    for x, y in zip(np.asarray(problem().batch["x"], np.float64), np.asarray(problem().batch["y"]), strict=True):
        logits = logits_at(w, x)
        even, odd = slope_of_scale(logits[::2], y[::2]), slope_of_scale(logits[1::2], y[1::2])
        total += (cross_entropy(logits, y) + weight * even * odd) / 3
    return total


def sd_objective(w, step):
    x, y = np.asarray(problem().batch["x"], np.float64).reshape(15, -1), np.asarray(problem().batch["y"]).ravel()
    logits = logits_at(w, x)
    return cross_entropy(logits, y) + HYPER["sd_reg"] * (logits**2).sum() / logits.size


def mixed(step):
    """The pairs of a step and their inputs, from the draws that `test_mixup_pairs...` looks at."""
    key = keys.method_key(keys.step_key(KEY, step))
    drawn = mixup_pairs(key, 3, jnp.float32(HYPER["mixup_alpha"]))
    pairs = list(zip(*(np.asarray(each) for each in drawn), strict=True))
    x = np.asarray(problem().batch["x"], np.float64)
    return pairs, [share * x[i] + (1 - share) * x[j] for i, j, share in pairs]


def mixup_objective(w, step):
    y, total = np.asarray(problem().batch["y"]), 0.0
    for (i, j, share), x in zip(*mixed(step), strict=True):
        logits = logits_at(w, x)
        total += (share * cross_entropy(logits, y[i]) + (1 - share) * cross_entropy(logits, y[j])) / 3
    return total


OBJECTIVES = {"IRM": irm_objective, "SD": sd_objective, "Mixup": mixup_objective}


def slope(objective, w, step):
    """The gradient of an objective by central differences in float64."""
    units = 1e-5 * np.eye(len(w))
    return np.array([(objective(w + unit, step) - objective(w - unit, step)) / 2e-5 for unit in units])


@pytest.mark.parametrize(
    "name", quick(OTHERS, "ERM", "SAM", "DISAM", "DISAM-own-std", "GSAM+DISAM-std", "VREx", "GroupDRO")
)
def test_a_step_of_each_method_is_its_formula(name):
    """A method whose formula is not written down here in numpy is skipped: add it to `expected`, or to `OBJECTIVES`."""
    wanted = expected(name)
    if wanted is None:
        pytest.skip(f"no formula of {name} in numpy")
    run = one_step(name)
    assert problems.relative_error(gradient(name), wanted) < 2e-5
    change = jax.tree.map(lambda new, old: (old - new) / 0.1, run.params, problem().params)
    assert problems.relative_error(change, wanted) < 2e-5
    if name == "Mixup":
        seen = features_at(problems.flatten(problem().params), np.concatenate(mixed(step=0)[1])).mean(0)
        np.testing.assert_allclose(run.state["mean"], seen, rtol=1e-5, atol=1e-6)
    else:
        # What a network keeps of a batch is that at w, not at w + e.
        np.testing.assert_array_equal(run.state["mean"], one_step("ERM").state["mean"])


@pytest.mark.parametrize("name", ["IRM", *slow(*(name for name in OBJECTIVES if name != "IRM"))])
def test_the_trajectory_of_a_method_is_that_of_its_objective(name):
    """Four steps, two before and two after the annealing, each from where the reference stands."""
    w = problems.flatten(problem().params)
    for step, run in enumerate(train(name, 4, TrainConfig(momentum=0.0))[1:]):
        w = w - 0.1 * slope(OBJECTIVES[name], w, step)
        assert problems.relative_error(run.params, w) < 1e-5


@pytest.mark.parametrize("name", [*OTHERS, *slow(*FAMILY)])
def test_a_step_keeps_structure_shapes_and_dtypes(name):
    """So that steps can be scanned over."""
    before, after = train(name, 0, TrainConfig(momentum=0.5))[0], one_step(name)
    shapes = lambda run: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), run)
    assert shapes(before) == shapes(after)


@pytest.mark.parametrize("name", [*OTHERS, *slow(*FAMILY)])
def test_a_step_of_each_method_goes_down(name):
    """The mean loss falls along the gradient of every method, a control's too: its descent is that of SAM."""
    plain, w = problems.reference(problem()), problems.flatten(problem().params)
    assert problems.flatten(gradient(name)) @ plain.gradients_at(w).mean(0) > 0


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is(name):
    method = METHODS[name]
    for text in (method.note, method.formula, method.source):
        assert text
        # A row of a table.
        assert not {"\n", "|", "`"} & {*text}
    assert {*method.needs} <= {*NEEDS}
    assert method.cost >= 1
    assert method.control == name.endswith("control")
    assert method.min_per_domain >= 1
    if method.base is not None:
        assert set(METHODS[method.base].hparams) <= set(method.hparams)


# Values at which a method is another one; each of the others is at that of `HYPER`.
@pytest.mark.parametrize(
    ("name", "values", "other", "exactly"),
    [
        ("SAM", {"rho": 0.0}, "ERM", True),
        ("ASAM", {"rho": 0.0}, "ERM", True),
        ("GSAM", {"rho": 0.0}, "ERM", False),
        ("SAGM", {"rho": 0.0, "alpha": 0.0}, "ERM", True),
        ("GSAM", {"alpha": 0.0}, "SAM", True),
        *((f"DISAM{end}", {"lam": 0.0}, "SAM", True) for end in ("", "-std", "-control", "-std-control")),
        *(
            pytest.param(f"DISAM-{kind}-std{end}", {"lam": 0.0}, f"SAM-{kind}", False, marks=pytest.mark.slow)
            for kind in ("normalised", "own")
            for end in ("", "-control")
        ),
        pytest.param("SAM-own", {"rho": 0.0}, "ERM", False, marks=pytest.mark.slow),
        pytest.param("SAM-normalised", {"rho": 0.0}, "ERM", False, marks=pytest.mark.slow),
        *((f"DISAM-descent-std{end}", {"descent_lam": 0.0}, "DISAM-std", False) for end in ("", "-control")),
        *((f"ASAM+{name}", {"lam": 0.0}, "ASAM", True) for name in ("DISAM", "DISAM-std")),
        *((f"GSAM+{name}", {"lam": 0.0}, "GSAM", False) for name in ("DISAM", "DISAM-std")),
        *((f"SAGM+{name}", {"lam": 0.0}, "SAGM", False) for name in ("DISAM", "DISAM-std")),
        ("VREx", {"anneal": 0.0, "beta": 0.0}, "ERM", True),
        ("GroupDRO", {"eta": 0.0}, "ERM", False),
        ("IRM", {"anneal": 0.0, "irm_lambda": 0.0}, "ERM", True),
        ("SD", {"sd_reg": 0.0}, "ERM", True),
        ("CORAL", {"gamma": 0.0}, "ERM", True),
        pytest.param("CORAL+SAM", {"gamma": 0.0}, "SAM", True, marks=pytest.mark.slow),
        pytest.param("CORAL+SAM", {"rho": 0.0}, "CORAL", False, marks=pytest.mark.slow),
        pytest.param("CORAL+DISAM", {"gamma": 0.0}, "DISAM", True, marks=pytest.mark.slow),
        ("CORAL+DISAM", {"lam": 0.0}, "CORAL+SAM", True),
    ],
)
def test_a_method_without_its_term_is_another_method(name, values, other, exactly):
    got, wanted = gradient(name, **values), gradient(other)
    assert problems.relative_error(got, wanted) <= (0.0 if exactly else 1e-6)
    assert problems.relative_error(gradient(name), wanted) > 1e-3


def test_erm_is_the_baseline_of_all():
    assert [name for name, method in METHODS.items() if method.base is None] == ["ERM"]


def test_methods_stand_in_the_order_of_the_reports():
    names = list(METHODS)
    assert names[:6] == ["ERM", "SAM", "DISAM", "DISAM-std", "DISAM-control", "DISAM-std-control"]
    assert names[6:10] == ["ASAM", "ASAM+DISAM", "ASAM+DISAM-std", "GSAM"]
    places = [names.index(name) for name in ("SAGM+DISAM-std", "VREx", "GroupDRO", "CORAL", "CORAL+SAM", "CORAL+DISAM")]
    assert places == sorted(places)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_optimizer_in_numpy(optimizer):
    gradients = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    w, first, second = np.linspace(-1, 1, 5), np.zeros(5), np.zeros(5)
    params, rate, decay = jnp.asarray(w, jnp.float32), 0.2, 0.05
    hparams = {"learning_rate": jnp.float32(rate), "weight_decay": jnp.float32(decay)}
    transformation = make_optimizer(TrainConfig(optimizer=optimizer, momentum=0.7), hparams)
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


def test_vrex_penalises_by_beta_after_the_annealing_with_no_momentum_from_before_it_and_the_schedule_goes_on():
    plain, w = problems.reference(problem()), problems.flatten(problem().params)
    runs = train("VREx", 4, TrainConfig(momentum=0.5, schedule="cosine", steps=5))
    velocity = np.zeros_like(w)
    for step in range(4):
        beta = 1.0 if step < HYPER["anneal"] else HYPER["beta"]
        losses = plain.losses_at(w)
        gradient = (1 + 2 * beta * (losses - losses.mean())) / 3 @ plain.gradients_at(w)
        velocity = gradient + (0.0 if step == HYPER["anneal"] else 0.5) * velocity
        w = w - 0.1 * (1 + np.cos(np.pi * step / 5)) / 2 * velocity
        assert problems.relative_error(runs[step + 1].params, w) < 1e-5
        assert int(runs[step + 1].method_state) == step + 1


def test_group_dro_raises_the_shares_of_high_losses():
    plain, w = problems.reference(problem()), problems.flatten(problem().params)
    runs = train("GroupDRO", 4, TrainConfig(momentum=0.0))
    shares = np.full(3, 1 / 3)
    np.testing.assert_allclose(runs[0].method_state, shares, rtol=1e-6)
    for run in runs[1:]:
        shares = shares * np.exp(HYPER["eta"] * plain.losses_at(w))
        shares = shares / shares.sum()
        w = w - 0.1 * shares @ plain.gradients_at(w)
        np.testing.assert_allclose(run.method_state, shares, rtol=1e-5)
        assert problems.relative_error(run.params, w) < 1e-5


def test_group_dro_stands_losses_that_overflow():
    objective = lambda losses: METHODS["GroupDRO"].gradient(
        losses, None, lambda losses: Outputs(losses, None, None, {}), {"eta": jnp.float32(1.0)}, jnp.full(2, 0.5)
    )
    grads, _, shares = objective(jnp.array([1.0, 1e4], jnp.float32))
    assert shares.tolist() == grads.tolist() == [0.0, 1.0]


def test_the_penalty_of_irm_needs_no_step_where_the_scale_is_best():
    """Logits that are calibrated, the frequencies of the labels, have no slope along their scale."""
    logits = np.log(np.array([0.25, 0.75], np.float32))
    labels = jnp.array([[0, 0, 1, 1, 1, 1, 1, 1]], jnp.int32)
    penalty = jax.jit(lambda logits: irm_penalty(jnp.broadcast_to(logits, (1, 8, 2)), labels))
    np.testing.assert_allclose(penalty(logits), [0.0], atol=1e-10)
    assert penalty(3 * logits)[0] > 1e-2


@pytest.mark.slow
def test_mixup_pairs_go_round_in_a_random_order_with_beta_shares():
    draw = jax.jit(jax.vmap(lambda key: mixup_pairs(key, 4, jnp.float32(0.5))))
    first, second, shares = (np.asarray(each) for each in draw(jax.random.split(KEY, 2000)))
    assert (np.sort(first, 1) == np.arange(4)).all()
    # From each pair to the next, all four are passed.
    assert (second == np.roll(first, -1, 1)).all()
    orders, counts = np.unique(first, axis=0, return_counts=True)
    assert len(orders) == 24
    # 2000 / 24, by five standard deviations.
    assert (np.abs(counts - 2000 / 24) < 5 * np.sqrt(2000 / 24)).all()
    # The arcsine law is Beta(1/2, 1/2).
    drawn = np.sort(2 / np.pi * np.arcsin(np.sqrt(shares.ravel())))
    assert np.abs(drawn - (np.arange(8000) + 0.5) / 8000).max() < 1.95 / np.sqrt(8000)
    assert np.abs(np.corrcoef(shares.T) - np.eye(4)).max() < 0.1


@pytest.mark.slow
def test_mixup_of_one_domain_is_erm():
    forward = lambda params, x: Outputs(None, x * params[None, None], None, {})
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 3)), jnp.float32)
    batch, params = Batch(x, jnp.array([[0, 1, 2, 0]], jnp.int32), KEY), jnp.ones(3, jnp.float32)
    losses = lambda params: optax.softmax_cross_entropy_with_integer_labels(x * params[None, None], batch.y).mean()
    mixup = lambda params: METHODS["Mixup"].gradient(params, batch, forward, {"mixup_alpha": jnp.float32(0.3)}, ())[0]
    np.testing.assert_allclose(*jax.jit(lambda params: (mixup(params), jax.grad(losses)(params)))(params), rtol=1e-5)


@pytest.mark.slow
def test_mixup_mixes_images_as_numbers_between_0_and_1():
    batch = Batch(jnp.array([[[255]], [[0]]], jnp.uint8), jnp.zeros((2, 1), jnp.int32), KEY)
    seen = []

    def forward(params, x):
        seen.append(x)
        return Outputs(None, params * x * jnp.ones((1, 1, 2)), None, {})

    hparams = {"mixup_alpha": jnp.float32(0.3)}
    METHODS["Mixup"].gradient(jnp.float32(1.0), batch, jax.tree_util.Partial(forward), hparams, ())
    (x,) = seen
    first, _, shares = jax.jit(mixup_pairs, static_argnums=1)(KEY, 2, hparams["mixup_alpha"])
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x[:, 0, 0], jnp.where(first == 0, shares, 1 - shares), rtol=1e-6)


@pytest.mark.parametrize(
    ("objective", "hparams"),
    [(sd, {"sd_reg": 0.4}), pytest.param(irm, {"irm_lambda": 5.0, "anneal": 0.0}, marks=pytest.mark.slow)],
    ids=["SD", "IRM"],
)
def test_any_objective_can_be_perturbed(objective, hparams):
    """With rho 0, the gradient at w + e is that of the objective, whatever lam."""
    state = jnp.int32(0)
    hparams = {name: jnp.float32(value) for name, value in {**hparams, "rho": 0.0, "lam": 0.5}.items()}
    data, network = problem(), network_of(problem())

    def forward(params):
        output = network.apply(params, {}, data.batch["x"].reshape(15, -1), KEY, False)
        losses = optax.softmax_cross_entropy_with_integer_labels(output.logits.reshape(3, 5, 3), data.batch["y"])
        return Outputs(losses.mean(1), output.logits.reshape(3, 5, 3), None, {})

    batch = Batch(data.batch["x"], data.batch["y"], KEY)
    plain, perturbed = (
        jax.jit(lambda params, make=make: make(objective)(params, batch, forward, hparams, state)[0])(data.params)
        for make in (from_objective, sharpness_aware)
    )
    assert problems.relative_error(perturbed, plain) < 1e-5


# Methods that break the contract.


def broken(gradient, state=lambda num_sources: ()):
    """Why a step with such a method cannot be traced."""
    data, spec = problem(), RunSpec(KEY, jnp.int32(0), jnp.int32(3), hparams_of("ERM"))
    fixed = {"network": network_of(data), "method": Method(gradient, state=state), "config": TrainConfig()}
    run = start(spec, **fixed, num_sources=3)
    with pytest.raises(MethodError) as caught:
        jax.eval_shape(lambda: train_step(run, spec, jnp.int32(0), data.batch["x"], data.batch["y"], **fixed))
    return str(caught.value)


@pytest.mark.parametrize(
    ("gradient", "words"),
    [
        (lambda p, b, f, h, s: p, "must return (gradient, state of the network, state of the method), got dict"),
        (lambda p, b, f, h, s: (p, f(p).state), "got a tuple of 2: return gradient, outputs.state, state"),
        (
            lambda p, b, f, h, s: (p["out"], f(p).state, s),
            "the gradient must have the structure of the parameters, PyTreeDef({'hidden': {'b': *, 'w': *}",
        ),
        (lambda p, b, f, h, s: (p["out"], f(p).state, s), "got PyTreeDef({'b': *, 'w': *}): return jax.grad"),
        (
            lambda p, b, f, h, s: (jax.tree.map(lambda leaf: leaf[None], p), f(p).state, s),
            "shapes and dtypes of the parameters: float32[6] at ['hidden']['b'], got float32[1, 6]: return jax.grad",
        ),
        (
            lambda p, b, f, h, s: (jax.tree.map(lambda leaf: leaf.astype(jnp.float16), p), f(p).state, s),
            "float32[6] at ['hidden']['b'], got float16[6]",
        ),
        (
            lambda p, b, f, h, s: (p, f(p).state, jnp.zeros(())),
            "the new state must have the structure of the state, PyTreeDef(()), got PyTreeDef(*): return what Method",
        ),
        (from_objective(lambda o, b, h, s: o.losses.mean()), "must return (value, state), got float32[]"),
        (
            from_objective(lambda o, b, h, s: (o.logits.mean(-1), s)),
            "must be a scalar or domain losses [3], got float32[3, 5]: take a mean over the examples",
        ),
        (
            lambda p, b, f, h, s: (p, f(p, b.x[:, :2]).state, s),
            "inputs [3, 5, '...'] for labels [3, 5], got [3, 2, 4]: give it the labels of these inputs",
        ),
        (
            lambda p, b, f, h, s: sharpness_aware(lambda o, b, h, s: (o.losses.mean(), s))(
                p, b, f, {"rho": h["learning_rate"], "lam": h["learning_rate"]}, s
            ),
            "with lam, the objective must return domain losses [3], got a scalar",
        ),
    ],
)
def test_a_method_that_breaks_the_contract_is_told_how(gradient, words):
    assert words in broken(gradient)


def test_a_state_of_another_shape_is_told():
    grow = lambda p, b, f, h, s: (p, f(p).state, jnp.concatenate([s, s]))
    message = broken(grow, state=lambda num_sources: jnp.zeros(num_sources))
    assert "the new state must have the shapes and dtypes of the state: float32[3], got float32[6]" in message


@pytest.mark.slow
def test_a_method_may_take_a_part_of_the_batch():
    """The forward pass of other inputs, with their labels; domains may be left out too."""
    data, spec = problem(), RunSpec(KEY, jnp.int32(0), jnp.int32(3), hparams_of("ERM"))
    half = from_objective(lambda o, b, h, s: (o.losses, s))
    method = Method(lambda p, b, f, h, s: half(p, b, lambda p: f(p, b.x[1:, :3], b.y[1:, :3]), h, s))
    fixed = {"network": network_of(data), "method": method, "config": TrainConfig(momentum=0.0)}
    run = start(spec, **fixed, num_sources=3)
    after = train_step(run, spec, jnp.int32(0), data.batch["x"], data.batch["y"], **fixed)
    part = problems.Problem(data.params, {"x": data.batch["x"][1:, :3], "y": data.batch["y"][1:, :3]})
    wanted = problems.reference(part).gradients_at(problems.flatten(data.params)).mean(0)
    change = jax.tree.map(lambda new, old: (old - new) / 0.1, after.params, data.params)
    assert problems.relative_error(change, wanted) < 2e-5


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
    common, _ = coral(Outputs(jnp.asarray(losses), None, features, {}), None, {"gamma": jnp.float32(5.0)}, ())
    np.testing.assert_allclose(np.ptp(common - losses), 0.0, atol=1e-6)
    assert float(common[0] - losses[0]) > 0.1
    weights = functools.partial(disam_jax.domain_weights, lam=HYPER["lam"], penalty=penalty)
    np.testing.assert_allclose(weights(common), weights(losses), atol=1e-6)


# That the methods' gradients are those of this reference is tested above.
@pytest.mark.parametrize("penalty", ["variance", "std"])
def test_the_control_perturbs_towards_more_spread_and_disam_towards_less(penalty):
    name = "DISAM" if penalty == "variance" else "DISAM-std"
    lam, wrong = (METHODS[each].hparams["lam"].default for each in (name, f"{name}-control"))
    assert wrong == -lam
    step = functools.partial(problems.reference(problem()).step, problems.flatten(problem().params), 0.01)
    less, sam, more = (np.var(step(value, penalty)["perturbed_domain_losses"]) for value in (lam, 0.0, wrong))
    assert less < sam - 1e-4 < more - 2e-4


# What stored commands with `--method all` have trained: nothing that is registered later may change it.
ALL = [
    *("ERM", "SAM", "DISAM", "DISAM-std", "ASAM", "ASAM+DISAM", "ASAM+DISAM-std", "GSAM", "GSAM+DISAM"),
    *("GSAM+DISAM-std", "SAGM", "SAGM+DISAM", "SAGM+DISAM-std", "DISAM-descent-std", "SAM-normalised"),
    *("DISAM-normalised-std", "SAM-own", "DISAM-own-std", "VREx", "GroupDRO", "IRM", "Mixup", "SD", "CORAL"),
    *("CORAL+SAM", "CORAL+DISAM"),
]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["erm", "Sam", "vrex"], ["ERM", "SAM", "VREx"]),
        (["irm", "mixup", "Sd"], ["IRM", "Mixup", "SD"]),
        (["V-REx", "group-dro", "DISAMstd"], ["VREx", "GroupDRO", "DISAM-std"]),
        (["DISAM", "sam", "disam", "DiSAM"], ["DISAM", "SAM"]),
        (["coral+disam", "disam-CONTROL"], ["CORAL+DISAM", "DISAM-control"]),
        (["all"], ALL),
        (["SAGM", "All"], ["SAGM", *(name for name in ALL if name != "SAGM")]),
        (["all", "disam-control"], [*ALL, "DISAM-control"]),
        (["everything"], [name for name in METHODS if "control" not in name]),
        (["Bases"], [name for name, method in METHODS.items() if "rho" not in method.hparams]),
        (["mmd+DISAM", "and-mask", "ibirm"], ["MMD+DISAM", "AND-mask", "IB-IRM"]),
        ([], []),
    ],
)
def test_methods_by_name(names, found):
    methods = find_methods(names)
    assert list(methods) == found
    assert all(methods[name] is METHODS[name] for name in found)


@pytest.mark.parametrize("name", ["SAMM", "", "sam "])
def test_an_unknown_method_is_refused(name):
    with pytest.raises(
        InputError, match=f"unknown --method {name}: the methods are ERM, SAM, .*, and all, bases, every"
    ):
        find_methods(["ERM", name])


def test_names_that_differ_in_hyphens_are_found_as_they_are_written():
    mine = {"A-B": METHODS["ERM"], "AB": METHODS["SAM"]}
    assert [list(find_methods([name], mine)) for name in ("a-b", "ab")] == [["A-B"], ["AB"]]


def test_methods_of_another_table():
    mine = {"Mine": METHODS["ERM"]}
    assert find_methods(["mine", "all"], mine) == mine
    with pytest.raises(InputError, match="the methods are Mine, and all"):
        find_methods(["ERM"], mine)


PLAIN = Hyperparameter(0.5, -1.0, 2.0)
UNIFORM = Hyperparameter(1500.0, 500.0, 2500.0, of_steps=True, uniform=True)
FEW = choice(0.5, 0.1, 0.5, 0.05)
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
        (UNIFORM, {"steps": 5000}, 1500.0, 500.0, 1500.0),
        (UNIFORM, {"steps": 500}, 150.0, 50.0, 150.0),
        (FEW, {}, 0.5, 0.1, 0.5),
        (NEGATIVE, {}, -1.0, -0.1, -1.0),
        (NEGATIVE, {"rho": 0.3}, -0.3, -0.1, -1.0),
    ],
)
def test_a_hyperparameter_by_default_and_drawn(hyperparameter, defaults, value, lowest, middle):
    assert hyperparameter.value(defaults, "rho") == pytest.approx(value)
    assert hyperparameter.draw(0.0, defaults, "rho") == pytest.approx(lowest)
    assert hyperparameter.draw(0.5, defaults, "rho") == pytest.approx(middle)
