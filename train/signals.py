"""Signals that stop a run. This module has no slow imports, so that a command can handle signals before it imports the
rest."""

import signal


class Interrupted(Exception):
    """A signal stopped the run after its state was saved at `step`; if None, all outputs are discarded."""

    def __init__(self, number: int, step: int | None):
        resumes = f"stopped at step {step}; the same command resumes the run"
        super().__init__("stopped; all outputs are discarded" if step is None else resumes)
        self.number, self.exit_status = number, 128 + number


class Stop:
    """`number` is the number of a received SIGTERM or SIGINT, or 0 if there was none. A second signal ends the process
    immediately; files are written atomically, so none is lost."""

    def __init__(self):
        self.number = 0
        self.listen()

    def listen(self) -> None:
        """Installs the handlers. Must be called again after a library has replaced them."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number, frame):
        del frame
        self.number = number
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
