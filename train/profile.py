"""A trace of some training steps, recorded by JAX's profiler for XProf."""

import pathlib
import shutil
import tempfile

import jax

from train.messages import say
from train.parallel import processes
from train.workdir import WorkdirError

ENDINGS = (".xplane.pb", ".trace.json.gz")  # Of the two files that JAX writes for a host.


class Profile:
    """Traces the training steps `steps`, numbered from 0, and writes the trace to `folder`; without a folder, traces
    nothing. An evaluation or a checkpoint between two of the steps is part of the trace. If a signal ends the run among
    the steps, the trace has those before it; the resumed run writes another trace of the rest."""

    def __init__(self, folder: pathlib.Path | None = None, steps: range = range(0)):
        self.folder, self.steps = folder, steps
        self._temporary: pathlib.Path | None = None  # While a trace is recorded.
        self._traced = range(0)
        self._annotation: jax.profiler.StepTraceAnnotation | None = None

    def before(self, step: int, state) -> None:
        """Call before the step that follows `step` finished steps. The first traced step starts the trace."""
        if self.folder is None or step not in self.steps:
            return
        if self._temporary is None:
            jax.block_until_ready(state)  # The steps before are not part of the trace.
            # Each process writes to its own folder: processes of one host would write files of the same name.
            self.folder.mkdir(parents=True, exist_ok=True)
            self._temporary = pathlib.Path(tempfile.mkdtemp(prefix=".trace_", dir=self.folder))
            jax.profiler.start_trace(self._temporary)
            self._traced = range(step, step)
        self._traced = range(self._traced.start, step + 1)
        # XProf shows the time of each annotated step.
        self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
        self._annotation.__enter__()

    def after(self, step: int, state) -> None:
        """Call with the number of finished steps and the new state. The last traced step ends the trace."""
        self._end_annotation()
        if self._temporary is not None and step == self.steps.stop:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Ends the trace, if one was started, and writes it. Raises WorkdirError if that fails."""
        self._end_annotation()
        if self.folder is None or self._temporary is None:
            return
        temporary, self._temporary = self._temporary, None
        (index, count), session = processes.index_and_count(), f"steps_{self._traced.start}_{self._traced.stop}"
        target = self.folder / "plugins" / "profile" / session  # The folders that XProf expects.
        try:
            jax.profiler.stop_trace()
            target.mkdir(parents=True, exist_ok=True)
            for ending in ENDINGS:
                for path in temporary.rglob(f"*{ending}"):
                    name = path.name.removesuffix(ending) + (f"_{index}" if count > 1 else "")
                    path.replace(target / f"{name}{ending}")
        except (OSError, jax.errors.JaxRuntimeError) as error:
            raise WorkdirError(f"{self.folder}: the trace can't be written: {str(error).splitlines()[0]}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        say(f"trace of steps {self._traced.start} to {self._traced.stop - 1}: xprof --logdir={self.folder}")

    def _end_annotation(self) -> None:
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None
