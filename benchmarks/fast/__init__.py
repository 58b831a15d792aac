"""DISAM near the price of a plain step: which part of the examples, from which step on, how far. See PROTOCOL.md."""
