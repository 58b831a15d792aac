"""What a method is: how a batch of several domains becomes a gradient, and which hyperparameters that needs."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from disam_jax import DomainLosses
from disam_jax.dg.errors import InputError
from disam_jax.dg.models.network import Params, State

# What "as in DomainBed" means in this package: https://github.com/facebookresearch/DomainBed at this commit.
DOMAINBED_COMMIT = "b93c22a1cfc3b2428398272c1a116c8de1f4139e"
# DomainBed trains for this many steps; its hyperparameters that count steps are meant for it.
DOMAINBED_STEPS = 5000
# Values of a run's hyperparameters by name, float32 [] each.
HParams = Mapping[str, jax.Array]
# Pytree of arrays that a method carries from step to step. Structure, shapes and dtypes never change.
MethodState = Any


class MethodError(InputError):
    """A method broke its contract. The message says how; whoever knows the method's name puts it in front."""


class Batch(NamedTuple):
    """The examples of one step: n of each of M source domains; or, merged, B of all of them.

    Attributes:
        x: Inputs [M, n, ...], augmented: uint8 images, or float32. Merged, [B, ...].
        y: Labels, int32 [M, n]. Merged, [B].
        key: Random key of this step for the method alone, as for Mixup. Batches, augmentation and dropout have others.
        step: Number of the step, counted from 0, or from `--begin` for a method that perturbs, int32 []. Runs that
            train side by side share it, so that a `jax.lax.cond` on it computes one of its branches.
        domain: Domain 0..M - 1 of each example of a merged batch, int32 [B]; None where examples are grouped.
    """

    x: jax.Array
    y: jax.Array
    key: jax.Array
    step: jax.Array | int = 0
    domain: jax.Array | None = None


class Outputs(NamedTuple):
    """What the network computes from a batch.

    Attributes:
        losses: Mean cross-entropy of each domain, float32 [M].
        logits: float32 [M, n, C], C classes. Of a merged batch, [B, C].
        features: Inputs of the last layer, float32 [M, n, F]. Of a merged batch, [B, F].
        state: Running statistics of the network after this batch.
        head: Last layer with the parameters of this pass: features [M, n, F] -> logits [M, n, C]. None for a network
            that cannot be split there, see `Network.head`.
        weights: Number of examples of each domain in a merged batch, float32 [M], 0 for an absent domain, whose loss is
            0; None where each has as many.
    """

    losses: jax.Array
    logits: jax.Array
    features: jax.Array
    state: State
    head: Callable[[jax.Array], jax.Array] | None = None
    weights: jax.Array | None = None


def mean_of_domains(losses: jax.Array, weights: jax.typing.ArrayLike | None) -> jax.Array:
    """The mean of domain losses: of a merged batch, with domain losses, that over its examples.

    Args:
        losses: float [M].
        weights: As in `Outputs`.

    Returns:
        ``sum_i n_i L_i / sum_i n_i``, or ``sum_i L_i / M`` without weights; float [].

    Example:
        >>> losses = jnp.array([1.0, 4.0])
        >>> float(mean_of_domains(losses, None)), float(mean_of_domains(losses, jnp.array([3.0, 1.0])))
        (2.5, 1.75)
    """
    if weights is None:
        return losses.mean()
    counts = jnp.asarray(weights, losses.dtype)
    return jnp.where(counts > 0, counts * losses, 0.0).sum() / counts.sum()


class Start(NamedTuple):
    """What a method knows of a run before its first step, see `Method.init`.

    Attributes:
        num_sources: Number M of source domains.
        params: Parameters from which the run starts, pretrained ones if there are any.
        num_features: Number F of inputs of the last layer.
        num_classes: Number C of classes.
        key: Random key for the method alone.
    """

    num_sources: int
    params: Params
    num_features: int = 0
    num_classes: int = 0
    key: Any = None


class Forward(Protocol):
    """A forward pass in training mode. What a method does not use of its outputs costs nothing under jit."""

    def __call__(self, params: Params, x: jax.Array | None = None, y: jax.Array | None = None) -> Outputs:
        """Applies the network.

        Args:
            params: Parameters of the network.
            x: Inputs [M', n', ...]; those of the batch by default.
            y: Labels of these, int32 [M', n']; those of the batch by default.

        Returns:
            Outputs for them.
        """
        ...


