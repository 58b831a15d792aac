"""How much of the speed of the bare compiled network is left where a saved model predicts.

    python -m benchmarks.predict_speed

Bare is a loop over batches that lie in memory, which calls the compiled network and fetches the logits at the end.
Beside it stand the batches of `disam-jax predict` without and with the CSV file that it writes. The three take turns,
so that a busy machine slows all of them; a share is the median of those of the rounds. Prints a table in Markdown.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from disam_jax.dg import load_model
from disam_jax.dg.data.domains import Domains, join_domains
from disam_jax.dg.report.environment import machine, versions
from disam_jax.dg.saving.examples import Examples
from disam_jax.dg.saving.predict import batch_size, by_batches, write_predictions
from disam_jax.dg.testing import save_untrained

# Name of the network, shape of an example, number of examples, options.
CASES = {
    "mlp": ((64,), 100_000, {}),
    "conv": ((64, 64, 3), 1024, {"norm": "batch"}),
    "resnet18": ((64, 64, 3), 256, {}),
}
CLASSES = tuple("abcdefg")


def random_inputs(shape, number):
    """Images for three axes, else numbers."""
    rng = np.random.default_rng(0)
    if len(shape) == 3:
        return rng.integers(256, size=(number, *shape), dtype=np.uint8)
    return rng.normal(size=(number, *shape)).astype(np.float32)


def saved_model(name, shape, options, folder):
    """A model of the network, in files and loaded again."""
    inputs = [random_inputs(shape, len(CLASSES)) for _ in range(2)]
    data = join_domains("random", inputs, [np.arange(len(CLASSES))] * 2, ["one", "other"], CLASSES)
    return load_model(save_untrained(folder, data, name, **options))


def bare(model, inputs, batch):
    """Calls the network batch by batch, and waits for all logits."""
    found = [model(inputs[first : first + batch]) for first in range(0, len(inputs), batch)]
    return np.concatenate(jax.device_get(found))


def predicted(model, examples, batch):
    """What `predict` makes of the examples, without a file."""
    return np.concatenate([each for (each,) in by_batches(lambda block: (model(block.x),), examples, batch)])


def measure(name, batch, repeats, folder):
    """The batch, and examples per second of the three ways, one number for each round."""
    shape, number, options = CASES[name]
    model = saved_model(name, shape, options, folder)
    batch = min(number, batch or batch_size(model))
    number -= number % batch
    inputs = random_inputs(shape, number)
    zeros = np.zeros(number, np.int32)
    source = Domains("random", inputs, zeros, zeros, ("all",), CLASSES)
    examples = Examples("random", source, zeros, tuple(map(str, range(number))), shape[0])
    ways = {
        "bare": lambda: bare(model, inputs, batch),
        "batches": lambda: predicted(model, examples, batch),
        "with the file": lambda: write_predictions(model, examples, Path(folder, "p.csv"), batch),
    }
    for way in ways.values():
        way()
    rates = {way: [] for way in ways}
    for _ in range(repeats):
        for way, run in ways.items():
            began = time.perf_counter()
            run()
            rates[way].append(number / (time.perf_counter() - began))
    return batch, {way: np.array(found) for way, found in rates.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--batch", type=int, help="by default that of predict")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    where, used = machine(), versions()
    load = os.getloadavg()[0]
    lines = [
        "# The speed of predicting",
        "",
        f"Examples per second, median (least, most) of {options.repeats}; {where['cpu']}, {where['cores']} cores, "
        f"{where['device']}, jax {used['jax']}, flax {used['flax']}; load {load:.0f} before.",
        "",
        "| network | batch | bare | batches of predict | of bare | with the CSV file | of bare |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(lines))
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            batch, found = measure(name, options.batch, options.repeats, folder)
        cells = [f"{np.median(each):,.0f} ({each.min():,.0f}, {each.max():,.0f})" for each in found.values()]
        shares = [f"{100 * np.median(found[way] / found['bare']):.0f} %" for way in ("batches", "with the file")]
        lines.append(f"| {name} | {batch} | {cells[0]} | {cells[1]} | {shares[0]} | {cells[2]} | {shares[1]} |")
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
