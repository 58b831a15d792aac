"""How much of the time of many workers goes into training: the rest is what the engine takes to hand out chunks.

    python -m benchmarks.cluster_efficiency

A chunk sleeps, so that more workers can be had than there are cores. What trains real sweeps hands it out, and its
result, of the size of a real one, is written down. The efficiency is the time that the chunks slept, all together, over
the time that all workers had from the first chunk to the last. Prints a table in Markdown.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from disam_jax.dg.sweep.cluster import finished, local_cluster


def sleep_chunk(seconds, runs):
    """A chunk that takes as long, and returns as much, as one that trains."""
    time.sleep(seconds)
    return {"losses": np.zeros((runs, 21, 2, 6)), "accuracy": np.zeros((runs, 21, 2, 6))}, seconds


def efficiency(client, workers, rounds, seconds, runs):
    """Share of the workers' time in which chunks slept."""
    tasks = [(seconds, runs)] * (workers * rounds)
    # Every worker imports what it needs first.
    client.run(sleep_chunk, 0.0, 1)
    began = time.perf_counter()
    with tempfile.NamedTemporaryFile("w") as file:
        for number, (measured, took) in finished(client, sleep_chunk, tasks, print):
            file.write(json.dumps([number, took, measured["losses"].tolist()]) + "\n")
            file.flush()
    return workers * rounds * seconds / (workers * (time.perf_counter() - began))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 4, 16, 32])
    parser.add_argument("--seconds", type=float, default=5.0, help="of a chunk")
    parser.add_argument("--rounds", type=int, default=6, help="chunks of each worker")
    parser.add_argument("--runs", type=int, default=16, help="in a chunk")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    lines = [f"| workers | chunks of {options.seconds:g} s | efficiency, median (least, most) |", "|---:|---:|---:|"]
    print("\n".join(lines), flush=True)
    for workers in options.workers:
        with local_cluster([{}] * workers) as client:
            found = sorted(
                efficiency(client, workers, options.rounds, options.seconds, options.runs)
                for _ in range(options.repeats)
            )
        median, least, most = (f"{100 * each:.1f} %" for each in (found[len(found) // 2], found[0], found[-1]))
        lines.append(f"| {workers} | {workers * options.rounds} | {median} ({least}, {most}) |")
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
