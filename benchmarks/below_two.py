"""What a DISAM step that costs less than two plain ones does to accuracy and to the domains' losses.

    python benchmarks/below_two.py --data digits
    python benchmarks/below_two.py --data PATH/TO/PACS96

Trains ERM, SAM, DISAM and the cheaper ways (`refresh_every`, an ascent on a part of each domain's examples, DISAM for
a part alone, a late beginning) by leave-one-domain-out from the same weights on the same batches, and writes their
differences to full DISAM, paired by seed, and all runs. The costs are those of one whole step as a user jits it: XLA's
own count, and the time in turn with a plain step in one process. Writes below_two/DATA.md, DATA_runs.csv and DATA.json.
A sweep that was interrupted goes on where it stopped, and one that is whole is only reported again.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import disam_jax
from disam_jax.dg.cli.progress import progress
from disam_jax.dg.data.load import open_data
from disam_jax.dg.methods import METHODS, RHO, Hyperparameter, Method, count_steps
from disam_jax.dg.models.network import Network, Output
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.report.environment import machine, versions
from disam_jax.dg.report.scores import score
from disam_jax.dg.report.statistics import estimate, paired
from disam_jax.dg.report.write import runs_csv
from disam_jax.dg.sweep import hparams as search
from disam_jax.dg.sweep.model_selection import select
from disam_jax.dg.sweep.run import Plan, run_sweep
from disam_jax.dg.training.config import default_config


@dataclasses.dataclass(frozen=True)
class Way:
    """How DISAM is had for less.

    Attributes:
        fraction: the part of the examples that decides the perturbation.
        refresh_every: after how many steps it is computed again.
        longer: rho, over DISAM's.
        alone: whether the perturbed pass is of the part only, and the rest takes one pass at w.
        begin: the part of the training that is plain before DISAM begins.
    """

    fraction: float = 1.0
    refresh_every: int = 1
    longer: float = 1.0
    alone: bool = False
    begin: float = 0.0


WAYS = {
    "every 2 steps": Way(1.0, 2),
    "every 5 steps": Way(1.0, 5),
    "every 10 steps": Way(1.0, 10),
    "1/2 of the examples": Way(0.5),
    "1/4 of the examples": Way(0.25),
    "1/8 of the examples": Way(0.125),
    "1/2, every 2 steps": Way(0.5, 2),
    "1/4, every 2 steps": Way(0.25, 2),
    "1/4, every 5 steps": Way(0.25, 5),
    # A direction that fewer examples or an earlier step gave climbs the loss of this batch less: more of it, then?
    "every 2 steps, rho x 1.5": Way(1.0, 2, 1.5),
    "1/4 of the examples, rho x 1.5": Way(0.25, 1, 1.5),
    "1/4 of the examples, rho x 2": Way(0.25, 1, 2.0),
    "1/8 of the examples, rho x 2": Way(0.125, 1, 2.0),
    # Only a part of the gradient feels the perturbation then: more of it, too.
    "1/4 perturbed": Way(0.25, alone=True),
    "1/4 perturbed, rho x 1.5": Way(0.25, longer=1.5, alone=True),
    "1/4 perturbed, rho x 2": Way(0.25, longer=2.0, alone=True),
    "1/4 perturbed, rho x 3": Way(0.25, longer=3.0, alone=True),
    "1/4 perturbed, rho x 4": Way(0.25, longer=4.0, alone=True),
    "the last 1/2 of the steps": Way(begin=0.5),
    "the last 1/4 of the steps": Way(begin=0.75),
    # As dear as DISAM: what a longer rho does by itself.
    "DISAM, rho x 2": Way(longer=2.0),
}
# Those of the first tables; the others came after them.
FIRST = tuple(name for name, way in WAYS.items() if (way.refresh_every, way.fraction) != (1, 1.0) and not way.alone)
# What is compared, its unit and the digits that are shown.
QUANTITIES = {
    "accuracy": ("accuracy on the unseen domain, points", 2),
    "spread": ("spread of the domain losses at w, nats", 4),
    "worst_loss": ("largest domain loss, nats", 4),
}
LAM = {"lam": Hyperparameter(1.0, -1.0, 1.0)}


# The ways as methods of the benchmark.


@dataclasses.dataclass(frozen=True)
class Part:
    """Parameters for the network of `on_parts`, which then sees a part of each domain's examples, or the rest."""

    params: object
    fraction: float
    rest: bool = False


