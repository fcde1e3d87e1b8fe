"""Experiments, started by absl flags; and `load_run`, which gives a notebook the trained network of a workdir.

run = experiments.load_run("W")
run.predict(images), run.class_names, run.variables
"""


def load_run(workdir: str, checkpoint: str = "latest"):
    """The trained network of a workdir, an experiments.setup.prediction.LoadedRun, from its newest ("latest") or its
    "best" checkpoint. Raises train.workdir.WorkdirError where there is none."""
    from experiments.setup import prediction  # Late: commands listen to signals before they import what is slow.

    return prediction.load_run(workdir, checkpoint)
