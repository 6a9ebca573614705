"""What processes compute together is what one computes alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moekd.cache import CacheSettings, cache_in_memory
from moekd.cache.exchange import everywhere

from .builders import Holes, all_rows, distance, pass_of, split_of


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_one_process_together_is_alone(codec: str) -> None:
    teachers, settings = pass_of(), CacheSettings(codec=codec)
    alone, together = (cache_in_memory(teachers, settings, together=way)(all_rows(teachers)) for way in (False, True))
    assert distance(alone, together) < 1e-6


def test_samples_that_can_t_be_read_are_unknown_to_all() -> None:
    teachers = pass_of(split=split_of(Holes))
    alone, together = (cache_in_memory(teachers, together=way) for way in (False, True))
    assert torch.equal(alone.ids_N, together.ids_N)
    assert len(together.ids_N) == len(teachers.split) - 2


RANKS = """
import sys, torch
from torch import distributed as dist
from moekd.cache.exchange import everywhere
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool):
    for shape in ((), (3,), (2, 2)):
        every = [(torch.arange(n * max(1, torch.Size(shape).numel())) % 7).reshape(n, *shape).to(dtype) for n in (3, 0)]
        found = everywhere(every[rank])
        assert found.dtype == dtype and torch.equal(found, torch.cat(every)), (dtype, shape, found)
print("same")
"""


def test_rows_of_any_type_and_shape_come_over_bit_for_bit(tmp_path: Path) -> None:
    rows = torch.ones(2, 3, dtype=torch.float16)
    assert everywhere(rows) is rows, "one process has all rows"
    command = [sys.executable, "-c", RANKS]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    assert [process.communicate(timeout=150)[0].strip() for process in processes] == ["same", "same"]