def on_parts(network: Network, sources: int) -> Network:
    """The network, which for `Part` parameters looks at a part and gives zeros for the examples that it leaves out.

    The subset then has the shapes of the whole batch. Zeros are logits whose cross-entropy is log C whatever the label:
    `loss_of_part` takes them out again.
    """

    def apply(params, state, inputs, key, train):
        if not isinstance(params, Part):
            return network.apply(params, state, inputs, key, train)
        both = disam_jax.split_examples(np.arange(len(inputs)).reshape(sources, -1), params.fraction)
        rows = both[params.rest].ravel()
        seen = network.apply(params.params, state, inputs[rows], key, train)
        whole = lambda values: jnp.zeros((len(inputs), *values.shape[1:]), values.dtype).at[rows].set(values)
        return Output(whole(seen.logits), whole(seen.features), seen.state)

    return Network(network.init, apply)


def loss_of_part(losses: jax.Array, kept: int, examples: int, classes: int) -> jax.Array:
    """The domain losses of the kept examples alone, from those with log C for the examples that were left out."""
    return (losses * examples - (examples - kept) * math.log(classes)) / kept


def cheaper(way: Way, params, examples: int, classes: int, steps: int) -> Method:
    """DISAM at a lower cost, in the words of the library; for networks without state."""
    kept = math.ceil(way.fraction * examples)

    def part_losses(forward, params):
        return loss_of_part(forward(Part(params, way.fraction)).losses, kept, examples, classes)

    def transformed(params, _, forward, hparams, state):
        tx = disam_jax.disam(hparams["rho"], hparams["lam"], refresh_every=way.refresh_every)
        grads, state = tx.update(
            None,
            state,
            params,
            domain_loss_fn=lambda params: forward(params).losses,
            ascent_loss_fn=None if way.fraction == 1 else lambda params: part_losses(forward, params),
        )
        return grads, {}, state

    def alone(params, _, forward, hparams, state):
        def rest_loss(params):
            losses = forward(Part(params, way.fraction, rest=True)).losses
            return loss_of_part(losses, examples - kept, examples, classes).mean()

        share = kept / examples
        part = lambda params: part_losses(forward, params)
        _, perturbed = disam_jax.value_and_grad(part, hparams["rho"], hparams["lam"])(params)
        plain = jax.grad(rest_loss)(params)
        return jax.tree.map(lambda g, h: share * g + (1 - share) * h, perturbed, plain), {}, state

    def late(params, _, forward, hparams, count):
        losses = lambda params: forward(params).losses
        _, grads = disam_jax.value_and_grad(losses, hparams["rho"], hparams["lam"])(params)
        plain = jax.grad(lambda params: losses(params).mean())(params)
        return jax.tree.map(lambda g, h: jnp.where(count < way.begin * steps, h, g), grads, plain), {}, count + 1

    hparams = {"rho": RHO["rho"]._replace(times=way.longer), **LAM}
    note = f"DISAM, {way}"
    if way.alone:
        return Method(alone, hparams, base="DISAM", note=note)
    if way.begin:
        return Method(late, hparams, base="DISAM", state=count_steps, note=note)
    held = disam_jax.disam(refresh_every=way.refresh_every).init(params)
    return Method(transformed, hparams, base="DISAM", state=lambda _: held, note=note)


# What a step costs.


def step_of(network: Network, config, way: Way | None):
    """A whole training step with AdamW, as a user writes it; None is the plain one."""

    def domain_losses(params, batch):
        inputs, labels = batch
        m, n = labels.shape
        output = network.apply(params, {}, inputs.reshape(m * n, *inputs.shape[2:]), jax.random.key(0), True)
        losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, labels.reshape(-1))
        return losses.reshape(m, n).mean(1)

    def ascent_losses(params, batch):
        return domain_losses(params, disam_jax.ascent_subset(batch, way.fraction))

    if way is None or way.alone:
        tx = optax.adamw(1e-3)
    else:
        tx = optax.chain(
            disam_jax.disam(config.rho * way.longer, 1.0, refresh_every=way.refresh_every),
            optax.adamw(1e-3),
        )

    def step(params, state, batch):
        if way is None:
            grads = jax.grad(lambda params: domain_losses(params, batch).mean())(params)
            updates, state = tx.update(grads, state, params)
        elif way.alone:
            gradient = disam_jax.subset_value_and_grad(domain_losses, config.rho, 1.0, fraction=way.fraction)
            updates, state = tx.update(gradient(params, batch)[1], state, params)
        else:
            updates, state = tx.update(
                None,
                state,
                params,
                domain_loss_fn=lambda params: domain_losses(params, batch),
                ascent_loss_fn=None if way.fraction == 1 else lambda params: ascent_losses(params, batch),
            )
        return optax.apply_updates(params, updates), state

    return tx, step


