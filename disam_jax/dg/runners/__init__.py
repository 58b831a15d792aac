"""Runners: what trains and measures the runs of a sweep.

Four words say how the work is dealt. A *chunk* is the runs that go through one program side by side. A *segment* is the
optimizer steps between two measurements. A *block* is the examples that are evaluated at once. A *stack* is the
batches that a runner puts on the device together when images stay in their files.
"""
