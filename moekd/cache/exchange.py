"""Filling a cache in memory by several processes: each runs the teachers on a part of the samples, all get everything.

Shapes: N samples, n samples of this process, K views of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..distributed import gather_rows, rank, world_size
from .fill import OnShard, Wanted
from .teacher_pass import TeacherPass


def fill_together(teachers: TeacherPass, wanted: Iterable[Wanted], on_shard: OnShard) -> None:
    """Do what `fill` does for all shards, with the work shared out; every process has to call this.

    A process keeps its own part of all signals and, one signal after the other, that of all processes before it is
    encoded. Numbers differ from those of one process by rounding alone, since batches are cut elsewhere.

    Args:
        teachers: what to run.
        wanted: the signals, with all of their shards.
        on_shard: keeps a shard.
    """
    wanted = list(wanted)
    total, views, world = len(teachers.split), teachers.views, world_size()
    first, last = total * rank() // world, total * (rank() + 1) // world
    mine = [
        torch.zeros((last - first) * views, *item.like.shape, dtype=item.like.dtype, device=teachers.device)
        for item in wanted
    ]
    known_n = torch.zeros(last - first, dtype=torch.bool, device=teachers.device)
    starts = range(first, last, teachers.batch_size)
    for piece, rows_b, batch in teachers.batches([range(s, min(s + teachers.batch_size, last)) for s in starts]):
        if len(rows_b):
            said = teachers.run(batch, list(dict.fromkeys(item.variant for item in wanted)))
            local_b = (rows_b - first).to(teachers.device)
            known_n[local_b] = True
            places = (local_b[:, None] * views + torch.arange(views, device=teachers.device)).flatten()
            for item, values_n in zip(wanted, mine, strict=True):
                values_n[places] = said[item.variant][item.signal]
        if teachers.on_rows:
            teachers.on_rows(len(piece))
    known_N = everywhere(known_n).cpu()
    for item in wanted:
        values_N = everywhere(mine.pop(0))
        for index in sorted(item.shards):
            samples = slice(index * item.size, min((index + 1) * item.size, total))
            on_shard(item, index, values_N[samples.start * views : samples.stop * views], known_N[samples])
    if teachers.on_rows:
        teachers.on_rows(total - (last - first))


def everywhere(rows_n: Tensor) -> Tensor:
    """Return the rows of all processes `[N, ...]`, bit for bit, in the order of the processes."""
    if world_size() == 1:
        return rows_n
    shape, width = rows_n.shape[1:], math.prod(rows_n.shape[1:]) * rows_n.element_size()
    gathered, _ = gather_rows(rows_n.contiguous().view(torch.uint8).reshape(len(rows_n), width))
    return gathered.view(rows_n.dtype).reshape(-1, *shape)
