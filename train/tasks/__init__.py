"""One module per task: its training step, its evaluation, its metrics."""
