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
        self.segments, self.scaled = _merged(segments)
        sizes = sizes if len(self.segments) > 1 or self.scaled else [sum(sizes)]
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
        self.starts = self.starts.to(device)
        return self

    def __call__(self, rows_B: Tensor) -> Tensor:
        """Return rows `[B, ...]` as they were computed, or as near to it as the codec allows."""
        if len(self.segments) == 1 and not self.scaled:
            return self._decode(self.segments[0], rows_B)
        found = torch.bucketize(rows_B, self.starts.to(rows_B.device), right=True) - 1
        if self.scaled:
            scales = self.segments[0].shared["scale"].index_select(0, found)
            return self._decode(Encoded(self.segments[0].rows, {"scale": scales}), rows_B)
        result = torch.empty(len(rows_B), *self.like.shape, dtype=self.like.dtype, device=rows_B.device)
        for index in found.unique().tolist():
            places = (found == index).nonzero()[:, 0]
            result[places] = self._decode(self.segments[index], rows_B[places] - self.starts[index])
        return result

    def _decode(self, segment: Encoded, rows_B: Tensor) -> Tensor:
        picked = {key: value.index_select(0, rows_B) for key, value in segment.rows.items()}
        return self.codec.decode(picked, segment.shared, len(rows_B), self.like)


def _merged(segments: Sequence[Encoded]) -> tuple[list[Encoded], bool]:
    """Join segments in memory that share nothing, or all share the same; memory-mapped ones stay apart.

    Segments with scales of their own are joined too, and so are their scales, `[S, ...]`, one for each of the S
    segments: picking rows then needs no look at where they lie. The second value says that this was done.
    """
    first = segments[0]
    if len(segments) == 1 or any(isinstance(segment, Mapped) for segment in segments):
        return list(segments), False
    alike = all(segment.shared.keys() == first.shared.keys() for segment in segments)
    same = alike and all(
        torch.equal(segment.shared[key], first.shared[key]) for segment in segments for key in first.shared
    )
    if not same and not (alike and first.shared.keys() == {"scale"}):
        return list(segments), False
    rows = {key: torch.cat([segment.rows[key] for segment in segments]) for key in first.rows}
    if same:
        return [Encoded(rows, first.shared)], False
    return [Encoded(rows, {"scale": torch.cat([segment.shared["scale"] for segment in segments])})], True


class Mapped(Encoded):
    """Encoded rows that lie in a memory-mapped file."""