# (params, batch, forward, hparams, state) -> (gradient, state of the network, state of the method)
Gradient = Callable[[Params, Batch, Forward, HParams, MethodState], tuple[Params, State, MethodState]]
# (outputs, batch, hparams, state) -> (scalar or domain losses [M], state of the method)
Objective = Callable[[Outputs, Batch, HParams, MethodState], tuple[jax.Array, MethodState]]
# hyperparameters -> step before which the optimizer's state is made new, float []
Restart = Callable[[HParams], jax.Array]
# (params, batch, forward, hparams, state) -> (scalar or domain losses [M], (state of the network, state of the method))
Value = jax.Array | DomainLosses
Loss = Callable[[Params, Batch, Forward, HParams, MethodState], tuple[Value, tuple[State, MethodState]]]
# hyperparameters -> further options of `disam_jax.value_and_grad`
Ascent = Callable[[HParams], Mapping[str, Any]]


class Hyperparameter(NamedTuple):
    """A number that a method depends on, and where random search looks for it.

    Attributes:
        default: Default value, unless the data set's defaults have one of this name.
        low: 10 to this power is the lower end of the log-uniform range of random search.
        high: 10 to this power is its upper end.
        times: Factor on the data set's default, for a method that measures the value in another unit.
        relative: Whether the range holds factors on the default instead of values.
        of_steps: Whether the value counts optimizer steps out of the 5000 of DomainBed. It is scaled to the steps of
            a run.
        uniform: Whether the range is uniform from `low` to `high` themselves, in place of log-uniform.
        choices: Values from which random search draws in place of a range.
    """

    default: float
    low: float
    high: float
    times: float = 1.0
    relative: bool = False
    of_steps: bool = False
    uniform: bool = False
    choices: tuple[float, ...] = ()

    def value(self, defaults: Mapping[str, float], name: str) -> float:
        """The default on a data set."""
        return self._scaled(defaults[name] * self.times if name in defaults else self.default, defaults)

    def _scaled(self, value: float, defaults: Mapping[str, float]) -> float:
        return value * defaults["steps"] / DOMAINBED_STEPS if self.of_steps else value

    def draw(self, uniform: float, defaults: Mapping[str, float], name: str) -> float:
        """A value from the range of random search.

        Example:
            >>> Hyperparameter(1.0, low=-1.0, high=1.0).draw(0.5, {}, "gamma")
            1.0
        """
        factor = self._between(uniform)
        value = self.value(defaults, name)
        # A control whose lam is negative keeps its sign.
        return value * factor if self.relative else float(np.copysign(self._scaled(factor, defaults), value))

    def _between(self, uniform: float) -> float:
        if self.choices:
            return self.choices[int(uniform * len(self.choices))]
        value = self.low + uniform * (self.high - self.low)
        return value if self.uniform else 10.0**value

    @property
    def range_text(self) -> str:
        """The range of random search, in words.

        Example:
            >>> Hyperparameter(1.0, low=-1.0, high=1.0).range_text
            '10^U(-1, 1)'
        """
        if self.choices:
            return "one of " + ", ".join(f"{value:g}" for value in self.choices)
        between = f"U({self.low:g}, {self.high:g})"
        drawn = between if self.uniform else f"10^{between}"
        return f"{drawn} times the default" if self.relative else drawn


def choice(default: float, *values: float) -> Hyperparameter:
    """A hyperparameter that random search draws from a few values.

    Example:
        >>> [choice(0.5, 0.05, 0.1, 0.5).draw(uniform, {}, "meta_lr") for uniform in (0.0, 0.5, 0.9)]
        [0.05, 0.1, 0.5]
    """
    return Hyperparameter(default, min(values), max(values), choices=values)


def no_options(hparams: HParams) -> Mapping[str, Any]:
    """No further options: the perturbation of SAM, or of DISAM with the variance penalty.

    Example:
        >>> no_options({"rho": jnp.float32(0.1)})
        {}
    """
    del hparams
    return {}


