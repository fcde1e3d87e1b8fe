"""Training: the step of each task, the loop, and parallelism."""
