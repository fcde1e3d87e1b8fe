"""Creates the workdir of a run without training."""

import jax

from experiments.reporting import run_record
from train import checkpoint, workdir


def make_run(path, module, config, dataset, info):
    """Writes the workdir of a run with two checkpoints, the older one the best, and returns their states. `module` is
    the task's module in experiments/setup."""
    experiment = module.create_experiment(config, info, devices=1, steps=1)
    init, folder = jax.jit(experiment.task.init), workdir.Workdir(path)
    states = [init(jax.random.key(config.seed + step)) for step in (0, 1)]
    run_record.write_start(folder, config, experiment, dataset, states[0], split="val", steps=1, devices="1 cpu device")
    checkpoints = checkpoint.Checkpoints(folder.path, best=experiment.task.best)
    for step, state in enumerate(states):
        checkpoints.save(step, state, record={}, metrics={"accuracy": 0.9 - step, "classifier_fid": 1.0 + step})
    checkpoints.wait()
    folder.close()
    return states
