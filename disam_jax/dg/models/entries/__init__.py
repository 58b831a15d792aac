"""One file for each network of the benchmark: what it is called and what the benchmark must know of it.

A file has a mapping `MODELS` from names to `disam_jax.dg.models.registry.Model`. `disam-jax --help` reads all of these
files, so they import Flax in their functions only.
"""
