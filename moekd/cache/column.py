"""The rows of one signal of one teacher, in segments as they were computed or as they lie on the disk.

Shapes: N rows, B picked rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .codecs import Codec, Encoded, Like


class Column:
    """Encoded rows that are decoded when they are picked.

    Args:
        codec: how they are stored.
        like: shape and type of a row.
        segments: parts of the rows, in order.
        sizes: rows of each part.
    """

    def __init__(self, codec: Codec, like: Like, segments: Sequence[Encoded], sizes: Sequence[int]) -> None:
        self.codec, self.like = codec, like
        self.segments, sizes = _merged(segments, sizes)
        self.starts = torch.tensor([0, *sizes], dtype=torch.int64).cumsum(0)[:-1]

    @property
    def nbytes(self) -> int:
        """Bytes that the stored rows take."""
        return sum(segment.nbytes for segment in self.segments)

    @property
    def plain(self) -> Tensor | None:
        """All rows as one tensor `[N, ...]`, where they are stored as they are read."""
        first = self.segments[0]
        if len(self.segments) > 1 or first.shared or set(first.rows) != {"values"}:
            return None
        return first.rows["values"] if first.rows["values"].dtype == self.like.dtype else None

    def to(self, device: torch.device) -> Column:
        """Move the rows."""
        self.segments = [segment.map(lambda tensor: tensor.to(device)) for segment in self.segments]
        return self

    def __call__(self, rows_B: Tensor) -> Tensor:
        """Return rows `[B, ...]` as they were computed, or as near to it as the codec allows."""
        if len(self.segments) == 1:
            return self._decode(self.segments[0], rows_B)
        found = torch.bucketize(rows_B, self.starts.to(rows_B.device), right=True) - 1
        result = torch.empty(len(rows_B), *self.like.shape, dtype=self.like.dtype, device=rows_B.device)
        for index in found.unique().tolist():
            places = (found == index).nonzero()[:, 0]
            result[places] = self._decode(self.segments[index], rows_B[places] - self.starts[index])
        return result

    def _decode(self, segment: Encoded, rows_B: Tensor) -> Tensor:
        picked = {key: value.index_select(0, rows_B) for key, value in segment.rows.items()}
        return self.codec.decode(picked, segment.shared, len(rows_B), self.like)


def _merged(segments: Sequence[Encoded], sizes: Sequence[int]) -> tuple[list[Encoded], list[int]]:
    """Join segments in memory that share nothing, or all share the same; memory-mapped ones stay apart."""
    first = segments[0]
    same = all(
        segment.shared.keys() == first.shared.keys()
        and all(torch.equal(segment.shared[key], first.shared[key]) for key in first.shared)
        for segment in segments
    )
    if len(segments) == 1 or not same or any(isinstance(segment, Mapped) for segment in segments):
        return list(segments), list(sizes)
    rows = {key: torch.cat([segment.rows[key] for segment in segments]) for key in first.rows}
    return [Encoded(rows, first.shared)], [sum(sizes)]


class Mapped(Encoded):
    """Encoded rows that lie in a memory-mapped file."""
