"""Reduction: which rows count, and what a batch without any gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.errors import ConfigError
from moekd.objectives import CrossEntropy, LossTerm, RoutedObjective, reduce


def test_scalars_pass_and_rows_are_averaged() -> None:
    assert reduce(torch.tensor(3.0)) == 3.0
    assert reduce(torch.tensor([1.0, 2.0, 6.0])) == 3.0
    assert reduce(LossTerm(torch.tensor([1.0, 2.0, 6.0]))) == 3.0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-10, 10, width=32), st.booleans()), min_size=1, max_size=20))
def test_mean_over_the_rows_that_count(rows: list[tuple[float, bool]]) -> None:
    values = torch.tensor([value for value, _ in rows], requires_grad=True)
    mask = torch.tensor([counts for _, counts in rows])
    loss = reduce(LossTerm(values, mask))
    loss.backward()
    kept = [value for value, counts in rows if counts]
    assert loss.item() == pytest.approx(sum(kept) / len(kept) if kept else 0.0, abs=1e-5)
    torch.testing.assert_close(values.grad, mask.float() / max(1, len(kept)))


def test_values_that_do_not_count_may_be_anything() -> None:
    values = torch.tensor([1.0, float("nan"), float("inf")], requires_grad=True)
    loss = reduce(LossTerm(values, torch.tensor([True, False, False])))
    loss.backward()
    assert loss == 1.0
    assert torch.equal(values.grad, torch.tensor([1.0, 0.0, 0.0]))


def test_empty_batch_gives_zero() -> None:
    values = torch.zeros(0, requires_grad=True)
    loss = reduce(values)
    loss.backward()
    assert loss == 0.0


def test_only_pairwise_objectives_can_be_routed() -> None:
    with pytest.raises(ConfigError, match=r"routed\.objective must compare a student with one teacher; found CrossEnt"):
        RoutedObjective(CrossEntropy())  # type: ignore[arg-type]
