"""How many runs a minute a whole sweep has, compiling and the report included.

    python -m benchmarks.whole_sweep

Starts `disam-jax sweep` on the digits in a process of its own, with nothing compiled before, and counts its seconds by
the clock and on all cores: where others use the machine too, the latter say more. Prints a table in Markdown.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGETS = 6


def seconds_of(command, folder):
    """Seconds by the clock, and on all cores, of a command that ends well."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", default=["erm", "sam", "disam"])
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=22)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    runs = len(options.method) * options.candidates * options.seeds * TARGETS
    lines = ["| methods | runs | seconds | seconds on all cores | runs a minute |", "|---|---:|---:|---:|---:|"]
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "disam_jax.dg.cli", "sweep", "--no-compilation-cache", "--out", "out"]
            command += ["--method", *options.method]
            command += ["--candidates", str(options.candidates), "--seeds", str(options.seeds)]
            took, cores = seconds_of(command, folder)
        lines.append(f"| {', '.join(options.method)} | {runs} | {took:.0f} | {cores:.0f} | {60 * runs / took:.0f} |")
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
