"""Specialising masks: the masked teacher learns from the student, and nothing else moves."""

from __future__ import annotations

import pytest
import torch

from moekd.objectives import KDToStudent, kd_kl

from ..builders import descend, make_pool, make_step, make_student, same_state, snapshot


def test_variant_is_the_learner_and_the_student_the_target() -> None:
    step = make_step(make_pool("fusion", "vectors"))
    losses = KDToStudent()(step)
    assert list(losses) == [f"kd_to_student/{name}" for name in step.pool.experts]
    for name, signals in step.teachers.items():
        torch.testing.assert_close(losses[f"kd_to_student/{name}"], kd_kl(signals.logits, step.student.logits, 4.0))


def test_only_its_own_mask_gets_a_gradient() -> None:
    pool, student = make_pool("fusion"), make_student()
    pool.masks.requires_grad_(True)
    losses = KDToStudent()(make_step(pool, student=student))
    losses["kd_to_student/fusion/join"].mean().backward()
    assert all(p.grad is not None for p in pool.mask("fusion/join").parameters())
    assert any(p.grad.abs().sum() > 0 for p in pool.mask("fusion/join").parameters())
    other = [p.grad for p in pool.mask("fusion/head.first").parameters()]
    assert all(grad is None or torch.equal(grad, torch.zeros_like(grad)) for grad in other)
    assert all(p.grad is None for p in [*pool.teachers.parameters(), *student.parameters()])


def test_training_masks_lowers_every_loss_and_leaves_the_rest() -> None:
    pool, student = make_pool("fusion", "maps"), make_student()
    pool.masks.requires_grad_(True)
    before, start = (snapshot(pool.teachers), snapshot(student)), {}
    for _ in range(12):
        losses = {name: loss.mean() for name, loss in KDToStudent()(make_step(pool, student=student)).items()}
        start = start or {name: loss.item() for name, loss in losses.items()}
        sum(losses.values()).backward()
        descend(pool.masks, 0.01)
    assert all(losses[name].item() < start[name] for name in start)
    assert same_state(pool.teachers, before[0])
    assert same_state(student, before[1])


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, found -2"):
        KDToStudent(temperature=-2)
