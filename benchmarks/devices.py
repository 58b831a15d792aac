"""The bytes that devices exchange in a step, as their number grows with the batch: read from the program of each.

    python -m benchmarks.devices

Prints JSON. It simulates eight devices on a CPU and is started as a process of its own, for their number is fixed when
JAX starts. Seconds would say nothing: the simulated devices share the cores.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

DEVICES = (1, 2, 4, 8)
BY_HAND = "disam_accumulated, shard_map and axis_name"
# The sides, and whether their batch is flat.
FLAT = {
    "adamw": True,
    "optax_sam_opaque": True,
    "disam": True,
    "gsam": True,
    "refresh_5": True,
    "disam_grouped": False,
    "disam_accumulated": False,
    BY_HAND: False,
    "disam_stacked": False,
}
NUM_DOMAINS, PER_DEVICE = 4, 4


def in_a_process() -> dict[str, Any]:
    """What `main` prints, from a process with eight devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={max(DEVICES)}"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.devices"],
        env={**os.environ, "XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


def by_hand(step: Callable[..., Any], mesh: Any) -> Callable[..., Any]:
    """The step on each device's part of a grouped batch; the library reduces what must be reduced."""
    import jax
    from jax.sharding import PartitionSpec

    whole, part = PartitionSpec(), PartitionSpec(None, "batch")
    return jax.shard_map(step, mesh=mesh, in_specs=(whole, whole, whole, part), out_specs=whole, check_vma=False)


def exchanged(side: str, devices: int) -> dict[str, Any]:
    """Bytes of collectives of one step of a perceptron with `PER_DEVICE` examples of each domain on each device.

    The batch is split over the devices, parameters and optimizer state are on all of them.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from benchmarks import hlo
    from benchmarks.counts import abstract, counts
    from benchmarks.steps import SIDES, accumulated
    from benchmarks.workloads import describe, mlp

    work = mlp(64, (256, 256), NUM_DOMAINS, PER_DEVICE * devices)
    step = accumulated(work, axis_name="batch") if side == BY_HAND else SIDES[side].make(work)
    mesh = Mesh(jax.devices()[:devices], ("batch",))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def split(x):
        # A grouped batch is split within its domains, a flat one as it comes. In the shape of the other form XLA would
        # gather the batch on every device before it starts.
        shape, axes = x.shape, ("batch",)
        if not FLAT[side]:
            shape, axes = (NUM_DOMAINS, x.shape[0] // NUM_DOMAINS, *x.shape[1:]), (None, "batch")
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    def on_devices(params, state, stats, batch):
        if not FLAT[side]:
            batch = jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[2:])), batch)
        return step.step(params, state, stats, batch)

    params, state, stats, batch = abstract(work, step)
    params, state, stats = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), (params, state, stats)
    )
    on_all = by_hand(on_devices, mesh) if side == BY_HAND else on_devices
    lowered = jax.jit(on_all, donate_argnums=(0, 1, 2), out_shardings=everywhere).lower(
        params, state, stats, jax.tree.map(split, batch)
    )
    compiled = lowered.compile()
    by_kind = hlo.communicated_bytes(hlo.parse(compiled.as_text()))
    return {
        "bytes": sum(by_kind.values()),
        "by_kind": by_kind,
        "parameter_bytes": 4 * describe(work)["parameters"],
        "flops_per_device": counts(compiled).flops,
    }


def main() -> None:
    print(json.dumps({side: {str(n): exchanged(side, n) for n in DEVICES} for side in FLAT}))


if __name__ == "__main__":
    main()