def no_state(num_sources: int) -> MethodState:
    """The state of a method that carries nothing from step to step.

    Example:
        >>> no_state(num_sources=3)
        ()
    """
    del num_sources
    return ()


def restart_at(*names: str) -> Restart:
    """For `Method.restart`: the step at which the last of some hyperparameters that count steps is reached.

    Example:
        >>> float(restart_at("anneal")({"anneal": jnp.float32(4.5)}))
        5.0
    """
    return lambda hparams: functools.reduce(jnp.maximum, [jnp.ceil(hparams[name]) for name in names])


def count_steps(num_sources: int) -> jax.Array:
    """The initial state of a method that counts its steps, int32 [].

    Example:
        >>> int(count_steps(num_sources=3))
        0
    """
    del num_sources
    return jnp.zeros((), jnp.int32)


@dataclass(frozen=True, eq=False)
class Method:
    """A way to compute the gradient of a step. Equal to itself alone, so that it can be hashed as it is.

    Attributes:
        gradient: `(params, batch, forward, hparams, state) -> (gradient, state of the network, state)`. The gradient
            has the structure, shapes and dtypes of the parameters. `from_objective` and `sharpness_aware` make one.
        hparams: Hyperparameters beside those of the optimizer.
        sgd: Those of `hparams` that have another default and another range with stochastic gradient descent.
        base: Name of the method with which this one is compared first; None for the baseline of all.
        state: Number of source domains -> initial state, a pytree of arrays.
        ascent: Hyperparameters -> options of `disam_jax.value_and_grad` that measure the losses at w + e, where one e
            is for all domains.
        restart: Hyperparameters -> step, counted from 0, before which the optimizer's state is made new, as at the end
            of an annealing; None: never. The schedule of the learning rate goes on.
        control: Whether this is a control experiment, which `--method all` leaves out.
        tuned: Whether its hyperparameters are searched.
        min_per_domain: Smallest number of examples of each domain in a batch, see `--per-domain`.
        merged: Whether it takes merged batches, see `--batches`: it uses the domain losses of `forward(params)` alone.
        note: One line for the list of methods.
        min_sources: Smallest number of source domains: 2 for a method that compares them.
        init: `Start` -> initial state, in place of `state`: for a method that owns parameters, or remembers the first
            ones of the network.
        extra: Whether `--method all` leaves it out, as it does controls.
        sharpness: Which forms the registry makes of it, of "SAM" and "DISAM": the gradient at their w + e, for a method
            from `from_objective` or `from_loss`. DISAM needs domain losses.
        formula: What is minimised, or what the gradient is; for the documentation.
        source: Paper from which it is.
        needs: What it needs beyond a batch with labels, of `NEEDS`.
        cost: FLOPs of a step of a large network, in steps of ERM.
    """

    gradient: Gradient
    hparams: Mapping[str, Hyperparameter] = field(default_factory=dict)
    sgd: Mapping[str, Hyperparameter] = field(default_factory=dict, kw_only=True)
    base: str | None = "ERM"
    state: Callable[[int], MethodState] = no_state
    ascent: Ascent = no_options
    restart: Restart | None = None
    control: bool = False
    tuned: bool = True
    min_per_domain: int = 1
    merged: bool = False
    note: str = ""
    min_sources: int = 1
    init: Callable[[Start], MethodState] | None = None
    extra: bool = False
    sharpness: tuple[str, ...] = ()
    formula: str = ""
    source: str = ""
    needs: tuple[str, ...] = ()
    cost: float = 1.0

    def hparams_with(self, optimizer: str) -> Mapping[str, Hyperparameter]:
        """The hyperparameters with an optimizer, which decides on some defaults and ranges.

        Example:
            >>> weight = {"beta": Hyperparameter(10.0, -1.0, 5.0)}
            >>> method = Method(no_update, weight, sgd={"beta": Hyperparameter(1.0, -2.0, 0.0)})
            >>> [method.hparams_with(name)["beta"].default for name in ("adam", "sgd")]
            [10.0, 1.0]
        """
        return {**self.hparams, **self.sgd} if optimizer == "sgd" else self.hparams


