"""Every mistake that can be seen at trace time: the error names the argument, what was seen and the call to write."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import disam_jax
from disam_jax import variants

W = jnp.ones(2)
LOSSES = lambda w: jnp.stack([jnp.sum(w**2), 2 * jnp.sum(w**2)])


def update(tx=None, grads=None, params=W, **extra):
    tx = tx or disam_jax.disam(0.1, 0.5)
    return jax.jit(lambda p: tx.update(grads, tx.init(W), p, **extra))(params)


def update_with(losses):
    return lambda: update(domain_loss_fn=lambda w: losses)


def gradient_with(f, **options):
    return lambda: jax.jit(disam_jax.value_and_grad(f, 0.1, 0.5, **options))(W)


def accumulated(loss, batch):
    return lambda: jax.jit(disam_jax.accumulated_value_and_grad(loss, 0.1, 0.5))(W, batch)


def subset(**options):
    return disam_jax.subset_value_and_grad(lambda w, x: jnp.sum(x * w[None, None] ** 2, (1, 2)), 0.1, 0.5, **options)


BATCH = jnp.ones((3, 4, 2))
ids, batch4 = np.array([0, 0, 1, 1]), np.ones((4, 2), np.float32)

CASES = {
    # rho, lam and the other choices
    "negative rho": (lambda: disam_jax.disam(-0.1), ValueError, ["rho", "-0.1", "rho=0.05"]),
    "negative rho, sam": (lambda: disam_jax.sam(-0.1), ValueError, ["rho", "-0.1"]),
    "negative rho, gradient": (lambda: disam_jax.value_and_grad(LOSSES, -1.0), ValueError, ["rho", "-1.0"]),
    "negative rho, accumulated": (
        lambda: disam_jax.accumulated_value_and_grad(LOSSES, -1.0),
        ValueError,
        ["rho", "-1.0"],
    ),
    "rho is nan": (lambda: disam_jax.disam(float("nan")), ValueError, ["rho", "nan"]),
    "rho is infinite": (lambda: disam_jax.disam(float("inf")), ValueError, ["rho", "inf"]),
    "rho is beyond float32": (lambda: disam_jax.disam(1e300), ValueError, ["rho", "1e+300", "finite"]),
    "rho is a boolean": (lambda: disam_jax.disam(True), TypeError, ["rho", "True", "rho=0.05"]),
    "rho is an array of a boolean": (lambda: disam_jax.disam(jnp.array(True)), TypeError, ["rho", "True"]),
    "rho is complex": (lambda: disam_jax.disam(1j), TypeError, ["rho", "1j"]),
    "rho is an array of a complex number": (lambda: disam_jax.sam(jnp.array(1j)), TypeError, ["rho", "complex64"]),
    "rho is missing": (lambda: disam_jax.value_and_grad(LOSSES, None), TypeError, ["rho", "None"]),
    "negative rho from a schedule of numbers": (
        lambda: update(disam_jax.disam(lambda count: -0.1), domain_loss_fn=LOSSES),
        ValueError,
        ["rho", "-0.1"],
    ),
    "a schedule of vectors": (
        lambda: update(disam_jax.disam(lambda count: jnp.ones(3)), domain_loss_fn=LOSSES),
        ValueError,
        ["rho", "(3,)"],
    ),
    "a schedule of booleans": (
        lambda: update(disam_jax.disam(0.1, lambda count: count > 3), domain_loss_fn=LOSSES),
        TypeError,
        ["lam", "bool"],
    ),
    "rho is text": (lambda: disam_jax.disam("0.1"), TypeError, ["rho", "'0.1'", "rho=0.05"]),
    "rho is a vector": (lambda: disam_jax.disam(jnp.ones(3)), ValueError, ["rho", "(3,)", "vmap"]),
    "lam is nan": (lambda: disam_jax.disam(0.1, float("nan")), ValueError, ["lam", "nan"]),
    "lam is text": (lambda: disam_jax.disam(0.1, "x"), TypeError, ["lam", "'x'"]),
    "lam is infinite": (lambda: disam_jax.disam(0.1, np.float32("inf")), ValueError, ["lam", "inf"]),
    "lam is a boolean": (lambda: disam_jax.disam(0.1, np.True_), TypeError, ["lam", "True"]),
    "lam is a vector, weights": (
        lambda: disam_jax.domain_weights(W, jnp.ones(2)),
        ValueError,
        ["lam", "(2,)", "jax.vmap"],
    ),
    "lam is nan, weights": (lambda: disam_jax.domain_weights(W, float("nan")), ValueError, ["lam", "nan"]),
    "lam is complex, weights": (lambda: disam_jax.domain_weights(W, 1j), TypeError, ["lam", "1j"]),
    "lam is a schedule, weights": (lambda: disam_jax.domain_weights(W, lambda count: 0.1), TypeError, ["lam"]),
    "negative eps": (lambda: disam_jax.disam(eps=-1.0), ValueError, ["eps", "-1.0"]),
    "eps is infinite": (lambda: disam_jax.disam(eps=float("inf")), ValueError, ["eps", "inf"]),
    "eps is a schedule": (lambda: disam_jax.disam(eps=lambda count: 0.0), TypeError, ["eps", "eps=1e-12"]),
    "schedule without a count": (
        lambda: disam_jax.value_and_grad(LOSSES, optax.constant_schedule(0.1)),
        TypeError,
        ["rho", "step count", "rho=schedule(step)"],
    ),
    "descent_lam is nan": (lambda: disam_jax.disam(descent_lam=float("nan")), ValueError, ["descent_lam", "nan"]),
    "descent_lam is infinite, sam": (lambda: disam_jax.sam(descent_lam=-np.inf), ValueError, ["descent_lam", "-inf"]),
    "descent_lam is text": (
        gradient_with(LOSSES, descent_lam="0.5"),
        TypeError,
        ["descent_lam", "'0.5'", "descent_lam=0.5; descent_lam=0.0 descends on the mean loss"],
    ),
    "descent_lam is a boolean": (lambda: disam_jax.disam(descent_lam=True), TypeError, ["descent_lam", "True"]),
    "descent_lam is missing": (gradient_with(LOSSES, descent_lam=None), TypeError, ["descent_lam", "None"]),
    "descent_lam is a vector": (
        gradient_with(LOSSES, descent_lam=jnp.ones(2)),
        ValueError,
        ["descent_lam", "(2,)", "jax.vmap"],
    ),
    "descent_lam is a schedule without a count": (
        gradient_with(LOSSES, descent_lam=optax.constant_schedule(0.5)),
        TypeError,
        ["descent_lam", "step count", "descent_lam=schedule(step)"],
    ),
    "a schedule of descent_lam returns a vector": (
        lambda: update(disam_jax.disam(descent_lam=lambda count: jnp.ones(3)), domain_loss_fn=LOSSES),
        ValueError,
        ["descent_lam", "(3,)"],
    ),
    **{
        f"descent_lam with grad_fn, {type(value).__name__}": (
            lambda value=value: update(
                disam_jax.disam(descent_lam=value),
                grads=jnp.ones((2, 2)),
                domain_losses=jnp.ones(2),
                grad_fn=jax.grad(jnp.sum),
            ),
            TypeError,
            ["descent_lam", "grad_fn", "domain_loss_fn="],
        )
        for value in (0.5, jnp.float32(-0.5), optax.constant_schedule(0.0))
    },
    "unknown domain_gradients": (
        lambda: disam_jax.disam(domain_gradients="each"),
        ValueError,
        ["domain_gradients", "'each'", "'joint', 'normalised', 'own'"],
    ),
    **{
        f"unroll is {value!r}": (
            lambda value=value: disam_jax.accumulated_value_and_grad(LOSSES, unroll=value),
            ValueError,
            ["unroll", repr(value), "unroll=1"],
        )
        for value in (0, False, 2.0, None)
    },
    "own perturbations in one backward pass": (
        lambda: disam_jax.value_and_grad(LOSSES, domain_gradients="own"),
        ValueError,
        ["domain_gradients='own'", "accumulated_value_and_grad(loss_fn, rho, lam, domain_gradients='own')"],
    ),
    "normalised gradients of a subset": (
        lambda: disam_jax.subset_value_and_grad(LOSSES, domain_gradients="normalised"),
        ValueError,
        ["domain_gradients='normalised'", "accumulated_value_and_grad("],
    ),
    "own perturbations in the transformation": (
        lambda: disam_jax.sam(domain_gradients="own"),
        ValueError,
        ["domain_gradients='own'", "accumulated_value_and_grad(loss_fn, rho, lam, domain_gradients='own')"],
    ),
    "normalised gradients from domain_loss_fn": (
        lambda: update(disam_jax.disam(domain_gradients="normalised"), domain_loss_fn=LOSSES),
        TypeError,
        ["domain_gradients='normalised'", "tx.update(stacked_grads, state, params, domain_losses=losses"],
    ),
    "unknown penalty": (lambda: disam_jax.disam(penalty="var"), ValueError, ["penalty", "'var'", "'variance'"]),
    "unknown penalty, weights": (
        lambda: disam_jax.domain_weights(W, 0.1, penalty="x"),
        ValueError,
        ["penalty", "'x'"],
    ),
    "variant not called": (
        lambda: disam_jax.disam(variant=variants.gsam),
        TypeError,
        ["variant", "variants.gsam(alpha=0.3)"],
    ),
    "negative alpha": (lambda: variants.gsam(-0.1), ValueError, ["gsam", "alpha", "-0.1"]),
    "negative alpha in an array": (lambda: variants.sagm(jnp.float32(-0.5)), ValueError, ["sagm", "alpha", "-0.5"]),
    "alpha is nan": (lambda: variants.sagm(np.float32("nan")), ValueError, ["sagm", "alpha", "nan"]),
    "alpha is a vector": (lambda: variants.gsam(np.ones(2)), ValueError, ["gsam", "alpha", "(2,)"]),
    "alpha is a boolean": (lambda: variants.gsam(True), TypeError, ["gsam", "alpha", "True"]),
    "a variant of no functions": (
        lambda: disam_jax.disam(variant=variants.Variant(0.5, lambda g, h: h)),
        TypeError,
        ["variant", "scale", "0.5", "functions"],
    ),
    "a variant with another reference": (
        lambda: disam_jax.disam(variant=variants.Variant(lambda r, n: r, lambda g, h: h, "mean")),
        ValueError,
        ["variant", "reference", "'mean'"],
    ),
    "scale returns a vector": (
        gradient_with(LOSSES, variant=variants.Variant(lambda r, n: jnp.ones(2), lambda g, h: h)),
        ValueError,
        ["variant", "scale", "(2,)"],
    ),
    "scale returns nothing": (
        gradient_with(LOSSES, variant=variants.Variant(lambda r, n: None, lambda g, h: h)),
        TypeError,
        ["variant", "scale", "None"],
    ),
    "combine returns both gradients": (
        gradient_with(LOSSES, variant=variants.Variant(lambda r, n: r / n, lambda g, h: (g, h))),
        ValueError,
        ["variant", "combine", "structure of params"],
    ),
    "combine returns a number": (
        gradient_with(LOSSES, variant=variants.Variant(lambda r, n: r / n, lambda g, h: jnp.vdot(g, h))),
        ValueError,
        ["variant", "combine", "shapes of params", "()", "(2,)"],
    ),
    "unknown reference": (lambda: variants.sagm(0.1, "x"), ValueError, ["sagm", "reference", "'x'"]),
    "refresh_every beyond every float": (
        lambda: disam_jax.disam(refresh_every=10**400),
        ValueError,
        ["refresh_every", "int32"],
    ),
    "refresh_every is zero": (lambda: disam_jax.disam(refresh_every=0), ValueError, ["refresh_every", "0"]),
    "refresh_every is zero in an array": (
        lambda: disam_jax.disam(refresh_every=jnp.array(0)),
        ValueError,
        ["refresh_every", "0"],
    ),
    "refresh_every is negative in an array": (
        lambda: disam_jax.sam(refresh_every=np.array(-2)),
        ValueError,
        ["refresh_every", "-2"],
    ),
    "refresh_every is a vector": (
        lambda: disam_jax.disam(refresh_every=np.array([1, 2])),
        TypeError,
        ["refresh_every"],
    ),
    "refresh_every is a boolean": (lambda: disam_jax.disam(refresh_every=True), TypeError, ["refresh_every", "True"]),
    "refresh_every is not whole": (lambda: disam_jax.disam(refresh_every=2.5), TypeError, ["refresh_every", "2.5"]),
    **{
        f"begin is {what}": (make, kind, ["begin", words, "begin=500"])
        for what, make, kind, words in [
            ("negative", lambda: disam_jax.disam(begin=-1), ValueError, "-1"),
            ("negative, sam", lambda: disam_jax.sam(begin=np.int32(-2)), ValueError, "-2"),
            ("negative, subset", lambda: subset(begin=-1), ValueError, "-1"),
            ("negative in an array", lambda: subset(begin=jnp.array(-3)), ValueError, "-3"),
            ("beyond int32", lambda: disam_jax.disam(begin=2**31), ValueError, "int32"),
            ("a float", lambda: disam_jax.disam(begin=0.5), TypeError, "0.5"),
            ("a whole float, subset", lambda: subset(begin=500.0), TypeError, "500.0"),
            ("an array of floats", lambda: subset(begin=jnp.float32(2)), TypeError, "2."),
            ("a boolean", lambda: disam_jax.disam(begin=True), TypeError, "True"),
            ("an array of a boolean", lambda: subset(begin=np.array(False)), TypeError, "False"),
            ("a vector", lambda: disam_jax.disam(begin=np.array([1, 2])), TypeError, "[1, 2]"),
            ("a vector of one, subset", lambda: subset(begin=jnp.array([1])), TypeError, "[1]"),
            ("text", lambda: subset(begin="500"), TypeError, "'500'"),
            ("negative, accumulated", lambda: disam_jax.accumulated_value_and_grad(LOSSES, begin=-4), ValueError, "-4"),
            ("a schedule", lambda: disam_jax.disam(begin=optax.constant_schedule(3)), TypeError, "function"),
        ]
    },
    "begin without step, accumulated": (
        lambda: disam_jax.accumulated_value_and_grad(lambda w, x: jnp.sum(w * x), begin=3)(W, jnp.ones((3, 2))),
        TypeError,
        ["accumulated_value_and_grad", "begin=3", "step=None", "fn(params, batch, step=t)"],
    ),
    "begin without step": (
        lambda: jax.jit(subset(begin=500))(W, BATCH),
        TypeError,
        ["subset_value_and_grad", "begin=500", "step=None", "fn(params, batch, step=t)"],
    ),
    **{
        f"step is {what}": (
            lambda step=step, static=static: jax.jit(subset(begin=500), static_argnames="step" if static else ())(
                W, BATCH, step=step
            ),
            kind,
            ["step must be", words, "step=t, where t counts the updates from 0"],
        )
        for what, step, static, kind, words in [
            ("a traced float", 3.0, False, TypeError, "float32"),
            ("a float", 3.0, True, TypeError, "3.0"),
            ("a traced boolean", True, False, TypeError, "bool"),
            ("a boolean", True, True, TypeError, "True"),
            ("a traced vector", np.arange(2), False, TypeError, "int32[2]"),
            ("negative", -1, True, ValueError, "-1"),
            ("text", "3", True, TypeError, "'3'"),
        ]
    },
    "aux of every example with begin": (
        lambda: jax.jit(
            disam_jax.subset_value_and_grad(lambda w, x: (jnp.sum(x, (1, 2)) * w[0], {"x": x}), has_aux=True, begin=1)
        )(W, BATCH, step=0),
        TypeError,
        ["begin", "aux", "(3, 4, 2)", "(3, 1, 2)", "['x']", "means over the examples"],
    ),
    **{
        f"the cost of a training, {what}": (lambda cost=cost: disam_jax.training_cost(*cost), kind, words)
        for what, cost, kind, words in [
            ("no steps", (0, None, 0.5), ValueError, ["steps", "0", "steps=1000"]),
            ("steps are a float", (1e3, None, 0.5), TypeError, ["steps", "1000.0", "steps=1000"]),
            ("steps are a boolean", (True, None, 0.5), TypeError, ["steps", "True"]),
            ("begin is negative", (10, -1, 0.5), ValueError, ["begin", "-1", "begin=500"]),
            ("begin is a share", (10, 0.5, 0.5), TypeError, ["begin", "0.5"]),
            ("no fraction", (10, 5, 0), ValueError, ["training_cost", "fraction", "0"]),
            ("fraction is missing", (10, 5, None), TypeError, ["training_cost", "fraction", "None"]),
        ]
    },
    "the cost of a training, traced": (
        lambda: jax.jit(disam_jax.training_cost)(10),
        TypeError,
        ["training_cost", "steps", "static", "outside of jit"],
    ),
    "num_domains is not static": (
        lambda: disam_jax.disam(num_domains=jnp.ones((), jnp.int32)),
        TypeError,
        ["num_domains", "static_args"],
    ),
    "mask of another structure": (
        lambda: update(disam_jax.disam(mask={"a": True}), domain_loss_fn=LOSSES),
        ValueError,
        ["mask", "structure of params"],
    ),
    "mask of numbers": (
        lambda: update(disam_jax.disam(mask=1.0), domain_loss_fn=LOSSES),
        TypeError,
        ["mask", "1.0", "booleans"],
    ),
    # the call of update
    "missing domain_loss_fn": (
        update,
        TypeError,
        ["domain_loss_fn", "tx.update(grads, state, params, domain_loss_fn="],
    ),
    "missing params": (
        lambda: disam_jax.disam().update(None, disam_jax.disam().init(W), domain_loss_fn=LOSSES),
        ValueError,
        ["params", "tx.update(grads, state, params"],
    ),
    "losses in the place of the function": (
        lambda: update(domain_loss_fn=jnp.ones(2)),
        TypeError,
        ["domain_loss_fn", "function of params", "lambda p"],
    ),
    "both forms": (
        lambda: update(domain_loss_fn=LOSSES, domain_losses=jnp.ones(2)),
        TypeError,
        ["domain_loss_fn", "domain_losses", "not both"],
    ),
    "missing grad_fn": (
        lambda: update(grads=jnp.ones((2, 2)), domain_losses=jnp.ones(2)),
        TypeError,
        ["grad_fn", "grad_fn=jax.grad("],
    ),
    "missing stacked gradients": (
        lambda: update(domain_losses=jnp.ones(2), grad_fn=jax.grad(jnp.sum)),
        TypeError,
        ["stacked gradients", "tx.update(stacked_grads"],
    ),
    "stacked gradients without the domain axis": (
        lambda: update(grads=jnp.ones(2), domain_losses=jnp.ones(3), grad_fn=jax.grad(jnp.sum)),
        ValueError,
        ["stacked gradients", "(3, 2)", "(2,)", "per_domain_value_and_grad"],
    ),
    "stacked gradients of another structure": (
        lambda: update(grads={"w": jnp.ones((3, 2))}, domain_losses=jnp.ones(3), grad_fn=jax.grad(jnp.sum)),
        ValueError,
        ["stacked gradients", "structure of params"],
    ),
    "grad_fn returns value and gradient": (
        lambda: update(
            grads=jnp.ones((2, 2)), domain_losses=jnp.ones(2), grad_fn=jax.value_and_grad(lambda w: jnp.sum(w))
        ),
        ValueError,
        ["grad_fn", "structure of params", "grad_fn=jax.grad("],
    ),
    "num_domains differs": (
        lambda: update(disam_jax.disam(num_domains=3), domain_loss_fn=LOSSES),
        ValueError,
        ["num_domains=3", "2 domain losses", "num_domains=2"],
    ),
    # what the loss function returns
    "losses of rank 2": (update_with(jnp.ones((2, 8))), ValueError, ["domain_loss_fn", "(2, 8)", "per_domain("]),
    "integer losses": (update_with(jnp.ones(2, jnp.int32)), TypeError, ["domain_loss_fn", "int32[2]", "floating"]),
    "no losses": (update_with(jnp.ones(0)), ValueError, ["domain_loss_fn", "(0,)"]),
    "a list of losses": (update_with([jnp.float32(1.0)]), TypeError, ["domain_loss_fn", "list", "jnp.stack"]),
    "None": (update_with(None), TypeError, ["domain_loss_fn", "NoneType"]),
    "losses with aux": (update_with((jnp.ones(2), 1.0)), TypeError, ["domain_loss_fn", "tuple", "has_aux=True"]),
    "negative weights": (
        update_with(disam_jax.DomainLosses(jnp.ones(2), np.array([1, -2]))),
        ValueError,
        ["domain_loss_fn", "weights", "-2", "0 for an absent domain"],
    ),
    "negative weights on a device": (
        update_with(disam_jax.DomainLosses(jnp.ones(2), jnp.array([1.0, -2.0]))),
        ValueError,
        ["weights", "-2.0"],
    ),
    "weights that are nan": (
        update_with(disam_jax.DomainLosses(jnp.ones(2), [1.0, float("nan")])),
        ValueError,
        ["weights", "nan"],
    ),
    "infinite weights, stacked": (
        lambda: update(
            grads=jnp.ones((2, 2)),
            domain_losses=disam_jax.DomainLosses(jnp.ones(2), np.array([1.0, np.inf])),
            grad_fn=jax.grad(jnp.sum),
        ),
        ValueError,
        ["domain_losses", "weights", "inf"],
    ),
    "negative weights, domain_weights": (
        lambda: disam_jax.domain_weights(disam_jax.DomainLosses(W, np.array([1, -2])), 0.1),
        ValueError,
        ["losses", "weights", "-2"],
    ),
    "complex weights": (
        update_with(disam_jax.DomainLosses(jnp.ones(2), np.array([1j, 2]))),
        TypeError,
        ["weights", "complex"],
    ),
    "weights of text": (update_with(disam_jax.DomainLosses(jnp.ones(2), ["a", "b"])), TypeError, ["weights", "<U1"]),
    "weights of another shape": (
        update_with(disam_jax.DomainLosses(jnp.ones(2), jnp.ones(3))),
        ValueError,
        ["DomainLosses", "(2,)", "(3,)"],
    ),
    "has_aux without aux": (gradient_with(LOSSES, has_aux=True), TypeError, ["domain_loss_fn", "has_aux=False"]),
    "argnums beyond the arguments": (gradient_with(LOSSES, argnums=3), ValueError, ["argnums=3", "1 were given"]),
    "argnums names an argument twice": (
        lambda: disam_jax.value_and_grad(LOSSES, argnums=(0, 0)),  # before any argument is given
        ValueError,
        ["argnums=(0, 0)", "twice"],
    ),
    "argnums names an argument from both ends": (
        lambda: disam_jax.value_and_grad(LOSSES, argnums=(0, -2))(W, W),
        ValueError,
        ["argnums=(0, -2)", "twice", "2 arguments"],
    ),
    "argnums of booleans": (gradient_with(LOSSES, argnums=(True,)), TypeError, ["argnums", "True", "argnums=0"]),
    "argnums is a boolean": (
        lambda: disam_jax.subset_value_and_grad(LOSSES, argnums=False),
        TypeError,
        ["argnums", "False"],
    ),
    "argnums is text": (
        lambda: disam_jax.accumulated_value_and_grad(LOSSES, argnums="0"),
        TypeError,
        ["argnums", "'0'"],
    ),
    "axis_name outside of a mapped axis": (
        gradient_with(LOSSES, axis_name="data"),
        ValueError,
        ["axis_name='data'", "jax.pmap(step, axis_name='data')", "axis_name=None"],
    ),
    "accumulated: axis_name outside of a mapped axis": (
        lambda: disam_jax.accumulated_value_and_grad(lambda w, b: jnp.sum(w), axis_name="data")(W, np.ones((2, 2))),
        ValueError,
        ["axis_name='data'", "axis_name=None"],
    ),
    "integer params": (
        lambda: jax.jit(disam_jax.value_and_grad(LOSSES))({"a": jnp.ones(2, jnp.int32)}),
        TypeError,
        ["params['a']", "int32[2]"],
    ),
    "complex params": (
        lambda: jax.jit(disam_jax.value_and_grad(LOSSES))(jnp.ones(2, jnp.complex64)),
        TypeError,
        ["params", "complex64[2]", "real and imaginary"],
    ),
    "params of a python integer": (
        lambda: disam_jax.value_and_grad(LOSSES)(1),
        TypeError,
        ["params", "int32[]", "1.0"],
    ),
    "params of a function": (
        lambda: disam_jax.value_and_grad(LOSSES)({"w": W, "activation": [jnp.tanh]}),
        TypeError,
        ["params['activation'][0]", "eqx.partition(model, eqx.is_inexact_array)"],
    ),
    "params of text, init": (lambda: disam_jax.disam().init({"name": "mlp"}), TypeError, ["params['name']", "str"]),
    "stacked gradients of integers": (
        lambda: update(grads=np.ones((2, 2), int), domain_losses=jnp.ones(2), grad_fn=jax.grad(jnp.sum)),
        TypeError,
        ["stacked gradients", "int64[2, 2]"],
    ),
    "grad_fn returns the gradient of each domain": (
        lambda: update(grads=jnp.ones((2, 2)), domain_losses=jnp.ones(2), grad_fn=lambda w: jnp.ones((2, 2))),
        ValueError,
        ["grad_fn", "(2, 2)", "(2,)"],
    ),
    # batches
    "domains differ in number": (
        lambda: disam_jax.per_domain(lambda w, b: jnp.sum(b["x"]))(W, {"x": jnp.ones((3, 4)), "y": jnp.ones((2, 4))}),
        ValueError,
        ["per_domain", "['x'] (3, 4)", "['y'] (2, 4)", "group_by_domain"],
    ),
    "a leaf without the domain axis": (
        lambda: disam_jax.per_domain(lambda w, b: jnp.sum(b))(W, jnp.float32(1.0)),
        ValueError,
        ["per_domain", "argument 1", "()", "[M, n, ...]"],
    ),
    "accumulated: domains differ": (
        accumulated(lambda w, b: jnp.sum(w), {"x": np.ones((3, 4)), "y": np.ones((2, 4))}),
        ValueError,
        ["batch", "(3, 4)", "(2, 4)", "group_by_domain"],
    ),
    "accumulated: no domains": (
        accumulated(lambda w, b: jnp.sum(w), np.ones((0, 4))),
        ValueError,
        ["batch", "(0, 4)", "M >= 1"],
    ),
    "accumulated: loss of each example": (
        accumulated(lambda w, b: b @ w, np.ones((3, 4, 2), np.float32)),
        ValueError,
        ["loss_fn", "(4,)", "jnp.mean"],
    ),
    "accumulated: integer loss": (
        accumulated(lambda w, b: jnp.int32(1), np.ones((3, 4))),
        TypeError,
        ["loss_fn", "int32"],
    ),
    "accumulated: no batch": (
        lambda: disam_jax.accumulated_value_and_grad(lambda w: jnp.sum(w))(W),
        TypeError,
        ["batch", "fn(params, batch)"],
    ),
    "ids out of range": (
        lambda: disam_jax.mean_by_domain(jnp.ones(4), np.array([0, 1, 2, 3]), 3),
        ValueError,
        ["domain_ids", "0..2", "0..3", "num_domains"],
    ),
    "ids beyond the range of num_domains' dtype": (
        lambda: disam_jax.mean_by_domain(jnp.ones(2), np.array([0, 200], np.uint8), 200),
        ValueError,
        ["domain_ids", "0..199", "0..200"],
    ),
    "negative ids": (
        lambda: disam_jax.mean_by_domain(jnp.ones(2), np.array([0, -1]), 3),
        ValueError,
        ["domain_ids", "-1..0"],
    ),
    "ids of floats": (
        lambda: disam_jax.mean_by_domain(jnp.ones(4), jnp.ones(4), 3),
        TypeError,
        ["domain_ids", "float32[4]", "astype(jnp.int32)"],
    ),
    "ids of another length": (
        lambda: disam_jax.mean_by_domain(jnp.ones(4), np.array([0, 1]), 3),
        ValueError,
        ["example_losses", "domain_ids", "(4,)", "(2,)"],
    ),
    "losses of pixels": (
        lambda: disam_jax.mean_by_domain(jnp.ones((4, 5)), np.zeros((4, 5), int), 3),
        ValueError,
        ["example_losses", "(4, 5)", "mean(1)"],
    ),
    "integer example losses": (
        lambda: disam_jax.mean_by_domain(jnp.ones(4, jnp.int32), ids, 2),
        TypeError,
        ["example_losses", "int32[4]"],
    ),
    "num_domains is zero": (lambda: disam_jax.mean_by_domain(jnp.ones(4), ids, 0), ValueError, ["num_domains", "0"]),
    "num_domains is traced": (
        lambda: jax.jit(lambda m: disam_jax.mean_by_domain(jnp.ones(4), ids, m))(2),
        TypeError,
        ["num_domains", "static"],
    ),
    "ragged groups": (
        lambda: disam_jax.group_by_domain(batch4, np.array([0, 0, 0, 1]), 2),
        ValueError,
        ["ragged", "[3, 1]", "per_domain=1", "mean_by_domain"],
    ),
    "too few in a group": (
        lambda: disam_jax.group_by_domain(batch4, ids, 2, per_domain=3),
        ValueError,
        ["per_domain=3", "[2, 2]", "replace=True"],
    ),
    "an absent group": (
        lambda: disam_jax.group_by_domain(batch4, ids, 3, per_domain=2, replace=True),
        ValueError,
        ["[2, 2, 0]", "at least one"],
    ),
    "group ids out of range": (
        lambda: disam_jax.group_by_domain(batch4, np.array([0, 1, 2, 5]), 3),
        ValueError,
        ["domain_ids", "0..5"],
    ),
    "a batch of another length": (
        lambda: disam_jax.group_by_domain({"x": np.ones(3)}, ids, 2),
        ValueError,
        ["batch['x']", "(3,)", "4 entries"],
    ),
    "grouping under jit": (
        lambda: jax.jit(lambda b: disam_jax.group_by_domain(b, ids, 2))(batch4),
        TypeError,
        ["group_by_domain", "jit", "mean_by_domain"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_error_names_the_argument_what_was_seen_and_the_call_to_write(name):
    call, kind, words = CASES[name]
    with pytest.raises(kind) as error:
        call()
    message = str(error.value)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("rho", [jnp.float32(0.1), np.float64(0.1), optax.constant_schedule(0.1), 0.1, 1])
def test_numbers_arrays_and_schedules_pass(rho):
    want, _ = update(disam_jax.disam(0.1 if rho != 1 else 1.0, 0.5), domain_loss_fn=LOSSES)
    got, _ = update(disam_jax.disam(rho, 0.5), domain_loss_fn=LOSSES)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def shared(weights):
    return lambda w: disam_jax.DomainLosses(LOSSES(w), weights)


def refreshed(every):
    tx = disam_jax.disam(0.1, 0.5, refresh_every=every)
    return tx.update(None, tx.init(W), W, domain_loss_fn=LOSSES)[0]


def begun(begin):
    tx = disam_jax.disam(0.1, 0.5, begin=begin)
    return tx.update(None, tx.init(W), W, domain_loss_fn=LOSSES)[0]


def scheduled(rho):
    tx = disam_jax.disam(lambda count: rho - 0.1 * count.astype(jnp.float32), 0.5, num_domains=2)
    state = tx.init(W)
    for _ in range(2):
        updates, state = tx.update(None, state, W, domain_loss_fn=LOSSES)
    return updates


# A function of one traced value that makes a gradient; a right value and wrong ones.
TRACED = {
    "rho": (lambda rho: disam_jax.value_and_grad(LOSSES, rho, 0.5)(W)[1], 0.1, [-0.1, np.nan, np.inf]),
    "rho, accumulated": (
        lambda rho: disam_jax.accumulated_value_and_grad(lambda w, b: jnp.sum(b * w**2), rho)(W, jnp.ones((3, 2)))[1],
        0.1,
        [-0.1],
    ),
    "rho, part": (
        lambda rho: disam_jax.subset_value_and_grad(lambda w, b: jnp.sum(b * w[None, None] ** 2, (1, 2)), rho)(
            W, jnp.ones((3, 4, 2))
        )[1],
        0.1,
        [-0.1],
    ),
    "rho of a schedule": (scheduled, 0.3, [0.05]),  # the second value is 0.1 less
    "lam": (lambda lam: disam_jax.value_and_grad(LOSSES, 0.1, lam)(W)[1], 0.5, [np.nan, np.inf]),
    "descent_lam": (
        lambda lam: disam_jax.value_and_grad(LOSSES, 0.1, 0.5, descent_lam=lam)(W)[1],
        0.5,
        [np.nan, np.inf, -np.inf],
    ),
    "descent_lam, accumulated": (
        lambda lam: disam_jax.accumulated_value_and_grad(lambda w, b: jnp.sum(b * w**2), descent_lam=lam)(
            W, jnp.arange(1.0, 7.0).reshape(3, 2)
        )[1],
        -0.5,
        [np.nan, np.inf],
    ),
    "rho, normalised": (
        lambda rho: disam_jax.accumulated_value_and_grad(
            lambda w, b: jnp.sum(b * w**2), rho, domain_gradients="normalised"
        )(W, jnp.ones((3, 2)))[1],
        0.1,
        [-0.1, np.nan],
    ),
    "eps, normalised": (
        lambda eps: disam_jax.accumulated_value_and_grad(
            lambda w, b: jnp.sum(b * w**2), eps=eps, domain_gradients="normalised"
        )(W, jnp.ones((3, 2)))[1],
        0.0,
        [-0.1, np.nan],
    ),
    "rho, own": (
        lambda rho: disam_jax.accumulated_value_and_grad(lambda w, b: jnp.sum(b * w**2), rho, domain_gradients="own")(
            W, jnp.ones((3, 2))
        )[1],
        0.1,
        [-0.1, np.nan],
    ),
    "lam, own": (
        lambda lam: disam_jax.accumulated_value_and_grad(
            lambda w, b: jnp.sum(b * w**2), 0.1, lam, domain_gradients="own"
        )(W, jnp.arange(1.0, 7.0).reshape(3, 2))[1],
        0.1,
        [np.inf, np.nan],
    ),
    "descent_lam of gradients that point apart": (
        lambda lam: disam_jax.value_and_grad(lambda w: jnp.stack([jnp.sum(w), 1 - jnp.sum(w)]), descent_lam=lam)(W)[1],
        0.5,
        [np.inf],
    ),
    "descent_lam with grad_fn": (
        lambda lam: update(
            disam_jax.disam(descent_lam=lam),
            grads=jnp.ones((2, 2)),
            domain_losses=jnp.ones(2),
            grad_fn=jax.grad(lambda w: jnp.sum(w**2)),
        )[0],
        0.0,
        [0.5],
    ),
    "lam, weights": (lambda lam: disam_jax.domain_weights(LOSSES(W), lam), 0.5, [np.nan]),
    "eps": (lambda eps: disam_jax.value_and_grad(LOSSES, 0.1, 0.5, eps=eps)(W)[1], 0.0, [-1.0, np.nan, np.inf]),
    "alpha of gsam": (
        lambda alpha: disam_jax.value_and_grad(LOSSES, 0.1, variant=variants.gsam(alpha))(W)[1],
        0.5,
        [-0.1, np.nan],
    ),
    "alpha of sagm": (
        lambda alpha: disam_jax.value_and_grad(LOSSES, 0.1, variant=variants.sagm(alpha))(W)[1],
        0.01,
        [-0.1, np.nan],
    ),
    "a weight": (
        lambda a: disam_jax.value_and_grad(shared(jnp.stack([1.0, a])), 0.1)(W)[1],
        2.0,
        [-1.0, np.nan, np.inf],
    ),
    "a weight of linear losses": (
        lambda a: disam_jax.value_and_grad(
            lambda w: disam_jax.DomainLosses(jnp.stack([jnp.sum(w), 2 * jnp.sum(w)]), jnp.stack([1.0, a])), 0.1
        )(W)[1],
        2.0,
        [-1.0, np.nan],
    ),
    "a weight, domain_weights": (
        lambda a: disam_jax.domain_weights(disam_jax.DomainLosses(W, jnp.stack([1.0, a])), 0.1),
        2.0,
        [-1.0, np.nan],
    ),
    "refresh_every": (refreshed, 2, [0, -1]),
    "begin": (begun, 1, [-1, -(2**31)]),
    "begin, accumulated": (
        lambda begin: disam_jax.accumulated_value_and_grad(lambda w, x: jnp.sum(x * w**2), 0.1, begin=begin)(
            W, jnp.ones((3, 2)), step=1
        )[1],
        1,
        [-1],
    ),
    "begin, subset": (lambda begin: subset(begin=begin)(W, BATCH, step=1)[1], 1, [-1]),
}


@pytest.mark.usefixtures("nans_allowed")
@pytest.mark.parametrize("name", TRACED)
def test_a_traced_value_that_turns_out_wrong_is_visible_in_the_gradient(name):
    """It is not known when it is checked, and no step waits for it: NaN, at the cost of one scalar operation."""
    gradient, right, wrong = TRACED[name]
    gradient = jax.jit(gradient)
    assert np.isfinite(gradient(right)).all()
    for value in wrong:
        assert np.isnan(gradient(value)).all(), value


@pytest.mark.parametrize("rho", [np.float32(-0.1), np.array(-0.1), jnp.float32(-0.1), jnp.bfloat16(-0.1), -1, np.nan])
@pytest.mark.parametrize(
    "entry",
    [
        disam_jax.disam,
        disam_jax.sam,
        *(
            lambda rho, f=f: f(LOSSES, rho)
            for f in (disam_jax.value_and_grad, disam_jax.accumulated_value_and_grad, disam_jax.subset_value_and_grad)
        ),
    ],
    ids=["disam", "sam", "value_and_grad", "accumulated_value_and_grad", "subset_value_and_grad"],
)
def test_a_wrong_rho_of_any_type_is_an_error(entry, rho):
    with pytest.raises(ValueError, match="rho must"):
        entry(rho)


def test_an_injected_rho_that_turns_negative_is_visible():
    tx = optax.inject_hyperparams(disam_jax.disam, static_args=("num_domains", "refresh_every"))(rho=0.1)
    state = tx.init(W)
    state.hyperparams["rho"] = jnp.float32(-0.1)
    with pytest.raises(ValueError, match="rho must not be negative"):
        tx.update(None, state, W, domain_loss_fn=LOSSES)
    with jax.debug_nans(False):
        updates, _ = jax.jit(lambda state: tx.update(None, state, W, domain_loss_fn=LOSSES))(state)
    assert np.isnan(updates).all()
