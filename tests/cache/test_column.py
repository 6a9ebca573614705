"""Rows that lie in several segments are picked as if they lay in one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.cache import Codec, Like
from moekd.cache.codecs import Kind
from moekd.cache.column import Column

SHAPES = [(), (5,), (3, 2, 2)]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["fp32", "bf16", "int8"]),
    st.sampled_from(SHAPES),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_each_row_is_that_of_its_segment(kind: Kind, shape: tuple[int, ...], sizes: list[int], seed: int) -> None:
    codec, like, rng = Codec(kind), Like(shape, torch.float32), torch.Generator().manual_seed(seed)
    parts = [torch.randn(size, *shape, generator=rng) * 10**index for index, size in enumerate(sizes)]
    encoded = [codec.encode(part) for part in parts]
    alone = torch.cat([codec.decode(e.rows, e.shared, len(p), like) for e, p in zip(encoded, parts, strict=True)])
    rows = torch.randint(0, sum(sizes), (20,), generator=rng)
    assert torch.equal(Column(codec, like, encoded, sizes)(rows), alone[rows])


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_segments_with_scales_of_their_own_are_one_piece_in_memory(shape: tuple[int, ...]) -> None:
    codec, like = Codec("int8"), Like(shape, torch.float32)
    encoded = [codec.encode(torch.randn(4, *shape) * scale) for scale in (1.0, 7.0)]
    column = Column(codec, like, encoded, [4, 4])
    assert len(column.segments) == 1
    assert column.nbytes == sum(part.nbytes for part in encoded)
