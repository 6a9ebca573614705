"""Hadamard matrices and rotations that even out variances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.teachers.rotation import even_rotation, hadamard


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 20, 24, 28, 36, 104, 384, 768, 1152])
def test_hadamard_matrices_are_orthogonal_signs(order: int) -> None:
    matrix = hadamard(order)
    assert matrix is not None
    assert torch.equal(matrix.abs(), torch.ones(order, order, dtype=torch.float64))
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("order", [3, 6, 7, 52])
def test_orders_without_a_construction(order: int) -> None:
    assert hadamard(order) is None


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10_000), st.floats(0.5, 12.0))
def test_every_channel_gets_the_mean_variance(count: int, seed: int, power: float) -> None:
    variances = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** power
    rotation = even_rotation(variances)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(count, dtype=torch.float64), atol=1e-10, rtol=0)
    diagonal = (rotation @ torch.diag(variances) @ rotation.T).diagonal()
    torch.testing.assert_close(diagonal, variances.mean().expand(count), atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("variances", [[0.0] * 5, [1.0] * 5, [0.0, 0.0, 0.0, 0.0, 7.0]])
def test_degenerate_variances(variances: list[float]) -> None:
    rotation = even_rotation(torch.tensor(variances))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(5, dtype=torch.float64), atol=1e-12, rtol=0)
    diagonal = (rotation @ torch.diag(torch.tensor(variances).double()) @ rotation.T).diagonal()
    torch.testing.assert_close(diagonal, torch.full((5,), sum(variances) / 5, dtype=torch.float64), atol=1e-12, rtol=0)
