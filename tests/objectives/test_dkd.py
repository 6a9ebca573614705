"""Decoupled distillation: a loop, its identity with plain distillation, labels."""

from __future__ import annotations

import math

import pytest
import torch

from moekd.errors import ModelError
from moekd.objectives import DKD, decoupled_kd, kd_kl
from moekd.signals import Signals


def loop_dkd(student: list[float], teacher: list[float], y: int, alpha: float, beta: float, t: float) -> float:
    def softmax(values: list[float]) -> list[float]:
        raised = [math.exp(v / t) for v in values]
        return [v / sum(raised) for v in raised]

    p, q = softmax(teacher), softmax(student)
    tckd = p[y] * math.log(p[y] / q[y]) + (1 - p[y]) * math.log((1 - p[y]) / (1 - q[y]))
    others = [c for c in range(len(p)) if c != y]
    nckd = sum(p[c] / (1 - p[y]) * math.log(p[c] / (1 - p[y]) * (1 - q[y]) / q[c]) for c in others)
    return t**2 * (alpha * tckd + beta * nckd)


def test_equals_a_loop() -> None:
    student, teacher = torch.randn(2, 8, 5, dtype=torch.float64) * 2
    target = torch.randint(0, 5, (8,))
    expected = [
        loop_dkd(s, t, y, 1.5, 8.0, 4.0)
        for s, t, y in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True)
    ]
    assert decoupled_kd(student, teacher, target, 1.5, 8.0, 4.0).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_with_the_right_weights_it_is_plain_distillation(temperature: float) -> None:
    student, teacher = torch.randn(2, 8, 5, dtype=torch.float64)
    target = torch.randint(0, 5, (8,))
    first = decoupled_kd(student, teacher, target, 1.0, 0.0, temperature)
    second = decoupled_kd(student, teacher, target, 0.0, 1.0, temperature)
    rest = 1 - (teacher / temperature).softmax(1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(first + rest * second, kd_kl(student, teacher, temperature))


def test_two_classes_leave_nothing_among_the_others() -> None:
    student, teacher = torch.randn(2, 6, 2, dtype=torch.float64)
    target = torch.randint(0, 2, (6,))
    torch.testing.assert_close(decoupled_kd(student, teacher, target, 1.0, 8.0, 2.0), kd_kl(student, teacher, 2.0))


def test_equal_models_have_no_loss_one_class_either() -> None:
    logits = torch.randn(4, 6, requires_grad=True)
    loss = decoupled_kd(logits, logits.detach(), torch.tensor([0, 1, 2, 3]))
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.grad, torch.zeros(4, 6), atol=1e-4, rtol=0)
    assert torch.equal(
        decoupled_kd(torch.randn(3, 1), torch.randn(3, 1), torch.zeros(3, dtype=torch.long)), torch.zeros(3)
    )


def test_gradients_in_double_precision() -> None:
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: decoupled_kd(s, teacher, torch.tensor([0, 3, 1])), (student,))


def test_rows_without_a_label_follow_the_teacher() -> None:
    student, teacher = torch.randn(2, 4, 5)
    labels = torch.tensor([0, -1, 2, 3])
    batch = {"label": labels, "labelled": torch.tensor([True, False, True, False])}
    target = torch.stack([labels[0], teacher[1].argmax(), labels[2], teacher[3].argmax()])
    torch.testing.assert_close(
        DKD().pair(Signals(student), Signals(teacher), batch), decoupled_kd(student, teacher, target)
    )


def test_pixels() -> None:
    student, teacher = torch.randn(2, 2, 5, 3, 4)
    labels = torch.randint(0, 5, (2, 3, 4))
    labels[0, 0, 0] = 255
    batch = {"label": labels, "labelled": torch.tensor([True, True])}
    loss = DKD().pair_map(Signals(student), Signals(teacher), batch)
    expected = decoupled_kd(student[:, :, 1, 2], teacher[:, :, 1, 2], labels[:, 1, 2])
    torch.testing.assert_close(loss[:, 1, 2], expected)
    torch.testing.assert_close(
        loss[0, 0, 0], decoupled_kd(student[:1, :, 0, 0], teacher[:1, :, 0, 0], teacher[:1, :, 0, 0].argmax(1))[0]
    )
    torch.testing.assert_close(DKD().pair(Signals(student), Signals(teacher), batch), loss.mean(dim=(1, 2)))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, found 0"):
        DKD(temperature=0)
    batch = {"label": torch.zeros(2, dtype=torch.long)}
    with pytest.raises(ModelError, match=r"dkd: student logits \(2, 3\) and teacher's \(2, 4\) differ"):
        DKD().pair(Signals(torch.zeros(2, 3)), Signals(torch.zeros(2, 4)), batch)
    with pytest.raises(ModelError, match=r"labels \(2,\) do not fit logits \(2, 3, 4, 4\)"):
        DKD().pair(Signals(torch.zeros(2, 3, 4, 4)), Signals(torch.zeros(2, 3, 4, 4)), batch)
