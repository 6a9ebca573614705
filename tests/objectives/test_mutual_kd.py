"""Mutual KD: every ordered pair, gradients through both roles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moekd.model import Model
from moekd.objectives import MutualKD, kd_kl
from moekd.step import Models, Step
from moekd.teachers import Teacher, TeacherPool

from ..builders import make_batch, make_pool, make_step, make_student


def trio() -> tuple[Model, TeacherPool]:
    """Return a student and two teachers that train."""
    pool = make_pool("fusion", "vectors", masked=False)
    for name in pool.names:
        pool.teacher(name).thaw()
    return make_student(), pool


def gradient(module: torch.nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters()]


def test_three_models_make_six_terms() -> None:
    student, pool = trio()
    step = make_step(pool, student=student)
    s, t, a = step.student.logits, pool(step.batch)["fusion"].logits, pool(step.batch)["vectors"].logits
    pairs = [(s, t), (s, a), (t, s), (t, a), (a, s), (a, t)]
    expected = torch.stack([kd_kl(x, y, 4.0) for x, y in pairs]).sum(dim=0)
    torch.testing.assert_close(MutualKD()(step)["mutual_kd"], expected)


def test_each_network_learns_in_both_roles() -> None:
    student, pool = trio()
    batch = make_batch()
    MutualKD()(make_step(pool, batch=batch, student=student))["mutual_kd"].mean().backward()
    full = gradient(student)
    student.zero_grad()
    s = student(batch).logits
    for name in pool.names:
        other = pool(batch)[name].logits.detach()
        (kd_kl(s, other) + kd_kl(other, s)).mean().backward(retain_graph=True)
    for mine, both in zip(full, gradient(student), strict=True):
        torch.testing.assert_close(mine, both)
    student.zero_grad()
    MutualKD(detach_target=True)(make_step(pool, batch=batch, student=student))["mutual_kd"].mean().backward()
    assert not any(torch.allclose(a, b, rtol=1e-2) for a, b in zip(gradient(student), full, strict=True))


def test_detached_targets_leave_only_the_learner_role() -> None:
    student, pool = trio()
    batch = make_batch()
    MutualKD(detach_target=True)(make_step(pool, batch=batch, student=student))["mutual_kd"].mean().backward()
    with_pool = gradient(student)
    student.zero_grad()
    s = student(batch).logits
    sum(kd_kl(s, pool(batch)[name].logits.detach()).mean() for name in pool.names).backward()
    for mine, alone in zip(with_pool, gradient(student), strict=True):
        torch.testing.assert_close(mine, alone)


def test_swapping_the_roles_of_two_networks_changes_nothing() -> None:
    student, pool = trio()
    batch = make_batch()
    loss = MutualKD()(make_step(pool, batch=batch, student=student))["mutual_kd"]
    swapped = TeacherPool(
        {
            "fusion": pool.teacher("fusion"),
            "other": Teacher(student.network, ["left"], name="other"),
        }
    )
    actor = Model(pool.teacher("vectors").network, ["right"])
    other = MutualKD()(Step(batch, Models(actor, swapped)))["mutual_kd"]
    torch.testing.assert_close(other, loss)


def test_some_of_the_teachers() -> None:
    student, pool = trio()
    objective = MutualKD(teachers=["vectors"])
    assert list(objective.variants(pool)) == ["vectors"]
    step = make_step(pool, student=student, variants=objective.variants(pool))
    s, a = step.student.logits, pool(step.batch, ["vectors"])["vectors"].logits
    torch.testing.assert_close(objective(step)["mutual_kd"], kd_kl(s, a) + kd_kl(a, s))
    assert pool.forwards == 2


def test_student_alone_gives_zero() -> None:
    loss = MutualKD()(make_step(TeacherPool({})))["mutual_kd"]
    assert torch.equal(loss, torch.zeros(6))


def test_variants_are_the_plain_teachers() -> None:
    pool = make_pool("fusion", "vectors")
    assert list(MutualKD().variants(pool)) == ["fusion", "vectors"]


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, found 0"):
        MutualKD(temperature=0)
