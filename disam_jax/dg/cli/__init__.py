"""The command line: `disam-jax compare`, `sweep`, `report`, `data` and `list`."""
