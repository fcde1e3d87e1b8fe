"""How glibc keeps the memory that a step frees, where only CPUs can be used."""

import ctypes
import importlib.metadata
import importlib.util


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


def _keeps_memory() -> bool:
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not importlib.util.find_spec("libtpu") and hasattr(ctypes.CDLL(None), "mallopt")
