"""Tests of the memory of a process that trains on CPUs."""

import ctypes
import subprocess
import sys

import pytest

from train.parallel import host_memory

MEMORY = """
import numpy as np
from train.parallel import host_memory

def resident():
    return host_memory.resident() >> 20

# As if no accelerators were available.
host_memory.importlib.metadata.entry_points = lambda **options: ()
host_memory.importlib.util.find_spec = lambda name: None
host_memory.keep_memory()
sizes = [resident()]
for release in (lambda: None, host_memory.release_memory):
    np.ones(25 << 20).sum()  # 200 MB, freed at once.
    release()
    sizes.append(resident())
print(*sizes)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="requires glibc")
def test_freed_memory_is_kept_for_the_next_step_and_returned_on_release(environment):
    done = subprocess.run([sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, kept, released = map(int, done.stdout.split())
    assert kept - before > 100 and released - before < 80


def test_memory_is_released_when_a_process_grows_beyond_its_first_step(monkeypatch):
    held, released = [900], []

    def release():
        released.append(held[0])
        held[0] -= 500

    monkeypatch.setattr(host_memory, "_keeps_memory", lambda: True)
    monkeypatch.setattr(host_memory, "resident", lambda: held[0])
    monkeypatch.setattr(host_memory, "release_memory", release)
    memory = host_memory.HeldMemory()
    memory.after_step()
    assert not released  # Nothing is known before the first step has finished.
    memory.after_compilation()
    assert released == [900] and memory.limit == 1150
    for held[0] in (1000, 1150):
        memory.after_step()
    assert released == [900]
    held[0] = 1151
    memory.after_step()
    assert released == [900, 1151] and held == [651] and memory.limit == 1150
    held[0] = 1800  # 1,300 of these are in use.
    memory.after_step()
    assert released == [900, 1151, 1800] and memory.limit == 1550
    for held[0] in (1300, 1550):
        memory.after_step()
    assert len(released) == 3
