"""The queue of earlier features: first in, first out, for batches of any size."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.errors import ConfigError, ModelError
from moekd.objectives import FeatureQueue


def rows(ids: torch.Tensor, width: int = 3) -> torch.Tensor:
    return ids[:, None].float().expand(-1, width)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(0, 12), max_size=8))
def test_holds_what_a_deque_holds(size: int, batches: list[int]) -> None:
    queue, expected, number = FeatureQueue(size, {"a": 3, "b/c.d": 2}), deque(maxlen=size), 1
    for count in batches:
        ids = torch.arange(number, number + count)
        queue.push(ids, {"a": rows(ids), "b/c.d": rows(ids, 2)})
        expected.extend(ids.tolist())
        number += count
    filled = queue.filled
    assert sorted(queue.ids[filled].tolist()) == sorted(expected)
    assert torch.equal(queue.rows("a")[filled], rows(queue.ids[filled]))
    assert torch.equal(queue.rows("b/c.d")[filled], rows(queue.ids[filled], 2))
    assert not queue.rows("a")[~filled].any()


def test_the_oldest_batch_is_written_over_and_the_pointer_wraps() -> None:
    queue = FeatureQueue(6, {"a": 3})
    for start in (0, 2, 4, 6):
        ids = torch.arange(start, start + 2)
        queue.push(ids, {"a": rows(ids)})
    assert queue.ids.tolist() == [6, 7, 2, 3, 4, 5]
    assert int(queue.pointer) == 2


def test_random_directions_take_part_and_are_nobodys() -> None:
    torch.manual_seed(0)
    queue = FeatureQueue(5, {"a": 4}, start="random")
    assert queue.filled.all()
    assert not queue.same(torch.tensor([0, 1])).any()
    torch.testing.assert_close(queue.rows("a").norm(dim=1), torch.ones(5))
    assert not FeatureQueue(5, {"a": 4}).filled.any()


def test_state_goes_through_a_state_dict() -> None:
    queue, other = FeatureQueue(4, {"a": 3}), FeatureQueue(4, {"a": 3})
    ids = torch.arange(3)
    queue.push(ids, {"a": rows(ids)})
    other.load_state_dict(queue.state_dict())
    for q in (queue, other):
        q.push(ids + 5, {"a": rows(ids + 5)})
    assert all(torch.equal(a, b) for a, b in zip(queue.buffers(), other.buffers(), strict=True))
    assert list(queue.parameters()) == []


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="can't be negative"):
        FeatureQueue(-1, {"a": 2})
    queue = FeatureQueue(4, {"a": 3})
    with pytest.raises(ModelError, match="the queue holds"):
        queue.push(torch.arange(2), {"b": rows(torch.arange(2))})
    with pytest.raises(ModelError, match="with 3 numbers"):
        queue.push(torch.arange(3), {"a": rows(torch.arange(2))})
    none = FeatureQueue(0, {})
    none.push(torch.arange(3), {})
    assert none.same(torch.arange(2)).shape == (2, 0)
