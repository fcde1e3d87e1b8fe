"""Experiments, configured by absl flags, and `load_run`, which loads a trained network from a workdir.

run = experiments.load_run("W")
run.predict(images), run.class_names, run.variables
"""


def load_run(workdir: str, checkpoint: str = "latest"):
    """Returns the trained network of a workdir as an experiments.setup.prediction.LoadedRun, restored from its newest
    ("latest") or its "best" checkpoint. Raises train.workdir.WorkdirError if there is none."""
    from experiments.setup import prediction  # Lazy: commands install signal handlers before slow imports.

    return prediction.load_run(workdir, checkpoint)
