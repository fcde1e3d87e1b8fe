"""Creates data sets, networks and tasks from configs; one module per task."""