# What a method can need, in the words of the documentation.
NEEDS = ("domain labels", "second player", "pretrained weights", "last layer")


def initial_state(method: Method, start: Callable[[], Start], num_sources: int) -> MethodState:
    """The state of a method before the first step of a run.

    Args:
        method: Method.
        start: Makes what the method may know of the run; called if the method has an `init`.
        num_sources: Number of source domains.

    Returns:
        Pytree of arrays.

    Example:
        >>> int(initial_state(Method(no_update, state=count_steps), start=None, num_sources=3))
        0
    """
    return method.state(num_sources) if method.init is None else method.init(start())


@dataclass(frozen=True, eq=False)
class GradientOfLoss:
    """The gradient at w of a loss, as `from_loss` makes it; the loss can be had again.

    Attributes:
        loss: `(params, batch, forward, hparams, state) -> (value, (state of the network, state))`.
    """

    loss: Loss

    def __call__(
        self, params: Params, batch: Batch, forward: Forward, hparams: HParams, state: MethodState
    ) -> tuple[Params, State, MethodState]:
        """See `Method.gradient`."""

        def mean(params):
            value, states = self.loss(params, batch, forward, hparams, state)
            if isinstance(value, DomainLosses):
                return mean_of_domains(value.values, value.weights), states
            return value.mean() if value.ndim else value, states

        grads, (network_state, new_state) = jax.grad(mean, has_aux=True)(params)
        return grads, network_state, new_state


def from_loss(loss: Loss) -> GradientOfLoss:
    """The gradient at w of a loss that makes its own forward passes.

    Args:
        loss: `(params, batch, forward, hparams, state) -> (value, (state of the network, state))`. The value is a
            scalar, or domain losses [M], whose mean is minimised.

    Returns:
        For `Method.gradient`.

    Example:
        >>> forward = lambda w: Outputs(w * jnp.array([1.0, 3.0]), logits=None, features=None, state={})
        >>> loss = lambda w, batch, forward, hparams, state: (forward(w).losses + w**2, ({}, state))
        >>> gradient, _, _ = from_loss(loss)(jnp.float32(5.0), None, forward, {}, ())
        >>> float(gradient)
        12.0
    """
    return GradientOfLoss(loss)


def loss_of(objective: Objective) -> Loss:
    """The loss of one pass over the batch that an objective sees.

    Example:
        >>> from disam_jax.dg.methods import mean_loss
        >>> forward = lambda w: Outputs(w * jnp.array([1.0, 3.0]), logits=None, features=None, state={})
        >>> value, _ = loss_of(mean_loss)(jnp.float32(5.0), None, forward, {}, ())
        >>> float(value)
        10.0
    """

    def loss(params: Params, batch: Batch, forward: Forward, hparams: HParams, state: MethodState):
        outputs = forward(params)
        value, new_state = checked_objective(objective, outputs, batch, hparams, state)
        if value.ndim and outputs.weights is not None:
            return DomainLosses(value, outputs.weights), (outputs.state, new_state)
        return value, (outputs.state, new_state)

    return loss


def from_objective(objective: Objective) -> GradientOfLoss:
    """The gradient at w of an objective.

    Args:
        objective: `(outputs, batch, hparams, state) -> (value, state)`. The value is a scalar, or domain losses [M],
            whose mean is minimised, see `mean_of_domains`.

    Returns:
        For `Method.gradient`.

    Example:
        >>> from disam_jax.dg.methods import mean_loss
        >>> forward = lambda w: Outputs(w * jnp.array([1.0, 3.0]), logits=None, features=None, state={})
        >>> gradient, _, _ = from_objective(mean_loss)(jnp.float32(5.0), None, forward, {}, ())
        >>> float(gradient)
        2.0
    """
    return from_loss(loss_of(objective))


def no_update(
    params: Params, batch: Batch, forward: Forward, hparams: HParams, state: MethodState
) -> tuple[Params, State, MethodState]:
    """A gradient of zeros, for a network that is measured and not trained.

    Example:
        >>> forward = lambda w: Outputs(w * jnp.array([1.0, 3.0]), logits=None, features=None, state={})
        >>> gradient, _, _ = no_update(jnp.float32(2.0), None, forward, {}, ())
        >>> float(gradient)
        0.0
    """
    del batch, hparams
    return jax.tree.map(jnp.zeros_like, params), forward(params).state, state


