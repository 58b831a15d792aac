"""Runners train and evaluate many runs of one method in a single compiled program."""
