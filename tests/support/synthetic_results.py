"""Results as of a sweep, of random numbers with a known structure."""

import numpy as np

from disam_jax.dg.data.domains import join_domains
from disam_jax.dg.methods import find_methods
from disam_jax.dg.results import Results, Run
from disam_jax.dg.runners.base import in_order
from disam_jax.dg.runners.kept_logits import Examples, forget, kept_of
from disam_jax.dg.sweep.hparams import candidates_by_seed, random_candidates
from disam_jax.dg.sweep.results_file import open_store
from disam_jax.dg.sweep.run import Plan, make_header
from disam_jax.dg.training.config import TrainConfig
from disam_jax.dg.training.evaluation import Metrics

COMPARE = {
    "ERM": {"flops": 1.0e6},
    "SAM": {"base": "ERM", "flops": 2.0e6},
    "DISAM": {"base": "SAM", "flops": 2.01e6},
}


def make_results(
    methods=COMPARE,
    *,
    domains=("clean", "rotation", "inversion"),
    targets=None,
    seeds=4,
    points=4,
    grid=({"rho": 0.1, "lam": 1.0},),
    accuracy_gain=None,
    spread_factor=None,
    seed=0,
):
    """What seeds share is large, what methods differ in is `accuracy_gain` (fraction) and `spread_factor`.

    `grid` is the hyperparameters of the candidates; ERM has rho 0 and SAM has lam 0 in all of them.
    """
    rng = np.random.default_rng(seed)
    d, targets = len(domains), range(len(domains)) if targets is None else targets
    shared = rng.normal(0.0, 0.02, (seeds, d))
    level = rng.uniform(-1.0, 1.0, d)
    runs, accuracy, losses, perturbed, sharpness = [], [], [], [], []
    progress = np.linspace(0.0, 1.0, points)
    for method in methods:
        gain = (accuracy_gain or {}).get(method, 0.0)
        factor = (spread_factor or {}).get(method, 1.0)
        for target in targets:
            for s in range(seeds):
                for candidate, hparams in enumerate(grid):
                    own = dict(hparams)
                    if method == "ERM":
                        own = {**hparams, **{name: 0.0 for name in ("rho", "lam") if name in hparams}}
                    elif method == "SAM" and "lam" in hparams:
                        own["lam"] = 0.0
                    runs.append(Run(method, target, s, candidate, own))
                    bump = 0.04 - 0.5 * (own.get("rho", 0.1) - 0.1) ** 2 + 0.01 * own.get("lam", 0.0)
                    right = 0.5 + 0.25 * progress[:, None, None] + shared[s] + (gain + bump * (own.get("rho", 0.1) > 0))
                    right = right + rng.normal(0.0, 0.003, (points, 2, d))
                    accuracy.append(np.clip(right, 0.0, 1.0))
                    base = 2.0 * np.exp(-2.0 * progress)[:, None, None] * (1.0 + 0.2 * factor * level)
                    loss = base + rng.uniform(0.0, 0.01, (points, 2, d)) + 0.1 * abs(shared[s])
                    losses.append(loss)
                    perturbed.append(loss[:, 0] + 0.2 + 0.05 * rng.uniform(0.0, 1.0, (points, d)))
                    sharpness.append(0.1 + 0.02 * rng.uniform(0.0, 1.0, d))
    losses = np.stack(losses)
    header = {
        "command": "disam-jax compare",
        "version": "0.1.0",
        "data": {
            "name": "digits",
            "domains": {name: 300 - place for place, name in enumerate(domains)},
            "classes": [str(label) for label in range(10)],
            "fingerprint": "0123",
        },
        "setting": {"steps": 400, "per_domain": 16, "evaluations": points - 1},
        "methods": methods,
    }
    return Results(
        header=header,
        runs=tuple(runs),
        steps=np.linspace(0, 400, points).astype(int),
        accuracy=np.stack(accuracy),
        losses=losses,
        probe_losses=losses[:, :, 0] + 0.01,
        perturbed_losses=np.stack(perturbed),
        sharpness=np.stack(sharpness),
    )


def diverge(results, method, seed, target, point=2):
    """Makes a run diverge, in place."""
    for index, run in enumerate(results.runs):
        if (run.method, run.seed, run.target) == (method, seed, target):
            for losses in (results.losses, results.probe_losses, results.perturbed_losses):
                losses[index, point:] = np.nan
            results.sharpness[index] = np.nan


