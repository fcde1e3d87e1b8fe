"""Suppresses log messages of the checkpoint library; the program's own messages and errors are kept."""

import functools
import logging
import sys


@functools.cache
def drop_library_lines() -> None:
    """Filters Orbax's log records, by their path, and the messages that a failed read or write prints for its remaining
    arrays after its event loop is closed. The failure itself is raised as an exception with the same information."""
    before = sys.unraisablehook

    def hook(unraisable):
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = hook
    for handler in [*logging.getLogger().handlers, *logging.getLogger("absl").handlers]:
        handler.addFilter(lambda record: "orbax" not in record.pathname and record.name != "asyncio")
