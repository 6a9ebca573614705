"""Similarity-preserving distillation: a loop and its invariances."""

from __future__ import annotations

import torch

from moekd.objectives import similarity_loss


def test_equals_a_loop() -> None:
    student, teacher = torch.randn(5, 3, 2, 2, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    grams = []
    for x in (student, teacher):
        rows = []
        for i in range(5):
            row = torch.stack([(x[i] * x[j]).sum() for j in range(5)])
            rows.append(row / row.square().sum().sqrt())
        grams.append(torch.stack(rows))
    losses = similarity_loss(student, teacher)
    torch.testing.assert_close(losses.mean(), (grams[0] - grams[1]).square().sum() / 25)
    torch.testing.assert_close(losses[2], (grams[0][2] - grams[1][2]).square().sum() / 5)


def test_blind_to_rotation_and_scale() -> None:
    x = torch.randn(6, 4, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    torch.testing.assert_close(similarity_loss(2 * x @ rotation, x), torch.zeros(6, dtype=torch.float64))


def test_gradients_in_double_precision() -> None:
    student = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: similarity_loss(s, teacher), (student,))