def flops(network: Network, config, way: Way | None, params, batch) -> float:
    """Of one step, as XLA counts them; of a held perturbation, the mean over the steps that share it."""
    tx, step = step_of(network, config, way)
    every = 1 if way is None else way.refresh_every

    def at(count):
        # A count that the compiler knows leaves one branch of the step: the one that is run.
        def step_at(params, state, batch):
            if every > 1:
                state = (state[0]._replace(count=jnp.full_like(state[0].count, count)), *state[1:])
            return step(params, state, batch)

        lowered = jax.jit(step_at).lower(params, tx.init(params), batch)
        return lowered.compile().cost_analysis()["flops"]

    return at(0) if every == 1 else (at(0) + (every - 1) * at(1)) / every


def seconds(ways, network, config, params, batch, rounds: int, steps: int = 10) -> dict[str, list[float]]:
    """Seconds of `steps` steps of each way, in turn in every round, after a round that is not counted."""
    programs = {}
    for name, way in ways.items():
        tx, step = step_of(network, config, way)
        programs[name] = (jax.jit(step, donate_argnums=(0, 1)), tx)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in list(ways) if number % 2 else reversed(list(ways)):
            program, tx = programs[name]
            carry = jax.tree.map(jnp.array, (params, tx.init(params)))
            jax.block_until_ready(carry)
            began = time.perf_counter()
            for _ in range(steps):
                carry = program(*carry, batch)
            jax.block_until_ready(carry)
            taken[name].append(time.perf_counter() - began)
    return {name: each[1:] for name, each in taken.items()}


