"""Makes glibc keep the memory that a step frees, on machines that can only use CPUs."""

import ctypes
import importlib.metadata
import importlib.util
import os
import pathlib


def keep_memory() -> None:
    """If only CPUs can be used, makes glibc keep the memory that a step frees for the next step.

    A step allocates and frees a hundred megabytes or more. If they are returned to the kernel and allocated again, the
    kernel clears them page by page, which took 8 % of a step's time (dcnn, batch size 128, two cores). Must be called
    before JAX starts its threads.
    """
    if _keeps_memory():
        # Constants of glibc's malloc.h: one arena for all threads, no heap trimming, no mmap for large blocks.
        for option, value in ((-8, 1), (-1, -1), (-4, 0)):
            ctypes.CDLL(None).mallopt(option, value)


def release_memory() -> None:
    """After `keep_memory`, returns free memory to the system once, such as the memory that compilation used
    (DenseNet-BC-100: 600 MB; without this call, its steps peaked at 2.7 GB)."""
    if _keeps_memory():
        ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """The resident memory of this process in bytes; 0 if the system does not report it."""
    try:
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class HeldMemory:
    """Limits the memory that glibc keeps for the next step.

    A block that a step has freed is often slightly too small for the next aligned request of the same size until its
    neighboring blocks are free as well, so new blocks are allocated: ResNet-20's step at batch size 256 needs 400 MB,
    and after 16 steps 1.6 GB were kept.
    """

    def __init__(self) -> None:
        self.limit = self.slack = 0

    def after_compilation(self) -> None:
        """Must be called after the first step. Sets the limit to the resident memory at that time plus half of the
        memory that can be released then; there is no limit if glibc does not keep memory."""
        if not _keeps_memory():
            return
        before = resident()
        release_memory()
        self.slack = max(0, before - resident()) // 2
        self.limit = before + self.slack

    def after_step(self) -> None:
        if self.limit and resident() > self.limit:
            release_memory()
            self.limit = max(self.limit, resident() + self.slack)  # More is in use now; avoid futile releases.


def _keeps_memory() -> bool:
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not importlib.util.find_spec("libtpu") and hasattr(ctypes.CDLL(None), "mallopt")
