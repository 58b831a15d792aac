"""A training run that can be killed: run by test_checkpoint.py as its own process, with a directory and a file.

Trains two optimizers side by side on one stream of batches, saves every second step, and continues from the last
checkpoint that it finds. Takes a step for each line on its standard input, so that who started it decides where it is
when it dies; prints one line for each thing that it did; writes all that it holds to the file when the input ends.
"""

import os
import sys

os.environ["XLA_FLAGS"] = ""
os.environ["JAX_PLATFORMS"] = "cpu"

import hashlib

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import problems

import disam_jax

DOMAINS = 3
TRANSFORMATIONS = {
    f"every_{k}": optax.chain(
        disam_jax.disam(optax.linear_schedule(0.2, 0.05, 10), 0.5, num_domains=DOMAINS, refresh_every=k),
        optax.adamw(1e-2),
    )
    for k in (1, 3)
}


class Batches:
    """A stream of batches in which batch n is a function of (seed, n): its position is all that there is to save."""

    def __init__(self, seed, position=0):
        self.seed, self.position = seed, position

    def __next__(self):
        rng = np.random.default_rng([self.seed, self.position])
        self.position += 1
        x = rng.normal(size=(DOMAINS, 8, 4)) * np.linspace(0.5, 2, DOMAINS)[:, None, None]
        return {"x": x.astype(np.float32), "y": rng.integers(0, 3, size=(DOMAINS, 8), dtype=np.int32)}


@jax.jit
def train_step(runs, batch):
    def one(name, params, state):
        f = lambda p: disam_jax.per_domain(problems.loss)(p, batch)
        updates, state = TRANSFORMATIONS[name].update(None, state, params, domain_loss_fn=f)
        return {"params": optax.apply_updates(params, updates), "state": state}

    return {name: one(name, **run) for name, run in runs.items()}


def save(manager, step, runs, batches):
    items = {"train": ocp.args.StandardSave(runs), "batches": ocp.args.JsonSave({"position": batches.position})}
    return manager.save(step, args=ocp.args.Composite(**items))


def restore(manager, step, runs):
    items = {"train": ocp.args.StandardRestore(runs), "batches": ocp.args.JsonRestore()}
    found = manager.restore(step, args=ocp.args.Composite(**items))
    return found["train"], found["batches"]["position"]


def named_leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def digest(tree):
    return hashlib.sha256(b"".join(x.tobytes() for x in named_leaves(tree).values())).hexdigest()[:16]


def say(*words):
    print(*words, flush=True)


def main(directory, file):
    params = problems.make_problem(seed=70, num_domains=DOMAINS).params
    runs = {name: {"params": params, "state": tx.init(params)} for name, tx in TRANSFORMATIONS.items()}
    batches, step = Batches(seed=71), 0
    with ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(max_to_keep=2)) as manager:
        if manager.latest_step() is not None:
            step = manager.latest_step()
            runs, batches.position = restore(manager, step, runs)
            say("restored", step)
        for command in sys.stdin:
            runs = train_step(runs, next(batches))
            step += 1
            say("step", step, digest(runs), batches.position)
            if step % 2 == 0:
                save(manager, step, runs, batches)
                if command.strip() == "and wait":
                    manager.wait_until_finished()
                    say("saved", step)
                else:
                    say("saving", step)
    np.savez(file, position=batches.position, step=step, **named_leaves(runs))
    say("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
