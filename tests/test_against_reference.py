"""Every variant, form, penalty and dtype against the formulas written out in numpy."""

import itertools

import forms
import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from support import enable_x64

pytestmark = pytest.mark.dealt

PENALTIES = ("variance", "weighted_variance", "std")
# Relative error of the whole gradient: a few units in the last place of the dtype, times the depth of the sums. In half
# precision the parameters themselves are rounded after the perturbation, which costs rho-independent units.
TOLERANCES = {jnp.float64: 1e-12, jnp.float32: 2e-5, jnp.bfloat16: 0.1, jnp.float16: 1e-2}


def options_of(variant):
    kind, options = forms.VARIANTS[variant]
    return {"variant": kind, "adaptive": options.get("adaptive", False)}, options


@pytest.mark.parametrize(("form", "variant", "dtype"), forms.table(TOLERANCES))
def test_gradient_of_every_form(form, variant, dtype):
    with enable_x64(dtype == jnp.float64):
        problem = problems.make_problem(seed=1, dtype=dtype)
        ours, options = options_of(variant)
        rho = 0.5 if options.get("adaptive") else 0.2
        got = forms.program(form, **options)(problem, rho, 0.4)
        want = problems.reference(problem).step(problems.flatten(problem.params), rho, 0.4, **ours)
    assert all(g.dtype == dtype for g in jax.tree.leaves(got["gradient"]))
    assert problems.relative_error(got["gradient"], want["gradient"]) < TOLERANCES[dtype]
    for name in ("loss", "domain_losses", "domain_weights", "ascent_norm", "perturbed_domain_losses"):
        if name in got:
            assert got[name].dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
            np.testing.assert_allclose(
                got[name], want[name], rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype], err_msg=name
            )


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("form", forms.FORMS)
def test_penalties_of_every_form(form, penalty, x64):
    problem = problems.make_problem(seed=2, num_domains=4, dtype=jnp.float64)
    got = forms.program(form, penalty=penalty)(problem, 0.3, 0.5)
    want = problems.reference(problem).step(problems.flatten(problem.params), 0.3, 0.5, penalty)
    assert problems.relative_error(got["gradient"], want["gradient"]) < 1e-12
    np.testing.assert_allclose(got["domain_weights"], want["domain_weights"], rtol=1e-12)
    np.testing.assert_allclose(got["loss_variance"], np.var(want["domain_losses"]), rtol=1e-12)


# Every variant, each with another form and another penalty; all of them together are slow.
QUICK = set(
    zip(forms.VARIANTS, itertools.cycle(forms.WITH_LOSSES_AT_BOTH), itertools.cycle(PENALTIES[::-1]), strict=False)
)


@pytest.mark.parametrize(
    ("variant", "form", "penalty"),
    [
        pytest.param(*row, marks=() if row in QUICK else pytest.mark.slow)
        for row in itertools.product(forms.VARIANTS, forms.WITH_LOSSES_AT_BOTH, PENALTIES)
    ],
)
def test_penalised_descent_of_every_form(variant, form, penalty, x64):
    problem = problems.make_problem(seed=3, num_domains=4, dtype=jnp.float64)
    ours, options = options_of(variant)
    step = problems.reference(problem).step
    w, plain = problems.flatten(problem.params), {"penalty": penalty, **ours}
    got = forms.program(form, penalty=penalty, descent_lam=0.6, **options)(problem, 0.3, 0.4)
    want = step(w, 0.3, 0.4, descent_lam=0.6, **plain)
    assert problems.relative_error(got["gradient"], want["gradient"]) < 1e-12
    assert problems.relative_error(step(w, 0.3, 0.4, **plain)["gradient"], want["gradient"]) > 1e-2
    # What is reported of the ascent is that of lam.
    np.testing.assert_allclose(got["domain_weights"], want["domain_weights"], rtol=1e-12)
    np.testing.assert_allclose(got["perturbed_domain_losses"], want["perturbed_domain_losses"], rtol=1e-12)


# What makes a step of each domain's own gradient, in the forms that have it.
OF_DOMAINS = [("accumulated", "normalised"), ("transform_stacked", "normalised"), ("accumulated", "own")]
QUICK_OF_DOMAINS = set(zip(forms.VARIANTS, itertools.cycle(OF_DOMAINS), itertools.cycle(PENALTIES), strict=False))
LAMS = {"normalised": (0.4,), "own": (0.4, 0.0)}


@pytest.mark.parametrize(
    ("variant", "form", "domain_gradients", "penalty", "lam"),
    [
        pytest.param(
            variant, *of, penalty, lam, marks=() if (variant, of, penalty) in QUICK_OF_DOMAINS else pytest.mark.slow
        )
        for variant, of, penalty in itertools.product(forms.VARIANTS, OF_DOMAINS, PENALTIES)
        for lam in LAMS[of[1]]
    ],
)
def test_the_gradient_of_each_domain(variant, form, domain_gradients, penalty, lam, x64):
    problem = problems.make_problem(seed=4, num_domains=4, dtype=jnp.float64)
    ours, options = options_of(variant)
    descent = {} if form == "transform_stacked" else {"descent_lam": 0.3}
    step, w = problems.reference(problem).step, problems.flatten(problem.params)
    program = lambda problem: forms.FORMS[form](
        problem, 0.3, lam, penalty=penalty, domain_gradients=domain_gradients, **options, **descent
    )
    got = jax.jit(program)(problem)
    want = step(w, 0.3, lam, penalty, domain_gradients=domain_gradients, **ours, **descent)
    assert problems.relative_error(got["gradient"], want["gradient"]) < 1e-12
    assert problems.relative_error(step(w, 0.3, lam, penalty, **ours, **descent)["gradient"], want["gradient"]) > 1e-3
    for name in ("loss", "domain_losses", "domain_weights", "ascent_norm", "perturbed_domain_losses"):
        if name in got:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-12, err_msg=name)