def costs(data, config, sources: int, per_domain: int, rounds: int) -> tuple[dict[str, dict[str, float]], str]:
    """FLOPs and seconds, over a plain step's, of a multilayer perceptron wide enough for its time to be arithmetic."""
    hidden = 512
    network = make_network("mlp", data.inputs.shape[1:], len(data.class_names), hidden=(hidden, hidden))
    params, _ = network.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(sources, per_domain, *data.inputs.shape[1:])).astype(np.float32)
    batch = (jnp.asarray(inputs), jnp.zeros((sources, per_domain), jnp.int32))
    programs = {name: way for name, way in WAYS.items() if way.longer == 1 and not way.begin}
    ways = {"plain": None, "DISAM": Way()} | programs
    counted = {name: flops(network, config, way, params, batch) for name, way in ways.items()}
    taken = seconds(ways, network, config, params, batch, rounds)
    found = {}
    for name in ways:
        ratios = [own / plain for own, plain in zip(taken[name], taken["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found[name] = {"flops": counted[name] / counted["plain"], "time": middle, "quartiles": [low, high]}
    for name, way in WAYS.items():
        if way.begin:
            mixed = lambda value, begin=way.begin: begin + (1 - begin) * value
            dear = found["DISAM"]
            found[name] = {what: mixed(dear[what]) for what in ("flops", "time")}
            found[name]["quartiles"] = [mixed(value) for value in dear["quartiles"]]
    size = math.prod(data.inputs.shape[1:])
    return found, f"MLP {size}-{hidden}-{hidden}-{len(data.class_names)}, {sources} domains of {per_domain} examples"


# The report.


def table(results, cost, network: str, command: str, seeds: int) -> tuple[str, dict]:
    """The differences to full DISAM as Markdown, and as numbers."""
    scores = score(results, select(results, "last"))
    by_seed = {name: np.asarray(getattr(scores, name)).mean(2) for name in QUANTITIES}  # [K, S]
    names = list(results.methods)
    full = names.index("DISAM")
    config = results.header["setting"]
    lines = [
        f"# Below two, {results.header['data']['name']}",
        "",
        f"    {command}",
        "",
        f"{seeds} seeds x {len(results.targets)} targets, leave one domain out, {config['steps']} steps, "
        f"rho {config['rho']}, lam 1, {config['per_domain']} examples of each source domain; last step.",
        "",
        "| | FLOPs | time | " + " | ".join(text for text, _ in QUANTITIES.values()) + " |",
        "|---|---:|---:|" + "---:|" * len(QUANTITIES),
    ]
    numbers = {}
    for place, name in enumerate(names):
        known = {"ERM": "plain", "SAM": "DISAM"}.get(name, name.partition(", rho")[0])
        cells, numbers[name] = [], {"flops": cost[known]["flops"], "time": cost[known]["time"]}
        for quantity, (_, digits) in QUANTITIES.items():
            own, baseline = by_seed[quantity][place], by_seed[quantity][full]
            found = estimate(own) if place == full else paired(own, baseline)
            sign = "" if place == full else "+"
            diverged = int(np.isnan(np.asarray(getattr(scores, quantity))[place]).sum())
            cells.append(
                f"{diverged} runs diverged" if diverged else f"{found.mean:{sign}.{digits}f} ± {found.error:.{digits}f}"
            )
            numbers[name][quantity] = {"mean": float(found.mean), "error": float(found.error)}
        low, high = cost[known]["quartiles"]
        lines.append(
            f"| {'**DISAM**' if place == full else name} | {cost[known]['flops']:.3f} | {cost[known]['time']:.2f} "
            f"({low:.2f}, {high:.2f}) | " + " | ".join(cells) + " |"
        )
    lines += [
        "",
        "- DISAM: its own values; every other line: its difference to DISAM, paired by seed (the same weights, split "
        "and batches), mean ± standard error over seeds; a seed's value is the mean over its targets.",
        "- accuracy: on the training split of the held-out domain. spread: standard deviation of the source domains' "
        "losses on their training splits, averaged over training. largest domain loss: of these, at the last step.",
        f"- FLOPs and time: of a whole step with AdamW over a plain one's, {network}, batch and parameters of another "
        "size than the runs', whose steps are too small to time. FLOPs as XLA counts them, for a held perturbation the "
        "mean over the steps that share it, for a late beginning that over the training. Time: median over the rounds "
        "of the ratio within a round (quartiles). What differs in rho or lam alone is the same program and is counted "
        "once: SAM as DISAM.",
        f"- {machine()['cpu']}, {machine()['cores']} cores, {machine()['device']}; "
        + ", ".join(f"{name} {version}" for name, version in versions().items())
        + ".",
        "",
    ]
    return "\n".join(lines), numbers


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="digits, or a folder DIR/domain/class of images, as features")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--ways", nargs="+", choices=list(WAYS), default=list(FIRST), metavar="WAY", help=", ".join(WAYS)
    )
    parser.add_argument("--steps", type=int, help="of a run; by default the benchmark's")
    parser.add_argument("--rounds", type=int, default=20, help="of the measurement of time")
    parser.add_argument("--per-domain", type=int, default=64, help="examples of each domain in the measurement of time")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("below_two"), help="where the sweep is kept")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results/below_two"))
    options = parser.parse_args()

    with progress() as (show, *_):
        data = open_data(options.data)
        config = default_config(data)
        config = dataclasses.replace(config, steps=options.steps or config.steps)
        sources, classes = len(data.domain_names) - 1, len(data.class_names)
        plain = make_network(config.model, data.inputs.shape[1:], classes, hidden=(config.hidden,))
        params, state = jax.tree.map(jnp.zeros_like, plain.init(jax.random.key(0)))
        assert not jax.tree.leaves(state)  # `cheaper` hands none on
        methods = {name: METHODS[name] for name in ("ERM", "SAM", "DISAM")}
        chosen = {name: WAYS[name] for name in options.ways}
        methods |= {
            name: cheaper(way, params, config.per_domain, classes, config.steps) for name, way in chosen.items()
        }
        plan = Plan(
            {name: [search.default_hparams(method, config)] for name, method in methods.items()},
            tuple(range(sources + 1)),
            tuple(range(options.first_seed, options.first_seed + options.seeds)),
        )
        results, _ = run_sweep(
            data,
            on_parts(plain, sources),
            config,
            methods,
            plan,
            options.work / f"{data.name}_{options.first_seed}",
            on_progress=show,
        )
    cost, network = costs(data, config, sources, options.per_domain, options.rounds)
    command = f"python benchmarks/below_two.py --data {data.name}"
    name = data.name
    if options.first_seed or options.ways != list(FIRST):
        name += f"_seeds_{options.first_seed}"
        command += f" --first-seed {options.first_seed} --seeds {options.seeds} --ways "
        command += " ".join(f"'{way}'" for way in options.ways)
    page, numbers = table(results, cost, network, command, options.seeds)
    record = {"command": command, "machine": machine(), "versions": versions(), "cost": cost, "differences": numbers}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.md").write_text(page)
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / f"{name}_runs.csv").write_text(runs_csv(results))
    print(page)


if __name__ == "__main__":
    main()
