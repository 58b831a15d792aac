"""Every way to compute one DISAM gradient, behind one signature, for table-driven tests."""

import itertools

import jax
import jax.numpy as jnp
import optax
import problems
import pytest

import disam_jax
from disam_jax import variants


def _from_state(grads, state):
    get = lambda name: optax.tree.get(state, name)
    return {
        "gradient": grads,
        "loss": get("loss"),
        "loss_variance": get("loss_variance"),
        "ascent_norm": get("ascent_norm"),
        "domain_losses": get("domain_losses"),
        "domain_weights": get("domain_weights"),
        "perturbed_domain_losses": get("perturbed_domain_losses"),
    }


def _from_info(value, grads):
    loss, info = value
    return {"gradient": grads, **info._asdict(), "loss": loss}


def transform_grouped(problem, rho, lam, **options):
    tx = disam_jax.disam(rho, lam, num_domains=problem.num_domains, **options)
    f = lambda p: disam_jax.per_domain(problems.loss)(p, problem.batch)
    return _from_state(*tx.update(None, tx.init(problem.params), problem.params, domain_loss_fn=f))


def transform_flat(problem, rho, lam, **options):
    flat, m = problem.flat, problem.num_domains
    tx = disam_jax.disam(rho, lam, num_domains=m, **options)
    f = lambda p: disam_jax.mean_by_domain(problems.example_losses(p, flat), flat["domain"], m)
    return _from_state(*tx.update(None, tx.init(problem.params), problem.params, domain_loss_fn=f))


def transform_stacked(problem, rho, lam, **options):
    tx = disam_jax.disam(rho, lam, num_domains=problem.num_domains, **options)
    losses, grads = disam_jax.per_domain_value_and_grad(problems.loss)(problem.params, problem.batch)
    mean_loss = lambda p: jnp.mean(disam_jax.per_domain(problems.loss)(p, problem.batch))
    state = tx.init(problem.params)
    out = tx.update(grads, state, problem.params, domain_losses=losses, grad_fn=jax.grad(mean_loss))
    result = _from_state(*out)
    del result["perturbed_domain_losses"]  # this form's second pass gives a gradient and no losses
    return result


def value_and_grad(problem, rho, lam, **options):
    fn = disam_jax.value_and_grad(disam_jax.per_domain(problems.loss), rho, lam, with_info=True, **options)
    return _from_info(*fn(problem.params, problem.batch))


def accumulated(problem, rho, lam, **options):
    fn = disam_jax.accumulated_value_and_grad(problems.loss, rho, lam, with_info=True, **options)
    return _from_info(*fn(problem.params, problem.batch))


def program(form, **options):
    """A form as one program for every problem, rho and lam, where a test has no need to run it op by op."""
    return jax.jit(lambda problem, rho, lam: FORMS[form](problem, rho, lam, **options))


def subset_begun(problem, rho, lam, **options):
    """The whole batch as the subset, at the first step that perturbs."""
    losses = disam_jax.per_domain(problems.loss)
    fn = disam_jax.subset_value_and_grad(losses, rho, lam, fraction=1.0, begin=3, with_info=True, **options)
    return _from_info(*fn(problem.params, problem.batch, step=3))


FORMS = {
    f.__name__: f
    for f in (transform_grouped, transform_flat, transform_stacked, value_and_grad, accumulated, subset_begun)
}
# Those whose second pass has the losses, which descent_lam weighs.
WITH_LOSSES_AT_BOTH = [form for form in FORMS if form != "transform_stacked"]

VARIANTS = {
    "sam": (None, {}),
    "asam": (None, {"adaptive": True}),
    "gsam": (("gsam", 0.3, "ascent"), {"variant": variants.gsam(0.3)}),
    "gsam_clean": (("gsam", 0.3, "clean"), {"variant": variants.gsam(0.3, reference="clean")}),
    "sagm": (("sagm", 0.01, "ascent"), {"variant": variants.sagm(0.01)}),
    "sagm_clean": (("sagm", 0.01, "clean"), {"variant": variants.sagm(0.01, reference="clean")}),
    "sagm_adaptive": (("sagm", 0.01, "ascent"), {"variant": variants.sagm(0.01), "adaptive": True}),
}


QUICK = set(zip(itertools.cycle(FORMS), VARIANTS, strict=False))


def table(*columns):
    """Form x variant x whatever else. The default run has every form and every variant; the full product is slow."""
    return [
        pytest.param(
            form, variant, *rest, id="-".join([form, variant, *map(_name, rest)]), marks=_marks(form, variant, rest)
        )
        for form in FORMS
        for variant in VARIANTS
        for rest in itertools.product(*columns)
    ]


def _marks(form, variant, rest):
    half = any(value is jnp.bfloat16 or value is jnp.float16 for value in rest)
    # Each variant once, dealt over the forms; half precision with two of them.
    fast = (form, variant) in QUICK and not (half and variant not in ("sam", "gsam_clean"))
    return () if fast else pytest.mark.slow


def _name(value):
    return getattr(value, "__name__", str(value))
