"""A small NNX network with BatchNorm and dropout on digits under shifts, in the shape of Flax's NNX tutorial.

It trains on five ways to draw a digit and is tested on a sixth that it has never seen. The file exists twice, in
`examples/` with DISAM and in `examples/plain/` without; `examples/README.md` shows the difference.
"""

import itertools
from functools import partial

import numpy as np
import optax
from flax import nnx

import disam_jax.nnx
from disam_jax.dg.data.digits import load_digits


class CNN(nnx.Module):
    """Two convolutions, the first one normalised, and a hidden layer with dropout."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.linear1 = nnx.Linear(2 * 2 * 32, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.linear2 = nnx.Linear(64, 10, rngs=rngs)
        self.pool = partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))

    def __call__(self, x):
        """Class scores [N, 10] of images [N, 8, 8, 1]."""
        x = self.pool(nnx.relu(self.norm1(self.conv1(x))))
        x = self.pool(nnx.relu(self.conv2(x)))
        x = nnx.relu(self.linear1(x.reshape(x.shape[0], -1)))
        return self.linear2(self.dropout(x))


def loss_fn(model, batch):
    """The loss of a batch, and the class scores."""
    logits = model(batch["image"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return disam_jax.mean_by_domain(losses, batch["domain"], num_domains=5), logits


@nnx.jit
def train_step(model, optimizer, metrics, batch):
    """One step: changes the model, the optimizer and the metrics."""
    grad_fn = disam_jax.nnx.value_and_grad(loss_fn, rho=0.1, lam=0.4, penalty="std", has_aux=True)
    (loss, logits), grads = grad_fn(model, batch)
    metrics.update(loss=loss, logits=logits, labels=batch["label"])
    optimizer.update(model, grads)


@nnx.jit
def eval_step(model, metrics, batch):
    """Changes the metrics."""
    metrics.update(loss=0.0, logits=model(batch["image"]), labels=batch["label"])


def get_datasets(held_out="noise"):
    """The digits of five shifts for training and those of the sixth for testing."""
    digits = load_digits()
    last = digits.domain_names.index(held_out)
    # Sources are numbered 0..4 whichever domain is held out.
    domain = digits.domain_ids - (digits.domain_ids > last)
    columns = {"image": digits.inputs.reshape(-1, 8, 8, 1), "label": digits.labels, "domain": domain}
    seen = digits.domain_ids != last
    return {k: v[seen] for k, v in columns.items()}, {k: v[~seen] for k, v in columns.items()}


def batches(dataset, batch_size, rng):
    """Batches without end, each epoch in a new random order."""
    size = len(dataset["label"])
    while True:
        order = rng.permutation(size)
        for start in range(0, size - batch_size + 1, batch_size):
            yield {k: v[order[start : start + batch_size]] for k, v in dataset.items()}


def train_and_evaluate(num_steps=300, batch_size=80, eval_every=50, seed=0):
    """Trains and prints; the model and the mean training loss between two evaluations."""
    train_ds, test_ds = get_datasets()
    model = CNN(rngs=nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)
    metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"), accuracy=nnx.metrics.Accuracy())
    history = []
    train_iter = itertools.islice(batches(train_ds, batch_size, np.random.default_rng(seed)), num_steps)
    for step, batch in enumerate(train_iter, 1):
        model.train()
        train_step(model, optimizer, metrics, batch)
        if step % eval_every == 0:
            seen = metrics.compute()
            metrics.reset()
            model.eval()
            eval_step(model, metrics, test_ds)
            unseen = f"{metrics.compute()['accuracy']:.1%}"
            metrics.reset()
            history.append(float(seen["loss"]))
            print(f"step {step:3d}  loss {history[-1]:.4f}  accuracy {seen['accuracy']:.1%}  on the unseen {unseen}")
    return model, history


if __name__ == "__main__":
    train_and_evaluate()
