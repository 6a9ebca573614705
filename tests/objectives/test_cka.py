"""Centred kernel alignment: the definition with centring matrices, invariances, constant features."""

from __future__ import annotations

import torch

from moekd.objectives import linear_cka


def hsic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The trace of K_a H K_b H."""
    rows = len(a)
    centring = torch.eye(rows, dtype=a.dtype) - 1 / rows
    return torch.trace(a @ a.T @ centring @ b @ b.T @ centring)


def test_equals_the_definition() -> None:
    a, b = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64) * 100
    expected = hsic(a, b) / (hsic(a, a) * hsic(b, b)).sqrt()
    torch.testing.assert_close(linear_cka(a, b), expected)
    assert 0 < linear_cka(a, b) < 1


def test_blind_to_rotation_scale_and_shift() -> None:
    x = torch.randn(8, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    for other in (x @ rotation, 1e-3 * x, x + 2):
        torch.testing.assert_close(linear_cka(other, x), torch.tensor(1.0), rtol=1e-4, atol=0)


def test_constant_features_count_as_aligned_and_give_no_gradient() -> None:
    student = torch.ones(5, 3, requires_grad=True)
    alignment = linear_cka(student, torch.randn(5, 3))
    alignment.backward()
    assert alignment == 1
    assert torch.equal(student.grad, torch.zeros(5, 3))


def test_gradients_in_double_precision() -> None:
    student = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: linear_cka(s, teacher), (student,))
