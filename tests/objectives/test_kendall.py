"""Kendall's tau-b against scipy, with ties."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kendalltau

from moekd.objectives import kendall_tau_b


@pytest.mark.parametrize("levels", [3, 1000])
def test_equals_scipy(levels: int) -> None:
    a, b = torch.randint(0, levels, (2, 20, 9)).double()
    expected = [kendalltau(x, y).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    torch.testing.assert_close(kendall_tau_b(a, b), torch.tensor(expected, dtype=torch.float64))


def test_ends_and_constant_rows() -> None:
    a = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    b = torch.tensor([[10.0, 20.0, 30.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert kendall_tau_b(a, b).tolist() == [1.0, -1.0, 0.0]
    assert kendall_tau_b(torch.zeros(2, 1), torch.zeros(2, 1)).tolist() == [0.0, 0.0]
