"""The training step of each task, and the loop around it."""
