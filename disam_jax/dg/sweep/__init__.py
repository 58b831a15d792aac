"""Sweeps: which runs are trained, what is stored of them, and which one is reported."""
