"""One run: its configuration, its training step, its evaluation and the averages of its weights."""
