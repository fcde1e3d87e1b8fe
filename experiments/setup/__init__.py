"""From flags to a data set, a network and a task: one file a task."""
