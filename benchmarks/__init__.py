"""How fast a step is, against a plain one: `python -m benchmarks`.

workloads   networks, batches and sizes
losses      what a step computes on a batch: the domain losses in each form
steps       the sides that are compared: whole optimizer steps by name
counts      what XLA counts of a compiled step: FLOPs, bytes, memory
hlo         what the optimised program says: passes over the parameters, communicated bytes
clock       seconds per step, side by side and in turn
rates       what the machine can do: its matrix product, its memory
speed       every side on every network
growth      the cost as domains and parameters grow
trace       how long a step takes to trace, lower and compile
devices     the bytes that devices exchange
torch_peer  the same step in PyTorch
baseline    the stored counts that a test holds on to
report      Markdown from the stored results

`sweep_speed.py` and the other scripts of their own name stand beside it.
"""
