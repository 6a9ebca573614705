"""One pass of the teachers for all shards that are missing, whatever their sizes.

Shapes: N rows of the split, R rows of a shard, K views of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .codecs import Codec, Like
from .teacher_pass import TeacherPass

SHARD_BYTES = 64 * 2**20
_MOST_ROWS, _FEWEST_ROWS = 2**16, 2**4


@dataclass
class Wanted:
    """A signal of a variant, and the shards of it that have to be computed.

    Attributes:
        variant: name of the teacher or masked variant.
        signal: name of the signal.
        like: shape and type of a row.
        size: samples of a shard, a power of two.
        shards: indices of the missing shards.
    """

    variant: str
    signal: str
    like: Like
    size: int
    shards: set[int]
    _open: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def needs(self, start: int) -> bool:
        """Tell whether the shard with the sample at this row is missing."""
        return start // self.size in self.shards

    def put(self, rows_b: Tensor, values: Tensor, views: int, total: int) -> None:
        """Take in the values of some rows of one shard."""
        index = int(rows_b[0]) // self.size
        if index not in self._open:
            count = min(self.size, total - index * self.size)
            values_N = torch.zeros(count * views, *self.like.shape, dtype=self.like.dtype, device=values.device)
            self._open[index] = values_N, torch.zeros(count, dtype=torch.bool)
        values_N, known_N = self._open[index]
        local = rows_b - index * self.size
        known_N[local] = True
        places = (local[:, None] * views + torch.arange(views)).flatten()
        values_N[places.to(values.device)] = values

    def take(self, index: int, views: int, total: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the values of a shard and which of its samples are known, and forget them."""
        count = min(self.size, total - index * self.size)
        empty = torch.zeros(count * views, *self.like.shape, dtype=self.like.dtype, device=device)
        return self._open.pop(index, (empty, torch.zeros(count, dtype=torch.bool)))


#: Told a finished shard: what it belongs to, its index, its values `[R * K, ...]`, and which samples are known `[R]`.
OnShard = Callable[[Wanted, int, Tensor, Tensor], None]


def shard_rows(like: Like, codec: Codec, views: int) -> int:
    """Return how many samples a shard of about 64 MB holds: a power of two, so that shards of all signals nest."""
    rows = SHARD_BYTES // max(1, codec.bytes_a_row(like) * views)
    return min(_MOST_ROWS, max(_FEWEST_ROWS, 1 << (rows.bit_length() - 1) if rows else 0))


def fill(teachers: TeacherPass, wanted: Iterable[Wanted], on_shard: OnShard) -> None:
    """Run the teachers once over the samples of all missing shards, and hand over each shard when it is complete.

    Args:
        teachers: what to run.
        wanted: what is missing.
        on_shard: keeps a shard.
    """
    missing = [item for item in wanted if item.shards]
    if not missing:
        return
    total, step = len(teachers.split), min(item.size for item in missing)
    chunks = [start for start in range(0, total, step) if any(item.needs(start) for item in missing)]
    pieces = [
        range(first, min(first + teachers.batch_size, start + step, total))
        for start in chunks
        for first in range(start, min(start + step, total), teachers.batch_size)
    ]
    skipped = total - sum(len(piece) for piece in pieces)
    if teachers.on_rows and skipped:
        teachers.on_rows(skipped)
    for piece, rows_b, batch in teachers.batches(pieces):
        here = [item for item in missing if item.needs(piece.start)]
        if len(rows_b):
            said = teachers.run(batch, list(dict.fromkeys(item.variant for item in here)))
            for item in here:
                item.put(rows_b, said[item.variant][item.signal], teachers.views, total)
        for item in here:
            index = piece.start // item.size
            if piece.stop == min((index + 1) * item.size, total):
                on_shard(item, index, *item.take(index, teachers.views, total, teachers.device))
        if teachers.on_rows:
            teachers.on_rows(len(piece))
