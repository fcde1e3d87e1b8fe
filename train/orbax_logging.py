"""What the checkpoint library prints of itself is dropped; the program's own lines and errors stay."""

import functools
import logging
import sys


@functools.cache
def drop_library_lines() -> None:
    """Filters orbax's lines, by their path, and what the other arrays of a failed read or write print when its event
    loop is gone already: the failure itself is raised, and says all that they say."""
    before = sys.unraisablehook

    def hook(unraisable):
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = hook
    for handler in [*logging.getLogger().handlers, *logging.getLogger("absl").handlers]:
        handler.addFilter(lambda record: "orbax" not in record.pathname and record.name != "asyncio")