# Not among `METHODS`, because it has a network of its own: see `peft.finetuning`.
ZERO_SHOT = "Zero-shot"
zero_shot = Method(no_update, tuned=False, merged=True, note="CLIP without training, classes told apart by sentences")


# The contract, checked while a step is traced.


def head_of(outputs: Outputs) -> Callable[[jax.Array], jax.Array]:
    """The last layer of the network, for a method that changes what it sees.

    Raises:
        MethodError: If the network has none that can be had.

    Example:
        >>> outputs = Outputs(losses=None, logits=None, features=None, state={}, head=lambda features: 2 * features)
        >>> head_of(outputs)(3)
        6
    """
    if outputs.head is None:
        raise MethodError(
            "the method applies the last layer by itself, and this network has no head: give its module a method "
            "classify(features) -> logits, or Network(head=...)"
        )
    return outputs.head


def checked_objective(
    objective: Objective, outputs: Outputs, batch: Batch, hparams: HParams, state: MethodState
) -> tuple[jax.Array, MethodState]:
    """The value and the new state of an objective.

    Raises:
        MethodError: If it does not return a pair whose value is a scalar or domain losses [M].
    """
    found = objective(outputs, batch, hparams, state)
    if not isinstance(found, tuple) or len(found) != 2:
        raise MethodError(f"the objective must return (value, state), got {_brief(found)}: return value, state")
    value, new_state = found
    if not isinstance(value, jax.Array) or value.shape not in ((), outputs.losses.shape):
        raise MethodError(
            f"the value of the objective must be a scalar or domain losses {list(outputs.losses.shape)}, got "
            f"{_brief(value)}: take a mean over the examples"
        )
    return value, new_state


def method_gradient(
    method: Method, params: Params, batch: Batch, forward: Forward, hparams: HParams, state: MethodState
) -> tuple[Params, State, MethodState]:
    """The gradient of a method on a batch, with its contract checked while it is traced.

    Args:
        method: Method that computes the gradient.
        params: Parameters of the network.
        batch: Batch of the step.
        forward: Forward pass of the network on the batch.
        hparams: Hyperparameters of the run.
        state: State of the method before the step.

    Returns:
        Gradient, state of the network, new state of the method.

    Raises:
        MethodError: If the gradient differs from the parameters, or the new state from the state, in structure,
            shapes or dtypes.
    """
    found = method.gradient(params, batch, forward, hparams, state)
    if not isinstance(found, tuple) or len(found) != 3:
        raise MethodError(
            f"a method must return (gradient, state of the network, state of the method), got {_brief(found)}: return "
            "gradient, outputs.state, state"
        )
    gradient, network_state, new_state = found
    _check_same(gradient, params, "the gradient", "the parameters", "return jax.grad(...)(params)")
    wanted = "return what Method.state or Method.init starts with, or a pytree like it"
    _check_same(new_state, state, "the new state", "the state", wanted)
    return gradient, network_state, new_state


def _check_same(found: Any, wanted: Any, what: str, as_what: str, hint: str) -> None:
    structure, wanted_structure = jax.tree.structure(found), jax.tree.structure(wanted)
    if structure != wanted_structure:
        raise MethodError(
            f"{what} must have the structure of {as_what}, {_short(wanted_structure)}, got {_short(structure)}: {hint}"
        )
    for (path, leaf), like in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        like = jnp.asarray(like)
        if jnp.shape(leaf) != like.shape or jnp.asarray(leaf).dtype != like.dtype:
            place = jax.tree_util.keystr(path)
            raise MethodError(
                f"{what} must have the shapes and dtypes of {as_what}: {like.dtype}{list(like.shape)}"
                f"{' at ' + place if place else ''}, got {_brief(leaf)}: {hint}"
            )


def _brief(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    return f"{type(value).__name__}"


def _short(structure: Any) -> str:
    text = str(structure)
    return text if len(text) <= 200 else f"{text[:197]}..."
