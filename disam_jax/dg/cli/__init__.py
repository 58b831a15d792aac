"""The command line: `disam-jax compare`, `sweep`, `report` and `list`."""
