"""How glibc keeps the memory that a step frees, where only CPUs can be used."""

import ctypes
import importlib.metadata
import importlib.util
import os
import pathlib


def keep_memory() -> None:
    """Where only CPUs can be used, makes glibc keep the memory that a step has freed for the next one.

    A step takes and frees a hundred megabytes and more; given back to the kernel and taken again, they are cleared page
    by page, which took 8 % of a step's time (dcnn, batch 128, two cores). Call it before jax starts its threads.
    """
    if _keeps_memory():
        # glibc's malloc.h: one arena for all threads, no trimming at the heap's end, no mapping of large blocks.
        for option, value in ((-8, 1), (-1, -1), (-4, 0)):
            ctypes.CDLL(None).mallopt(option, value)


def release_memory() -> None:
    """After `keep_memory`, gives free memory back to the system once: what compilation took (DenseNet-BC-100: 600 MB,
    and its steps peaked at 2.7 GB without)."""
    if _keeps_memory():
        ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """The bytes of memory that this process occupies; 0 where the system does not tell."""
    try:
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class HeldMemory:
    """Bounds what glibc holds for the next step.

    A block that a step has freed is often a little too small for the next aligned request of the same size, until its
    neighbours are free as well, so that new ones are taken: ResNet-20's step at batch 256 needs 400 MB, and after 16
    steps 1.6 GB were held.
    """

    def __init__(self) -> None:
        self.limit = self.slack = 0

    def after_compilation(self) -> None:
        """Call it when the first step has ended. Allows one and a half times what it and its compilation have taken;
        nothing is bounded where glibc does not keep memory."""
        if not _keeps_memory():
            return
        before = resident()
        release_memory()
        self.slack = max(0, before - resident()) // 2
        self.limit = before + self.slack

    def after_step(self) -> None:
        if self.limit and resident() > self.limit:
            release_memory()
            self.limit = max(self.limit, resident() + self.slack)  # More is in use: do not release in vain next time.


def _keeps_memory() -> bool:
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not importlib.util.find_spec("libtpu") and hasattr(ctypes.CDLL(None), "mallopt")
