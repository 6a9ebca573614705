"""DIST: numpy's correlation as oracle, what it is blind to, constant rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moekd.errors import ModelError
from moekd.objectives import DIST, dist_loss
from moekd.objectives.dist import pearson_distance
from moekd.signals import Signals


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_numpy(temperature: float) -> None:
    student, teacher = torch.randn(2, 6, 4, dtype=torch.float64) * 2
    p, q = ((x / temperature).softmax(1).numpy() for x in (student, teacher))
    rows = np.array([1 - np.corrcoef(p[b], q[b])[0, 1] for b in range(6)])
    columns = np.mean([1 - np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(4)])
    expected = temperature**2 * (2.0 * rows + 3.0 * columns)
    np.testing.assert_allclose(dist_loss(student, teacher, 2.0, 3.0, temperature).numpy(), expected, atol=1e-9)


def test_blind_to_shift_and_scale() -> None:
    x = torch.randn(5, 7, dtype=torch.float64)
    torch.testing.assert_close(
        pearson_distance(3 * x + 2, x, 1), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(pearson_distance(-x, x, 1), torch.full((5,), 2.0, dtype=torch.float64))


def test_equal_models_have_no_loss() -> None:
    logits = torch.randn(6, 4)
    torch.testing.assert_close(dist_loss(logits, logits.clone()), torch.zeros(6), atol=1e-5, rtol=0)


def test_constant_rows_and_single_rows_give_no_gradient() -> None:
    student = torch.zeros(1, 4, requires_grad=True)
    loss = dist_loss(student, torch.randn(1, 4))
    loss.sum().backward()
    assert torch.equal(loss, torch.zeros(1))
    assert torch.equal(student.grad, torch.zeros(1, 4))


def test_gradients_in_double_precision() -> None:
    student, teacher = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(dist_loss, (student, teacher))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, found -1"):
        DIST(temperature=-1)
    dense = Signals(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ModelError, match=r"dist takes one decision an instance, logits \[B, C\]; found \(2, 3, 4, 4\)"):
        DIST().pair(dense, dense, {})
