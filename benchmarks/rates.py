"""What the machine can do: FLOP/s of a large matrix product, bytes/s of a sum of two large vectors."""

import jax
import jax.numpy as jnp

from benchmarks.clock import Runner, in_turn


def rates(dtype: str = "float32", repeats: int = 9) -> dict[str, float]:
    """The best of several samples: the limit is what the machine does when it is left alone."""
    large = jax.default_backend() != "cpu"
    n, length = (8192, 2**28) if large else (2048, 2**24)
    a = jnp.ones((n, n), dtype)
    vectors = (jnp.ones(length, dtype), jnp.zeros(length, dtype))
    product = jax.jit(lambda a, b: a @ b)
    total = jax.jit(lambda x, y: x + y)
    runners = {
        "product": Runner(lambda state, a: (state, product(a, a)), (), a),
        "total": Runner(lambda state, both: (state, total(*both)), (), vectors),
    }
    best = {name: min(sample.wall for sample in taken) for name, taken in in_turn(runners, repeats).items()}
    return {"flops": 2 * n**3 / best["product"], "bytes": 3 * vectors[0].nbytes / best["total"]}
