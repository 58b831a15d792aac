"""One file for each way of fine-tuning: what it is called and what the benchmark must know of it.

A file has a mapping `FINETUNING` from names to `disam_jax.dg.peft.registry.FineTuning`. `disam-jax --help` reads all of
these files, so they import Flax in their functions only.
"""
