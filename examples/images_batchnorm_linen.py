"""A residual Linen network with BatchNorm on digits under shifts, in the shape of Flax's ImageNet example.

A train state that carries running statistics, a warm-up and a cosine for the learning rate, weight decay in the loss,
evaluation with the running statistics. It trains on five ways to draw a digit and is tested on a sixth that it has
never seen. The file exists twice, in `examples/` with DISAM and in `examples/plain/` without; `examples/README.md`
shows the difference.
"""

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state

import disam_jax
from disam_jax.dg.data.digits import load_digits


class TrainState(train_state.TrainState):
    """A train state with the running statistics of the normalisation layers."""

    batch_stats: Any


class ResidualBlock(nn.Module):
    """Two convolutions around which the input is added."""

    filters: int
    strides: tuple[int, int]
    norm: Any

    @nn.compact
    def __call__(self, x):
        """Features [N, H, W, C] to [N, H / stride, W / stride, filters]."""
        y = nn.Conv(self.filters, (3, 3), self.strides, use_bias=False)(x)
        y = nn.relu(self.norm()(y))
        y = nn.Conv(self.filters, (3, 3), use_bias=False)(y)
        # The block starts as the identity.
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if x.shape != y.shape:
            x = self.norm()(nn.Conv(self.filters, (1, 1), self.strides, use_bias=False)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A stem, one residual block for each width, a mean over the image, class scores."""

    widths: tuple[int, ...] = (16, 32)
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train):
        """Class scores [N, num_classes] of images [N, H, W, C]."""
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.relu(norm()(nn.Conv(self.widths[0], (3, 3), use_bias=False)(x)))
        for i, filters in enumerate(self.widths):
            x = ResidualBlock(filters, (1, 1) if i == 0 else (2, 2), norm)(x)
        return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))


def compute_metrics(logits, labels):
    """The mean loss and the accuracy."""
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    return {"loss": loss, "accuracy": jnp.mean(jnp.argmax(logits, -1) == labels)}


def train_step(state, batch, learning_rate_fn, weight_decay):
    """One step: the new state and the metrics of the batch."""

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updates = state.apply_fn(variables, batch["image"], train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        kernels = [p for p in jax.tree.leaves(params) if p.ndim > 1]
        penalty = weight_decay * 0.5 * sum(jnp.sum(p**2) for p in kernels)
        loss = disam_jax.mean_by_domain(losses + penalty, batch["domain"], num_domains=5)
        return loss, (updates, logits)

    grad_fn = disam_jax.value_and_grad(loss_fn, rho=0.1, lam=0.4, penalty="std", has_aux=True)
    (_, (updates, logits)), grads = grad_fn(state.params)
    metrics = compute_metrics(logits, batch["label"]) | {"learning_rate": learning_rate_fn(state.step)}
    return state.apply_gradients(grads=grads, batch_stats=updates["batch_stats"]), metrics


def eval_step(state, batch):
    """The metrics of a batch, normalised by the running statistics."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return compute_metrics(state.apply_fn(variables, batch["image"], train=False), batch["label"])


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


def create_train_state(key, learning_rate_fn):
    """The initial weights, the initial running statistics and the optimizer."""
    model = ResNet()
    variables = model.init(key, jnp.ones((1, 8, 8, 1)), train=False)
    return TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        tx=optax.sgd(learning_rate_fn, momentum=0.9, nesterov=True),
    )


def train_and_evaluate(num_steps=300, batch_size=80, learning_rate=0.1, weight_decay=1e-4, seed=0):
    """Trains and prints; the final state and the training loss of each step."""
    train_ds, test_ds = get_datasets()
    warmup_steps = num_steps // 10
    learning_rate_fn = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, num_steps)
    state = create_train_state(jax.random.key(seed), learning_rate_fn)
    step_fn = jax.jit(functools.partial(train_step, learning_rate_fn=learning_rate_fn, weight_decay=weight_decay))
    test_fn = jax.jit(eval_step)
    history = []
    train_iter = itertools.islice(batches(train_ds, batch_size, np.random.default_rng(seed)), num_steps)
    for step, batch in enumerate(train_iter, 1):
        state, metrics = step_fn(state, batch)
        history.append(float(metrics["loss"]))
        if step % 50 == 0 or step == num_steps:
            seen, unseen = (f"{m['accuracy']:.1%}" for m in (metrics, test_fn(state, test_ds)))
            rate = metrics["learning_rate"]
            print(f"step {step:3d}  rate {rate:.3f}  loss {history[-1]:.4f}  accuracy {seen}  on the unseen {unseen}")
    return state, history


if __name__ == "__main__":
    train_and_evaluate()
