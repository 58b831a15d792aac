"""A small Linen network on digits under shifts, in the shape of Flax's MNIST example.

It trains on five ways to draw a digit and is tested on a sixth that it has never seen. The file exists twice, in
`examples/` with DISAM and in `examples/plain/` without; `examples/README.md` shows the difference.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

import disam_jax
from disam_jax.dg.data.digits import load_digits


class CNN(nn.Module):
    """Two convolutions and a hidden layer."""

    @nn.compact
    def __call__(self, x):
        """Class scores [N, 10] of images [N, 8, 8, 1]."""
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(10)(x)


@jax.jit
def apply_model(state, images, labels, domains):
    """The gradient, the loss and the accuracy of a batch."""

    def loss_fn(params):
        logits = state.apply_fn({"params": params}, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return disam_jax.mean_by_domain(losses, domains, num_domains=5), logits

    grad_fn = disam_jax.value_and_grad(loss_fn, rho=0.1, lam=0.4, penalty="std", has_aux=True)
    (loss, logits), grads = grad_fn(state.params)
    return grads, loss, jnp.mean(jnp.argmax(logits, -1) == labels)


@jax.jit
def update_model(state, grads):
    """One step of the optimizer."""
    return state.apply_gradients(grads=grads)


@jax.jit
def evaluate(state, images, labels):
    """The accuracy on a data set."""
    return jnp.mean(jnp.argmax(state.apply_fn({"params": state.params}, images), -1) == labels)


def train_epoch(state, train_ds, batch_size, rng):
    """One pass over the training set in random order; the state, the mean loss and the mean accuracy."""
    steps = len(train_ds["label"]) // batch_size
    epoch_loss, epoch_accuracy = [], []
    for perm in rng.permutation(len(train_ds["label"]))[: steps * batch_size].reshape(steps, batch_size):
        images = train_ds["image"][perm]
        labels = train_ds["label"][perm]
        domains = train_ds["domain"][perm]
        grads, loss, accuracy = apply_model(state, images, labels, domains)
        state = update_model(state, grads)
        epoch_loss.append(loss)
        epoch_accuracy.append(accuracy)
    return state, float(np.mean(epoch_loss)), float(np.mean(epoch_accuracy))


def get_datasets(held_out="noise"):
    """The digits of five shifts for training and those of the sixth for testing."""
    digits = load_digits()
    last = digits.domain_names.index(held_out)
    # Sources are numbered 0..4 whichever domain is held out.
    domain = digits.domain_ids - (digits.domain_ids > last)
    columns = {"image": digits.inputs.reshape(-1, 8, 8, 1), "label": digits.labels, "domain": domain}
    seen = digits.domain_ids != last
    return {k: v[seen] for k, v in columns.items()}, {k: v[~seen] for k, v in columns.items()}


def create_train_state(key, learning_rate=0.1, momentum=0.9):
    """The initial weights and the optimizer."""
    cnn = CNN()
    params = cnn.init(key, jnp.ones((1, 8, 8, 1)))["params"]
    return TrainState.create(apply_fn=cnn.apply, params=params, tx=optax.sgd(learning_rate, momentum))


def train_and_evaluate(num_epochs=15, batch_size=80, seed=0):
    """Trains and prints; the final state and the training loss of each epoch."""
    train_ds, test_ds = get_datasets()
    state = create_train_state(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    history = []
    for epoch in range(1, num_epochs + 1):
        state, loss, accuracy = train_epoch(state, train_ds, batch_size, rng)
        unseen = evaluate(state, test_ds["image"], test_ds["label"])
        print(f"epoch {epoch:2d}  loss {loss:.4f}  accuracy {accuracy:.1%}  on the unseen domain {unseen:.1%}")
        history.append(loss)
    return state, history


if __name__ == "__main__":
    train_and_evaluate()
