"""The training step as a program: it lowers for CPU, CUDA and TPU, never calls the host, and updates in place.

Nothing here needs an accelerator: lowering to StableHLO is the part of the compiler that jax owns.
"""

import re

import chex
import jax
import jax.numpy as jnp
import optax
import problems
import pytest
from jax import export
from jax.experimental import io_callback
from support import slow

import disam_jax
from disam_jax import variants

pytestmark = pytest.mark.dealt

PLATFORMS = ("cpu", "cuda", "tpu")
RHO, LAM = 0.1, 0.5
PROBLEM = problems.make_problem(seed=80)
M = PROBLEM.num_domains


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.debug_nans(False):
        yield


def grouped_losses(params, batch):
    return disam_jax.per_domain(problems.loss)(params, batch)


def flat_losses(params, batch):
    return disam_jax.mean_by_domain(problems.example_losses(params, batch), batch["domain"], M)


def transformation(extra, flat=False, **options):
    """A step with disam inside the optimizer; ``extra(params, batch)`` are the gradients and arguments of update."""
    tx = optax.chain(disam_jax.disam(RHO, LAM, num_domains=M, **options), optax.adamw(1e-2))

    def step(params, state, batch):
        grads, arguments = extra(params, batch)
        updates, state = tx.update(grads, state, params, **arguments)
        return optax.apply_updates(params, updates), state

    return step, tx.init, PROBLEM.flat if flat else PROBLEM.batch


def gradient_function(fn):
    """A step with disam as the gradient function of a plain optimizer."""
    tx = optax.adamw(1e-2)

    def step(params, state, batch):
        _, grads = fn(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step, tx.init, PROBLEM.batch


def closure(losses_at):
    return lambda params, batch: (None, {"domain_loss_fn": lambda p: losses_at(p, batch)})


def stacked(params, batch):
    losses, grads = disam_jax.per_domain_value_and_grad(problems.loss)(params, batch)
    return grads, {"domain_losses": losses, "grad_fn": jax.grad(lambda p: jnp.mean(grouped_losses(p, batch)))}


VARIANTS = {"sam": {}, "gsam": {"variant": variants.gsam(0.3)}, "asam": {"adaptive": True}}
FORMS = {
    "grouped": lambda **o: transformation(closure(grouped_losses), **o),
    "flat": lambda **o: transformation(closure(flat_losses), flat=True, **o),
    "stacked": lambda **o: transformation(stacked, **o),
    "value_and_grad": lambda **o: gradient_function(disam_jax.value_and_grad(grouped_losses, RHO, LAM, **o)),
    "accumulated": lambda **o: gradient_function(disam_jax.accumulated_value_and_grad(problems.loss, RHO, LAM, **o)),
}
EVERY = {"always": {}, "held": {"refresh_every": 2}, "late": {"begin": 2}}
STEPS = [(form, variant, "always") for form in FORMS for variant in VARIANTS]
STEPS += [("grouped", variant, "held") for variant in VARIANTS] + [
    (form, "sam", "held") for form in ("flat", "stacked")
]
STEPS += [(form, "sam", "late") for form in ("grouped", "stacked")]


def make_step(form, variant="sam", refreshed="always"):
    step, init, batch = FORMS[form](**VARIANTS[variant], **EVERY[refreshed])
    return step, (PROBLEM.params, init(PROBLEM.params), batch)


# --- no call to the host ----------------------------------------------------------------------------------------------


def host_traffic(text):
    """Whatever in a StableHLO module could reach the host: every custom call, since a step needs none at all."""
    return re.findall(r"custom_call\s*@[\w.]+|\b(?:infeed|outfeed)\b|stablehlo\.(?:send|recv)\b|\w*callback\w*", text)


@pytest.mark.parametrize(("form", "variant", "refreshed"), STEPS)
def test_a_step_is_exported_for_every_platform_without_a_call_to_the_host(form, variant, refreshed):
    step, args = make_step(form, variant, refreshed)
    exported = export.export(jax.jit(step), platforms=PLATFORMS)(*args)
    assert tuple(exported.platforms) == PLATFORMS
    text = exported.mlir_module()
    assert "stablehlo.dot_general" in text  # a detector that is handed the wrong text would find nothing in it either
    assert not host_traffic(text)
    assert not exported.ordered_effects
    assert not exported.unordered_effects


@pytest.mark.slow
def test_the_exported_step_computes_what_the_step_computes():
    step, args = make_step("grouped", refreshed="held")
    exported = export.export(jax.jit(step), platforms=PLATFORMS)(*args)
    got, want = exported.call(*args), jax.jit(step)(*args)
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-6)
    assert problems.relative_error(got[0], PROBLEM.params) > 1e-3


HOST_CALLS = {
    "debug.print": lambda x: jax.debug.print("{}", x) or x,
    "debug.callback": lambda x: jax.debug.callback(lambda _: None, x) or x,
    "pure_callback": lambda x: jax.pure_callback(lambda x: x, x, x),
    "io_callback": lambda x: io_callback(lambda x: x, x, x, ordered=True),
}


@pytest.mark.parametrize("call", ["io_callback", *slow(*(call for call in HOST_CALLS if call != "io_callback"))])
def test_the_detector_sees_a_host_call_inside_a_step(call):
    """On the platform at hand: jax refuses to lower a callback for several platforms or to export it."""
    step, args = make_step("grouped")

    def with_host_call(params, state, batch):
        return step({**params, "out": {**params["out"], "b": HOST_CALLS[call](params["out"]["b"])}}, state, batch)

    assert not host_traffic(jax.jit(step).lower(*args).as_text())
    assert host_traffic(jax.jit(with_host_call).lower(*args).as_text())
    with pytest.raises((NotImplementedError, TypeError)):
        export.export(jax.jit(with_host_call), platforms=PLATFORMS)(*args)


# --- in place ---------------------------------------------------------------------------------------------------------


def size(*trees):
    return sum(x.nbytes for x in jax.tree.leaves(trees))


def aliased(step, args, donate):
    """Bytes of the arguments in whose place the compiled step writes its results."""
    return jax.jit(step, donate_argnums=donate).lower(*args).compile().memory_analysis().alias_size_in_bytes


DONATED = [(form, "sam", "always") for form in FORMS] + [("grouped", "gsam", "always")]
DONATED += [(form, "sam", "held") for form in ("grouped", "flat", "stacked")]


@pytest.mark.parametrize(("form", "variant", "refreshed"), DONATED)
def test_a_donated_step_writes_parameters_and_optimizer_state_in_place(form, variant, refreshed):
    step, args = make_step(form, variant, refreshed)
    params, state, _ = args
    moments = size(optax.tree.get(state, "mu"), optax.tree.get(state, "nu"))
    held = size(optax.tree.get(state, "perturbation", None))
    assert moments == 2 * size(params)
    assert held == (size(params) if refreshed == "held" else 0)
    # The rest are the numbers of the last step, which a step may write without having read them.
    assert size(params) + moments + held <= aliased(step, args, (0, 1)) <= size(params, state)


def test_a_step_that_is_not_donated_has_nothing_in_place():
    step, args = make_step("grouped")
    assert aliased(step, args, ()) == 0