def make_plan(
    methods=("erm", "sam"),
    *,
    seeds=2,
    domains=("art", "photo", "sketch"),
    targets=None,
    candidates=1,
    steps=4,
    rho=0.1,
    shard=None,
    command="",
    logits=False,
    by_seed=False,
):
    """Header and plan of a sweep over a data set without any sense."""
    data = join_domains("toy", [np.ones((4, 2))] * len(domains), [np.arange(4) % 2] * len(domains), domains, ("x", "y"))
    config, found = TrainConfig(steps=steps, evaluations=2, rho=rho, keep_logits=logits), find_methods(methods)
    seeds = tuple(range(seeds)) if isinstance(seeds, int) else seeds
    drawn = {name: candidates_by_seed(method, config, candidates, seeds) for name, method in found.items()}
    plan = Plan(
        {
            name: drawn[name].named if by_seed else random_candidates(method, config, candidates, 0)
            for name, method in found.items()
        },
        tuple(range(len(domains))) if targets is None else targets,
        seeds,
        shard,
        {name: each.by_seed for name, each in drawn.items()} if by_seed else {},
    )
    return make_header(data, config, found, plan, [], command), plan


def write_results(out, *, at_once=3, seed=0, leave=0, by_run=False, select="validation", **options):
    """The results file of such a sweep, of random numbers; the last `leave` chunks are not there yet.

    With `by_run`, the numbers of a run are the same in whatever chunk it is.
    """
    header, plan = make_plan(**options)
    rng, points, d = np.random.default_rng(seed), len(header["steps"]), len(header["data"]["domains"])
    chunks = [
        (name, number, chunk)
        for name in plan.candidates
        for number, chunk in enumerate(in_order(plan.runs_of(name), at_once))
    ]
    with open_store(out, header, select=select) as store:
        for name, number, chunk in chunks[: len(chunks) - leave]:
            if number == 0:
                store.program(name, {"runs_at_once": at_once, "flops": 1.0e6})
            size = len(chunk)
            measured = {
                "accuracy": rng.uniform(0.0, 1.0, (size, points, 2, d)),
                "losses": rng.uniform(0.0, 2.0, (size, points, 2, d)),
                "probe_losses": rng.uniform(0.0, 2.0, (size, points, d)),
                "perturbed_losses": rng.uniform(0.0, 2.0, (size, points, d)),
                "sharpness": rng.uniform(0.0, 1.0, (size, d)),
            }
            if by_run:
                for quantity, values in measured.items():
                    for place, run in enumerate(chunk):
                        key = [len(run.method), run.target, run.seed, run.candidate, len(quantity)]
                        values[place] = np.random.default_rng(key).uniform(0.0, 1.0, values[place].shape)
            measured["perturbed_losses"][np.arange(size), :, [run.target for run in chunk]] = np.nan
            if options.get("logits"):
                measured["logits"] = [random_logits(run, place, measured) for place, run in enumerate(chunk)]
            store.chunk(name, chunk, measured)
    return header, plan


EXAMPLES = Examples(np.arange(4) % 2, np.array([False, False, True, False]))


def random_logits(run, place, measured):
    """Logits of a run of `make_plan`, as a runner keeps them; the accuracy on its target is made to be theirs."""
    points = len(measured["losses"][place])
    rng = np.random.default_rng([len(run.method), run.target, run.seed, run.candidate])
    logits = np.round(rng.normal(0.0, 2.0, (points, 4, 2)), 1)
    logits = (logits - logits.max(-1, keepdims=True)).astype(np.float16)
    right = logits.argmax(-1) == EXAMPLES.labels
    for part, members in ((0, ~EXAMPLES.validation), (1, EXAMPLES.validation)):
        measured["accuracy"][place, :, part, run.target] = right[:, members].mean(-1)
    of_points = [
        Metrics(
            measured["accuracy"][[place], p], measured["losses"][[place], p], None, None, None, {}, {"0": logits[p]}
        )
        for p in range(points)
    ]
    forget(of_points, [run])
    return kept_of(of_points, 0, run, EXAMPLES)
