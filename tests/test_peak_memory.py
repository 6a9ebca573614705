"""Peak memory of a part of a run, also after larger work in the same process."""

from __future__ import annotations

import sys

import pytest
import torch

import moekd.peak_memory
from moekd.peak_memory import PeakMemory

CPU = torch.device("cpu")
LARGE = 200 * 2**20


def use(size: int) -> None:
    torch.empty(size, dtype=torch.uint8).fill_(1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's peak is started anew on Linux only")
def test_work_before_does_not_count() -> None:
    use(LARGE)
    before = PeakMemory(CPU)
    if before.of != "part":
        pytest.skip("the kernel does not let this process start its peak anew")
    base = before.megabytes()
    use(LARGE // 10)
    small = before.megabytes() - base
    use(LARGE)
    assert small < 60
    assert before.megabytes() - base > 150
    again = PeakMemory(CPU)
    assert again.megabytes() < before.megabytes() + 1
    assert again.record() == {"peak_memory_mb": pytest.approx(again.megabytes(), abs=1), "peak_memory_of": "part"}


def test_where_the_peak_can_not_start_anew(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(moekd.peak_memory, "_CLEAR", tmp_path / "missing" / "clear_refs")
    found = PeakMemory(CPU)
    assert found.of == "process"
    assert found.megabytes() > 50
    monkeypatch.setattr(moekd.peak_memory, "_STATUS", tmp_path / "status")
    assert PeakMemory(CPU).record()["peak_memory_of"] == "process"
