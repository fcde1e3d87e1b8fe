"""One file a task: its training step, its evaluation, its metrics."""
