"""Metrics of all examples of the target together, from logits that were kept.

Each file of this package with a table `LOGIT_METRICS` adds its metrics to the command line, the report and the tables
of the documentation.
"""
