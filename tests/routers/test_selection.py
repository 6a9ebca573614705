"""Selections: weights sum to 1, ties, gradients, errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.errors import ConfigError
from moekd.routers import SELECTIONS, Dense, TopK


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 50), st.integers(0, 9999))
def test_top_k_weights(rows: int, teachers: int, k: int, scale: float, seed: int) -> None:
    k = min(k, teachers)
    logits = torch.randn(rows, teachers, generator=torch.Generator().manual_seed(seed)) * scale
    weights, chosen = TopK(k)(logits, logits.softmax(1))
    assert chosen is not None
    assert chosen.shape == (rows, k)
    torch.testing.assert_close(weights.sum(1), torch.ones(rows))
    for b in range(rows):
        best = sorted(range(teachers), key=lambda t: (-logits[b, t].item(), t))[:k]
        assert chosen[b].tolist() == best
        exact = logits[b, best].softmax(0)
        torch.testing.assert_close(weights[b, best], exact, rtol=1e-4, atol=1e-6)
        assert all(weights[b, t] == 0 for t in range(teachers) if t not in best)


def test_ties_go_to_the_lowest_index() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0], [3.0, 1.0, 3.0, 1.0]])
    _, chosen = TopK(2)(logits, logits.softmax(1))
    assert chosen.tolist() == [[1, 2], [0, 1], [0, 2]]
    wide = torch.zeros(64, 33)
    _, chosen = TopK(3)(wide, wide.softmax(1))
    assert chosen.tolist() == [[0, 1, 2]] * 64


def test_saturated_scores_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, -1e4]], requires_grad=True)
    weights, _ = TopK(2)(logits, logits.softmax(1))
    weights[0, 1].backward()
    assert torch.equal(weights, torch.tensor([[1.0, 0.0, 0.0]]))
    assert logits.grad.isfinite().all()


def test_gradient_of_the_weights() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: TopK(3)(x, x.softmax(1))[0], (logits,))


def test_dense_keeps_all() -> None:
    probs = torch.randn(3, 4).softmax(1)
    weights, chosen = Dense()(probs.log(), probs)
    assert chosen is None
    assert torch.equal(weights, probs)


def test_more_chosen_than_there_are_is_refused() -> None:
    expected = r"router\.selection\.k: 3 teachers chosen of 2; lower k or add teachers"
    with pytest.raises(ConfigError, match=expected):
        TopK(3)(torch.zeros(1, 2), torch.full((1, 2), 0.5))


def test_none_chosen_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one teacher must be chosen, found 0"):
        TopK(0)


def test_registered() -> None:
    assert SELECTIONS.get("top_k") is TopK
    assert SELECTIONS.get("dense") is Dense
