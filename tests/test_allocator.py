"""Freed memory is reused on Linux with glibc, and the user's own settings win."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, torch
from moekd.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
for step in range(30):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12_000_000).mul(2.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool, **environment: str) -> int:
    command = [sys.executable, "-c", COUNT_FAULTS.format(keep=keep)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment or None, timeout=120)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_large_tensors_stop_faulting_pages_in():
    assert faults(keep=True) * 20 < faults(keep=False)


def test_settings_of_the_user_win(monkeypatch):
    from moekd.allocator import keep_freed_memory

    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert keep_freed_memory() is False


GROWS = """
import sys, torch
from moekd.allocator import give_back_memory, keep_freed_memory, sparing

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

assert keep_freed_memory()
kept, before = [], resident()
batches = range(40, 60)
for size in sparing(batches, 2**28) if {spare} else batches:
    large = torch.ones(size * 2**18)
    kept.append(large[:2**14].clone())  # lies behind the gap that the large one leaves
    del large
print((resident() - before) // 2**20)
assert give_back_memory(2**40) is False
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_memory_does_not_grow_with_batches_of_other_sizes():
    grown = []
    for spare in (False, True):
        command = [sys.executable, "-c", GROWS.format(spare=spare)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        grown.append(int(done.stdout))
    assert grown[1] < grown[0] / 2
