"""Runs training steps on request: the child process of benchmarks.checkouts, which starts this file by path with the
folder of another checkout as PYTHONPATH, so that all modules except this file are the other checkout's.

The first line of standard output is the folder of the checkout. For each line of standard input, a number of steps, it
then runs that many steps on one fixed batch and prints the milliseconds per step.
"""

import pathlib
import sys
import time

import jax

from benchmarks import classifiers, twins
from experiments.cli import app
from train.parallel import data_parallel, host_memory


def serve(made) -> None:
    """Replaces the comparison with a peer."""
    (twin,) = made.values()
    step = data_parallel.parallelize(twin.task.train_step, 1, donate=True)
    state = jax.jit(twin.task.init)(jax.random.key(0))
    for _ in range(3):
        state, _ = step(state, twin.batch)
    jax.block_until_ready(state)
    host_memory.release_memory()
    print(pathlib.Path(str(classifiers.__file__)).parents[1], flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            state, _ = step(state, twin.batch)
        jax.block_until_ready(state)
        print(1e3 * (time.perf_counter() - began) / int(line), flush=True)


def main(argv) -> int:
    twins.compare = serve  # type: ignore[assignment]  # main creates the twin of --models, as in every checkout.
    return classifiers.main(argv)


if __name__ == "__main__":
    app.run(main)
