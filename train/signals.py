"""Signals that stop a run. Imports nothing slow: a run listens before it imports the rest."""

import signal


class Interrupted(Exception):
    """A signal asked the run to stop; its state is saved, or with a step of None nothing is kept."""

    def __init__(self, number: int, step: int | None):
        resumes = f"stopped at step {step}; the same command resumes the run"
        super().__init__("stopped; all outputs are discarded" if step is None else resumes)
        self.number, self.exit_status = number, 128 + number


class Stop:
    """Remembers SIGTERM or SIGINT. A second signal ends the process at once: what is saved is whole at any moment."""

    def __init__(self):
        self.number = 0
        self.listen()

    def listen(self) -> None:
        """Takes the signals, again where a library has taken them meanwhile."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number, frame):
        del frame
        self.number = number
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
