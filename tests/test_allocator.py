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
