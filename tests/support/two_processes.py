"""One of two processes of a data-parallel DISAM step under jax.distributed; run by test_two_processes.py."""

import os
import sys

process, port = int(sys.argv[1]), sys.argv[2]
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import optax

jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)

import problems
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import disam_jax

PROBLEM = problems.make_problem(seed=60, num_domains=4, per_domain=8)


def train(params, batch):
    tx = optax.chain(disam_jax.disam(0.1, 0.5, num_domains=4), optax.sgd(0.1))

    def step(carry, _):
        params, state = carry
        f = lambda p: disam_jax.per_domain(problems.loss)(p, batch)
        updates, state = tx.update(None, state, params, domain_loss_fn=f)
        return (optax.apply_updates(params, updates), state), optax.tree.get(state, "loss")

    (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), length=3)
    return params, losses


mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
split = NamedSharding(mesh, P(None, "data"))
whole = jax.tree.map(np.asarray, PROBLEM.batch)
# Each process holds its half of every domain's examples.
half = jax.tree.map(lambda x: x[:, process * 4 : process * 4 + 4], whole)
batch = jax.tree.map(lambda x, w: jax.make_array_from_process_local_data(split, x, w.shape), half, whole)
params = multihost_utils.host_local_array_to_global_array(jax.tree.map(np.asarray, PROBLEM.params), mesh, P())
got = jax.tree.map(np.asarray, jax.jit(train, out_shardings=NamedSharding(mesh, P()))(params, batch))

want = jax.jit(train)(*jax.tree.map(np.asarray, (PROBLEM.params, whole)))
for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(g, np.asarray(w), rtol=1e-4, atol=1e-6)
print(f"process {process}: {jax.process_count()} processes, {jax.device_count()} devices, same numbers", flush=True)
