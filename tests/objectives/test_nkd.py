"""Normalised distillation: a loop, and where its minimum is."""

from __future__ import annotations

import pytest
import torch

from moekd.objectives import NKD, normalised_kd
from moekd.signals import Signals


def test_equals_a_loop() -> None:
    student, teacher = torch.randn(2, 7, 5, dtype=torch.float64) * 2
    target = torch.randint(0, 5, (7,))
    losses = normalised_kd(student, teacher, target, 1.5, 2.0)
    for b, y in enumerate(target.tolist()):
        keep = [c for c in range(5) if c != y]
        soft = -teacher[b].softmax(0)[y] * student[b].log_softmax(0)[y]
        others = -((teacher[b, keep] / 2).softmax(0) * (student[b, keep] / 2).log_softmax(0)).sum()
        torch.testing.assert_close(losses[b], soft + 1.5 * 4 * others)


def test_with_gamma_0_it_is_cross_entropy_weighted_by_the_teacher() -> None:
    student, teacher = torch.randn(2, 7, 5)
    target = torch.randint(0, 5, (7,))
    weight = teacher.softmax(1).gather(1, target[:, None])[:, 0]
    expected = weight * torch.nn.functional.cross_entropy(student, target, reduction="none")
    torch.testing.assert_close(normalised_kd(student, teacher, target, gamma=0), expected)


def test_pixels_and_rows_without_labels() -> None:
    student, teacher = torch.randn(2, 2, 5, 3, 4)
    batch = {"label": torch.randint(0, 5, (2, 3, 4)), "labelled": torch.tensor([True, False])}
    loss = NKD().pair_map(Signals(student), Signals(teacher), batch)
    target = torch.stack([batch["label"][0], teacher[1].argmax(0)])
    torch.testing.assert_close(loss[:, 2, 3], normalised_kd(student[..., 2, 3], teacher[..., 2, 3], target[:, 2, 3]))
    torch.testing.assert_close(NKD().pair(Signals(student), Signals(teacher), batch), loss.mean(dim=(1, 2)))


def test_gradients_in_double_precision() -> None:
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: normalised_kd(s, teacher, torch.tensor([0, 3, 1])), (student,))


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, found 0"):
        NKD(temperature=0)
