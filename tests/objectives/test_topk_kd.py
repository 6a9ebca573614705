"""The teacher's most likely classes: known values, a loop as oracle, rows that count, classes that are novel."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.errors import ConfigError
from moekd.objectives import TopKKD, kd_kl, topk_kd_loss
from moekd.signals import Signals


def oracle(student: list[float], teacher: list[float], k: int) -> float:
    """Return the divergence of one row, in plain Python."""
    ids = sorted(range(len(teacher)), key=lambda c: -teacher[c])[:k]

    def softmax(values: list[float]) -> list[float]:
        powers = [math.exp(value - max(values)) for value in values]
        return [power / sum(powers) for power in powers]

    q, p = softmax([student[c] for c in ids]), softmax([teacher[c] for c in ids])
    return sum(b * (math.log(b) - math.log(a)) for a, b in zip(q, p, strict=True))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10_000))
def test_it_is_the_loop(k: int, seed: int) -> None:
    student, teacher = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    found = topk_kd_loss(student, teacher, k)
    expected = [oracle(s, t, k) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_all_classes_are_the_ordinary_divergence_and_one_is_nothing() -> None:
    student, teacher = torch.randn(2, 5, 6)
    torch.testing.assert_close(topk_kd_loss(student, teacher, 6), kd_kl(student, teacher, 1.0))
    torch.testing.assert_close(topk_kd_loss(student, teacher, 256), kd_kl(student, teacher, 1.0))
    assert torch.equal(topk_kd_loss(student, teacher, 1), torch.zeros(5))


def test_a_constant_on_the_students_row_changes_nothing() -> None:
    student, teacher = torch.randn(2, 5, 6)
    torch.testing.assert_close(topk_kd_loss(student + 7, teacher, 3), topk_kd_loss(student, teacher, 3))
    torch.testing.assert_close(topk_kd_loss(teacher * 1.0, teacher, 3), torch.zeros(5))


def test_temperature() -> None:
    student, teacher = torch.randn(2, 5, 6)
    torch.testing.assert_close(topk_kd_loss(student, teacher, 6, 4.0, tau_squared=True), kd_kl(student, teacher, 4.0))
    torch.testing.assert_close(topk_kd_loss(student, teacher, 6, 4.0), kd_kl(student, teacher, 4.0) / 16)
    with pytest.raises(ValueError, match="found 0"):
        topk_kd_loss(student, teacher, 0)
    with pytest.raises(ValueError, match="found 256 and 0"):
        TopKKD(temperature=0)


def test_only_rows_that_the_teacher_gets_right_count() -> None:
    student, teacher = torch.randn(2, 6, 4)
    right = teacher.argmax(dim=1)
    label = torch.where(torch.tensor([True, False, True, False, False, True]), right, (right + 1) % 4)
    loss = TopKKD(k=3, keep="correct").pair(Signals(student), Signals(teacher), {"label": label})
    expected = topk_kd_loss(student, teacher, 3)[label == right].mean()
    torch.testing.assert_close(loss.mean(), expected)
    assert torch.equal(loss == 0, label != right)
    nothing = TopKKD(k=3, keep="correct").pair(Signals(student), Signals(teacher), {"label": (right + 1) % 4})
    assert torch.equal(nothing, torch.zeros(6))
    unknown = {"label": torch.full((6,), -1), "labelled": torch.zeros(6, dtype=torch.bool)}
    every = TopKKD(k=3, keep="correct").pair(Signals(student), Signals(teacher), unknown)
    torch.testing.assert_close(every, topk_kd_loss(student, teacher, 3))


def test_novel_classes_take_no_part() -> None:
    student, teacher = (torch.randn(5, 6, requires_grad=True) for _ in range(2))
    objective = TopKKD(k=4, among="base", base_classes=[0, 2, 5])
    loss = objective.pair(Signals(student), Signals(teacher), {})
    torch.testing.assert_close(loss, topk_kd_loss(student[:, [0, 2, 5]], teacher[:, [0, 2, 5]], 3))
    loss.sum().backward()
    assert not student.grad[:, [1, 3, 4]].any()
    with pytest.raises(ConfigError, match="the data have no novel classes"):
        TopKKD(among="base")
