"""How often a step passes from one file of the core to another, for whoever reads it in that order."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest

import disam_jax

CORE = pathlib.Path(disam_jax.__file__).parent
MOST = 21


def crossings(call):
    """Calls whose caller's frame and own frame lie in different files of the core.

    Where JAX or a tree function stands between the two, as in `jax.vjp(values_at, ...)`, its frame is the caller's, and
    the call does not count. Calls of C functions, `functools.partial` among them, have no frame.
    """
    found = []

    def file_of(frame):
        path = pathlib.Path(frame.f_code.co_filename)
        return path.stem if path.parent == CORE else None

    def seen(frame, event, _):
        if event == "call" and frame.f_back is not None:
            caller, called = file_of(frame.f_back), file_of(frame)
            if caller and called and caller != called:
                found.append(f"{caller}.{frame.f_back.f_code.co_name} -> {called}.{frame.f_code.co_name}")

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        call()
    finally:
        sys.setprofile(before)
    return found


def of_an_update(leaves, domains):
    params = {f"w{number}": jnp.ones((2, 3)) for number in range(leaves)}
    tx = disam_jax.disam()

    def losses(params):
        return jnp.stack([sum(jnp.sum(jnp.square(w)) for w in params.values())] * domains)

    state = tx.init(params)
    step = jax.jit(lambda state, params: tx.update(None, state, params, domain_loss_fn=losses))
    return crossings(lambda: step.trace(state, params))


@pytest.mark.parametrize(
    ("leaves", "domains"), [(1, 3), *(pytest.param(*more, marks=pytest.mark.slow) for more in [(5, 3), (1, 16)])]
)
def test_a_traced_update_crosses_few_files(leaves, domains):
    found = of_an_update(leaves, domains)
    assert 0 < len(found) <= MOST, "\n".join(found)


def test_calls_from_file_to_file_are_counted():
    params = jnp.ones(2)
    tx = disam_jax.disam()
    assert crossings(lambda: tx.init(params)) == [
        "_transform.init -> _dtypes.as_params",
        "_transform.init -> _dtypes.accumulation_dtype",
    ]
    assert crossings(lambda: disam_jax.variants.sam().scale(1.0, 2.0)) == []
