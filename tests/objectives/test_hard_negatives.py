"""Miners: which negatives a row gets, and that no known positive is among them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.objectives import hard_negatives, sampled_negatives, without_likely_positives
from moekd.objectives.equal_rows import HIDDEN
from moekd.objectives.hard_negatives import pick

#: Unit vectors at 0, 90 and 45 degrees.
ANGLES = torch.tensor([[1.0, 0.0, 0.70711], [0.0, 1.0, 0.70711], [0.70711, 0.70711, 1.0]])


def test_known_values() -> None:
    index, valid = hard_negatives(ANGLES, torch.eye(3, dtype=torch.bool), 1)
    assert index[:2, 0].tolist() == [2, 2]
    assert valid.all()
    assert not without_likely_positives(ANGLES, torch.arange(3), 0.1).any()
    everything = without_likely_positives(ANGLES, torch.arange(3), -2.0)
    assert torch.equal(everything, ~torch.eye(3, dtype=torch.bool))


def test_a_duplicate_of_the_answer_stays_at_a_positive_margin() -> None:
    scores = torch.tensor([[0.8, 0.8, 0.1]])
    own = torch.tensor([0])
    assert without_likely_positives(scores, own, 0.1).tolist() == [[False, False, False]]
    assert without_likely_positives(scores, own, -0.1).tolist() == [[False, True, False]]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 10), st.integers(0, 10_000))
def test_negatives_are_the_best_wrong_candidates(rows: int, columns: int, k: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, columns, generator=rng)
    positive = torch.rand(rows, columns, generator=rng) < 0.4
    for find in (hard_negatives, sampled_negatives):
        index, valid = find(scores, positive, k)
        for row in range(rows):
            wrong = [j for j in range(columns) if not positive[row, j]]
            found = index[row][valid[row]].tolist()
            assert len(found) == min(k, len(wrong)) == len(set(found))
            assert set(found) <= set(wrong)
            if find is hard_negatives:
                assert found == sorted(wrong, key=lambda j: -float(scores[row, j]))[: len(found)]


def test_a_sampled_negative_comes_as_often_as_the_softmax_says() -> None:
    torch.manual_seed(0)
    scores = torch.tensor([[9.0, 0.0, 1.0, 2.0]]).expand(20_000, -1)
    positive = torch.tensor([[True, False, False, False]]).expand(20_000, -1)
    index, _ = sampled_negatives(scores, positive, 1)
    shares = torch.bincount(index[:, 0], minlength=4) / 20_000
    expected = torch.cat([torch.zeros(1), torch.tensor([0.0, 1.0, 2.0]).softmax(0)])
    torch.testing.assert_close(shares, expected, atol=0.015, rtol=0)


def test_indices_carry_no_gradient_and_scores_do() -> None:
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    own = torch.arange(3)
    positive = torch.nn.functional.one_hot(own, 4).bool()
    index, valid = hard_negatives(scores, positive, 2)
    picked = pick(scores, own, index, valid)
    picked.sum().backward()
    assert scores.grad.sum() == pytest.approx(9)
    missing = pick(scores, own, index, torch.zeros_like(valid))
    assert (missing[:, 1:] == HIDDEN).all()
    assert torch.equal(missing[:, 0], scores.diagonal())
